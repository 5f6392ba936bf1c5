"""What a hostile kernel sends: JSON of every kind, texts that break terminals, and names that nearly are the right ones."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from typing import Any, TypeVar

from hypothesis import strategies as st

from tests.pictures import TINY_JPEG, make_png

T = TypeVar("T")

HUGE = [1 << 31, (1 << 53) - 1, 1 << 53, 1 << 64, 10**400, -1, -(10**400)]
PARTS = (
    "\ud800",
    "\udfff",
    "\0",
    "\x1b[31m",
    "\x1b]0;",
    "\r",
    "\b",
    "\r\n",
    "\n",
    "é",
    "😀",
    "\u2028",
    "x" * 3000,
    "\x7f",
)
KEYS = [
    "text",
    "name",
    "data",
    "metadata",
    "transient",
    "display_id",
    "execution_count",
    "traceback",
    "ename",
    "evalue",
    "wait",
    "status",
    "payload",
    "source",
    "prompt",
    "password",
    "kernel_server",
    "preview",
    "mime_type",
    "original",
    "width",
    "height",
    "variables",
    "files",
    "created",
    "changed",
    "removed",
    "more",
    "path",
    "size",
    "type",
    "shape",
    "dtype",
    "value",
    "cell",
    "msg_id",
    "code",
    "reply",
    "reply_metadata",
    "missing",
    "asks",
    "allow_stdin",
    "dropped",
    "error",
    "end",
    "execution_state",
    "text/plain",
    "image/png",
]
MIME_TYPES = [
    "text/plain",
    "text/html",
    "text/markdown",
    "text/latex",
    "image/png",
    "image/jpeg",
    "image/svg+xml",
    "image/gif",
    "application/json",
    "application/geo+json",
    "application/javascript",
    "application/pdf",
    "application/vnd.plotly.v1+json",
    "application/vnd.vegalite.v5+json",
    "application/vnd.bokehjs_exec.v0+json",
    "application/vnd.jupyter.widget-view+json",
    "audio/wav",
    "video/mp4",
    "x/+json",
    "application/json\n",
]

texts = st.one_of(
    st.text(max_size=40),
    st.lists(st.sampled_from(PARTS), max_size=6).map("".join),
    st.builds(lambda part, times: part * times, st.sampled_from(PARTS), st.integers(0, 5000)),
    st.text(st.characters(), max_size=20),  # lone surrogates, too
)
numbers = st.one_of(st.integers(), st.sampled_from(HUGE), st.floats(), st.booleans())
scalars = st.one_of(st.none(), numbers, texts)


def nested(depth: int) -> Any:
    """`[[[…]]]`."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def packed(value: Any) -> bytes:
    """JSON as a kernel may send it: NaN, huge numbers and lone surrogates are not refused."""
    try:
        return json.dumps(value).encode()
    except RecursionError:  # Python's own encoder is no measure of what a kernel can send
        return b"[" * 990 + b"]" * 990


deep = st.sampled_from([99, 100, 101, 500, 900, 940, 970, 990]).map(nested)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.one_of(scalars, deep),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | texts, inner, max_size=4),
    max_leaves=12,
)
objects = st.dictionaries(st.sampled_from(KEYS) | texts, json_values, max_size=6)


def mostly(expected: st.SearchStrategy[T]) -> st.SearchStrategy[Any]:
    """The type that is expected in three of four cases, else anything."""
    return st.one_of(expected, expected, expected, json_values)


def record(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """An object with these keys, each of which may be missing or of another type."""
    return st.fixed_dictionaries({}, optional={name: mostly(field) for name, field in fields.items()})


def damaged(data: bytes) -> st.SearchStrategy[bytes]:
    """A file that was cut, or in which some bytes are others."""
    spots = st.lists(st.tuples(st.integers(0, max(0, len(data) - 1)), st.binary(min_size=1, max_size=4)), max_size=4)
    return st.builds(_damage, st.just(data), st.integers(0, len(data)) | st.just(len(data)), spots)


def _damage(data: bytes, end: int, spots: Iterable[tuple[int, bytes]]) -> bytes:
    for at, put in spots:
        data = data[:at] + put + data[at + len(put) :]
    return data[:end]


def _bomb(width: int, height: int) -> bytes:
    """A PNG that is sound, but declares so many pixels."""
    import struct

    from tests.pictures import PNG, chunk

    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    return PNG + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


PNGS = [
    make_png(3, 2),
    make_png(1500, 1),
    make_png(1501, 1),
    _bomb(100_000, 100_000),
    _bomb((1 << 31) - 1, 1),
    _bomb(0, 0),
]
pictures = st.one_of(
    st.binary(max_size=200),
    st.sampled_from(PNGS),
    st.sampled_from([*PNGS, TINY_JPEG]).flatmap(damaged),
    st.sampled_from([TINY_JPEG, TINY_JPEG[:20], b"\xff\xd8\xff" + b"\xff" * 70_000]),
)
encoded = st.one_of(
    pictures.map(lambda data: base64.b64encode(data).decode()),
    pictures.map(lambda data: base64.encodebytes(data).decode()),
    pictures.map(lambda data: base64.b64encode(data).decode()[:-1]),
    texts,
)
previews = record(
    preview=record(mime_type=st.sampled_from(MIME_TYPES), data=encoded),
    original=st.sampled_from(["images/1.png", "images/../x", "/etc/passwd", ""]) | texts,
    width=numbers,
    height=numbers,
)
bundles = st.one_of(
    st.dictionaries(st.sampled_from(MIME_TYPES) | texts, mostly(encoded | texts), max_size=5),
    st.dictionaries(st.sampled_from(["image/png", "image/jpeg"]), encoded, min_size=1),
)
TRACEBACK_LINES = (
    "-" * 75,
    "ValueError                                Traceback (most recent call last)",
    "Cell In[1], line 1\n----> 1 f()\n",
    "File /x/site-packages/p/a.py:12, in f(x)\n     11 a\n---> 12 b\n",
    '  File "a.py", line 3, in f\n    f()\n    ^^^\n',
    '  + Exception Group Traceback (most recent call last):\n  |   File "<x>", line 1\n  +-+---------------- 1 ----------------',
    "    [... skipping similar frames: f at line 1 (2967 times)]",
    "\nThe above exception was the direct cause of the following exception:\n",
    "ValueError: no",
)
displays = record(
    data=bundles,
    metadata=record(kernel_server=previews, trusted=st.just(True)) | objects,
    transient=record(display_id=st.sampled_from(["a", "b"]) | texts),
    execution_count=numbers,
)
errors = record(
    ename=st.sampled_from(["KeyboardInterrupt", "ValueError", "gaierror"]) | texts,
    evalue=texts,
    traceback=st.lists(mostly(st.sampled_from(TRACEBACK_LINES) | texts), max_size=8),
)
streams = record(name=st.sampled_from(["stdout", "stderr"]), text=texts, dropped=numbers)
messages: st.SearchStrategy[tuple[str, Any]] = st.one_of(
    st.tuples(st.just("stream"), streams),
    st.tuples(st.sampled_from(["display_data", "execute_result", "update_display_data"]), displays),
    st.tuples(st.just("error"), errors),
    st.tuples(st.just("clear_output"), record(wait=st.booleans())),
    st.tuples(texts, objects),
)
variables = record(name=texts, type=texts, shape=st.lists(numbers, max_size=3), dtype=texts, value=texts)
files = record(path=texts, size=numbers)


def changed(items: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """The changes of one kind of thing."""
    lists = st.lists(mostly(items), max_size=20)
    return record(created=lists, changed=lists, removed=lists, more=record(created=numbers, changed=numbers))


changes = record(variables=changed(variables), files=changed(files))
pages = st.lists(mostly(st.builds(lambda page: {"source": "page", **page}, displays)), max_size=3)
replies = record(
    status=st.sampled_from(["ok", "error", "aborted"]),
    execution_count=numbers,
    payload=pages,
    ename=texts,
    evalue=texts,
    traceback=st.lists(texts, max_size=3),
)
looks = record(variables=st.lists(variables, max_size=5), more=numbers, text=texts, error=texts)
last_cells = record(
    cell=record(
        msg_id=texts,
        code=texts,
        metadata=record(kernel_server=record(timeout=numbers, seconds=numbers)),
        allow_stdin=st.booleans(),
    ),
    asks=record(prompt=texts, password=st.booleans()),
    reply=replies,
    reply_metadata=record(kernel_server=changes),
    missing=numbers,
)
