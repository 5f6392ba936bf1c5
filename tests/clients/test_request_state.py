"""From 2026-07-28 on the client holds the state of a call that waits for an answer: it may do anything with it."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from tests.clients.calls import ANSWER, Call, Caller

pytestmark = pytest.mark.anyio

YES = {ANSWER: {"action": "accept", "content": {"value": "yes"}}}
TWICE = "a = input('one? ')\nb = input('two? ')\nprint([a, b])"


async def _asked(modern: Caller, code: str = "input('x? ')") -> Call:
    call = await modern.run(code)
    await call.prompt()
    return call


async def test_state_is_sealed(modern: Caller) -> None:
    """MCP, requestState: the client can read nothing in it; it is another one each time."""
    call = await _asked(modern)
    first = call.state
    await call.retry()
    await call.prompt()
    assert call.state != first
    version, _, token = first.partition(".")
    opened = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    assert version == "v1"
    for secret in (modern.session_id, "session_id", "x?"):
        assert secret.encode() not in opened
    await call.retry(YES)
    await call.result()


def _garbled(state: str) -> list[Any]:
    middle = len(state) // 2
    changed = state[:middle] + ("A" if state[middle] != "A" else "B") + state[middle + 1 :]
    return [changed, state[:-8], state + "AAAA", "", "v1.", '{"job": 1}', 7, {"job": 1}]


async def test_garbled_state_is_refused_and_the_prompt_stays(modern: Caller) -> None:
    """MCP, requestState: what the server did not seal is refused. The right one still works."""
    call = await _asked(modern)
    for state in _garbled(call.state):
        await call.retry(YES, state)
        error = (await call.outcome())["error"]
        assert (error["code"], error["message"]) == (-32602, "Invalid or expired requestState")
    await call.retry(YES)
    assert (await call.result()).text == "x? yes\n'yes'"


async def test_state_of_another_call_is_refused(modern: Caller, modern_client: Caller) -> None:
    """MCP, requestState: bound to its request; a session's state is none for other code, another tool or session."""
    call = await _asked(modern)
    async with modern_client.session() as other:
        for stranger in (
            await _asked(other),
            await other.start("wait"),
            await modern.run("1"),
        ):
            await stranger.retry(YES, call.state)
            assert (await stranger.outcome())["error"]["message"] == "Invalid or expired requestState"
            await other.call("interrupt")
    await call.retry(YES)
    assert (await call.result()).status == "ok"


@pytest.mark.parametrize("tool", ["run_code", "wait"])
async def test_retry_that_names_another_session_is_refused(modern: Caller, modern_client: Caller, tool: str) -> None:
    """MCP, requestState: bound to the arguments. What a call says and what its state says agree; both prompts stay."""
    call = await _asked(modern)
    if tool == "wait":
        call = await modern.start("wait")
        await call.prompt()
    async with modern_client.session() as other:
        theirs = await _asked(other)
        arguments = {**call.params["arguments"], "session_id": other.session_id}
        forged = Call(call.server, call.modern, {**call.params, "arguments": arguments}, state=call.state)
        await forged.retry(YES)
        assert (await forged.outcome())["error"]["message"] == "Invalid or expired requestState"
        for own in (call, theirs):
            await own.retry(YES)
            assert (await own.result()).text == "x? yes\n'yes'"


@pytest.mark.parametrize("responses", [None, {}, {"other": YES[ANSWER]}, {ANSWER: {"roots": []}}])
async def test_retry_without_an_answer_asks_again(modern: Caller, responses: Any) -> None:
    """MCP, requestState: a client may retry with nothing, or with what was not asked for."""
    call = await _asked(modern)
    await call.retry(responses)
    await call.prompt()
    await call.retry(YES)
    assert (await call.result()).status == "ok"


async def test_replayed_retry_answers_no_other_prompt(modern: Caller) -> None:
    """Ours: one answer is given to one prompt, however often it is sent."""
    call = await _asked(modern, TWICE)
    first = call.state
    await call.retry(YES)
    await call.prompt()
    second = call.state
    for _ in range(3):
        await call.retry(YES, first)
        assert "two?" in (await call.prompt())["message"]
    await call.retry({ANSWER: {"action": "accept", "content": {"value": "no"}}}, second)
    assert "['yes', 'no']" in (await call.result()).text


async def test_replayed_retry_runs_nothing_again(modern: Caller) -> None:
    """Ours: once the result has been handed out, the state is worth nothing."""
    call = await _asked(modern, "ran = globals().get('ran', 0) + 1\ninput('x? ')")
    await call.retry(YES)
    await call.result()
    await call.retry(YES)
    result = await call.result()
    assert result.raw["isError"]
    assert "has ended, and its result has been returned" in result.text
    assert await modern.value("ran") == "1"


async def test_retries_at_the_same_time_answer_once(modern: Caller) -> None:
    """Ours: a client that is in doubt sends twice."""
    call = await _asked(modern, TWICE)
    await call.retry(YES)
    twin = Call(call.server, call.modern, call.params, call.number, call.state)
    await call.retry(YES)
    for one in (twin, call):
        assert "two?" in (await one.prompt())["message"]
    await call.retry(YES)
    assert "['yes', 'yes']" in (await call.result()).text


async def test_state_outlives_neither_session_nor_cell(modern_client: Caller) -> None:
    """Ours: the error says what has become of them."""
    async with modern_client.session() as caller:
        call = await _asked(caller)
        await caller.call("close_session")
        await call.retry(YES)
        result = await call.result()
    assert result.raw["isError"]
    assert "was closed by close_session" in result.text
