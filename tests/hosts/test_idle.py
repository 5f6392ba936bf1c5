"""kernel_host when there is nothing for it to do."""

from __future__ import annotations

import os
from pathlib import Path

import anyio
import pytest

from tests.driving import serving

pytestmark = pytest.mark.anyio


async def test_no_processor_time_is_used_without_sessions(tmp_path: Path) -> None:
    """Found by reading: the end of its last child was taken for a sign that there are more, and it asked for ever."""
    async with serving(tmp_path, "local", PY_EXEC_POOL="0", PY_EXEC_PRELOAD="none") as kit:
        async with kit.session() as session:
            await session.run("1")
            pid = int(await session.value("import os; os.getppid()"))
        await anyio.sleep(1)  # it ends what it has begun
        before = _ticks(pid)
        await anyio.sleep(1)
        assert _ticks(pid) - before < os.sysconf("SC_CLK_TCK") / 4


def _ticks(pid: int) -> int:
    """Of processor time so far: proc(5), stat."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
