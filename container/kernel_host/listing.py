"""The files of a workspace, listed by a helper that has become the session's UID."""

from __future__ import annotations

import os
import stat
from typing import Any

from .beneath import Refused, open_beneath
from .text import sendable

MAX_LISTED = 1_000
MAX_FOUND = 100_000  # beyond it nobody counts any more


def list_files(root: int, path: str) -> dict[str, Any]:
    """`files` beneath `path`: `path`, `size`, `modified` (seconds since 1970); folders only if they are empty.

    Hidden files are left out, and more than MAX_LISTED counted in `more`. No link is followed.
    """
    files: list[dict[str, Any]] = []
    found = 0
    top = open_beneath(root, path, os.O_DIRECTORY | os.O_RDONLY)
    prefix = "/".join(part for part in path.split("/") if part not in ("", "."))
    try:
        for folder, folders, names, descriptor in os.fwalk(".", dir_fd=top):
            folders[:] = sorted(name for name in folders if is_shown(name))
            place = os.path.normpath(os.path.join(prefix, folder))
            place = "" if place == "." else f"{place}/"
            shown = sorted(name for name in names if is_shown(name))
            found += len(shown)
            if found > MAX_FOUND:
                raise Refused(f"{path or '.'}: more than {MAX_FOUND} files; list a folder in it")
            room = max(0, MAX_LISTED - len(files))
            files.extend(_describe(descriptor, name, place) for name in shown[:room])
            if place and not shown and not folders and len(files) < MAX_LISTED:
                files.append({"path": sendable(place), "size": 0, "modified": os.fstat(descriptor).st_mtime})
                found += 1
    finally:
        os.close(top)
    return {"files": files, "more": max(0, found - len(files))}


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
