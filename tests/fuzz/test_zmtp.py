"""Bytes of a kernel's connection: whatever they are, they are messages, or refused, and bounded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kernel_server.kernels.zmtp import MAX_PARTS, ProtocolError, Reader


@given(st.binary(max_size=2_000), st.integers(0, 2_000))
def test_any_bytes_are_read_or_refused(data: bytes, split: int) -> None:
    """STYLE: kernels are hostile."""
    reader, found = Reader(), []
    try:
        for piece in (data[:split], data[split:]):
            reader.feed(piece)
            found += list(iter(reader.next, None))
    except ProtocolError:
        return
    messages = [item for item in found if isinstance(item, list)]
    assert sum(len(part) for message in messages for part in message) <= len(data)
    assert all(len(message) <= MAX_PARTS for message in messages)
