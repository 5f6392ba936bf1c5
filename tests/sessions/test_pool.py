"""Spare sessions: handed out once, as good as new, and gone when they are in the way. Real kernels."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tests.driving import Handle, eventually, serving

pytestmark = pytest.mark.anyio

# Kernels are children of the kernel host: those beside the one that asks. Decoys (`sleep`) are its children, too.
SIBLINGS = """
def siblings():
    import os
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                command, _, fields = file.read().rpartition(")")
                parent = int(fields.split()[1])
        except OSError:
            continue
        if parent == os.getppid() and int(name) != os.getpid() and not command.endswith("(sleep"):
            found.append(int(name))
    return found
"""


async def test_session_from_the_pool_is_as_new(tmp_path: Path) -> None:
    """Issue 4: no state can leak from one use to the next. The same as a session that was started for the call."""
    async with serving(tmp_path / "a", "local", PY_EXEC_POOL="1") as kit:
        await _filled(await kit.init(), 1)
        pooled = await _first_look(await kit.init())
    async with serving(tmp_path / "b", "local", PY_EXEC_POOL="0") as kit:
        fresh = await _first_look(await kit.init())
    assert pooled == fresh


async def _first_look(session: Handle) -> list[object]:
    code = (
        "import os\n"
        "state = [sorted(name for name in get_ipython().user_ns if name not in get_ipython().user_ns_hidden),"
        " len(Out), os.listdir('.'), os.getcwd() == os.environ['HOME']]\nstate"
    )
    reply = await session.run(code)
    assert reply.result["execution_count"] == 1
    assert reply.result["generation"] == 1
    return [reply.output, reply.result["variables"]]


async def test_spare_sessions_differ_from_each_other(tmp_path: Path) -> None:
    """Ours: what a fork gives to all alike is undone, in spare ones too."""
    async with serving(tmp_path, "local", PY_EXEC_POOL="2") as kit:
        await _filled(await kit.init(), 2)
        code = "import random, os, uuid\n[random.random(), os.getpid(), os.getcwd()]"
        assert len({await (await kit.init()).value(code) for _ in range(3)}) == 3


async def test_spare_session_that_died_is_not_handed_out(tmp_path: Path) -> None:
    """Ours: a new session must not begin with news of a death."""
    async with serving(tmp_path, "local", PY_EXEC_POOL="1") as kit:
        first = await kit.init()
        await _filled(first, 1)
        await first.run("import os\nkilled = siblings()\nfor pid in killed: os.kill(pid, 9)")
        await eventually(partial(_is_true, first, "len(siblings()) == 1 and siblings() != killed"))
        for _ in range(2):
            reply = await (await kit.init()).run("1")
            assert (reply.text, reply.result["generation"]) == ("1", 1)


@pytest.mark.docker
@pytest.mark.one_container
async def test_pool_gives_way_when_memory_is_short(tmp_path: Path) -> None:
    """Issue 4: shrinking when memory is short; and it fills again."""
    settings = {"PY_EXEC_POOL": "2", "PY_EXEC_MEMORY": "1g", "PY_EXEC_SESSION_MEMORY": "0"}
    async with serving(tmp_path, "docker", **settings) as kit:
        session = await kit.init()
        await _filled(session, 2)
        code = "import time\nheld = []\nfor _ in range(70):\n    held.append(bytearray(b'x') * 10_000_000)\n    time.sleep(0.01)"
        assert (await session.run(code)).status == "ok"
        await _filled(session, 0)
        await session.run("del held")
        await _filled(session, 2)


async def _filled(session: Handle, count: int) -> None:
    """Waits until so many other kernels stand ready; they are left alone meanwhile."""
    await session.run(SIBLINGS)

    await eventually(partial(_is_true, session, f"len(siblings()) == {count}"))


async def _is_true(session: Handle, expression: str) -> bool:
    return await session.value(expression) == "True"
