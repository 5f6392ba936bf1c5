"""The main loop: one thread, one selector, forked children and their deadlines."""

from __future__ import annotations

import os
import selectors
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
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
        self._running = True

    def stop(self) -> None:
        """Makes `run` return."""
        self._running = False

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
            earliest = min((deadline for deadline in deadlines if deadline is not None), default=None)
            timeout = None if earliest is None else max(0.0, earliest - time.monotonic())
            for key, mask in self.selector.select(timeout):
                try:
                    key.data(mask)
                except Exception:  # what comes from sessions must not end the process that all of them hang on
                    traceback.print_exc()
            self._kill_overdue()
            on_deadline()

    def start(self, child: Child) -> None:
        """Follows a forked child."""
        self._children[child.pid] = child
        if child.pipe >= 0:
            self.selector.register(child.pipe, selectors.EVENT_READ, lambda _mask: self._read(child))

    def silence(self, child: Child) -> None:
        """Reads no more of what it reports."""
        if child.pipe >= 0:
            self._close(child)

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
            pid, pipe = children.fork(work, keep)
        except OSError as error:  # no process, or no memory, is to be had
            reply({"error": {"code": "failed", "message": f"no helper could be started: {error}"}})
            return
        answers: list[dict[str, Any]] = []

        def on_exit(status: int) -> None:
            how = children.describe_exit(status)
            lost = {"error": {"code": "failed", "message": f"the helper ended before it was done ({how})"}}
            reply(answers[0] if answers else lost)

        deadline = time.monotonic() + children.HELPER_SECONDS
        self.start(Child(pid, pipe, answers.append, on_exit, deadline, helps=True))

    def _kill_overdue(self) -> None:
        now = time.monotonic()
        for child in self._children.values():
            if child.deadline is not None and child.deadline <= now:
                child.deadline = None
                os.kill(child.pid, signal.SIGKILL)

    def _read(self, child: Child) -> None:
        # The child may have been reaped since this descriptor was found to be readable.
        if child.pipe >= 0 and not child.read():
            self.silence(child)

    def _close(self, child: Child) -> None:
        self.selector.unregister(child.pipe)
        os.close(child.pipe)
        child.pipe = -1

    def _reap(self, wakeup: int) -> None:
        with suppress(BlockingIOError):
            os.read(wakeup, 4096)
        with suppress(ChildProcessError):
            for _ in range(MAX_REAPED):
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                if child := self._children.pop(pid, None):  # else an orphan of a session's
                    self._end(child, status)
            signal.raise_signal(signal.SIGCHLD)  # there may be more

    def _end(self, child: Child, status: int) -> None:
        while child.pipe >= 0 and _readable(child.pipe):  # what it reported before it ended
            self._read(child)
        if child.pipe >= 0:  # a grandchild holds the other end
            self._close(child)
        child.on_exit(status)


def _nothing(_signum: int, _frame: FrameType | None) -> None:
    """A handler is needed for the wake-up descriptor to be written to."""


def _readable(descriptor: int) -> bool:
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        return bool(selector.select(timeout=0))
