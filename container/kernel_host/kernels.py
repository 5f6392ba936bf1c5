"""Requests about kernels: spawn, signal, kill, clear, list."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from . import children, cleaning, identity, naming
from .beneath import Refused
from .children import Child, Report
from .config import Config
from .lines import Inbox, Line
from .loop import Loop, Reply
from .sessions import Session, Sessions
from .usage import container_memory, machine_memory, own_memory, usage
from .walls import Walls

SPAWN_SECONDS = 30.0
DROP_SECONDS = 60.0
CLEAR_AGAIN_SECONDS, MAX_CLEAR_AGAIN_SECONDS = 1.0, 30.0  # between attempts; each one waits twice as long
GROWN = 0.2  # of the container's memory: so much a kernel must have beyond its checkpoints for these to stay


class KernelRequests:
    """Answers them; `on_death` is told when a kernel has ended."""

    def __init__(
        self,
        config: Config,
        walls: Walls,
        sessions: Sessions,
        loop: Loop,
        on_death: Callable[[dict[str, Any]], None],
    ) -> None:
        self._config = config
        self._walls = walls
        self._sessions = sessions
        self._loop = loop
        self._on_death = on_death
        self._endings: Counter[str] = Counter()  # of sessions whose processes are being ended, how often at a time
        self._lock = -1  # for helpers that make a UID's processes stand still
        self._waiting: dict[str, list[Callable[[], None]]] = {}  # for the end of these

    def wait_settled(self, handle: str, then: Callable[[], None]) -> bool:
        """Whether something ends the session's processes, which would end those that come next, too.

        Then it is called when that is over.
        """
        if busy := self._endings[handle] > 0:
            self._waiting.setdefault(handle, []).append(then)
        return busy

    def _settle(self, session: Session) -> None:
        self._endings[session.handle] -= 1
        if not self._endings[session.handle]:
            del self._endings[session.handle]
            for then in self._waiting.pop(session.handle, []):
                then()

    def spawn(self, request: dict[str, Any], reply: Reply) -> None:
        """Starts the kernel of a session that has none, and makes the session if it is new.

        Raises:
            Begin: in the kernel's process, which goes on from where nothing of ours is on the stack.
        """
        session = self._sessions.find_or_make(str(request["session"]))
        if session.pid is not None:
            raise Refused("the session has a kernel already")
        secrets = self._sessions.open_handed(str(request["secrets"]))
        ours, theirs = Line.pair()
        try:
            self._sessions.empty_run_dir(session)
            begin = self._kernel_of(session, secrets, theirs, warm=bool(request.get("warm")))
            pid, inbox = children.fork(begin, keep=(theirs.fileno(), secrets), begin=True)
        except children.Begin:
            ours.socket.detach()  # it is closed, and its number must not be closed again
            raise
        except BaseException:
            ours.close()
            theirs.close()
            os.close(secrets)
            raise
        theirs.close()
        os.close(secrets)
        self.follow(session, pid, inbox, ours, reply)

    def _kernel_of(self, session: Session, secrets: int, line: Line, *, warm: bool) -> Callable[[Report], None]:
        """What the process does that becomes the session's kernel."""
        from . import kernel

        isolated, sessions_dir, waiting = self._sessions.isolated, self._config.sessions_dir, session.pair.waiting
        launch = kernel.KernelLaunch(
            session_id="",
            key=b"",
            run_dir=session.run_dir,
            workspace="",
            private=session.private,
            uid=session.uid,
            host_uid=self._config.host_uid if isolated else None,
            limits=self._config.limits,
            environment=self._config.environment,
            warm=warm,
            shared=self._config.shared_dir,
            walls=self._walls if isolated else None,
            mark=session.mark if isolated else 0,
            later=tuple(self._sessions.later_folders(session)),
        )
        ip = f"{session.slot}/s"

        def begin(report: Report) -> None:
            own = naming.read_secrets(secrets)
            workspace = naming.name(waiting, sessions_dir, own.session_id, launch.uid)

            def bound() -> None:
                report({"result": {"pid": os.getpid(), "ip": ip}})
                report.close()  # what the session forks must not hold it open

            kernel.run(replace(launch, session_id=own.session_id, key=own.key, workspace=workspace), bound, line)

        return begin

    def follow(
        self, session: Session, pid: int, inbox: Inbox, line: Line, reply: Reply, seconds: float = SPAWN_SECONDS
    ) -> None:
        """A kernel of the session has been forked: passes on what it reports, and tells of its end.

        Args:
            inbox: where it reports once, that it has started.
            line: to ask it for checkpoints.
            seconds: until it must have started.
        """
        session.pid, session.started = pid, time.monotonic()
        session.line = line
        answered = False

        def on_report(message: dict[str, Any]) -> None:
            nonlocal answered
            answered = True
            child.deadline = None
            self._loop.silence(child)  # what is in it from now on is the session's
            reply(message)

        def on_exit(status: int) -> None:
            session.pid = session.line = None
            line.close()
            how: dict[str, Any] = children.describe_exit(status)
            if session.exceeded:
                how["exceeded"], session.exceeded = session.exceeded, None
            if not answered:
                reply({"error": {"code": "failed", "message": f"the kernel ended while it started ({how})"}})
            kept = list(session.checkpoints)
            session.death = {"event": "death", "session": session.handle, "pid": pid, "checkpoints": kept, **how}
            self._on_death(session.death)
            while session.on_end:
                session.on_end.pop()()

        child = Child(pid, inbox, on_report, on_exit, time.monotonic() + seconds)
        self._loop.start(child)

    def signal(self, request: dict[str, Any], reply: Reply) -> None:
        """Sends a signal to the kernel's process group."""
        session = self._sessions.find(request)
        if session.pid is None:
            raise Refused("the session has no kernel")
        os.killpg(session.pid, int(request["signum"]))
        reply({"result": {}})

    def kill(self, request: dict[str, Any], reply: Reply) -> None:
        """Ends every process of the session; its files stay."""
        self._kill(self._sessions.find(request), reply)

    def _kill(self, session: Session, reply: Reply) -> None:
        if self.wait_settled(session.handle, lambda: self._kill(session, reply)):
            return
        if session not in self._sessions or session.cleared:  # that came while this waited
            reply({"result": {}})
            return
        self._endings[session.handle] += 1
        _end_kernel(session)

        def finish(message: dict[str, Any]) -> None:
            def done() -> None:
                reply(message)
                self._settle(session)

            if session.pid is None:
                done()
            else:  # the next request may be to start another one
                session.on_end.append(done)

        self._loop.help(session.uid, self._ending(session), finish, keep=(self._lock,))

    def _ending(self, session: Session) -> Callable[[], dict[str, Any]]:
        """What a helper with the session's UID does: ends whatever the kernel has started, but no checkpoint.

        In a family that is all but what has the mark of a living relative: a mark that is nobody's is a stray's.
        """
        if self._lock < 0 and session.uid is not None:
            self._lock = os.open(self._config.staging_dir, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        spared = {checkpoint.process.pid for checkpoint in session.checkpoints.values()}
        others = {relative.mark for relative in self._sessions.living_relatives(session)}
        alone, lock = not spared and not others, self._lock

        def end() -> dict[str, Any]:
            if session.uid is not None and alone:
                identity.kill_all_of_this_uid()
            elif session.uid is not None:
                identity.kill_all_but(others, spared, lock)
            return {}

        return end

    def stop(self, session: Session, exceeded: dict[str, Any], done: Callable[[], None], *, empty_memory: bool) -> None:
        """Ends every process of a session that has used too much, and calls `done` when none is left.

        Args:
            empty_memory: also removes what files of the session are in memory.
        """
        session.exceeded = exceeded
        if exceeded["what"] == "memory" and not _has_outgrown_checkpoints(session, GROWN * exceeded["limit"]):
            for name in list(session.checkpoints):
                drop(session, name, 0.0)
        self._endings[session.handle] += 1
        _end_kernel(session)

        end = self._ending(session)

        def work() -> dict[str, Any]:
            end()
            if empty_memory:
                cleaning.empty_memory()
            return {}

        def finish(_message: dict[str, Any]) -> None:
            if session.pid is None:  # of no death it could be told any more
                session.exceeded = None
            self._settle(session)
            done()

        self._loop.help(session.uid, work, finish, keep=(self._lock,))

    def clear(self, request: dict[str, Any], reply: Reply) -> None:
        """Ends every process of the session and removes all that it owns; its UID is free again afterwards.

        What cannot be done now is tried again until it is; the answer then says so, and the UID is nobody else's meanwhile.
        """
        self._clear(self._sessions.find_any(request), reply)

    def _clear(self, session: Session, reply: Reply) -> None:
        if session not in self._sessions:
            reply({"result": {}})
            return
        if self.wait_settled(session.handle, lambda: self._clear(session, reply)):
            return
        session.cleared += 1
        self._endings[session.handle] += 1
        _end_kernel(session)
        for name in list(session.checkpoints):
            drop(session, name)
        end, alone = self._ending(session), not self._sessions.living_relatives(session)

        def remove() -> dict[str, Any]:
            with cleaning.all_of_it() as attempt:
                with attempt():
                    end()
                with attempt():
                    os.fchdir(session.home)
                    cleaning.empty_folder(".")
                with attempt():
                    cleaning.empty_folder(session.private)
                with attempt():
                    if session.uid is not None and alone:
                        cleaning.empty_memory()
            return {}

        def fail(why: str) -> None:
            self._settle(session)
            self._clear_later(session)
            reply({"error": {"code": "failed", "message": why}})

        def finish(message: dict[str, Any]) -> None:
            if "error" in message or session.pid is not None:
                fail(str(message.get("error", {}).get("message", "its kernel has not ended yet")))
                return
            session.emptied = True
            # Relatives that were cleared at the same time have gone meanwhile: it is the last.
            if not alone and not self._sessions.living_relatives(session):
                self._settle(session)
                self._clear(session, reply)
            else:
                self._loop.help(None, self._sessions.release(session), forget, keep=(session.home,))

        def forget(message: dict[str, Any]) -> None:
            became = message.get("result", {}).get("became")
            if became is None or became == naming.FULL:
                session.emptied = False
                fail("a process of its family has put something into its folders")
                return
            os.close(session.home)
            self._sessions.forget(session, returned=became == naming.WAITS)
            self._settle(session)
            reply({"result": {}})

        def ended(message: dict[str, Any]) -> None:
            if "error" in message or session.pid is None:
                finish(message)
            else:  # of its process Linux tells in a moment
                session.on_end.append(lambda: finish(message))

        self._loop.help(session.uid, remove, ended, keep=(session.home, self._lock))

    def _clear_later(self, session: Session) -> None:
        if session.clears_again:
            return
        session.clears_again = True

        def again() -> None:
            session.clears_again = False
            self._clear(session, lambda _message: None)

        seconds = min(CLEAR_AGAIN_SECONDS * 2 ** (session.cleared - 1), MAX_CLEAR_AGAIN_SECONDS)
        self._loop.call_later(seconds, again)

    def usage(self, request: dict[str, Any], reply: Reply) -> None:
        """Memory, CPU time and processes of a session."""
        session = self._sessions.find(request)
        mark = self._sessions.distinguishing_mark(session)
        self._loop.help(session.uid, lambda: usage(session.uid, session.pid, mark), reply)

    def memory(self, _request: dict[str, Any], reply: Reply) -> None:
        """How much memory the container uses, and how much the machine has."""
        reply({"result": {**container_memory(), **machine_memory()}})

    def list(self, _request: dict[str, Any], reply: Reply) -> None:
        """The sessions with their UIDs and kernels, or how the last one ended."""
        now = time.monotonic()
        listed = [
            {
                "session": session.handle,
                "uid": session.uid,
                "pid": session.pid,
                "kernel_age_seconds": now - session.started if session.pid else None,
                "death": session.death,
                "checkpoints": list(session.checkpoints),
            }
            for session in self._sessions
            if not session.cleared
        ]
        reply({"result": {"sessions": listed, "oom_kills": children.oom_kills()}})

    def end_all(self) -> None:
        """Ends every kernel and removes the sockets; the container, and with it all else, ends right after."""
        for session in self._sessions:
            _end_kernel(session)
            with suppress(OSError):
                self._sessions.empty_run_dir(session)
                with self._sessions.as_host():
                    os.rmdir(session.run_dir)


def _end_kernel(session: Session) -> None:
    if session.pid is not None:
        with suppress(ProcessLookupError):
            os.killpg(session.pid, signal.SIGKILL)


def _has_outgrown_checkpoints(session: Session, enough: float) -> bool:
    """Whether the end of its kernel alone frees so much memory: what it has beyond the largest of its checkpoints."""
    sizes = [0]
    for checkpoint in session.checkpoints.values():
        with suppress(OSError):
            sizes.append(own_memory(checkpoint.process.pid))
    with suppress(OSError):
        return session.pid is not None and own_memory(session.pid) - max(sizes) >= enough
    return False


def drop(session: Session, name: str, seconds: float = DROP_SECONDS) -> None:
    """Ends a checkpoint, which removes its files by itself if it is given the time."""
    checkpoint = session.checkpoints.pop(name)
    checkpoint.line.close()
    checkpoint.process.deadline = time.monotonic() + seconds
