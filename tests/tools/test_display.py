"""How values are shown before a session says otherwise. The exact texts are in `programs/`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.driving import Handle, serving

pytestmark = pytest.mark.anyio


async def test_frames_come_with_their_shape_and_without_folds(session: Handle) -> None:
    """Issue 3: DataFrames as text that a model reads well, with their shape."""
    text = await session.value(
        "import pandas as pd\npd.DataFrame([range(15)], columns=[f'col_{i}' for i in range(15)])"
    )
    header, row, empty, shape = text.splitlines()
    assert header.split() == [f"col_{i}" for i in range(15)]
    assert row.split() == ["0", *map(str, range(15))]
    assert (empty, shape) == ("", "[1 rows x 15 columns]")


async def test_large_arrays_are_abridged_and_small_ones_are_as_ever(session: Handle) -> None:
    """Issue 3: arrays; a small one looks as Python shows it."""
    assert await session.value("import numpy as np\nnp.arange(3)") == "array([0, 1, 2])"
    assert "..." in await session.value("np.arange(600)")


async def test_options_of_the_session_win(session: Handle) -> None:
    """Ours: options are chosen before the session's own code runs, and never again."""
    await session.run(
        "import numpy as np, pandas as pd\n"
        "pd.set_option('display.show_dimensions', False)\n"
        "np.set_printoptions(precision=2)"
    )
    assert await session.value("pd.DataFrame({'x': [1]})") == "   x\n0  1"
    assert await session.value("np.array([1.23456])") == "array([1.23])"


async def test_nothing_is_imported_to_set_options(anyio_backend: str, tmp_path: Path) -> None:
    """Ours: a server that preloads nothing starts kernels without pandas."""
    async with serving(tmp_path, "local", PY_EXEC_PRELOAD="") as kit, kit.session() as session:
        assert await session.value("import sys\n'pandas' in sys.modules, 'numpy' in sys.modules") == "(False, False)"
