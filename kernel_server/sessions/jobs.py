"""A cell on its way through a session: it goes on when the call that sent it has returned."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import anyio

from kernel_server.errors import KernelServerError
from kernel_server.kernels.executions import Execution, Input
from kernel_server.kernels.outputs import Outputs, Stream
from kernel_server.kernels.replays import LastCell
from kernel_server.sessions.results import Cell, CellResult
from kernel_server.text import one_line, settle, strip_ansi
from kernel_server.transcripts.records import LastLines

TITLE_CHARACTERS = 80
MAX_NUMBER = 1_000_000_000  # of what a kernel says of a job of an earlier server
MAX_UNKNOWN_SOURCE = 100_000  # characters of a source that only the kernel knows
MAX_SECONDS = 10 * 365 * 24 * 3600.0
UNKNOWN = "That this cell was sent is not in the journal: its source is what the kernel says."
TAKEN_OVER = "The server was started anew while this cell ran; nothing of the session is lost."
TOLD_AGAIN = (
    "The server was started anew after this cell had ended; you may have had this result before. Nothing of the session "
    "is lost."
)


@dataclass
class Job:
    """A cell that a session has taken.

    Attributes:
        number: of the job in its session, from 1.
        input: where it asks a person something.
        notes: what its result has to tell beside that.
        execution: its outputs so far, once the kernel has it.
        submitted: when the session took it (monotonic seconds).
        started: when the kernel got it (monotonic seconds), or None while it waits for its turn.
        begun: the same as wall time, UTC.
        resumes: what the kernel says of it, where an earlier server has sent it.
        result: how it went, once it is done.
        failure: why there is no result.
        done: set with either of them.
        scope: cancelled to stop the cell; the wait for the kernel runs in it.
        stopped: somebody asked to stop it.
        abandoned: the call that sent it was cancelled, so that its outcome reaches nobody.
    """

    cell: Cell
    number: int
    input: Input = field(default_factory=Input)
    notes: list[str] = field(default_factory=list)
    execution: Execution | None = None
    submitted: float = field(default_factory=time.monotonic)
    started: float | None = None
    begun: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    resumes: LastCell | None = None
    result: CellResult | None = None
    failure: KernelServerError | None = None
    done: anyio.Event = field(default_factory=anyio.Event)
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    stopped: bool = False
    abandoned: bool = False

    @classmethod
    def resuming(cls, cell: LastCell, last: LastLines) -> Job:
        """The job of an earlier server.

        What it ran is taken from the journal: session code can make its kernel say anything. The rest is believed as far
        as it can be.

        Args:
            last: of the session's journal.
        """
        now = time.monotonic()
        told, known = last.finished == cell.msg_id, last.begun == cell.msg_id
        job = cls(
            Cell(
                "" if known else cell.code[:MAX_UNKNOWN_SOURCE],
                last.source if known else "",
                cell.number("timeout", 0, MAX_SECONDS) or 0.0,
                cell.interactive,
            ),
            int(cell.number("number", 1, MAX_NUMBER) or 1),
            notes=[TOLD_AGAIN if told else TAKEN_OVER],
            resumes=cell,
        )
        if not told and not known:
            job.notes.append(UNKNOWN)
        job.started = job.submitted = cell.number("started", 0, now) or now
        job.begun = datetime.fromtimestamp(time.time() - job.seconds, timezone.utc)
        return job

    @property
    def about(self) -> dict[str, Any]:
        """What the kernel is told of it, for `resuming`."""
        return {"number": self.number, "timeout": self.cell.timeout, "started": self.started}

    def stop(self) -> None:
        """Asks for the cell to be interrupted, or not to be started at all."""
        self.stopped = True
        self.scope.cancel()

    @property
    def title(self) -> str:
        """Its source as one short line."""
        return one_line(self.cell.source or self.cell.code, TITLE_CHARACTERS)

    @property
    def seconds(self) -> float:
        """How long it has been running; 0 while it waits for its turn."""
        return 0.0 if self.started is None else time.monotonic() - self.started

    @property
    def queued_seconds(self) -> float:
        """How long it has waited for its turn."""
        return (self.started or time.monotonic()) - self.submitted

    @property
    def last_line(self) -> str:
        """The last line it has printed, or ""."""
        for item in reversed(self.execution.outputs.items if self.execution else []):
            if isinstance(item, Stream):
                lines = settle(strip_ansi(item.text[-2000:])).rstrip().splitlines()
                return one_line(lines[-1]) if lines else ""
        return ""

    def outcome(self, session_id: str, generation: int) -> CellResult:
        """Its result, or what there is of it so far with a note on how to get the rest.

        Raises:
            KernelServerError: there is none: no kernel, or the session was ended.
        """
        if self.failure is not None:
            raise self.failure.again()
        if self.result is not None:
            return self.result
        outputs = self.execution.outputs if self.execution else Outputs()
        notes = [self._how_to_go_on(session_id)]
        return CellResult(
            session_id, "running", outputs, 0, generation, self.seconds, notes, queued_seconds=self.queued_seconds
        )

    def _how_to_go_on(self, session_id: str) -> str:
        if self.input.prompt is not None:
            return (
                f"The code asks a person: {one_line(self.input.prompt)!r}. Call wait(session_id={session_id!r}) to "
                "put it to them, or interrupt to stop it."
            )
        if self.started is None:
            return f"Waiting for its turn behind another cell. Call wait(session_id={session_id!r}) to go on."
        return (
            f"Still running after {self.seconds:.0f} s; this is the output so far. Call "
            f"wait(session_id={session_id!r}) to go on waiting, or interrupt to stop it."
        )
