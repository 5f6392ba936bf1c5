"""How one cell is run on a session's kernel: sent, stopped if need be, told of, recorded."""

from __future__ import annotations

import logging
import signal
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial

import anyio

from kernel_server.errors import EngineError, FileError, HostLost, KernelError
from kernel_server.hosts.base import KernelHost
from kernel_server.kernels.changes import Changes
from kernel_server.kernels.connection import KernelConnection
from kernel_server.kernels.executions import Execution
from kernel_server.kernels.outputs import Outputs
from kernel_server.sessions.jobs import Job
from kernel_server.sessions.lives import KILL_SECONDS, Life, Lives
from kernel_server.sessions.recorder import Recorder
from kernel_server.sessions.results import CellResult, Status, explain_death, explain_error
from kernel_server.transcripts.records import JournaledCell

logger = logging.getLogger(__name__)

# Stopping a cell: ask, look, ask again, look, then kill; 5 s in all.
INTERRUPT_SECONDS = (2.0, 1.5)
STOP_SECONDS = sum(INTERRUPT_SECONDS) + KILL_SECONDS + 3.0
UNSTOPPABLE = (
    "The code was told to stop, and its kernel to end, but the container does not answer: it is paused, or the machine "
    "has too much to do. Both happen when it goes on; reset starts a fresh one."
)
MISSING = "{count} of its outputs are missing: while no server was there, a kernel keeps the first 16 MB."
DEATH_REPORT_SECONDS = 2.0  # between a closed connection and the kernel host's word of what happened


@dataclass(frozen=True)
class Runner:
    """Runs the cells of one session, one at a time."""

    session_id: str
    host: KernelHost
    lives: Lives
    recorder: Recorder

    async def execute(self, life: Life, job: Job) -> Status | None:
        """Sends the cell and waits for its end; the status if it was we who stopped it.

        Raises:
            KernelError: the kernel is gone or takes no requests.
            HostLost: it cannot be stopped.
        """
        assert life.kernel is not None
        stdin = job.input if job.cell.interactive else None
        if job.resumes is None:
            running = life.kernel.execute(job.cell.code, stdin, about=job.about, on_send=partial(self._note, job))
        else:
            running = life.kernel.resume(job.resumes, stdin)
        left = max(0.0, job.cell.timeout - job.seconds) if job.cell.timeout else None
        async with running as execution:
            job.execution = execution
            with job.scope, anyio.move_on_after(left) as deadline:
                await execution.wait_over()
            if execution.over.is_set():
                return None
            await self._stop(life.kernel, execution)
            if not execution.over.is_set():
                raise HostLost(UNSTOPPABLE)
            return "timeout" if deadline.cancelled_caught else "interrupted"

    async def _stop(self, kernel: KernelConnection, execution: Execution) -> None:
        """Interrupts, looks, interrupts again, looks, and in the end kills.

        The second time from outside: a kernel whose interpreter is held by native code reads no requests, but a signal
        reaches code such as a regular expression's.
        """

        async def ask() -> None:
            await execution.begun.wait()  # before that, there is nothing to interrupt
            await kernel.interrupt()

        for seconds, interrupt in zip(INTERRUPT_SECONDS, (ask, self._signal), strict=True):
            with anyio.move_on_after(seconds), suppress(KernelError, EngineError):
                await interrupt()
                await execution.wait_over()
            if execution.replied.is_set():  # it has stopped; what it had put out may take longer to read
                await execution.wait_over()
                return
        logger.warning("session %s: the cell ignores interrupts, its kernel is killed", self.session_id)
        await self.lives.kill()
        with anyio.move_on_after(KILL_SECONDS):
            await execution.over.wait()

    async def _note(self, job: Job, msg_id: str) -> None:
        await self.recorder.begin(msg_id, job.cell.source or job.cell.code)

    async def _signal(self) -> None:
        await self.host.signal(self.session_id, signal.SIGINT)

    async def result(self, life: Life, job: Job, stopped: Status | None) -> CellResult:
        """What came of a cell that was executed, and what else nobody has been told of: late outputs, losses."""
        execution = job.execution
        assert execution is not None
        reply = execution.reply
        result = CellResult(
            self.session_id,
            "ok",
            execution.outputs,
            reply.execution_count if reply else 0,
            life.generation,
            job.seconds,
            job.notes,
            job.queued_seconds,
            Outputs() if job.abandoned else self.lives.late.take(),
            reply.changes if reply else Changes(),
        )
        if execution.gone or (reply is not None and reply.exiting):
            await self._tell_of_death(life, execution, result, stopped)
        else:
            self._tell_of_end(execution, result, stopped)
        if execution.missing:
            result.notes.append(MISSING.format(count=execution.missing))
        if not job.abandoned:
            self.lives.loss = None  # this result tells of it
        return result

    async def _tell_of_death(
        self, life: Life, execution: Execution, result: CellResult, stopped: Status | None
    ) -> None:
        with anyio.move_on_after(DEATH_REPORT_SECONDS):
            await life.ended.wait()
        exiting = execution.reply is not None and execution.reply.exiting
        cause = explain_death(life.death, exiting, self.host.description.memory)
        if stopped:
            cause = "The cell did not react to being interrupted, so its kernel was killed."
        result.status = stopped or "died"
        result.notes.append(f"{cause} {self.lives.explain_loss(life.generation)}")
        if self.lives.loss is not None and self.lives.loss.generation < life.generation:
            result.notes.insert(0, self.lives.loss.text)

    def _tell_of_end(self, execution: Execution, result: CellResult, stopped: Status | None) -> None:
        if self.lives.loss is not None:
            result.notes.append(self.lives.loss.text)
        result.status = stopped or _status(execution)
        result.notes += explain_error(execution.outputs, self.host.description)


def _status(execution: Execution) -> Status:
    reply, outputs = execution.reply, execution.outputs
    if reply is not None and reply.status != "ok":
        if reply.error is not None and outputs.error is None:
            outputs.add_error(reply.error)
        return "error"
    # %run shows the exception of a script itself and replies ok
    return "error" if outputs.ended_with_error else "ok"


async def record(recorder: Recorder, job: Job, result: CellResult) -> None:
    """Writes a finished cell to the session's journal; the result reports what is missing there."""
    journaled = JournaledCell(
        source=job.cell.source or job.cell.code,
        outputs=Outputs([*result.late.items, *result.outputs.items]),
        execution_count=result.execution_count,
        status=result.status,
        generation=result.generation,
        begun=job.begun,
        ended=datetime.now(timezone.utc),
        notes=list(result.notes),
        msg_id=job.execution.msg_id if job.execution else "",
    )
    try:
        omitted = await recorder.append(journaled)
    except FileError as error:  # the code ran: its result must not be lost with its record
        omitted = str(error)
    if omitted:
        result.notes.append(omitted)
