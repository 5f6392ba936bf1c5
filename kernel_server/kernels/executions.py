"""One cell on its way through a kernel: what it has put out, what it asks, how the kernel replied. No socket.

Kernels are hostile: every field is checked for its type, and what is kept is bounded.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import anyio

from kernel_server.kernels.changes import Changes, changes_of
from kernel_server.kernels.outputs import MAX_OUTPUTS, Error, Outputs, count_of, error_of

IDLE_GRACE_SECONDS = 1.0  # after the reply, or the latest output that follows it; idle can be lost in a flood
MAX_GRACE_SECONDS = 4.0  # a kernel may put out without end, and say that it is its cell
SHORTEST_SECONDS = 0.02  # between looks at a clock that may stand still
MAX_PROMPT = 2_000  # characters
END_OF_INPUT = "\x04"  # ipykernel raises EOFError for it

ReplyStatus = Literal["ok", "error", "aborted"]


@dataclass
class Reply:
    """An `execute_reply`.

    Attributes:
        status: as in the message; `aborted` for a request that the kernel did not run.
        execution_count: number of the cell, 0 if the kernel gave none.
        exiting: the code called `exit()` or `quit()`, so the kernel is about to end.
        changes: what the cell did to variables and files.
    """

    status: ReplyStatus
    execution_count: int
    exiting: bool
    error: Error | None
    changes: Changes


@dataclass
class Input:
    """Where a running cell asks a person something.

    Attributes:
        prompt: what it asks; None while it asks nothing.
        password: the answer must not be shown.
        asked: set while it waits for an answer.
        count: how often it has asked.
    """

    prompt: str | None = None
    password: bool = False
    asked: anyio.Event = field(default_factory=anyio.Event)
    count: int = 0

    def ask(self, content: dict[str, Any]) -> None:
        """Takes in an `input_request`."""
        self.prompt = str(content.get("prompt", ""))[:MAX_PROMPT]
        self.password = content.get("password") is True
        self.count += 1
        self.asked.set()

    def settle(self) -> None:
        """It has been answered, or the cell does not wait any more."""
        self.prompt = None
        self.asked = anyio.Event()


@dataclass
class Execution:
    """A cell on its way; the reader task fills it in.

    Attributes:
        input: None if nobody is there to answer `input()`.
        reply: the shell reply once it is here.
        begun: set when the kernel has said that it runs this cell.
        over: set when the reply and idle are in, or the kernel is gone.
        gone: the kernel ended before the cell was over.
        received: messages that it has put out so far, of any type.
        held: says for how many seconds what it puts out was not read, because others were served.
        missing: messages that the kernel did not keep while no server was there to read them.
    """

    msg_id: str
    outputs: Outputs = field(default_factory=Outputs)
    input: Input | None = None
    reply: Reply | None = None
    begun: anyio.Event = field(default_factory=anyio.Event)
    idle: anyio.Event = field(default_factory=anyio.Event)
    replied: anyio.Event = field(default_factory=anyio.Event)
    over: anyio.Event = field(default_factory=anyio.Event)
    gone: bool = False
    received: int = 0
    missing: int = 0
    held: Callable[[], float] = field(default=lambda: 0.0, repr=False)

    def restart(self) -> None:
        """All that it has put out comes once more."""
        self.outputs = Outputs()
        self.idle = anyio.Event()

    def take_reply(self, content: dict[str, Any], metadata: dict[str, Any]) -> None:
        """Takes in an `execute_reply`, once."""
        if self.reply is not None:
            return
        self.reply = _reply_of(content, metadata)
        pages = _pages(content)
        for page in pages[:MAX_OUTPUTS]:
            self.outputs.fold("display_data", page)
        self.outputs.dropped += len(pages[MAX_OUTPUTS:])
        self.replied.set()

    async def wait_over(self) -> None:
        """Waits until the reply and idle are in; for idle no longer than output goes on to come."""
        await self.replied.wait()
        end, received = self._read_seconds() + MAX_GRACE_SECONDS, -1
        while not self.idle.is_set() and received != self.received and self._read_seconds() < end:
            received = self.received
            await self._wait_idle(min(end, self._read_seconds() + IDLE_GRACE_SECONDS))
        self.over.set()

    async def _wait_idle(self, end: float) -> None:
        while not self.idle.is_set() and (left := end - self._read_seconds()) > 0:
            with anyio.move_on_after(max(left, SHORTEST_SECONDS)):
                await self.idle.wait()

    def _read_seconds(self) -> float:
        """A clock that stands still while what the kernel puts out waits for others to be served."""
        return time.monotonic() - self.held()

    def end(self) -> None:
        """The kernel is gone."""
        self.gone = True
        for event in (self.begun, self.idle, self.replied, self.over):
            event.set()


def _pages(content: dict[str, Any]) -> list[dict[str, Any]]:
    """What the code showed in a pager (`len?`): payloads of the reply instead of outputs."""
    payload = content.get("payload")
    items = payload if isinstance(payload, list) else []
    return [item for item in items if isinstance(item, dict) and item.get("source") == "page"]


def _reply_of(content: dict[str, Any], metadata: dict[str, Any]) -> Reply:
    status: ReplyStatus = "ok"
    if content.get("status") in ("error", "aborted"):
        status = content["status"]
    payload = content.get("payload")
    exiting = isinstance(payload, list) and any(
        isinstance(item, dict) and item.get("source") == "ask_exit" and not item.get("keepkernel") for item in payload
    )
    error = error_of(content) if status == "error" else None
    return Reply(status, count_of(content) or 0, exiting, error, changes_of(metadata))
