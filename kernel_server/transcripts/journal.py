"""A session's journal: one JSON line for each finished cell, written before the result is sent; and one before it is run.

Append-only, so that a crash can only tear the last line, and the reader passes over a torn one.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from kernel_server.errors import FileError
from kernel_server.kernels.outputs import Display, Error, Output, Outputs, Stream

logger = logging.getLogger(__name__)

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES}
RECORD_KEYS = {"source", "execution_count", "status", "generation", "begun", "ended", "notes", "outputs"}
BLOCK_BYTES = 1 << 16
MAX_FIRST_LINE = 1 << 20  # bytes of a journal that are read to show how it begins
BEGINS = "begins"  # in place of all else but `source`: the msg_id of a cell that is about to be sent
_BEGINS = json.dumps({BEGINS: ""}).removesuffix('""}').encode()
_SESSION_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class JournaledCell:
    """A finished cell.

    Attributes:
        source: what a person reads as the cell.
        status: as in the result: ok, error, interrupted, timeout, died.
        begun, ended: wall time, UTC.
        notes: what was said beside the outputs.
        msg_id: of its `execute_request`.
        remark: it is no cell, but what happened between two, as Markdown in `source`.
    """

    source: str
    outputs: Outputs
    execution_count: int
    status: str
    generation: int
    begun: datetime
    ended: datetime
    notes: list[str] = field(default_factory=list)
    msg_id: str = ""
    remark: bool = False


@dataclass(frozen=True)
class LastLines:
    """What the last lines of a journal say; "" for nothing.

    Attributes:
        finished: msg_id of the last cell that came to its end.
        begun: msg_id of the cell that was sent after it.
        source: of that cell.
    """

    finished: str = ""
    begun: str = ""
    source: str = ""


class Journal:
    """The journal file of one session; made with its first cell, 0600."""

    def __init__(self, path: Path, written: set[Path] | None = None) -> None:
        """Opens nothing yet.

        Args:
            written: takes the path of each journal that was written to.
        """
        self.path = path
        self._written = set() if written is None else written

    def append(self, cell: JournaledCell) -> None:
        """Writes a cell. It survives the end of this process, in whatever way; a power cut only after a `sync`.

        Raises:
            FileError: the disk is full or the folder is gone; the cells written before stay good.
        """
        record = {
            "source": cell.source,
            "execution_count": cell.execution_count,
            "status": cell.status,
            "generation": cell.generation,
            "begun": cell.begun.isoformat(),
            "ended": cell.ended.isoformat(),
            "notes": cell.notes,
            "msg_id": cell.msg_id,
            **({"remark": True} if cell.remark else {}),
            "outputs": [notebook_output(output) for output in cell.outputs.items],
        }
        try:
            self._write(record)
        except OSError as error:
            remedy = " Free some disk space or set PY_EXEC_STATE_DIR." if error.errno in FULL else ""
            raise FileError(
                f"The cell ran, but it could not be recorded in {self.path.parent}: {error.strerror}.{remedy}"
            ) from error

    def begin(self, msg_id: str, source: str) -> None:
        """Writes that a cell is about to be sent, so that a later server need not believe the kernel what it was.

        Where that fails, the end of the cell tells of it.
        """
        with suppress(OSError):
            self._write({BEGINS: msg_id, "source": source})

    def _write(self, record: dict[str, Any]) -> None:
        line = json.dumps(record).encode() + b"\n"  # ASCII: a lone surrogate stays an escape
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _write_all(descriptor, line)
        finally:
            os.close(descriptor)
        self._written.add(self.path)

    @property
    def size(self) -> int:
        """Bytes that it has so far."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def begin_with(self, other: Journal, size: int) -> None:
        """Takes the first bytes of another session's journal, before anything else.

        Raises:
            FileError: the disk is full.
        """
        if not size:
            return
        try:
            with open(other.path, "rb") as source, open(self.path, "xb", opener=_private) as target:
                shutil.copyfileobj(_Limited(source, size), target)
        except OSError as error:
            self.path.unlink(missing_ok=True)
            raise FileError(f"What ran before cannot be copied in {self.path.parent}: {error.strerror}.") from error
        self._written.add(self.path)

    def last(self) -> LastLines:
        """What the last lines say."""
        try:
            with open(self.path, "rb") as file:
                records = [_object_of(line) for line in _last_lines(file, 2)]
        except OSError:
            return LastLines()
        nothing: dict[str, Any] = {}
        finished = next((record for record in reversed(records) if record.keys() >= RECORD_KEYS), nothing)
        begun = records[-1] if records and BEGINS in records[-1] else {}
        return LastLines(str(finished.get("msg_id", "")), str(begun.get(BEGINS, "")), str(begun.get("source", "")))

    def cells(self) -> Iterator[dict[str, Any]]:
        """The recorded cells in order; a torn last line is passed over.

        Raises:
            FileError: they cannot be read.
        """
        try:
            with open(self.path, "rb") as file:
                for line in file:
                    record = _object_of(line)
                    if record.keys() >= RECORD_KEYS:
                        yield record
                    elif BEGINS not in record:
                        logger.warning("%s: a torn line is passed over", self.path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise FileError(f"What ran cannot be read from {self.path.parent}: {error.strerror}.") from error


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


class _Limited:
    """The beginning of a file, to be read."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._left = size

    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(min(size, self._left))
        self._left -= len(data)
        return data


def _last_lines(file: BinaryIO, count: int) -> list[bytes]:
    """The last lines that are whole."""
    end = file.seek(0, os.SEEK_END)
    found = b""
    while end and found.count(b"\n") <= count:
        begin = max(0, end - BLOCK_BYTES)
        file.seek(begin)
        found = file.read(end - begin) + found
        end = begin
    return found[: found.rfind(b"\n")].split(b"\n")[-count:] if b"\n" in found else []


def _object_of(line: bytes) -> dict[str, Any]:
    """A line's JSON object; a torn one is empty."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _describe(path: Path) -> JournalInfo:
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        first = _object_of(file.readline(MAX_FIRST_LINE))
        file.seek(0)
        cells = sum(line.endswith(b"\n") and not line.startswith(_BEGINS) for line in file)
    begins = str(first.get("source", ""))
    return JournalInfo(path.stem, cells, status.st_size, status.st_mtime, begins)


def _write_all(descriptor: int, data: bytes) -> None:
    """Writes a line, also behind a torn one; a part that was written before an error is taken back."""
    before = os.fstat(descriptor).st_size
    if before and os.pread(descriptor, 1, before - 1) != b"\n":
        data = b"\n" + data
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(descriptor, view) :]
    except OSError:
        os.ftruncate(descriptor, before)
        raise


def notebook_output(output: Output) -> dict[str, Any]:
    """An output as nbformat 4 has it.

    Source: https://nbformat.readthedocs.io/en/latest/format_description.html
    """
    match output:
        case Stream():
            return {"output_type": "stream", "name": output.name, "text": output.text}
        case Error():
            return {
                "output_type": "error",
                "ename": output.ename,
                "evalue": output.evalue,
                "traceback": output.traceback,
            }
        case Display(execution_count=None):
            return {"output_type": "display_data", "data": output.data, "metadata": output.metadata}
        case Display():
            return {
                "output_type": "execute_result",
                "data": output.data,
                "metadata": output.metadata,
                "execution_count": output.execution_count,
            }


@dataclass(frozen=True)
class JournalInfo:
    """A journal as a listing shows it.

    Attributes:
        cells: how many were finished.
        size: bytes.
        modified: when the last cell was finished, in seconds since 1970.
        begins: source of the first cell; "" where that is too long to be looked for.
    """

    session_id: str
    cells: int
    size: int
    modified: float
    begins: str


class JournalFolder:
    """Where the journals of all sessions are."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._written: set[Path] = set()

    def journal(self, session_id: str) -> Journal:
        """The journal of a session, also of one that has ended."""
        return Journal(self._folder / f"{session_id}.jsonl", self._written)

    @property
    def is_synced(self) -> bool:
        """Whether nothing was written since the last `sync`."""
        return not self._written

    def sync(self) -> None:
        """Has the disk keep what was written; blocks.

        Raises:
            OSError: it does not.
        """
        while self._written:
            descriptor = os.open(self._written.pop(), os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def find(self, session_id: str) -> Journal | None:
        """The journal of a session that has run something, by an id that a client sent."""
        if not _SESSION_ID.fullmatch(session_id):
            return None
        journal = self.journal(session_id)
        return journal if journal.path.is_file() else None

    def kept(self) -> list[JournalInfo]:
        """All journals, those that were written to last first."""
        found = []
        for path in self._folder.glob("*.jsonl"):
            try:
                found.append(_describe(path))
            except OSError as error:
                logger.debug("could not read %s: %s", path, error)
        return sorted(found, key=lambda info: info.modified, reverse=True)

    def sweep(self, seconds: float) -> None:
        """Removes journals that have not been written to for so long."""
        for path in self._folder.glob("*.jsonl"):
            try:
                if time.time() - path.stat().st_mtime > seconds:
                    path.unlink()
            except OSError as error:
                logger.debug("could not remove %s: %s", path, error)
