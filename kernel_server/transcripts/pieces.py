"""JSON in pieces: what a cell displayed may be one text of 32 MB.

The encoder of the `json` module handles a text in one call, during which no other thread of this process runs. In pieces of
64 KB the event loop has its turn in between, and no more than one piece is in memory twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from json.encoder import encode_basestring
from typing import Any

PIECE_CHARACTERS = 1 << 16
BATCH = 256  # short values that are encoded in one call
SHORT_CHARACTERS = 1_000


def json_pieces(value: Any, indent: int | None = None) -> Iterator[str]:
    """The JSON text of a value, as `json.dumps` gives it with `ensure_ascii=False`; lone surrogates stay what they are.

    Args:
        indent: the column of what encloses the value, for a document with one space a level and sorted keys; None for one line.
    """
    match value:
        case str():
            yield from _text(value)
        case dict() if value:
            yield from _object(value, indent)
        case list() if value:
            yield from _array(value, indent)
        case _:
            yield json.dumps(value)


def _text(text: str) -> Iterator[str]:
    if len(text) <= PIECE_CHARACTERS:
        yield encode_basestring(text)
        return
    yield '"'
    for begin in range(0, len(text), PIECE_CHARACTERS):
        yield encode_basestring(text[begin : begin + PIECE_CHARACTERS])[1:-1]
    yield '"'


def _object(value: dict[str, Any], indent: int | None) -> Iterator[str]:
    separator, end = _separators(indent)
    inner = None if indent is None else indent + 1
    before = "{" if indent is None else "{" + separator[1:]
    for key in value if indent is None else sorted(value):
        yield before
        yield from _text(str(key))
        yield ": "
        yield from json_pieces(value[key], inner)
        before = separator
    yield end + "}"


def _array(value: list[Any], indent: int | None) -> Iterator[str]:
    separator, end = _separators(indent)
    inner = None if indent is None else indent + 1
    before = "[" if indent is None else "[" + separator[1:]
    for begin in range(0, len(value), BATCH):
        batch = value[begin : begin + BATCH]
        if all(map(_is_short, batch)):
            yield before + json.dumps(batch, ensure_ascii=False, separators=(separator, ": "))[1:-1]
            before = separator
            continue
        for item in batch:
            yield before
            yield from json_pieces(item, inner)
            before = separator
    yield end + "]"


def _separators(indent: int | None) -> tuple[str, str]:
    """What is between two items, and what follows the last one."""
    if indent is None:
        return ", ", ""
    return ",\n" + " " * (indent + 1), "\n" + " " * indent


def _is_short(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= SHORT_CHARACTERS
    return not isinstance(value, dict | list)
