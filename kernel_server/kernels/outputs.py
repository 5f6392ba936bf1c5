"""What a cell put out, folded from IOPub messages: pure functions over messages, no socket.

Kernels are hostile: every field is checked for its type, and what is kept is bounded.
Source: Jupyter messaging 5.4, https://jupyter-client.readthedocs.io/en/stable/messaging.html
"""

from __future__ import annotations

from collections import deque
from collections.abc import MutableSequence
from dataclasses import dataclass, field
from itertools import islice
from sys import getsizeof
from typing import Any, Literal

from kernel_server.kernels.previews import PREVIEW_KEY, Preview, preview_of

# Kept of one cell; the head and the tail survive. Large enough for a notebook, small enough for 32 sessions.
MAX_TEXT_BYTES = 4 << 20
MAX_TAIL_BYTES = 1 << 20
MAX_OLDER_TAIL_BYTES = 2_000  # of a text that others have followed
MAX_RICH_BYTES = 32 << 20
OWN_FRAME = "/kernel_host/kernel.py"  # of the handler that raises KeyboardInterrupt
MAX_OUTPUTS = 2_000
MAX_ERRORS = 20
MAX_ERROR_BYTES = 200_000  # of its value, and of its traceback
MAX_TYPES = 100  # of one bundle; real ones have a handful
# Characters of its name: RFC 6838, section 4.2. All who match expressions with it are spared longer ones.
MAX_TYPE = 255
MAX_DEPTH = 100  # of JSON that is displayed; every reader of a notebook is recursive
OUTPUT_TYPES = ("stream", "display_data", "execute_result", "update_display_data", "error")
PIECE_BYTES = 4 << 10  # pieces of text are joined up to here, so that a flood of small ones takes linear time


class Stream:
    """Printed text; carriage returns and ANSI codes as they came.

    Attributes:
        name: stdout or stderr.
        dropped: characters that are missing between head and tail.
    """

    def __init__(self, name: Literal["stdout", "stderr"], head: str = "", tail: str = "", dropped: int = 0) -> None:
        self.name = name
        self.dropped = dropped
        self._head = [head]
        self._head_size = len(head)
        self._tail = deque([tail] if tail else ())
        self._tail_size = len(tail)

    @property
    def head(self) -> str:
        """What came first."""
        return "".join(self._head)

    @property
    def tail(self) -> str:
        """What came last, if there was more than fits into the head."""
        return "".join(self._tail)

    @property
    def kept(self) -> int:
        """Characters that were kept."""
        return self._head_size + self._tail_size

    @property
    def text(self) -> str:
        """Everything that was kept, with a note where something is missing."""
        if not self.dropped:
            return self.head + self.tail
        return f"{self.head}\n… {self.dropped} characters left out …\n{self.tail}"

    def write(self, text: str, room: int) -> int:
        """Appends `text`; keeps about `room` more characters, the rest only as a tail. Returns how many were kept."""
        taken = text[: max(0, room)] if not self.dropped and not self._tail else ""
        if taken:
            _append(self._head, taken)
            self._head_size += len(taken)
        if text := text[len(taken) :]:
            self.dropped += max(0, len(text) - MAX_TAIL_BYTES)
            text = text[-MAX_TAIL_BYTES:]
            _append(self._tail, text)
            self._tail_size += len(text)
            while self._tail_size - len(self._tail[0]) >= MAX_TAIL_BYTES:
                self._drop(self._tail.popleft())
        return len(taken)

    def skip(self, count: int) -> None:
        """Something is missing here: what follows is the tail."""
        while self._tail:
            self._drop(self._tail.popleft())
        self.dropped += count

    def shorten_tail(self) -> None:
        """Other outputs follow: what is last is elsewhere now."""
        if self._tail_size > MAX_OLDER_TAIL_BYTES:
            tail = self.tail
            self._drop(tail[:-MAX_OLDER_TAIL_BYTES])
            self._tail = deque([tail[-MAX_OLDER_TAIL_BYTES:]])

    def _drop(self, text: str) -> None:
        self._tail_size -= len(text)
        self.dropped += len(text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and (self.name, self.head, self.tail, self.dropped) == (
            other.name,
            other.head,
            other.tail,
            other.dropped,
        )

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return f"Stream({self.name!r}, {self.head!r}, {self.tail!r}, {self.dropped})"


def _append(pieces: MutableSequence[str], text: str) -> None:
    if pieces and len(pieces[-1]) < PIECE_BYTES:
        pieces[-1] += text
    else:
        pieces.append(text)


@dataclass
class Display:
    """A MIME bundle that was displayed, or the cell's value (`execution_count` is set then).

    Attributes:
        preview: of its picture; for the result alone, a notebook has the original.
        size: what it takes in memory, roughly.
    """

    data: dict[str, Any]
    metadata: dict[str, Any]
    execution_count: int | None = None
    display_id: str = ""
    preview: Preview | None = None
    size: int = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Measured once: an update of many displays would measure each of them."""
        self.size = _size(self.data, self.metadata) + (len(self.preview.data) if self.preview else 0)

    def reduce(self) -> None:
        """The preview takes the place of the picture."""
        if self.preview and self.preview.data:
            self.data = {key: value for key, value in self.data.items() if not key.startswith("image/")}
            self.data[self.preview.mime_type] = self.preview.data
            self.__post_init__()


@dataclass
class Error:
    """An exception that ended the cell."""

    ename: str
    evalue: str
    traceback: list[str]


Output = Stream | Display | Error


@dataclass
class Outputs:
    """The outputs of one cell in the order in which they came.

    Attributes:
        items: what is kept.
        dropped: outputs that were thrown away because there were too many or they were too large.
    """

    items: list[Output] = field(default_factory=list)
    dropped: int = 0
    _text_kept: int = 0
    _rich_kept: int = 0
    _newest_text: Stream | None = None
    _clear_pending: bool = False

    def fold(
        self, msg_type: str, content: dict[str, Any], *, refused: bool = False, output: Display | Error | None = None
    ) -> None:
        """Takes in one IOPub message; types that are no output are passed over.

        Args:
            refused: its content was too much to be read; an output is counted as dropped.
            output: what `output_of` has made of it already.
        """
        if refused:
            self.dropped += msg_type in OUTPUT_TYPES
            return
        match output or output_of(msg_type, content):
            case Display() as display if msg_type == "update_display_data":
                self._update_display(display)
            case Display() as display:
                self._add_display(display)
            case Error() as error:
                self._clear_if_pending()
                self.add_error(error)
            case None if msg_type == "stream":
                self._add_stream(content)
            case None if msg_type == "clear_output":
                self._clear_pending = bool(content.get("wait"))
                if not self._clear_pending:
                    self._clear()

    def take(self) -> Outputs:
        """What there is so far; this one is empty afterwards."""
        taken = Outputs(self.items, self.dropped)
        self.items, self.dropped = [], 0
        self._text_kept = self._rich_kept = 0
        self._newest_text, self._clear_pending = None, False
        return taken

    @property
    def error(self) -> Error | None:
        """The exception that ended the cell, if one did."""
        return next((item for item in reversed(self.items) if isinstance(item, Error)), None)

    @property
    def ended_with_error(self) -> bool:
        """Whether an exception is the last thing that was put out."""
        return bool(self.items) and isinstance(self.items[-1], Error)

    def add_error(self, error: Error) -> None:
        """Appends an error, which is kept whatever came before: it says how the cell ended."""
        errors = [index for index, item in enumerate(self.items) if isinstance(item, Error)]
        if len(errors) >= MAX_ERRORS:
            del self.items[errors[-1]]
            self.dropped += 1
        self.items.append(error)

    def _clear_if_pending(self) -> None:
        if self._clear_pending:
            self._clear_pending = False
            self._clear()

    def _clear(self) -> None:
        self.items.clear()
        self._text_kept = self._rich_kept = 0

    def _add_stream(self, content: dict[str, Any]) -> None:
        self._clear_if_pending()
        name: Literal["stdout", "stderr"] = "stderr" if content.get("name") == "stderr" else "stdout"
        last = self.items[-1] if self.items else None
        if not isinstance(last, Stream) or last.name != name:
            if self._full():
                return
            if isinstance(self._newest_text, Stream):
                self._newest_text.shorten_tail()
            last = self._newest_text = Stream(name)
            self.items.append(last)
        if missing := _count(content.get("dropped")):  # see container/kernel_host/streams.py
            last.skip(missing)
        self._text_kept += last.write(str(content.get("text", "")), MAX_TEXT_BYTES - self._text_kept)

    def _add_display(self, display: Display) -> None:
        self._clear_if_pending()
        if not self._full() and self._keep(display, MAX_RICH_BYTES - self._rich_kept):
            self.items.append(display)

    def _update_display(self, new: Display) -> None:
        for item in self.items:
            if isinstance(item, Display) and new.display_id and item.display_id == new.display_id:
                if not self._keep(new, MAX_RICH_BYTES - self._rich_kept + item.size):
                    return
                self._rich_kept -= item.size
                item.data, item.metadata, item.preview, item.size = new.data, new.metadata, new.preview, new.size

    def _keep(self, display: Display, room: int) -> bool:
        """Counts it, if need be with its preview instead of its picture; False if it is too large even so."""
        if display.size > room:
            display.reduce()
        if display.size > room:
            self.dropped += 1
            return False
        self._rich_kept += display.size
        return True

    def _full(self) -> bool:
        if len(self.items) < MAX_OUTPUTS:
            return False
        self.dropped += 1
        return True


def output_of(msg_type: str, content: dict[str, Any]) -> Display | Error | None:
    """The output in a message; None for one of another type, and for printed text, which goes to what is there."""
    if msg_type == "error":
        return error_of(content)
    if msg_type not in ("display_data", "execute_result", "update_display_data"):
        return None
    return _display(content, count_of(content) if msg_type == "execute_result" else None)


def _display(content: dict[str, Any], execution_count: int | None) -> Display:
    data, metadata = content.get("data"), content.get("metadata")
    first = islice(data.items(), MAX_TYPES) if isinstance(data, dict) else ()
    data = {str(key): value for key, value in first if len(str(key)) <= MAX_TYPE and not _is_deep(value)}
    metadata = dict(metadata) if isinstance(metadata, dict) and not _is_deep(metadata) else {}
    preview = preview_of(metadata.pop(PREVIEW_KEY, None))
    return Display(data, metadata, execution_count, _display_id(content), preview)


def _is_deep(value: Any) -> bool:
    """Whether JSON is nested deeper than MAX_DEPTH."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = _inner(level)
        if not level:
            return False
    return True


def _size(*parts: dict[str, Any]) -> int:
    """As kept in memory: `[]` is a hundred times as much as it is in a message."""
    size, level = 0, list[Any](parts)
    while level:
        size += sum(map(getsizeof, level))
        level = [*_inner(level), *(key for item in level if isinstance(item, dict) for key in item)]
    return size


def _inner(level: list[Any]) -> list[Any]:
    """What is in the objects and arrays of `level`."""
    inner = (item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list))
    return [item for items in inner for item in items]


def count_of(content: dict[str, Any]) -> int | None:
    """The `execution_count` of a message, None if it is none that a notebook can hold."""
    return _count(content.get("execution_count"))


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < 1 << 53 else None


def _display_id(content: dict[str, Any]) -> str:
    transient = content.get("transient")
    return str(transient.get("display_id") or "") if isinstance(transient, dict) else ""


def error_of(content: dict[str, Any]) -> Error:
    """The error in an `error` message or in an `execute_reply` with status error."""
    traceback = content.get("traceback")
    lines = [str(line) for line in traceback] if isinstance(traceback, list) else []
    lines = [line for line in lines if OWN_FRAME not in line.partition("\n")[0]]
    return Error(str(content.get("ename", "Error"))[:1000], _cut(str(content.get("evalue", ""))), _cut_lines(lines))


def _cut(text: str) -> str:
    if len(text) <= MAX_ERROR_BYTES:
        return text
    half = MAX_ERROR_BYTES // 2
    return f"{text[:half]}\n… {len(text) - 2 * half} characters left out …\n{text[-half:]}"


def _cut_lines(lines: list[str]) -> list[str]:
    """The frames of a traceback, joined into one where they are too much."""
    if sum(map(len, lines)) + len(lines) <= MAX_ERROR_BYTES:
        return lines
    return [_cut("\n".join(lines))]
