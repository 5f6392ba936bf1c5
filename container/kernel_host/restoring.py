"""Bringing a folder to what a snapshot of it says."""

from __future__ import annotations

import os
import secrets
import stat
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from . import copies
from .cleaning import empty_folder
from .trees import CHANGE, FILE, FOLDER, LINK, OTHER, Descent, Key, Node, entries_of, key_of, path_of

MAX_LISTED = 40  # paths of each kind; the rest is counted


class Known(NamedTuple):
    """A file of the workspace as it was when a snapshot's copy was the same: its ctime tells of each change since."""

    size: int
    mtime: int  # ns
    ctime: int  # ns
    copy: int  # inode

    @classmethod
    def of(cls, status: os.stat_result, copy: int) -> Known:
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, copy)


class Paths:
    """The first of many."""

    def __init__(self) -> None:
        self.first: list[str] = []
        self.count = 0

    def add(self, nodes: Sequence[Node], folder: int, name: str) -> None:
        self.count += 1
        if self.count <= MAX_LISTED:
            self.first.append(os.path.join(path_of(nodes, folder), name))


class Restored(NamedTuple):
    """What was done; a folder that was removed counts once, with all that was in it."""

    changed: Paths
    removed: Paths
    created: Paths


class Restoration:
    """Is done once.

    What comes back is made in a folder of its own at the top of the workspace and moved to its place, so that a file
    is there whole or not at all. If this is broken off, the next one removes that folder.
    """

    def __init__(self, workspace: str, nodes: Sequence[Node], source: str, known: Mapping[Key, Known]) -> None:
        """Begins.

        Args:
            source: folder of the copies, each named by the number of its inode.
            known: what has not changed since, and which copies it is the same as.
        """
        self._workspace = workspace
        self._nodes = nodes
        self._source = source
        self._known = known
        with os.scandir(source) as entries:
            self._copies = {int(entry.name): entry.inode() for entry in entries}
        self._names = Counter(int(node.data) for node in nodes if node.kind == FILE)  # that are still to be placed
        self._inside: dict[int, list[int]] = defaultdict(list)
        for number in range(1, len(nodes)):
            self._inside[nodes[number].parent].append(number)
        self._made: set[int] = set()
        self._staging_name = f".{secrets.token_hex(16)}"
        self._staging = -1
        self.files: dict[Key, Known] = {}
        self.done = Restored(Paths(), Paths(), Paths())

    def run(self) -> None:
        """Does it; `files` and `done` then say what is there and what was done."""
        with Descent(self._workspace, self._nodes, CHANGE, self._finish) as descent:
            os.mkdir(self._staging_name, 0o700, dir_fd=descent.to(0))
            staging = f"{self._workspace}/{self._staging_name}"
            try:
                self._staging = os.open(staging, os.O_DIRECTORY | os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                self._device = os.fstat(self._staging).st_dev
                self._restore_all(descent)
            finally:
                if self._staging >= 0:
                    os.close(self._staging)
                empty_folder(staging)
                os.rmdir(staging)

    def _restore_all(self, descent: Descent) -> None:
        pending = [0]
        while pending:
            number = pending.pop()
            self._restore_folder(descent.to(number), number)
            pending.extend(inside for inside in self._inside[number] if self._nodes[inside].kind == FOLDER)

    def _restore_folder(self, folder: int, number: int) -> None:
        there = {name: (kind, status) for name, kind, status in entries_of(folder, self._device)}
        if not number:
            del there[self._staging_name]
        wanted = {self._nodes[inside].name: inside for inside in self._inside[number]}
        for name in there.keys() - wanted.keys():
            self._discard(folder, name, there[name][0])
            self.done.removed.add(self._nodes, number, name)
        for name, inside in wanted.items():
            kind, status = there.get(name, ("", None))
            if not self._is_same(folder, inside, kind, status):
                self._replace(folder, inside, kind)

    def _finish(self, folder: int, number: int) -> None:
        node, status = self._nodes[number], os.fstat(folder)
        if status.st_mtime_ns != node.mtime:
            os.utime(folder, ns=(status.st_atime_ns, node.mtime))
        if stat.S_IMODE(status.st_mode) != node.mode:
            os.fchmod(folder, node.mode)

    def _is_same(self, folder: int, number: int, kind: str, status: os.stat_result | None) -> bool:
        node = self._nodes[number]
        if kind != node.kind or not status:
            return False
        if kind == FOLDER and stat.S_IMODE(status.st_mode) != node.mode:
            self.done.changed.add(self._nodes, node.parent, node.name)  # when it is left
        if kind == LINK:
            return status.st_mtime_ns == node.mtime and os.readlink(node.name, dir_fd=folder) == node.data
        if kind == FILE:
            known = Known.of(status, self._copies[int(node.data)])
            if known != self._known.get(key_of(status)):
                return False
            self.files[key_of(status)] = known
            self._names[int(node.data)] -= 1
        return True

    def _replace(self, folder: int, number: int, kind: str) -> None:
        node = self._nodes[number]
        if node.kind == OTHER:
            if kind:
                self._discard(folder, node.name, kind)
                self.done.removed.add(self._nodes, node.parent, node.name)
            return
        if kind == FOLDER or (kind and node.kind == FOLDER):
            self._discard(folder, node.name, kind)
        if node.kind == FOLDER:
            os.mkdir(node.name, 0o700, dir_fd=folder)
        elif node.kind == LINK:
            os.symlink(str(node.data), "link", dir_fd=self._staging)
            os.utime("link", ns=(node.mtime, node.mtime), dir_fd=self._staging, follow_symlinks=False)
            self._place("link", folder, node.name)
        else:
            self._replace_file(folder, node)
        done = self.done.changed if kind else self.done.created
        done.add(self._nodes, node.parent, node.name)

    def _replace_file(self, folder: int, node: Node) -> None:
        number = int(node.data)
        name = str(number)
        if number not in self._made:
            self._make_file(name, node)
            self._made.add(number)
        self._names[number] -= 1
        if self._names[number]:
            os.link(name, "again", src_dir_fd=self._staging, dst_dir_fd=self._staging)
            name = "again"
        self._place(name, folder, node.name)
        status = os.stat(node.name, dir_fd=folder, follow_symlinks=False)
        self.files[key_of(status)] = Known.of(status, self._copies[number])

    def _make_file(self, name: str, node: Node) -> None:
        with open(f"{self._source}/{name}", "rb", opener=lambda path, _: os.open(path, copies.READ_FILE)) as source:
            made = os.open(name, copies.MAKE_FILE, 0o600, dir_fd=self._staging)
            try:
                copies.copy(source.fileno(), made)
                os.utime(made, ns=(node.mtime, node.mtime))
                os.fchmod(made, node.mode)
            finally:
                os.close(made)

    def _place(self, staged: str, folder: int, name: str) -> None:
        os.rename(staged, name, src_dir_fd=self._staging, dst_dir_fd=folder)

    def _discard(self, folder: int, name: str, kind: str) -> None:
        if kind != FOLDER:
            os.unlink(name, dir_fd=folder)
            return
        os.chmod(name, 0o700, dir_fd=folder)  # moving a folder writes into it
        os.rename(name, "removed", src_dir_fd=folder, dst_dir_fd=self._staging)
        removed = f"{self._workspace}/{self._staging_name}/removed"
        empty_folder(removed)
        os.rmdir(removed)
