"""Which servers of this user run, and what sessions each has: a file for each, locked while its server lives.

For people who look from outside; nothing is asked of a server, and it works as well where its file cannot be written.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kernel_server.locks import claimed
from kernel_server.private import open_private, private_folder, read_private

logger = logging.getLogger(__name__)

Announce = Callable[[Sequence[str]], None]
"""Takes the ids of the sessions that there are now."""


@dataclass(frozen=True)
class Presence:
    """A server that runs.

    Attributes:
        begun: seconds since 1970.
        engine: `docker` or `local`.
        folder: where it was started.
        sessions: ids of its sessions; None where they cannot be told.
    """

    pid: int = field(default_factory=os.getpid)
    begun: float = field(default_factory=time.time)
    engine: str = ""
    folder: str = field(default_factory=os.getcwd)
    sessions: list[str] | None = None


@contextmanager
def announced(folder: Path, engine: str) -> Iterator[Announce]:
    """Says in `folder` that this server runs, for the length of the block."""
    try:
        presence = Presence(engine=engine)
        path, descriptor = _open(folder)
    except OSError as error:
        logger.warning("`kernel-server sessions` will not show this server: %s", error)
        yield lambda _: None
        return

    def announce(sessions: Sequence[str]) -> None:
        line = json.dumps({**asdict(presence), "sessions": list(sessions)}).encode() + b"\n"
        with suppress(OSError):  # the disk is full
            os.pwrite(
                descriptor, line, 0
            )  # readers take the first line, so that a longer one before it does not matter

    try:
        announce([])
        yield announce
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(descriptor)


def _open(folder: Path) -> tuple[Path, int]:
    """A new file; it has its name only once it is locked, so that nobody takes it for one that was left behind."""
    with private_folder(folder, make=True) as opened:
        for path in folder.glob("*.json"):
            with suppress(OSError), claimed(path.name, opened):
                os.unlink(path.name, dir_fd=opened)
        path = folder / f"{os.getpid()}-{secrets.token_hex(4)}.json"
        new = path.with_suffix(".new").name
        descriptor = open_private(new, opened, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            os.rename(new, path.name, src_dir_fd=opened, dst_dir_fd=opened)
        except OSError:
            os.close(descriptor)
            raise
        return path, descriptor


def servers(folder: Path) -> list[Presence]:
    """The servers that run and have said so in `folder`, oldest first."""
    found = []
    for path in folder.glob("*.json"):
        with suppress(OSError):  # it is gone, or somebody else has put it there
            if _is_held(path):
                found.append(_read(path))
    return sorted(found, key=lambda presence: presence.begun)


def _is_held(path: Path) -> bool:
    try:
        with claimed(path):
            return False
    except BlockingIOError:
        return True


def _read(path: Path) -> Presence:
    line = read_private(path).decode(errors="replace").partition("\n")[0]
    try:
        said: dict[str, Any] = json.loads(line)
        sessions = [str(name) for name in said["sessions"]]
        return Presence(int(said["pid"]), float(said["begun"]), str(said["engine"]), str(said["folder"]), sessions)
    except (ValueError, TypeError, KeyError):  # of another version
        return Presence(int(path.name.partition("-")[0]), path.stat().st_mtime, folder="")
