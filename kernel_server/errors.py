"""Every error that this package shows to its users, and nothing else.

    KernelServerError
    ├── ConfigurationError        a setting is missing or wrong
    ├── EngineError               the container engine cannot do what we need
    │   ├── EngineUnavailable     none is running, or we may not talk to it
    │   ├── ImageUnavailable      an image cannot be found, pulled or built
    │   ├── IsolationIncomplete   a layer is missing, and PY_EXEC_ISOLATION=strict
    │   └── HostLost              the container (or kernel host) is gone or does not answer
    ├── SessionError
    │   ├── SessionUnknown        this server never made that id
    │   ├── SessionClosed         close_session or reset ended it
    │   ├── SessionExpired        it was not used for longer than its TTL
    │   ├── SessionLeft           this server ends, and the next one resumes it
    │   ├── SessionNotKept        it could not be resumed from an earlier server
    │   └── JournalRemoved        what ran in it was removed
    ├── SessionLimit              no more sessions fit
    ├── KernelError               a kernel did not start or does not answer
    ├── RequestError              an argument of a tool cannot be used
    ├── CheckpointError           a session cannot be kept as it is, or brought back, or branched
    ├── PackageError              packages cannot be found, fetched or installed
    └── FileError                 a path or a transfer is refused, or failed

What does not leave the module that raises it, or its package, is defined there: `hosts.engine.NameTaken` and
`BuildFailed`, `hosts.control.ControlRefused` and `ControlFailed`, `kernels.zmtp.ProtocolError`.

A message is made from facts, and ends with what to do next: the model reads it.
"""

from __future__ import annotations

from typing import TypeVar

from typing_extensions import Self

E = TypeVar("E", bound="KernelServerError")


class KernelServerError(Exception):
    """Base of the tree; `str(error)` is fit to be shown to a model and to a person."""

    def again(self) -> Self:
        """A fresh error that says the same, for each further caller who is told.

        One that has been raised holds the calls in which it was, code and all, and more with each time.
        """
        fresh = type(self).__new__(type(self))
        fresh.args = self.args
        fresh.__dict__.update(self.__dict__)
        return fresh


class ConfigurationError(KernelServerError):
    """One or more settings are wrong.

    Attributes:
        problems: one line per bad setting, each with the form that is accepted.
    """

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("Bad configuration:\n" + "\n".join(f"  - {problem}" for problem in problems))


class EngineError(KernelServerError):
    """The container engine cannot do what is needed."""


class EngineUnavailable(EngineError):
    """No engine answers, or this user may not talk to it.

    Attributes:
        finding: what is wrong.
        remedy: what to do; "" where nobody knows.
    """

    def __init__(self, finding: str, remedy: str = "") -> None:
        self.finding = finding
        self.remedy = remedy
        super().__init__(f"{finding} {remedy}".strip())


class ImageUnavailable(EngineError):
    """An image is neither here nor can it be pulled or built."""


class IsolationIncomplete(EngineError):
    """A container has not every layer of isolation, and the settings ask for all.

    Attributes:
        missing: the layers.
    """

    def __init__(self, missing: list[str]) -> None:
        self.missing = missing
        super().__init__(
            f"No session is started: PY_EXEC_ISOLATION=strict, and this machine lacks {'; '.join(missing)}. "
            "kernel-server doctor says more; PY_EXEC_ISOLATION=standard does without."
        )


class HostLost(EngineError):
    """The container or its kernel host ended, or does not answer in time."""


class SessionError(KernelServerError):
    """A session id cannot be used."""

    def __init__(self, session_id: str, message: str) -> None:
        self.session_id = session_id
        super().__init__(message)


class SessionUnknown(SessionError):
    """No session of that id was ever made by this server."""

    def __init__(self, session_id: str, whereabouts: str = "") -> None:
        super().__init__(
            session_id,
            f"Unknown session_id {session_id[:64]!r}: {whereabouts or 'this server never made it (or was restarted since).'} "
            "Call init for a new session, and use the id it returns exactly as printed.",
        )


class SessionClosed(SessionError):
    """The session was ended by close_session or reset."""

    def __init__(self, session_id: str, how: str) -> None:
        super().__init__(
            session_id,
            f"Session {session_id} was closed by {how}; its variables and workspace are gone. "
            "Call init for a new session.",
        )


class SessionLeft(SessionError):
    """The server ends, and leaves the session to the next one."""

    def __init__(self, session_id: str, seconds: float) -> None:
        super().__init__(
            session_id,
            f"This server is ending. Session {session_id} stays for {seconds:g} s, with what runs in it: the next server "
            "with the same settings goes on with it under the same id; call wait there for the running cell.",
        )


class SessionNotKept(SessionError):
    """An earlier server had the session, and this one could not go on with it."""

    def __init__(self, session_id: str, why: str) -> None:
        super().__init__(
            session_id,
            f"Session {session_id} of the server before this one could not be taken over: {why} Its variables and "
            "workspace are gone; export_notebook still has what ran. Call init for a new session.",
        )


class SessionExpired(SessionError):
    """The session was idle for longer than its TTL."""

    def __init__(self, session_id: str, ttl_seconds: float) -> None:
        super().__init__(
            session_id,
            f"Session {session_id} expired: it was not used for {ttl_seconds:g} s (PY_EXEC_SESSION_TTL); "
            "its variables and workspace are gone. Call init for a new session.",
        )


class JournalRemoved(SessionError):
    """What ran in a session is not recorded any more."""

    def __init__(self, session_id: str, when: str, why: str) -> None:
        super().__init__(
            session_id,
            f"What ran in session {session_id} cannot be read any more: its journal was removed on {when}, since {why}. "
            "Only what was exported before is there.",
        )


class SessionLimit(KernelServerError):
    """As many sessions as allowed are open."""

    def __init__(self, maximum: int, idle: list[tuple[str, float]]) -> None:
        self.maximum = maximum
        self.idle = idle
        listing = "".join(f"\n  {session_id}  idle {seconds:.0f} s" for session_id, seconds in idle)
        super().__init__(
            f"All {maximum} sessions are in use (PY_EXEC_SESSION_MAX). Close one with close_session and try again."
            + (f" Idle ones, longest first:{listing}" if idle else " None of them is idle now.")
        )


class KernelError(KernelServerError):
    """A kernel did not start, or does not answer."""


class RequestError(KernelServerError):
    """An argument of a tool cannot be used."""


class CheckpointError(KernelServerError):
    """A session cannot be kept as it is, or brought back, or branched; unless the message says so, it is as it was before."""


class PackageError(KernelServerError):
    """Packages cannot be found, fetched or installed; those that are there still are."""


class FileError(KernelServerError):
    """A path is refused or a transfer failed; what was there before is still there."""
