"""Whether a picture can be decoded, found out in a process that can do nothing else: a hostile one harms only that."""

from __future__ import annotations

import logging
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

logger = logging.getLogger(__name__)

Verdict = Literal["sound", "broken", "unknown"]

# What both ends of the socket know: a picture is its type, its length and its bytes, an answer one byte.
IMAGE_TYPES = ("image/png", "image/jpeg")
HEADER = struct.Struct(">BI")
READY, SOUND, BROKEN = b"r", b"s", b"b"

START_SECONDS = 20.0  # a twentieth of a second on an idle machine
CLOSE_SECONDS = 1.0
CHECK_SECONDS = 3.0  # for one picture; the largest takes a tenth of a second
# The interpreter finds modules where this one does, installed or not.
PROGRAM = "import sys; sys.path[:] = {path!r}; from kernel_server.tools.decoder import main; main()"
KEPT_VARIABLES = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME")  # without which some interpreters do not start


class Decoder:
    """Asks a helper process, which is started for the first picture, and again after one that it did not survive.

    Threads may share it: one picture is decoded at a time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._helper: _Helper | None = None
        self._closed = False

    @property
    def pid(self) -> int | None:
        """The helper's process, if there is one."""
        helper = self._helper
        return helper.process.pid if helper else None

    def check(self, mime_type: str, data: bytes, seconds: float = CHECK_SECONDS) -> Verdict:
        """Decodes a picture to its last pixel.

        Args:
            seconds: how long to wait at most, for other threads too.

        Returns:
            `unknown` if that was not possible in time or with the memory that there is, or after `close`.
        """
        deadline = time.monotonic() + seconds
        if not self._lock.acquire(timeout=max(0.0, seconds)):
            return "unknown"
        try:
            if self._closed:
                return "unknown"
            if self._helper is None:
                self._helper = _Helper()
                deadline = time.monotonic() + seconds
            return self._helper.ask(mime_type, data, deadline)
        except OSError as error:
            logger.warning("a picture could not be checked: %s", error)
            self._end_helper()
            return "unknown"
        finally:
            if self._closed:
                self._end_helper()
            self._lock.release()

    def close(self) -> None:
        """Ends the helper, and with it a check that is under way."""
        self._closed = True
        if helper := self._helper:
            helper.process.kill()
        if self._lock.acquire(timeout=CLOSE_SECONDS):  # else it is just being started, and ends with its socket
            self._end_helper()
            self._lock.release()

    def _end_helper(self) -> None:
        if self._helper is not None:
            self._helper.end()
            self._helper = None


@contextmanager
def open_decoder() -> Iterator[Decoder]:
    """A decoder for the length of the block."""
    decoder = Decoder()
    try:
        yield decoder
    finally:
        decoder.close()


class _Helper:
    """The process, and our end of its socket.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM.format(path=sys.path)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env={name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ},
                start_new_session=True,  # Ctrl-C is for the server
            )
        try:
            self._receive(READY, time.monotonic() + START_SECONDS)
        except OSError:
            self.end()
            raise

    def ask(self, mime_type: str, data: bytes, deadline: float) -> Verdict:
        """Raises OSError if there is no answer until `deadline` (monotonic time)."""
        self._socket.settimeout(_left(deadline))
        self._socket.sendall(HEADER.pack(IMAGE_TYPES.index(mime_type), len(data)) + data)
        return "sound" if self._receive(SOUND + BROKEN, deadline) == SOUND else "broken"

    def end(self) -> None:
        """Kills it, and waits for that."""
        self.process.kill()
        self.process.wait()
        self._socket.close()

    def _receive(self, expected: bytes, deadline: float) -> bytes:
        self._socket.settimeout(_left(deadline))
        answer = self._socket.recv(1)
        if not answer:
            raise ConnectionError("its process has ended")
        if answer not in expected:
            raise ConnectionError("its process has sent what is no answer")
        return answer


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("no answer in time")
    return left
