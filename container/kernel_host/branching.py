"""How one kernel becomes two: between two cells it is forked. The child stands still, as a checkpoint, with all that the
kernel had in memory, of which nothing is copied until one of the two changes it; forks of the checkpoint become kernels.

A fork has one thread, and shares its descriptors: what would not survive that is named and refused: `obstacles`.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import random
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from zmq.eventloop.zmqstream import ZMQStream

from . import descriptors, identity, naming, obstacles, pools, snapshots
from .beneath import Refused
from .lines import Line, Received, close_all, write_line
from .restoring import Restored
from .text import sendable

if TYPE_CHECKING:
    from .kernel import KernelLaunch, SessionKernelApp

REPARENT_SECONDS = 0.0002
LOCK_SECONDS, LOCK_POLL_SECONDS = 20.0, 0.002
TURN_SECONDS = 1.0  # the server sends nothing meanwhile; the end of what it has sent before may be on its way
STORE = "checkpoints"  # in the private folder of a session
# As much as tools show. A message of at most PIPE_BUF bytes is never mixed with that of another process: pipe(7).
MAX_LISTED, MAX_PATH, MAX_REASON, MAX_REASONS_BYTES = 12, 200, 500, 3_500
OLD = "Checkpoints need Python 3.11 or newer in the image."
TOO_DEEP = (
    "This session is a branch of a branch, and so on, as often as Linux can put walls around one (landlock(7)). It can go "
    "back to its checkpoints; branch from a session that it comes from."
)
BUSY = "A cell is running; wait for its end, or interrupt it."


@dataclass
class Member:
    """A kernel that can be forked: who it is, and what belongs to it itself."""

    launch: KernelLaunch
    line: Line
    own: obstacles.Own
    asked: list[Received] = field(default_factory=list)

    @property
    def store(self) -> str:
        """Where the files of its checkpoints are."""
        return f"{self.launch.private}/{STORE}"


# What a fork has from the process that it was forked from, and must not touch: nothing in it is ever freed.
_PAST: list[Any] = []
_MIDDLES: list[int] = []  # processes that have forked a child for us, and end


def serve(app: SessionKernelApp, launch: KernelLaunch, line: Line | None) -> None:
    """Serves until the kernel is told to exit; whenever the kernel host asks for a checkpoint, forks."""
    app.kernel.start()
    if line is None:
        _run(app)
        return
    member = Member(launch, line, obstacles.Own.here(app.kernel.io_loop.asyncio_loop))
    while True:
        _run(app, member)
        if not member.asked:
            return
        become = _checkpoint(app, member, member.asked.pop())
        if become is not None:  # we are the fork of a checkpoint
            member = _revive(app, member, become)


def _run(app: SessionKernelApp, member: Member | None = None) -> None:
    """Serves requests until the kernel exits, or a checkpoint is asked for."""
    io_loop: Any = app.kernel.io_loop
    app.io_loop, loop = io_loop, io_loop.asyncio_loop
    waiting: set[asyncio.Task[None]] = set()

    def ask() -> None:
        assert member is not None
        try:
            received = member.line.receive()
        except (OSError, ValueError):
            return
        if received is None:  # the kernel host has ended, and we shall in a moment
            loop.remove_reader(member.line.fileno())
        elif getattr(app, "shell_channel_thread", None) is None:  # ipykernel 6
            _refuse(received, [OLD])
        else:
            waiting.add(loop.create_task(stop(member, received)))

    async def stop(member: Member, received: Received) -> None:
        try:
            await asyncio.wait_for(app.kernel.turn.acquire(), TURN_SECONDS)
        except asyncio.TimeoutError:
            _refuse(received, [BUSY])
            return
        member.asked.append(received)
        app.io_loop.stop()
        app.kernel.turn.release()

    if member is not None:
        loop.add_reader(member.line.fileno(), ask)
    try:
        with suppress(KeyboardInterrupt):  # as IPKernelApp.start
            app.io_loop.start()
    finally:
        if member is not None and member.line.fileno() >= 0:
            loop.remove_reader(member.line.fileno())


def _refuse(asked: Received, reasons: list[str]) -> None:
    """Answers in place of a checkpoint."""
    _answer(asked, {"refused": _short(reasons)})
    close_all(asked.descriptors)


def _answer(asked: Received, message: dict[str, Any]) -> None:
    for writer in asked.descriptors[1:]:
        with suppress(OSError):  # nobody waits for it any more
            write_line(writer, message)


def _short(reasons: list[str]) -> list[str]:
    """As many as one message holds, the first in any case."""
    kept = [reason[:MAX_REASON] for reason in reasons[:MAX_LISTED]]
    while len(kept) > 1 and len(json.dumps(kept)) > MAX_REASONS_BYTES:
        kept.pop()
    while len(json.dumps(kept)) > MAX_REASONS_BYTES:
        kept[0] = kept[0][: len(kept[0]) // 2]
    return kept


def _checkpoint(app: SessionKernelApp, member: Member, asked: Received) -> Received | None:
    """Forks a checkpoint, and returns None; in a fork of that, what it is to become."""
    launch = member.launch
    sys.stdout.flush()
    sys.stderr.flush()
    answers = {(status.st_dev, status.st_ino) for status in map(os.fstat, asked.descriptors)}
    own = replace(member.own, kept=member.own.kept._replace(descriptors=member.own.kept.descriptors | answers))
    found = obstacles.find(own, launch.run_dir, launch.workspace, launch.private, app.kernel.io_loop.asyncio_loop)
    if found:
        _refuse(asked, found)
        return None
    unpaused = pools.quieten(member.own.native)
    try:
        in_kernel = not fork_apart()
    except OSError as error:
        _refuse(asked, [f"{error.strerror or error}: the session has too many processes or threads."])
        return None
    if in_kernel:
        threads = pools.native_threads(member.own.native, unpaused)
        _answer(asked, {"refused": _short(threads)} if threads else {"forked": []})
        close_all(asked.descriptors)
        return None
    _keep_apart(member)
    return _stand_still(member, asked)


def fork_apart() -> bool:
    """Forks a child that leads a process group, and that is the kernel host's as soon as it is `settled`; True in it.

    It is the child of a child, so that code of the session that waits for its own finds none that it does not know.
    Its random numbers go on as ours would have: Python seeds them anew in a fork.

    Raises:
        OSError: no process is to be had.
    """
    reap()
    state = random.getstate()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, about which we know
        middle = os.fork()
    if middle:
        _MIDDLES.append(middle)
        return False
    try:
        _MIDDLES.clear()
        _MIDDLES.append(os.getpid())  # the child's parent
        if os.fork():
            os._exit(0)
        os.setsid()
        random.setstate(state)
    except BaseException:
        os._exit(1)  # there must not be two of us
    return True


def settled() -> None:
    """In a child of `fork_apart`: waits until the process in the middle has ended, so that the kernel host is its parent."""
    parent = _MIDDLES.pop()
    while os.getppid() == parent:
        time.sleep(REPARENT_SECONDS)


def reap() -> None:
    """Code of the session that waits for its children must not find those of ours."""
    while _MIDDLES:
        os.waitpid(_MIDDLES.pop(), 0)


def _keep_apart(member: Member) -> None:
    """What is open in both must not be what both use; to be done before the kernel goes on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The kernel goes on reading and writing where it was: places in files are common to a process and its fork.
    descriptors.reopen({folder: folder for folder in (member.launch.workspace, member.launch.private)})


def _leave(member: Member, line: Line) -> None:
    """Lets go of what belongs to the kernel that we were forked from: its server must see that close with it."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{descriptor}")
            status = os.fstat(descriptor)
            its_own = target.startswith("pipe:") and (status.st_dev, status.st_ino) in member.own.kept.descriptors
            if descriptor != line.fileno() and (its_own or target.startswith(("socket:", "anon_inode:"))):
                os.close(descriptor)


def _stand_still(member: Member, asked: Received) -> Received:
    """Keeps memory and files as they are; returns only in a fork that is to become a kernel."""
    launch, name = member.launch, str(asked.message["checkpoint"])
    line = Line.of(asked.descriptors[0])
    try:
        os.makedirs(member.store, mode=0o700, exist_ok=True)
        with _locked(member.store):
            limit = int(asked.message["limit"])
            taken = snapshots.take(launch.workspace, member.store, name, limit, launch.private)
        settled()
        ready = {"files": taken.files, "bytes_copied": taken.bytes_copied}
        write_line(asked.descriptors[1], {"ready": ready, "pid": os.getpid()})
        os.close(asked.descriptors.pop())
        _leave(member, line)  # beside the cell that follows
        while (received := line.receive()) is not None:
            with suppress(OSError):  # the kernel host is told by the end of what it waits at
                if fork_apart():
                    line.close()
                    _begin(received)
                    return received
            close_all(received.descriptors)
    except Refused as refused:
        _answer(asked, {"refused": _short([str(refused)])})
    except BaseException as error:
        _answer(asked, {"refused": _short([f"{type(error).__name__}: {error}"])})
    with suppress(BaseException), _locked(member.store):
        snapshots.drop(member.store, name)
    os._exit(0)


@contextmanager
def _locked(store: str) -> Iterator[None]:
    """One at a time: a checkpoint that goes removes its files while the next one is made.

    Raises:
        Refused: another one takes too long.
    """
    descriptor = os.open(f"{store}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    try:
        until = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise Refused("the files of another checkpoint are being copied or removed; try again") from None
                time.sleep(LOCK_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


def _begin(received: Received) -> None:
    """In a fork of a checkpoint: says who we are, and waits until the kernel host has marked us as the session's."""
    *_, line, report = received.descriptors
    try:
        settled()
        write_line(report, {"begun": True, "pid": os.getpid()})
        if Line.of(os.dup(line)).receive() is None:
            os._exit(1)
    except BaseException:
        os._exit(1)


def _revive(app: SessionKernelApp, member: Member, become: Received) -> Member:
    """Makes a fork of a checkpoint the kernel that the message says, and reports that."""
    from .kernel import BOUND

    *listeners, secrets, line, report = become.descriptors
    _PAST.append(member)
    state = random.getstate()
    try:
        launch, result = _move(member, become.message, naming.read_secrets(secrets))
        _open_channels(app, launch, dict(zip(BOUND, listeners, strict=True)))
    except BaseException as error:
        text = str(error) if isinstance(error, Refused) else "".join(traceback.format_exception_only(error)).strip()
        with suppress(OSError):
            write_line(report, {"error": {"code": "failed", "message": text[:2_000]}})
        os._exit(1)
    random.setstate(state)  # sockets have used some
    write_line(report, {"result": result})
    os.close(report)
    return Member(launch, Line.of(line), obstacles.Own.here(app.kernel.io_loop.asyncio_loop))


def _move(member: Member, message: dict[str, Any], own: naming.Secrets) -> tuple[KernelLaunch, dict[str, Any]]:
    """Brings files, walls and folders into the state of the session that we become."""
    old, name = member.launch, str(message["checkpoint"])
    launch = replace(
        old,
        session_id=own.session_id,
        key=own.key,
        run_dir=str(message["run_dir"]),
        workspace=f"{os.path.dirname(old.workspace)}/{own.session_id}",
        private=str(message["private"]),
        later=tuple(message["later"]),
    )
    folders = {old.workspace: launch.workspace, old.private: launch.private}
    working = _working_directory()
    result: dict[str, Any] = {}
    if not message["branch"]:
        with _locked(member.store):
            result["files"] = _told(snapshots.restore(old.workspace, member.store, name))
    else:
        store = f"{launch.private}/{STORE}"
        os.makedirs(store, mode=0o700)
        os.makedirs(f"{launch.private}/tmp", mode=0o700)  # noqa: S108 - closed to other sessions
        with _locked(member.store):
            snapshots.clone(member.store, name, launch.workspace, store)
        if launch.walls is not None:
            _narrow(launch)
    if launch.uid is None:
        identity.die_with_parent()
    result["lost"] = [_shown(path) for path in descriptors.reopen(folders)[:MAX_LISTED]]
    _change_folders(folders, working, launch.workspace)
    return launch, result


def _narrow(launch: KernelLaunch) -> None:
    assert launch.walls is not None
    try:
        launch.walls.narrow([launch.workspace, launch.private, *launch.later], launch.shared)
    except OSError as error:
        if error.errno != errno.E2BIG:
            raise
        raise Refused(TOO_DEEP) from error


def _told(restored: Restored) -> dict[str, Any]:
    kinds = restored._asdict()
    return {
        **{kind: [_shown(path) for path in paths.first[:MAX_LISTED]] for kind, paths in kinds.items()},
        "count": sum(paths.count for paths in kinds.values()),
    }


def _shown(path: str) -> str:
    """A path that a message can carry."""
    return sendable(path)[:MAX_PATH]


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError:
        return ""


def _change_folders(folders: dict[str, str], working: str, workspace: str) -> None:
    """Goes to where the working directory is now, and changes all paths that Python and its programs look up."""

    def moved(path: str) -> str:
        for old, new in folders.items():
            path = path.replace(old, new)
        return path

    try:
        os.chdir(moved(working))
    except OSError:
        os.chdir(workspace)
    for name, value in os.environ.items():
        if moved(value) != value:
            os.environ[name] = moved(value)
    sys.path[:] = [moved(path) for path in sys.path]
    if tempfile := sys.modules.get("tempfile"):
        vars(tempfile)["tempdir"] = None


def _open_channels(app: SessionKernelApp, launch: KernelLaunch, listeners: dict[int, int]) -> None:
    """Gives the kernel sockets, threads and an event loop in place of those that did not come through the fork."""
    kernel = app.kernel
    _PAST.append([vars(kernel).copy(), vars(app).copy(), app._trait_values.copy(), kernel._trait_values.copy()])  # noqa: SLF001
    _PAST.append([asyncio.get_event_loop_policy().get_event_loop(), app.io_loop])
    asyncio.set_event_loop(asyncio.new_event_loop())
    app.session.key = app.config.Session.key = launch.key
    app.session.pid = os.getpid()
    app.context = None
    app.open_channels(launch.run_dir, listeners)
    shell_stream = ZMQStream(app.shell_socket, app.shell_channel_thread.io_loop)
    app.shell_channel_thread.shell_stream = shell_stream
    kernel.revive(
        workspace=launch.workspace,
        shell_stream=shell_stream,
        control_stream=ZMQStream(app.control_socket, app.control_thread.io_loop),
        debugpy_stream=ZMQStream(app.debugpy_socket, app.control_thread.io_loop),
        debug_shell_socket=app.debug_shell_socket,
        control_thread=app.control_thread,
        shell_channel_thread=app.shell_channel_thread,
        iopub_thread=app.iopub_thread,
        iopub_socket=app.iopub_socket,
        stdin_socket=app.stdin_socket,
    )
    app.displayhook.pub_socket = app.iopub_socket
    app.control_thread.start()
    app.shell_channel_thread.start()
    kernel.start()
