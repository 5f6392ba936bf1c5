"""Bringing files in and out of a session's workspace, in a forked helper that has become the session's UID.

The session can swap anything in its workspace while we work. So every name is resolved beneath a folder that is
already open, no link is ever followed, and the kernel checks permissions as for the session itself. The staging folder
is opened before privileges are dropped; it lies on the same file system, so that a file comes in by rename, whole or
not at all.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Any

from .beneath import Folder, Refused, kind_name, make_folders, mode_of, open_beneath, refused
from .text import escaped, has_controls

COPY_BYTES = 16 << 20
MAX_ENTRIES = 100_000  # files and folders that are copied out at once
MAX_SKIPPED_NAMES = 20
MAX_DEPTH = 200  # of folders: each takes two descriptors while it is copied, and some of the stack
MAX_SHOWN_CHARACTERS = 300


def describe(root: int, path: str) -> dict[str, Any]:
    """`{"kind": "file" | "folder", "size": bytes}` of a path."""
    descriptor = open_beneath(root, path, os.O_PATH | os.O_NOFOLLOW)
    try:
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if stat.S_ISDIR(status.st_mode):
        return {"kind": "folder", "size": 0}
    if not stat.S_ISREG(status.st_mode):
        raise Refused(f"{path}: neither a regular file nor a folder ({kind_name(status.st_mode)})")
    return {"kind": "file", "size": status.st_size}


def receive(root: int, staging: int, name: str, target: str) -> dict[str, Any]:
    """Moves `name` from staging to `target` beneath `root`; a `target` that is a folder takes it in.

    A folder that exists is merged into: other files stay, the same names are replaced. What cannot be done
    is found out before anything moves.
    """
    folder_meant = target.endswith("/")
    target = target.strip("/")
    parent_path, _, last = target.rpartition("/")
    if folder_meant or last in ("", "."):
        parent_path, last = target, name
    parent = make_folders(root, parent_path)
    try:
        source_is_folder = stat.S_ISDIR(os.stat(name, dir_fd=staging, follow_symlinks=False).st_mode)
        existing = mode_of(parent, last)
        if existing is not None and stat.S_ISDIR(existing) and not source_is_folder:
            into = open_beneath(parent, last, os.O_DIRECTORY | os.O_RDONLY)
            os.close(parent)
            parent, parent_path, last = into, f"{parent_path}/{last}".lstrip("/"), name
            existing = mode_of(parent, last)
        if source_is_folder and existing is not None:
            _check_merge(staging, name, parent, last)
            _merge(staging, name, parent, last)
        elif existing is not None and stat.S_ISDIR(existing):
            raise Refused(f"{parent_path}/{last}: a folder is in the way of the file")
        else:
            os.rename(name, last, src_dir_fd=staging, dst_dir_fd=parent)
    except OSError as error:
        raise refused(error.errno or 0, target) from error
    finally:
        os.close(parent)
    return {"path": f"{parent_path}/{last}".lstrip("/")}


def _check_merge(source: int, name: str, parent: int, last: str) -> None:
    existing = mode_of(parent, last)
    if existing is None:
        return
    if not stat.S_ISDIR(existing):
        raise Refused(f"{last}: a file is in the way of the folder of that name; remove it or choose another path")
    with Folder(source, name) as from_folder, Folder(parent, last) as to_folder:
        for entry in os.listdir(from_folder):
            if stat.S_ISDIR(os.stat(entry, dir_fd=from_folder, follow_symlinks=False).st_mode):
                _check_merge(from_folder, entry, to_folder, entry)
            elif stat.S_ISDIR(mode_of(to_folder, entry) or 0):
                raise Refused(f"{last}/{entry}: a folder is in the way of the file of that name")


def _merge(source: int, name: str, parent: int, last: str) -> None:
    if mode_of(parent, last) is None:
        os.rename(name, last, src_dir_fd=source, dst_dir_fd=parent)
        return
    with Folder(source, name) as from_folder, Folder(parent, last) as to_folder:
        for entry in os.listdir(from_folder):
            if stat.S_ISDIR(os.stat(entry, dir_fd=from_folder, follow_symlinks=False).st_mode):
                _merge(from_folder, entry, to_folder, entry)
            else:
                os.rename(entry, entry, src_dir_fd=from_folder, dst_dir_fd=to_folder)


def send(root: int, staging: int, path: str, name: str, max_bytes: int) -> dict[str, Any]:
    """Copies `path` beneath `root` into staging as `name`, so that the session cannot change it any more.

    Links, devices, fifos and sockets inside a folder are left out and named in the answer; so is what has control
    characters in its name, which would be orders to a terminal of the user.
    """
    budget = _Budget(max_bytes)
    what = describe(root, path)
    try:
        if what["kind"] == "file":
            _copy_file(root, path, staging, name, budget)
        else:
            with Folder(root, path) as folder:
                _copy_folder(folder, staging, name, budget, path.rstrip("/") or ".")
    except OSError as error:
        raise refused(error.errno or 0, path) from error
    return {
        "kind": what["kind"],
        "size": budget.used,
        "files": budget.files,
        "skipped": budget.skipped,
        "skipped_count": budget.skipped_count,
    }


class _Budget:
    """What was copied so far, and the first names of what was left out: a session can make any number of them."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.used, self.files, self.entries = max_bytes, 0, 0, 0
        self.skipped: list[str] = []
        self.skipped_count = 0

    def skip(self, what: str) -> None:
        self.skipped_count += 1
        if len(self.skipped) < MAX_SKIPPED_NAMES:
            self.skipped.append(escaped(what)[-MAX_SHOWN_CHARACTERS:])

    def enter(self, path: str) -> None:
        """Counts a file or a folder."""
        self.entries += 1
        if self.entries > MAX_ENTRIES:
            raise Refused(f"{path}: more than {MAX_ENTRIES} files and folders in all; pack them with run_code first")

    def take(self, size: int, path: str) -> None:
        self.enter(path)
        self.used += size
        self.files += 1
        if self.used > self.max_bytes:
            raise Refused(f"{path}: more than {self.max_bytes} bytes in all, which is what may be copied out at once")


def _copy_folder(source: int, staging: int, name: str, budget: _Budget, shown: str) -> None:
    if shown.count("/") > MAX_DEPTH:
        raise Refused(
            f"{shown[:MAX_SHOWN_CHARACTERS]}…: more than {MAX_DEPTH} folders deep; pack it with run_code first"
        )
    budget.enter(shown)
    os.mkdir(name, 0o700, dir_fd=staging)
    with Folder(staging, name) as target:
        for entry in sorted(os.listdir(source)):
            mode = mode_of(source, entry)
            if mode is None:
                continue
            if has_controls(entry):
                budget.skip(f"{shown}/{entry} (control characters in its name)")
            elif stat.S_ISDIR(mode):
                with Folder(source, entry) as folder:
                    _copy_folder(folder, target, entry, budget, f"{shown}/{entry}")
            elif stat.S_ISREG(mode):
                _copy_file(source, entry, target, entry, budget, f"{shown}/{entry}")
            else:
                budget.skip(f"{shown}/{entry} ({kind_name(mode)})")


def _copy_file(source: int, path: str, target: int, name: str, budget: _Budget, shown: str = "") -> None:
    shown = shown or path
    # O_NONBLOCK: a fifo that has just been swapped in must not stop us.
    reader = open_beneath(source, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        status = os.fstat(reader)
        if not stat.S_ISREG(status.st_mode):
            raise Refused(f"{shown}: not a regular file ({kind_name(status.st_mode)})")
        budget.take(status.st_size, shown)
        mode = 0o700 if status.st_mode & stat.S_IXUSR else 0o600
        writer = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode, dir_fd=target)
        try:
            _copy_bytes(reader, writer, status.st_size)
        except OSError as error:
            raise refused(error.errno or 0, shown) from error
        finally:
            os.close(writer)
    finally:
        os.close(reader)


def _copy_bytes(reader: int, writer: int, size: int) -> None:
    """Copies at most `size` bytes inside the kernel, so that a file that grows meanwhile does not matter.

    Holes stay holes: a sparse file takes neither time nor disk here.
    """
    at = 0
    while at < size:
        begin, end = _next_data(reader, at, size)
        if begin > at:
            os.ftruncate(writer, begin)
            os.lseek(writer, begin, os.SEEK_SET)
        at = begin
        while at < end:
            os.lseek(reader, at, os.SEEK_SET)
            copied = _copy_some(reader, writer, min(end - at, COPY_BYTES))
            if copied == 0:  # it has become shorter: the server will see that something is missing
                return
            at += copied


def _next_data(reader: int, at: int, size: int) -> tuple[int, int]:
    """Begin and end of the next part that is no hole; without one, twice the end: lseek(2), SEEK_DATA."""
    try:
        begin = os.lseek(reader, at, os.SEEK_DATA)
        return min(begin, size), min(os.lseek(reader, begin, os.SEEK_HOLE), size)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        end = max(at, min(size, os.fstat(reader).st_size))
        return (end, end) if end > at else (at, size)


def _copy_some(reader: int, writer: int, size: int) -> int:
    try:
        return os.copy_file_range(reader, writer, size)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP):
            raise
        return os.write(writer, os.read(reader, min(size, 1 << 20)))
