"""Forked children of the kernel host: how they start, what they report, how they end."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from .beneath import Refused

MAX_REPORT_BYTES = 2 << 20  # an answer must fit into a line of the server's: `control`, MAX_LINE_BYTES
HELPER_SECONDS = 900.0  # a copy of many GB


@dataclass
class Child:
    """A forked process that reports over a pipe.

    Attributes:
        pid: its process id.
        pipe: our end; one JSON line per report, end of file when the process is gone; -1 for none.
        on_report: called with each report.
        on_exit: called once with the wait status, after the last report.
        deadline: when to kill it (monotonic seconds); None is never.
        helps: it works for the kernel host, with whatever UID.
    """

    pid: int
    pipe: int
    on_report: Callable[[dict[str, Any]], None]
    on_exit: Callable[[int], None]
    deadline: float | None = None
    helps: bool = False
    received: bytearray = field(default_factory=bytearray)

    def read(self) -> bool:
        """Takes in what has arrived; False at end of file."""
        try:
            data = os.read(self.pipe, 1 << 16)
        except BlockingIOError:
            return True
        self.received += data
        if len(self.received) > MAX_REPORT_BYTES:  # what it reports may come from a session
            os.kill(self.pid, signal.SIGKILL)
            return False
        while self.pipe >= 0 and b"\n" in self.received:
            line, _, rest = self.received.partition(b"\n")
            self.received = bytearray(rest)
            try:
                message = json.loads(line)
                if not isinstance(message, dict):
                    raise ValueError("not a report")  # noqa: TRY004 - as for what is no JSON
            except (ValueError, RecursionError):
                with suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)
                return False
            self.on_report(message)
        return bool(data)


class Report:
    """A child's end of its pipe."""

    def __init__(self, writer: int) -> None:
        self._writer = writer

    def __call__(self, message: dict[str, Any]) -> None:
        os.write(self._writer, json.dumps(message).encode() + b"\n")

    def close(self) -> None:
        """After this the child cannot report any more."""
        os.close(self._writer)
        self._writer = -1


def fork(body: Callable[[Report], None], keep: tuple[int, ...] = ()) -> tuple[int, int]:
    """Forks a child that runs `body(report)` and exits; returns its pid and our end of its pipe.

    The child keeps only the standard streams, its pipe and `keep`: no control socket, no other session's descriptor.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        pid = os.fork()
    except OSError:
        os.close(reader)
        os.close(writer)
        raise
    if pid:
        os.close(writer)
        os.set_blocking(reader, False)
        return pid, reader
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        _close_all_but({0, 1, 2, writer, *keep})
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
