"""What a cell changed, as the metadata of its `execute_reply`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from .pictures import Pictures
from .text import sendable
from .variables import MAX_SIZE, Changes, Variables
from .watch import Watch

MAX_LISTED = 40  # of each kind; the rest is counted
MAX_NAME, MAX_PATH = 100, 1_000  # characters

Described = dict[str, Any]
Describe = Callable[[str], Described]


class ChangeReport:
    """Looks at the session before and after each cell."""

    def __init__(self, variables: Variables, pictures: Pictures, workspace: str) -> None:
        self._workspace = workspace
        self._variables = variables
        self._pictures = pictures
        self._watch = Watch(workspace)
        variables.changes()

    def begin(self) -> None:
        """A cell is about to run: what was done to the files since the last one was not done by it."""
        self._watch.forget()
        self._pictures.written.clear()
        self._variables.begin()

    def end(self) -> dict[str, Any]:
        """`variables` and `files`, each with what was created, changed and removed; without what is empty."""
        variables, files = self._variables.changes(), self._watch.changes()
        if self._pictures.written:
            files.created = [path for path in files.created if path not in self._pictures.written]
        return {
            "variables": _listed(variables, lambda name: {"name": _text(name, MAX_NAME)}, self._variables.describe),
            "files": _listed(files, lambda path: {"path": _text(path, MAX_PATH)}, self._describe_file),
        }

    def _describe_file(self, path: str) -> Described:
        try:
            size = os.lstat(f"{self._workspace}/{path}").st_size
        except OSError:
            return {}
        return {"size": min(size, MAX_SIZE - 1)}


def _listed(changes: Changes, name: Describe, describe: Describe) -> Described:
    listed: Described = {}
    for kind, names in vars(changes).items():
        if names:
            shown = names[:MAX_LISTED]
            listed[kind] = [name(one) if kind == "removed" else {**name(one), **describe(one)} for one in shown]
        if len(names) > MAX_LISTED:
            listed.setdefault("more", {})[kind] = len(names) - MAX_LISTED
    return listed


def _text(name: str, limit: int) -> str:
    """A name that a message can carry."""
    text = sendable(name)
    return text if len(text) <= limit else text[: limit - 1] + "…"
