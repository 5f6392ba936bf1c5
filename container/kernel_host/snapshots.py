"""Snapshots of a session's workspace, taken and restored by a process with its UID while nothing else of it runs.

A snapshot is a folder of the session's store: `index.json` says what the workspace was, and `files/` has a copy of each
file, named by its number there. A file that has not changed since is not copied again: it is one more name for the copy
that there is. So nobody may write into a copy, and a copy is never a file of a workspace.

`state.json` says which files of the workspace are the same as which copies. Each copy in it exists in a snapshot: only
so is the number of an inode no other file's.

What is not kept: owners, access times, extended attributes; of FIFOs, sockets, devices and other file systems in the
workspace only that they were there. A file that its owner may not read is made readable while it is copied.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from errno import EMLINK, ENOTSUP, EPERM, EXDEV
from typing import Any, NamedTuple

from . import copies
from .beneath import Refused, refused
from .cleaning import empty_folder
from .restoring import Known, Restoration, Restored
from .trees import BLOCK, FILE, OTHER, READ, Descent, Key, Node, Tree, bytes_beneath, key_of, scan

STATE, INDEX, FILES, UNFINISHED = "state.json", "index.json", "files", ".unfinished"
BASE = "base"  # of a clone: what it began with
COPY_MODE = 0o444  # for all: a clone may be another user's, and whose it is, is up to the store's folder
CLOCK_REALTIME_COARSE = 5  # clock_gettime(2): what file systems take the time from
TICK_SECONDS = 0.01  # at most, of that clock: CONFIG_HZ is at least 100
SECOND = 10**9  # ns
DAMAGED = (ValueError, TypeError, KeyError, IndexError)  # what comes of JSON that was not written here


class Taken(NamedTuple):
    files: int
    bytes_copied: int
    left_out: int  # FIFOs, sockets and the like


def take(workspace: str, store: str, name: str, limit_bytes: int, private: str) -> Taken:
    """Makes a snapshot.

    Args:
        limit_bytes: that `workspace` and `private`, which has the store in it, may take on disk; 0 for no limit.

    Raises:
        Refused: there is one of that name, or no room for another. Nothing is left of it.
    """
    target = _path(store, name)
    with _told(name):
        if os.path.lexists(target):
            raise Refused(f"There is already a checkpoint {name!r}. Take another name, or drop it before.")
        os.makedirs(store, 0o700, exist_ok=True)
        with _unfinished(store) as folder:
            taking = _Taking(workspace, folder, scan(workspace))
            taking.link_known(store)
            if limit_bytes:
                taking.check_room(limit_bytes, private)
            taking.copy_rest()
            _write_json(f"{folder}/{INDEX}", taking.tree.nodes)
            _publish(store, name, taking.state(name))
    kinds = [node.kind for node in taking.tree.nodes]
    return Taken(kinds.count(FILE), taking.bytes_copied, kinds.count(OTHER))


def restore(workspace: str, store: str, name: str) -> Restored:
    """Brings the workspace back to what it was; what is still the same is not touched.

    Raises:
        Refused: there is no such snapshot, or it failed half-way; it can be done again.
    """
    nodes = _index(store, name)
    with _told(name):
        restoration = Restoration(workspace, nodes, f"{_path(store, name)}/{FILES}", _State.read(store).files)
        restoration.run()
        _State.settled(name, restoration.files).write(store)
    return restoration.done


def clone(store: str, name: str, workspace: str, new_store: str) -> None:
    """Fills an empty workspace from a snapshot, which the new store has as `base`, with the same copies if it can.

    Raises:
        Refused: there is no such snapshot, the workspace is not empty, or it failed. Nothing is left of it.
    """
    nodes = _index(store, name)
    with _told(name):
        _path(new_store, BASE)
        if os.listdir(workspace) or os.path.lexists(f"{new_store}/{BASE}"):
            raise Refused("Only an empty workspace, without checkpoints, can be made a branch.")
        os.makedirs(new_store, 0o700, exist_ok=True)
        with _unfinished(new_store) as folder:
            _write_json(f"{folder}/{INDEX}", nodes)
            with os.scandir(f"{_path(store, name)}/{FILES}") as entries:
                for entry in entries:
                    _link_or_copy(entry.path, f"{folder}/{FILES}/{entry.name}")
            try:
                restoration = Restoration(workspace, nodes, f"{folder}/{FILES}", {})
                restoration.run()
                _publish(new_store, BASE, _State.settled(BASE, restoration.files))
            except BaseException:
                empty_folder(workspace)
                raise


def drop(store: str, name: str) -> None:
    """Removes a snapshot; what others have of it stays.

    Raises:
        Refused: there is no such snapshot.
    """
    if not os.path.isdir(_path(store, name)):
        _index(store, name)
    with _told(name):
        state = _State.read(store)
        if state.last in (None, name):
            others = _copies(store, [other for other in names(store) if other != name])
            kept = {key: known for key, known in state.files.items() if known.copy in others}
            _State(None, kept).write(store)
        _remove(f"{store}/{UNFINISHED}")
        os.rename(_path(store, name), f"{store}/{UNFINISHED}")
        _remove(f"{store}/{UNFINISHED}")


def names(store: str) -> list[str]:
    """Of the snapshots."""
    try:
        return sorted(name for name in os.listdir(store) if not name.startswith(".") and name != STATE)
    except FileNotFoundError:
        return []


class _Taking:
    """One snapshot on its way."""

    def __init__(self, workspace: str, folder: str, tree: Tree) -> None:
        self._workspace = workspace
        self._files = f"{folder}/{FILES}"
        self._missing = set(range(len(tree.inodes)))
        self._copies: dict[int, int] = {}  # inode by number
        self.tree = tree
        self.bytes_copied = 0

    def link_known(self, store: str) -> None:
        """Takes what has not changed from the last snapshot, or from any if that was dropped."""
        state = _State.read(store)
        there = _copies(store, [state.last] if state.last else names(store))
        for number, status in enumerate(self.tree.inodes):
            known = state.files.get(key_of(status))
            if not known or known != Known.of(status, known.copy) or known.copy not in there:
                continue
            if _link(there[known.copy], f"{self._files}/{number}"):
                self._copies[number] = known.copy
                self._missing.discard(number)

    def check_room(self, limit_bytes: int, private: str) -> None:
        blocks = sum(self.tree.inodes[number].st_blocks for number in self._missing)
        on_one_disk = os.stat(self._workspace).st_dev == os.stat(self._files).st_dev
        if not blocks or (on_one_disk and copies.can_share(self._files)):
            return
        needed, used = blocks * BLOCK, sum({**self.tree.blocks, **bytes_beneath(private)}.values())
        if used + needed > limit_bytes:
            raise Refused(
                f"The checkpoint would copy {_megabytes(needed)}, and the session's files take {_megabytes(used)} "
                f"already, checkpoints included; they may take {_megabytes(limit_bytes)} (PY_EXEC_WORKSPACE_SIZE). "
                "Remove files or checkpoints that are no longer needed."
            )

    def copy_rest(self) -> None:
        files = os.open(self._files, os.O_DIRECTORY | os.O_RDONLY | os.O_CLOEXEC)
        try:
            with Descent(self._workspace, self.tree.nodes, READ) as descent:
                for node in self.tree.nodes:
                    if node.kind == FILE and node.data in self._missing:
                        self._missing.discard(int(node.data))
                        self._copy(descent.to(node.parent), node, files)
        finally:
            os.close(files)

    def _copy(self, folder: int, node: Node, files: int) -> None:
        number = int(node.data)
        source = _open_file(folder, node)
        try:
            copies.start_writeback(source)
            status = self.tree.inodes[number] = os.fstat(source)
            if not stat.S_ISREG(status.st_mode):
                raise Refused(f"{node.name}: it was replaced meanwhile")
            target = os.open(str(number), copies.MAKE_FILE, COPY_MODE, dir_fd=files)
            try:
                self.bytes_copied += copies.copy(source, target)
                os.fchmod(target, COPY_MODE)
                self._copies[number] = os.fstat(target).st_ino
            finally:
                os.close(target)
        finally:
            os.close(source)

    def state(self, name: str) -> _State:
        inodes = self.tree.inodes
        return _State.settled(name, {key_of(inodes[n]): Known.of(inodes[n], copy) for n, copy in self._copies.items()})


def _open_file(folder: int, node: Node) -> int:
    if node.mode & stat.S_IRUSR:
        return os.open(node.name, copies.READ_FILE, dir_fd=folder)
    os.chmod(node.name, node.mode | stat.S_IRUSR, dir_fd=folder)
    try:
        return os.open(node.name, copies.READ_FILE, dir_fd=folder)
    finally:
        os.chmod(node.name, node.mode, dir_fd=folder)


@dataclass(frozen=True)
class _State:
    """What is known of the files of a workspace; `last` is the snapshot that has all the copies, None if none has."""

    last: str | None
    files: Mapping[Key, Known]

    @classmethod
    def settled(cls, last: str, files: Mapping[Key, Known]) -> _State:
        """Waits until whatever is done to a file from now on gives it another ctime, and leaves out the rest.

        The clock of file systems stands still for some milliseconds at a time, and for a second where inodes are small.
        """
        newest = max((known.ctime for known in files.values()), default=0)
        until = time.monotonic() + 2 * TICK_SECONDS
        while newest >= _now() and time.monotonic() < until:
            time.sleep(TICK_SECONDS / 10)
        now = _now()
        return cls(
            last, {key: one for key, one in files.items() if one.ctime + (one.ctime % SECOND == 0) * SECOND < now}
        )

    @classmethod
    def read(cls, store: str) -> _State:
        try:
            last, files = _read_json(f"{store}/{STATE}")
            return cls(last, {(device, inode): Known(*known) for device, inode, *known in files})
        except (FileNotFoundError, *DAMAGED):
            return cls(None, {})

    def write(self, store: str) -> None:
        """On a full disk all is forgotten: the next snapshot then copies each file."""
        path = f"{store}/{UNFINISHED}.json"
        try:
            self.put(path)
            os.rename(path, f"{store}/{STATE}")
        except OSError:
            for one in (f"{store}/{STATE}", path):
                with suppress(FileNotFoundError):
                    os.unlink(one)

    def put(self, path: str) -> None:
        _write_json(path, [self.last, [[*key, *known] for key, known in self.files.items()]])


def _now() -> int:
    return time.clock_gettime_ns(CLOCK_REALTIME_COARSE)


def _copies(store: str, snapshots: list[str]) -> dict[int, str]:
    """Where a copy is, by its inode."""
    found: dict[int, str] = {}
    for name in snapshots:
        try:
            with os.scandir(f"{store}/{name}/{FILES}") as entries:
                found |= {entry.inode(): entry.path for entry in entries}
        except FileNotFoundError:
            continue
    return found


def _link(source: str, target: str) -> bool:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (EXDEV, EPERM, EMLINK, ENOTSUP):  # another disk, another's file, 65 000 names: link(2)
            raise
        return False
    return True


def _link_or_copy(source: str, target: str) -> None:
    if _link(source, target):
        return
    with (
        open(source, "rb", opener=lambda path, _: os.open(path, copies.READ_FILE)) as reader,
        open(target, "wb", opener=lambda path, _: os.open(path, copies.MAKE_FILE, COPY_MODE)) as writer,
    ):
        copies.copy(reader.fileno(), writer.fileno())
        os.fchmod(writer.fileno(), COPY_MODE)


def _path(store: str, name: str) -> str:
    if not name or name[0] == "." or "/" in name or "\0" in name or name == STATE:
        raise Refused(f"{name!r} is no name for a checkpoint: take letters, digits, - and _")
    return f"{store}/{name}"


def _index(store: str, name: str) -> list[Node]:
    try:
        with _told(name, but=FileNotFoundError):
            nodes = [Node(*fields) for fields in _read_json(f"{_path(store, name)}/{INDEX}")]
            if not nodes or any(not 0 <= node.parent < number for number, node in enumerate(nodes[1:], 1)):
                raise ValueError("no tree")
            return nodes
    except FileNotFoundError as error:
        there = ", ".join(map(repr, names(store))) or "none"
        raise Refused(f"There is no checkpoint {name!r}; there are: {there}.") from error


def _read_json(path: str) -> Any:
    with open(path, encoding="utf-8", opener=lambda path, _: os.open(path, copies.READ_FILE)) as file:
        return json.load(file)


def _write_json(path: str, content: object) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)
    with open(path, "w", encoding="utf-8", opener=lambda path, _: os.open(path, copies.MAKE_FILE, 0o600)) as file:
        file.write(json.dumps(content, separators=(",", ":")))


@contextmanager
def _unfinished(store: str) -> Iterator[str]:
    """A folder for a snapshot that is being made; what a process has left that was killed is removed."""
    folder = f"{store}/{UNFINISHED}"
    _remove(folder)
    try:
        os.makedirs(f"{folder}/{FILES}", 0o700)
        yield folder
    except BaseException:
        _remove(folder)
        raise


def _publish(store: str, name: str, state: _State) -> None:
    """From the first step on the snapshot is there, from the second on the state is about it."""
    state.put(f"{store}/{UNFINISHED}/{STATE}")
    os.rename(f"{store}/{UNFINISHED}", f"{store}/{name}")
    os.rename(f"{store}/{name}/{STATE}", f"{store}/{STATE}")


def _remove(folder: str) -> None:
    if os.path.lexists(folder):
        empty_folder(folder)
        os.rmdir(folder)


@contextmanager
def _told(name: str, but: type[OSError] | tuple[()] = ()) -> Iterator[None]:
    """Tells the model what the system has refused, or that the session has been at its store."""
    try:
        yield
    except but:
        raise
    except DAMAGED as error:
        raise Refused(f"checkpoint {name}: it is damaged; drop it") from error
    except OSError as error:
        file = error.filename if isinstance(error.filename, str) and "/" not in error.filename else ""
        raise refused(error.errno or 0, f"checkpoint {name}" + (f", {file}" if file else "")) from error


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
