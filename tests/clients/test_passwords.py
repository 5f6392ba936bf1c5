"""What a person types for getpass() goes to the code, and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest

from tests.clients.calls import Call, Caller, Result

pytestmark = pytest.mark.anyio

SECRET = "correct-horse-battery-staple"  # noqa: S105 - of nobody
PIN = 918_273_645  # a form may make a number of it
ASKS = "import getpass\np = getpass.getpass('key? ')\nlen(p)"


class Seen:
    """All that a client gets to see, and a person who looks into the server's files."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._folder = caller.server.stderr_file.parent
        self._results: list[str] = []

    async def outcome(self, call: Call) -> dict[str, Any]:
        """The answer to a call."""
        outcome = await call.outcome()
        self._results.append(str(outcome))
        return outcome

    async def look_around(self) -> None:
        """Calls whatever tells of variables, outputs and transcripts."""
        for tool in ("list_variables", "read_output", "list_files"):
            await self.outcome(await self._caller.start(tool))
        notebook = f"{self._caller.session_id}.ipynb"
        await self.outcome(await self._caller.start("export_notebook", local_path=notebook))
        await self.outcome(await self._caller.without_session().start("list_sessions"))

    def places(self, secret: object) -> list[str]:
        """Where it occurs: results, and files below the server's folder."""
        text = str(secret)
        files = [path for path in self._folder.rglob("*") if path.is_file()]
        found = [result for result in self._results if text in result]
        return found + [str(path.relative_to(self._folder)) for path in files if text.encode() in path.read_bytes()]


async def test_password_is_in_no_result_notebook_journal_or_log(caller: Caller) -> None:
    """Issue 3: the log is that of level DEBUG."""
    seen = Seen(caller)
    call = await caller.run(ASKS)
    assert "not written to the result, the notebook or a log" in (await call.prompt())["message"]
    await call.respond("accept", value=SECRET)
    result = Result((await seen.outcome(call))["result"])
    assert result.text == f"key? ········\n{len(SECRET)}\n[kernel-server]\n[variables: new p str]"
    await seen.look_around()
    assert seen.places(SECRET) == []


async def test_plain_answer_is_in_results_notebook_and_journal(caller: Caller) -> None:
    """Positive control: what is looked for above is found where it may be, but for the log."""
    seen = Seen(caller)
    typed = f"plain-{caller.modern}"
    call = await caller.run("p = input('key? ')")
    assert "not written" not in (await call.prompt())["message"]
    await call.respond("accept", value=typed)
    await seen.outcome(call)
    await seen.look_around()
    places = seen.places(typed)
    assert len([place for place in places if place.startswith("{")]) == 2, "of run_code and read_output"
    assert f"{caller.session_id}.ipynb" in places
    assert any(place.startswith("state/journals/") for place in places)
    assert "stderr.log" not in places


RESPONSES = {
    "number": {"action": "accept", "content": {"value": PIN}},
    "list": {"action": "accept", "content": {"value": [SECRET]}},
    "object": {"action": "accept", "content": {"value": {"typed": SECRET}}},
    "another field": {"action": "accept", "content": {"password": SECRET}},
    "unknown action": {"action": "yes", "content": {"value": SECRET}},
    "declined": {"action": "decline", "content": {"value": SECRET}},
    "of sampling": {"role": "user", "content": {"type": "text", "text": SECRET}, "model": SECRET},
}


@pytest.mark.parametrize("response", RESPONSES.values(), ids=RESPONSES.keys())
async def test_password_in_a_response_of_the_wrong_form_is_not_written_down(caller: Caller, response: Any) -> None:
    """Ours: messages of validation errors quote what they refuse."""
    seen = Seen(caller)
    call = await caller.run(ASKS)
    await call.prompt()
    await call.respond_with(response)
    await seen.outcome(call)
    await caller.call("interrupt")  # where the person is asked again
    await seen.look_around()
    assert seen.places(SECRET) + seen.places(PIN) == []


async def test_password_in_an_error_of_the_client_is_not_written_down(legacy: Caller) -> None:
    """The same for what a client says when it fails."""
    seen = Seen(legacy)
    call = await legacy.run(ASKS)
    await call.prompt()
    await call.fail(-32603, f"cannot send {SECRET}")
    await seen.outcome(call)
    await seen.look_around()
    assert seen.places(SECRET) == []
