"""The volume that several containers of one server have in common, for /workspace/shared."""

from __future__ import annotations

import fcntl
import secrets
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

from kernel_server.errors import EngineError
from kernel_server.hosts.engine import Engine

PREFIX = "kernel-server-shared-"


class SharedVolume:
    """A named volume; unlike an unnamed one it does not go with a container.

    A locked file of its name in `folder` says that its server lives. The next server removes what a killed one left.
    """

    def __init__(self, folder: Path) -> None:
        self.name = ""
        self._folder = folder
        self._lock: IO[str] | None = None
        self._opening = threading.Lock()

    def open(self, engine: Engine) -> None:
        """Takes a name, if there is none; the volume is made with the first container."""
        with self._opening:
            if self._lock is None:
                self._open(engine)

    def _open(self, engine: Engine) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        for name in self._abandoned():
            with suppress(EngineError):
                engine.remove_volume(name)
        name = f"{PREFIX}{secrets.token_hex(8)}"
        self._lock = open(self._folder / name, "w", encoding="ascii")  # noqa: SIM115 - held until `remove`
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.name = name

    def remove(self, engine: Engine) -> None:
        """Removes it; no container uses it any more.

        Raises:
            EngineError: the engine does not; the next server tries again.
        """
        if self._lock is None:
            return
        name, lock, self.name, self._lock = self.name, self._lock, "", None
        with lock:
            engine.remove_volume(name)
            (self._folder / name).unlink(missing_ok=True)

    def _abandoned(self) -> Iterator[str]:
        for path in self._folder.glob(f"{PREFIX}*"):
            with suppress(OSError), path.open("r+", encoding="ascii") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield path.name
                path.unlink()
