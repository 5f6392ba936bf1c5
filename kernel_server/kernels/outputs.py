"""What a cell put out, folded from IOPub messages: pure functions over messages, no socket.

Kernels are hostile: every field is checked for its type, and what is kept is bounded.
Source: Jupyter messaging 5.4, https://jupyter-client.readthedocs.io/en/stable/messaging.html
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

# Kept of one cell; the head and the tail survive. Large enough for a notebook, small enough for 32 sessions.
MAX_TEXT_BYTES = 4 << 20
MAX_RICH_BYTES = 32 << 20
MAX_OUTPUTS = 2_000


@dataclass
class Stream:
    """Printed text; carriage returns and ANSI codes as they came."""

    name: Literal["stdout", "stderr"]
    head: str = ""
    tail: str = ""
    dropped: int = 0

    @property
    def text(self) -> str:
        """Everything that was kept, with a note where something is missing."""
        if not self.dropped:
            return self.head + self.tail
        return f"{self.head}\n… {self.dropped} characters left out …\n{self.tail}"

    def write(self, text: str, room: int) -> int:
        """Appends `text`; keeps about `room` more characters, the rest only as a tail. Returns how many were kept."""
        taken = text[: max(0, room)]
        if not self.tail and not self.dropped:
            self.head += taken
            text = text[len(taken) :]
        else:
            taken = ""
        if text:
            self.tail += text
            surplus = len(self.tail) - MAX_TEXT_BYTES // 4
            if surplus > 0:
                self.dropped += surplus
                self.tail = self.tail[surplus:]
        return len(taken)


@dataclass
class Display:
    """A MIME bundle that was displayed, or the cell's value (`execution_count` is set then)."""

    data: dict[str, Any]
    metadata: dict[str, Any]
    execution_count: int | None = None
    display_id: str = ""


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
    _clear_pending: bool = False

    def fold(self, msg_type: str, content: dict[str, Any]) -> None:
        """Takes in one IOPub message; types that are no output are passed over."""
        match msg_type:
            case "stream":
                self._add_stream(content)
            case "display_data" | "execute_result":
                self._add_display(msg_type, content)
            case "update_display_data":
                self._update_display(content)
            case "error":
                self._clear_if_pending()
                self.items.append(error_of(content))
            case "clear_output":
                self._clear_pending = bool(content.get("wait"))
                if not self._clear_pending:
                    self.items.clear()

    @property
    def error(self) -> Error | None:
        """The exception that ended the cell, if one did."""
        return next((item for item in reversed(self.items) if isinstance(item, Error)), None)

    def _clear_if_pending(self) -> None:
        if self._clear_pending:
            self._clear_pending = False
            self.items.clear()

    def _add_stream(self, content: dict[str, Any]) -> None:
        self._clear_if_pending()
        name: Literal["stdout", "stderr"] = "stderr" if content.get("name") == "stderr" else "stdout"
        last = self.items[-1] if self.items else None
        if not isinstance(last, Stream) or last.name != name:
            if self._full():
                return
            last = Stream(name)
            self.items.append(last)
        self._text_kept += last.write(str(content.get("text", "")), MAX_TEXT_BYTES - self._text_kept)

    def _add_display(self, msg_type: str, content: dict[str, Any]) -> None:
        self._clear_if_pending()
        data, metadata = _bundle(content)
        size = sum(len(str(value)) for value in data.values())
        if self._full() or self._rich_kept + size > MAX_RICH_BYTES:
            self.dropped += 1
            return
        self._rich_kept += size
        count = content.get("execution_count") if msg_type == "execute_result" else None
        self.items.append(Display(data, metadata, count if isinstance(count, int) else None, _display_id(content)))

    def _update_display(self, content: dict[str, Any]) -> None:
        display_id = _display_id(content)
        data, metadata = _bundle(content)
        for item in self.items:
            if isinstance(item, Display) and display_id and item.display_id == display_id:
                item.data, item.metadata = data, metadata

    def _full(self) -> bool:
        if len(self.items) < MAX_OUTPUTS:
            return False
        self.dropped += 1
        return True


def _bundle(content: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    data, metadata = content.get("data"), content.get("metadata")
    return (
        {str(key): value for key, value in data.items()} if isinstance(data, dict) else {},
        metadata if isinstance(metadata, dict) else {},
    )


def _display_id(content: dict[str, Any]) -> str:
    transient = content.get("transient")
    return str(transient.get("display_id") or "") if isinstance(transient, dict) else ""


def error_of(content: dict[str, Any]) -> Error:
    """The error in an `error` message or in an `execute_reply` with status error."""
    traceback = content.get("traceback")
    lines = [str(line) for line in traceback] if isinstance(traceback, list) else []
    return Error(str(content.get("ename", "Error")), str(content.get("evalue", "")), lines)
