"""What a kernel has sent since its last cell began: a server that takes the kernel over from one that was killed has it sent again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

MAX_BYTES = 16 << 20  # of messages; what a session has put out beyond that is counted only

Message = dict[str, Any]
Frames = list[Any]


@dataclass
class Cell:
    """The last cell: its request, the content and metadata of its reply, and what it asks a person for."""

    request: Message
    reply: Message | None = None
    reply_metadata: Message | None = None
    asks: Message | None = None


class Record:
    """Kept in the memory of the session's own process, until the next cell begins.

    All messages go through the thread of IOPub, so that what is sent again is in order with what is sent first.
    """

    def __init__(self, pub_thread: Any) -> None:
        self._pub_thread = pub_thread
        self._send: Callable[..., None] = pub_thread._really_send  # noqa: SLF001 - the only way to see what is sent
        self._cell: Cell | None = None
        self._frames: list[Frames] = []
        self._size = self._missing = 0
        vars(pub_thread)["_really_send"] = self._send_first

    def _send_first(self, frames: Frames, *args: Any, **kwargs: Any) -> None:
        size = sum(memoryview(frame).nbytes for frame in frames)
        if self._size + size <= MAX_BYTES:
            self._frames.append(frames)
            self._size += size
        else:
            self._missing += 1
        self._send(frames, *args, **kwargs)

    def begin(self, request: Message) -> None:
        """A cell is about to run."""
        self._cell = Cell(request)
        self._pub_thread.schedule(self._clear)

    def _clear(self) -> None:
        self._frames = []
        self._size = self._missing = 0

    def end(self, request: Message, reply: Message, metadata: Message) -> None:
        """The cell's reply is about to be sent."""
        if self._cell is not None and self._cell.request is request:
            self._cell.reply, self._cell.reply_metadata = reply, metadata

    @contextmanager
    def asking(self, prompt: str, password: bool) -> Iterator[None]:
        """A cell waits for an answer, for the length of the block."""
        cell = self._cell
        if cell is not None:
            cell.asks = {"prompt": prompt, "password": password}
        try:
            yield
        finally:
            if cell is not None:
                cell.asks = None

    def send_again(self, first: Frames, last: Frames) -> None:
        """Sends all messages since the last cell began, between `first` and `last`; those that come next follow."""

        def send() -> None:
            for frames in [first, *self._frames, last]:
                self._send(frames)

        self._pub_thread.schedule(send)

    def describe(self) -> Message:
        """The content of a `replay_reply`."""
        cell = self._cell
        if cell is None:
            return {"cell": None}
        request = cell.request
        return {
            "cell": {
                "msg_id": request["header"]["msg_id"],
                "code": request["content"]["code"],
                "allow_stdin": request["content"].get("allow_stdin", False),
                "metadata": request["metadata"],
            },
            "reply": cell.reply,
            "reply_metadata": cell.reply_metadata,
            "asks": cell.asks,
            "missing": self._missing,
        }
