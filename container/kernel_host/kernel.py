"""One session's kernel: an IPKernelApp whose sockets are bound before privileges are dropped.

Runs in a forked child of the kernel host and never returns. The sockets lie in the run folder, which belongs to
the server's user and which the session cannot enter: it cannot reach another session's sockets or plant a link.
"""

from __future__ import annotations

import os
import random
import signal
import site
import sys
import sysconfig
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from types import FrameType, SimpleNamespace
from typing import Any

import zmq
from ipykernel import ipkernel
from ipykernel.iostream import OutStream
from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelapp import IPKernelApp
from IPython.core.events import EventManager
from IPython.core.profiledir import ProfileDir

from . import identity

# Names of the sockets: jupyter_client's ipc transport appends "-<port>" to `ip`.
PORTS = {"shell_port": 1, "iopub_port": 2, "stdin_port": 3, "control_port": 4, "hb_port": 5}
CA_BUNDLE = "/opt/kernel_server/ca-bundle.crt"  # if the image was built with one


@dataclass(frozen=True)
class KernelLaunch:
    """What a child needs to become a session's kernel; `uid` and `host_uid` are None without isolation."""

    session_id: str
    key: bytes
    run_dir: str
    workspace: str
    private: str
    uid: int | None
    host_uid: int | None
    limits: dict[str, int]
    environment: dict[str, str]


class SessionKernel(IPythonKernel):
    """ipykernel's kernel without the debugger, and with interrupts that reach only the session's own code.

    ipykernel raises KeyboardInterrupt wherever the signal finds it while it handles a request; in its own code the
    reply or `idle` is lost then, and the client waits for ever.
    """

    def __init__(self, **kwargs: Any) -> None:
        # ipykernel looks up the file of every module, for its debugger. That takes 5 ms, most of it for copying pages
        # that were shared; so it sees none.
        real = vars(ipkernel)["sys"]
        vars(ipkernel)["sys"] = SimpleNamespace(**{**vars(sys), "modules": {}})
        try:
            super().__init__(**kwargs)
        finally:
            vars(ipkernel)["sys"] = real

    def pre_handler_hook(self) -> None:
        """Sets the handler of SIGINT for the length of a request."""
        self.saved_sigint_handler = signal.signal(signal.SIGINT, self._interrupt)

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        if self._in_session_code(frame):
            raise KeyboardInterrupt

    def _in_session_code(self, frame: FrameType | None) -> bool:
        """True if a frame of a cell, or of what runs right after one (such as drawing its figures), is on the stack."""
        namespace = self.shell.user_global_ns if self.shell else None
        while frame is not None:
            if frame.f_globals is namespace or (frame.f_back and frame.f_back.f_code is EventManager.trigger.__code__):
                return True
            frame = frame.f_back
        return False

    async def poll_stopped_queue(self) -> None:
        """There is no debugger whose queue could be polled."""


class SessionOutStream(OutStream):
    """Standard output and error that take any text."""

    def write(self, string: str) -> int:
        """Writes; lone surrogates, which no message can carry, as escapes."""
        if isinstance(string, str) and not string.isascii():
            string = string.encode("utf-8", "backslashreplace").decode()
        return int(super().write(string) or 0)


class _BareProfileDir(ProfileDir):
    def check_dirs(self) -> None:
        """Nothing is kept in a profile here."""


class SessionKernelApp(IPKernelApp):
    """IPKernelApp in two steps: bind every channel as the server's user, then initialize as the session."""

    kernel_class = SessionKernel
    outstream_class = f"{__name__}.SessionOutStream"

    def bind_channels(self) -> None:
        """Creates and binds the sockets of the shell, iopub, stdin and control channels."""
        super().init_sockets()

    def _bind_socket(self, s: zmq.Socket[Any], port: int) -> int:
        # A slow reader slows the kernel down; without it output is lost, `idle` among it (zmq_setsockopt(3)).
        if s.type == zmq.XPUB:
            s.setsockopt(zmq.XPUB_NODROP, 1)
        return int(super()._bind_socket(s, port))

    def init_sockets(self) -> None:
        """Done in `bind_channels`."""

    def init_heartbeat(self) -> None:
        """There is none: the kernel host is the kernel's parent and reports its end. It would cost a tenth of a start."""

    def parse_command_line(self, argv: object = None) -> None:
        """There is none; building its parser takes 10 ms."""

    def init_profile_dir(self) -> None:
        """Without the folders and the README that IPython puts into a new profile."""
        location = f"{os.environ['IPYTHONDIR']}/profile_default"
        self.profile_dir = _BareProfileDir(location=location, parent=self)

    def init_connection_file(self) -> None:
        """The server knows the connection; there is no file with the key for a session to find."""

    def write_connection_file(self, **kwargs: Any) -> None:
        """See `init_connection_file`."""

    def init_poller(self) -> None:
        """The kernel host watches its children; a kernel need not watch its parent."""

    def log_connection_info(self) -> None:
        """Nobody reads a kernel's terminal."""
        self._ports = {name.removesuffix("_port"): port for name, port in PORTS.items()}


def run(
    launch: KernelLaunch, bound: Callable[[], None], started: Callable[[SessionKernelApp], None] | None = None
) -> None:
    """Becomes the kernel of `launch` and serves until it is told to exit.

    Args:
        bound: called when its sockets are bound and it has become the session: requests wait there from now on.
        started: called when it is about to serve.
    """
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _silence_standard_streams()
    app = _make_app(launch)
    with nullcontext() if launch.host_uid is None else identity.acting_as(launch.host_uid):
        app.bind_channels()
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
    bound()
    app.initialize([])
    if started:
        started(app)
    app.start()


def _make_app(launch: KernelLaunch) -> SessionKernelApp:
    app = SessionKernelApp.instance(transport="ipc", ip=f"{launch.run_dir}/s", **PORTS)
    app.config.Session.key = launch.key
    app.config.HistoryManager.enabled = False  # the transcript is the server's; no SQLite thread per kernel
    app.config.InteractiveShell.colors = "nocolor"
    app.config.InteractiveShellApp.exec_PYTHONSTARTUP = False
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
        PATH=os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)]),
        MPLBACKEND="module://matplotlib_inline.backend_inline",
        PYTHONUNBUFFERED="1",
    )
    os.environ.pop("MPLCONFIGDIR", None)
    if os.path.exists(CA_BUNDLE):
        os.environ.update(dict.fromkeys(("PIP_CERT", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"), CA_BUNDLE))
    os.environ.update(launch.environment)
    # What `pip install --user` of this session installs (HOME was another one when `site` ran).
    site.USER_BASE, site.USER_SITE = f"{home}/.local", identity.user_site(home)
    sys.path.append(site.USER_SITE)


def _forget_shared_state() -> None:
    """Undoes what a fork would otherwise give to every session alike."""
    random.seed()
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
    if tempfile := sys.modules.get("tempfile"):
        vars(tempfile)["tempdir"] = None
