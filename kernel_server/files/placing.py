"""Moves what has arrived whole to its place in WORKDIR_OUT: by descriptors, beneath it, and where `rules` allow it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from kernel_server.errors import FileError
from kernel_server.files.beneath import kind_of, open_beneath
from kernel_server.files.rules import MAX_SHOWN, Identity, Rules, identity, is_hidden, own_code
from kernel_server.text import has_controls

FOLDER = os.O_DIRECTORY | os.O_RDONLY


def place(staging: int, folder: int, path: str, name: str, rules: Rules) -> str:
    """Moves `item` from staging to its place; a folder is merged into one that exists.

    Returns:
        Where it is beneath `folder`.

    Raises:
        FileError: something is in the way, or nothing is written there.
        OSError: as rename(2) and open(2).
    """
    parent_path, _, last = path.rstrip("/").rpartition("/")
    if path in (".", ""):
        parent_path, last = "", name
    elif path.endswith("/"):
        parent_path, last = path.rstrip("/"), name
    placing = _Placing(folder, rules)
    placing.check(last)
    parent = placing.make_folders(parent_path)
    try:
        is_folder = stat.S_ISDIR(os.stat("item", dir_fd=staging).st_mode)
        existing = placing.existing(parent, last)
        if existing is not None and stat.S_ISDIR(existing) and not is_folder:
            placing.check(name)
            into = placing.open(parent, last)
            os.close(parent)
            parent, parent_path, last = into, f"{parent_path}/{last}".lstrip("/"), name
            existing = placing.existing(parent, last)
        if existing is not None and stat.S_ISDIR(existing) != is_folder:
            raise FileError(
                f"{last}: {kind_of(existing)} is in the way. Nothing was written; choose another local_path."
            )
        if is_folder and existing is not None:
            placing.check_merge(staging, "item", parent, last)
            placing.merge(staging, "item", parent, last)
        else:
            os.rename("item", last, src_dir_fd=staging, dst_dir_fd=parent)
        return f"{parent_path}/{last}".lstrip("/")
    finally:
        os.close(parent)


class _Placing:
    def __init__(self, folder: int, rules: Rules) -> None:
        self._folder = folder
        self._rules = rules
        self._modules = identity(folder) not in own_code()
        self._root = _real_path(folder)
        self._listed: dict[Identity, frozenset[str]] = {}

    def check(self, name: str) -> None:
        """The name of a single file in the session may be anything."""
        if has_controls(name):
            raise FileError(
                f"{name[:MAX_SHOWN]!r} holds control characters. Nothing was written; name the file in local_path."
            )
        if why := self._rules.objection(name, modules=self._modules):
            raise FileError(self._rules.refusal(name, why))

    def make_folders(self, path: str) -> int:
        """The folder at a path, made where it is missing; the caller closes it."""
        current = os.dup(self._folder)
        try:
            for part in [part for part in path.split("/") if part not in ("", ".")]:
                self.check(part)
                if self.existing(current, part) is None:
                    os.mkdir(part, 0o777, dir_fd=current)
                following = self.open(current, part)
                os.close(current)
                current = following
        except BaseException:
            os.close(current)
            raise
        return current

    def open(self, parent: int, name: str) -> int:
        """A folder, links followed that stay in WORKDIR_OUT; the caller closes it."""
        opened = open_beneath(parent, name, FOLDER)
        try:
            if identity(opened) in own_code():
                raise FileError(
                    f"{name}: the server's own code is there. Nothing was written; give another local_path."
                )
            inside = os.path.relpath(_real_path(opened), self._root)
            hidden = [part for part in inside.split("/") if part not in (".", "..") and is_hidden(part)]
            if hidden and not self._rules.anything:
                why = f"it leads into {hidden[0][:MAX_SHOWN]!r}, whose name begins with a dot"
                raise FileError(self._rules.refusal(name, why))
        except BaseException:
            os.close(opened)
            raise
        return opened

    def existing(self, folder: int, name: str) -> int | None:
        """The mode of an entry; None where there is none.

        Raises:
            FileError: the file system has it under another name, which is hidden: it folds case, or has short names.
        """
        try:
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return None
        if not self._rules.anything and name not in self._names(folder):
            for other in filter(is_hidden, os.listdir(folder)):
                if os.path.samestat(os.stat(other, dir_fd=folder, follow_symlinks=False), found):
                    raise FileError(self._rules.refusal(name, f"it is {other!r} there, and that begins with a dot"))
        return found.st_mode

    def _names(self, folder: int) -> frozenset[str]:
        """What was in a folder when it was seen first; what has come since is one of those that we have put there."""
        key = identity(folder)
        if key not in self._listed:
            self._listed[key] = frozenset(os.listdir(folder))
        return self._listed[key]

    def _pairs(self, source: int, name: str, parent: int, last: str) -> Iterator[tuple[int, int, str, bool]]:
        from_folder = open_beneath(source, name, FOLDER)
        try:
            to_folder = self.open(parent, last)
            try:
                for entry in sorted(os.listdir(from_folder)):
                    is_folder = stat.S_ISDIR(os.stat(entry, dir_fd=from_folder, follow_symlinks=False).st_mode)
                    yield from_folder, to_folder, entry, is_folder
            finally:
                os.close(to_folder)
        finally:
            os.close(from_folder)

    def check_merge(self, source: int, name: str, parent: int, last: str) -> None:
        for from_folder, to_folder, entry, is_folder in self._pairs(source, name, parent, last):
            existing = self.existing(to_folder, entry)
            if existing is None:
                continue
            if stat.S_ISDIR(existing) != is_folder:
                raise FileError(f"{last}/{entry}: {kind_of(existing)} is in the way. Nothing was written.")
            if is_folder:
                self.check_merge(from_folder, entry, to_folder, entry)

    def merge(self, source: int, name: str, parent: int, last: str) -> None:
        for from_folder, to_folder, entry, is_folder in self._pairs(source, name, parent, last):
            if is_folder and self.existing(to_folder, entry) is not None:
                self.merge(from_folder, entry, to_folder, entry)
            else:
                os.rename(entry, entry, src_dir_fd=from_folder, dst_dir_fd=to_folder)


def _real_path(folder: int) -> str:
    return os.readlink(f"/proc/self/fd/{folder}")
