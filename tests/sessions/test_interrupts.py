"""Stopping a cell: interrupt, timeout and a cancelled call go the same way, whatever the cell is doing. Both engines.

Issue 3: interrupt request, check that the kernel answers, again, then kill and a fresh kernel; each step bounded, and
told. `test_life.py` has cancelled calls, `test_long_runs.py` the tool itself.
"""

from __future__ import annotations

import anyio
import pytest

from kernel_server.sessions import runs
from tests.driving import Handle, Reply

pytestmark = pytest.mark.anyio

STOP_SECONDS = 20.0  # 5 s, with room for a slow machine

SETUP = """
import asyncio, itertools, multiprocessing, os, queue, re, select, signal, socket, subprocess, threading, time
import numpy as np
kept = 'kept'
def begin(): open('begun', 'w').close()
def nap(n): begin(); time.sleep(100)
async def doze(n): begin(); await asyncio.sleep(100)
"""

# What a cell may be doing; `begin()` says that it does. All of them end by KeyboardInterrupt, and nothing is lost.
STOPPED = {
    "Python loop": "begin()\nwhile True: pass",
    "time.sleep": "nap(1)",
    "nested functions": "(lambda f: f(1))(nap)",
    "exec": "exec('begin(); time.sleep(100)')",
    "child process": "begin(); subprocess.run(['sleep', '100'])",
    "child process in a session of its own": "begin(); subprocess.run(['sleep', '100'], start_new_session=True)",
    "os.system": "begin(); os.system('sleep 100')",
    "shell escape": "begin()\n!sleep 100",
    "pool of processes": "with multiprocessing.get_context('fork').Pool(2) as pool: pool.map(nap, [1, 2])",
    "select": "begin(); select.select([], [], [])",
    "socket": "s = socket.socket(socket.AF_UNIX); s.bind('s'); s.listen(); begin(); s.accept()",
    "queue": "begin(); queue.Queue().get()",
    "thread": "t = threading.Thread(target=nap, args=[1], daemon=True); t.start(); t.join()",
    "await": "await doze(1)",
    "gather": "await asyncio.gather(doze(1), doze(2))",
    "loop after an await": "await asyncio.sleep(0)\nbegin()\nwhile True: pass",
    "matrix products": "a = np.ones((300, 300))\nbegin()\nwhile True: a = a @ a / 300",
    "display of its value": "type('Slow', (), {'__repr__': nap})()",
    "clean-up": "try: nap(1)\nfinally: print('cleaned up')",
    "output": "begin()\nwhile True: print('x' * 1000)",
    # The rest needs the second attempt.
    "regular expression that holds the interpreter": "begin(); re.match(r'(a+)+$', 'a' * 40 + 'b')",
    "KeyboardInterrupt that is caught once": "try: nap(1)\nexcept KeyboardInterrupt: nap(2)",
    "CancelledError that is caught once": "try: await doze(1)\nexcept asyncio.CancelledError: await doze(2)",
}

# Nothing but a kill ends these.
KILLED = {
    "native code that holds the interpreter": "begin(); sum(itertools.repeat(1))",
    "ignored signal": "signal.signal(signal.SIGINT, signal.SIG_IGN); nap(1)",
    "KeyboardInterrupt that is caught for ever": "begin()\nwhile True:\n  try: time.sleep(100)\n  except KeyboardInterrupt: pass",
    "task that never gives way": "async def spin():\n  begin()\n  while True: pass\nasyncio.create_task(spin()); await doze(1)",
}


async def start(session: Handle, code: str) -> None:
    """Runs a cell, and returns when it has called `begin`."""
    assert (await session.run(code, wait=0.05)).status == "running"
    await session.wait_for_file("begun")


async def stop(session: Handle, code: str) -> tuple[Reply, Reply]:
    """What interrupt says of a cell, and its result."""
    await session.run("begun = os.path.exists('begun') and os.unlink('begun')")
    await start(session, code)
    with anyio.fail_after(STOP_SECONDS):
        return await session.call("interrupt"), await session.call("wait")


async def test_interrupt_stops_whatever_the_cell_is_doing(session: Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 3: code that waits in a child process, in C, in an event loop. One session outlives all of it."""
    monkeypatch.setattr(runs, "INTERRUPT_SECONDS", (1.0, 3.0))
    await session.run(SETUP)
    for name, code in STOPPED.items():
        said, result = await stop(session, code)
        assert (name, said.text[:17], result.status) == (name, "Interrupted after", "interrupted"), result.text
        after = await session.run("kept")
        assert (name, after.text, after.result["generation"]) == (name, "'kept'", 1)


async def test_what_ignores_interrupts_is_killed_and_told(session: Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 3: then kill and a fresh kernel. Both calls tell, the next result does not any more."""
    monkeypatch.setattr(runs, "INTERRUPT_SECONDS", (0.4, 0.3))
    for generation, (name, code) in enumerate(KILLED.items(), 1):
        await session.run(SETUP)
        said, result = await stop(session, code)
        for reply in (said, result):
            assert "The cell did not react to being interrupted, so its kernel was killed." in reply.text, name
            assert f"A fresh kernel is ready (generation {generation + 1})" in reply.text, name
        assert (name, result.status, result.result["generation"]) == (name, "interrupted", generation)
        after = await session.run("'kept' in globals()")
        assert (name, after.text, after.result["generation"]) == (name, "False", generation + 1)


async def test_timeout_goes_the_same_way(session: Handle) -> None:
    """Issue 3: here with an await, which ipykernel alone does not interrupt before something else happens."""
    await session.run(SETUP)
    with anyio.fail_after(STOP_SECONDS):
        reply = await session.run("print('so far')\nawait asyncio.sleep(100)", timeout=0.5)
    assert reply.status == "timeout"
    assert reply.text.startswith("so far\n")
    assert await session.value("kept") == "'kept'"


async def test_second_interrupt_is_harmless(session: Handle) -> None:
    """Issue 3: at the same time, and afterwards."""
    await session.run(SETUP)
    await start(session, "nap(1)")
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(session.call, "interrupt")
    assert (await session.call("interrupt")).text == "Nothing is running in this session."
    assert (await session.call("wait")).status == "interrupted"
    assert await session.value("kept") == "'kept'"


async def test_interrupt_leaves_the_cells_behind_alone(session: Handle) -> None:
    """Ours: it stops the cell that is running."""
    await session.run(SETUP)
    await start(session, "nap(1)")
    await session.run("print('behind')", wait=0.05)
    await session.call("interrupt")
    assert [(await session.call("wait")).status for _ in range(2)] == ["interrupted", "ok"]


async def test_interrupt_at_the_end_of_a_cell_costs_no_kernel(session: Handle) -> None:
    """Ours: the signal may find the kernel between its cell and its reply; a reply that is lost would hang the call."""
    await session.run(SETUP)
    for number in range(30):
        replies: list[Reply] = []

        async def run(code: str, into: list[Reply]) -> None:
            into.append(await session.run(code))

        with anyio.fail_after(STOP_SECONDS):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run, f"time.sleep({number / 3000})", replies)
                await session.call("interrupt")
        assert replies[0].status in {"ok", "interrupted"}, replies[0].text
    assert await session.value("kept") == "'kept'"


async def test_interrupt_at_the_beginning_of_a_cell_is_not_lost(
    session: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours: it may find the kernel before the cell's first line, or right before a system call, which it does not end.

    The second attempt would hide that, so there is none.
    """
    monkeypatch.setattr(runs, "INTERRUPT_SECONDS", (2 * STOP_SECONDS, 0.0))
    await session.run(SETUP)
    for number in range(150):
        with anyio.fail_after(STOP_SECONDS):
            with anyio.move_on_after(number % 50 / 5_000):
                await session.run("time.sleep(100)")
            assert await session.value("kept") == "'kept'"
