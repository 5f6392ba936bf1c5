"""Removing what a session leaves behind, in a forked helper that has become its UID.

Nothing that goes wrong keeps the rest from being removed: the first error is raised when all has been tried.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

from .holdings import IN_MEMORY, shared_segments

IPC_RMID = 0  # shmctl(2)
PASSES = 3  # through a folder in which others make and remove files meanwhile


@contextmanager
def all_of_it() -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Gives a context for each step; an error in one does not keep the others from being done.

    Raises:
        Exception: what went wrong first.
    """
    errors: list[Exception] = []

    @contextmanager
    def attempt() -> Iterator[None]:
        try:
            yield
        except Exception as error:
            errors.append(error)

    yield attempt
    if errors:
        raise errors[0]


def empty_folder(path: str) -> None:
    """Removes all that is in a folder of our own UID, however deep or locked up; no error if it is missing.

    Folders are moved up to the top before they are emptied, so that neither paths nor the stack grow with the depth.
    """
    try:
        os.chmod(path, 0o700)
        top = os.open(path, os.O_DIRECTORY | os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    tried: set[str] = set()
    try:
        with all_of_it() as attempt:
            while entries := [entry for entry in os.listdir(top) if entry not in tried]:
                for entry in entries:
                    with attempt(), suppress(FileNotFoundError):
                        tried.add(entry)  # unless it is removed, it is tried once
                        _remove_entry(top, entry)
                        tried.discard(entry)
            with attempt():
                if os.listdir(top):
                    raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
    finally:
        os.close(top)


def _remove_entry(top: int, entry: str) -> None:
    if not stat.S_ISDIR(os.stat(entry, dir_fd=top, follow_symlinks=False).st_mode):
        os.unlink(entry, dir_fd=top)
        return
    os.chmod(entry, 0o700, dir_fd=top)
    folder = os.open(entry, os.O_DIRECTORY | os.O_RDONLY | os.O_NOFOLLOW, dir_fd=top)
    try:
        with all_of_it() as attempt:
            for name in os.listdir(folder):
                with attempt(), suppress(FileNotFoundError):
                    if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                        os.chmod(name, 0o700, dir_fd=folder)  # moving a folder writes into it
                        os.rename(name, secrets.token_hex(16), src_dir_fd=folder, dst_dir_fd=top)
                    else:
                        os.unlink(name, dir_fd=folder)
    finally:
        os.close(folder)
    os.rmdir(entry, dir_fd=top)


def empty_memory() -> None:
    """Removes what the calling UID has left in memory beside its processes: files on tmpfs, shared segments."""
    with all_of_it() as attempt:
        for folder in IN_MEMORY:
            with attempt():
                remove_own_files(folder)
        for segment, _ in shared_segments(os.getuid()):
            ctypes.CDLL(None).shmctl(segment, IPC_RMID, None)


def remove_own_files(folder: str) -> None:
    """Removes what the calling UID owns directly in a folder that all may write, such as /tmp or /dev/shm."""
    with all_of_it() as attempt:
        for _ in range(PASSES):
            found = list(_own_entries(folder))
            for entry in found:
                with attempt(), suppress(FileNotFoundError):
                    if entry.is_dir(follow_symlinks=False):
                        empty_folder(entry.path)
                        os.rmdir(entry.path)
                    else:
                        os.unlink(entry.path)
            if not found:
                break


def _own_entries(folder: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError):  # it is gone since the folder was read
                if entry.stat(follow_symlinks=False).st_uid == os.getuid():
                    yield entry
