"""Descriptors in messages: session code can attach them to what it sends on its kernel's sockets.

Whoever drops the last reference to a file frees it: seconds for a removed file of many extents, and as long as the
session wants for a TCP connection with SO_LINGER. A receiver that takes no descriptors drops them while it reads, which
would be the event loop. So Linux is asked to refuse them to the sender. Where it cannot, before 6.16, they are noticed
while the message still holds them, and sockets are closed in a thread.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from queue import SimpleQueue

SO_PASSRIGHTS = 83  # include/uapi/asm-generic/socket.h of Linux 6.16: 0 fails the sender with EPERM


class DescriptorsSent(OSError):
    """The peer has attached descriptors, which no kernel does."""


class Receiver:
    """The receiving half of a socket that is not connected yet; closes it, too."""

    def __init__(self, opened: socket.socket, closer: Closer) -> None:
        self._socket = opened
        self._closer = closer
        try:
            opened.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)
            self.refusing = True
        except OSError:
            self.refusing = False
            # An urgent byte would be passed over, and what is attached to it dropped, where nobody can notice.
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)

    def receive(self, size: int) -> bytes:
        """At most `size` bytes; none at the end.

        Raises:
            DescriptorsSent: there are descriptors among them, so the socket must be closed.
            OSError: as `socket.recv`.
        """
        if self.refusing:
            return self._socket.recv(size)
        data, _, flags, _ = self._socket.recvmsg(size, 0, socket.MSG_PEEK)
        if flags & socket.MSG_CTRUNC:  # unix(7): no room was given for what is attached
            raise DescriptorsSent("descriptors were attached to a message")
        return self._socket.recv(len(data)) if data else data

    def close(self) -> None:
        """Closes the socket, elsewhere if it may hold descriptors."""
        if self.refusing:
            self._socket.close()
        else:
            self._closer.close(self._socket)


class Closer:
    """Closes sockets one after the other, in a thread that starts with the first of them.

    It does not keep the process from ending.
    """

    def __init__(self) -> None:
        self._waiting: SimpleQueue[socket.socket | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def close(self, opened: socket.socket) -> None:
        """Has it closed; it must not be used any more."""
        self._waiting.put(opened)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="closer", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Ends the thread, once all that it was given is closed."""
        if self._thread is not None:
            self._waiting.put(None)
            self._thread = None

    def _run(self) -> None:
        while (opened := self._waiting.get()) is not None:
            with suppress(OSError):
                opened.close()
