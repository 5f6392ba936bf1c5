"""The run folder: where a kernel host's sockets are, on the host's side.

Short, because a socket's path has at most 107 bytes (unix(7)); 0700, because whoever reaches a socket may talk to it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kernel_server.locks import claimed

logger = logging.getLogger(__name__)

PREFIX = "ks-"
LONGEST_NAME = "/k/999/s-5"
MAX_SOCKET_PATH = 107
SETTLED_SECONDS = 10.0  # a younger folder may be one whose server has not locked it yet


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
    return [Path(name) for name in named if name]


def parent_folders() -> set[Path]:
    """All folders in which servers of this user may have made theirs, also those with another environment."""
    return {*_candidates(), Path(f"/run/user/{os.getuid()}")}


@contextmanager
def run_folder() -> Iterator[Path]:
    """A fresh run folder, locked while it is in use and removed afterwards.

    The folder for sockets is `k` in it: the outer one keeps other users of this machine out.
    """
    parent = parent_folder()
    for folder in abandoned(parent):
        with suppress(OSError):
            shutil.rmtree(folder)
            logger.info("removed what a server left behind: %s", folder)
    outer = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    try:
        with open(outer / "lock", "w", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            inner = outer / "k"
            inner.mkdir(mode=0o700)
            yield inner
    finally:
        shutil.rmtree(outer, ignore_errors=True)


def abandoned(parent: Path) -> Iterator[Path]:
    """Run folders of this user whose server is gone; each is claimed until the next one is asked for."""
    for folder in parent.glob(f"{PREFIX}????????"):
        with suppress(OSError):
            status = folder.stat()
            if status.st_uid == os.getuid() and time.time() - status.st_mtime > SETTLED_SECONDS:
                with claimed(folder / "lock"):
                    yield folder
