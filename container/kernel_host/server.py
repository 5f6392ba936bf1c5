"""The kernel host: wires the loop, the sessions and the control protocol of `container/README.md` together.

It holds handles, paths and numbers only. Ids of sessions, keys, the owner's token, code, outputs and file contents never
pass through this process, because every kernel is forked from it and inherits its memory.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from . import PROTOCOL, children, identity, relay
from .beneath import Refused
from .branches import BranchRequests
from .children import Child
from .config import Config
from .connections import Connections
from .immortal import immortalize
from .kernels import KernelRequests
from .leisure import Leisure
from .loop import Loop, Reply, guarded
from .preload import make_shell_ahead, preload, rehearse, warm_up
from .sessions import Sessions
from .supervisor import Supervisor
from .transfers import FileRequests
from .walls import Walls, layers

RELAY_SECONDS = 1.0  # that it must have lasted to be started again


class Server:
    """Serves the control socket until it is told to stop, or no server has held it for the length of its lease."""

    def __init__(self, config: Config, preloaded: list[str]) -> None:
        self._config = config
        self._lease_seconds = config.lease_seconds
        self._leisure = Leisure(_improvements())
        self._due: deque[Callable[[], None]] = deque()
        self._loop = Loop()
        walls = Walls.here(config.walls, config.internet, config.tcp_ports)
        self._sessions = Sessions(config, walled=bool(walls.landlock) and config.isolation == "uid")
        transfers = FileRequests(config, walls, self._sessions, self._loop)
        self._connections = Connections(
            self._loop, config.owner, _hello(config, walls, preloaded), self._handle, transfers.unstage_all
        )
        self._kernels = KernelRequests(config, walls, self._sessions, self._loop, self._connections.broadcast)
        branches = BranchRequests(config, self._sessions, self._loop, self._kernels)
        self._supervisor = Supervisor(config, self._sessions, self._loop, self._kernels.stop)
        self._operations: dict[str, Callable[[dict[str, Any], Reply], None]] = {
            "spawn": self._spawn,
            "signal": self._kernels.signal,
            "kill": self._kernels.kill,
            "clear": self._kernels.clear,
            "list": self._kernels.list,
            "checkpoint": branches.checkpoint,
            "rollback": branches.rollback,
            "branch": branches.branch,
            "drop": branches.drop,
            "usage": self._kernels.usage,
            "memory": self._kernels.memory,
            "hold": self._hold,
            "ping": self._ping,
            "stage": transfers.stage,
            "unstage": transfers.unstage,
            "receive": transfers.receive,
            "send": transfers.send,
            "describe": transfers.describe,
            "list_files": transfers.list_files,
            "edit": transfers.edit,
            "packages": transfers.packages,
            "environment": transfers.environment,
            "install": transfers.install,
            "shutdown": self._shutdown,
        }

    def run(self) -> None:
        """Makes the folders and the control socket, then serves."""
        identity.adopt_orphans()  # such as forks of kernels
        self._make_folders()
        self._sessions.prepare()
        if self._config.proxy_port:
            self._relay()
        self._connections.listen(self._make_listener())
        try:
            self._loop.run(self._next_deadline, self._on_deadline)
        except children.Begin:
            raise
        except BaseException:
            self._end()
            raise
        self._end()

    def _end(self) -> None:
        self._kernels.end_all()
        with self._sessions.as_host(), suppress(OSError):
            os.unlink(f"{self._config.run_dir}/control")

    def _relay(self) -> None:
        """Starts the way to the proxy, again where it ends, unless that is at once."""

        def body(report: children.Report) -> None:
            report.close()
            if self._sessions.isolated:
                identity.become(self._config.host_uid)  # to whom the run folder belongs
            relay.run(self._config.proxy_port, f"{self._config.run_dir}/proxy")

        def again(_status: int) -> None:
            if time.monotonic() - begun > RELAY_SECONDS:
                self._relay()

        begun = time.monotonic()
        pid, inbox = children.fork(body)
        self._loop.start(Child(pid, inbox, lambda _report: None, again))

    def _make_folders(self) -> None:
        for folder, mode in (
            (self._config.sessions_dir, 0o711),
            (self._config.private_dir, 0o711),
            (self._config.shared_dir, 0o755),
            (self._config.staging_dir, 0o700),
            (self._config.waiting_dir, 0o711),
            (self._config.shared_staging_dir, 0o700),
        ):
            os.makedirs(folder, exist_ok=True)
            os.chmod(folder, mode)
        if self._config.shared_volume:
            os.symlink(self._config.shared_dir, f"{self._config.workspace_dir}/shared")

    def _make_listener(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        path = f"{self._config.run_dir}/control"
        with self._sessions.as_host():
            # Bound elsewhere first: the server must never see a socket that does not listen yet.
            listener.bind(f"{path}.new")
            listener.listen(8)
            os.rename(f"{path}.new", path)
        return listener

    def _end_of_lease(self) -> float | None:
        since = self._connections.unheld_since
        return None if since is None else since + self._lease_seconds

    def _next_deadline(self) -> float | None:
        deadlines = [self._end_of_lease(), self._supervisor.next_tick(), self._leisure.next_step]
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def _on_deadline(self) -> None:
        self._supervisor.tick()
        self._leisure.step()
        while self._due:
            with guarded():
                self._due.popleft()()
        end = self._end_of_lease()
        if end is not None and end <= time.monotonic():
            self._loop.stop()

    def _spawn(self, request: dict[str, Any], reply: Reply) -> None:
        def spawn() -> None:
            if not self._kernels.wait_settled(str(request.get("session")), lambda: self._due.append(spawn)):
                self._answer(self._kernels.spawn, request, reply)

        # From the loop itself: how deep code of a session may recurse depends on where its process was forked.
        if request.get("warm"):  # a spare one, for which nobody waits, is forked when it costs least
            self._leisure.call_after(lambda: self._due.extend((spawn, self._sessions.prepare)))
        else:
            self._due += (spawn, self._sessions.prepare)
            self._leisure.begin()

    def _handle(self, request: dict[str, Any], reply: Reply) -> None:
        self._leisure.postpone()
        operation = self._operations.get(str(request.get("op")))
        if operation is None:
            reply({"error": {"code": "refused", "message": f"unknown operation {request.get('op')!r}"}})
        else:
            self._answer(operation, request, reply)

    def _answer(
        self, operation: Callable[[dict[str, Any], Reply], None], request: dict[str, Any], reply: Reply
    ) -> None:
        try:
            operation(request, reply)
        except Refused as refused:
            reply({"error": {"code": "refused", "message": str(refused)}})
        except Exception as error:  # a bad request must not end the process that all kernels hang on
            reply({"error": {"code": "failed", "message": f"{type(error).__name__}: {error}"}})

    def _hold(self, request: dict[str, Any], reply: Reply) -> None:
        self._lease_seconds = float(request["lease_seconds"])
        reply({"result": {}})

    def _ping(self, _request: dict[str, Any], reply: Reply) -> None:
        reply({"result": {}})

    def _shutdown(self, _request: dict[str, Any], reply: Reply) -> None:
        reply({"result": {}})
        self._loop.stop()


def _improvements() -> Iterator[None]:
    """What makes later kernels start faster and take less memory."""
    warm_up()
    yield
    make_shell_ahead()
    yield
    yield from immortalize()


def _hello(config: Config, walls: Walls, preloaded: list[str]) -> dict[str, Any]:
    return {
        "event": "hello",
        "protocol": PROTOCOL,
        "python": ".".join(map(str, sys.version_info[:3])),
        "preloaded": preloaded,
        "sessions_dir": config.sessions_dir,
        "isolation": config.isolation,
        "capabilities": identity.effective_capabilities(),
        "layers": layers(walls),
        "branches": True,
        "installs": True,  # whoever takes over a container of an earlier version has to know
    }


# What a kernel has of the process that it was forked from. It is never freed: with it, descriptors would be closed whose
# numbers are others' by then.
_PAST: list[Any] = []


def main() -> None:
    """Entry point of the kernel host, and, in each process that it forks for a kernel, of that."""
    if sys.argv[1:2] == ["--rehearse"]:
        rehearse(sys.argv[2])
    elif kernel := _serve():
        kernel()


def _serve() -> Callable[[], None] | None:
    """Serves until the end; returns in a process that is to become a kernel, with what it has to do."""
    config = Config.from_environment()
    if config.isolation == "uid" and not identity.in_own_pid_namespace():
        sys.exit("kernel_host: refused: isolation by UID needs a container with a PID namespace and an init of its own")
    gc.disable()  # to look for garbage among what is imported takes a tenth of the time
    preloaded = preload(config.preload)
    gc.enable()
    # The fork happens with native threads around (OpenBLAS restarts its own); Python >= 3.12 warns about any.
    warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork.*", category=DeprecationWarning)
    gc.collect()
    gc.freeze()  # keeps the collector from touching, and so copying, the pages that all kernels share
    server = Server(config, preloaded)
    try:
        server.run()
    except children.Begin as begin:
        _PAST.append(server)
        return begin.run
    return None
