"""Standard output and error of a session: any text, in order, also what other programs write to the descriptors.

The server keeps head and tail of what a cell prints. A cell that floods would have it read all the rest, while other
sessions wait: the middle is dropped before it is sent, and counted.
"""

from __future__ import annotations

import codecs
import io
import os
import select
import sys
import threading
from collections.abc import Iterator
from typing import Any

from ipykernel.iostream import OutStream

from .look import capture
from .text import sendable

PIPE_BYTES = 1 << 20  # the most that a pipe holds, unless root says otherwise
MAX_TURNS = 500  # of a cell, from one stream to the other; each is a message, and waits for it to be sent
# Of one cell; as in kernel_server/kernels/outputs.py.
HEAD_CHARACTERS = 4 << 20
TAIL_CHARACTERS = 1 << 20
SENT_SECONDS = 10.0  # as OutStream's flush_timeout
PIECE_CHARACTERS = 128 << 10  # of one message; the server serves other sessions in between


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
        self._sent: dict[str, int] = {}  # characters, by the cell that wrote them
        self._flushing = False  # `_flush` is at work
        # Of the latest text: its cell, all buffers, and the one that it is in.
        self._latest: tuple[Any, Any, Any] = (None, None, None)
        super().__init__(*args, **kwargs)
        self._streams[self.name] = self
        os.register_at_fork(after_in_child=self._begin_as_child)

    @property
    def buffer(self) -> io.RawIOBase:
        """The stream for bytes."""
        return _Bytes(self)

    def write(self, string: Any) -> int:
        """Writes; lone surrogates, which no message can carry, as escapes."""
        if isinstance(string, str) and not string.isascii():
            string = sendable(string)
        if isinstance(string, str) and capture(string):
            return len(string)
        return self._append(string) or self._write_first(string)

    def _append(self, string: Any) -> int:
        """Writes what follows another text of the same cell: a third of the time that OutStream takes. 0 if it does not."""
        parent, buffers, buffer = self._latest
        if self._flush_pending and self.parent_header is parent and isinstance(string, str):
            with self._buffer_lock:
                if self._buffers is buffers:
                    return int(buffer.write(string))
        return 0

    def _write_first(self, string: Any) -> int:
        for stream in self._streams.values():
            if stream is not self:
                self._send_before(stream)
        parent = self.parent_header
        written = super().write(string)
        with self._buffer_lock:
            self._latest = parent, self._buffers, self._buffers[frozenset(parent.items())]
        return int(written or 0)

    def revive(self, pub_thread: Any) -> None:
        """Goes on in a process that was forked from its own, with a thread of IOPub there."""
        self.pub_thread, self._io_loop, self._master_pid = pub_thread, pub_thread.io_loop, os.getpid()
        self._buffer_lock, self._pipe = threading.RLock(), threading.Lock()
        self._buffers.clear()
        self._sent = {}
        self._flushing = False
        self._latest = (None, None, None)
        self._flush_pending = self._subprocess_flush_pending = False
        if self._should_watch:
            self._fid, writer = os.pipe()
            os.dup2(writer, self._original_stdstream_fd)
            os.close(writer)
            self.watch_fd_thread = threading.Thread(target=self._watch_pipe_fd, daemon=True)
            self.watch_fd_thread.start()

    def _begin_as_child(self) -> None:
        """A forked child never flushes by time: OutStream has it send each text at once."""
        self._flush_pending = False

    def _send_before(self, stream: SessionOutStream) -> None:
        if stream._buffers and self._turns > 0 and self._is_master_process():
            self._turns -= 1
            super(SessionOutStream, stream).flush()

    def flush(self) -> None:
        """Sends what was written, also to the descriptor."""
        if self._is_master_process():
            self._take()
        if self._buffers or self._sent or self._flushing:  # else IOPub's thread would be waited for in vain
            super().flush()
        if self._sent:
            wait_sent(self.pub_thread)

    def _flush(self) -> None:
        """Sends what was written since the last time; runs in the thread of IOPub."""
        self._flushing = True
        self._flush_pending = self._subprocess_flush_pending = False
        sent, self._sent = self._sent, {}
        for parent, text in self._flush_buffers():
            cell = str(parent.get("msg_id", ""))
            before = sent.get(cell, 0)
            self._sent[cell] = before + len(text)
            for dropped, piece in pieces(text, max(0, HEAD_CHARACTERS - before)):
                content = {"name": self.name, "text": piece, **({"dropped": dropped} if dropped else {})}
                self.session.pid = os.getpid()
                self.session.send(self.pub_thread, "stream", content, parent=parent, ident=self.topic)
        self._flushing = False

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


def wait_sent(pub_thread: Any) -> None:
    """Waits until IOPub's thread has sent what it was given: a cell may end the process next.

    A flush of ipykernel's returns when the message is made, which has its own turn to be sent.
    """
    if pub_thread.thread.is_alive() and pub_thread.thread is not threading.current_thread():
        sent = threading.Event()
        pub_thread.schedule(sent.set)
        sent.wait(SENT_SECONDS)


def pieces(text: str, head: int) -> Iterator[tuple[int, str]]:
    """The parts of a text that are sent, each with the number of characters that are missing before it.

    Args:
        head: how many are wanted from its beginning.
    """
    dropped = len(text) - head - TAIL_CHARACTERS
    for missing, part in [(0, text[:head]), (dropped, text[-TAIL_CHARACTERS:])] if dropped > 0 else [(0, text)]:
        for start in range(0, len(part), PIECE_CHARACTERS):
            yield 0 if start else missing, part[start : start + PIECE_CHARACTERS]


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
