"""Frames that parse, and yet are no message."""

from __future__ import annotations

import json
import re
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jupyter_client.session import DELIM, Session

from kernel_server.kernels import messages
from kernel_server.kernels.messages import MAX_BARE_BYTES, MAX_PART_BYTES, MAX_VALUES, Message, decode, outside_of_texts
from kernel_server.kernels.zmtp import CUT

SESSION = Session(key=b"key", digest_history_size=0)
HEADER = {"msg_id": "1", "msg_type": "kernel_info_reply", "version": "5.3"}


def decoded(*parts: Any) -> Message:
    packed = [json.dumps(part).encode() for part in parts]
    return decode(SESSION, [b"identity", DELIM, SESSION.sign(packed), *packed])


def test_message_has_the_parts_of_the_protocol() -> None:
    """Jupyter messaging 5.4, the wire protocol."""
    assert decoded(HEADER, {"msg_id": "0"}, {}, {"a": 1}) == Message("kernel_info_reply", "0", {"a": 1}, {})
    assert decoded(HEADER, {}, {}, {}).parent == ""


@pytest.mark.parametrize(
    "parts",
    [
        (HEADER, {}, {}, []),
        (HEADER, {}, {}, None),
        (HEADER, {}, [], {}),
        (HEADER, {"msg_id": 1}, {}, {}),
        (HEADER, [], {}, {}),
        ({**HEADER, "msg_type": ["x"]}, {}, {}, {}),
    ],
)
def test_part_of_another_type_is_refused(parts: tuple[Any, ...]) -> None:
    """Ours: `null` as an answer was told as a kernel that ended; a list ended the task that goes on with a session."""
    with pytest.raises((TypeError, AttributeError)):
        decoded(*parts)


def shown(inner: bytes) -> list[bytes]:
    """Frames of a display with this JSON in it."""
    parts = [json.dumps(part).encode() for part in ({**HEADER, "msg_type": "display_data"}, {"msg_id": "0"}, {})]
    parts.append(b'{"data":{"application/json":' + inner + b'},"metadata":{}}')
    return [DELIM, SESSION.sign(parts), *parts]


def many(item: bytes, count: int) -> bytes:
    return b"[" + b",".join([item] * count) + b"]"


def peak_of_decoding(frames: list[bytes]) -> tuple[int, Message]:
    """Bytes that it takes in between, and the message."""
    tracemalloc.start()
    try:
        message = decode(SESSION, frames)
        return tracemalloc.get_traced_memory()[1], message
    finally:
        tracemalloc.stop()


RICH = {
    "arrays": many(b"[]", MAX_VALUES),
    "objects": many(b"{}", MAX_VALUES),
    "numbers": many(b"0", MAX_VALUES + 1),
    "texts": many(b'""', MAX_VALUES + 1),
    "keys": b"{" + b",".join(b'"%d":0' % number for number in range(MAX_VALUES + 1)) + b"}",
    "texts with quotes": many(rb'"\\\""', MAX_VALUES + 1),
    "depth": b"[" * MAX_VALUES,
    "long numbers": many(b"7" * 4_000, MAX_BARE_BYTES // 4_000),
    "size": b'"' + b"x" * MAX_PART_BYTES + b'"',
}


@pytest.mark.parametrize("inner", RICH.values(), ids=RICH)
def test_content_that_is_too_much_is_not_parsed(inner: bytes) -> None:
    """Ours: 250 MB of `[],` took 44 s and 7 GB, and nobody else had a turn. Whose message it was is told."""
    peak, message = peak_of_decoding(shown(inner))
    assert message == Message("display_data", "0", {}, {}, refused=True)
    assert peak < 4 * len(inner) + (64 << 20)


def test_content_takes_many_times_its_size_where_it_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Positive control: the same without the bound."""
    monkeypatch.setattr(messages, "MAX_VALUES", 1 << 40)
    inner = many(b"[]", 4 * MAX_VALUES)
    peak, message = peak_of_decoding(shown(inner))
    assert len(message.content["data"]["application/json"]) == 4 * MAX_VALUES
    assert peak > 20 * len(inner)


CSV = "".join(f'{number},"a ""quoted"" \\ text",{{[{number}]}}\n' for number in range(250_000))
LEGITIMATE: dict[str, Any] = {
    "a table as text": CSV,
    "a page": '<td class="a">1,2</td>\n' * 400_000,
    "a picture": "iVBORw0KGgo," * (2 << 20),
    "a traceback": ["\x1b[0;31mValueError\x1b[0m: " + CSV[:500_000]] * 20,
    "a chart": {"data": [{"type": "scatter", "x": [0.1 + n for n in range(100_000)], "y": list(range(100_000))}]},
    "variables": [{"name": f"v{n}", "type": "ndarray", "shape": [n, n], "dtype": "float64"} for n in range(1000)],
}


@pytest.mark.parametrize("value", LEGITIMATE.values(), ids=LEGITIMATE)
def test_content_that_cells_really_show_is_read(value: Any) -> None:
    """Ours: commas and brackets in texts do not count."""
    message = decode(SESSION, shown(SESSION.pack(value)))
    assert not message.refused
    assert message.content["data"]["application/json"] == value


texts = st.text(',[{"\\:x')


@given(st.recursive(st.integers() | texts, lambda inner: st.lists(inner) | st.dictionaries(texts, inner)))
def test_what_is_outside_of_texts_is_json_without_its_texts(value: Any) -> None:
    """Ours: the count must not be led astray by quotes and backslashes."""
    packed = json.dumps(value, separators=(",", ":")).encode()
    assert outside_of_texts(packed) == re.sub(rb'"(?:[^"\\]|\\.)*"', b"", packed)


@pytest.mark.parametrize("index", [0, 1])
def test_header_of_dates_is_none(index: int) -> None:
    """Ours: jupyter_client reads each text that looks like one: 300 000 took 3.6 s."""
    _, _, *parts = shown(b"0")
    parts[index] = parts[index][:-1] + b',"more":[' + b",".join([b'"2026-01-01T00:00:00.000000Z"'] * 500) + b"]}"
    with pytest.raises(ValueError, match="too much"):
        decode(SESSION, [DELIM, SESSION.sign(parts), *parts])


def test_signature_of_megabytes_is_none() -> None:
    """Ours: jupyter_client would put it into the text of an exception."""
    _, _, *parts = shown(b"0")
    with pytest.raises(ValueError, match="too much"):
        decode(SESSION, [DELIM, b"x" * 10_000_000, *parts])


@pytest.mark.parametrize("index", [0, 1])
def test_message_with_a_header_that_is_too_much_is_none(index: int) -> None:
    """Ours: without it nobody knows whose message it is."""
    _, _, *parts = shown(b"0")
    parts[index] = parts[index][:-1] + b',"more":' + RICH["arrays"] + b"}"
    with pytest.raises(ValueError, match="too much"):
        decode(SESSION, [DELIM, SESSION.sign(parts), *parts])


def test_metadata_that_is_too_much_is_left_out() -> None:
    """Ours: the content is read nevertheless; a reply must not be lost for what the cell has put beside it."""
    _, _, *parts = shown(b"0")
    parts[2] = b'{"more":' + RICH["arrays"] + b"}"
    message = decode(SESSION, [DELIM, SESSION.sign(parts), *parts])
    assert message == Message("display_data", "0", {"data": {"application/json": 0}, "metadata": {}}, {})


def test_content_that_was_not_kept_is_told_and_needs_no_signature() -> None:
    """Ours: nobody can check it; buffers are not read at all."""
    *head, content = shown(b"[]")
    message = decode(SESSION, [*head, CUT])
    assert (message.msg_type, message.parent, message.content, message.refused) == ("display_data", "0", {}, True)
    assert not decode(SESSION, [*head, content, CUT]).refused
    for place in range(1, 3):
        with pytest.raises(ValueError, match="no message"):
            decode(SESSION, [*head[: place + 1], CUT, *head[place + 2 :], CUT])


def test_message_that_is_too_much_must_be_signed() -> None:
    """Jupyter messaging 5.4, the wire protocol."""
    delimiter, _, *parts = shown(RICH["arrays"])
    with pytest.raises(ValueError, match="no message"):
        decode(SESSION, [delimiter, b"0" * 64, *parts])
