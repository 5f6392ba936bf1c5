"""The run folder: where a kernel host's sockets are, on the host's side, and what a later server needs to go on with it.

Short, because a socket's path has at most 107 bytes (unix(7)); 0700, because whoever reaches a socket may talk to it.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from kernel_server.locks import claimed

logger = logging.getLogger(__name__)

PREFIX = "ks-"
HOST_RECORD = "host"
LONGEST_NAME = "/k/999/s-5"
MAX_SOCKET_PATH = 107
SETTLED_SECONDS = 10.0  # a younger folder may be one whose server has not locked it yet
ANSWER_SECONDS = 1.0


class RunFolder:
    """A run folder that this server has locked.

    Attributes:
        outer: keeps other users of this machine out; has the lock and the records.
        path: the folder for sockets, in it.
        kept: whether it stays when the server lets go of it.
    """

    def __init__(self, outer: Path) -> None:
        self.outer = outer
        self.path = outer / "k"
        self.kept = False

    def write(self, name: str, record: dict[str, Any]) -> None:
        """Writes a record, 0600. At most a few hundred bytes: these are there as a whole or not at all."""
        descriptor = os.open(self.outer / name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # Readers take the first line: what a longer one before has left does not matter.
            os.write(descriptor, json.dumps(record).encode() + b"\n")
        finally:
            os.close(descriptor)

    def remove(self, name: str) -> None:
        """Removes a record, if it is there."""
        with suppress(FileNotFoundError):
            (self.outer / name).unlink()


def read_record(path: Path) -> dict[str, Any]:
    """A record that `RunFolder.write` wrote.

    Raises:
        OSError: there is none.
        ValueError: it is not one.
    """
    with path.open(encoding="utf-8") as file:
        record = json.loads(file.readline())
    if not isinstance(record, dict):
        raise ValueError(f"{path}: not a record")  # noqa: TRY004 - as for what is not JSON
    return record


def parent_folder() -> Path:
    """`$XDG_RUNTIME_DIR` where there is one that is short enough, else the temporary folder.

    Raises:
        OSError: there is none.
    """
    for candidate in _candidates():
        if len(str(candidate)) + len(PREFIX) + 9 + len(LONGEST_NAME) > MAX_SOCKET_PATH:
            continue
        if os.access(candidate, os.W_OK | os.X_OK):
            return candidate
    raise OSError("no folder for sockets: XDG_RUNTIME_DIR or TMPDIR must name a short path that you may write")


def _candidates() -> list[Path]:
    named = (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp")  # noqa: S108 - what is made in it is 0700
    return [Path(name) for name in named if name and os.path.isabs(name)]


def parent_folders() -> set[Path]:
    """All folders in which servers of this user may have made theirs, also those with another environment."""
    return {*_candidates(), Path(f"/run/user/{os.getuid()}")}


@contextmanager
def run_folder() -> Iterator[RunFolder]:
    """A fresh run folder, locked while it is in use, and removed afterwards unless it is to be kept."""
    parent = parent_folder()
    for left in abandoned(parent):
        with suppress(OSError):
            shutil.rmtree(left)
            logger.info("removed what a server left behind: %s", left)
    outer = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    with ExitStack() as stack:
        (outer / "lock").touch(mode=0o600)
        stack.enter_context(claimed(outer / "lock"))
        folder = stack.enter_context(_removed_unless_kept(RunFolder(outer)))
        folder.path.mkdir(mode=0o700)
        yield folder


@contextmanager
def taken_over(outer: Path) -> Iterator[RunFolder]:
    """The run folder of a server that is gone; it stays unless it is found that nobody can go on with it.

    Raises:
        BlockingIOError: the server is there, or another one has taken it over.
        OSError: the folder is not there any more.
    """
    with claimed(outer / "lock"), _removed_unless_kept(RunFolder(outer)) as folder:
        folder.kept = True
        yield folder


@contextmanager
def _removed_unless_kept(folder: RunFolder) -> Iterator[RunFolder]:
    try:
        yield folder
    finally:
        if not folder.kept:
            shutil.rmtree(folder.outer, ignore_errors=True)


def is_held(outer: Path) -> bool:
    """Whether a server has a run folder.

    Raises:
        OSError: it is not one.
    """
    try:
        with claimed(outer / "lock"):
            return False
    except BlockingIOError:
        return True


def is_served(outer: Path) -> bool:
    """Whether there is a kernel host that answers in a run folder."""
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(ANSWER_SECONDS)
        connection.connect(str(outer / "k" / "control"))
        return True
    return False


def is_kept(outer: Path) -> bool:
    """Whether a run folder is one with which a later server could go on.

    Raises:
        OSError: it is not one.
    """
    return (outer / HOST_RECORD).exists() and not is_held(outer) and is_served(outer)


def kept_folders() -> list[Path]:
    """All run folders of this user with which a later server could go on."""
    found = []
    for outer in (outer for parent in sorted(parent_folders()) for outer in run_folders(parent)):
        with suppress(OSError):
            if is_kept(outer):
                found.append(outer)
    return found


def run_folders(parent: Path) -> Iterator[Path]:
    """All run folders of this user in `parent`."""
    for folder in parent.glob(f"{PREFIX}????????"):
        with suppress(OSError):
            if folder.stat().st_uid == os.getuid():
                yield folder


def abandoned(parent: Path) -> Iterator[Path]:
    """Run folders whose server is gone, and that are not kept for another; each is claimed until the next is asked for."""
    for folder in run_folders(parent):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime <= SETTLED_SECONDS:
                continue
            # Who was killed while it made the folder, or removed it, has left no lock.
            (folder / "lock").touch(mode=0o600)
            if not is_kept(folder):
                with claimed(folder / "lock"):
                    yield folder
