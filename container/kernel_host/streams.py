"""Standard output and error of a session: any text, in order, also what other programs write to the descriptors."""

from __future__ import annotations

import codecs
import io
import os
import select
import sys
import threading
from typing import Any

from ipykernel.iostream import OutStream

from .look import capture

PIPE_BYTES = 1 << 20  # the most that a pipe holds, unless root says otherwise
MAX_TURNS = 500  # of a cell, from one stream to the other; each is a message, and waits for it to be sent


class SessionOutStream(OutStream):
    """ipykernel's stream, which sends what it has every 200 ms.

    What is written to the other one before is sent before. What programs wrote to the descriptor is read before a
    flush is over, so that it comes before the value of the cell, and with its cell.
    """

    _streams: dict[str, SessionOutStream] = {}  # noqa: RUF012 - of the process

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._pipe = threading.Lock()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._turns = MAX_TURNS
        super().__init__(*args, **kwargs)
        self._streams[self.name] = self

    @property
    def buffer(self) -> io.RawIOBase:
        """The stream for bytes."""
        return _Bytes(self)

    def write(self, string: Any) -> int:
        """Writes; lone surrogates, which no message can carry, as escapes."""
        if isinstance(string, str) and not string.isascii():
            string = string.encode("utf-8", "backslashreplace").decode()
        if isinstance(string, str) and capture(string):
            return len(string)
        for stream in self._streams.values():
            if stream is not self:
                self._send_before(stream)
        return int(super().write(string) or 0)

    def _send_before(self, stream: SessionOutStream) -> None:
        if stream._buffers and self._turns > 0 and self._is_master_process():
            self._turns -= 1
            super(SessionOutStream, stream).flush()

    def flush(self) -> None:
        """Sends what was written, also to the descriptor."""
        if self._is_master_process():
            self._take()
        super().flush()

    def set_parent(self, parent: Any) -> None:
        """A request begins."""
        self._turns = MAX_TURNS
        super().set_parent(parent)

    def _watch_pipe_fd(self) -> None:
        try:
            while self._should_watch:
                assert self._fid is not None
                select.select([self._fid], [], [])
                if not self._take():
                    break
        except Exception:  # as in ipykernel, which shows it when the stream is closed
            self._exc = sys.exc_info()

    def _take(self) -> bool:
        """Writes what there is in the pipe; False at its end."""
        if not self._should_watch or self._fid is None:
            return False
        with self._pipe:
            if not select.select([self._fid], [], [], 0)[0]:
                return True
            data = os.read(self._fid, PIPE_BYTES)
            self.write(self._decoder.decode(data))
        return bool(data)


class _Bytes(io.RawIOBase):
    """What has `sys.stdout.buffer.write` of UTF-8 in programs for a terminal."""

    def __init__(self, stream: SessionOutStream) -> None:
        self._stream = stream

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        raw = bytes(data)
        self._stream.write(raw.decode("utf-8", "backslashreplace"))
        return len(raw)

    def flush(self) -> None:
        self._stream.flush()
