"""The folder of all journals: what it has, and what has to leave it.

Several servers share it. The journal of a session that there is stays, and so does one that a branch's refers to. Of the
others, those leave that nobody has written to for long, and, where all together have more than their bound, the oldest.
"""

from __future__ import annotations

import fcntl
import heapq
import json
import logging
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from kernel_server.errors import FileError, JournalRemoved
from kernel_server.text import counted, human_size
from kernel_server.transcripts.journal import Bounds, Journal, is_session_id, reference_of
from kernel_server.transcripts.records import BEGINS_PREFIX, CONTINUES_PREFIX, object_of

logger = logging.getLogger(__name__)

LOCK = "lock"
REMOVED = "removed"  # one JSON line for each journal that is gone
MAX_REMOVED_BYTES = 1_000_000  # about 10 000 of them; then the older half goes
MAX_FIRST_LINE = 1 << 20  # bytes of a journal that are read to show how it begins
ROOM = 32  # where the folder is full, a part of this of it is made free at once
LOOK_PART = 64  # after writing a part of this of the bound, other servers may have written, too
LOOK_SECONDS = 10.0  # between two looks at a folder from which nothing can be removed

IsInUse = Callable[[str], bool]
"""Whether a session is there, or is kept for a later server."""


@dataclass(frozen=True)
class JournalInfo:
    """A journal as a listing shows it.

    Attributes:
        cells: how many were finished, in the sessions from which it was branched, too.
        size: bytes.
        modified: when the last cell was finished, in seconds since 1970.
        begins: source of the first cell; "" where that is too long to be looked for.
    """

    session_id: str
    cells: int
    size: int
    modified: float
    begins: str


@dataclass(frozen=True)
class _Entry:
    session_id: str
    size: int
    modified: float


class JournalFolder:
    """Where the journals of all sessions are; also the `Account` of each. Its methods block, but for `journal`.

    Attributes:
        bounds: of a cell, a journal, and all of them.
    """

    def __init__(
        self,
        folder: Path,
        look: Callable[[], IsInUse] = lambda: lambda _: False,
        bounds: Bounds | None = None,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        """Opens nothing yet.

        Args:
            look: looks which sessions there are, of all servers.
        """
        self.bounds = bounds or Bounds()
        self._folder = folder
        self._look = look
        self._look_seconds = look_seconds
        self._unsynced: set[Path] = set()
        self._lock = threading.RLock()  # of what follows; cells are recorded in threads. Taken before the folder's
        self._taken = 0
        self._written: float = math.inf  # since the last look
        self._looked = -math.inf
        self._news: list[float] = []  # when journals that were removed had been written to last

    def journal(self, session_id: str) -> Journal:
        """The journal of a session, also of one that has ended."""
        return Journal(self._path(session_id), self)

    def _path(self, session_id: str) -> Path:
        return self._folder / f"{session_id}.jsonl"

    # -- account ---------------------------------------------------------------------------------------------------

    def left(self) -> int:
        """Bytes that all together may still take; where that is not much, old ones are removed."""
        with self._lock:
            full = self._taken + self.bounds.cell > self.bounds.folder
            waited = time.monotonic() - self._looked > self._look_seconds
            if self._written > self.bounds.folder // LOOK_PART or (full and waited):
                self._make_room()
            return max(0, self.bounds.folder - self._taken)

    def add(self, path: Path, size: int) -> None:
        """So many bytes were written to a journal."""
        self._unsynced.add(path)
        with self._lock:
            self._taken += size
            self._written += size

    def _make_room(self) -> None:
        self._taken, self._written, self._looked = sum(entry.size for entry in self._entries()), 0, time.monotonic()
        if self._taken + self.bounds.cell <= self.bounds.folder:
            return
        wanted = self.bounds.folder - max(self.bounds.cell, self.bounds.folder // ROOM)
        try:
            removed = self._remove("room", lambda _, total: total > wanted)
        except (
            Exception
        ):  # what other servers have said of themselves is read here: no cell's record must fail for that
            logger.exception("no room could be made in %s", self._folder)
            return
        self._taken -= sum(entry.size for entry in removed)
        if removed:
            self._news += [entry.modified for entry in removed]
            logger.warning(
                "journals had more than %s: %s of ended sessions removed, oldest first, the last one of %s",
                human_size(self.bounds.folder),
                counted(len(removed), "journal"),
                _date(max(entry.modified for entry in removed)),
            )

    def take_news(self) -> str:
        """What was removed to make room since it was asked last, as a sentence; "" for nothing."""
        with self._lock:
            removed, self._news = self._news, []
        if not removed:
            return ""
        return (
            f"To make room, what ran in {counted(len(removed), 'ended session')} was removed, oldest first, the last of "
            f"{_date(max(removed))}: all journals together may have {human_size(self.bounds.folder)}."
        )

    # -- removing --------------------------------------------------------------------------------------------------

    def sweep(self, seconds: float) -> None:
        """Removes journals that have not been written to for so long."""
        now = time.time()
        with self._lock:
            removed = self._remove("age", lambda entry, _: now - entry.modified > seconds)
            self._taken -= sum(entry.size for entry in removed)

    def _remove(self, why: str, wanted: Callable[[_Entry, int], bool]) -> list[_Entry]:
        """Removes the oldest as long as `wanted` says so of one, and of the bytes that all have.

        One to which a branch's refers can go once that one has.
        """
        removed: list[_Entry] = []
        entries = {entry.session_id: entry for entry in self._entries()}
        total = sum(entry.size for entry in entries.values())
        if not any(wanted(entry, total) for entry in entries.values()):
            return []
        with self._held(fcntl.LOCK_EX):
            parents = {name: self._parent(name) for name in entries}
            branches = Counter(parents.values())
            is_in_use = self._look()
            oldest = [(entry.modified, name) for name, entry in entries.items() if not branches[name]]
            heapq.heapify(oldest)
            while oldest:
                entry = entries[heapq.heappop(oldest)[1]]
                if not wanted(entry, total):
                    break
                if is_in_use(entry.session_id) or not self._unlink(entry):
                    continue
                removed.append(entry)
                total -= entry.size
                parent = parents[entry.session_id]
                branches[parent] -= 1
                if parent in entries and not branches[parent]:
                    heapq.heappush(oldest, (entries[parent].modified, parent))
            self._note_removed(removed, why)
        return removed

    def _unlink(self, entry: _Entry) -> bool:
        try:
            self._path(entry.session_id).unlink()
        except OSError as error:
            logger.warning("could not remove the journal of session %s: %s", entry.session_id, error)
            return False
        return True

    def _parent(self, session_id: str) -> str:
        with suppress(OSError):
            if found := reference_of(self._path(session_id)):
                return found[0]
        return ""

    def _entries(self) -> Iterator[_Entry]:
        try:
            with os.scandir(self._folder) as found:
                for entry in found:
                    name, _, kind = entry.name.partition(".")
                    if kind == "jsonl" and is_session_id(name):
                        with suppress(FileNotFoundError):
                            status = entry.stat()
                            yield _Entry(name, status.st_size, status.st_mtime)
        except OSError as error:
            logger.debug("could not read %s: %s", self._folder, error)

    @contextmanager
    def _held(self, kind: int) -> Iterator[None]:
        """The folder's lock: what is removed while a branch begins to refer to it would be missed."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(self._folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            with suppress(OSError):  # not every file system has locks
                fcntl.flock(descriptor, kind)
            yield
        finally:
            os.close(descriptor)

    def branch(self, parent_id: str, size: int, branch_id: str) -> None:
        """Begins the journal of a branch: what its parent ran until then is in it, too.

        Raises:
            FileError: the disk is full, or the parent's journal is gone.
        """
        try:
            with self._lock, self._held(fcntl.LOCK_SH):
                self.journal(branch_id).continue_from(self.journal(parent_id), size)
        except OSError as error:
            raise FileError(f"No branch was made: {self._folder}: {error.strerror}.") from error

    # -- what was removed ------------------------------------------------------------------------------------------

    def _note_removed(self, removed: list[_Entry], why: str) -> None:
        if not removed:
            return
        told = {"removed": _date(time.time()), "why": why}
        lines = [json.dumps({"session_id": entry.session_id, **told}).encode() + b"\n" for entry in removed]
        path = self._folder / REMOVED
        try:
            with open(path, "ab", opener=_private) as file:
                file.writelines(lines)
                size = file.tell()
            if size > MAX_REMOVED_BYTES:
                kept = path.read_bytes()[-MAX_REMOVED_BYTES // 2 :].partition(b"\n")[2]
                with open(new := path.with_suffix(".new"), "wb", opener=_private) as file:
                    file.write(kept)
                new.replace(path)
        except OSError as error:
            logger.warning("it could not be noted which journals were removed: %s", error)

    def _removed(self) -> list[dict[str, str]]:
        try:
            lines = (self._folder / REMOVED).read_bytes().splitlines()
        except OSError:
            return []
        return [{name: str(value) for name, value in object_of(line).items()} for line in lines]

    def removed_for_room(self) -> int:
        """How many journals were removed to make room; of very many, the newest count."""
        return sum(record.get("why") == "room" for record in self._removed())

    def check_not_removed(self, session_id: str) -> None:
        """Raises JournalRemoved if the session had a journal that was removed."""
        for record in reversed(self._removed()):
            if record.get("session_id") == session_id:
                why = (
                    f"all journals together may have {human_size(self.bounds.folder)}, and those of ended sessions go, "
                    "oldest first"
                    if record.get("why") == "room"
                    else "journals of ended sessions are kept for PY_EXEC_NOTEBOOK_TTL"
                )
                raise JournalRemoved(session_id, record.get("removed", ""), why)

    # -- reading ---------------------------------------------------------------------------------------------------

    @property
    def is_synced(self) -> bool:
        """Whether nothing was written since the last `sync`."""
        return not self._unsynced

    def sync(self) -> None:
        """Has the disk keep what was written.

        Raises:
            OSError: it does not.
        """
        while self._unsynced:
            with suppress(FileNotFoundError):  # removed meanwhile
                descriptor = os.open(self._unsynced.pop(), os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)

    def find(self, session_id: str) -> Journal | None:
        """The journal of a session that has run something, by an id that a client sent."""
        if not is_session_id(session_id):
            return None
        journal = self.journal(session_id)
        return journal if journal.path.is_file() else None

    def kept(self) -> list[JournalInfo]:
        """All journals, those that were written to last first."""
        found = []
        for entry in self._entries():
            try:
                found.append(self._describe(entry))
            except (OSError, FileError) as error:
                logger.debug("could not read the journal of session %s: %s", entry.session_id, error)
        return sorted(found, key=lambda info: info.modified, reverse=True)

    def _describe(self, entry: _Entry) -> JournalInfo:
        cells, begins = 0, None
        for line in self.journal(entry.session_id).lines():
            if not line.endswith(b"\n") or line.startswith(CONTINUES_PREFIX):
                continue
            if begins is None:
                begins = str(object_of(line).get("source", "")) if len(line) <= MAX_FIRST_LINE else ""
            cells += not line.startswith(BEGINS_PREFIX)
        return JournalInfo(entry.session_id, cells, entry.size, entry.modified, begins or "")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
