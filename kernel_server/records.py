"""Data that another version of this program may have written, read with care."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

T = TypeVar("T")

_TYPES: dict[str, type | tuple[type, ...]] = {"str": str, "int": int, "float": (int, float), "bool": bool}


def read(kind: type[T], record: object) -> T:
    """An instance of a dataclass from what was a JSON object; fields that it does not know are passed over.

    Raises:
        ValueError: a field is missing, or a plain one is of another type.
    """
    if not isinstance(record, Mapping):
        raise ValueError(f"{kind.__name__} is no object")  # noqa: TRY004 - as for what is no JSON
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]  # a dataclass: T cannot say so
    required = {
        field.name
        for field in fields(kind)  # type: ignore[arg-type]  # as above
        if field.default is MISSING and field.default_factory is MISSING
    }
    if missing := required - record.keys():
        raise ValueError(f"{kind.__name__} lacks {', '.join(sorted(missing))}")
    made = kind(**{name: record[name] for name in names if name in record})
    check(made)
    return made


def check(made: Any) -> None:
    """Raises ValueError if a plain field of a dataclass holds something else than it should."""
    for field in fields(made):
        value, wanted = getattr(made, field.name), _TYPES.get(str(field.type))
        if wanted and (not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool)):
            raise ValueError(f"{type(made).__name__}.{field.name} is not {field.type}")
