"""The files of a workspace, listed by a helper that has become the session's UID."""

from __future__ import annotations

import json
import os
import stat
from typing import Any

from .beneath import Refused, open_beneath
from .text import sendable

MAX_LISTED = 1_000
MAX_LISTED_BYTES = 900_000  # as JSON: paths may have any length, and an answer at most connections.MAX_LINE_BYTES
MAX_FOUND = 100_000  # beyond it nobody counts any more


def list_files(root: int, path: str) -> dict[str, Any]:
    """`files` beneath `path`: `path`, `size`, `modified` (seconds since 1970); folders only if they are empty.

    Hidden files are left out, and more than MAX_LISTED or MAX_LISTED_BYTES counted in `more`. No link is followed.
    """
    listed = _Listed()
    top = open_beneath(root, path, os.O_DIRECTORY | os.O_RDONLY)
    prefix = "/".join(part for part in path.split("/") if part not in ("", "."))
    try:
        for folder, folders, names, descriptor in os.fwalk(".", dir_fd=top):
            folders[:] = sorted(name for name in folders if is_shown(name))
            place = os.path.normpath(os.path.join(prefix, folder))
            place = "" if place == "." else f"{place}/"
            shown = sorted(name for name in names if is_shown(name))
            listed.found += len(shown)
            if listed.found > MAX_FOUND:
                raise Refused(f"{path or '.'}: more than {MAX_FOUND} files; list a folder in it")
            for name in shown:
                if not listed.has_room:
                    break
                listed.add(_describe(descriptor, name, place))
            if place and not shown and not folders:
                listed.found += 1
                listed.add({"path": sendable(place), "size": 0, "modified": os.fstat(descriptor).st_mtime})
    finally:
        os.close(top)
    return {"files": listed.files, "more": max(0, listed.found - len(listed.files))}


class _Listed:
    """What was found, as far as an answer can hold it."""

    def __init__(self) -> None:
        self.files: list[dict[str, Any]] = []
        self.found = 0
        self._bytes = 0

    @property
    def has_room(self) -> bool:
        return len(self.files) < MAX_LISTED and self._bytes < MAX_LISTED_BYTES

    def add(self, file: dict[str, Any]) -> None:
        if self.has_room:
            self._bytes += len(json.dumps(file))
            self.files.append(file)


def _describe(folder: int, name: str, place: str) -> dict[str, Any]:
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return {"path": sendable(place + name), "size": 0, "modified": 0.0}
    size = status.st_size if stat.S_ISREG(status.st_mode) else 0
    return {"path": sendable(place + name), "size": size, "modified": status.st_mtime}


def is_shown(name: str) -> bool:
    """Whether a file or folder of that name is of interest."""
    return bool(name) and not name.startswith(".") and name != "__pycache__"
