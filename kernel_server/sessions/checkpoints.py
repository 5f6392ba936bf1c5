"""The checkpoints of a session, and of what it was branched: plain data."""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any

from kernel_server.errors import CheckpointError
from kernel_server.records import read
from kernel_server.text import counted, one_line

LABEL_CHARACTERS = 80
_CELL = re.compile(r"(?:In ?)?\[?([0-9]{1,9})\]?", re.IGNORECASE)


@dataclass(frozen=True)
class Checkpoint:
    """A session as it was.

    Attributes:
        name: what it is called in tools; that of an automatic one is made of the number of the cell that came next.
        key: what the kernel host calls it; never used again.
        label: what the model has called it, or "".
        execution_count: number of the last cell before it.
        journaled: bytes of the journal until then.
        begun: wall time, UTC, in ISO 8601.
        automatic: made before a cell, and dropped again when there are newer ones.
    """

    name: str
    key: str
    label: str
    execution_count: int
    journaled: int
    begun: str
    automatic: bool = False

    @property
    def described(self) -> str:
        """For people and models, such as `c2 'loaded' (after In [3])`."""
        label = f" {self.label!r}" if self.label else ""
        place = f"after In [{self.execution_count}]" if self.execution_count else "before the first cell"
        return f"{self.name}{label} ({place})"


@dataclass(frozen=True)
class Origin:
    """Of what a session was branched.

    Attributes:
        execution_count: number of the last cell before that.
    """

    session_id: str
    execution_count: int


@dataclass
class Checkpoints:
    """Those that a session has, the oldest first.

    Attributes:
        keep, keep_automatic: how many of each kind there may be.
    """

    keep: int
    keep_automatic: int
    _kept: dict[str, Checkpoint] = field(default_factory=dict)
    _last: int = 0

    def __iter__(self) -> Iterator[Checkpoint]:
        return iter(list(self._kept.values()))

    def new(self, label: str, execution_count: int, journaled: int, *, automatic: bool = False) -> Checkpoint:
        """One that is to be made; see `add`."""
        name = automatic_name(execution_count + 1) if automatic else f"c{self._last + 1}"
        begun = datetime.now(timezone.utc).isoformat(timespec="seconds")
        shown = one_line(label, LABEL_CHARACTERS)
        return Checkpoint(name, secrets.token_hex(8), shown, execution_count, journaled, begun, automatic)

    def add(self, checkpoint: Checkpoint, *, ahead: bool = False) -> list[Checkpoint]:
        """It has been made; returns those for which there is no room any more.

        Args:
            ahead: before a cell that may come later; until then it takes no other's place.
        """
        replaced = self._kept.pop(checkpoint.name, None)  # of the same cell, before a rollback
        self._kept[checkpoint.name] = checkpoint
        if not checkpoint.automatic:
            self._last += 1
        excess = self.excess(automatic=checkpoint.automatic, more=int(ahead))
        return [*excess, replaced] if replaced else excess

    def excess(self, *, automatic: bool, more: int = 0) -> list[Checkpoint]:
        """Takes those out for which there is no room; `more` is how many more than otherwise may stay."""
        kind = [one for one in self if one.automatic == automatic]
        room = (self.keep_automatic if automatic else self.keep) + more
        excess = kind[: max(0, len(kind) - room)]
        for old in excess:
            del self._kept[old.name]
        return excess

    def remove(self, name: str) -> None:
        """It is gone."""
        self._kept.pop(name, None)

    def keep_only(self, keys: Collection[str]) -> None:
        """All others are gone."""
        self._kept = {name: one for name, one in self._kept.items() if one.key in keys}

    def find(self, wanted: str) -> Checkpoint:
        """The one of that name or label, or that was made before the cell of that number; "" is the newest.

        Raises:
            CheckpointError: there is none.
        """
        if not self._kept:
            raise CheckpointError("This session has no checkpoints; call checkpoint to make one.")
        if not wanted:
            return list(self)[-1]
        if wanted in self._kept:
            return self._kept[wanted]
        if labelled := [one for one in self if one.label == wanted]:
            return labelled[-1]
        if (cell := _CELL.fullmatch(wanted.strip())) and (found := self._kept.get(automatic_name(int(cell[1])))):
            return found
        listed = ", ".join(one.described for one in self)
        raise CheckpointError(f"This session has no checkpoint {one_line(wanted, 60)!r}. It has {listed}.")

    def restore(self, records: list[dict[str, Any]]) -> list[str]:
        """Takes up what `records` gave to an earlier server; returns why it has not taken up the others."""
        unread = []
        for record in records:
            try:
                checkpoint = read(Checkpoint, record)
                number = 0 if checkpoint.automatic else int(checkpoint.name.removeprefix("c"))
            except ValueError as error:
                unread.append(str(error))
                continue
            self._kept[checkpoint.name] = checkpoint
            self._last = max(self._last, number)
        return unread

    @property
    def records(self) -> list[dict[str, Any]]:
        """For a later server."""
        return [asdict(one) for one in self]

    @property
    def advice(self) -> str:
        """What to tell of them when the kernel is gone; "" if there are none."""
        if not self._kept:
            return ""
        newest = list(self)[-1]
        others = f", the newest of {counted(len(self._kept), 'checkpoint')}" if len(self._kept) > 1 else ""
        return f"rollback(session_id, {newest.name!r}) brings back what there was at {newest.described}{others}."


def automatic_name(execution_count: int) -> str:
    """Of the checkpoint before a cell."""
    return f"in{execution_count}"
