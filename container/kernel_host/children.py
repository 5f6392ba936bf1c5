"""Forked children of the kernel host: how they start, what they report, how they end."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from .beneath import Refused
from .lines import Inbox, write_line

MAX_REPORT_BYTES = 2 << 20  # of a child in all; what it reports may come from a session
HELPER_SECONDS = 900.0  # a copy of many GB


@dataclass
class Child:
    """A forked process that reports over a pipe.

    Attributes:
        pid: its process id, which is its own until `ended`.
        inbox: our end of its pipe, or None.
        on_report: called with each report.
        on_exit: called once with the wait status, after the last report.
        deadline: when to kill it (monotonic seconds); None is never.
        helps: it works for the kernel host, with whatever UID.
        ended: it has been reaped, and its number may be another's.
    """

    pid: int
    inbox: Inbox | None
    on_report: Callable[[dict[str, Any]], None]
    on_exit: Callable[[int], None]
    deadline: float | None = None
    helps: bool = False
    ended: bool = False

    def read(self) -> bool:
        """Takes in what has arrived; False where nothing more will."""
        assert self.inbox is not None
        try:
            for message in self.inbox.read():
                self.on_report(message)
        except Exception:
            self.kill()
            raise
        if self.inbox.broken:
            self.kill()
        return not self.inbox.over

    def kill(self) -> None:
        """Ends it, unless it has ended."""
        if not self.ended:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


class Report:
    """A child's end of its pipe."""

    def __init__(self, writer: int) -> None:
        self._writer = writer

    def __call__(self, message: dict[str, Any]) -> None:
        write_line(self._writer, message)

    def close(self) -> None:
        """After this the child cannot report any more."""
        os.close(self._writer)
        self._writer = -1


class Begin(BaseException):
    """Raised in a forked process: what it is to do is to be done where nothing of the kernel host is on the stack."""

    def __init__(self, run: Callable[[], None]) -> None:
        super().__init__()
        self.run = run


def fork(body: Callable[[Report], None], keep: tuple[int, ...] = (), *, begin: bool = False) -> tuple[int, Inbox]:
    """Forks a child that runs `body(report)` and exits; returns its pid and our end of its pipe.

    The child keeps only the standard streams, its pipe and `keep`: no control socket, no other session's descriptor.

    Raises:
        Begin: in the child, if it is to `begin` elsewhere.
        OSError: no process is to be had.
    """
    inbox, writer = Inbox.pipe(MAX_REPORT_BYTES)
    try:
        pid = os.fork()
    except OSError:
        inbox.close()
        os.close(writer)
        raise
    if pid:
        os.close(writer)
        return pid, inbox
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        _close_all_but({0, 1, 2, writer, *keep})
    except BaseException:
        os._exit(1)
    if begin:
        raise Begin(lambda: _run(body, writer))
    _run(body, writer)
    raise AssertionError  # it has exited


def _run(body: Callable[[Report], None], writer: int) -> None:
    status = 1
    try:
        report = Report(writer)
        try:
            body(report)
            status = 0
        except Refused as refused:
            report({"error": {"code": "refused", "message": str(refused)}})
        except BaseException as error:
            report({"error": {"code": "failed", "message": "".join(traceback.format_exception_only(error)).strip()}})
            traceback.print_exc(file=sys.__stderr__)
    finally:
        os._exit(status)


def _close_all_but(keep: set[int]) -> None:
    for descriptor in [int(name) for name in os.listdir("/proc/self/fd")]:
        if descriptor not in keep:
            try:
                os.close(descriptor)
            except OSError:
                continue  # the one that listed the folder


def describe_exit(status: int) -> dict[str, int]:
    """A wait status as `{"exit_code": n}` or `{"signal": n}`, and how often the memory limit killed something so far."""
    if os.WIFSIGNALED(status):
        return {"signal": os.WTERMSIG(status), "oom_kills": oom_kills()}
    return {"exit_code": os.WEXITSTATUS(status), "oom_kills": oom_kills()}


def oom_kills() -> int:
    """How often the memory limit killed something so far; 0 where that cannot be read.

    `oom_kill` of our cgroup: memory.events (cgroup v2) or memory.oom_control (v1).
    """
    for path in ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"):
        with suppress(OSError), open(path, encoding="ascii") as file:
            return int(dict(line.split() for line in file).get("oom_kill", 0))
    return 0
