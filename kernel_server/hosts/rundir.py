"""The run folder: where a kernel host's sockets are, on the host's side, and what a later server needs to go on with it.

Short, because a socket's path has at most 107 bytes (unix(7)); 0700, because whoever reaches a socket may talk to it.

It lies where other users have theirs. One that they have planted, as a folder or as a link, is never taken for ours: it is
opened without following links, and judged by what was opened; and folders whose entries others can replace are not used.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from kernel_server.locks import claimed
from kernel_server.private import (
    UNFINISHED,
    open_private,
    open_private_folder,
    others_can_replace,
    private_folder,
    read_private,
    write_private,
)

logger = logging.getLogger(__name__)

PREFIX = "ks-"
HOST_RECORD = "host"
LOCK = "lock"
_OURS = re.compile(rf"{LOCK}|{HOST_RECORD}|k|workspace|session-[0-9a-z]+|{re.escape(UNFINISHED)}[0-9a-f]+")
LONGEST_NAME = "/k/999/s-5"
MAX_SOCKET_PATH = 107
CLOSED = -1  # in place of a descriptor
SETTLED_SECONDS = 10.0  # a younger folder may be one whose server has not locked it yet
ANSWER_SECONDS = 1.0


class RunFolder:
    """A run folder that this server has locked; whoever makes one closes it.

    Attributes:
        outer: keeps other users of this machine out; has the lock and the records.
        path: the folder for sockets, in it.
        kept: whether it stays when the server lets go of it.
    """

    def __init__(self, outer: Path) -> None:
        """Opens it.

        Raises:
            OSError: it is not there, or not ours alone.
        """
        self.outer = outer
        self.path = outer / "k"
        self.kept = False
        self._folder = open_private_folder(outer)

    def close(self) -> None:
        """Lets go of it: what is asked of it later fails, and reaches no other folder of that descriptor's number."""
        folder, self._folder = self._folder, CLOSED
        os.close(folder)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Has its lock, which is made if it is missing, for the length of the block.

        Raises:
            BlockingIOError: another server has it.
        """
        os.close(open_private(LOCK, self._folder, os.O_RDWR | os.O_CREAT))
        with claimed(LOCK, self._folder):
            yield

    def is_all_ours(self) -> bool:
        """Whether there is nothing in it that no server puts there: a user's folder may have such a name, too."""
        return all(_OURS.fullmatch(name) for name in os.listdir(self._folder))

    def make_socket_folder(self) -> None:
        """Makes the inner folder."""
        os.mkdir(self.path.name, 0o700, dir_fd=self._folder)

    def write(self, name: str, record: dict[str, Any]) -> None:
        """Writes a record, 0600, whole or not at all.

        Raises:
            OSError: the disk is full, for one; an earlier record of that name is still there.
        """
        write_private(name, self._folder, json.dumps(record).encode() + b"\n")

    def remove(self, name: str) -> None:
        """Removes a record, if it is there; of a folder that this server has let go of, nothing."""
        if self._folder != CLOSED:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._folder)


def read_record(path: Path) -> dict[str, Any]:
    """A record that `RunFolder.write` wrote.

    Raises:
        OSError: there is none of ours.
        ValueError: it is not one.
    """
    with private_folder(path.parent) as folder:
        record = json.loads(read_private(path.name, folder))
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
        if os.access(candidate, os.W_OK | os.X_OK) and _is_safe(candidate):
            return candidate
    raise OSError(
        "no folder for sockets: XDG_RUNTIME_DIR or TMPDIR must name a short path that you may write, and in which no other "
        "user can replace what is yours (/tmp: `chmod +t`)"
    )


def _is_safe(folder: Path) -> bool:
    try:
        return not others_can_replace(folder)
    except OSError:
        return False


def _candidates() -> list[Path]:
    named = (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp")  # noqa: S108 - what is made in it is 0700
    return [Path(name) for name in named if name and os.path.isabs(name)]


def parent_folders() -> set[Path]:
    """All folders in which servers of this user may have made theirs, also those with another environment."""
    return set(filter(_is_safe, (*_candidates(), Path(f"/run/user/{os.getuid()}"))))


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
        folder = _opened(outer, stack)
        stack.enter_context(folder.lock())
        stack.enter_context(_removed_unless_kept(folder))
        folder.make_socket_folder()
        yield folder


@contextmanager
def taken_over(outer: Path) -> Iterator[RunFolder]:
    """The run folder of a server that is gone; it stays unless it is found that nobody can go on with it.

    Raises:
        BlockingIOError: the server is there, or another one has taken it over.
        OSError: the folder is not there any more, or not ours.
    """
    with ExitStack() as stack:
        folder = _opened(outer, stack)
        stack.enter_context(folder.lock())
        stack.enter_context(_removed_unless_kept(folder))
        folder.kept = True
        yield folder


def _opened(outer: Path, stack: ExitStack) -> RunFolder:
    folder = RunFolder(outer)
    stack.callback(folder.close)
    return folder


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
    with private_folder(outer) as folder:
        try:
            with claimed(LOCK, folder):
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
    return os.path.lexists(outer / HOST_RECORD) and not is_held(outer) and is_served(outer)


def kept_folders() -> list[Path]:
    """All run folders of this user with which a later server could go on."""
    found = []
    for outer in (outer for parent in sorted(parent_folders()) for outer in run_folders(parent)):
        with suppress(OSError):
            if is_kept(outer):
                found.append(outer)
    return found


def run_folders(parent: Path) -> Iterator[Path]:
    """All run folders of this user in `parent`, which is one of `parent_folders`."""
    for folder in parent.glob(f"{PREFIX}????????"):
        with suppress(OSError), private_folder(folder):
            yield folder


def abandoned(parent: Path) -> Iterator[Path]:
    """Run folders whose server is gone, and that are not kept for another; each is claimed until the next is asked for."""
    for outer in run_folders(parent):
        with suppress(OSError), ExitStack() as stack:
            folder = _opened(outer, stack)
            if time.time() - outer.stat().st_mtime <= SETTLED_SECONDS or _is_kept(outer):
                continue
            if not folder.is_all_ours():
                continue
            # Who was killed while it made the folder, or removed it, has left no lock: it is made.
            stack.enter_context(folder.lock())
            yield outer


def _is_kept(outer: Path) -> bool:
    try:
        return is_kept(outer)
    except FileNotFoundError:  # there is no lock
        return False
