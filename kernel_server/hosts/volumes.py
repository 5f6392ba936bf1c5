"""The volume that several containers of one server have in common, for /workspace/shared."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from kernel_server.errors import EngineError, HostLost
from kernel_server.hosts.engine import Engine
from kernel_server.locks import claimed
from kernel_server.private import open_private, open_private_folder, private_folder

PREFIX = "kernel-server-shared-"
NAME = re.compile(rf"{PREFIX}[0-9a-f]{{16}}")
SETTLED_SECONDS = 10.0  # a younger file may be one that its server has not locked yet


class SharedVolume:
    """A named volume; unlike an unnamed one it does not go with a container.

    A locked file of its name in `folder` says that a server lives which uses it: two of them, where each has taken over
    some containers of a third. The next server removes what a killed one left.
    """

    def __init__(self, folder: Path) -> None:
        self.name = ""
        self._folder = folder
        self._lock: int | None = None
        self._retired = False
        self._opening = threading.Lock()

    def open(self, engine: Engine) -> None:
        """Takes a name, if there is none; the volume is made with the first container.

        Raises:
            HostLost: no container is to start with it any more.
        """
        with self._opening:
            if self._retired:
                raise HostLost("It was being ended while it started.")
            if self._lock is None:
                self._open(engine)

    def retire(self) -> bool:
        """No container starts with it from now on, also where one is about to; returns whether there is one to remove."""
        with self._opening:
            self._retired = True
            return self._lock is not None

    def _open(self, engine: Engine) -> None:
        os.close(open_private_folder(self._folder, make=True))
        for path in abandoned(self._folder):
            with suppress(EngineError):  # the container of a server that was killed just now still uses it
                engine.remove_volume(path.name)
                path.unlink()
        self._take(f"{PREFIX}{secrets.token_hex(8)}", os.O_RDWR | os.O_CREAT | os.O_EXCL)

    def take_over(self, name: str) -> None:
        """Takes the volume of a server that is gone.

        Raises:
            OSError: another server is about to remove it.
        """
        if not NAME.fullmatch(name):
            raise OSError(errno.EINVAL, "no name of a shared volume")
        self._take(name, os.O_RDWR)

    def _take(self, name: str, flags: int) -> None:
        with private_folder(self._folder) as folder:
            lock = open_private(name, folder, flags)
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise
        self.name, self._lock = name, lock

    def remove(self, engine: Engine) -> None:
        """Removes it, if no other server uses it; no container of this one does any more.

        Raises:
            EngineError: the engine does not; the next server tries again.
        """
        if self._lock is None:
            return
        name, lock, self.name, self._lock = self.name, self._lock, "", None
        try:
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                engine.remove_volume(name)
                (self._folder / name).unlink(missing_ok=True)
        finally:
            os.close(lock)


def abandoned(folder: Path) -> Iterator[Path]:
    """Lock files in `folder`, named as their volumes, whose server is gone; each is claimed until the next is asked for."""
    for path in folder.glob(f"{PREFIX}*"):
        with suppress(OSError):
            if NAME.fullmatch(path.name) and time.time() - path.lstat().st_mtime > SETTLED_SECONDS:
                with claimed(path):
                    yield path
