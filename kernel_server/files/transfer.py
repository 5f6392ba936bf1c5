"""Tar streams out of WORKDIR_IN and into WORKDIR_OUT, member by member; all functions block and run in threads.

Tars are never unpacked by tarfile: each member is checked and written by hand beneath a folder that is open.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain

from kernel_server.errors import FileError
from kernel_server.files.beneath import kind_of, open_beneath
from kernel_server.files.members import members
from kernel_server.files.placing import place
from kernel_server.files.rules import MAX_SHOWN, TEMPORARY_PREFIX, LeftOut, Rules, identity, own_code
from kernel_server.streams import IteratorReader
from kernel_server.text import has_controls

CHUNK_BYTES = 1 << 20
BROKEN = "The copy broke off on its way out of the container. Nothing was written; try again."
MAX_ENTRIES = 100_000  # files and folders; container/kernel_host/files.py refuses more before they are sent
MAX_DEPTH = 250  # parts of a name; kernel_host sends no folder that is deeper than 200
TEMPORARY = re.compile(rf"{re.escape(TEMPORARY_PREFIX)}([0-9a-f]{{8}})[0-9a-f]{{8}}")
PLAIN = Rules()
SETTLED_SECONDS = 10.0  # a younger folder may be one that its server has not locked yet


@dataclass
class Sending:
    """One file or folder of WORKDIR_IN on its way in.

    Attributes:
        descriptor: it, opened.
        name: what it is called at the other end.
        is_folder: whether it is a folder.
        size: bytes sent so far.
        files: files sent so far.
        skipped: what was left out of a folder, with the reason.
    """

    descriptor: int
    name: str
    is_folder: bool
    size: int = 0
    files: int = 0
    skipped: list[str] = field(default_factory=list)

    def tar(self, uid: int) -> Iterator[bytes]:
        """The tar stream, owned by `uid`."""
        yield from self._member(self.descriptor, self.name, uid)
        yield b"\0" * (2 * tarfile.BLOCKSIZE)

    def _member(self, descriptor: int, path: str, uid: int) -> Iterator[bytes]:
        status = os.fstat(descriptor)
        info = tarfile.TarInfo(path)
        info.uid = info.gid = uid
        info.mtime = int(status.st_mtime)
        if stat.S_ISDIR(status.st_mode):
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            yield _header(info)
            yield from self._children(descriptor, path, uid)
            return
        if not stat.S_ISREG(status.st_mode):  # it was a file a moment ago
            raise FileError(f"{path} has become {kind_of(status.st_mode)}. Nothing was copied; try again.")
        info.size = status.st_size
        info.mode = 0o755 if status.st_mode & 0o111 else 0o644
        yield _header(info)
        yield from self._contents(descriptor, path, info.size)

    def _children(self, folder: int, path: str, uid: int) -> Iterator[bytes]:
        for entry in sorted(os.listdir(folder)):
            try:
                mode = os.stat(entry, dir_fd=folder, follow_symlinks=False).st_mode
                if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                    self.skipped.append(f"{path}/{entry} ({kind_of(mode)})")
                    continue
                child = os.open(entry, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
            except OSError as error:
                raise FileError(f"{path}/{entry} could not be read: {error.strerror}. Nothing was copied.") from error
            try:
                yield from self._member(child, f"{path}/{entry}", uid)
            finally:
                os.close(child)

    def _contents(self, descriptor: int, path: str, size: int) -> Iterator[bytes]:
        left = size
        while left:
            try:
                chunk = os.read(descriptor, min(left, CHUNK_BYTES))
            except OSError as error:
                raise FileError(f"{path} could not be read: {error.strerror}. Nothing was copied.") from error
            if not chunk:
                raise FileError(f"{path} became shorter while it was copied. Nothing was copied; try again.")
            left -= len(chunk)
            self.size += len(chunk)
            yield chunk
        self.files += 1
        if padding := -size % tarfile.BLOCKSIZE:
            yield b"\0" * padding


def _header(info: tarfile.TarInfo) -> bytes:
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


@contextmanager
def open_to_send(folder: int, path: str) -> Iterator[Sending]:
    """Opens a file or folder of WORKDIR_IN for sending.

    Raises:
        FileError: it is missing, leaves WORKDIR_IN, cannot be read, or is neither a file nor a folder.
    """
    try:
        descriptor = open_beneath(folder, path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        reasons = {
            errno.ENOENT: "there is no such file or folder in WORKDIR_IN",
            errno.EXDEV: "it is, or goes through, a link that leaves WORKDIR_IN; copy the file into WORKDIR_IN first",
            errno.ELOOP: "it goes round in circles through symbolic links",
            errno.ENOTDIR: "a part of the path is a file, not a folder",
            errno.EACCES: "the server's user may not read it",
            errno.ENXIO: "it is not a regular file",
        }
        raise FileError(f"{path}: {reasons.get(error.errno or 0, error.strerror)}.") from error
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise FileError(f"{path} is {kind_of(mode)}; only files and folders can be copied.")
        name = path.rpartition("/")[2]
        yield Sending(descriptor, name if name not in ("", ".") else "workdir", stat.S_ISDIR(mode))
    finally:
        os.close(descriptor)


def receive(
    chunks: Iterator[bytes],
    folder: int,
    path: str,
    *,
    name: str,
    files: int,
    size: int,
    rules: Rules = PLAIN,
    left_out: LeftOut | None = None,
) -> str:
    """Writes a tar stream of one file or folder to `path` in WORKDIR_OUT, whole or not at all.

    Args:
        path: where to; an existing folder takes the item in under `name`.
        files, size: what must have arrived in the end, in files and bytes.
        rules: what may be written; of a folder, all else is left out.
        left_out: gets that.

    Returns:
        The path beneath WORKDIR_OUT where it is now.

    Raises:
        FileError: something is in the way, the disk is full, or the stream is not what it should be.
    """
    rules.check_path(path, "local_path")
    arriving = _Arriving(files, size, rules, identity(folder) not in own_code(), name, left_out or LeftOut())
    try:
        _remove_unfinished(folder, rules)
        with _staging(folder, rules) as staging:
            arriving.unpack(chunks, staging)
            return place(staging, folder, path, name, rules)
    except OSError as error:
        raise _not_written(path, error) from error


def _not_written(path: str, error: OSError) -> FileError:
    reasons = {
        errno.ENOSPC: "the host's disk is full",
        errno.EDQUOT: "the host's disk quota is used up",
        errno.EACCES: "the server's user may not write there",
        errno.EROFS: "the folder is read-only",
        errno.EXDEV: "the path leaves WORKDIR_OUT through a link",
        errno.ENOTDIR: "a part of the path is a file, not a folder",
        errno.ENAMETOOLONG: "the name is too long for the host's file system",
    }
    return FileError(f"{path}: {reasons.get(error.errno or 0, error.strerror)}. Nothing was written.")


def _remove(folder: int, name: str) -> None:
    # rmtree takes a dir_fd only since Python 3.11.
    shutil.rmtree(f"/proc/self/fd/{folder}/{name}", ignore_errors=True)


@contextmanager
def _staging(folder: int, rules: Rules) -> Iterator[int]:
    """A temporary folder in WORKDIR_OUT, locked, and called so that it can be told from one of the user."""
    temporary = _temporary_name(secrets.token_hex(4), rules)
    os.mkdir(temporary, 0o700, dir_fd=folder)
    try:
        staging = open_beneath(folder, temporary, os.O_DIRECTORY | os.O_RDONLY | os.O_NOFOLLOW)
        try:
            with suppress(OSError):  # not every file system has locks
                fcntl.flock(staging, fcntl.LOCK_EX)
            yield staging
        finally:
            os.close(staging)
    finally:
        _remove(folder, temporary)


def _temporary_name(chosen: str, rules: Rules) -> str:
    """A name of 16 hex digits after the prefix: those chosen, and as many that only this user's servers know to them."""
    return f"{TEMPORARY_PREFIX}{chosen}{rules.secret.mark('copy', chosen)[:8]}"


def _remove_unfinished(folder: int, rules: Rules) -> None:
    """Removes what copies have left whose server was killed: they are ours by their name, and not locked any more."""
    with os.scandir(folder) as entries:
        names = [
            entry.name
            for entry in entries
            if (found := TEMPORARY.fullmatch(entry.name)) and entry.name == _temporary_name(found[1], rules)
        ]
    for name in names:
        with suppress(OSError):
            left = open_beneath(folder, name, os.O_DIRECTORY | os.O_RDONLY | os.O_NOFOLLOW)
            try:
                if time.time() - os.fstat(left).st_mtime > SETTLED_SECONDS:
                    fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _remove(folder, name)
            finally:
                os.close(left)


@dataclass
class _Arriving:
    """A tar stream that comes into the staging folder."""

    files: int
    size: int
    rules: Rules
    modules: bool
    name: str
    left_out: LeftOut
    arrived_files: int = 0
    arrived_bytes: int = 0

    def unpack(self, chunks: Iterator[bytes], staging: int) -> None:
        stream = IteratorReader(chunks)
        for entries, member in enumerate(members(stream, BROKEN), 1):
            if entries > MAX_ENTRIES:
                raise FileError(f"The container sent more than {MAX_ENTRIES} files and folders. Nothing was written.")
            parts = _parts(member.name)
            self._count(member)
            if why := self._objection(parts):
                self._leave_out(member, parts, why)
                continue
            parent = _open_parent(staging, parts)
            try:
                if member.isdir():
                    os.mkdir(parts[-1], 0o755, dir_fd=parent)
                else:
                    is_program = self.rules.anything and bool(member.mode & stat.S_IXUSR)
                    self.arrived_bytes += _write(stream, member.size, parent, parts[-1], 0o777 if is_program else 0o666)
                    self.arrived_files += 1
            finally:
                os.close(parent)
        if (self.arrived_files, self.arrived_bytes) != (self.files, self.size):
            raise FileError("The copy arrived incomplete. Nothing was written; try again.")

    def _count(self, member: tarfile.TarInfo) -> None:
        if member.isdir():
            return
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
            shown = repr(member.name[:MAX_SHOWN])
            raise FileError(f"The container sent {shown}, neither file nor folder. Nothing was written.")
        # Before it fills the disk.
        if not 0 <= member.size <= self.size - self.arrived_bytes or self.arrived_files == self.files:
            raise FileError("The container sent more than it had announced. Nothing was written.")

    def _objection(self, parts: list[str]) -> str:
        """Why a part of a folder is not written. The item itself goes by its name on the host."""
        found = (self.rules.objection(part, modules=self.modules) for part in parts[1:])
        return next(filter(None, found), "")

    def _leave_out(self, member: tarfile.TarInfo, parts: list[str], why: str) -> None:
        if not any(self._objection(["item", part]) for part in parts[1:-1]):  # else its folder is named already
            self.left_out.add("/".join([self.name, *parts[1:]]), why)
        if member.isreg():
            self.arrived_bytes += member.size
            self.arrived_files += 1
            self.left_out.files += 1
            self.left_out.size += member.size


def _parts(name: str) -> list[str]:
    """The parts of a member's name; the first is `item`."""
    parts, shown = name.split("/"), repr(name[:MAX_SHOWN])
    if parts[0] != "item" or any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise FileError(f"The container sent an unexpected name: {shown}. Nothing was written.")
    if len(parts) > MAX_DEPTH:
        raise FileError(f"The container sent folders that are too deep: {shown}. Nothing was written.")
    if has_controls(name):  # kernel_host leaves it out
        raise FileError(f"The container sent a name with control characters: {shown}. Nothing was written; rename it.")
    return parts


def _open_parent(staging: int, parts: list[str]) -> int:
    return open_beneath(staging, "/".join(parts[:-1]) or ".", os.O_DIRECTORY | os.O_RDONLY)


def _write(stream: IteratorReader, size: int, parent: int, name: str, mode: int) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    writer = os.open(name, flags, mode, dir_fd=parent)
    try:
        return stream.pour(writer, size)
    finally:
        os.close(writer)


def free_bytes(folder: int) -> int:
    """Room on the file system of an open folder, in bytes."""
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def write_text(folder: int, path: str, text: str, name: str, rules: Rules = PLAIN) -> str:
    """Writes a text file to `path` in WORKDIR_OUT (`name` if that is a folder), whole or not at all; returns where it is.

    Raises:
        FileError: as `receive`.
    """
    return write_pieces(folder, path, [text.encode()], name, rules)


def write_pieces(folder: int, path: str, pieces: Iterable[bytes], name: str, rules: Rules) -> str:
    """The same for a file of any size that is made piece by piece.

    It grows as a file without a name in WORKDIR_OUT, since a tar names the size first.
    """
    try:
        with tempfile.TemporaryFile(dir=f"/proc/self/fd/{folder}") as file:
            file.writelines(pieces)
            info = tarfile.TarInfo("item")
            info.size = file.tell()
            file.seek(0)
            padding = b"\0" * (-info.size % tarfile.BLOCKSIZE + 2 * tarfile.BLOCKSIZE)
            chunks = chain([_header(info)], iter(partial(file.read, CHUNK_BYTES), b""), [padding])
            return receive(chunks, folder, path, name=name, files=1, size=info.size, rules=rules)
    except OSError as error:
        raise _not_written(path, error) from error
