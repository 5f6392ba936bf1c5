"""How sessions live and end, seen through a real MCP client: order, limits, TTL, cancelling, deaths, reset."""

from __future__ import annotations

import re
from pathlib import Path

import anyio
import pytest

from kernel_server.hosts.controlled import ControlledHost
from tests.driving import (
    Handle,
    Kit,
    Reply,
    containers_of_this_process,
    docker_client,
    eventually,
    serving,
    stopwatch,
)

pytestmark = pytest.mark.anyio

FREE = {"PY_EXEC_PRELOAD": "none"}  # servers that a test starts for itself need no data stack


async def gather(*calls: object) -> list[Reply]:
    """Runs calls at the same time; their replies in the order of the arguments."""
    replies: dict[int, Reply] = {}

    async def run(index: int, call: object) -> None:
        replies[index] = await call  # type: ignore[misc]  # a coroutine; mypy has no short name for it

    async with anyio.create_task_group() as tasks:
        for index, call in enumerate(calls):
            tasks.start_soon(run, index, call)
    return [replies[index] for index in range(len(calls))]


# -- order -----------------------------------------------------------------------------------------------------------


async def test_cells_of_one_session_run_in_the_order_of_their_calls(session: Handle) -> None:
    """Issue 2, sessions."""
    await session.run("seen = []")
    replies = await gather(*(session.run(f"seen.append({n}); seen") for n in range(8)))
    assert [reply.output for reply in replies] == [str(list(range(n + 1))) for n in range(8)]
    assert [reply.result["execution_count"] for reply in replies] == list(range(2, 10))


async def test_failing_cell_does_not_stop_those_behind_it(session: Handle) -> None:
    """Ours: stop_on_error is for notebooks; each call is answered for itself."""
    replies = await gather(session.run("1/0"), session.run("'ran'"), session.run("'too'"))
    assert [reply.text.splitlines()[-1] for reply in replies[1:]] == ["'ran'", "'too'"]


async def test_cells_of_different_sessions_run_at_the_same_time(kit: Kit, tmp_path: Path) -> None:
    """Issue 2, sessions: each waits for what only the other's running cell can bring, so one after the other hangs."""
    async with kit.session() as one, kit.session() as other:
        code = "import os, time\nopen('{mine}', 'w').close()\nwhile not os.path.exists('go'): time.sleep(0.01)\n'done'"

        async def drive(mine: Handle, its: Handle) -> Reply:
            async with anyio.create_task_group() as tasks:
                result: list[Reply] = []

                async def run() -> None:
                    result.append(await mine.run(code.format(mine="begun"), timeout=60))

                tasks.start_soon(run)
                await mine.wait_for_file("begun")
                await its.call("edit_file", container_path="go", content="")
            return result[0]

        replies = await gather(drive(one, other), drive(other, one))
        assert [reply.output for reply in replies] == ["'done'", "'done'"]


# -- limits and TTL --------------------------------------------------------------------------------------------------


async def test_session_beyond_the_maximum_is_refused_and_idle_ones_are_named(
    anyio_backend: str, tmp_path: Path
) -> None:
    """DESIGN, tools: nothing is evicted; the error names the idle ones, longest idle first."""
    async with serving(tmp_path, "local", PY_EXEC_SESSION_MAX="2", **FREE) as kit:
        first, second = await kit.init(), await kit.init()
        await first.run("x = 1")
        for refused in (await kit.call("init"), await kit.call("run_code", code="1")):
            assert refused.is_error
            assert "All 2 sessions are in use (PY_EXEC_SESSION_MAX)" in refused.text
            listed = re.findall(r"([0-9a-f]{32})  idle \d+ s", refused.text)
            assert listed == [second.session_id, first.session_id]
        assert await first.value("x") == "1"
        await second.call("close_session")
        assert not (await kit.call("init")).is_error


async def test_many_at_once_do_not_pass_the_maximum(anyio_backend: str, tmp_path: Path) -> None:
    """Ours: sessions that are being made count."""
    async with serving(tmp_path, "local", PY_EXEC_SESSION_MAX="3", **FREE) as kit:
        replies = await gather(*(kit.call("init") for _ in range(6)))
        assert [reply.is_error for reply in replies].count(False) == 3


async def test_idle_session_expires_and_says_so(anyio_backend: str, tmp_path: Path) -> None:
    """DESIGN: sessions end PY_EXEC_SESSION_TTL after their last use. Its workspace goes with it."""
    async with serving(tmp_path, "local", PY_EXEC_SESSION_TTL="0.4", **FREE) as kit:
        session = await kit.init()
        await eventually(lambda: not Path(session.workspace).exists())
        reply = await session.run("1")
        assert reply.is_error
        assert "expired: it was not used for 0.4 s (PY_EXEC_SESSION_TTL)" in reply.text
        assert "Call init" in reply.text


async def test_running_cell_is_use(anyio_backend: str, tmp_path: Path) -> None:
    """DESIGN: a running cell is use; here it takes four times the TTL."""
    async with serving(tmp_path, "local", PY_EXEC_SESSION_TTL="0.4", **FREE) as kit:
        session = await kit.init()
        assert await session.value("import time; time.sleep(1.6); 'done'") == "'done'"


# -- the container ---------------------------------------------------------------------------------------------------


@pytest.mark.docker
@pytest.mark.one_container
async def test_concurrent_first_calls_start_one_container(docker_engine: None, tmp_path: Path) -> None:
    """Issue 2: the container starts on the first call that needs it, once. At the end of the server it is gone."""
    before = set(containers_of_this_process())
    async with serving(tmp_path, "docker", **FREE) as kit:
        assert set(containers_of_this_process()) == before, "none before the first call"
        replies = await gather(
            *(kit.call("init") for _ in range(4)), kit.call("run_code", code="1"), kit.call("list_packages")
        )
        assert [reply.is_error for reply in replies] == [False] * 6
        assert len(set(containers_of_this_process()) - before) == 1
    await eventually(lambda: set(containers_of_this_process()) == before)


@pytest.mark.docker
@pytest.mark.one_container
async def test_killed_container_is_told_at_once_and_the_next_init_works(docker_engine: None, tmp_path: Path) -> None:
    """DESIGN, loss: a call in flight ends with a clear error within 2 s; the next init starts a fresh container."""
    before = set(containers_of_this_process())
    async with serving(tmp_path, "docker", **FREE) as kit:
        session = await kit.init()
        (container,) = set(containers_of_this_process()) - before
        killed_after: list[float] = []
        replies: list[Reply] = []
        async with anyio.create_task_group() as tasks:

            async def run() -> None:
                replies.append(await session.run("open('begun', 'w').close()\nimport time; time.sleep(60)"))
                killed_after.append(seconds())

            tasks.start_soon(run)
            await session.wait_for_file("begun")
            with docker_client() as client, stopwatch() as seconds:
                client.kill(container)
                await eventually(lambda: killed_after)
        assert killed_after[0] < 2
        assert replies[0].is_error
        assert "killed or crashed" in replies[0].text
        assert "Call init" in replies[0].text
        again = await session.run("1")
        assert again.is_error
        assert "killed or crashed" in again.text
        async with kit.session() as fresh:
            assert await fresh.value("1 + 1") == "2"


@pytest.mark.docker
@pytest.mark.one_container
async def test_reset_ends_everything_and_starts_a_fresh_container(docker_engine: None, tmp_path: Path) -> None:
    """DESIGN, tools: recreates the container; calls in flight end with a clear error."""
    before = set(containers_of_this_process())
    async with serving(tmp_path, "docker", **FREE) as kit:
        session, other = await kit.init(), await kit.init()
        old = set(containers_of_this_process()) - before
        replies: list[Reply] = []
        async with anyio.create_task_group() as tasks:

            async def run() -> None:
                replies.append(await session.run("open('begun', 'w').close()\nimport time; time.sleep(60)"))

            tasks.start_soon(run)
            await session.wait_for_file("begun")
            reply = await kit.call("reset")
        assert "ended 2 sessions" in reply.text
        assert replies[0].is_error
        assert "closed by reset" in replies[0].text
        await eventually(lambda: len(set(containers_of_this_process()) - before) == 1)
        assert old.isdisjoint(containers_of_this_process())
        assert "closed by reset" in (await other.run("1")).text
        async with kit.session() as fresh:
            assert await fresh.value("1 + 1") == "2"


# -- stopping --------------------------------------------------------------------------------------------------------


async def test_cancelled_call_interrupts_its_cell_and_keeps_variables(session: Handle) -> None:
    """DESIGN, long runs: cancelling the call interrupts the cell; it is over, not merely forgotten."""
    await session.run("kept = 1; ended = None")
    async with anyio.create_task_group() as tasks:
        code = (
            "open('begun', 'w').close()\nimport time\n"
            "try:\n  time.sleep(60)\nexcept KeyboardInterrupt:\n  ended = 'interrupted'; raise"
        )
        tasks.start_soon(session.run, code)
        await session.wait_for_file("begun")
        tasks.cancel_scope.cancel()
    with anyio.fail_after(10):
        assert await session.value("kept, ended") == "(1, 'interrupted')"


async def test_cancelled_cell_is_in_the_notebook(session: Handle) -> None:
    """Ours: the transcript holds what ran, also when nobody waited for its end."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(session.run, "open('begun', 'w').close()\nimport time; time.sleep(60)")
        await session.wait_for_file("begun")
        tasks.cancel_scope.cancel()
    await session.run("'after'")
    await session.call("export_notebook", local_path="n.ipynb")
    text = (session.kit.output / "n.ipynb").read_text()
    assert "time.sleep(60)" in text
    assert '"status": "interrupted"' in text


async def test_cell_that_ignores_interrupts_is_killed_and_it_is_told(session: Handle) -> None:
    """DESIGN, long runs: interrupt, again, kill, new generation; the text says what is gone and what is left."""
    await session.run("x = 1; open('file', 'w').write('kept')")
    code = "import time\nwhile True:\n  try: time.sleep(60)\n  except KeyboardInterrupt: pass"
    with stopwatch() as seconds:
        reply = await session.run(code, timeout=0.3)
        assert seconds() < 15
    assert reply.status == "timeout"
    assert reply.result["generation"] == 1
    assert "did not react to being interrupted" in reply.text
    assert "variables" in reply.text
    assert "generation 2" in reply.text
    after = await session.run("open('file').read(), 'x' in globals()")
    assert after.text == "('kept', False)"
    assert after.result["generation"] == 2


# -- deaths ----------------------------------------------------------------------------------------------------------

DEATHS = {
    "exit": ("exit()", "exit()"),
    "quit": ("print('before'); quit()", "exit() or quit()"),
    "os._exit": ("import os; os._exit(3)", "exit code 3"),
    "SIGKILL": ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
    "segmentation fault": ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
    "abort": ("import os; os.abort()", "SIGABRT"),
}


@pytest.mark.parametrize(("code", "why"), DEATHS.values(), ids=DEATHS.keys())
async def test_death_of_a_kernel_says_why_and_what_is_left(session: Handle, code: str, why: str) -> None:
    """DESIGN, loss: why it died, what is gone, what is left, and that a fresh kernel is ready."""
    await session.run("x = 1; open('file', 'w').write('kept')")
    reply = await session.run(code)
    assert reply.status == "died"
    assert reply.result["generation"] == 1
    assert why in reply.text
    assert "variables" in reply.text
    assert "files" in reply.text
    assert "(generation 2)" in reply.text
    after = await session.run("open('file').read(), 'x' in globals()")
    assert after.text == "('kept', False)", "told once"
    assert (after.status, after.result["generation"], after.result["execution_count"]) == ("ok", 2, 1)


async def test_partial_output_before_a_death_is_kept(session: Handle) -> None:
    """STYLE, errors: a result keeps its partial output."""
    reply = await session.run("print('so far', flush=True)\nimport os, time; time.sleep(0.2); os._exit(1)")
    assert reply.text.startswith("so far")


@pytest.mark.parametrize(
    "show", ["print('last words', flush=True)", "print('last words'); sys.stdout.flush()", "display('last words')"]
)
async def test_what_was_shown_right_before_a_death_is_kept(session: Handle, show: str) -> None:
    """Ours: a flush is over when the text has left; native code may hold the interpreter from then on."""
    for _ in range(2):
        reply = await session.run(f"import os, sys\n{show}\nsum(range(3 * 10**7)); os.kill(os.getpid(), 9)")
        assert reply.status == "died"
        assert reply.text.strip("'").startswith("last words")


SHUTS_CONNECTIONS = """
import os, socket
for number in range(3, 200):
    try:
        one = socket.socket(fileno=os.dup(number))
        one.getpeername()  # does not listen
        if "/s-" in str(one.getsockname()): one.shutdown(socket.SHUT_RDWR)
    except OSError: pass
"""


async def test_kernel_without_connections_is_ended_and_followed_by_a_fresh_one(session: Handle) -> None:
    """Ours: otherwise its cell would seem to run for ever, and those behind it wait."""
    told = await session.run(f"kept = 1{SHUTS_CONNECTIONS}", wait=20)
    assert told.status == "died"
    assert "closed its connections" in told.text
    assert "(generation 2)" in told.text
    assert await session.value("'kept' in globals()") == "False"


@pytest.mark.one_container
async def test_death_while_idle_is_told_once_in_the_next_result(session: Handle) -> None:
    """DESIGN, loss: nothing is silently replaced. Another session sees that the process is gone."""
    code = (
        "import os, threading, time\nx = 1\n"
        "def die():\n  while not os.path.exists('die'): time.sleep(0.01)\n  os._exit(7)\n"
        "threading.Thread(target=die).start()\nos.getpid()"
    )
    pid = await session.value(code)
    async with session.kit.session() as witness:

        async def gone() -> bool:
            return await witness.value(f"import os; os.path.exists('/proc/{pid}')") == "False"

        await session.call("edit_file", container_path="die", content="")
        await eventually(gone)
    reply = await session.run("import os; os.unlink('die'); 'x' in globals()")
    assert reply.text.splitlines()[0] == "False"
    assert "Since the last call: The kernel's process ended with exit code 7" in reply.text
    assert "(generation 2)" in reply.text
    assert reply.result["generation"] == 2
    assert (await session.run("2")).text == "2"


async def test_death_behind_a_cancelled_call_is_told_in_the_next_result(session: Handle) -> None:
    """DESIGN, loss: the cancelled call itself tells nobody that its kernel had to be killed."""
    await session.run("x = 1")
    async with anyio.create_task_group() as tasks:
        code = "open('begun', 'w').close()\nimport time\nwhile True:\n  try: time.sleep(60)\n  except KeyboardInterrupt: pass"
        tasks.start_soon(session.run, code)
        await session.wait_for_file("begun")
        tasks.cancel_scope.cancel()
    reply = await session.run("'x' in globals()")
    assert reply.text.splitlines()[0] == "False"
    assert "Since the last call: The kernel was killed by SIGKILL" in reply.text
    assert reply.result["generation"] == 2


async def test_cells_behind_a_death_run_in_the_fresh_kernel(session: Handle) -> None:
    """Ours: none is lost, and none hangs."""
    replies = await gather(session.run("import os; os._exit(1)"), session.run("'second'"), session.run("'third'"))
    assert [reply.status for reply in replies] == ["died", "ok", "ok"]
    assert [reply.text for reply in replies[1:]] == ["'second'", "'third'"]


@pytest.mark.docker
async def test_memory_bomb_is_a_memory_error_and_variables_survive(docker_session: Handle) -> None:
    """DESIGN, resource walls: RLIMIT_DATA makes a memory bomb a MemoryError, and the session lives."""
    await docker_session.run("kept = 1")
    for bomb in ("x = bytearray(10**11)", "x = [0] * 10**10", "import numpy as np; x = np.ones(10**9)"):
        reply = await docker_session.run(bomb)
        assert reply.status == "error"
        assert "MemoryError" in reply.text
    assert await docker_session.value("kept") == "1"


# -- closing ---------------------------------------------------------------------------------------------------------


async def test_close_while_a_cell_runs_ends_its_call_with_a_clear_error(kit: Kit) -> None:
    """Issue 2, sessions: the call does not hang, and the error says what happened."""
    session = await kit.init()
    replies: list[Reply] = []
    async with anyio.create_task_group() as tasks:

        async def run() -> None:
            replies.append(await session.run("open('begun', 'w').close()\nimport time; time.sleep(60)"))

        tasks.start_soon(run)
        await session.wait_for_file("begun")
        with stopwatch() as seconds:
            assert not (await session.call("close_session")).is_error
            assert seconds() < 10
    assert replies[0].is_error
    assert "closed by close_session" in replies[0].text


@pytest.mark.docker
@pytest.mark.one_container
async def test_children_outlive_their_cell_and_end_with_the_session(docker_kit: Kit) -> None:
    """Issue 2: forks children that outlive the cell; when a session ends, everything its UID started is gone.

    A daemon of its own Unix session, without parent and ignoring every signal it can. Seen from another session.
    """
    async with docker_kit.session() as witness:
        session = await docker_kit.init()
        uid = await session.value("import os; os.getuid()")
        daemon = (
            "import os, signal, time\n"
            "for number in range(1, 65):\n"
            "    try: signal.signal(number, signal.SIG_IGN)\n"
            "    except (OSError, ValueError): pass\n"
            "os.setsid()\n"
            "if os.fork() == 0:\n"
            "    while True: time.sleep(60)\n"
        )
        await session.run(f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {daemon!r}]).wait()")
        assert int(await witness.value(_count_processes(uid))) >= 2, "the kernel and the daemon"
        await session.run("1")
        assert int(await witness.value(_count_processes(uid))) >= 2
        await session.call("close_session")
        assert await witness.value(_count_processes(uid)) == "0"


def _count_processes(uid: str) -> str:
    return (
        "import os\ncount = 0\n"
        "for name in os.listdir('/proc'):\n"
        "    try:\n"
        "        status = open(f'/proc/{name}/status').read() if name.isdigit() else ''\n"
        "    except OSError: continue\n"
        f"    if '\\nUid:\\t{uid}\\t' in status and '\\nState:\\tZ' not in status: count += 1\n"
        "count"
    )


async def test_session_that_cannot_be_removed_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the host's answer was: `close_session` and the end of the server waited for ever, beyond cancelling."""

    async def clear(self: ControlledHost, session_id: str) -> None:
        raise OSError("what nobody has thought of")

    async with serving(tmp_path, "local", PY_EXEC_PRELOAD="none", PY_EXEC_POOL="0") as kit:
        session = await kit.init()
        monkeypatch.setattr(ControlledHost, "clear", clear)
        with anyio.fail_after(20):
            assert (await session.call("close_session")).text
        assert "There are no sessions." in (await kit.call("list_sessions")).text
