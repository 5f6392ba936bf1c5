"""Kernels that die although nobody uses the session: the next one takes its time, unless somebody needs it."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import anyio
import pytest

from kernel_server.sessions import lives
from tests.driving import Handle, eventually, serving

pytestmark = pytest.mark.anyio

# A startup file of the session's profile ends each kernel a moment after its start.
DIES = """
import os, pathlib
folder = pathlib.Path(get_ipython().profile_dir.location) / "startup"
folder.mkdir(exist_ok=True)
_ = (folder / "dies.py").write_text('''
import os, threading
with open({log!r}, "a") as log: print(os.getpid(), file=log)
threading.Timer(0.06, os._exit, [7]).start()
''')
os._exit(0)
"""
WATCHED_SECONDS = 3.0


async def kernels_of(folder: Path) -> int:
    """How many kernels were started within some seconds after the second, in a session that nobody uses."""
    log = folder / "log"
    async with serving(folder, "local", PY_EXEC_PRELOAD="none", PY_EXEC_POOL="0") as kit:
        session = await kit.init()
        assert (await session.run(DIES.format(log=str(log)))).status == "died"
        await eventually(lambda: log.exists() and len(log.read_text().splitlines()) > 1)
        await anyio.sleep(WATCHED_SECONDS)
        count = len(log.read_text().splitlines())
        await _is_served(session)
        return count


async def _is_served(session: Handle) -> None:
    """A call does not wait for the pause to end, and is told what happens to its kernels."""
    reply = await session.run("import time\ntime.sleep(60)", wait=20)
    assert reply.status == "died", reply.text
    assert "exit code 7" in reply.text


async def test_kernels_that_die_unused_are_started_ever_more_rarely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Ours: there were fifty a second for three sessions, for ever. The control is the same without pauses."""
    logger = logging.getLogger(lives.__name__)  # a server takes all handlers from the root
    logger.addHandler(caplog.handler)
    few = await kernels_of(tmp_path / "pauses")
    logger.removeHandler(caplog.handler)
    assert few <= 6
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any(re.search(r"2 kernels have died unused; the next one is started in 0\.5 s", text) for text in told)
    monkeypatch.setattr(lives, "PAUSES", (0.0,))
    assert await kernels_of(tmp_path / "none") > 2 * few


async def test_one_that_was_used_is_replaced_at_once(tmp_path: Path) -> None:
    """Ours: deaths of kernels that somebody uses do not add up."""
    async with serving(tmp_path, "local", PY_EXEC_PRELOAD="none", PY_EXEC_POOL="0") as kit:
        session = await kit.init()
        with anyio.fail_after(sum(lives.PAUSES)):
            for generation in range(1, len(lives.PAUSES) + 2):
                died = await session.run("import os; os._exit(1)")
                assert (died.status, died.result["generation"]) == ("died", generation)
            assert await session.value("1 + 1") == "2"
