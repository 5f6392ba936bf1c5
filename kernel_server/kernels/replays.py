"""What a kernel says of the last cell that it was given: how a server goes on with a kernel of one that is gone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class LastCell:
    """The last cell of a kernel, which may still be running.

    Attributes:
        about: what the server that sent it said of it; the kernel may have changed it.
        interactive: it may ask a person something.
        asks: what it asks now, as the content of an `input_request`.
        reply, reply_metadata: of its `execute_reply`; None while it is running.
        missing: messages of its that the kernel has not kept.
    """

    msg_id: str
    code: str
    about: dict[str, Any] = field(default_factory=dict)
    interactive: bool = False
    asks: dict[str, Any] | None = None
    reply: dict[str, Any] | None = None
    reply_metadata: dict[str, Any] = field(default_factory=dict)
    missing: int = 0

    def number(self, name: str, lowest: float, highest: float) -> float | None:
        """A number of `about`, if it is there and between the two."""
        value = self.about.get(name)
        return value if isinstance(value, int | float) and lowest <= value <= highest else None


def last_cell_of(content: dict[str, Any]) -> LastCell | None:
    """Reads the content of a `replay_reply`; None if nothing has run, or it is not one."""
    cell = content.get("cell")
    if not isinstance(cell, dict) or not isinstance(cell.get("msg_id"), str) or not isinstance(cell.get("code"), str):
        return None
    missing = content.get("missing")
    return LastCell(
        cell["msg_id"],
        cell["code"],
        _dict(_dict(cell.get("metadata")).get("kernel_server")),
        cell.get("allow_stdin") is True,
        _dict(content.get("asks")) or None,
        _dict(content.get("reply")) or None,
        _dict(content.get("reply_metadata")),
        missing if type(missing) is int and missing > 0 else 0,
    )


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
