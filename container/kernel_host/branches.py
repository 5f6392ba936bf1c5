"""Requests about checkpoints: make one, go back to one, branch from one, drop one.

The processes are forked from the session's own, and say what they like: who they are is told by Linux.
"""

from __future__ import annotations

import os
import selectors
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from . import kernel
from .beneath import Refused
from .children import Child
from .config import Config
from .kernels import KernelRequests, drop
from .lines import Line, Received
from .loop import Loop, Reply
from .sessions import Checkpoint, Session, Sessions
from .usage import stat_of

PARENT = 1  # field of `stat_of`
RESTORE_SECONDS = 600.0  # many GB of files
MAX_TEXTS, MAX_TEXT, MAX_NUMBER = 60, 2_000, 1 << 62  # of what the processes tell
MAX_CHECKPOINTS = 64  # of a session; the server keeps fewer


class BranchRequests:
    """Answers them."""

    def __init__(self, config: Config, sessions: Sessions, loop: Loop, kernels: KernelRequests) -> None:
        self._config = config
        self._sessions = sessions
        self._loop = loop
        self._kernels = kernels
        self._making: dict[tuple[str, str], Callable[[], None]] = {}  # how those that are on their way are given up

    def checkpoint(self, request: dict[str, Any], reply: Reply) -> None:
        """Has the session's kernel fork a process that stands still."""
        session, name = self._sessions.find(request), str(request["checkpoint"])
        if session.line is None:
            raise Refused("the session has no kernel")
        if not name.isalnum() or name in session.checkpoints or (session.session_id, name) in self._making:
            raise Refused(f"there is a checkpoint {name} already")
        if len(session.checkpoints) >= MAX_CHECKPOINTS:
            raise Refused(f"a session can have {MAX_CHECKPOINTS} checkpoints")
        ours, theirs = Line.pair()
        ours.socket.setblocking(False)
        try:
            session.line.send({"checkpoint": name, "limit": self._config.workspace_bytes}, [theirs.fileno()])
        except OSError as error:
            ours.close()
            raise Refused("the session's kernel takes no requests: its code holds it up") from error
        finally:
            theirs.close()
        self._await(session, name, ours, reply)

    def _await(self, session: Session, name: str, ours: Line, reply: Reply) -> None:
        """The kernel says that it has forked, and the fork that it is ready."""
        key = session.session_id, name
        told: dict[str, Received] = {}

        def give_up(message: dict[str, Any]) -> None:
            self._making.pop(key, None)
            self._loop.selector.unregister(ours.socket)
            ours.close()  # which ends the fork
            reply(message)

        def on_message(_mask: int) -> None:
            if ours.fileno() < 0:  # given up for a request that came at the same time
                return
            received = _next(ours)
            if received is None:
                give_up({"error": {"code": "failed", "message": "the kernel, or its fork, has ended"}})
            elif "refused" in received.message:
                reasons = _texts(received.message["refused"]) or ["the kernel refused"]
                give_up({"error": {"code": "refused", "message": "\n".join(reasons)}})
            else:
                told["ready" if "ready" in received.message else "forked"] = received
                if len(told) == 2:
                    self._making.pop(key, None)
                    self._loop.selector.unregister(ours.socket)
                    self._keep(session, name, ours, told["ready"], reply)

        self._making[key] = lambda: give_up({"error": {"code": "failed", "message": "it was given up"}})
        self._loop.selector.register(ours.socket, selectors.EVENT_READ, on_message)

    def _keep(self, session: Session, name: str, line: Line, ready: Received, reply: Reply) -> None:
        if not self._is_fork(session, ready):
            line.close()
            reply({"error": {"code": "failed", "message": "the kernel's fork is not what it should be"}})
            return

        def on_exit(_status: int) -> None:
            if session.checkpoints.get(name) is checkpoint:
                drop(session, name)

        child = Child(ready.pid, -1, lambda _report: None, on_exit)
        checkpoint = session.checkpoints[name] = Checkpoint(child, line)
        self._loop.start(child)
        told = ready.message["ready"]
        reply({"result": {name: _number(told, name) for name in ("files", "bytes_copied")}})

    def _is_fork(self, session: Session, sender: Received) -> bool:
        """Whether a process is of the session, and a child of ours that is new: its number stays its own until we reap it."""
        if (self._sessions.isolated and sender.uid != session.uid) or self._loop.follows(sender.pid):
            return False
        with suppress(OSError, IndexError, ValueError):
            return int(stat_of(sender.pid)[PARENT]) == os.getpid()
        return False

    def rollback(self, request: dict[str, Any], reply: Reply) -> None:
        """Makes a fork of a checkpoint the kernel of its session, which has none just now."""
        session = self._sessions.find(request)
        if session.pid is not None:
            raise Refused(f"session {session.session_id} has a kernel already")
        self._become(session, self._find(session, request), session, request, reply)

    def branch(self, request: dict[str, Any], reply: Reply) -> None:
        """Makes a fork of a checkpoint the kernel of a new session."""
        session = self._sessions.find(request)
        checkpoint = self._find(session, request)
        branched = self._sessions.branch(session, str(request["branch"]))

        def answer(message: dict[str, Any]) -> None:
            if "error" in message:
                self._kernels.clear({"session_id": branched.session_id}, lambda _message: reply(message))
            else:
                reply(message)

        self._become(session, checkpoint, branched, request, answer)

    def _find(self, session: Session, request: dict[str, Any]) -> Checkpoint:
        try:
            return session.checkpoints[str(request["checkpoint"])]
        except KeyError:
            raise Refused(f"the session has no checkpoint {request['checkpoint']}") from None

    def _become(
        self, origin: Session, checkpoint: Checkpoint, session: Session, request: dict[str, Any], reply: Reply
    ) -> None:
        self._sessions.empty_run_dir(session)
        with self._sessions.as_host():
            listeners = list(kernel.listen(session.run_dir).values())
        report, theirs = Line.pair()
        line, its = Line.pair()
        message = {
            "checkpoint": request["checkpoint"],
            "session_id": session.session_id,
            "run_dir": session.run_dir,
            "workspace": session.workspace,
            "private": session.private,
            "mark": session.mark if self._sessions.isolated else 0,
            "later": self._sessions.later_folders(session),
        }
        try:
            checkpoint.line.send(message, [*listeners, its.fileno(), theirs.fileno()])
        except OSError as error:
            report.close()
            line.close()
            reply({"error": {"code": "failed", "message": f"the checkpoint is gone ({error.strerror})"}})
            return
        finally:
            for descriptor in listeners:
                os.close(descriptor)
            its.close()
            theirs.close()
        report.socket.setblocking(False)

        def answer(whole: dict[str, Any]) -> None:
            told = whole.get("result")
            if not isinstance(told, dict):
                reply({"error": {"code": "failed", "message": _failure(whole)}})
                return
            known = {"pid": session.pid, "ip": f"{session.slot}/s", "workspace": session.workspace}
            files = told.get("files")
            kinds = {kind: _texts(_get(files, kind)) for kind in ("changed", "removed", "created")}
            reply(
                {
                    "result": {
                        **known,
                        "key": str(told.get("key"))[:MAX_TEXT],
                        "lost": _texts(told.get("lost")),
                        "files": {**kinds, "count": _number(files, "count")},
                    }
                }
            )

        def on_begun(_mask: int) -> None:
            received = _next(report)
            self._loop.selector.unregister(report.socket)
            if received is not None and self._is_fork(session, received):
                pipe = report.socket.detach()
                self._kernels.follow(session, received.pid, pipe, line, answer, RESTORE_SECONDS)
                return
            report.close()
            line.close()
            reply({"error": {"code": "failed", "message": "the checkpoint could not be forked"}})

        self._loop.selector.register(report.socket, selectors.EVENT_READ, on_begun)

    def drop(self, request: dict[str, Any], reply: Reply) -> None:
        """Ends a checkpoint, also one that is on its way."""
        session, name = self._sessions.find(request), str(request["checkpoint"])
        if not name.isalnum():
            raise Refused("the name of a checkpoint is letters and digits")
        if give_up := self._making.get((session.session_id, name)):
            give_up()
        if name in session.checkpoints:
            drop(session, name)
        reply({"result": {}})


def _failure(told: dict[str, Any]) -> str:
    return str(_get(told.get("error"), "message") or "the fork of the checkpoint has ended")[:MAX_TEXT]


def _get(told: object, name: str) -> object:
    """A field of what a session's process has told, which may be anything."""
    return told.get(name) if isinstance(told, dict) else None


def _number(told: object, name: str) -> int:
    value = _get(told, name)
    return min(value, MAX_NUMBER) if isinstance(value, int) else 0


def _texts(told: object) -> list[str]:
    """Of a list, what is text, cut."""
    return [text[:MAX_TEXT] for text in told[:MAX_TEXTS] if isinstance(text, str)] if isinstance(told, list) else []


def _next(line: Line) -> Received | None:
    """What has come; None where nothing will, or no message."""
    try:
        received = line.receive()
    except (OSError, ValueError):
        return None
    for descriptor in received.descriptors if received else ():
        os.close(descriptor)
    return received
