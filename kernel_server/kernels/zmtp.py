"""ZMTP 3 with the NULL mechanism, as far as a kernel's client needs it: bytes in, messages out. No socket.

The peer is hostile. What is kept of a message is bounded, whatever sizes it declares and however many parts it has;
the rest is thrown away as it comes, and the connection goes on.
Source: https://rfc.zeromq.org/spec/23/ (ZMTP 3.0) and https://rfc.zeromq.org/spec/37/ (3.1), the framing of both.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

MAX_MESSAGE_BYTES = 64 << 20  # kept of a message; more than is parsed of any part, see MAX_PART_BYTES in messages.py
MAX_PARTS = 1_000  # kept of a message; those of Jupyter have six, and buffers, which nobody reads here
MAX_COMMAND_BYTES = 4_096  # longer ones are ignored; READY has 30, PING 23

MORE, LONG, COMMAND = 1, 2, 4  # flags of a frame
GREETING_BYTES = 64
GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)


class _Cut(bytes):
    __slots__ = ()


CUT = _Cut()  # stands, by its identity, for a part that was too large to be kept


class ProtocolError(Exception):
    """What came is not ZMTP 3."""


def minor_version(greeting: bytes) -> int:
    """Of a peer's whole greeting: 0, or 1 for all that is later.

    Raises:
        ProtocolError: it does not speak ZMTP 3 with the NULL mechanism.
    """
    if greeting[0] != 0xFF or greeting[9] != 0x7F or greeting[10] < 3 or greeting[12:32] != GREETING[12:32]:
        raise ProtocolError("a greeting of something else")
    return 0 if greeting[10:12] == b"\x03\x00" else 1


def message(parts: Sequence[bytes]) -> bytes:
    """The bytes of one message."""
    frames: list[bytes] = []
    last = len(parts) - 1
    for number, part in enumerate(parts):
        frames += (_head(MORE if number < last else 0, len(part)), part)
    return b"".join(frames)


def command(name: bytes, body: bytes) -> bytes:
    """The bytes of one command."""
    return _head(COMMAND, 1 + len(name) + len(body)) + bytes((len(name),)) + name + body


def ready(**properties: bytes) -> bytes:
    """The command that ends our half of the handshake; `_` in a property's name is `-` there."""
    body = b""
    for key, value in properties.items():
        name = key.replace("_", "-").encode()
        body += struct.pack(f">B{len(name)}sI", len(name), name, len(value)) + value
    return command(b"READY", body)


def split_command(body: bytes) -> tuple[bytes, bytes]:
    """Name and what follows it; no name where it is none, or was too long to be kept."""
    size = body[0] if body else 0
    return body[1 : 1 + size], body[1 + size :]


def subscribe(topic: bytes, minor: int) -> bytes:
    """A subscription: a command from 3.1 on, a message before."""
    return command(b"SUBSCRIBE", topic) if minor else message([b"\x01" + topic])


def _head(flags: int, size: int) -> bytes:
    return bytes((flags, size)) if size < 256 else struct.pack(">BQ", flags | LONG, size)


class Reader:
    """Takes bytes as they come, split anywhere, and gives messages and commands.

    Memory is only used for bytes that have arrived, never for what is announced.
    """

    def __init__(self) -> None:
        self._data, self._at = b"", 0
        self._parts: list[bytes] = []
        self._kept = 0
        self._flags = 0
        self._body: bytearray | None = None  # of the frame that has not come whole; None if it is not kept
        self.missing = 0  # bytes of that frame; no message is over before they have come

    @property
    def keeping(self) -> bool:
        """Whether what is missing will be kept."""
        return self._body is not None

    def feed(self, data: bytes) -> None:
        """Takes more bytes."""
        self._data = self._data[self._at :] + data if self._at < len(self._data) else data
        self._at = 0

    def next(self) -> list[bytes] | bytes | None:
        """The next message as a list, or command as bytes, that is there whole.

        Raises:
            ProtocolError: these are no frames.
        """
        data, end = self._data, len(self._data)
        while self._at < end:
            if self.missing:
                body = self._go_on()
                if body is None:
                    return None
            else:
                at = self._at
                flags = data[at]
                if flags > 7:
                    raise ProtocolError("reserved flags of a frame are set")
                start = at + (9 if flags & LONG else 2)
                if start > end:
                    return None
                size = int.from_bytes(data[at + 1 : start], "big")
                self._flags = flags
                if start + size > end:
                    self._begin(start, size)
                    return None
                self._at = start + size
                body = data[start : start + size] if self._keeps(size) else CUT
            if self._flags & COMMAND:
                return body
            if len(self._parts) < MAX_PARTS:
                self._parts.append(body)
                self._kept += len(body)
            if not self._flags & MORE:
                parts, self._parts, self._kept = self._parts, [], 0
                return parts
        return None

    def _keeps(self, size: int) -> bool:
        if self._flags & COMMAND:
            return size <= MAX_COMMAND_BYTES
        return self._kept + size <= MAX_MESSAGE_BYTES and len(self._parts) < MAX_PARTS

    def _begin(self, start: int, size: int) -> None:
        """A frame of which only the beginning is there."""
        self._body = bytearray(memoryview(self._data)[start:]) if self._keeps(size) else None
        self.missing = start + size - len(self._data)
        self._at = len(self._data)

    def _go_on(self) -> bytes | None:
        """More of such a frame; the whole body once it is there."""
        new = memoryview(self._data)[self._at : self._at + self.missing]
        self._at += len(new)
        self.missing -= len(new)
        if self._body is not None:
            self._body += new
        if self.missing:
            return None
        body = CUT if self._body is None else bytes(self._body)
        self._body = None
        return body
