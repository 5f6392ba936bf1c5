"""What a cell did to the session's variables: a mark of each is taken after every cell and compared with the one before.

Where a mark cannot be exact, what the cell's source says (`df.loc[0] = 1`, `model.fit(x)`) counts too.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from .facts import array_of, attributes_of, container_of, is_a, is_array, manager_of, module_of, name_of
from .marks import VALUES, Effort, Mark, differs, mark
from .source import Source

MAX_NAMES = 1_000  # a session with more is not told about them
LONG_TEXT = 100
MAX_DTYPE = 60  # characters
MAX_SIZE = 1 << 53  # what JSON can carry to any client


@dataclass
class Changes:
    """Names by what happened to them."""

    created: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)


class Variables:
    """The session's own variables, and what happened to them since the last look."""

    def __init__(self, shell: Any) -> None:
        self._shell = shell
        self._source = Source()
        self._imported: dict[str, int] = {}  # name → id of what was imported under it
        self._marks: dict[str, Mark] | None = {}
        shell.ast_transformers.append(self._source)

    def begin(self) -> None:
        """A cell is about to run."""
        self._source.begin()

    def changes(self) -> Changes:
        """What has changed since this was last called."""
        self._note_imports()
        values = dict(islice(self.own(), MAX_NAMES + 1))
        before, self._marks = self._marks, _marks_of(values)
        changes = Changes()
        if before is None or self._marks is None:
            return changes
        for name, taken in self._marks.items():
            if name not in before:
                changes.created.append(name)
            elif differs(before[name], taken, assigned=self._is_assigned(name, values[name])):
                changes.changed.append(name)
        changes.removed.extend(name for name in before if name not in self._marks)
        return changes

    def own(self) -> Iterator[tuple[str, Any]]:
        """The variables that the session's code has made; imports are none."""
        hidden, just_imported = self._shell.user_ns_hidden, self._source.imported
        for name, value in list(self._shell.user_ns.items()):
            if type(name) is not str or name[:1] == "_" or hidden.get(name, hidden) is value:
                continue
            if name not in just_imported and self._imported.get(name) != id(value) and not _is_imported(value):
                yield name, value

    def describe(self, name: str) -> dict[str, Any]:
        """What there is to say of a variable; nothing if it has just been deleted by a thread."""
        namespace = self._shell.user_ns
        return describe(namespace[name]) if name in namespace else {}

    def _is_assigned(self, name: str, value: Any) -> bool:
        if name in self._source.assigned:
            return True
        # Methods of frames return a new one: `df.add(1)`. Their marks show what does not.
        return name in self._source.called and (array_of(value) is not None or not is_array(value))

    def _note_imports(self) -> None:
        namespace = self._shell.user_ns
        for name in self._source.imported:
            if name in namespace:
                self._imported[name] = id(namespace[name])
        for module in self._source.star_modules:
            for name, value in (attributes_of(sys.modules.get(module)) or {}).items():
                if type(name) is str and namespace.get(name, namespace) is value:
                    self._imported[name] = id(value)


def _marks_of(values: dict[str, Any]) -> dict[str, Mark] | None:
    if len(values) > MAX_NAMES:
        return None
    effort = Effort()
    # The newest first: they are the ones that cells work on.
    marks = {name: mark(value, effort) for name, value in reversed(values.items())}
    return dict(reversed(marks.items()))


def describe(value: Any) -> dict[str, Any]:
    """Its `type`, and its `shape` (list of ints) and `dtype` where it has them.

    Of a short text nothing but its type: it may be a password.
    """
    described: dict[str, Any] = {"type": "class" if is_a(value, type) else name_of(type(value))}
    try:
        shape, dtype = _shape(value)
    except Exception:  # a frame that is only half built, a package that is only half imported
        return described
    if shape is not None and all(0 <= size < MAX_SIZE for size in shape):
        described["shape"] = list(shape)
    if dtype:
        described["dtype"] = dtype[:MAX_DTYPE]
    return described


def _shape(value: Any) -> tuple[tuple[int, ...] | None, str]:
    """Shape (of texts and containers the length) and dtype; what only the session's code could tell is left out."""
    if (base := container_of(value)) is not None:
        return (base.__len__(value),), ""
    if (text := next((kind for kind in (str, bytes, bytearray) if is_a(value, kind)), None)) is not None:
        length = text.__len__(value)
        return (length,) if length > LONG_TEXT else None, ""
    if (array := array_of(value)) is not None:
        return array.shape, str(array.dtype)
    known = is_array(value)
    if (manager := manager_of(value)) is not None:
        shape: Any = tuple(map(len, reversed(manager.axes)))
    else:
        shape = getattr(value, "shape", None) if known else None
    if not isinstance(shape, tuple) or not shape:  # numbers of numpy have the shape ()
        return None, ""
    dtype = getattr(value, "dtype", None) if known else None
    return tuple(int(size) for size in shape if isinstance(size, int)), "" if dtype is None else str(dtype)


def _is_imported(value: Any) -> bool:
    """Whether a value was made elsewhere, or is only another name for a type."""
    if id(type(value)) in VALUES:
        return False
    if is_a(value, (ModuleType, BuiltinFunctionType)) or module_of(type(value)) == "typing":
        return True
    if type(value) is FunctionType:
        module: object = value.__module__  # anything can be put there
        return type(module) is not str or module != "__main__"
    return is_a(value, type) and module_of(value) != "__main__"
