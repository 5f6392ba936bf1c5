"""A tool call in which a person is asked something, line by line, in both forms that MCP has for it.

Up to 2025-11-25 the server sends `elicitation/create` while the call waits. From 2026-07-28 on the call returns
`input_required`, and the client calls again with the responses and the `requestState`, unopened.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from tests.clients.wire import WireServer, envelope

FORM: dict[str, Any] = {"elicitation": {"form": {}}}
ANSWER = "answer"  # key of the one request


@dataclass
class Call:
    """A call on its way.

    Attributes:
        number: of the request that is to be answered next.
        state: the sealed `requestState` of the last prompt; "" before 2026.
    """

    server: WireServer
    modern: bool
    params: dict[str, Any]
    number: int = 0
    state: str = ""
    _asked: dict[str, Any] = field(default_factory=dict)

    async def prompt(self) -> dict[str, Any]:
        """Waits until a person is asked, and returns the parameters of the elicitation."""
        if not self.modern:
            self._asked = await self.server.asked("elicitation/create")
            return dict(self._asked["params"])
        result = (await self.server.answer(self.number))["result"]
        assert result["resultType"] == "input_required", result
        self.state = result["requestState"]
        request = result["inputRequests"][ANSWER]
        assert request["method"] == "elicitation/create"
        return dict(request["params"])

    async def respond(self, action: str, **content: Any) -> None:
        """The person answers, or does not."""
        await self.respond_with({"action": action, **({"content": content} if content else {})})

    async def respond_with(self, response: Any) -> None:
        """The client answers with any JSON."""
        if self.modern:
            await self.retry({ANSWER: response})
        else:
            await self.server.reply(self._asked, result=response)

    async def fail(self, code: int, message: str) -> None:
        """The client answers the server's request with an error."""
        await self.server.reply(self._asked, error={"code": code, "message": message})

    async def taken_back(self) -> None:
        """Waits until the server says that nobody needs to be asked any more (before 2026)."""
        notified = await self.server.asked("notifications/cancelled")
        assert notified["params"]["requestId"] == self._asked["id"]

    async def retry(self, responses: Any = None, state: str | None = None) -> None:
        """Calls again, as clients do from 2026-07-28 on."""
        more = {} if responses is None else {"inputResponses": responses}
        params = {**self.params, **more, "requestState": self.state if state is None else state}
        self.number = await self.server.send("tools/call", params)

    async def cancel(self) -> None:
        """The client gives the call up, and says so."""
        await self.server.send("notifications/cancelled", {"requestId": self.number}, notification=True)

    async def outcome(self) -> dict[str, Any]:
        """The whole answer: `result` or `error`."""
        return await self.server.answer(self.number)

    async def result(self) -> Result:
        """The tool's result."""
        outcome = await self.outcome()
        assert "result" in outcome, outcome
        return Result(outcome["result"])


@dataclass
class Result:
    """A tool's result as JSON."""

    raw: dict[str, Any]

    @property
    def text(self) -> str:
        """All text blocks."""
        return "\n".join(block["text"] for block in self.raw["content"] if block["type"] == "text")

    @property
    def meta(self) -> dict[str, Any]:
        """What a tool that ran code says for programs."""
        assert not self.raw.get("isError"), self.text
        return dict(self.raw["_meta"]["kernel_server/result"])

    @property
    def status(self) -> str:
        """How the cell went."""
        return str(self.meta["status"])


@dataclass(frozen=True)
class Caller:
    """A client on a connection of either era, with a session."""

    server: WireServer
    modern: bool
    session_id: str = ""

    async def start(self, tool: str, *, capabilities: dict[str, Any] = FORM, **arguments: Any) -> Call:
        """Sends a call; arguments are completed with the session."""
        if self.session_id:
            arguments.setdefault("session_id", self.session_id)
        params: dict[str, Any] = {"name": tool, "arguments": arguments}
        if self.modern:
            params["_meta"] = envelope(**capabilities)
        return Call(self.server, self.modern, params, await self.server.send("tools/call", params))

    async def call(self, tool: str, **arguments: Any) -> Result:
        """Calls a tool that asks nobody."""
        return await (await self.start(tool, **arguments)).result()

    async def run(self, code: str, **arguments: Any) -> Call:
        """Sends a cell."""
        return await self.start("run_code", code=code, **arguments)

    async def value(self, code: str) -> str:
        """What a cell that must succeed puts out."""
        result = await (await self.run(code)).result()
        assert result.status == "ok", result.text
        return result.text

    def without_session(self) -> Caller:
        """The same client; its calls name no session."""
        return replace(self, session_id="")

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Caller]:
        """The same client with a session of its own."""
        made = (await self.call("init")).raw["_meta"]["kernel_server/session"]["session_id"]
        caller = replace(self, session_id=made)
        try:
            yield caller
        finally:
            await caller.call("close_session")
