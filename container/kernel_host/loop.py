"""The main loop: one thread, one selector, forked children and their deadlines."""

from __future__ import annotations

import heapq
import itertools
import os
import select
import selectors
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from . import children, identity
from .children import Child

MAX_REAPED = 100  # at a time: sessions can leave orphans as fast as they like

Reply = Callable[[dict[str, Any]], None]
"""Takes `{"result": {…}}` or `{"error": {"code": …, "message": …}}`."""


class Loop:
    """Calls back for descriptors that are ready, for children that end, and when a deadline has passed."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self._children: dict[int, Child] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._running = True

    def stop(self) -> None:
        """Makes `run` return."""
        self._running = False

    def call_later(self, seconds: float, then: Callable[[], None]) -> None:
        """Calls it once, not before so many seconds have passed."""
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._numbers), then))

    def run(self, next_deadline: Callable[[], float | None], on_deadline: Callable[[], None]) -> None:
        """Serves until `stop`, SIGTERM or SIGINT.

        Args:
            next_deadline: when `on_deadline` has to be called at the latest (monotonic seconds); None is never.
        """
        wakeup, wakeup_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wakeup_writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _nothing)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.stop())
        self.selector.register(wakeup, selectors.EVENT_READ, lambda _mask: self._reap(wakeup))
        while self._running:
            deadlines = [child.deadline for child in self._children.values()] + [next_deadline()]
            deadlines += [self._timers[0][0]] if self._timers else []
            earliest = min((deadline for deadline in deadlines if deadline is not None), default=None)
            timeout = None if earliest is None else max(0.0, earliest - time.monotonic())
            for key, mask in self.selector.select(timeout):
                with guarded():
                    key.data(mask)
            with guarded():
                self._kill_overdue()
            with guarded():
                self._call_due()
            with guarded():
                on_deadline()

    def start(self, child: Child) -> None:
        """Follows a forked child."""
        self._children[child.pid] = child
        if child.inbox is not None:
            self.selector.register(child.inbox.descriptor, selectors.EVENT_READ, lambda _mask: self._read(child))

    def silence(self, child: Child) -> None:
        """Reads no more of what it reports."""
        if child.inbox is not None and child.inbox.descriptor >= 0:
            self.selector.unregister(child.inbox.descriptor)
            child.inbox.close()

    def follows(self, pid: int) -> bool:
        """Whether that is a child which it follows already."""
        return pid in self._children

    def helpers(self) -> set[int]:
        """Process ids of those that `help` has started."""
        return {child.pid for child in self._children.values() if child.helps}

    def help(
        self,
        uid: int | None,
        body: Callable[[], dict[str, Any]],
        reply: Reply,
        keep: tuple[int, ...] = (),
        enter: Callable[[int], None] = identity.become,
    ) -> None:
        """Runs `body` in a forked helper that has become `uid` (None: it stays who we are) and replies with its result.

        Args:
            keep: descriptors that the helper needs.
            enter: how it becomes `uid`; `identity.act_for` where the session's processes must not stop it.
        """

        def work(report: children.Report) -> None:
            if uid is not None:
                enter(uid)
            report({"result": body()})

        try:
            pid, inbox = children.fork(work, keep)
        except OSError as error:  # no process, or no memory, is to be had
            reply({"error": {"code": "failed", "message": f"no helper could be started: {error}"}})
            return
        answers: list[dict[str, Any]] = []

        def on_exit(status: int) -> None:
            how = children.describe_exit(status)
            lost = {"error": {"code": "failed", "message": f"the helper ended before it was done ({how})"}}
            reply(answers[0] if answers else lost)

        deadline = time.monotonic() + children.HELPER_SECONDS
        self.start(Child(pid, inbox, answers.append, on_exit, deadline, helps=True))

    def _call_due(self) -> None:
        while self._timers and self._timers[0][0] <= time.monotonic():
            heapq.heappop(self._timers)[2]()

    def _kill_overdue(self) -> None:
        now = time.monotonic()
        for child in self._children.values():
            if child.deadline is not None and child.deadline <= now:
                child.deadline = None
                child.kill()

    def _read(self, child: Child) -> None:
        # The child may have been reaped since this descriptor was found to be readable.
        if child.inbox is not None and child.inbox.descriptor >= 0 and not child.read():
            self.silence(child)

    def _reap(self, wakeup: int) -> None:
        with suppress(BlockingIOError):
            os.read(wakeup, 4096)
        with suppress(ChildProcessError):
            for _ in range(MAX_REAPED):
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                if child := self._children.pop(pid, None):  # else an orphan of a session's
                    child.ended = True
                    self._end(child, status)
            signal.raise_signal(signal.SIGCHLD)  # there may be more

    def _end(self, child: Child, status: int) -> None:
        with guarded():
            while child.inbox is not None and _readable(child.inbox.descriptor):  # what it reported before it ended
                self._read(child)
        self.silence(child)  # a grandchild may hold the other end
        with guarded():
            child.on_exit(status)


@contextmanager
def guarded() -> Iterator[None]:
    """An error is printed, and no more: what comes from one session must not end the process that all of them hang on."""
    try:
        yield
    except Exception:
        traceback.print_exc()


def _nothing(_signum: int, _frame: FrameType | None) -> None:
    """A handler is needed for the wake-up descriptor to be written to."""


def _readable(descriptor: int) -> bool:
    if descriptor < 0:
        return False
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))
