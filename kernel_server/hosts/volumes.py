"""The volume that several containers of one server have in common, for /workspace/shared."""

from __future__ import annotations

import fcntl
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

from kernel_server.errors import EngineError, HostLost
from kernel_server.hosts.engine import Engine
from kernel_server.locks import claimed

PREFIX = "kernel-server-shared-"
SETTLED_SECONDS = 10.0  # a younger file may be one that its server has not locked yet


class SharedVolume:
    """A named volume; unlike an unnamed one it does not go with a container.

    A locked file of its name in `folder` says that a server lives which uses it: two of them, where each has taken over
    some containers of a third. The next server removes what a killed one left.
    """

    def __init__(self, folder: Path) -> None:
        self.name = ""
        self._folder = folder
        self._lock: IO[str] | None = None
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
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in abandoned(self._folder):
            with suppress(EngineError):  # the container of a server that was killed just now still uses it
                engine.remove_volume(path.name)
                path.unlink()
        name = f"{PREFIX}{secrets.token_hex(8)}"
        self._take(name, "w")

    def take_over(self, name: str) -> None:
        """Takes the volume of a server that is gone.

        Raises:
            OSError: another server is about to remove it.
        """
        self._take(name, "r+")

    def _take(self, name: str, mode: str) -> None:
        lock = open(self._folder / name, mode, encoding="ascii")  # noqa: SIM115 - held until `remove`
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            lock.close()
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
        with lock, suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            engine.remove_volume(name)
            (self._folder / name).unlink(missing_ok=True)


def abandoned(folder: Path) -> Iterator[Path]:
    """Lock files in `folder`, named as their volumes, whose server is gone; each is claimed until the next is asked for."""
    for path in folder.glob(f"{PREFIX}*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > SETTLED_SECONDS:
                with claimed(path):
                    yield path
