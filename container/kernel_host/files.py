"""File operations of a session, run in a forked helper that has become the session's UID.

The session can swap anything in its workspace while we work. So every name is resolved by openat2(2) beneath a
folder that is already open, no link is ever followed, and the kernel checks permissions as for the session itself.
The staging folder is opened before privileges are dropped; it lies on the same file system, so that a file comes
in by rename, whole or not at all.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import secrets
import stat
from collections.abc import Iterator
from itertools import islice
from typing import Any

SYS_OPENAT2 = 437  # the same on every architecture
RESOLVE = 0x02 | 0x04 | 0x08  # RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS | RESOLVE_BENEATH, openat2(2)
COPY_BYTES = 16 << 20
MAX_EDIT_BYTES = 16 << 20
MAX_SKIPPED_NAMES = 20
MAX_SHOWN_CHARACTERS = 300
MAX_OCCURRENCES = 5  # shown
MAX_PACKAGES = 5_000

_libc = ctypes.CDLL(None, use_errno=True)


class Refused(Exception):
    """The operation cannot be done; the message is for the model."""


class _OpenHow(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


def open_beneath(root: int, path: str, flags: int) -> int:
    """Opens `path` beneath the open folder `root` without following any link; the caller closes it.

    Raises:
        Refused: it is missing, leaves the folder, or goes through a link.
    """
    how = _OpenHow(flags | os.O_CLOEXEC, 0, RESOLVE)
    descriptor = _libc.syscall(SYS_OPENAT2, root, os.fsencode(path or "."), ctypes.byref(how), ctypes.sizeof(how))
    if descriptor >= 0:
        return int(descriptor)
    code = ctypes.get_errno()
    if code == errno.ENOSYS:
        return _open_by_steps(root, path, flags)
    raise _refused(code, path)


def _open_by_steps(root: int, path: str, flags: int) -> int:
    """The same for kernels before 5.6: each folder on the way is opened by itself, never through a link."""
    current = os.dup(root)
    parts = [part for part in path.split("/") if part not in ("", ".")]
    try:
        if ".." in parts:
            raise _refused(errno.EXDEV, path)
        for part in parts[:-1]:
            following = os.open(part, os.O_DIRECTORY | os.O_NOFOLLOW | os.O_RDONLY, dir_fd=current)
            os.close(current)
            current = following
        return os.open(parts[-1] if parts else ".", flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=current)
    except OSError as error:
        raise _refused(error.errno or 0, path) from error
    finally:
        os.close(current)


def _refused(code: int, path: str) -> Refused:
    reasons = {
        errno.ENOENT: "there is no such file or folder in the workspace",
        errno.ELOOP: "it is, or goes through, a symbolic link; use the path that the link points to",
        errno.EXDEV: "it leaves the workspace",
        errno.ENOTDIR: "a part of the path is a file, not a folder",
        errno.EACCES: "the session may not access it",
        errno.ENOSPC: "the disk of the workspaces is full; remove files that are no longer needed",
        errno.EDQUOT: "the disk of the workspaces is full; remove files that are no longer needed",
        errno.ENAMETOOLONG: "the name is longer than 255 bytes",
        errno.ENXIO: "it is not a regular file",
        errno.EFBIG: "it is larger than the session's file size limit",
    }
    return Refused(f"{path or '.'}: {reasons.get(code, os.strerror(code))}")


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
        raise Refused(f"{path}: neither a regular file nor a folder ({_kind_name(status.st_mode)})")
    return {"kind": "file", "size": status.st_size}


def _kind_name(mode: int) -> str:
    names = {stat.S_IFIFO: "a fifo", stat.S_IFSOCK: "a socket", stat.S_IFLNK: "a symbolic link"}
    return names.get(stat.S_IFMT(mode), "a device")


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
    parent = _make_folders(root, parent_path)
    try:
        source_is_folder = stat.S_ISDIR(os.stat(name, dir_fd=staging, follow_symlinks=False).st_mode)
        existing = _mode(parent, last)
        if existing is not None and stat.S_ISDIR(existing) and not source_is_folder:
            into = open_beneath(parent, last, os.O_DIRECTORY | os.O_RDONLY)
            os.close(parent)
            parent, parent_path, last = into, f"{parent_path}/{last}".lstrip("/"), name
            existing = _mode(parent, last)
        if source_is_folder and existing is not None:
            _check_merge(staging, name, parent, last)
            _merge(staging, name, parent, last)
        elif existing is not None and stat.S_ISDIR(existing):
            raise Refused(f"{parent_path}/{last}: a folder is in the way of the file")
        else:
            os.rename(name, last, src_dir_fd=staging, dst_dir_fd=parent)
    except OSError as error:
        raise _refused(error.errno or 0, target) from error
    finally:
        os.close(parent)
    return {"path": f"{parent_path}/{last}".lstrip("/")}


def _mode(folder: int, name: str) -> int | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return None


def _make_folders(root: int, path: str) -> int:
    """Opens the folder `path`, made as needed; the caller closes it."""
    current = os.dup(root)
    try:
        for part in [part for part in path.split("/") if part not in ("", ".")]:
            try:
                following = open_beneath(current, part, os.O_DIRECTORY | os.O_RDONLY)
            except Refused:
                if part == ".." or _mode(current, part) is not None:
                    raise
                os.mkdir(part, 0o755, dir_fd=current)
                following = open_beneath(current, part, os.O_DIRECTORY | os.O_RDONLY)
            os.close(current)
            current = following
    except BaseException:
        os.close(current)
        raise
    return current


def _check_merge(source: int, name: str, parent: int, last: str) -> None:
    existing = _mode(parent, last)
    if existing is None:
        return
    if not stat.S_ISDIR(existing):
        raise Refused(f"{last}: a file is in the way of the folder of that name; remove it or choose another path")
    with _Folder(source, name) as from_folder, _Folder(parent, last) as to_folder:
        for entry in os.listdir(from_folder):
            if stat.S_ISDIR(os.stat(entry, dir_fd=from_folder, follow_symlinks=False).st_mode):
                _check_merge(from_folder, entry, to_folder, entry)
            elif stat.S_ISDIR(_mode(to_folder, entry) or 0):
                raise Refused(f"{last}/{entry}: a folder is in the way of the file of that name")


def _merge(source: int, name: str, parent: int, last: str) -> None:
    if _mode(parent, last) is None:
        os.rename(name, last, src_dir_fd=source, dst_dir_fd=parent)
        return
    with _Folder(source, name) as from_folder, _Folder(parent, last) as to_folder:
        for entry in os.listdir(from_folder):
            if stat.S_ISDIR(os.stat(entry, dir_fd=from_folder, follow_symlinks=False).st_mode):
                _merge(from_folder, entry, to_folder, entry)
            else:
                os.rename(entry, entry, src_dir_fd=from_folder, dst_dir_fd=to_folder)


class _Folder:
    """An open folder, never reached through a link."""

    def __init__(self, parent: int, name: str) -> None:
        self._descriptor = open_beneath(parent, name, os.O_DIRECTORY | os.O_RDONLY)

    def __enter__(self) -> int:
        return self._descriptor

    def __exit__(self, *exc_info: object) -> None:
        os.close(self._descriptor)


def send(root: int, staging: int, path: str, name: str, max_bytes: int) -> dict[str, Any]:
    """Copies `path` beneath `root` into staging as `name`, so that the session cannot change it any more.

    Links, devices, fifos and sockets inside a folder are left out and named in the answer.
    """
    budget = _Budget(max_bytes)
    what = describe(root, path)
    if what["kind"] == "file":
        _copy_file(root, path, staging, name, budget)
    else:
        with _Folder(root, path) as folder:
            _copy_folder(folder, staging, name, budget, path.rstrip("/"))
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
        self.max_bytes, self.used, self.files = max_bytes, 0, 0
        self.skipped: list[str] = []
        self.skipped_count = 0

    def skip(self, what: str) -> None:
        self.skipped_count += 1
        if len(self.skipped) < MAX_SKIPPED_NAMES:
            self.skipped.append(what[-MAX_SHOWN_CHARACTERS:])

    def take(self, size: int, path: str) -> None:
        self.used += size
        self.files += 1
        if self.used > self.max_bytes:
            raise Refused(f"{path}: more than {self.max_bytes} bytes in all, which is what may be copied out at once")


def _copy_folder(source: int, staging: int, name: str, budget: _Budget, shown: str) -> None:
    os.mkdir(name, 0o700, dir_fd=staging)
    with _Folder(staging, name) as target:
        for entry in sorted(os.listdir(source)):
            mode = _mode(source, entry)
            if mode is None:
                continue
            if stat.S_ISDIR(mode):
                with _Folder(source, entry) as folder:
                    _copy_folder(folder, target, entry, budget, f"{shown}/{entry}")
            elif stat.S_ISREG(mode):
                _copy_file(source, entry, target, entry, budget)
            else:
                budget.skip(f"{shown}/{entry} ({_kind_name(mode)})")


def _copy_file(source: int, path: str, target: int, name: str, budget: _Budget) -> None:
    # O_NONBLOCK: a fifo that has just been swapped in must not stop us.
    reader = open_beneath(source, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        status = os.fstat(reader)
        if not stat.S_ISREG(status.st_mode):
            raise Refused(f"{path}: not a regular file ({_kind_name(status.st_mode)})")
        budget.take(status.st_size, path)
        mode = 0o700 if status.st_mode & stat.S_IXUSR else 0o600
        writer = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode, dir_fd=target)
        try:
            _copy_bytes(reader, writer, status.st_size)
        except OSError as error:
            raise _refused(error.errno or 0, path) from error
        finally:
            os.close(writer)
    finally:
        os.close(reader)


def _copy_bytes(reader: int, writer: int, size: int) -> None:
    """Copies at most `size` bytes inside the kernel, so that a file that grows meanwhile does not matter."""
    left = size
    while left > 0:
        try:
            copied = os.copy_file_range(reader, writer, min(left, COPY_BYTES))
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP):
                raise
            copied = os.write(writer, os.read(reader, min(left, 1 << 20)))
        if copied == 0:
            return
        left -= copied


def edit(root: int, path: str, request: bytes) -> dict[str, Any]:
    """Writes a text file, or replaces `old`, which must occur exactly once; the file changes whole or not at all.

    Args:
        request: JSON `{"content": str, "old": str}`; it came by a file, so that the kernel host never held it.
    """
    wanted = json.loads(request)
    content, old = str(wanted["content"]), str(wanted["old"])
    parent_path, _, name = path.rpartition("/")
    parent = _make_folders(root, parent_path) if not old else open_beneath(root, parent_path, os.O_DIRECTORY)
    try:
        mode = _mode(parent, name)
        _check_editable(path, mode, bool(old))
        if old:
            content = _replace_once(path, _read_text(parent, name, path), old, content)
        _write_whole(parent, name, content.encode(), stat.S_IMODE(mode) if mode is not None else 0o644)
    except OSError as error:
        raise _refused(error.errno or 0, path) from error
    finally:
        os.close(parent)
    return {"path": path, "size": len(content.encode()), "created": mode is None}


def _check_editable(path: str, mode: int | None, must_exist: bool) -> None:
    if mode is None and must_exist:
        raise Refused(f"{path}: there is no such file; leave out `old` to create it")
    if mode is not None and stat.S_ISDIR(mode):
        raise Refused(f"{path}: is a folder, not a text file")
    if mode is not None and not stat.S_ISREG(mode):
        raise Refused(f"{path}: not a regular file ({_kind_name(mode)})")


def _read_text(parent: int, name: str, path: str) -> str:
    with open(open_beneath(parent, name, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        data = file.read(MAX_EDIT_BYTES + 1)
    if len(data) > MAX_EDIT_BYTES:
        raise Refused(f"{path}: larger than {MAX_EDIT_BYTES >> 20} MiB; change it with run_code instead")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Refused(f"{path}: not UTF-8 text (byte {error.start}); change it with run_code instead") from error


def _replace_once(path: str, text: str, old: str, new: str) -> str:
    found = list(islice(_occurrences(text, old), MAX_OCCURRENCES + 1))
    if len(found) == 1:
        return text[: found[0]] + new + text[found[0] + len(old) :]
    if not found:
        raise Refused(f"{path}: `old` does not occur in it; it must match exactly, white space included")
    times = f"{len(found)} times" if len(found) <= MAX_OCCURRENCES else f"more than {MAX_OCCURRENCES} times"
    lines = ", ".join(str(text.count("\n", 0, at) + 1) for at in found[:MAX_OCCURRENCES])
    raise Refused(
        f"{path}: `old` occurs {times} (lines {lines}{', …' if len(found) > MAX_OCCURRENCES else ''}); "
        "give more of the text around the one you mean"
    )


def _occurrences(text: str, old: str) -> Iterator[int]:
    at = text.find(old)
    while at >= 0:
        yield at
        at = text.find(old, at + 1)  # they may overlap


def _write_whole(parent: int, name: str, data: bytes, mode: int) -> None:
    temporary = f".edit-{secrets.token_hex(8)}"
    writer = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode, dir_fd=parent)
    try:
        with open(writer, "wb") as file:
            file.write(data)
        os.chmod(temporary, mode, dir_fd=parent)
        os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
    except BaseException:
        os.unlink(temporary, dir_fd=parent)
        raise


def packages() -> dict[str, Any]:
    """Name and version of every distribution on the path, sorted by name."""
    from importlib import metadata

    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        name, version = str(distribution.metadata["Name"])[:MAX_SHOWN_CHARACTERS], str(distribution.version)
        if name not in found and len(found) < MAX_PACKAGES:  # the first on the path is the one that is imported
            found[name] = version[:MAX_SHOWN_CHARACTERS]
    return {"packages": sorted(found.items(), key=lambda item: item[0].lower())}


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
