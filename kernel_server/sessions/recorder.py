"""A session's journal as the event loop sees it: written and read in a worker thread, one thing after the other."""

from __future__ import annotations

import logging
from datetime import datetime, timezone
from functools import partial

import anyio
import anyio.to_thread

from kernel_server.errors import FileError
from kernel_server.kernels.outputs import Outputs
from kernel_server.transcripts.journal import Journal
from kernel_server.transcripts.records import JournaledCell, LastLines

logger = logging.getLogger(__name__)


class Recorder:
    """Records what runs in one session, in the order of the calls.

    What has begun to be written is written, also where its call is cancelled: a cell that ran is not lost with its call.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        # A limiter of its own keeps the order (first in, first out), and no session waits for another's journal.
        self._limiter = anyio.CapacityLimiter(1)

    async def append(self, cell: JournaledCell) -> str:
        """Records a cell; returns what of it is not in the journal and why, "" for nothing.

        Raises:
            FileError: it could not be recorded.
        """
        with anyio.CancelScope(shield=True):
            omitted = await anyio.to_thread.run_sync(self._journal.append, cell, limiter=self._limiter)
        return omitted  # noqa: RET504 - mypy takes a scope for one that may end what is in it

    async def begin(self, msg_id: str, source: str) -> None:
        """Records that a cell is about to be sent."""
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._journal.begin, msg_id, source, limiter=self._limiter)

    async def remark(self, text: str, generation: int) -> None:
        """Records, as Markdown, what happened between two cells."""
        now = datetime.now(timezone.utc)
        try:
            await self.append(JournaledCell(text, Outputs(), 0, "ok", generation, now, now, remark=True))
        except FileError as error:
            logger.warning("%s: a remark is missing: %s", self._journal.path.stem, error)

    async def size(self) -> int:
        """Bytes of the journal so far."""
        return await anyio.to_thread.run_sync(partial(getattr, self._journal, "size"), limiter=self._limiter)

    async def last(self) -> LastLines:
        """What the last lines say."""
        return await anyio.to_thread.run_sync(self._journal.last, limiter=self._limiter)
