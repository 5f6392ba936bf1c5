"""Facts about values and their classes, found without running code that the session wrote.

`isinstance`, `==`, `in`, `hash`, `kind.__name__` and every attribute ask the class or its metaclass, which may be the
session's: they could print, raise, or never return.
"""

from __future__ import annotations

import sys
from collections import deque
from functools import cached_property
from types import GetSetDescriptorType, MemberDescriptorType
from typing import Any

from .text import sendable

CONTAINERS = (list, dict, set, tuple, frozenset, deque)
ARRAY_PACKAGES = ("jax", "jaxlib", "numpy", "pandas", "polars", "pyarrow", "scipy", "tensorflow", "torch", "xarray")
# Modules whose objects keep in public attributes how far they have been read.
READERS = {"PIL", "bz2", "csv", "gzip", "http", "lzma", "random", "tarfile", "tempfile", "urllib", "zipfile"}
MAX_NAME = 60  # characters
DESCRIPTORS = (GetSetDescriptorType, MemberDescriptorType)  # of classes written in C, and of slots

_dict_of = vars(type)["__dict__"].__get__
_mro_of = vars(type)["__mro__"].__get__
_module_of = vars(type)["__module__"].__get__
_name_of = vars(type)["__name__"].__get__


def is_a(value: Any, kinds: Any) -> bool:
    """`isinstance`, but a session's own `__class__` is not asked."""
    return issubclass(type(value), kinds)


def container_of(value: Any) -> Any:
    """The one of CONTAINERS that a value is, or is made from; None if it is none."""
    if not issubclass(type(value), CONTAINERS):
        return None
    return next(kind for kind in CONTAINERS if is_a(value, kind))


def module_of(kind: type) -> str:
    """Where a class comes from."""
    try:
        module = _module_of(kind)
    except AttributeError:
        return ""
    return module if type(module) is str else ""


def name_of(kind: type) -> str:
    """The name of a class, as a message can carry it."""
    return sendable(_name_of(kind))[:MAX_NAME]


def is_own(kind: type) -> bool:
    """Whether all of a class was written in the session, so that its private attributes are no library's caches."""
    return module_of(kind) == "__main__" and all(
        module_of(base) in ("__main__", "abc", "builtins", "typing") for base in _mro_of(kind)
    )


def is_cache(kind: type, name: str) -> bool:
    """Whether an attribute only keeps what a `cached_property` once gave."""
    return any(type(_dict_of(base).get(name)) is cached_property for base in _mro_of(kind))


def attributes_of(value: Any) -> dict[str, Any] | None:
    """An object's own `__dict__`, not a property of that name."""
    for base in _mro_of(type(value)):
        found = _dict_of(base).get("__dict__")
        if found is not None:
            attributes = found.__get__(value) if is_a(found, DESCRIPTORS) else None
            return attributes if type(attributes) is dict else None
    return None


def is_array(value: Any) -> bool:
    """Whether the value's class is that of a package for arrays, whose attributes are safe to ask for."""
    return module_of(type(value)).partition(".")[0] in ARRAY_PACKAGES


def is_reader(kind: type) -> bool:
    """Whether the attributes of its instances change when these are only read."""
    return module_of(kind).partition(".")[0] in READERS


def array_of(value: Any) -> Any:
    """A numpy array's data as an array of no other class; None for other values."""
    numpy = sys.modules.get("numpy")
    if numpy is None or not is_a(value, numpy.ndarray):
        return None
    return value if type(value) is numpy.ndarray else numpy.ndarray.view(value, numpy.ndarray)


def manager_of(value: Any) -> Any:
    """What holds the data of a DataFrame or Series; None for other values."""
    pandas = sys.modules.get("pandas")
    if pandas is None or not is_a(value, (pandas.DataFrame, pandas.Series)):
        return None
    return (attributes_of(value) or {}).get("_mgr")
