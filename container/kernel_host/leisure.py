"""What the kernel host does when nobody waits for it, soon after the first kernel has begun."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

QUIET_SECONDS = 0.1  # without a request, before a step
LATEST_SECONDS = 2.0  # after the first kernel


class Leisure:
    """Work that makes the kernels that come later cheaper, in steps of some milliseconds.

    Attributes:
        next_step: when it is time for one (monotonic seconds); None is never.
    """

    def __init__(self, steps: Iterator[None]) -> None:
        self._steps = steps
        self._begun: float | None = None
        self._over = False
        self._waiting: list[Callable[[], None]] = []
        self.next_step: float | None = None

    def begin(self) -> None:
        """From now on there is time; the first kernel has been forked, or need not be soon."""
        if self._begun is None:
            self._begun = time.monotonic()
            self.postpone()

    def postpone(self) -> None:
        """A request has come: there may be another one. For ever this does not go."""
        if self._begun is not None and not self._over:
            self.next_step = min(time.monotonic() + QUIET_SECONDS, self._begun + LATEST_SECONDS)

    def step(self) -> None:
        """Does a piece of it, if it is time."""
        if self.next_step is None or self.next_step > time.monotonic():
            return
        for _ in self._steps:
            return
        self._over, self.next_step = True, None
        for waiting in self._waiting:
            waiting()

    def call_after(self, function: Callable[[], None]) -> None:
        """Calls it when all is done, which begins now at the latest; at once if it is."""
        if self._over:
            function()
        else:
            self._waiting.append(function)
            self.begin()
