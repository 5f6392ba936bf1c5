"""A session's journal: one JSON line for each finished cell, written before the result is sent; and one before it is run.

Append-only, so that a crash can only tear the last line, and the reader passes over a torn one. Its bytes never change: a
branch refers to the first of its parent's in place of a copy. What is full therefore takes no more outputs, and older ones
stay; sources are always recorded.

All of this blocks, and is called in worker threads.
"""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from kernel_server.errors import FileError
from kernel_server.text import counted, human_size
from kernel_server.transcripts.pieces import json_pieces
from kernel_server.transcripts.records import (
    BEGINS,
    CONTINUES,
    CONTINUES_PREFIX,
    RECORD_KEYS,
    JournaledCell,
    LastLines,
    encoded,
    last_of,
    least_bytes,
    notebook_output,
    object_of,
)

logger = logging.getLogger(__name__)

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES}
BLOCK_BYTES = 1 << 16
WRITE_BYTES = 1 << 18
MAX_REFERENCE_BYTES = 200
_SESSION_ID = re.compile(r"[0-9a-f]{32}")
OMITTED = "{what} not recorded: {why}. read_output and export_notebook do not have {them}."
CELL_FULL = "a cell's outputs may take {limit} in its journal"
JOURNAL_FULL = (
    "the session's journal has its {limit} of outputs, and records only sources from now on. branch_session goes on with "
    "the same variables and a journal of its own"
)
FOLDER_FULL = (
    "the journals of all sessions have their {limit}, and none of a session that has ended is left to be removed. Close "
    "sessions that are no longer needed"
)


@dataclass(frozen=True)
class Bounds:
    """Bytes of journals as written.

    Attributes:
        cell: outputs of one cell; about what is kept of one in memory.
        journal: what one session has written; beyond it, only sources.
        folder: journals of all sessions: of 32 that are full, as many as there may be by default.
    """

    cell: int = 40_000_000
    journal: int = 125_000_000
    folder: int = 4_000_000_000


class Account(Protocol):
    """Who knows how much all journals together have."""

    bounds: Bounds

    def left(self) -> int:
        """Bytes that all together may still take."""

    def add(self, path: Path, size: int) -> None:
        """So many bytes were written to a journal."""


class Alone:
    """The account of a journal that shares its folder with no other."""

    bounds = Bounds()

    def left(self) -> int:
        return self.bounds.folder

    def add(self, path: Path, size: int) -> None:
        pass


class Journal:
    """The journal file of one session; made with its first cell, 0600."""

    def __init__(self, path: Path, account: Account | None = None) -> None:
        """Opens nothing yet."""
        self.path = path
        self._account = Alone() if account is None else account

    # -- writing ---------------------------------------------------------------------------------------------------

    def append(self, cell: JournaledCell) -> str:
        """Writes a cell. It survives the end of this process, in whatever way; a power cut only after a `sync`.

        Returns:
            What is not recorded of it and why, as sentences; "" if everything is.

        Raises:
            FileError: the disk is full or the folder is gone; the cells written before stay good.
        """
        left, why = self._left()
        outputs = _Outputs(left)
        try:
            with self._opened() as line:
                head = b"".join(encoded(json_pieces(cell.head)))
                line.write([head.removesuffix(b"}"), b', "outputs": ['])
                for output in cell.outputs.items:
                    line.write(outputs.take(notebook_output(output)))
                omitted = outputs.omitted(why)
                if omitted:
                    line.write(outputs.remark(omitted))
                line.write([b'], "notes": '])
                line.write(encoded(json_pieces(cell.all_notes(omitted))))
                line.write([b"}\n"])
        except OSError as error:
            remedy = " Free some disk space or set PY_EXEC_STATE_DIR." if error.errno in FULL else ""
            raise FileError(
                f"The cell ran, but it could not be recorded in {self.path.parent}: {error.strerror}.{remedy}"
            ) from error
        return omitted

    def _left(self) -> tuple[int, str]:
        """How many bytes of outputs may be written now, and why no more."""
        bounds = self._account.bounds
        limits = (
            (bounds.cell, CELL_FULL.format(limit=human_size(bounds.cell))),
            (bounds.journal - self.size, JOURNAL_FULL.format(limit=human_size(bounds.journal))),
            (self._account.left(), FOLDER_FULL.format(limit=human_size(bounds.folder))),
        )
        return min(limits, key=lambda limit: limit[0])

    def begin(self, msg_id: str, source: str) -> None:
        """Writes that a cell is about to be sent, so that a later server need not believe the kernel what it was.

        Where that fails, the end of the cell reports it.
        """
        with suppress(OSError):
            self._write({BEGINS: msg_id, "source": source})

    def continue_from(self, parent: Journal, size: int) -> None:
        """Before anything else: the first `size` bytes of the parent's journal come first.

        Raises:
            FileError: the disk is full, or the parent's journal is gone.
        """
        if not size:
            return
        try:
            os.stat(parent.path)
            self._write({CONTINUES: parent.path.stem, "bytes": size})
        except OSError as error:
            raise FileError(
                f"No branch was made: what ran before cannot be recorded in {self.path.parent}: {error.strerror}."
            ) from error

    def discard(self) -> None:
        """Removes it: it belongs to no session."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)

    def _write(self, record: dict[str, Any]) -> None:
        with self._opened() as line:
            line.write(encoded(json_pieces(record)))
            line.write([b"\n"])

    @contextmanager
    def _opened(self) -> Iterator[_Line]:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            line = _Line(descriptor)
            with line:
                yield line
            self._account.add(self.path, line.size)
        finally:
            os.close(descriptor)

    # -- reading ---------------------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Bytes that it has so far, without those of its parent."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def last(self) -> LastLines:
        """What the last lines say."""
        try:
            with open(self.path, "rb") as file:
                return last_of(_last_lines(file, 2))
        except OSError:
            return LastLines()

    def cells(self) -> Iterator[dict[str, Any]]:
        """The recorded cells in order, first those of its parent; a torn last line is passed over.

        Raises:
            FileError: they cannot be read.
        """
        for line in self.lines():
            record = object_of(line)
            if record.keys() >= RECORD_KEYS:
                yield record
            elif BEGINS not in record and CONTINUES not in record and line.endswith(b"\n"):
                logger.warning("%s: a torn line is passed over", self.path)

    def lines(self) -> Iterator[bytes]:
        """All lines as they were written; raises as `cells`."""
        try:
            for path, size in self._chain():
                with open(path, "rb") as file:
                    yield from _lines_of(file, size)
        except FileNotFoundError as error:
            if error.filename != str(self.path):
                raise FileError("What ran before this session was branched is not there any more.") from error
        except OSError as error:
            raise FileError(f"What ran cannot be read from {self.path.parent}: {error.strerror}.") from error

    def _chain(self) -> list[tuple[Path, int | None]]:
        """Journals from that of the oldest ancestor to this one, and how many bytes of each count; None is all."""
        chain: list[tuple[Path, int | None]] = [(self.path, None)]
        seen = {self.path}
        while found := reference_of(chain[0][0]):
            parent, size = found
            path = self.path.with_name(f"{parent}.jsonl")
            if path in seen:
                raise FileError(f"{self.path}: this journal is damaged.")
            seen.add(path)
            chain.insert(0, (path, size))
        return chain


class _Line:
    """A line that is being written, also behind a torn one; a part that was written before an error is taken back.

    Attributes:
        size: bytes that are written.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._before = os.fstat(descriptor).st_size
        self._waiting: list[bytes] = []
        self._waiting_bytes = self.size = 0
        if self._before and os.pread(descriptor, 1, self._before - 1) != b"\n":
            self.write([b"\n"])

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._flush()
        else:
            self._take_back()

    def write(self, pieces: Iterable[bytes]) -> None:
        for piece in pieces:
            self._waiting.append(piece)
            self._waiting_bytes += len(piece)
            if self._waiting_bytes >= WRITE_BYTES:
                self._flush()

    def _flush(self) -> None:
        view = memoryview(b"".join(self._waiting))
        self._waiting, self._waiting_bytes = [], 0
        try:
            while view:
                written = os.write(self._descriptor, view)
                self.size += written
                view = view[written:]
        except OSError:
            self._take_back()
            raise

    def _take_back(self) -> None:
        os.ftruncate(self._descriptor, self._before)
        self.size = 0


class _Outputs:
    """The outputs of one cell as they are written: each whole or not at all, and together within a bound."""

    def __init__(self, left: int) -> None:
        self._left = left
        self._separator = b""
        self._count = 0

    def take(self, output: dict[str, Any]) -> Iterator[bytes]:
        """What is to be written of an output."""
        if not self._fits(output):
            self._count += 1
            return iter(())
        return self._separated(encoded(json_pieces(output)))

    def _fits(self, output: dict[str, Any]) -> bool:
        """Counts its bytes, if there is room for them. To encode it twice takes less than to hold all of it twice."""
        left = self._left
        if least_bytes(output) > left:
            return False
        for piece in encoded(json_pieces(output)):
            left -= len(piece)
            if left < 0:
                return False
        self._left = left
        return True

    def omitted(self, why: str) -> str:
        """What was left out, for people and models; "" if nothing was."""
        if not self._count:
            return ""
        what = f"{counted(self._count, 'output')} of this cell {'is' if self._count == 1 else 'are'}"
        return OMITTED.format(what=what, why=why, them="it" if self._count == 1 else "them")

    def remark(self, text: str) -> Iterator[bytes]:
        """An output that says so, after what was taken."""
        output = {"output_type": "stream", "name": "stderr", "text": f"[{text}]\n"}
        return self._separated(encoded(json_pieces(output)))

    def _separated(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        separator, self._separator = self._separator, b", "
        return chain([separator], pieces)


def reference_of(path: Path) -> tuple[str, int] | None:
    """The session that a journal continues, and how many bytes of that one's journal come before it.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        line = file.readline(MAX_REFERENCE_BYTES)
    if not line.startswith(CONTINUES_PREFIX):
        return None
    record = object_of(line)
    parent, size = record.get(CONTINUES), record.get("bytes")
    return (str(parent), size) if is_session_id(parent) and type(size) is int else None


def is_session_id(value: object) -> bool:
    """Whether something is the id of a session, and so no path."""
    return isinstance(value, str) and bool(_SESSION_ID.fullmatch(value))


def _lines_of(file: BinaryIO, size: int | None) -> Iterator[bytes]:
    """The lines in the first bytes of a file; None is all of it."""
    position = 0
    for line in file:
        position += len(line)
        if size is not None and position > size:
            return
        yield line


def _last_lines(file: BinaryIO, count: int) -> list[bytes]:
    """The last lines that are whole; in time that is linear in their length, for one may have 40 MB."""
    end = file.seek(0, os.SEEK_END)
    blocks: list[bytes] = []
    ends = 0
    while end and ends <= count:
        begin = max(0, end - BLOCK_BYTES)
        file.seek(begin)
        blocks.append(file.read(end - begin))
        ends += blocks[-1].count(b"\n")
        end = begin
    found = b"".join(reversed(blocks))
    return found[: found.rfind(b"\n")].split(b"\n")[-count:] if ends else []
