"""The lines of a journal: what each holds, as data. No file is touched here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from kernel_server.kernels.outputs import Display, Error, Output, Outputs, Stream

RECORD_KEYS = {"source", "execution_count", "status", "generation", "begun", "ended", "notes", "outputs"}
BEGINS = "begins"  # in place of all else but `source`: the msg_id of a cell that is about to be sent
CONTINUES = (
    "continues"  # first line of a branch's journal: its parent; `bytes` of that journal come before the next line
)
BEGINS_PREFIX = b'{"begins": "'
CONTINUES_PREFIX = b'{"continues": "'
MAX_MSG_ID = 200  # characters; that of a resumed cell is what its kernel says
MAX_NOTES, MAX_NOTE = 20, 4_000  # of a cell, and characters of one: a session has its part in some


@dataclass(frozen=True)
class JournaledCell:
    """A finished cell.

    Attributes:
        source: what a person reads as the cell.
        status: as in the result: ok, error, interrupted, timeout, died.
        begun, ended: wall time, UTC.
        notes: what was said beside the outputs.
        msg_id: of its `execute_request`.
        remark: it is no cell, but what happened between two, as Markdown in `source`.
    """

    source: str
    outputs: Outputs
    execution_count: int
    status: str
    generation: int
    begun: datetime
    ended: datetime
    notes: list[str] = field(default_factory=list)
    msg_id: str = ""
    remark: bool = False

    def all_notes(self, omitted: str) -> list[str]:
        """The notes as they are recorded, and what was left out."""
        notes = [note if len(note) <= MAX_NOTE else f"{note[:MAX_NOTE]}…" for note in self.notes[:MAX_NOTES]]
        return [*notes, omitted] if omitted else notes

    @property
    def head(self) -> dict[str, Any]:
        """The record without outputs and notes."""
        return {
            "source": self.source,
            "execution_count": self.execution_count,
            "status": self.status,
            "generation": self.generation,
            "begun": self.begun.isoformat(),
            "ended": self.ended.isoformat(),
            "msg_id": self.msg_id[:MAX_MSG_ID],
            **({"remark": True} if self.remark else {}),
        }


@dataclass(frozen=True)
class LastLines:
    """What the last lines of a journal say; "" for nothing.

    Attributes:
        finished: msg_id of the last cell that came to its end.
        begun: msg_id of the cell that was sent after it.
        source: of that cell.
    """

    finished: str = ""
    begun: str = ""
    source: str = ""


def last_of(lines: list[bytes]) -> LastLines:
    """What the last lines of a journal say."""
    records = [object_of(line) for line in lines]
    nothing: dict[str, Any] = {}
    finished = next((record for record in reversed(records) if record.keys() >= RECORD_KEYS), nothing)
    begun = records[-1] if records and BEGINS in records[-1] else {}
    return LastLines(str(finished.get("msg_id", "")), str(begun.get(BEGINS, "")), str(begun.get("source", "")))


def object_of(line: bytes) -> dict[str, Any]:
    """A line's JSON object; a torn one is empty."""
    try:
        record = json.loads(line)  # takes lone surrogates in UTF-8, too
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def encoded(pieces: Iterator[str]) -> Iterator[bytes]:
    """As UTF-8; a lone surrogate takes the three bytes that its code point would."""
    for piece in pieces:
        yield piece.encode("utf-8", "surrogatepass")


def notebook_output(output: Output) -> dict[str, Any]:
    """An output as nbformat 4 has it.

    Source: https://nbformat.readthedocs.io/en/latest/format_description.html
    """
    match output:
        case Stream():
            return {"output_type": "stream", "name": output.name, "text": output.text}
        case Error():
            return {
                "output_type": "error",
                "ename": output.ename,
                "evalue": output.evalue,
                "traceback": output.traceback,
            }
        case Display(execution_count=None):
            return {"output_type": "display_data", "data": output.data, "metadata": output.metadata}
        case Display():
            return {
                "output_type": "execute_result",
                "data": output.data,
                "metadata": output.metadata,
                "execution_count": output.execution_count,
            }


def least_bytes(output: dict[str, Any]) -> int:
    """So many bytes its longest texts take at least: an output that cannot fit need not be encoded to see it."""
    data = output.get("data", {})
    texts = [output.get("text", ""), *output.get("traceback", ()), *(data.values() if isinstance(data, dict) else ())]
    return sum(len(text) for text in texts if isinstance(text, str))
