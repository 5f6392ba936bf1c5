"""Objects that all kernels share are made immortal (PEP 683): their reference counts are not written any more.

Without that, a kernel that only looks at an object writes to its page and so gets a copy of it: half of the memory of a
kernel, and a third of the time that it takes to start.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from types import CodeType, CoroutineType, FrameType, GeneratorType, TracebackType

CHUNK = 1_000  # objects at a time: some milliseconds
CODE_PARTS = (
    *("co_consts", "co_names", "co_varnames", "co_cellvars", "co_freevars"),
    *("co_name", "co_qualname", "co_filename", "co_linetable", "co_exceptiontable"),
)
# What is at work now, and ends.
PASSING = (FrameType, GeneratorType, CoroutineType, TracebackType)


def immortalize() -> Iterator[None]:
    """Makes all that there is now immortal, piece by piece; nothing where Python has no such objects (until 3.11)."""
    if sys.version_info < (3, 12) or sysconfig.get_config_var("Py_GIL_DISABLED"):
        return
    gc.unfreeze()
    objects = gc.get_objects()
    gc.freeze()
    for start in range(0, len(objects), CHUNK):
        _mark(objects[start : start + CHUNK])
        yield


def _mark(objects: list[object]) -> None:
    lasting = [item for item in objects if not isinstance(item, PASSING)]
    found = [*lasting, *gc.get_referents(*lasting)]
    # What code refers to, the collector does not know.
    parts = [part for code in found if type(code) is CodeType for part in _parts(code)]
    _set_count(
        {id(item): None for item in (*found, *parts, *gc.get_referents(*parts)) if not isinstance(item, PASSING)}
    )


def _parts(code: CodeType) -> Iterable[object]:
    return (getattr(code, name) for name in CODE_PARTS)


def _set_count(addresses: Iterable[int]) -> None:
    """Gives the objects there the count of None: the first field of an object, of which 32 bits are the count."""
    count_at = ctypes.c_uint32.from_address
    count = count_at(id(None)).value
    for field in map(count_at, addresses):
        field.value = count
