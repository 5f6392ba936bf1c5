"""A server that starts goes on with the sessions of one that is gone (issue 5). Real processes, a real engine, real kills."""

from __future__ import annotations

import asyncio
import json
import signal
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from kernel_server.transcripts.folder import JournalFolder
from tests.clients.wire import containers_of
from tests.driving import docker_client, eventually
from tests.faults.servers import Servers

pytestmark = [pytest.mark.anyio, pytest.mark.docker]

COUNTS = "import time\nfor i in range(12):\n    print('line', i, flush=True)\n    time.sleep(0.25)\nx += 1\nx"


def cells(servers: Servers, session_id: str) -> list[str]:
    """What the journal has of a session."""
    return [str(cell["source"]) for cell in JournalFolder(servers.state / "journals").journal(session_id).cells()]


async def test_running_cell_is_collected_from_the_next_server(servers: Servers) -> None:
    """Issue 5, what it shows: the cell's result, whole, with the variables of the session."""
    first = await servers.start()
    session_id = await first.begin("x = 41")
    await first.send_cell(session_id, COUNTS)
    await anyio.sleep(1)
    await first.kill()
    second = await servers.start()
    text = await second.text("wait", session_id=session_id)
    assert text.splitlines()[:13] == [*(f"line {i}" for i in range(12)), "42"]
    assert "nothing of the session is lost" in text
    assert await second.run(session_id, "x") == "42"
    assert cells(servers, session_id) == ["x = 41", COUNTS, "x"]


async def test_cell_that_ended_while_there_was_no_server_is_not_lost(servers: Servers) -> None:
    """Issue 5: 0 finished cells missing from any journal, its picture and its error included."""
    first = await servers.start()
    session_id = await first.begin("import time")
    code = "from IPython.display import Image\ntime.sleep(1)\nprint('late')\ndisplay({'text/plain': 'shown'}, raw=True)\n1 / 0"
    await first.send_cell(session_id, code)
    await anyio.sleep(0.5)
    await first.kill()
    await anyio.sleep(2)
    second = await servers.start()
    assert await second.run(session_id, "6 * 7") == "42"
    assert cells(servers, session_id) == ["import time", code, "6 * 7"]
    text = await second.text("wait", session_id=session_id)
    assert "late\n" in text
    assert "shown" in text
    assert "ZeroDivisionError" in text


async def test_result_that_nobody_may_have_had_is_told_again_and_not_recorded_twice(servers: Servers) -> None:
    """Ours: whether an answer has reached its client, a server that was killed cannot tell."""
    first = await servers.start()
    session_id = await first.begin("print('once')")
    await first.kill()
    second = await servers.start()
    text = await second.text("wait", session_id=session_id)
    assert text.startswith("once\n")
    assert "you may have had this result before" in text
    assert cells(servers, session_id) == ["print('once')"]
    assert "Nothing is running" in await second.text("wait", session_id=session_id)


async def test_death_of_a_kernel_while_there_was_no_server_is_told(servers: Servers) -> None:
    """DESIGN, telling the truth about loss: why, what is gone, what is left."""
    first = await servers.start()
    session_id = await first.begin("x = 1\nopen('kept.txt', 'w').write('here')")
    await first.send_cell(session_id, "import os, time\ntime.sleep(1)\nos._exit(3)")
    await anyio.sleep(0.5)
    await first.kill()
    await anyio.sleep(1.5)
    second = await servers.start()
    result = await second.call("run_code", session_id=session_id, code="open('kept.txt').read(), 'x' in globals()")
    assert "('here', False)" in result.text
    assert "exit code 3" in result.text
    assert "(generation 2)" in result.text
    assert result.result["generation"] == 2


async def test_second_death_is_told_and_not_the_one_before_it_once_more(servers: Servers) -> None:
    """Found by `make kills`: what was written down of the first death hid the second, and named the wrong generation."""
    session_id = ""
    for code in (3, 4):
        server = await servers.start()
        session_id = session_id or await server.begin("x = 1")
        await server.send_cell(session_id, f"import os, time\ntime.sleep(1.5)\nos._exit({code})")
        await anyio.sleep(0.5)
        await server.kill()
        await anyio.sleep(2)
    server = await servers.start()
    result = await server.call("run_code", session_id=session_id, code="'x' in globals()")
    assert "exit code 4" in result.text
    assert "(generation 3)" in result.text
    assert result.result["generation"] == 3


async def test_kernel_is_not_believed_what_it_ran(servers: Servers) -> None:
    """Ours: people read in the notebook what the agent did; code that hides itself must not change that."""
    first = await servers.start()
    session_id = await first.begin("x = 1")
    code = "import time\ncell = get_ipython().kernel._record._cell\ncell.request['content']['code'] = 'innocent'\ntime.sleep(2)"
    await first.send_cell(session_id, code)
    await anyio.sleep(1)
    await first.kill()
    second = await servers.start()
    await second.text("wait", session_id=session_id)
    assert cells(servers, session_id) == ["x = 1", code]


async def test_question_to_a_person_is_put_again(servers: Servers) -> None:
    """Ours: input() waits for its answer over the end of a server."""
    first = await servers.start(elicitation={})
    session_id = await first.begin("x = 1")
    await first.send_cell(session_id, "name = input('who? ')\nname * 2")
    await first.wire.asked("elicitation/create")
    await first.kill()
    second = await servers.start(elicitation={})
    number = await second.wire.send("tools/call", {"name": "wait", "arguments": {"session_id": session_id}})
    asked = await second.wire.asked("elicitation/create")
    assert "who?" in asked["params"]["message"]
    await second.wire.reply(asked, result={"action": "accept", "content": {"value": "ab"}})
    answer = await second.wire.answer(number)
    assert "'abab'" in str(answer["result"]["content"])


async def test_flood_without_a_server_is_bounded_and_told(servers: Servers) -> None:
    """Ours: a kernel keeps 16 MB of what it puts out; what is missing is counted."""
    first = await servers.start()
    session_id = await first.begin("import time")
    code = "time.sleep(1)\nfor i in range(60):\n    display({'text/plain': str(i) * 500_000}, raw=True)\nprint('end')\n'value'"
    await first.send_cell(session_id, code)
    await anyio.sleep(0.5)
    await first.kill()
    await anyio.sleep(3)
    second = await servers.start()
    text = await second.text("wait", session_id=session_id)
    assert "outputs are missing: while no server was there" in text
    assert await second.run(session_id, "1 + 1") == "2"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, None], ids=["SIGTERM", "SIGINT", "end of stdin"])
async def test_server_that_ends_leaves_its_sessions_to_the_next(
    servers: Servers, number: signal.Signals | None
) -> None:
    """Issue 5, leaving: within 2 s, calls in flight are told, the cell runs on. (4 s here: the machine is shared.)"""
    first = await servers.start()
    session_id = await first.begin("x = 41")
    call = await first.send_cell(session_id, COUNTS)
    await anyio.sleep(0.5)
    begun = anyio.current_time()
    if number is None:
        await first.end_of_stdin()
    else:
        first.wire.process.send_signal(number)
        answer = await first.wire.answer(call)
        assert "the next server with the same settings goes on with it" in str(answer["result"]["content"])
    assert await first.wire.wait() == (128 + number if number else 0)
    assert anyio.current_time() - begun < 4
    second = await servers.start()
    assert "42" in await second.text("wait", session_id=session_id)


async def test_server_that_ends_keeps_no_container_without_sessions(servers: Servers) -> None:
    """Ours: spare sessions are not worth keeping."""
    first = await servers.start(PY_EXEC_POOL="2")
    session_id = await first.begin("1")
    assert len(containers_of(first.pid)) == 1
    await first.text("close_session", session_id=session_id)
    await first.end_of_stdin()
    await first.wire.wait()
    await eventually(lambda: not containers_of(first.pid), 12)


async def test_spare_sessions_do_not_outlive_their_server(servers: Servers) -> None:
    """Ours: nobody knows their keys."""
    first = await servers.start(PY_EXEC_POOL="2")
    session_id = await first.begin("1")
    await anyio.sleep(2)
    await first.kill()
    second = await servers.start()
    listed = await second.text("list_sessions")
    assert listed.count("age") == 1
    assert session_id in listed
    with docker_client() as client:
        (container,) = containers_of(first.pid)
        processes = client.top(container["Id"])["Processes"]
    assert sum("kernel_host" in " ".join(line) for line in processes) <= 3  # init, kernel_host, one kernel


async def test_only_servers_with_the_same_settings_go_on(servers: Servers) -> None:
    """Issue 5: with the same settings; another one says where the session is."""
    first = await servers.start()
    session_id = await first.begin("x = 1")
    await first.kill()
    other = await servers.start(PY_EXEC_MEMORY="3g")
    assert "with other settings" in await other.text("run_code", code="x", session_id=session_id)
    second = await servers.start()
    assert await second.run(session_id, "x") == "1"
    assert "Another server of yours that runs now has it" in await other.text(
        "run_code", code="x", session_id=session_id
    )


async def test_two_servers_at_once_do_not_share(servers: Servers) -> None:
    """Issue 5: a lock that is held is respected; one of two that start together goes on with all."""
    first = await servers.start()
    session_ids = [await first.begin(f"x = {n}") for n in range(3)]
    await first.kill()
    second, third = await asyncio.gather(servers.start(), servers.start())
    found = [await server.values_of_x(session_ids) for server in (second, third)]
    assert sorted(text.splitlines()[0] for texts in found for text in texts if "Unknown" not in text) == ["0", "1", "2"]
    assert sum("Unknown" in text for texts in found for text in texts) == 3
    assert {
        text for texts in found for text in texts if "Unknown" in text and "Another server of yours" not in text
    } == set()


async def test_server_that_was_there_already_goes_on_when_asked(servers: Servers) -> None:
    """Ours: clients start the next server before the last one has ended."""
    first, second = await servers.start(), await servers.start()
    session_id, other_id = await first.begin("x = 1"), await second.begin("x = 2")
    assert "Another server of yours" in await second.text("run_code", code="x", session_id=session_id)
    await first.kill()
    assert await second.run(session_id, "x") == "1"
    assert await second.run(other_id, "x") == "2"
    await second.text("close_session", session_id=session_id)
    await eventually(lambda: not containers_of(first.pid), 12)
    assert await second.run(other_id, "x") == "2"


async def test_container_that_ended_meanwhile_is_told(servers: Servers) -> None:
    """Issue 5: what could not be taken over is told."""
    first = await servers.start()
    session_id = await first.begin("x = 1")
    await first.kill()
    with docker_client() as client:
        (container,) = containers_of(first.pid)
        client.remove_container(container["Id"], force=True, v=True)
    second = await servers.start()
    text = await second.text("run_code", code="x", session_id=session_id)
    assert "could not be taken over" in text
    assert "Call init" in text
    assert await second.run(await second.begin("y = 2"), "y") == "2"


async def test_kept_container_ends_by_itself(servers: Servers) -> None:
    """DESIGN, lifetime: no orphan outlives the session TTL."""
    first = await servers.start(PY_EXEC_SESSION_TTL="4")
    await first.begin("x = 1")
    await first.kill()
    await anyio.sleep(2)
    assert len(containers_of(first.pid)) == 1
    await eventually(lambda: not containers_of(first.pid), 12)


async def test_session_that_nobody_used_expires_as_it_would_have(servers: Servers) -> None:
    """Issue 5: the TTL goes on with the session."""
    first = await servers.start(PY_EXEC_SESSION_TTL="6")
    session_id = await first.begin("x = 1")
    await anyio.sleep(3)
    await first.kill()
    second = await servers.start(PY_EXEC_SESSION_TTL="6")
    assert session_id in await second.text("list_sessions")
    await anyio.sleep(5)
    assert "expired" in await second.text("run_code", code="x", session_id=session_id)


async def test_containers_of_their_own_and_the_shared_folder_go_on(servers: Servers) -> None:
    """Issue 5, with PY_EXEC_SESSIONS_PER_CONTAINER=1: every container is taken over, and what they share."""
    settings: dict[str, Any] = {"PY_EXEC_SESSIONS_PER_CONTAINER": "1"}
    (servers.folder / "data.txt").write_text("shared")
    first = await servers.start(**settings)
    session_ids = [await first.begin(f"x = {n}") for n in range(2)]
    await first.text("cp_in", local_path="data.txt", container_path="/workspace/shared/data.txt")
    await first.kill()
    second = await servers.start(**settings)
    read = "x, open('/workspace/shared/data.txt').read()"
    assert [await second.run(name, read) for name in session_ids] == ["(0, 'shared')", "(1, 'shared')"]
    assert await second.run(await second.begin("x = 5"), read) == "(5, 'shared')"


async def test_secrets_are_for_their_owner_only(servers: Servers) -> None:
    """Issue 5: 0600, in a folder that is 0700; the token is not where `docker inspect` shows it."""
    first = await servers.start()
    session_id = await first.begin("x = 1")
    with docker_client() as client:
        (container,) = containers_of(first.pid)
        shown = json.dumps(client.inspect_container(container["Id"]))
    outer = Path(container["Labels"]["kernel_server.run_dir"]).parent
    assert stat.S_IMODE(outer.stat().st_mode) == 0o700
    records = [outer / "host", outer / f"session-{session_id}"]
    assert [stat.S_IMODE(path.stat().st_mode) for path in records] == [0o600, 0o600]
    token = json.loads((outer / "host").read_text().splitlines()[0])["owner"]["token"]
    key = json.loads((outer / f"session-{session_id}").read_text().splitlines()[0])["launched"]["connection"]["key"]
    assert token not in shown
    assert key not in shown


async def test_control_socket_serves_its_owner_only(servers: Servers) -> None:
    """Issue 5: a server proves itself to kernel_host. Control: the owner's token does open it."""
    first = await servers.start()
    await first.begin("x = 1")
    (container,) = containers_of(first.pid)
    run_dir = Path(container["Labels"]["kernel_server.run_dir"])
    token = json.loads((run_dir.parent / "host").read_text().splitlines()[0])["owner"]["token"]

    async def ask(*lines: dict[str, object]) -> list[str]:
        reader, writer = await asyncio.open_unix_connection(run_dir / "control")
        writer.write(b"".join(json.dumps({"id": n, **line}).encode() + b"\n" for n, line in enumerate(lines)))
        answers = []
        with suppress(OSError), anyio.move_on_after(1):
            await reader.readline()  # hello
            answers = [(await reader.readline()).decode() for _ in lines]
        writer.close()
        return [answer for answer in answers if answer]

    assert await ask({"op": "list"}) == []
    assert await ask({"op": "authenticate", "token": "0" * 64}, {"op": "list"}) == []
    assert "sessions" in (await ask({"op": "authenticate", "token": token}, {"op": "list"}))[1]


async def test_branches_and_checkpoints_go_on(servers: Servers) -> None:
    """Issue 7: adoption after a restart: the next server knows the tree, goes back and branches."""
    first = await servers.start()
    session_id = await first.begin("x = [1]")
    await first.call("checkpoint", session_id=session_id, label="begun")
    await first.run(session_id, "x.append(2)")
    branch = (await first.text("branch_session", session_id=session_id)).splitlines()[0].split()[1]
    await first.run(branch, "x.append(3)")
    await first.kill()
    second = await servers.start()
    assert await second.run(branch, "x") == "[1, 2, 3]"
    listed = await second.text("list_sessions")
    assert "checkpoints c1 'begun'" in listed
    assert f"  {branch}, " in listed
    assert f"branched from {session_id} after In [2]" in listed
    assert "(generation 2)" in await second.text("rollback", session_id=session_id, checkpoint="begun")
    assert await second.run(session_id, "x") == "[1]"
    third = (await second.text("branch_session", session_id=branch)).splitlines()[0].split()[1]
    assert await second.run(third, "x, len(In)") == "([1, 2, 3], 6)"
