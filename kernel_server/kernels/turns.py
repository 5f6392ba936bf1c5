"""Large pieces of work, one at a time for all sessions, in a thread.

Python's parsers and regular expressions keep the interpreter, so that a thread helps others little, and several threads
nobody: each call that waits for something would get in line with all of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar
from weakref import WeakKeyDictionary

import anyio
import anyio.lowlevel
import anyio.to_thread

from kernel_server.kernels.shares import MAX_REST_SECONDS

LARGE_BYTES = 192 << 10  # what takes less than 0.05 s, whatever it is; printed text comes in pieces of 128 KB

T = TypeVar("T")


@dataclass(eq=False)
class _Place:
    who: object
    turn: anyio.Event = field(default_factory=anyio.Event)


class Turns:
    """Who is next: the one whose last turn is longest ago. After each, all pause for as long as it took: small work gets its time."""

    def __init__(self) -> None:
        self._taken = False
        self._waiting: list[_Place] = []
        self._last: WeakKeyDictionary[object, float] = WeakKeyDictionary()

    async def run(self, who: object, work: Callable[[], T]) -> T:
        """Does `work` in a thread when it is the turn of `who`, a session or its kernel; raises what it raises.

        To be cancelled takes as long as the work, if that has begun.
        """
        await self._take(who)
        begun = time.monotonic()
        try:
            return await anyio.to_thread.run_sync(work, limiter=anyio.CapacityLimiter(1))
        finally:
            self._last[who] = time.monotonic()
            pause = min(self._last[who] - begun, MAX_REST_SECONDS)
            asyncio.get_running_loop().call_later(pause, self._next)

    async def _take(self, who: object) -> None:
        if not self._taken:
            self._taken = True
            return
        place = _Place(who)
        self._waiting.append(place)
        try:
            await place.turn.wait()
        except BaseException:
            if place.turn.is_set():
                self._next()
            else:
                self._waiting.remove(place)
            raise

    def _next(self) -> None:
        self._taken = bool(self._waiting)
        if self._taken:
            place = min(self._waiting, key=lambda place: self._last.get(place.who, 0.0))
            self._waiting.remove(place)
            place.turn.set()


_turns: anyio.lowlevel.RunVar[Turns] = anyio.lowlevel.RunVar("turns")


def turns() -> Turns:
    """Those of the running event loop: the interpreter is one for all that it serves."""
    try:
        return _turns.get()
    except LookupError:
        made = Turns()
        _turns.set(made)
        return made
