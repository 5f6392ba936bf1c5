"""Shares the processors between sessions: one with many busy processes must not leave the others waiting.

The scheduler shares between processes. So when a session takes more than its part while others want some, too, the
processes that its kernel has started get the lowest priority: they still get all that the others leave. The kernel itself
keeps its own, since nobody here may give it back (setpriority(2)).
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from functools import partial
from typing import Any

from . import identity
from .loop import Loop
from .sessions import Session
from .usage import CLOCK_TICKS, idle_ticks, processor_ticks

LOOK_SECONDS = 0.5
ACTIVE = 0.02  # of a processor: who uses less does not count as wanting some
FAIR = 1.1  # times its part
LOWEST = 19


class Fairness:
    """Looks twice a second."""

    def __init__(self, loop: Loop, processors: float) -> None:
        self._loop = loop
        self._processors = processors or os.cpu_count() or 1
        self._ticks: dict[int, tuple[int, int]] = {}
        self._idle = 0
        self._last = 0.0

    def look(self, sessions: list[Session]) -> None:
        """Compares what the sessions have used since the last look, if it is time to."""
        now = time.monotonic()
        if now < self._last + LOOK_SECONDS:
            return
        seconds, self._last = now - self._last, now
        used, free = self._used_since(seconds), self._free_since(seconds)
        total = sum(sum(processes.values()) for processes in used.values())
        busy = [session for session in sessions if sum(used.get(session.uid or 0, {}).values()) > ACTIVE]
        part = min(self._processors, total + free) / max(1, len(busy))  # other containers have the rest
        kernels = {session.pid for session in sessions}
        for session in busy:
            processes = used[session.uid or 0]
            started = [pid for pid in processes if pid not in kernels]
            if len(busy) > 1 and started and sum(processes.values()) > FAIR * part:
                self._loop.help(None, partial(_lower, session.uid or 0, started), lambda _message: None)

    def _used_since(self, seconds: float) -> dict[int, dict[int, float]]:
        """By user and process, how many processors it has kept busy."""
        before, self._ticks = self._ticks, processor_ticks()
        used: dict[int, dict[int, float]] = {}
        for pid, (uid, ticks) in self._ticks.items():
            earlier = before[pid][1] if pid in before and before[pid][0] == uid else 0
            used.setdefault(uid, {})[pid] = max(0, ticks - earlier) / CLOCK_TICKS / seconds
        return used

    def _free_since(self, seconds: float) -> float:
        """How many processors nobody has used."""
        before, self._idle = self._idle, idle_ticks()
        return (self._idle - before) / CLOCK_TICKS / seconds


def _lower(uid: int, pids: list[int]) -> dict[str, Any]:
    identity.act_for(uid)
    for pid in pids:
        with suppress(OSError):  # it has ended, or its number is another's by now
            for thread in map(int, os.listdir(f"/proc/{pid}/task")):  # each has its own: setpriority(2), NOTES
                os.setpriority(os.PRIO_PROCESS, thread, LOWEST)
    return {}
