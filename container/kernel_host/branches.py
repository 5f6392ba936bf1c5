"""Requests about checkpoints: make one, go back to one, branch from one, drop one.

The processes are forked from the session's own, and say what they like: who they are is told by Linux.
"""

from __future__ import annotations

import os
import selectors
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

from . import children, identity, kernel, naming
from .beneath import Refused
from .children import Child
from .config import Config
from .kernels import KernelRequests, drop
from .lines import Inbox, Line, close_all
from .loop import Loop, Reply
from .sessions import Checkpoint, Session, Sessions
from .usage import read, stat_of

PARENT = 1  # field of `stat_of`
RESTORE_SECONDS = 600.0  # many GB of files
BEGIN_SECONDS = 30.0  # until a checkpoint has forked, on a slow, busy machine
MAX_ANSWER_BYTES = 64 << 10  # of a kernel and its fork together, to a request for a checkpoint
# Of what the processes tell: as much as tools show. In JSON, a character may take 12 bytes.
MAX_REASONS, MAX_REASON, MAX_PATHS, MAX_PATH, MAX_NUMBER = 12, 500, 12, 200, 1 << 62
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
        if not name.isalnum() or name in session.checkpoints or (session.handle, name) in self._making:
            raise Refused(f"there is a checkpoint {name} already")
        if len(session.checkpoints) >= MAX_CHECKPOINTS:
            raise Refused(f"a session can have {MAX_CHECKPOINTS} checkpoints")
        with ExitStack() as ours, ExitStack() as theirs:  # as in `_become`
            line, its = Line.pair()
            ours.callback(line.close)
            theirs.callback(its.close)
            inbox, writer = Inbox.pipe(MAX_ANSWER_BYTES)
            ours.callback(inbox.close)
            theirs.callback(os.close, writer)
            try:
                limit = self._config.workspace_bytes
                session.line.send({"checkpoint": name, "limit": limit}, [its.fileno(), writer])
            except OSError as error:
                raise Refused("the session's kernel takes no requests: its code holds it up") from error
            ours.pop_all()
        self._await(session, name, line, inbox, reply)

    def _await(self, session: Session, name: str, line: Line, inbox: Inbox, reply: Reply) -> None:
        """The kernel says that it has forked, and the fork that it is ready."""
        key = session.handle, name
        told: dict[str, dict[str, Any]] = {}

        session.forking += 1

        def end() -> None:
            session.forking -= 1
            self._making.pop(key, None)
            self._loop.selector.unregister(inbox.descriptor)
            inbox.close()

        def give_up(message: dict[str, Any]) -> None:
            end()
            line.close()  # which ends the fork
            reply(message)

        def on_message(_mask: int) -> None:
            if inbox.descriptor < 0:  # given up for a request that came at the same time
                return
            for message in inbox.read():
                if "refused" in message:
                    reasons = _texts(message["refused"], MAX_REASONS, MAX_REASON) or ["the kernel refused"]
                    give_up({"error": {"code": "said", "message": "\n".join(reasons)}})
                    return
                told["ready" if "ready" in message else "forked"] = message
                if len(told) == 2:
                    end()
                    self._keep(session, name, line, told["ready"], reply)
                    return
            if inbox.over:
                give_up({"error": {"code": "failed", "message": "the kernel, or its fork, has ended"}})

        self._making[key] = lambda: give_up({"error": {"code": "failed", "message": "it was given up"}})
        self._loop.selector.register(inbox.descriptor, selectors.EVENT_READ, on_message)

    def _keep(self, session: Session, name: str, line: Line, ready: dict[str, Any], reply: Reply) -> None:
        pid = self._fork_of(session, ready)
        if not pid:
            line.close()
            reply({"error": {"code": "failed", "message": "the kernel's fork is not what it should be"}})
            return

        def on_exit(_status: int) -> None:
            if session.checkpoints.get(name) is checkpoint:
                drop(session, name)

        child = Child(pid, None, lambda _report: None, on_exit)
        checkpoint = session.checkpoints[name] = Checkpoint(child, line)
        self._loop.start(child)
        reply({"result": {name: _number(ready["ready"], name) for name in ("files", "bytes_copied")}})

    def _fork_of(self, session: Session, told: dict[str, Any]) -> int:
        """The process that says it is a fork of the session's: if it is of the session, a child of ours, and new; else 0.

        Its number stays its own until we reap it.
        """
        pid = _get(told, "pid")
        if not isinstance(pid, int) or pid <= 1 or self._loop.follows(pid):
            return 0
        with suppress(OSError, IndexError, ValueError):
            if int(stat_of(pid)[PARENT]) == os.getpid() and self._is_of(session, pid):
                return pid
        return 0

    def _is_of(self, session: Session, pid: int) -> bool:
        if not self._sessions.isolated:
            return True
        ids = read(f"/proc/{pid}/status").partition("\nUid:")[2].split(maxsplit=4)[:4]
        return set(ids) == {str(session.uid)} and identity.mark_of(pid) == session.mark

    def rollback(self, request: dict[str, Any], reply: Reply) -> None:
        """Makes a fork of a checkpoint the kernel of its session, which has none just now."""
        session = self._sessions.find(request)
        if session.pid is not None:
            raise Refused("the session has a kernel already")
        checkpoint = self._find(session, request)
        secrets = self._sessions.open_handed(str(request["secrets"]))
        try:
            self._become(session, checkpoint, session, request, secrets, reply)
        finally:
            os.close(secrets)

    def branch(self, request: dict[str, Any], reply: Reply) -> None:
        """Makes a fork of a checkpoint the kernel of a new session."""
        session = self._sessions.find(request)
        checkpoint = self._find(session, request)
        secrets = self._sessions.open_handed(str(request["secrets"]))
        try:
            branched = self._sessions.branch(session, str(request["branch"]))

            def answer(message: dict[str, Any]) -> None:
                if "error" in message:
                    self._kernels.clear({"session": branched.handle}, lambda _message: reply(message))
                else:
                    reply(message)

            try:
                self._become(session, checkpoint, branched, request, secrets, answer)
            except OSError as error:
                answer({"error": {"code": "failed", "message": f"it could not be begun: {error.strerror}"}})
        finally:
            os.close(secrets)

    def _find(self, session: Session, request: dict[str, Any]) -> Checkpoint:
        try:
            return session.checkpoints[str(request["checkpoint"])]
        except KeyError:
            raise Refused(f"the session has no checkpoint {request['checkpoint']}") from None

    def _become(
        self,
        origin: Session,
        checkpoint: Checkpoint,
        session: Session,
        request: dict[str, Any],
        secrets: int,
        reply: Reply,
    ) -> None:
        self._sessions.empty_run_dir(session)
        message = {
            "checkpoint": request["checkpoint"],
            "run_dir": session.run_dir,
            "private": session.private,
            "branch": session is not origin,
            "later": self._sessions.later_folders(session),
        }
        with ExitStack() as ours, ExitStack() as theirs:  # closed in any case, and where it fails
            with self._sessions.as_host():
                listeners = list(kernel.listen(session.run_dir).values())
            theirs.callback(close_all, listeners)
            inbox, writer = Inbox.pipe(children.MAX_REPORT_BYTES)
            ours.callback(inbox.close)
            theirs.callback(os.close, writer)
            line, its = Line.pair()
            ours.callback(line.close)
            theirs.callback(its.close)
            own = os.dup(secrets)
            ours.callback(os.close, own)
            try:
                checkpoint.line.send(message, [*listeners, secrets, its.fileno(), writer])
            except OSError as error:
                reply({"error": {"code": "failed", "message": f"the checkpoint is gone ({error.strerror})"}})
                return
            ours.pop_all()

        def answer(whole: dict[str, Any]) -> None:
            told = whole.get("result")
            if isinstance(told, dict):
                reply({"result": {"pid": session.pid, "ip": f"{session.slot}/s", **_restored(told)}})
            else:
                reply({"error": {"code": "said", "message": _failure(whole)}})

        origin.forking += 1

        def stop_waiting() -> None:
            origin.forking -= 1
            self._loop.selector.unregister(inbox.descriptor)

        def give_up() -> None:
            inbox.close()
            line.close()  # which ends the fork
            os.close(own)
            reply({"error": {"code": "failed", "message": "the checkpoint could not be forked"}})

        def on_begun(_mask: int) -> None:
            begun = next(inbox.read(), None)
            if begun is None and not inbox.over:
                return
            stop_waiting()
            pid = self._fork_of(origin, begun or {})
            if not pid or session.pid is not None or session not in self._sessions or session.cleared:
                give_up()
                return
            self._kernels.follow(session, pid, inbox, line, answer, RESTORE_SECONDS)
            self._let_go_on(session, pid, line, own, is_branch=session is not origin)
            os.close(own)

        def on_time(descriptor: int = inbox.descriptor) -> None:
            key = self._loop.selector.get_map().get(descriptor)
            if key is not None and key.data is on_begun:
                stop_waiting()
                give_up()

        self._loop.selector.register(inbox.descriptor, selectors.EVENT_READ, on_begun)
        self._loop.call_later(BEGIN_SECONDS, on_time)

    def _let_go_on(self, session: Session, pid: int, line: Line, secrets: int, *, is_branch: bool) -> None:
        """Gives a branch's workspace its name, and its process the branch's mark: it waits for that, and can do neither."""

        def go_on(message: dict[str, Any]) -> None:
            if "error" in message or session.pid != pid:
                line.close()  # which ends it
                return
            with suppress(OSError):  # it has ended
                line.send({"go_on": True})

        def prepare() -> dict[str, Any]:
            session_id = naming.read_secrets(secrets).session_id
            naming.name(session.pair.waiting, self._config.sessions_dir, session_id, session.uid)
            if session.uid is not None:
                identity.become(session.uid)
                identity.mark_other(pid, session.mark)
            return {}

        if is_branch:
            self._loop.help(None, prepare, go_on, keep=(secrets,))
        else:
            go_on({})

    def drop(self, request: dict[str, Any], reply: Reply) -> None:
        """Ends a checkpoint, also one that is on its way."""
        session, name = self._sessions.find(request), str(request["checkpoint"])
        if not name.isalnum():
            raise Refused("the name of a checkpoint is letters and digits")
        if give_up := self._making.get((session.handle, name)):
            give_up()
        if name in session.checkpoints:
            drop(session, name)
        reply({"result": {}})


def _failure(told: dict[str, Any]) -> str:
    return str(_get(told.get("error"), "message") or "the fork of the checkpoint has ended")[:MAX_REASON]


def _restored(told: dict[str, Any]) -> dict[str, Any]:
    """What came of the files, as the fork says."""
    files = told.get("files")
    kinds = {kind: _texts(_get(files, kind), MAX_PATHS, MAX_PATH) for kind in ("changed", "removed", "created")}
    lost = _texts(told.get("lost"), MAX_PATHS, MAX_PATH)
    return {"lost": lost, "files": {**kinds, "count": _number(files, "count")}}


def _get(told: object, name: str) -> object:
    """A field of what a session's process has told, which may be anything."""
    return told.get(name) if isinstance(told, dict) else None


def _number(told: object, name: str) -> int:
    value = _get(told, name)
    return max(0, min(value, MAX_NUMBER)) if isinstance(value, int) else 0


def _texts(told: object, most: int, longest: int) -> list[str]:
    """Of a list, what is text, cut."""
    return [text[:longest] for text in told[:most] if isinstance(text, str)] if isinstance(told, list) else []
