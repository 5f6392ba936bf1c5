"""Changing a text file of a session, in a forked helper that has become its UID."""

from __future__ import annotations

import json
import os
import secrets
import stat
from collections.abc import Iterator
from itertools import islice
from typing import Any

from .beneath import Refused, kind_name, make_folders, mode_of, open_beneath, refused

MAX_EDIT_BYTES = 16 << 20
MAX_OCCURRENCES = 5  # shown


def edit(root: int, path: str, request: bytes) -> dict[str, Any]:
    """Writes a text file, or replaces `old`, which must occur exactly once; the file changes whole or not at all.

    Args:
        request: JSON `{"content": str, "old": str}`; it came by a file, so that the kernel host never held it.
    """
    wanted = json.loads(request)
    content, old = str(wanted["content"]), str(wanted["old"])
    parent_path, _, name = path.rpartition("/")
    parent = make_folders(root, parent_path) if not old else open_beneath(root, parent_path, os.O_DIRECTORY)
    try:
        mode = mode_of(parent, name)
        _check_editable(path, mode, must_exist=bool(old))
        if old:
            content = _replace_once(path, _read_text(parent, name, path), old, content)
        _write_whole(parent, name, content.encode(), stat.S_IMODE(mode) if mode is not None else 0o644)
    except OSError as error:
        raise refused(error.errno or 0, path) from error
    finally:
        os.close(parent)
    return {"path": path, "size": len(content.encode()), "created": mode is None}


def _check_editable(path: str, mode: int | None, *, must_exist: bool) -> None:
    if mode is None and must_exist:
        raise Refused(f"{path}: there is no such file; leave out `old` to create it")
    if mode is not None and stat.S_ISDIR(mode):
        raise Refused(f"{path}: is a folder, not a text file")
    if mode is not None and not stat.S_ISREG(mode):
        raise Refused(f"{path}: not a regular file ({kind_name(mode)})")


def _read_text(parent: int, name: str, path: str) -> str:
    with open(open_beneath(parent, name, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        _check_editable(path, os.fstat(file.fileno()).st_mode, must_exist=True)  # it may have been swapped meanwhile
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
            os.fchmod(writer, mode)
        os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
    except BaseException:
        os.unlink(temporary, dir_fd=parent)
        raise
