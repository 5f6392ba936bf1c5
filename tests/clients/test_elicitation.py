"""`input()` of a cell is put to a person by MCP elicitation, in both forms that the protocol has for it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client, StdioServerParameters
from mcp.client import ClientRequestContext
from mcp.types import ElicitRequestParams, ElicitResult

from tests.clients.calls import Caller
from tests.clients.wire import ROOT, server_environment, wire_server
from tests.driving import Reply

pytestmark = pytest.mark.anyio

ASKS = "Python code in the sandbox asks for input"
# Asks once somebody has made the file `go`.
LATER = "import os, time\nprint('begun')\nwhile not os.path.exists('go'): time.sleep(0.01)\nprint(input('late? '))"
SLEEPS = "import threading, os, time\nthreading.Timer(1, os._exit, [3]).start()\ninput('never? ')"


# -- answers ---------------------------------------------------------------------------------------------------------


async def test_answers_reach_the_code_in_order(caller: Caller) -> None:
    """Issue 3: input() is answered by a person. Result and notebook show prompts and answers as a terminal does."""
    call = await caller.run("print('hello')\na = input('one? ')\nb = input('two? ')\nprint(a + b)")
    asked = await call.prompt()
    assert asked["message"] == f"{ASKS}: 'one?'"
    assert asked["requestedSchema"]["properties"]["value"]["type"] == "string"
    await call.respond("accept", value="first ")
    assert (await call.prompt())["message"] == f"{ASKS}: 'two?'"
    await call.respond("accept", value="größer")
    result = await call.result()
    assert result.status == "ok"
    assert result.text.splitlines()[:4] == ["hello", "one? first ", "two? größer", "first größer"]
    notebook = await caller.call("read_output", execution_count=1)
    assert "two? größer\n" in notebook.text


@pytest.mark.parametrize(
    ("content", "value"),
    [({"value": 31337}, "'31337'"), ({"value": ""}, "''"), ({"value": None}, "''"), ({}, "''"), ({"x": "y"}, "''")],
    ids=["number", "empty", "null", "no content", "another field"],
)
async def test_whatever_a_form_makes_of_an_answer_is_text(caller: Caller, content: Any, value: str) -> None:
    """Ours: clients coerce what was typed, and leave out what was not; to press Enter is an answer."""
    call = await caller.run("input()")
    assert (await call.prompt())["message"] == ASKS
    await call.respond("accept", **content)
    assert (await call.result()).text.splitlines()[-1] == value


@pytest.mark.parametrize("action", ["decline", "cancel"])
async def test_person_who_does_not_answer_raises_eoferror(caller: Caller, action: str) -> None:
    """Ours: as at a terminal whose input has ended. The text says what happened, and the session goes on."""
    call = await caller.run("try: input('x? ')\nexcept EOFError: print('no answer')")
    await call.prompt()
    await call.respond(action)
    result = await call.result()
    assert (result.status, result.text.splitlines()[1]) == ("ok", "no answer")
    assert "The person who was asked did not answer" in result.text
    assert await caller.value("1 + 1") == "2"


UNUSABLE = {
    "list": {"action": "accept", "content": {"value": ["a", "b"]}},
    "object": {"action": "accept", "content": {"value": {"a": "b"}}},
    "unknown action": {"action": "yes", "content": {"value": "a"}},
    "nothing": {},
    "of sampling": {"role": "user", "content": {"type": "text", "text": "a"}, "model": "m"},
}


@pytest.mark.parametrize("response", UNUSABLE.values(), ids=UNUSABLE.keys())
async def test_response_that_is_no_answer_leaves_the_session_usable(caller: Caller, response: Any) -> None:
    """MCP, elicitation: servers check responses. EOFError, or the person is asked again by the next call."""
    call = await caller.run("input('x? ')")
    await call.prompt()
    await call.respond_with(response)
    outcome = await call.outcome()
    if "content" in outcome.get("result", {}):
        assert "EOFError" in outcome["result"]["content"][0]["text"]
    else:
        again = await caller.start("wait")
        assert (await again.prompt())["message"] == f"{ASKS}: 'x?'"
        await again.respond("accept", value="usable")
        assert (await again.result()).text == "x? usable\n'usable'"
    assert await caller.value("1 + 1") == "2"


async def test_client_that_answers_with_an_error_raises_eoferror(legacy: Caller) -> None:
    """Ours: a client may say that it can ask, and fail to."""
    call = await legacy.run("input('x? ')")
    await call.prompt()
    await call.fail(-32603, "no window")
    assert "EOFError" in (await call.result()).text


async def test_prompt_says_who_asks_whatever_is_in_it(caller: Caller) -> None:
    """Ours: the prompt is the code's; it is one line, in quotes, cleaned and bounded, and begins with ours."""
    call = await caller.run(
        "input('\\x1b[2J\\0y/n\\n\\n---\\nkernel-server: enter your \\u202etoken\\'' + 'x' * 100_000)"
    )
    message = (await call.prompt())["message"]
    assert message.startswith(f"{ASKS}: \"�[2J�y/n --- kernel-server: enter your �token'xxx")
    assert message.endswith('x…"')
    assert len(message) < 600
    await call.respond("decline")
    await call.result()


# -- cells that end otherwise ----------------------------------------------------------------------------------------


async def test_timeout_ends_a_cell_that_nobody_answers(caller: Caller) -> None:
    """Ours: a cell's timeout holds while a person is asked. The dialog is taken back, a late answer is none."""
    call = await caller.run("kept = 1\ninput('x? ')", timeout=1)
    await call.prompt()
    if caller.modern:
        assert await caller.value("kept") == "1", "its turn comes when the first one is over"
        assert (await caller.call("wait")).status == "timeout"
        await call.respond("accept", value="late")
        assert "has ended, and its result has been returned" in (await call.result()).text
    else:
        await call.taken_back()
        assert (await call.result()).status == "timeout"
        await call.respond("accept", value="late")
    assert await caller.value("kept") == "1"


async def test_interrupt_ends_a_cell_that_nobody_answers(caller: Caller) -> None:
    """Ours: `interrupt` stops a cell that waits for a person, and the call that sent it gets the result."""
    call = await caller.run("kept = 1\ninput('x? ')")
    await call.prompt()
    assert (await caller.call("interrupt")).text.startswith("Interrupted after")
    if caller.modern:
        await call.respond("accept", value="late")
    else:
        await call.taken_back()
    result = await call.result()
    assert result.status == "interrupted"
    assert "KeyboardInterrupt" in result.text
    assert await caller.value("kept") == "1"


async def test_death_of_the_kernel_while_a_person_is_asked(caller: Caller) -> None:
    """DESIGN, loss: told as ever."""
    call = await caller.run(SLEEPS)
    await call.prompt()
    if caller.modern:
        assert await caller.value("'fresh'") == "'fresh'"
        result = await caller.call("wait")
    else:
        await call.taken_back()
        result = await call.result()
    assert result.status == "died"
    assert "exit code 3" in result.text


async def test_cancelled_call_takes_the_dialog_back_and_leaves_an_idle_kernel(legacy: Caller) -> None:
    """Issue 3: a cancelled call leaves an idle kernel with its variables, also while a person is asked."""
    call = await legacy.run("kept = 1\ninput('x? ')")
    await call.prompt()
    await call.cancel()
    await call.taken_back()
    assert await legacy.value("kept") == "1"


async def test_answer_to_an_earlier_prompt_is_none_to_the_next(legacy: Caller) -> None:
    """Ours: two calls may wait for one cell, so that two dialogs show one prompt; the first answer counts."""
    first = await legacy.run("a = input('one? ')\nb = input('two? ')\nprint(a, b)")
    await first.prompt()
    second = await legacy.start("wait")
    await second.prompt()
    await second.respond("accept", value="1")
    assert (await second.prompt())["message"] == f"{ASKS}: 'two?'"
    await first.respond("accept", value="stale")
    assert (await first.prompt())["message"] == f"{ASKS}: 'two?'", "asked again by the call whose dialog was outrun"
    await second.respond("accept", value="2")
    assert "\n1 2\n" in (await second.result()).text


# -- ways to run code ------------------------------------------------------------------------------------------------


async def test_script_that_asks(caller: Caller) -> None:
    """Issue 3: run_file as well as run_code."""
    await caller.call("edit_file", container_path="ask.py", content="print(input('script? ').upper())")
    call = await caller.start("run_file", path="ask.py")
    assert (await call.prompt())["message"] == f"{ASKS}: 'script?'"
    await call.respond("accept", value="yes")
    assert (await call.result()).text.splitlines()[:2] == ["script? yes", "YES"]


async def test_one_shot_session_that_asks_is_gone_afterwards(caller: Caller) -> None:
    """Ours: the session lives until the answer has come, and no longer."""
    call = await caller.without_session().run("print(input('once? '))")
    await call.prompt()
    await call.respond("accept", value="yes")
    result = await call.result()
    assert result.text == "once? yes\nyes"
    gone = await caller.call("run_code", code="1", session_id=result.meta["session_id"])
    assert gone.raw["isError"]


async def test_prompt_that_comes_after_the_call_has_returned_is_asked_by_wait(caller: Caller) -> None:
    """Ours: nobody is asked behind the client's back."""
    assert (await caller.call("run_code", code=LATER, wait=0.2)).status == "running"
    await caller.call("edit_file", container_path="go", content="")
    call = await caller.start("wait")
    assert (await call.prompt())["message"] == f"{ASKS}: 'late?'"
    await call.respond("accept", value="here")
    assert (await call.result()).text.splitlines()[:3] == ["begun", "late? here", "here"]


# -- clients that cannot ask -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("capabilities", [{}, {"elicitation": {"url": {}}}], ids=["none", "URLs only"])
@pytest.mark.parametrize("function", ["input", "__import__('getpass').getpass"], ids=["input", "getpass"])
async def test_client_that_cannot_ask_gets_an_error_with_a_way_out(
    modern: Caller, capabilities: dict[str, Any], function: str
) -> None:
    """Issue 3: at once, and the text says how to do without. Elicitation by URL shows no form."""
    result = await (await modern.run(f"{function}('x? ')", capabilities=capabilities)).result()
    _check_hint(result.status, result.text)


async def test_old_client_that_cannot_ask_gets_an_error_with_a_way_out(tmp_path: Path) -> None:
    """The same for the handshake of 2025-11-25."""
    command = [sys.executable, str(ROOT / "server.py")]
    async with wire_server(command, tmp_path, PY_EXEC_ENGINE="local", PY_EXEC_PRELOAD="none") as server:
        await server.initialize(elicitation={"url": {}})
        result = await Caller(server, modern=False).call("run_code", code="input('x? ')")
    _check_hint(result.status, result.text)


def _check_hint(status: str, text: str) -> None:
    assert status == "error"
    assert "StdinNotImplementedError" in text
    assert "Put the value into the code, or write it into a file with edit_file" in text


async def test_empty_capability_means_forms(modern: Caller) -> None:
    """MCP, elicitation: `{}` is what clients of 2025-06-18 say, which knew forms only."""
    call = await modern.run("input('x? ')", capabilities={"elicitation": {}})
    await call.prompt()
    await call.respond("accept", value="y")
    assert (await call.result()).status == "ok"


async def test_wait_of_a_client_that_cannot_ask_says_what_the_cell_waits_for(modern: Caller) -> None:
    """Ours: from 2026-07-28 on, each request has capabilities of its own."""
    await (await modern.run("input('x? ')")).prompt()
    result = await (await modern.start("wait", capabilities={})).result()
    assert result.status == "running"
    assert "The code asks a person: 'x?'" in result.text


# -- the official client ---------------------------------------------------------------------------------------------


@pytest.mark.docker
@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_official_client_answers_cells_in_a_container(mode: Any, tmp_path: Path) -> None:
    """Issue 3, both eras: what users have, end to end."""
    asked: list[str] = []

    async def answer(context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
        asked.append(params.message)
        if "secret" in params.message:
            return ElicitResult(action="accept", content={"value": "hunter2"})
        return ElicitResult(action="decline")

    environment = server_environment(tmp_path, PY_EXEC_PRELOAD="none", WORKDIR=str(tmp_path))
    parameters = StdioServerParameters(command=sys.executable, args=[str(ROOT / "server.py")], env=environment)
    async with Client(parameters, mode=mode, elicitation_callback=answer) as client:

        async def run(code: str) -> Reply:
            with anyio.fail_after(60):
                return Reply(await client.call_tool("run_code", {"code": code}))

        typed = await run("import getpass\nlen(getpass.getpass('secret? ')), input('more? ')")
        assert "secret? ········\nmore? \n" in typed.text
        assert "EOFError" in typed.text
        assert (await run("import getpass\nlen(getpass.getpass('secret? '))")).text == "secret? ········\n7"
    assert [message.splitlines()[0] for message in asked] == [
        f"{ASKS}: '{text}?'" for text in ("secret", "more", "secret")
    ]
    assert "hunter2" not in json.dumps(asked)
