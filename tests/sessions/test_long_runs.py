"""Cells that take longer than a call: they run on, are waited for, interrupted, and collected once."""

from __future__ import annotations

import anyio
import pytest

from kernel_server.sessions import session as session_module
from tests.driving import Handle, Kit, Reply

pytestmark = pytest.mark.anyio

# Runs until somebody makes the file `go`; prints before and after.
UNTIL_GO = (
    "import os, time\nprint('begun', flush=True)\nwhile not os.path.exists('go'): time.sleep(0.01)\nprint('done')\n42"
)


async def let_it_go(session: Handle) -> None:
    reply = await session.call("edit_file", container_path="go", content="")
    assert not reply.is_error, reply.text


async def test_call_returns_after_wait_and_the_rest_is_picked_up(session: Handle) -> None:
    """DESIGN, long runs: what there is so far, how to go on, and in the end the whole result."""
    first = await session.run(UNTIL_GO, wait=0.5)
    assert first.status == "running"
    assert first.text.splitlines()[0] == "begun"
    assert f"wait(session_id={session.session_id!r})" in first.text
    again = await session.call("wait", wait=0.2)
    assert again.status == "running"
    await let_it_go(session)
    last = await session.call("wait")
    assert (last.status, last.output) == ("ok", "begun\ndone\n42")
    assert last.result["execution_count"] == 1


async def test_a_result_is_handed_out_once(session: Handle) -> None:
    """Ours: with nothing left to wait for, `wait` says so."""
    await session.run("1")
    reply = await session.call("wait")
    assert reply.is_error
    assert "Nothing is running" in reply.text


async def test_cells_queue_and_are_collected_in_order(session: Handle) -> None:
    """Issue 3, long runs: several cells may queue."""
    await session.run(UNTIL_GO, wait=0.3)
    queued = await session.run("print('second')", wait=0.1)
    assert queued.status == "running"
    assert "Waiting for its turn" in queued.text
    await let_it_go(session)
    texts = [(await session.call("wait")).output for _ in range(2)]
    assert texts == ["begun\ndone\n42", "second"]


async def test_interrupt_stops_the_cell_and_keeps_variables(session: Handle) -> None:
    """Issue 3, interrupt."""
    await session.run("kept = 1")
    await session.run("print('begun')\nimport time; time.sleep(60)", wait=0.5)
    reply = await session.call("interrupt")
    assert reply.text.startswith("Interrupted after"), reply.text
    stopped = await session.call("wait")
    assert stopped.status == "interrupted"
    assert stopped.text.splitlines()[0] == "begun"
    assert "KeyboardInterrupt" in stopped.text
    assert await session.value("kept") == "1"


async def test_interrupt_of_a_cell_that_somebody_waits_for_ends_that_call(session: Handle) -> None:
    """Ours: the waiting call gets the result."""
    replies: list[Reply] = []

    async def run() -> None:
        replies.append(await session.run("open('begun', 'w').close()\nimport time; time.sleep(60)"))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await session.wait_for_file("begun")
        await session.call("interrupt")
    assert [reply.status for reply in replies] == ["interrupted"]


async def test_interrupt_without_a_cell_says_so(session: Handle) -> None:
    """Ours."""
    assert (await session.call("interrupt")).text == "Nothing is running in this session."


async def test_a_cancelled_wait_leaves_the_cell_running(session: Handle) -> None:
    """Ours: only the call that sent the code stops it with itself."""
    await session.run(UNTIL_GO, wait=0.3)
    with anyio.move_on_after(0.3):
        await session.call("wait", wait=30)
    await let_it_go(session)
    assert (await session.call("wait")).status == "ok"


async def test_one_shot_code_that_takes_long_stays_reachable(kit: Kit) -> None:
    """Ours: its result must not be lost because it came late."""
    reply = await kit.call("run_code", code=UNTIL_GO, wait=0.3)
    assert reply.status == "running"
    session = Handle(kit, str(reply.result["session_id"]), "")
    await let_it_go(session)
    assert (await session.call("wait")).output == "begun\ndone\n42"
    await session.call("close_session")


async def test_progress_carries_the_last_line(local_kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 3, long runs: progress notifications with the last line printed."""
    monkeypatch.setattr(session_module, "PROGRESS_SECONDS", 0.1)
    heard: list[str] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        heard.append(message or "")

    async with local_kit.session() as session:
        with anyio.fail_after(20):
            await local_kit.client.call_tool(
                "run_code",
                {
                    "code": "print('a')\nprint('50%\\r75%')\nimport time; time.sleep(0.5)",
                    "session_id": session.session_id,
                },
                progress_callback=hear,
            )
    assert heard[-1] == "the code printed: 75%", heard
    assert set(heard) <= {"running for 0 s", "the code printed: a", "the code printed: 75%"}, heard


async def test_closing_a_session_ends_its_long_cell(kit: Kit) -> None:
    """Ours: nothing runs on for nobody."""
    async with kit.session() as other:
        session = await kit.init()
        await session.run("import time; time.sleep(60)", wait=0.2)
        assert not (await session.call("close_session")).is_error
        assert "was closed by close_session" in (await session.call("wait")).text
        assert await other.value("1 + 1") == "2"
