"""What a check found, and how it is shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "FAIL"]
"""FAIL: the server, or a tool of it, does not work like this. warn: it does, but somebody should know."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        what: one or two words.
        finding: one line.
        mend: what to do about it; "" where nothing has to be done.
    """

    level: Level
    what: str
    finding: str
    mend: str = ""

    def __str__(self) -> str:
        line = f"{self.level:<5} {self.what:<14} {self.finding}"
        return f"{line}\n{'':<21}→ {self.mend}" if self.mend else line
