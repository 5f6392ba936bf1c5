"""Removing what a session leaves behind, in a forked helper that has become its UID."""

from __future__ import annotations

import ctypes
import os
import secrets
import stat

from .holdings import IN_MEMORY, shared_segments

IPC_RMID = 0  # shmctl(2)


def empty_folder(path: str) -> None:
    """Removes all that is in a folder of our own UID, however deep or locked up; no error if it is missing.

    Folders are moved up to the top before they are emptied, so that neither paths nor the stack grow with the depth.
    """
    try:
        os.chmod(path, 0o700)
        top = os.open(path, os.O_DIRECTORY | os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        while entries := os.listdir(top):
            for entry in entries:
                _remove_entry(top, entry)
    finally:
        os.close(top)


def _remove_entry(top: int, entry: str) -> None:
    if not stat.S_ISDIR(os.stat(entry, dir_fd=top, follow_symlinks=False).st_mode):
        os.unlink(entry, dir_fd=top)
        return
    os.chmod(entry, 0o700, dir_fd=top)
    folder = os.open(entry, os.O_DIRECTORY | os.O_RDONLY | os.O_NOFOLLOW, dir_fd=top)
    try:
        for name in os.listdir(folder):
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
    for folder in IN_MEMORY:
        remove_own_files(folder)
    for segment, _ in shared_segments(os.getuid()):
        ctypes.CDLL(None).shmctl(segment, IPC_RMID, None)


def remove_own_files(folder: str) -> None:
    """Removes what the calling UID owns directly in a folder that all may write, such as /tmp or /dev/shm."""
    for entry in os.scandir(folder):
        if entry.stat(follow_symlinks=False).st_uid != os.getuid():
            continue
        if entry.is_dir(follow_symlinks=False):
            empty_folder(entry.path)
            os.rmdir(entry.path)
        else:
            os.unlink(entry.path)
