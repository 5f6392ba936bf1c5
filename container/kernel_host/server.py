"""The kernel host's main loop: one thread, one selector, the control protocol of `container/README.md`.

It holds ids, paths and numbers only. Code, outputs and file contents never pass through this process, because every
kernel is forked from it and inherits its memory.
"""

from __future__ import annotations

import gc
import json
import os
import selectors
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

from . import PROTOCOL, children, files, identity
from .children import Child
from .config import Config
from .files import Refused
from .preload import preload, rehearse

MAX_LINE_BYTES = 1 << 20  # ids, paths and numbers only
SPAWN_SECONDS = 30.0
Reply = Callable[[dict[str, Any]], None]


@dataclass
class Session:
    """A session's UID and folders; they outlive its kernel."""

    session_id: str
    slot: int
    uid: int | None
    pid: int | None = None
    started: float = 0.0


@dataclass
class Client:
    """A connection on the control socket."""

    socket: socket.socket
    received: bytearray = field(default_factory=bytearray)
    to_send: bytearray = field(default_factory=bytearray)


class Server:
    """Serves the control socket until it is told to stop, or nobody has held it for `lease_seconds`."""

    def __init__(self, config: Config, preloaded: list[str]) -> None:
        self._config = config
        self._preloaded = preloaded
        self._selector = selectors.DefaultSelector()
        self._clients: set[int] = set()
        self._connected: dict[int, Client] = {}
        self._sessions: dict[str, Session] = {}
        self._children: dict[int, Child] = {}
        self._next_slot = 0
        self._unheld_since: float | None = time.monotonic()
        self._running = True

    # -- life ------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Makes the folders and the control socket, then serves."""
        self._make_folders()
        wakeup, wakeup_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wakeup_writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop())
        self._selector.register(wakeup, selectors.EVENT_READ, lambda: self._reap(wakeup))
        listener = self._listen()
        self._selector.register(listener, selectors.EVENT_READ, lambda: self._accept(listener))
        try:
            while self._running:
                for key, mask in self._selector.select(timeout=self._seconds_to_deadline()):
                    key.data() if not isinstance(key.data, Client) else self._serve(key.data, mask)
                self._enforce_deadlines()
        finally:
            self._kill_everything()

    def _make_folders(self) -> None:
        for folder, mode in (
            (self._config.sessions_dir, 0o711),
            (self._config.private_dir, 0o711),
            (self._config.shared_dir, 0o755),
            (self._config.staging_dir, 0o700),
        ):
            os.makedirs(folder, exist_ok=True)
            os.chmod(folder, mode)

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        path = f"{self._config.run_dir}/control"
        with self._as_host():
            # Bound elsewhere first: the server must never see a socket that does not listen yet.
            listener.bind(f"{path}.new")
            listener.listen(8)
            os.rename(f"{path}.new", path)
        listener.setblocking(False)
        return listener

    def _as_host(self) -> Any:
        return identity.acting_as(self._config.host_uid) if self._isolated else nullcontext()

    @property
    def _isolated(self) -> bool:
        return self._config.isolation == "uid"

    def _stop(self) -> None:
        self._running = False

    def _kill_everything(self) -> None:
        for session in self._sessions.values():
            if session.pid is not None:
                with suppress(ProcessLookupError):
                    os.killpg(session.pid, signal.SIGKILL)
        with self._as_host(), suppress(OSError):
            for session in self._sessions.values():
                files.empty_folder(self._run_dir(session))
                os.rmdir(self._run_dir(session))
            os.unlink(f"{self._config.run_dir}/control")

    # -- deadlines -------------------------------------------------------------------------------------------------

    def _seconds_to_deadline(self) -> float | None:
        deadlines = [child.deadline for child in self._children.values() if child.deadline is not None]
        if self._unheld_since is not None:
            deadlines.append(self._unheld_since + self._config.lease_seconds)
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def _enforce_deadlines(self) -> None:
        now = time.monotonic()
        for child in self._children.values():
            if child.deadline is not None and child.deadline <= now:
                child.deadline = None
                os.kill(child.pid, signal.SIGKILL)
        if self._unheld_since is not None and self._unheld_since + self._config.lease_seconds <= now:
            self._stop()

    # -- connections -----------------------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        with suppress(BlockingIOError):
            connection, _ = listener.accept()
            connection.setblocking(False)
            client = Client(connection)
            self._connected[connection.fileno()] = client
            self._unheld_since = None
            self._selector.register(connection, selectors.EVENT_READ, client)
            self._send(client, self._hello())

    def _hello(self) -> dict[str, Any]:
        return {
            "event": "hello",
            "protocol": PROTOCOL,
            "python": ".".join(map(str, sys.version_info[:3])),
            "preloaded": self._preloaded,
            "isolation": self._config.isolation,
            "capabilities": _effective_capabilities(),
        }

    def _serve(self, client: Client, mask: int) -> None:
        try:
            if mask & selectors.EVENT_WRITE:
                self._flush(client)
            if mask & selectors.EVENT_READ:
                data = client.socket.recv(1 << 16)
                if not data:
                    raise ConnectionResetError
                client.received += data
                self._take_lines(client)
        except (ConnectionError, ValueError):
            self._drop(client)

    def _take_lines(self, client: Client) -> None:
        while b"\n" in client.received:
            line, _, rest = client.received.partition(b"\n")
            client.received = bytearray(rest)
            self._handle(client, json.loads(line))
        if len(client.received) > MAX_LINE_BYTES:
            raise ValueError("a request is too long")

    def _drop(self, client: Client) -> None:
        self._connected.pop(client.socket.fileno(), None)
        self._selector.unregister(client.socket)
        client.socket.close()
        if not self._connected:
            self._unheld_since = time.monotonic()

    def _send(self, client: Client, message: dict[str, Any]) -> None:
        if client.socket.fileno() < 0:
            return
        client.to_send += json.dumps(message).encode() + b"\n"
        with suppress(ConnectionError):  # the read side will notice and drop it
            self._flush(client)

    def _flush(self, client: Client) -> None:
        with suppress(BlockingIOError):
            while client.to_send:
                sent = client.socket.send(client.to_send)
                del client.to_send[:sent]
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.to_send else 0)
        self._selector.modify(client.socket, events, client)

    def _broadcast(self, event: dict[str, Any]) -> None:
        for client in list(self._connected.values()):
            self._send(client, event)

    # -- requests --------------------------------------------------------------------------------------------------

    def _handle(self, client: Client, request: dict[str, Any]) -> None:
        number = request.get("id")

        def reply(message: dict[str, Any]) -> None:
            self._send(client, {"id": number, **message})

        operations: dict[str, Callable[[dict[str, Any], Reply], None]] = {
            "spawn": self._spawn,
            "signal": self._signal,
            "kill": self._kill,
            "clear": self._clear,
            "list": self._list,
            "stage": self._stage,
            "unstage": self._unstage,
            "receive": self._receive,
            "send": self._send_file,
            "describe": self._describe,
            "edit": self._edit,
            "packages": self._packages,
            "shutdown": self._shutdown,
        }
        try:
            operation = operations.get(str(request.get("op")))
            if operation is None:
                raise Refused(f"unknown operation {request.get('op')!r}")
            operation(request, reply)
        except Refused as refused:
            reply({"error": {"code": "refused", "message": str(refused)}})
        except Exception as error:  # a bad request must not end the process that all kernels hang on
            reply({"error": {"code": "failed", "message": f"{type(error).__name__}: {error}"}})

    def _shutdown(self, _request: dict[str, Any], reply: Reply) -> None:
        reply({"result": {}})
        self._stop()

    def _session(self, request: dict[str, Any]) -> Session:
        try:
            return self._sessions[request["session_id"]]
        except KeyError:
            raise Refused(f"no session {request.get('session_id')!r} in this kernel host") from None

    # -- kernels ---------------------------------------------------------------------------------------------------

    def _spawn(self, request: dict[str, Any], reply: Reply) -> None:
        """Starts the kernel of a session that has none, and makes the session if it is new."""
        session = self._sessions.get(request["session_id"]) or self._new_session(request["session_id"])
        if session.pid is not None:
            raise Refused(f"session {session.session_id} has a kernel already")
        run_dir, slot_limits = self._run_dir(session), self._config.limits
        with self._as_host():
            os.makedirs(run_dir, mode=0o700, exist_ok=True)
            files.empty_folder(run_dir)

        def body(report: children.Report) -> None:
            from . import kernel

            key = os.urandom(32).hex()
            launch = kernel.KernelLaunch(
                session_id=session.session_id,
                key=key.encode(),
                run_dir=run_dir,
                workspace=self._workspace(session),
                private=self._private(session),
                uid=session.uid,
                host_uid=self._config.host_uid if self._isolated else None,
                limits=slot_limits,
                environment=self._config.environment,
            )
            answer = {"pid": os.getpid(), "key": key, "ip": f"{session.slot}/s", "workspace": launch.workspace}

            def ready(_app: object) -> None:
                report({"result": answer})
                report.close()  # what the session forks must not hold it open

            kernel.run(launch, ready)

        pid, pipe = children.fork(body)
        session.pid, session.started = pid, time.monotonic()
        answered = False

        def on_report(message: dict[str, Any]) -> None:
            nonlocal answered
            answered = True
            self._children[pid].deadline = None
            reply(message)

        def on_exit(status: int) -> None:
            session.pid = None
            if not answered:
                reply({"error": {"code": "failed", "message": f"the kernel ended while it started ({_how(status)})"}})
            self._broadcast({"event": "death", "session_id": session.session_id, "pid": pid, **_how(status)})

        self._watch(Child(pid, pipe, on_report, on_exit, time.monotonic() + SPAWN_SECONDS))

    def _new_session(self, session_id: str) -> Session:
        taken = {session.slot for session in self._sessions.values()}
        if len(taken) >= self._config.uid_count:
            raise Refused("every UID of this kernel host is taken")
        # Round robin: a UID rests as long as possible before another session gets it.
        while self._next_slot % self._config.uid_count in taken:
            self._next_slot += 1
        slot = self._next_slot % self._config.uid_count
        self._next_slot += 1
        session = Session(session_id, slot, self._config.first_uid + slot if self._isolated else None)
        for folder in (self._workspace(session), self._private(session)):
            os.mkdir(folder, 0o700)
            if session.uid is not None:
                os.chown(folder, session.uid, session.uid)
        self._sessions[session_id] = session
        return session

    def _workspace(self, session: Session) -> str:
        return f"{self._config.sessions_dir}/{session.session_id}"

    def _private(self, session: Session) -> str:
        return f"{self._config.private_dir}/{session.session_id}"

    def _run_dir(self, session: Session) -> str:
        return f"{self._config.run_dir}/{session.slot}"

    def _signal(self, request: dict[str, Any], reply: Reply) -> None:
        session = self._session(request)
        if session.pid is None:
            raise Refused("the session has no kernel")
        os.killpg(session.pid, int(request["signum"]))
        reply({"result": {}})

    def _kill(self, request: dict[str, Any], reply: Reply) -> None:
        """Ends every process of the session; its files stay."""
        session = self._session(request)
        self._end_processes(session)
        self._help(session, lambda: self._end_all_of_uid(session), reply)

    def _clear(self, request: dict[str, Any], reply: Reply) -> None:
        """Ends every process of the session and removes all that it owns; its UID is free again afterwards."""
        session = self._session(request)
        self._end_processes(session)

        def remove() -> dict[str, Any]:
            self._end_all_of_uid(session)
            files.empty_folder(self._workspace(session))
            files.empty_folder(self._private(session))
            if session.uid is not None:
                for folder in ("/tmp", "/dev/shm"):  # noqa: S108 - the container's own, one for all sessions
                    files.remove_own_files(folder)
            return {}

        def finish(message: dict[str, Any]) -> None:
            with suppress(OSError):
                os.rmdir(self._workspace(session))
                os.rmdir(self._private(session))
            with self._as_host(), suppress(OSError):
                files.empty_folder(self._run_dir(session))
                os.rmdir(self._run_dir(session))
            self._sessions.pop(session.session_id, None)
            reply(message)

        self._help(session, remove, finish)

    def _end_processes(self, session: Session) -> None:
        if session.pid is not None:
            with suppress(ProcessLookupError):
                os.killpg(session.pid, signal.SIGKILL)

    def _end_all_of_uid(self, session: Session) -> dict[str, Any]:
        if session.uid is not None:
            identity.kill_all_of_this_uid()
        return {}

    def _list(self, _request: dict[str, Any], reply: Reply) -> None:
        now = time.monotonic()
        listed = [
            {
                "session_id": session.session_id,
                "uid": session.uid,
                "pid": session.pid,
                "kernel_age_seconds": now - session.started if session.pid else None,
            }
            for session in self._sessions.values()
        ]
        reply({"result": {"sessions": listed}})

    # -- files -----------------------------------------------------------------------------------------------------

    def _stage(self, request: dict[str, Any], reply: Reply) -> None:
        """Makes a fresh staging folder; `session_id` "" stands for the shared folder, which belongs to us."""
        owner = self._session(request).uid if request["session_id"] else None
        folder = self._staging(request)
        os.mkdir(folder, 0o700)
        if owner is not None:
            os.chown(folder, owner, owner)
        reply({"result": {"path": folder, "uid": owner if owner is not None else os.getuid()}})

    def _staging(self, request: dict[str, Any]) -> str:
        name = str(request["staging"])
        if not name.isalnum():
            raise Refused("a staging name is letters and digits")
        return f"{self._config.staging_dir}/{name}"

    def _unstage(self, request: dict[str, Any], reply: Reply) -> None:
        staging, owner = self._open_staging(request)

        def remove() -> dict[str, Any]:
            os.fchdir(staging)  # for a session's UID there is no path to it: the parent is 0700
            files.empty_folder(".")
            return {}

        def finish(message: dict[str, Any]) -> None:
            with suppress(OSError):
                os.rmdir(self._staging(request))
            reply(message)

        self._help_as(owner, remove, finish, keep=(staging,))
        os.close(staging)

    def _open_staging(self, request: dict[str, Any]) -> tuple[int, int | None]:
        """Opens a staging folder for a helper with its owner's UID (None: ours)."""
        folder = self._staging(request)
        owner = os.stat(folder).st_uid
        if owner == os.getuid():
            return os.open(folder, os.O_DIRECTORY | os.O_RDONLY | os.O_CLOEXEC), None
        os.chown(folder, os.getuid(), -1)  # without CAP_DAC_OVERRIDE root opens only what is its own
        descriptor = os.open(folder, os.O_DIRECTORY | os.O_RDONLY | os.O_CLOEXEC)
        os.fchown(descriptor, owner, -1)
        return descriptor, owner

    def _receive(self, request: dict[str, Any], reply: Reply) -> None:
        name, target = str(request["name"]), str(request["path"])
        self._with_folders(request, reply, lambda root, staging: files.receive(root, staging, name, target))

    def _send_file(self, request: dict[str, Any], reply: Reply) -> None:
        path, name, limit = str(request["path"]), str(request["name"]), int(request["max_bytes"])
        self._with_folders(request, reply, lambda root, staging: files.send(root, staging, path, name, limit))

    def _with_folders(self, request: dict[str, Any], reply: Reply, body: Callable[[int, int], dict[str, Any]]) -> None:
        staging, _ = self._open_staging(request)
        self._at_root(request, reply, lambda root: body(root, staging), keep=(staging,))
        os.close(staging)

    def _describe(self, request: dict[str, Any], reply: Reply) -> None:
        self._at_root(request, reply, lambda root: files.describe(root, str(request["path"])))

    def _edit(self, request: dict[str, Any], reply: Reply) -> None:
        """The request's text lies in a file of the run folder, so that it never enters this process."""
        name = str(request["content_file"])
        if not name.isalnum():
            raise Refused("a content file's name is letters and digits")
        with self._as_host():
            content = os.open(f"{self._config.run_dir}/{name}", os.O_RDONLY | os.O_CLOEXEC)

        def body(root: int) -> dict[str, Any]:
            with open(content, "rb") as file:
                return files.edit(root, str(request["path"]), file.read())

        self._at_root(request, reply, body, keep=(content,))
        os.close(content)

    def _at_root(
        self,
        request: dict[str, Any],
        reply: Reply,
        body: Callable[[int], dict[str, Any]],
        keep: tuple[int, ...] = (),
    ) -> None:
        """Runs `body` in a helper, with the open folder beneath which its paths are: workspace or shared."""
        # Sessions cannot write in the shared folder, so that nothing can be planted there: it is ours.
        session = self._session(request) if request["session_id"] else None
        folder = self._workspace(session) if session else self._config.shared_dir

        def work() -> dict[str, Any]:
            root = os.open(folder, os.O_DIRECTORY | os.O_RDONLY | os.O_CLOEXEC)
            os.umask(0o022)
            return body(root)

        self._help(session, work, reply, keep)

    def _packages(self, request: dict[str, Any], reply: Reply) -> None:
        session = self._session(request) if request["session_id"] else None

        def work() -> dict[str, Any]:
            if session:
                sys.path.append(identity.user_site(self._workspace(session)))
            return files.packages()

        self._help(session, work, reply)

    # -- helpers ---------------------------------------------------------------------------------------------------

    def _help(
        self, session: Session | None, body: Callable[[], dict[str, Any]], reply: Reply, keep: tuple[int, ...] = ()
    ) -> None:
        """Runs `body` in a forked helper with the session's UID (ours without a session) and replies with its result."""
        self._help_as(session.uid if session else None, body, reply, keep)

    def _help_as(
        self,
        uid: int | None,
        body: Callable[[], dict[str, Any]],
        reply: Reply,
        keep: tuple[int, ...] = (),
    ) -> None:
        def work(report: children.Report) -> None:
            if uid is not None:
                identity.become(uid)
            report({"result": body()})

        pid, pipe = children.fork(work, keep)
        answers: list[dict[str, Any]] = []

        def on_exit(status: int) -> None:
            lost = {"error": {"code": "failed", "message": f"the helper ended before it was done ({_how(status)})"}}
            reply(answers[0] if answers else lost)

        self._watch(Child(pid, pipe, answers.append, on_exit, time.monotonic() + children.HELPER_SECONDS))

    def _watch(self, child: Child) -> None:
        self._children[child.pid] = child
        self._selector.register(child.pipe, selectors.EVENT_READ, lambda: self._read_child(child))

    def _read_child(self, child: Child) -> None:
        if not child.read():
            self._selector.unregister(child.pipe)
            os.close(child.pipe)
            child.pipe = -1

    def _reap(self, wakeup: int) -> None:
        with suppress(BlockingIOError):
            os.read(wakeup, 4096)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if child := self._children.pop(pid, None):
                while child.pipe >= 0 and child.read():
                    if not _readable(child.pipe):  # a grandchild holds the other end
                        break
                if child.pipe >= 0:
                    self._selector.unregister(child.pipe)
                    os.close(child.pipe)
                child.on_exit(status)


def _readable(descriptor: int) -> bool:
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        return bool(selector.select(timeout=0))


def _how(status: int) -> dict[str, int]:
    """A wait status as `{"exit_code": n}` or `{"signal": n}`, and how often the memory limit killed something so far."""
    if os.WIFSIGNALED(status):
        return {"signal": os.WTERMSIG(status), "oom_kills": _oom_kills()}
    return {"exit_code": os.WEXITSTATUS(status), "oom_kills": _oom_kills()}


def _oom_kills() -> int:
    """`oom_kill` of our cgroup: memory.events (cgroup v2) or memory.oom_control (v1); 0 where neither is readable."""
    for path in ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"):
        with suppress(OSError), open(path, encoding="ascii") as file:
            return int(dict(line.split() for line in file).get("oom_kill", 0))
    return 0


def _effective_capabilities() -> str:
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        return next(line.split()[1] for line in file if line.startswith("CapEff"))


def main() -> None:
    """Entry point of the kernel host."""
    if sys.argv[1:2] == ["--rehearse"]:
        rehearse(sys.argv[2])
        return
    config = Config.from_environment()
    if config.isolation == "uid" and not identity.in_own_pid_namespace():
        sys.exit("kernel_host: refused: isolation by UID needs a container with a PID namespace and an init of its own")
    preloaded = preload(config.preload)
    # The fork happens with native threads around (OpenBLAS restarts its own); Python >= 3.12 warns about any.
    warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork.*", category=DeprecationWarning)
    gc.collect()
    gc.freeze()  # keeps the collector from touching, and so copying, the pages that all kernels share
    Server(config, preloaded).run()
