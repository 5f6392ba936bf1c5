"""Bytes that become messages, however they are split, and of what is too much only the beginning."""

from __future__ import annotations

import itertools
import struct
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_server.kernels import zmtp
from kernel_server.kernels.zmtp import CUT, Reader

PARTS = st.lists(
    st.one_of(st.binary(max_size=300), st.integers(0, 40_000).map(lambda size: b"x" * size)), min_size=1, max_size=8
)
ITEMS = st.lists(st.one_of(PARTS, st.binary(max_size=300)), max_size=5)


def read(reader: Reader, data: bytes) -> list[list[bytes] | bytes]:
    reader.feed(data)
    return list(iter(reader.next, None))


def frame(flags: int, size: int) -> bytes:
    return struct.pack(">BQ", flags | zmtp.LONG, size)


@given(ITEMS, st.lists(st.integers(0, 100_000), max_size=30), st.booleans())
def test_stream_gives_the_same_messages_however_it_is_split(
    items: list[list[bytes] | bytes], cuts: list[int], singly: bool
) -> None:
    """ZMTP 3.0, framing: commands (bytes here) and messages come in order and whole."""
    stream = b"".join(zmtp.message(item) if isinstance(item, list) else zmtp.command(b"NAME", item) for item in items)
    places = range(len(stream)) if singly and len(stream) < 3_000 else sorted(cut for cut in cuts if cut < len(stream))
    bounds = [0, *places, len(stream)]
    reader = Reader()
    found = [item for start, end in itertools.pairwise(bounds) for item in read(reader, stream[start:end])]
    assert found == [item if isinstance(item, list) else b"\x04NAME" + item for item in items]


@pytest.mark.parametrize("size", [0, 1, 255, 256, 65_536])
def test_sizes_are_written_as_the_protocol_says(size: int) -> None:
    """ZMTP 3.0, framing: up to 255 octets in one, else in eight."""
    head = bytes((0, size)) if size < 256 else b"\x02" + size.to_bytes(8, "big")
    assert zmtp.message([b"x" * size]) == head + b"x" * size


def test_parts_beyond_the_limit_of_bytes_are_cut_and_the_next_message_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours: what comes first, headers, is kept, so that the user can be told."""
    monkeypatch.setattr(zmtp, "MAX_MESSAGE_BYTES", 1_000)
    stream = zmtp.message([b"header", b"x" * 995, b"y" * 500, b"tail"]) + zmtp.message([b"good"])
    whole, bytewise = read(Reader(), stream), Reader()
    assert whole == [byte for place in range(len(stream)) for byte in read(bytewise, stream[place : place + 1])]
    (first, *others), good = whole
    assert (first, good) == (b"header", [b"good"])
    assert [part is CUT for part in others] == [True, False, False]


def test_parts_beyond_the_limit_of_parts_are_missing() -> None:
    """Ours."""
    message, good = read(Reader(), zmtp.message([b"1"] * 100_000) + zmtp.message([b"good"]))
    assert (message, good) == ([b"1"] * zmtp.MAX_PARTS, [b"good"])


def test_command_that_is_too_long_is_not_kept() -> None:
    """Ours: it has no name then, and is ignored."""
    (item,) = read(Reader(), zmtp.command(b"READY", b"x" * zmtp.MAX_COMMAND_BYTES))
    assert item is CUT
    assert zmtp.split_command(item) == (b"", b"")


@pytest.mark.parametrize("size", [zmtp.MAX_MESSAGE_BYTES, 1 << 40, (1 << 64) - 1])
@pytest.mark.parametrize("flags", [0, zmtp.MORE, zmtp.COMMAND])
def test_declared_size_takes_no_memory(flags: int, size: int) -> None:
    """Ours: a kernel may announce what it likes."""
    reader = Reader()
    tracemalloc.start()
    try:
        assert read(reader, frame(flags, size) + b"x" * 1_000) == []
        assert tracemalloc.get_traced_memory()[1] < 20_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("chunk", [1, 7, 1_000])
def test_memory_is_that_of_the_bytes_however_small_they_come(chunk: int) -> None:
    """Ours: a list of what came would take 40 bytes for each of them."""
    reader = Reader()
    tracemalloc.start()
    try:
        reader.feed(frame(0, zmtp.MAX_MESSAGE_BYTES))
        for _ in range(200_000 // chunk):
            assert read(reader, b"x" * chunk) == []
        assert tracemalloc.get_traced_memory()[1] < 600_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("flags", [8, 0x80, 0xFF])
def test_reserved_flags_are_no_protocol(flags: int) -> None:
    """ZMTP 3.0: bits 7-3 SHALL be zero."""
    with pytest.raises(zmtp.ProtocolError):
        read(Reader(), bytes((flags, 0)))


@pytest.mark.parametrize(
    ("change", "minor"), [((11, 0), 0), ((11, 1), 1), ((11, 9), 1), ((10, 4), 1), ((5, 7), 1), ((32, 1), 1)]
)
def test_greetings_of_this_and_later_versions_are_taken(change: tuple[int, int], minor: int) -> None:
    """ZMTP 3.0: padding, `as-server` and later versions do not matter here."""
    greeting = bytearray(zmtp.GREETING)
    greeting[change[0]] = change[1]
    assert zmtp.minor_version(bytes(greeting)) == minor


@pytest.mark.parametrize("change", [(0, 1), (9, 0), (10, 2), (10, 0), (12, 80), (31, 1)])
def test_greetings_of_others_are_refused(change: tuple[int, int]) -> None:
    """ZMTP 3.0: signature, version 3, mechanism NULL."""
    greeting = bytearray(zmtp.GREETING)
    greeting[change[0]] = change[1]
    with pytest.raises(zmtp.ProtocolError):
        zmtp.minor_version(bytes(greeting))
