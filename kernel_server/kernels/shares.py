"""How kernels share the event loop: one that sends more than is read in passing rests, and the longer the more do so.

All that rest share what one alone would have: a third of the time, whatever their number. Kernels get equal parts of it,
however many channels they use. Those that send little are read at once.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

WORK_SECONDS = 0.001  # on one channel at a stretch; then others get RESTS times as long
RESTS = 2
MAX_REST_SECONDS = 0.5  # for one alone; half of IDLE_GRACE_SECONDS

Clock = Callable[[], float]


class Shares:
    """Knows which kernels are flooding; one for an event loop.

    A kernel counts while a channel of its rests, which is most of the time of one that floods.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self.clock = clock
        self.resting: Counter[object] = Counter()


class Share:
    """What one channel has of the event loop's time.

    Attributes:
        kernel: whose channel it is; by itself, unless it is told.
    """

    def __init__(self, shares: Shares) -> None:
        self.kernel: object = self
        self._shares = shares
        self._held = 0.0
        self._waits: list[float] = []  # when each that is not over began

    @property
    def held(self) -> float:
        """Seconds in which the channel was not read because of other kernels, or of other channels of its own."""
        now = self._shares.clock()
        return self._held + sum(now - begun for begun in self._waits)

    def begin_rest(self, worked: float) -> float:
        """Begins a rest after so many seconds of work; returns how many it takes."""
        resting = self._shares.resting
        others = len(resting) - (self.kernel in resting)
        resting[self.kernel] += 1
        alone = min(RESTS * worked, MAX_REST_SECONDS)
        seconds = alone * (1 + others) * resting[self.kernel]
        self._held += seconds - alone
        return seconds

    def end_rest(self) -> None:
        """Ends it, also before its time."""
        resting = self._shares.resting
        resting[self.kernel] -= 1
        if not resting[self.kernel]:
            del resting[self.kernel]

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The channel is not read in the block, which may wait for others."""
        begun = self._shares.clock()
        self._waits.append(begun)
        try:
            yield
        finally:
            self._waits.remove(begun)
            self._held += self._shares.clock() - begun


class Pace:
    """How long one reader has worked without giving others as much time as they are due."""

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self.worked = 0.0
        self._clock = clock
        self._begun = self._last = 0.0

    def begin(self) -> None:
        """Work begins; what has passed since the last was others'."""
        self._begun = self._clock()
        self.worked = max(0.0, self.worked - (self._begun - self._last) / RESTS)

    def end(self) -> None:
        """Work ends."""
        self._last = self._clock()
        self.worked += self._last - self._begun
