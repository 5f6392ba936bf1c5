"""A mark of a variable: what is remembered of it to see later whether it has changed.

It keeps no variable alive and runs no code that the session wrote. Of containers it knows the values inside, as far as
they are numbers, short texts and containers again; of arrays and frames a checksum (of samples, where they are large);
of other objects the attributes. What an iterator, a file or a random generator still has to give is no part of it.
"""

from __future__ import annotations

import ctypes
import gc
import marshal
import sys
import zlib
from dataclasses import dataclass
from itertools import islice
from types import FunctionType
from typing import Any, NamedTuple

from .facts import (
    CONTAINERS,
    array_of,
    attributes_of,
    container_of,
    is_a,
    is_array,
    is_cache,
    is_own,
    is_reader,
    manager_of,
    module_of,
)

EFFORT = 600  # for all variables of a session: about microseconds
MAX_ARRAY_BYTES = 64 << 10
SAMPLES, SAMPLE_BYTES = 16, 1 << 10
ELEMENTS = 100  # that are looked at themselves: of an array of objects, and of one that does not lie in one piece
MAX_ITEMS = 500  # of a container; of a larger one, or one with more inside, a sample
MAX_DEPTH = 5  # of containers in containers
MAX_BLOCKS = 8  # of a frame
MAX_TEXT = 200  # characters of a text that is looked at
HUGE = 1 << 256  # a number beyond it takes long to look at

# Classes by their id: to compare one with another can run code of its metaclass.
VALUES = frozenset(map(id, (int, float, complex, bool, type(None), str, bytes)))
NESTED = frozenset(map(id, CONTAINERS))


class Mark(NamedTuple):
    """What is remembered of a variable.

    Attributes:
        identity: its `id`.
        content: of what it holds; None if nobody looked.
        exact: every change of its value shows in `content`.
    """

    identity: int
    content: object
    exact: bool


class Exhausted(Exception):
    """There is no effort left."""


@dataclass
class Effort:
    """How much work may still be done; a variable whose turn comes too late gets a mark without content."""

    left: float = EFFORT

    def spend(self, amount: float) -> None:
        """Takes so much of it.

        Raises:
            Exhausted: there is not so much left.
        """
        self.left -= amount
        if self.left < 0:
            raise Exhausted


def differs(before: Mark, after: Mark, *, assigned: bool) -> bool:
    """Whether a variable has changed.

    Args:
        assigned: the source of the cell says that something in it was set.
    """
    if before.exact and after.exact:
        return before.content != after.content
    if assigned or before.identity != after.identity:
        return True
    return before.content is not None and after.content is not None and before.content != after.content


def mark(value: Any, effort: Effort) -> Mark:
    """The mark of a value."""
    if id(type(value)) in VALUES:
        return Mark(id(value), marshal.dumps(value, 2), True) if is_plain(value) else Mark(id(value), None, False)
    try:
        content, exact = _content(value, effort)
    except Exception:  # Exhausted; an object that is only half built; a frame of a version that we do not know
        content, exact = None, False
    return Mark(id(value), content, exact)


Content = tuple[object, bool]  # and whether it is exact


def _content(value: Any, effort: Effort) -> Content:
    kind = type(value)
    if kind is FunctionType:
        return _function(value, effort), True
    if kind is bytearray:
        return (len(value), zlib.crc32(value[:SAMPLE_BYTES]), zlib.crc32(value[-SAMPLE_BYTES:])), False
    if (base := container_of(value)) is not None:
        return _container(value, base, effort)
    if (array := array_of(value)) is not None:
        content, exact = _array(array, effort)
        return content, exact and value is array
    if (manager := manager_of(value)) is not None:
        return _frame(value, manager, effort), False
    if (numpy := sys.modules.get("numpy")) and is_a(value, numpy.generic) and module_of(kind) == "numpy":
        return (id(kind), value.tobytes()), True
    version = getattr(value, "_version", None) if is_array(value) else None  # torch counts what is done to a tensor
    return (_attributes(value, effort), version), False


def is_plain(value: Any) -> bool:
    """Whether it is a value of a builtin class that is compared quickly."""
    kind = type(value)
    if kind is str or kind is bytes:
        return len(value) <= MAX_TEXT
    if kind is int:
        return bool(-HUGE < value < HUGE)
    return id(kind) in VALUES


def _function(function: FunctionType, effort: Effort) -> object:
    """Two functions from the same source, with the same defaults, are the same."""
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    around = (*(function.__closure__ or ()), *function.__dict__.values())
    return function.__code__, _digest(defaults, effort), tuple(map(id, around))


# -- containers and objects --------------------------------------------------------------------------------------------


def _container(value: Any, base: Any, effort: Effort) -> Content:
    size = base.__len__(value)
    digest, exact = _digest(_items(value, base), effort)
    if type(value) is base:
        return (base, size, digest), exact and size <= MAX_ITEMS
    return (id(type(value)), size, digest, _attributes(value, effort)), False


def _items(value: Any, base: Any) -> list[Any]:
    """What a container holds; of a large one the ends."""
    if base is dict:
        return [*_ends(dict.keys(value)), *_ends(dict.values(value))]
    if base in (list, tuple) and base.__len__(value) > MAX_ITEMS:
        first, last = slice(MAX_ITEMS // 2), slice(-MAX_ITEMS // 2, None)
        return [*base.__getitem__(value, first), *base.__getitem__(value, last)]
    return list(islice(base.__iter__(value), MAX_ITEMS))


def _ends(view: Any) -> list[Any]:
    if len(view) <= MAX_ITEMS:
        return list(view)
    return [*islice(view, MAX_ITEMS // 2), *islice(reversed(view), MAX_ITEMS // 2)]


def _digest(items: list[Any], effort: Effort) -> tuple[int, bool]:
    """A number for what is in a container, level by level, and whether every change of its value changes that."""
    levels: list[object] = []
    exact = True
    for _ in range(MAX_DEPTH):
        effort.spend(1 + len(items) / 6)
        kinds = tuple(map(id, map(type, items)))
        plain, nested, others = (items, [], []) if _all_plain(items, set(kinds)) else _sort_out(items, effort)
        sizes = tuple(map(len, nested))
        levels += (kinds, marshal.dumps(plain, 2), tuple(map(id, others)), sizes)
        exact = exact and not others
        if not nested:
            return hash(tuple(levels)), exact
        if sum(sizes) > MAX_ITEMS:
            exact = False
            nested = nested[:: 1 + sum(sizes) // MAX_ITEMS]
        items = [item for container in nested for item in _items(container, type(container))]
    return hash(tuple(levels)), False


def _all_plain(items: list[Any], kinds: set[int]) -> bool:
    """As `is_plain` says of each, for items of one class: they are the most frequent."""
    if kinds == {id(int)}:
        return bool(min(items) > -HUGE and max(items) < HUGE)
    if kinds == {id(str)}:
        return max(map(len, items)) <= MAX_TEXT
    return kinds <= {id(float), id(bool)}


def _sort_out(items: list[Any], effort: Effort) -> tuple[list[Any], list[Any], list[Any]]:
    """Values that are kept as they are, containers, and everything else."""
    effort.spend(len(items) / 4)
    plain, nested, others = [], [], []
    for item in items:
        if id(type(item)) in NESTED:
            nested.append(item)
        elif is_plain(item):
            plain.append(item)
        else:
            others.append(item)
    return plain, nested, others


def _attributes(value: Any, effort: Effort) -> object:
    """What is in an object: a fitted estimator has other attributes than a fresh one.

    Private attributes count where the session wrote the class; those of libraries are often caches.
    """
    kind = type(value)
    effort.spend(6)
    if is_reader(kind):
        return None
    attributes, own = attributes_of(value), is_own(kind)
    if attributes is None:
        items = gc.get_referents(value)[:MAX_ITEMS] if own else []
        return _digest(items, effort)[0] if items else None
    if len(attributes) > MAX_ITEMS:
        return None
    effort.spend(2 * len(attributes))
    names = [name for name in attributes if type(name) is str and (own or name[:1] != "_") and not is_cache(kind, name)]
    return _digest([part for name in names for part in (name, attributes[name])], effort)[0]


# -- arrays and frames -------------------------------------------------------------------------------------------------


def _array(array: Any, effort: Effort) -> Content:
    """Of an array of numpy's own class; an array of objects is one of pointers."""
    shape = (array.shape, array.dtype.str)
    exact = array.nbytes <= MAX_ARRAY_BYTES and not array.dtype.hasobject
    if array.flags.c_contiguous or array.flags.f_contiguous:
        content: tuple[object, ...] = (shape, _checksum(array, effort))
    elif exact:
        effort.spend(4 + array.nbytes / 2_000)
        content = (shape, zlib.crc32(array.tobytes()))
    else:
        content = (shape, zlib.crc32(array.flat[:: 1 + array.size // ELEMENTS].tobytes()))
    if array.dtype.hasobject:  # memory is used again, so that another object can be at the same place
        content += _digest(array.flat[:: 1 + array.size // ELEMENTS].tolist(), effort)
    return content, exact


def _checksum(array: Any, effort: Effort) -> int:
    """Of all bytes of a small array, of samples of a large one."""
    size, address = array.nbytes, array.__array_interface__["data"][0]
    if size <= MAX_ARRAY_BYTES:
        effort.spend(4 + size / 2_000)
        return zlib.crc32(ctypes.string_at(address, size))
    effort.spend(2 * SAMPLES)
    checksum = 0
    for start in range(0, size, size // SAMPLES):
        checksum = zlib.crc32(ctypes.string_at(address + start, min(SAMPLE_BYTES, size - start)), checksum)
    return checksum


def _frame(frame: Any, manager: Any, effort: Effort) -> object:
    """Of a DataFrame or Series the labels by their identity, the values as those of arrays."""
    effort.spend(5)
    labels = [part for axis in manager.axes for part in (axis, (attributes_of(axis) or {}).get("_name"))]
    blocks = [block.values for block in manager.blocks]
    parts = [part for values in blocks[:MAX_BLOCKS] for part in _parts(values)]
    contents = [_array(part, effort)[0] if array_of(part) is part else id(part) for part in parts]
    return id(type(frame)), tuple(map(id, labels + blocks)), tuple(contents)


def _parts(values: Any) -> list[Any]:
    """The arrays that a column of a pandas type consists of; an array of numpy is one itself."""
    if not is_array(values):
        return []
    parts = [getattr(values, name, None) for name in ("_ndarray", "_data", "_mask", "_pa_array")]
    return [part for part in parts if part is not None] or [values]
