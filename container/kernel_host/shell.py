"""IPython's shell of a session: what it shows goes through `pictures` first."""

from __future__ import annotations

import atexit
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, cast

from ipykernel.displayhook import ZMQShellDisplayHook
from ipykernel.zmqshell import ZMQDisplayPublisher, ZMQInteractiveShell
from IPython.core.autocall import ZMQExitAutocall
from IPython.core.history import HistoryManager
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.profiledir import ProfileDir
from traitlets import default
from traitlets.config import Config

from .errors import ErrorShell
from .pictures import Pictures
from .streams import wait_sent


class SessionDisplayPublisher(ZMQDisplayPublisher):
    """What `display` and figures are sent with."""

    def publish(  # type: ignore[override]  # as in ipykernel; IPython's has a deprecated argument
        self, data: Any, metadata: Any = None, *, transient: Any = None, update: bool = False, **kwargs: Any
    ) -> None:
        """Sends a MIME bundle, with a preview where its picture is too large."""
        display_id = str((transient or {}).get("display_id") or "")
        data, metadata = _pictures(self).prepare(
            data, metadata, self.parent_header.get("msg_id", ""), display_id, update=update
        )
        super().publish(data, metadata, transient=transient, update=update, **kwargs)
        wait_sent(self.pub_socket.io_thread)

    def clear_output(self, wait: bool = False) -> None:
        """Clears the outputs of the cell, which makes room for other pictures."""
        _pictures(self).clear(self.parent_header.get("msg_id", ""))
        super().clear_output(wait)


class SessionDisplayHook(ZMQShellDisplayHook):
    """What the value of a cell is sent with."""

    def write_format_data(self, format_dict: Any, md_dict: Any = None) -> None:
        """Puts the MIME bundle of a value into its message."""
        msg_id = self.parent_header.get("msg_id", "")
        super().write_format_data(*_pictures(self).prepare(format_dict, md_dict or {}, msg_id))


class SessionExit(ZMQExitAutocall):
    """`exit` and `quit`: they end the kernel, but with a status (`exit(1)`) the cell alone, as a script would end."""

    def __call__(self, keep_kernel: object = False) -> None:
        if not isinstance(keep_kernel, bool):  # IPython would take a status for a yes
            raise SystemExit(keep_kernel)
        super().__call__(keep_kernel)


class SessionShell(ErrorShell):
    """ipykernel's shell with our ways to show things."""

    display_pub_class = SessionDisplayPublisher
    displayhook_class = SessionDisplayHook

    _ahead: ClassVar[SessionShell | None] = None

    def __init__(self, **kwargs: Any) -> None:
        self.pictures = Pictures(os.getcwd())
        super().__init__(**kwargs)

    @classmethod
    def make_ahead(cls) -> None:
        """Makes the shell of the kernels that are forked from now on; of this process it changes nothing that counts."""
        if not isinstance(vars(InteractiveShell).get("db"), property):
            return  # shells of an older IPython use files of their profile when they are made
        main = sys.modules["__main__"]
        try:
            with tempfile.TemporaryDirectory() as folder:
                profile = ProfileDir(location=folder)
                shell = cls(config=Config(), ipython_dir=folder, profile_dir=profile)
        finally:
            sys.modules["__main__"] = main
        atexit.unregister(shell.atexit_operations)
        cls._ahead = shell

    @classmethod
    def instance(cls, *args: Any, **kwargs: Any) -> Any:
        """The shell of this process: the one that was made ahead, if there is one and it would be configured alike."""
        shell, cls._ahead = cls._ahead, None
        if shell is None or kwargs["parent"].config:
            return super().instance(*args, **kwargs)
        shell.begin(**kwargs)
        for owner in cls._walk_mro():
            owner._instance = shell  # type: ignore[assignment]  # noqa: SLF001 - as in SingletonConfigurable
        return shell

    def begin(self, *, parent: Any, kernel: Any, profile_dir: Any, **_kwargs: Any) -> None:
        """Does what depends on the process, in the order of InteractiveShell."""
        self.parent, self.kernel = parent, kernel
        self.init_ipython_dir(None)
        self.init_profile_dir(profile_dir)
        self.starting_dir = self.pictures.workspace = os.getcwd()
        self.init_environment()
        self.init_virtualenv()
        self.save_sys_module_state()
        self.init_sys_modules()
        self.init_encoding()
        self.init_pushd_popd_magic()
        atexit.register(self.atexit_operations)

    # Here and not in traitlets' configuration: each object that a shell is made of would look through that.
    @default("colors")
    def _default_colors(self) -> str:
        return "nocolor"

    @default("enable_tip")
    def _default_enable_tip(self) -> bool:
        return False  # in the answer to each kernel_info_request; it would use random numbers

    @default("exiter")
    def _default_exiter(self) -> SessionExit:
        return SessionExit(self)

    def init_history(self) -> None:
        """The transcript is the server's; no SQLite thread per kernel."""
        self.history_manager = HistoryManager(shell=self, parent=self, enabled=False)
        cast("Any", self.configurables).append(self.history_manager)

    def init_display_formatter(self) -> None:
        """Text is as wide as numpy's lines, see `preload`."""
        super().init_display_formatter()
        cast("Any", self.display_formatter).formatters["text/plain"].max_width = 120

    def system_piped(self, cmd: str) -> None:
        """`!command`: says so when it failed, which might else look like a success without output."""
        super().system_piped(cmd)
        if status := self.user_ns.get("_exit_code"):
            print(f"[exit status {status}]", file=sys.stderr)

    system = system_piped

    @contextmanager
    def _tee(self, channel: str) -> Iterator[None]:
        """IPython would keep all that is printed, for `%notebook`, as long as the kernel lives."""
        yield

    def set_parent(self, parent: Any) -> None:
        """A request begins."""
        super().set_parent(parent)
        if parent["header"]["msg_type"] == "execute_request":
            self.pictures.begin(parent["header"]["msg_id"], self.execution_count)


def _pictures(owner: SessionDisplayPublisher | SessionDisplayHook) -> Pictures:
    shell = owner.shell
    assert isinstance(shell, SessionShell)
    return shell.pictures


# Libraries ask for the name of this class to learn that they are in a notebook; rich is one of them.
SessionShell.__name__, SessionShell.__module__ = ZMQInteractiveShell.__name__, ZMQInteractiveShell.__module__
SessionShell.__qualname__ = ZMQInteractiveShell.__qualname__
