"""What a cell changed, as the last of the notes on its result, so that the model need not print to find out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from kernel_server.kernels.changes import Changes, File, FileChanges, Kind, Variable, VariableChanges
from kernel_server.text import human_size, quoted

MAX_SHOWN = 12  # of each kind; the rest is counted
MAX_NAME = 100  # characters
WORDS: dict[Kind, str] = {"created": "new", "changed": "changed", "removed": "removed"}

T = TypeVar("T")


def change_line(changes: Changes) -> str:
    """Such as `variables: new df DataFrame (3, 2), n int; removed x. files: new out.csv (1.2 KB)`; "" for nothing."""
    parts = [
        f"{noun}: {text}"
        for noun, text in (
            ("variables", _kinds(changes.variables, describe_variable)),
            ("files", _kinds(changes.files, _describe_file)),
        )
        if text
    ]
    return ". ".join(parts)


def describe_variable(variable: Variable) -> str:
    """Such as `a ndarray float64 (3, 2)`."""
    parts = [quoted(part, MAX_NAME) for part in (variable.name, variable.type, variable.dtype) if part]
    if variable.shape is not None:
        parts.append(f"({', '.join(map(str, variable.shape))})")
    return " ".join(parts)


def _describe_file(file: File) -> str:
    size = f" ({human_size(file.size)})" if file.size is not None else ""
    return quoted(file.path) + size


def _kinds(changes: VariableChanges | FileChanges, describe: Callable[[T], str]) -> str:
    return "; ".join(
        f"{word} {_listed(getattr(changes, kind), changes.more.get(kind, 0), describe)}"
        for kind, word in WORDS.items()
        if getattr(changes, kind)
    )


def _listed(items: Sequence[T], more: int, describe: Callable[[T], str]) -> str:
    shown = ", ".join(describe(item) for item in items[:MAX_SHOWN])
    more += len(items[MAX_SHOWN:])
    return f"{shown} and {more} more" if more else shown
