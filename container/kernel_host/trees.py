"""Trees of files as snapshots know them. They are walked by descriptors, one folder at a time: neither paths, nor the
stack, nor the number of open files grow with their depth. Nothing else may change the tree meanwhile.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple, final

BLOCK = 512  # bytes; of st_blocks
OPEN_FOLDER = os.O_DIRECTORY | os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
FOLDER, FILE, LINK, OTHER = "folder", "file", "link", "other"
ATTEMPTS = 5  # to walk through a tree that changes
READ, CHANGE = 0o500, 0o700  # what the owner must be allowed to do with a folder

Key = tuple[int, int]
"""Device and inode."""


class Node(NamedTuple):
    """An entry of a tree, which is a list of them where each folder precedes what is in it."""

    parent: int  # number of its folder in the list; the top is its own
    name: str
    kind: str
    mode: int
    mtime: int  # ns
    data: int | str = ""  # of a file: number of its inode; of a link: where it points


class Tree(NamedTuple):
    nodes: list[Node]
    inodes: list[os.stat_result]  # of the files, which may have several names
    blocks: dict[Key, int]  # bytes on disk of all that is in it


def key_of(status: os.stat_result) -> Key:
    return status.st_dev, status.st_ino


def path_of(nodes: Sequence[Node], number: int) -> str:
    names = []
    while number:
        names.append(nodes[number].name)
        number = nodes[number].parent
    return "/".join(reversed(names))


Finish = Callable[[int, int], None]


class _Level(NamedTuple):
    number: int
    key: Key
    mode: int


@final
class Descent:
    """The folders of a tree, open one at a time; those that are locked up are opened for as long as it takes."""

    def __init__(self, top: str, nodes: Sequence[Node], needed: int, finish: Finish | None = None) -> None:
        """Begins.

        Args:
            nodes: more may follow.
            needed: what the owner must be allowed to do with a folder, READ or CHANGE.
            finish: gets each folder as it is left, and its number; otherwise it gets back the mode that it had.
        """
        self._top = top
        self._nodes = nodes
        self._needed = needed
        self._finish = finish
        self._levels: list[_Level] = []
        self._depths: dict[int, int] = {}  # of the folders on the way, by number

    def __enter__(self) -> Descent:
        status = os.lstat(self._top)
        if locked := not self._allows(status):
            os.chmod(self._top, 0o700)
        try:
            self._folder = os.open(self._top, OPEN_FOLDER)
        except BaseException:
            if locked:
                os.chmod(self._top, stat.S_IMODE(status.st_mode))
            raise
        self._push(0, status)
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            while len(self._levels) > 1:
                self._leave()
            self._close(self._levels[0])
        finally:
            os.close(self._folder)

    def to(self, number: int) -> int:
        """The descriptor of a folder; it is open until the next call."""
        way = []
        while number not in self._depths:
            way.append(number)
            number = self._nodes[number].parent
        while len(self._levels) > self._depths[number] + 1:
            self._leave()
        for one in reversed(way):
            self._enter(one)
        return self._folder

    def _allows(self, status: os.stat_result) -> bool:
        return status.st_mode & self._needed == self._needed

    def _push(self, number: int, status: os.stat_result) -> None:
        self._depths[number] = len(self._levels)
        self._levels.append(_Level(number, key_of(status), stat.S_IMODE(status.st_mode)))

    def _enter(self, number: int) -> None:
        name = self._nodes[number].name
        status = os.stat(name, dir_fd=self._folder, follow_symlinks=False)
        if locked := stat.S_ISDIR(status.st_mode) and not self._allows(status):
            os.chmod(name, 0o700, dir_fd=self._folder)
        try:
            folder = os.open(name, OPEN_FOLDER, dir_fd=self._folder)
        except BaseException:
            if locked:
                os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=self._folder)
            raise
        os.close(self._folder)
        self._folder = folder
        self._push(number, status)

    def _leave(self) -> None:
        above = os.open("..", OPEN_FOLDER, dir_fd=self._folder)
        level = self._levels.pop()
        del self._depths[level.number]
        try:
            self._close(level)
        finally:
            os.close(self._folder)
            self._folder = above

    def _close(self, level: _Level) -> None:
        if key_of(os.fstat(self._folder)) != level.key:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), self._nodes[level.number].name)
        if self._finish:
            self._finish(self._folder, level.number)
        elif level.mode & self._needed != self._needed:
            os.fchmod(self._folder, level.mode)


def entries_of(folder: int, device: int) -> Iterator[tuple[str, str, os.stat_result]]:
    """Name, kind and status of what is in an open folder; a folder of another file system is no part of the tree."""
    with os.scandir(folder) as entries:
        for entry in entries:
            status = entry.stat(follow_symlinks=False)
            yield entry.name, _kind(status, device), status


def _kind(status: os.stat_result, device: int) -> str:
    if stat.S_ISREG(status.st_mode):
        return FILE
    if stat.S_ISDIR(status.st_mode) and status.st_dev == device:
        return FOLDER
    return LINK if stat.S_ISLNK(status.st_mode) else OTHER


def scan(top: str) -> Tree:
    """All that is in a folder."""
    status = os.lstat(top)
    device = status.st_dev
    tree = Tree([_node(0, "", FOLDER, status)], [], {key_of(status): status.st_blocks * BLOCK})
    nodes, numbers, pending = tree.nodes, dict[Key, int](), [0]
    with Descent(top, nodes, READ) as descent:
        while pending:
            number = pending.pop()
            folder = descent.to(number)
            for name, kind, status in entries_of(folder, device):
                key = key_of(status)
                tree.blocks[key] = status.st_blocks * BLOCK
                data: int | str = ""
                if kind == FILE:
                    data = numbers.setdefault(key, len(numbers))
                    if data == len(tree.inodes):
                        tree.inodes.append(status)
                elif kind == LINK:
                    data = os.readlink(name, dir_fd=folder)
                elif kind == FOLDER:
                    pending.append(len(nodes))
                nodes.append(_node(number, name, kind, status, data))
    return tree


def _node(parent: int, name: str, kind: str, status: os.stat_result, data: int | str = "") -> Node:
    return Node(parent, name, kind, stat.S_IMODE(status.st_mode), status.st_mtime_ns, data)


def bytes_beneath(top: str) -> dict[Key, int]:
    """Bytes on disk of all that is in a folder, by inode; a file is looked at once, however many names it has."""
    status = os.lstat(top)
    device = status.st_dev
    found, seen = {key_of(status): status.st_blocks * BLOCK}, set[int]()
    nodes, pending = [_node(0, "", FOLDER, status)], [0]
    with Descent(top, nodes, READ) as descent:
        while pending:
            number = pending.pop()
            with os.scandir(descent.to(number)) as entries:
                for entry in entries:
                    if entry.inode() in seen:
                        continue
                    seen.add(entry.inode())
                    status = entry.stat(follow_symlinks=False)
                    found[key_of(status)] = status.st_blocks * BLOCK
                    if _kind(status, device) == FOLDER:
                        pending.append(len(nodes))
                        nodes.append(_node(number, entry.name, FOLDER, status))
    return found


class Seen(NamedTuple):
    """What there is in a folder that changes meanwhile, beside its files.

    Attributes:
        others: folders in it that belong to others, and their owners.
        complete: whether all the rest was seen.
    """

    others: list[tuple[str, int]]
    complete: bool


def look_into(top: str, files: dict[int, dict[Key, int]], check: Callable[[], None]) -> Seen:
    """Looks at what is in a folder of live sessions, and in all folders beneath that belong to the same user.

    Nobody else can then move a folder while we are in it. Folders that are locked up are opened meanwhile.

    Args:
        files: takes, by owner, bytes on disk by inode.
        check: called at each entry; raises to end it.
    """
    for _ in range(ATTEMPTS):
        with suppress(OSError):  # ESTALE: a folder was moved while we were in it
            return Seen(list(_collect(top, files, check)), complete=True)
    return Seen([], complete=False)


def _collect(top: str, found: dict[int, dict[Key, int]], check: Callable[[], None]) -> Iterator[tuple[str, int]]:
    status = os.lstat(top)
    device, owner = status.st_dev, status.st_uid
    nodes, pending = [_node(0, "", FOLDER, status)], [0]
    with Descent(top, nodes, READ) as descent:
        while pending:
            number = pending.pop()
            try:
                folder = descent.to(number)
            except (FileNotFoundError, NotADirectoryError, PermissionError):  # removed or replaced meanwhile
                continue
            with os.scandir(folder) as entries:
                for entry in entries:
                    check()
                    with suppress(FileNotFoundError):
                        status = entry.stat(follow_symlinks=False)
                        found.setdefault(status.st_uid, {})[key_of(status)] = status.st_blocks * BLOCK
                        if _kind(status, device) != FOLDER:
                            continue
                        nodes.append(_node(number, entry.name, FOLDER, status))
                        if status.st_uid == owner:
                            pending.append(len(nodes) - 1)
                        else:
                            yield f"{top}/{path_of(nodes, len(nodes) - 1)}", status.st_uid
