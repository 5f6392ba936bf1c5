"""Processes for the OOM killer to take before it takes the kernel host, on which every session hangs, or a kernel that
has done nothing.

While a process with several threads gives back what it had, Linux may no longer see it among those that could be killed
(css_task_iter(), of those that are dying), and takes another one for each page that somebody needs meanwhile.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress

from . import identity
from .children import Child
from .loop import Loop

COMMAND = ("sleep", "infinity")
COUNT = 8  # each is worth some milliseconds
AGAIN_SECONDS = 1.0


class Decoys:
    """Keeps some at hand; none where there is no such program."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._count = 0
        self._due = 0.0

    def place(self) -> None:
        """Starts those that are missing, if none was taken just now."""
        if time.monotonic() < self._due:
            return
        while self._count < COUNT:
            self._due = time.monotonic() + AGAIN_SECONDS
            try:
                pid = os.posix_spawnp(COMMAND[0], COMMAND, {})
            except OSError:
                return
            self._count += 1
            with suppress(OSError):
                identity.be_decoy(pid)
            self._loop.start(Child(pid, None, lambda _report: None, self._on_exit))

    def _on_exit(self, status: int) -> None:
        if os.WIFSIGNALED(status):  # otherwise it is a `sleep` that cannot sleep for ever
            self._count -= 1
            self._due = time.monotonic() + AGAIN_SECONDS
