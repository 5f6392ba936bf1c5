"""What a kernel remembers of variables: without a kernel, since nothing here depends on one.

Ours: no code of the session is run, no variable is kept alive, and the work is bounded.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from kernel_host.marks import EFFORT, Effort, differs, mark
from kernel_host.variables import describe

# -- values ------------------------------------------------------------------------------------------------------------

DIFFERENT: list[tuple[Any, Any]] = [
    (1, True),
    (1, 1.0),
    (0.0, -0.0),
    ("a", b"a"),
    ([1], (1,)),
    ([-1], [-2]),
    ([1, 2], [2, 1]),
    ([[1], [2, 3]], [[1, 2], [3]]),
    ([1, [2]], [[2], 1]),
    ([[]], [{}]),
    ([None], []),
    ({"a": 1}, {"b": 1}),
    ({"a": {"b": [1]}}, {"a": {"b": [2]}}),
    ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    (np.zeros(3), np.zeros((3, 1))),
    (np.zeros(3), np.zeros(3, dtype="i8")),
    (np.array(["2020"], "M8[D]"), np.array(["2021"], "M8[D]")),
    (np.float64(1), np.float32(1)),
]


@pytest.mark.parametrize(("one", "other"), DIFFERENT, ids=repr)
def test_values_that_differ_have_different_marks(one: Any, other: Any) -> None:
    """A missed change is a bug: equal hashes and equal numbers of two types must not look the same."""
    assert differs(mark(one, Effort()), mark(other, Effort()), assigned=False)


@pytest.mark.parametrize(
    "make",
    [
        lambda: 2.5,
        lambda: "text",
        lambda: float("nan"),
        lambda: [1, "a", None, 2.5],
        lambda: {"rows": [{"id": n, "tags": ["x", "y"]} for n in range(20)], "total": 1j},
        lambda: np.arange(100).reshape(10, 10)[:, ::2],
        lambda: np.datetime64("2020"),
        lambda: lambda a, b=0.5: a + b,
    ],
    ids=["float", "str", "nan", "list", "JSON", "array", "datetime64", "function"],
)
def test_equal_values_have_equal_marks_whatever_the_source_says(make: Callable[[], Any]) -> None:
    """A false change is a bug: the same cell once more, or an assignment in a branch that was not taken."""
    assert not differs(mark(make(), Effort()), mark(make(), Effort()), assigned=True)


# -- hostile values ----------------------------------------------------------------------------------------------------

asked: list[str] = []
HARMLESS = {"__new__", "__init__", "__module__", "__qualname__", "__doc__", "__init_subclass__", "__set_name__"}
SPECIAL = {
    name
    for kind in (type, object, int, str, list, dict, set, bytes, memoryview, type(iter([])), type(len), np.ndarray)
    for name in dir(kind)
    if name.startswith("__") and name not in HARMLESS
} | {
    "__buffer__",
    "__getattr__",
    "__dict__",
    "_version",
    "_mgr",
    "shape",
    "dtype",
    "nbytes",
    "values",
    "tobytes",
    "view",
}


def spies(*, as_property: set[str]) -> dict[str, Any]:
    """A class body in which everything notes that it was asked for, and raises."""

    def spy(name: str) -> Any:
        def ask(*_: object, **__: object) -> None:
            asked.append(name)
            raise RuntimeError(name)

        return property(ask) if name in as_property else ask

    return {"__module__": "__main__", **{name: spy(name) for name in SPECIAL}}


QUIET = {"__array_finalize__": lambda *_: None}  # what numpy itself asks for when an array is made
PROPERTIES = {"__class__", "__dict__", "_version", "_mgr", "shape", "dtype", "nbytes", "values"}
Meta: Any = type("Meta", (type,), spies(as_property={"__class__", "__module__", "__name__", "__dict__", "__mro__"}))


def hostile(*bases: type, **more: Any) -> Any:
    """A class of which nothing can be asked without running its code."""
    return type.__new__(Meta, "Hostile", bases, {**spies(as_property=PROPERTIES), **more})


def frame() -> Any:
    """An instance of a session's subclass of DataFrame."""

    class Frame(pd.DataFrame):
        @property
        def shape(self) -> Any:
            asked.append("shape")

        def __len__(self) -> int:
            asked.append("len")
            return 1

    return Frame({"a": [1, 2]})


HOSTILE: dict[str, Callable[[], Any]] = {
    "object": lambda: object.__new__(hostile(object)),
    "class": lambda: hostile(object),
    "list": lambda: list.__new__(hostile(list)),
    "dict": lambda: dict.__new__(hostile(dict)),
    "str": lambda: str.__new__(hostile(str), "text"),
    "int": lambda: int.__new__(hostile(int), 5),
    "tuple": lambda: tuple.__new__(hostile(tuple), (1, 2)),
    "array": lambda: np.zeros(3).view(type("Hostile", (np.ndarray,), {**spies(as_property=PROPERTIES), **QUIET})),
    "number": lambda: np.float64.__new__(hostile(np.float64), 3),
    "frame": frame,
    "exception": lambda: Exception.__new__(hostile(Exception)),
    "with slots": lambda: object.__new__(hostile(object, __slots__=("a",))),
}


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
def test_nothing_of_a_hostile_class_is_called(make: Callable[[], Any]) -> None:
    """It could print, raise, or never return."""
    value = make()
    values = [value, [value], {"a": value}, (value, [value]), {1: {2: value}}]
    asked.clear()
    marks = [mark(one, Effort()) for one in values]
    described = [describe(one) for one in values]
    changed = [differs(before, mark(one, Effort()), assigned=False) for before, one in zip(marks, values, strict=True)]
    seen = list(asked)
    assert seen == []
    assert changed == [False] * len(values)
    assert all(type(one["type"]) is str for one in described)


def test_odd_names_of_classes_are_harmless() -> None:
    """A class may have any string as its name, and anything as its module."""

    class Text(str):
        __slots__ = ()

        def encode(self, *_: object) -> bytes:
            asked.append("encode")
            return b""

    kind = type("C", (), {})
    kind.__name__ = Text("Ünï" * 50)
    kind.__module__ = Text("numpy")
    asked.clear()
    assert describe(kind()) == {"type": ("Ünï" * 50)[:60]}
    mark(kind(), Effort())
    assert asked == []


# -- bounds ------------------------------------------------------------------------------------------------------------


class Thing:
    """Can be referred to weakly."""


def test_marks_keep_nothing_alive() -> None:
    """What a session deletes is gone."""
    thing, array, table, held = Thing(), np.zeros(3), pd.DataFrame({"a": [1]}), {1}
    values = [thing, [thing], {"a": thing}, array, table, held, lambda one=thing: one, Thing]
    references = [weakref.ref(one) for one in (thing, array, table, held)]
    marks = [mark(value, Effort()) for value in values]
    del thing, array, table, held, values
    assert [reference() for reference in references] == [None] * 4
    assert marks


def nested(depth: int) -> list[Any]:
    """A list in a list in a list …"""
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


def with_attributes(count: int) -> Thing:
    """An object with many attributes."""
    thing = Thing()
    vars(thing).update({f"a{n}": n for n in range(count)})
    return thing


LARGE: dict[str, Callable[[], Any]] = {
    "list": lambda: list(range(10**6)),
    "dict": lambda: {str(n): n for n in range(10**5)},
    "matrix": lambda: [[0.5] * 1000 for _ in range(1000)],
    "records": lambda: [{"a": 1, "b": "x", "c": [1, 2]} for _ in range(10**4)],
    "uneven": lambda: [[0] * 10**5, *([1] for _ in range(400)), [0] * 10**5],
    "deep": lambda: nested(500),
    "wide": lambda: pd.DataFrame({f"c{n}": [n] if n % 2 else ["x"] for n in range(300)}),
    "frame": lambda: pd.DataFrame(np.zeros((10**5, 10))),
    "array": lambda: np.zeros(10**7),
    "objects": lambda: np.array([object()] * 10**5),
    "attributes": lambda: with_attributes(10**4),
    "text": lambda: "x" * 10**7,
    "number": lambda: 10**10**5,
}


@pytest.mark.parametrize("make", LARGE.values(), ids=LARGE)
def test_a_large_value_is_looked_at_in_part(make: Callable[[], Any]) -> None:
    """Issue 3: cheap, under 3 ms."""
    effort = Effort(10**9)
    mark(make(), effort)
    assert 10**9 - effort.left < EFFORT


def test_where_no_effort_is_left_identity_tells() -> None:
    """The newest variables come first; the others are told by what was assigned."""
    effort = Effort()
    values = [[object()] * 500 for _ in range(20)]
    marks = [mark(value, effort) for value in values]
    assert marks[0].content is not None
    assert marks[-1].content is None
    assert not differs(marks[-1], mark(values[-1], Effort()), assigned=False)
    assert differs(marks[-1], mark(values[-1], Effort()), assigned=True)
    assert differs(marks[-1], mark([1], Effort()), assigned=False)
