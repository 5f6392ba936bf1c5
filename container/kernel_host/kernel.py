"""One session's kernel: an IPKernelApp whose sockets are bound before privileges are dropped.

Runs in a forked child of the kernel host and never returns. The sockets lie in the run folder, which belongs to
the server's user and which the session cannot enter: it cannot reach another session's sockets or plant a link.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import random
import signal
import site
import socket
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from types import FrameType, SimpleNamespace
from typing import Any, cast

import zmq
from ipykernel import ipkernel
from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelapp import IPKernelApp
from IPython.core.application import ENV_CONFIG_DIRS, SYSTEM_CONFIG_DIRS
from IPython.core.events import EventManager
from IPython.core.profiledir import ProfileDir
from traitlets.config import Config, Configurable

from . import identity
from .branching import reap, serve
from .changes import ChangeReport
from .lines import Line
from .look import LOOK_SECONDS, Look
from .record import Record
from .shell import SessionShell
from .streams import SessionOutStream
from .variables import Variables
from .walls import Walls

# Names of the sockets: jupyter_client's ipc transport appends "-<port>" to `ip`.
PORTS = {"shell_port": 1, "iopub_port": 2, "stdin_port": 3, "control_port": 4, "hb_port": 5}
BOUND = [port for name, port in PORTS.items() if name != "hb_port"]
BACKLOG = 100  # as libzmq's
MAX_QUEUED_MESSAGES = 32  # for a reader; what is queued when a cell is interrupted is read after its end
INTERRUPT_AGAIN_SECONDS = 0.02
# How long a thread may keep the interpreter while others want it. An interrupt, a look inside and output beside a cell
# that computes have to get it dozens of times; Python's 5 ms add up.
SWITCH_SECONDS = 0.001
SCRIPTS = sysconfig.get_path("scripts")
IMAGE_HAS_CONFIG = any(map(os.path.exists, (*SYSTEM_CONFIG_DIRS, *ENV_CONFIG_DIRS)))
CA_BUNDLE = "/opt/kernel_server/ca-bundle.crt"  # if the image was built with one

Message = dict[str, Any]


@dataclass(frozen=True)
class KernelLaunch:
    """What a child needs to become a session's kernel; `uid` and `host_uid` are None without isolation.

    With `warm` it goes through what a first cell needs before it serves. `shared` is the shared folder. `mark` is that
    of the session's processes, and `later` are folders that may become those of its branches: see `families`.
    """

    session_id: str
    key: bytes
    run_dir: str
    workspace: str
    private: str
    uid: int | None
    host_uid: int | None
    limits: dict[str, int]
    environment: dict[str, str]
    warm: bool = False
    shared: str = ""
    walls: Walls | None = None
    mark: int = 0
    later: tuple[str, ...] = ()


class SessionKernel(IPythonKernel):
    """ipykernel's kernel without the debugger, and with interrupts that reach only the session's own code.

    ipykernel raises KeyboardInterrupt wherever the signal finds it while it handles a request; in its own code the
    reply or `idle` is lost then, and the client waits for ever.
    """

    shell_class = SessionShell
    _execute_sleep = 0.0  # ipykernel sleeps before each reply, for output that its streams may not have sent; ours have

    def __init__(self, **kwargs: Any) -> None:
        # ipykernel looks up the file of every module, for its debugger. That takes 5 ms, most of it for copying pages
        # that were shared; so it sees none.
        real = vars(ipkernel)["sys"]
        vars(ipkernel)["sys"] = SimpleNamespace(**{**vars(sys), "modules": {}})
        try:
            super().__init__(**kwargs)
        finally:
            vars(ipkernel)["sys"] = real
        self.control_handlers["list_variables_request"] = self.list_variables_request
        self.control_handlers["replay_request"] = self.replay_request
        self._workspace = os.getcwd()
        self._variables = Variables(self.shell)
        self._changes: ChangeReport | None = None
        self._record = Record(self.iopub_thread)
        self._requests = 0
        self._noticed = 0  # signals of which Python has told us

    def _send_interrupt_children(self) -> None:
        """Sends SIGINT, and again if nobody notices: one that comes right before a system call does not end it."""
        noticed, request = self._noticed, self._requests
        super()._send_interrupt_children()

        def look() -> None:
            handler = signal.getsignal(signal.SIGINT)
            if self._noticed == noticed and getattr(handler, "__module__", "") == __name__:  # not the session's own
                self._interrupt_again(request)

        self.control_thread.io_loop.call_later(INTERRUPT_AGAIN_SECONDS, look)

    def pre_handler_hook(self) -> None:
        """Sets the handler of SIGINT for the length of a request."""
        self._requests += 1
        reap()
        self.saved_sigint_handler = signal.signal(signal.SIGINT, self._interrupt)

    def post_handler_hook(self) -> None:
        """The request is done; what was to interrupt it does not interrupt the next one."""
        super().post_handler_hook()
        self._requests += 1

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        self._noticed += 1
        if self._in_session_code(frame):
            raise KeyboardInterrupt
        # Perhaps the cell is about to begin.
        control = self.control_thread.io_loop
        control.add_callback(control.call_later, INTERRUPT_AGAIN_SECONDS, self._interrupt_again, self._requests)

    def _interrupt_again(self, request: int) -> None:
        if self._requests == request:
            os.kill(os.getpid(), signal.SIGINT)

    @contextmanager
    def _cancel_on_sigint(self, future: asyncio.Task[Any]) -> Iterator[None]:
        """For a cell that awaits: ipykernel's own does not wake the event loop, which may be asleep for long.

        Where the cell itself is running, or about to, and not a task that it has made, it gets its KeyboardInterrupt.
        """
        loop = asyncio.get_running_loop()

        def interrupt(signum: int, frame: FrameType | None) -> None:
            if inspect.getcoroutinestate(cast("Any", future.get_coro())) == inspect.CORO_SUSPENDED:
                self._noticed += 1
                loop.call_soon_threadsafe(future.cancel)
            else:
                self._interrupt(signum, frame)

        before = signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _in_session_code(self, frame: FrameType | None) -> bool:
        """True if a frame of a cell, or of what runs right after one (such as drawing its figures), is on the stack."""
        namespace = self.shell.user_global_ns if self.shell else None
        return not _asks_whether_a_thread_lives(frame) and any(
            below.f_globals is namespace or (below.f_back and below.f_back.f_code is EventManager.trigger.__code__)
            for below in _stack(frame)
        )

    def init_metadata(self, parent: Message) -> Message:
        """A cell is about to run."""
        if self._changes is None:
            assert self.shell is not None
            self._changes = ChangeReport(self._variables, self.shell.pictures, self._workspace)
        self._changes.begin()
        if not parent.get("content", {}).get("silent", True):
            self._record.begin(parent)
        return dict(super().init_metadata(parent))

    def finish_metadata(self, parent: Message, metadata: Message, reply_content: Message) -> Message:
        """Adds what the cell changed, under `kernel_server`; the reply goes out in any case."""
        metadata = dict(super().finish_metadata(parent, metadata, reply_content))
        if self._changes is not None:
            with suppress(Exception):  # objects of every kind are looked at
                metadata["kernel_server"] = self._changes.end()
        self._record.end(parent, reply_content, metadata)
        return metadata

    async def list_variables_request(self, stream: Any, ident: Any, parent: Message) -> None:
        """Answers from another thread, so that interrupts are not held up; see `look`."""
        loop, session = asyncio.get_running_loop(), self.session
        assert session is not None

        def answer(content: Message) -> None:
            loop.call_soon_threadsafe(session.send, stream, "list_variables_reply", content, parent, ident)

        look = Look(self.shell, self._variables, str(parent["content"].get("expression", "")), answer)
        look.start()
        loop.call_later(LOOK_SECONDS, look.give_up)

    def _input_request(self, prompt: str, ident: Any, parent: Any, password: bool = False) -> str:
        with self._record.asking(prompt, password):
            return str(super()._input_request(prompt, ident, parent, password))

    async def replay_request(self, stream: Any, ident: Any, parent: Message) -> None:
        """Tells how it stands with the last cell; with `outputs`, also sends again what was put out since it began."""
        session = self.session
        assert session is not None
        if parent["content"].get("outputs"):
            messages = (session.msg("replay", {"end": end}, parent=parent["header"]) for end in (False, True))
            self._record.send_again(*([b"kernel_server.replay", *session.serialize(message)] for message in messages))
        session.send(stream, "replay_reply", self._record.describe(), parent, ident)

    async def poll_stopped_queue(self) -> None:
        """There is no debugger whose queue could be polled."""

    @property
    def turn(self) -> asyncio.Lock:
        """Held while it is at work on a request."""
        return self._main_asyncio_lock

    def revive(self, workspace: str, **channels: Any) -> None:
        """Goes on in a process that was forked from its own: see `branching`.

        Args:
            channels: what takes the place of sockets, streams and threads, by the names of attributes.
        """
        shell = self.shell
        assert isinstance(shell, SessionShell)
        for name, channel in channels.items():
            setattr(self, name, channel)
        self._main_asyncio_lock = asyncio.Lock()
        self._aborting = False
        for stream in (self._stdout, self._stderr):
            assert isinstance(stream, SessionOutStream)
            stream.revive(self.iopub_thread)
        displayhook, publisher = cast("Any", shell.displayhook), cast("Any", shell.display_pub)
        displayhook.pub_socket = publisher.pub_socket = self.iopub_socket
        shell.pictures.workspace = self._workspace = workspace
        self._changes = None
        self._record = Record(self.iopub_thread)


def _asks_whether_a_thread_lives(frame: FrameType | None) -> bool:
    """Until 3.12, Python takes a thread for dead if an exception comes just then; IOPub's, and messages get mixed up."""
    asking = getattr(threading.Thread, "_wait_for_tstate_lock", None)
    code = asking.__code__ if asking else None
    return frame is not None and frame.f_code is code and not frame.f_locals["block"]


def _stack(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


class _BareProfileDir(ProfileDir):
    def check_dirs(self) -> None:
        """Nothing is kept in a profile here."""


class SessionKernelApp(IPKernelApp):
    """IPKernelApp in two steps: its channels, on sockets that the server's user has bound, then all else."""

    kernel_class = SessionKernel
    outstream_class = f"{__name__}.SessionOutStream"

    def open_channels(self, run_dir: str, listeners: dict[int, int]) -> None:
        """Creates the sockets of the shell, iopub, stdin and control channels.

        Args:
            listeners: descriptors of sockets that listen there, by port: see `listen`.
        """
        self.ip = f"{run_dir}/s"
        self._listeners = listeners
        super().init_sockets()

    def _bind_socket(self, s: zmq.Socket[Any], port: int) -> int:
        s.setsockopt(zmq.USE_FD, self._listeners[port])
        # A slow reader slows the kernel down; without it output is lost, `idle` among it (zmq_setsockopt(3)).
        if s.type in (zmq.XPUB, zmq.PUB):  # ipykernel 6 has a PUB socket
            s.setsockopt(zmq.XPUB_NODROP, 1)
            s.setsockopt(zmq.SNDHWM, MAX_QUEUED_MESSAGES)
        return int(super()._bind_socket(s, port))

    def init_control(self, context: zmq.Context[Any]) -> None:
        """Without the debugger's connection to the shell channel: a late one would be taken for the session's."""
        shell = self.shell_socket
        self.shell_socket = SimpleNamespace(getsockopt=lambda _option: b"")  # has no endpoint to connect to
        super().init_control(context)
        self.shell_socket = shell

    def init_sockets(self) -> None:
        """Done in `open_channels`."""

    def init_heartbeat(self) -> None:
        """There is none: the kernel host is the kernel's parent and reports its end. It would cost a tenth of a start."""

    def parse_command_line(self, argv: object = None) -> None:
        """There is none; building its parser takes 10 ms."""

    def init_profile_dir(self) -> None:
        """Without the folders and the README that IPython puts into a new profile."""
        location = f"{os.environ['IPYTHONDIR']}/profile_default"
        # An earlier kernel of the session may have put something there.
        self._configured = IMAGE_HAS_CONFIG or os.path.exists(location)
        self.profile_dir = _BareProfileDir(location=location, parent=self)
        self.config_file_paths.append(location)

    def load_config_file(self, *args: Any, **kwargs: Any) -> None:
        """A new session has none, unless the image brings one."""
        if self._configured:
            super().load_config_file(*args, **kwargs)

    def _run_startup_files(self) -> None:
        if self._configured:
            super()._run_startup_files()

    def init_connection_file(self) -> None:
        """The server knows the connection; there is no file with the key for a session to find."""

    def write_connection_file(self, **kwargs: Any) -> None:
        """See `init_connection_file`."""

    def init_poller(self) -> None:
        """The kernel host watches its children; a kernel need not watch its parent."""

    def log_connection_info(self) -> None:
        """Nobody reads a kernel's terminal."""
        self._ports = {name.removesuffix("_port"): port for name, port in PORTS.items()}


def listen(run_dir: str) -> dict[int, int]:
    """Descriptors of listening sockets in the run folder, by port; for whoever may write it.

    Raises:
        OSError: they cannot be made; none is left open.
    """
    with ExitStack() as made:
        listeners = {port: made.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) for port in BOUND}
        for port, listener in listeners.items():
            listener.bind(f"{run_dir}/s-{port}")
            listener.listen(BACKLOG)
            listener.setblocking(False)
        return {port: listener.detach() for port, listener in listeners.items()}  # closing them does nothing then


def run(
    launch: KernelLaunch,
    bound: Callable[[], None],
    line: Line | None = None,
    started: Callable[[SessionKernelApp], None] | None = None,
) -> None:
    """Becomes the kernel of `launch` and serves until it is told to exit.

    Args:
        bound: called when its sockets are bound: requests wait there until it has become the session, and serves.
        line: on which the kernel host asks for checkpoints.
        started: called when it is about to serve.
    """
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _silence_standard_streams()
    app = make_app()
    app.session.key = launch.key
    app.session.copy_threshold = sys.maxsize  # for messages without a copy pyzmq has a thread, which no fork would have
    if launch.uid is not None:
        identity.yield_to_host()
    with nullcontext() if launch.host_uid is None else identity.acting_as(launch.host_uid):
        listeners = listen(launch.run_dir)
    if launch.mark:  # before system calls are filtered: it cannot be changed afterwards
        identity.set_mark(launch.mark)
    if launch.walls is not None:  # before there is a second thread, which they would not restrict
        launch.walls.raise_around([launch.workspace, launch.private, *launch.later], launch.shared)
    app.open_channels(launch.run_dir, listeners)
    bound()
    identity.set_limits(launch.limits)
    if launch.uid is None:
        identity.die_with_parent()
    else:
        identity.become(launch.uid)
        identity.make_dumpable()
    os.umask(0o022)
    os.chdir(launch.workspace)
    _set_environment(launch)
    _forget_shared_state()
    app.initialize([])
    if launch.warm:
        _warm_up(app)
    sys.setswitchinterval(SWITCH_SECONDS)
    # Opens this thread's way to IOPub, for which a cell may leave no descriptor.
    app.iopub_thread.schedule(lambda: None)
    if started:
        started(app)
    serve(app, launch, line)


def _warm_up(app: SessionKernelApp) -> None:
    """Goes the way of a first cell, so that this kernel's own copies of what that changes are there; leaves no trace."""
    with suppress(Exception):  # a kernel that is not warm is only slower
        shell: Any = app.shell
        shell.run_cell("None", store_history=False, silent=True)
        app.kernel.init_metadata({})
        if pandas := sys.modules.get("pandas"):
            shell.display_formatter.format(pandas.DataFrame({"a": [1.5, None], "b": ["x", "y"]}))


def _load_config(self: Configurable, cfg: Config, *args: Any, **kwargs: Any) -> None:
    if cfg:  # each of the forty objects of a shell would look through an empty one, with those of its parents
        _load_some_config(self, cfg, *args, **kwargs)


_load_some_config = Configurable._load_config  # noqa: SLF001
Configurable._load_config = _load_config  # type: ignore[method-assign]  # noqa: SLF001


def make_app() -> SessionKernelApp:
    """The app with what is the same for every session; made before the fork."""
    app = SessionKernelApp.instance(transport="ipc", exec_PYTHONSTARTUP=False, **PORTS)
    app.log.setLevel(app.log_level)  # traitlets has records made for every request, which its handler throws away
    return app


def _silence_standard_streams() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)


def _set_environment(launch: KernelLaunch) -> None:
    temporary = f"{launch.private}/tmp"  # noqa: S108 - closed to other sessions
    os.makedirs(temporary, mode=0o700, exist_ok=True)
    home = launch.workspace
    os.environ.update(
        HOME=home,
        TMPDIR=temporary,
        IPYTHONDIR=f"{launch.private}/ipython",
        JUPYTER_RUNTIME_DIR=f"{launch.private}/jupyter",
        XDG_CACHE_HOME=f"{launch.private}/cache",
        XDG_CONFIG_HOME=f"{launch.private}/config",
        PATH=os.pathsep.join([SCRIPTS, os.environ.get("PATH", os.defpath)]),
        MPLBACKEND="module://matplotlib_inline.backend_inline",
        PYTHONUNBUFFERED="1",
    )
    os.environ.pop("MPLCONFIGDIR", None)
    if os.path.exists(CA_BUNDLE):
        os.environ.update(dict.fromkeys(("PIP_CERT", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"), CA_BUNDLE))
    os.environ.update(launch.environment)
    # What `pip install --user` of this session installs (HOME was another one when `site` ran).
    site.USER_BASE, site.USER_SITE = f"{home}/.local", identity.user_site(home)
    identity.add_user_site(site.USER_SITE)


def _forget_shared_state() -> None:
    """Undoes what a fork would otherwise give to every session alike."""
    random.seed()
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
    if tempfile := sys.modules.get("tempfile"):
        vars(tempfile)["tempdir"] = None
