"""Messages between the kernel host and processes that were forked from kernels: JSON, with descriptors.

Whoever sends is told by Linux, not by the message: a session can send what it likes.

Source: unix(7), SOCK_SEQPACKET, SCM_RIGHTS and SCM_CREDENTIALS.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

MAX_BYTES = 64 << 10  # of a message
MAX_DESCRIPTORS = 8
CREDENTIALS = struct.Struct("iii")  # struct ucred: pid, uid, gid


class Received(NamedTuple):
    """A message, the descriptors that came with it, and the process that sent it."""

    message: dict[str, Any]
    descriptors: list[int]
    pid: int
    uid: int


class Line:
    """One end of a pair of sockets."""

    def __init__(self, end: socket.socket) -> None:
        self.socket = end

    @classmethod
    def pair(cls) -> tuple[Line, Line]:
        """Two ends; the first learns who sends."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        return cls(ours), cls(theirs)

    @classmethod
    def of(cls, descriptor: int) -> Line:
        """The end that a descriptor is."""
        return cls(socket.socket(fileno=descriptor))

    def fileno(self) -> int:
        """Its descriptor."""
        return self.socket.fileno()

    def send(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Sends a message.

        Raises:
            OSError: nobody reads it, BlockingIOError among them.
        """
        socket.send_fds(self.socket, [json.dumps(message).encode() + b"\n"], list(descriptors))

    def receive(self) -> Received | None:
        """The next message; None where there will be none.

        Raises:
            BlockingIOError: there is none yet.
            ValueError: it is not one.
        """
        space = socket.CMSG_SPACE(MAX_DESCRIPTORS * 4) + socket.CMSG_SPACE(CREDENTIALS.size)
        data, ancillary, flags, _ = self.socket.recvmsg(MAX_BYTES, space, socket.MSG_CMSG_CLOEXEC)
        descriptors: list[int] = []
        pid = uid = -1
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors += struct.unpack(f"{len(content) // 4}i", content[: len(content) // 4 * 4])
            elif level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                pid, uid, _gid = CREDENTIALS.unpack(content)
        if not data:
            return None
        try:
            message = json.loads(data)
            if not isinstance(message, dict) or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise ValueError("not a message")
        except (ValueError, RecursionError) as error:
            for descriptor in descriptors:
                os.close(descriptor)
            raise ValueError("not a message") from error
        return Received(message, descriptors, pid, uid)

    def close(self) -> None:
        """The other end is told."""
        with suppress(OSError):
            self.socket.close()
