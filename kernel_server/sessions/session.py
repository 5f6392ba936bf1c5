"""One session: its life, the order of its cells, who collects them."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import asdict
from datetime import datetime, timezone
from functools import partial

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from kernel_server.errors import CheckpointError, EngineError, FileError, KernelError, SessionError
from kernel_server.hosts.base import Death, Kept, KernelHost, Launched, Restored, SessionRecord, Usage
from kernel_server.kernels.changes import Look
from kernel_server.kernels.executions import END_OF_INPUT
from kernel_server.kernels.outputs import Outputs
from kernel_server.kernels.sockets import Context
from kernel_server.records import check, read
from kernel_server.sessions.checkpoints import Checkpoint, Checkpoints, Origin
from kernel_server.sessions.jobs import TITLE_CHARACTERS, Job
from kernel_server.sessions.lives import Life, Lives, Loss, first
from kernel_server.sessions.recorder import Recorder
from kernel_server.sessions.results import Cell, CellResult
from kernel_server.sessions.runs import STOP_SECONDS, Runner, record
from kernel_server.text import counted, one_line
from kernel_server.transcripts.folder import JournalFolder
from kernel_server.transcripts.journal import Journal
from kernel_server.transcripts.records import JournaledCell

logger = logging.getLogger(__name__)

CLEAR_SECONDS = 30.0
CHECKPOINT_SECONDS = 50.0  # most of it for a copy of many files
DROP_SECONDS = 5.0
PROGRESS_SECONDS = 4.0  # between two notifications; clients count silence as a hang
MAX_UNCOLLECTED = 5  # outcomes that are kept for somebody to call `wait`
RESUME_SECONDS = 10.0  # until a kernel that another server had has told what it is doing
LOOK_SECONDS = 7.0  # a bit more than the kernel takes for an expression that does not end
UNREACHABLE = (
    "The kernel does not answer: the running code probably holds the interpreter in native code. Call wait for it, or "
    "interrupt to stop it."
)
DECLINED = "The person who was asked did not answer, so input() raised EOFError."
USAGE_SECONDS = 2.0
WRITE_SECONDS = 1.0  # so exact is the TTL over the end of a server
HIDDEN = "········"  # as Jupyter shows an answer to getpass()
SILENT = "Its container does not answer just now: it is paused, or the machine has too much to do."
BROKEN = "The session ended by an error of the server. Call init for a new one."
NEVER_ARRIVED = (
    "Since the last call: the server was started anew, and the kernel does not know of the cell sent last: {title!r}."
)
UNREAD = "Since the last call: {count} of another version of the server cannot be used, and was left out."
NEVER_STARTED = "It was stopped before its turn came; nothing of it ran."

OnProgress = Callable[[float, str], Awaitable[None]]
"""Told every few seconds how long a cell has been running, and the last line it printed."""


class Session:
    """One kernel with its workspace and transcript. `run` is its task; the other methods are called from tools.

    Attributes:
        session_id: unguessable handle (128 bits).
        host: where its kernels are.
        checkpoints: to which it can go back.
        origin: of what it was branched, if it was.
        begun: monotonic time of its start.
        last_used: monotonic time of the end of the last call.
        leftovers: why not everything that it owned could be removed at its end; "" if it could.
    """

    def __init__(
        self,
        session_id: str,
        host: KernelHost,
        context: Context,
        journal: Journal,
        *,
        checkpoints: Checkpoints,
        warm: bool = False,
    ) -> None:
        self.session_id = session_id
        self.begun = self.last_used = time.monotonic()
        self.journal = journal
        self.host = host
        self._turn = anyio.Lock()  # first in, first out: the cells of a session run in order
        self._jobs: deque[Job] = deque()  # whose outcome nobody has yet
        self._tasks: TaskGroup | None = None
        self._submitted = 0
        self._users = 0
        self._measuring = anyio.Lock()
        self._usage: Usage | None = None
        self._measured = 0.0
        self.checkpoints = checkpoints
        self.origin: Origin | None = None
        self._execution_count = 0  # of the last cell
        self._unkept = ""  # why there was no automatic checkpoint, as it was told last
        self._kept_ahead = False  # the session still is what it is in its last automatic checkpoint
        self._lives = Lives(session_id, host, context, checkpoints, warm=warm)
        self._recorder = Recorder(journal)
        self._runner = Runner(session_id, host, self._lives, self._recorder)
        self._remembered = 0  # the generation that was written down last, and when that was
        self._written = 0.0
        self._unread = ""  # what the next result reports of the record of an earlier server
        self._resumed = anyio.Event()
        self._resumed.set()
        self._ending: SessionError | None = None
        self._clear_at_end = True
        self.leftovers = ""
        self._over = anyio.Event()

    # -- life ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keeps a kernel ready until the session is ended, then removes everything it owns."""
        try:
            async with anyio.create_task_group() as self._tasks:
                if not self._resumed.is_set():
                    self._tasks.start_soon(self._resume)
                await self._lives.keep()
        finally:
            try:
                if self._clear_at_end:
                    with anyio.CancelScope(shield=True):
                        self.leftovers = await self._clear()
            finally:  # whoever ends it waits for this, and cannot be cancelled
                self._over.set()

    async def _clear(self) -> str:
        """Removes everything it owns; returns what stands in the way, "" for nothing."""
        try:
            with anyio.fail_after(CLEAR_SECONDS):
                await self.host.clear(self.session_id)
        except TimeoutError:
            return f"it takes longer than {CLEAR_SECONDS:g} s"
        except KernelError as error:
            logger.warning("session %s is not removed yet: %s", self.session_id, error)
            return str(error)
        except EngineError:  # it has gone with its container
            return ""
        return ""

    def on_death(self, death: Death) -> None:
        """The kernel host reports that a kernel of this session has ended."""
        if death.checkpoints is not None:
            self.checkpoints.keep_only(death.checkpoints)
        self._kept_ahead = False
        self._lives.on_death(death)
        self._remember()

    def go_on(self, record: SessionRecord, found: Death | int) -> None:
        """Goes on with a session of an earlier server, before `run`; see `Lives.go_on`.

        Raises:
            ValueError: the record is not of the form that it should be.
        """
        for part in (record, record.launched):
            check(part)
        self.origin = read(Origin, record.origin) if record.origin else None
        unread = self.checkpoints.restore(record.checkpoints)
        self._resumed = anyio.Event()
        self._remembered = record.generation
        self.begun, self.last_used, self._submitted = record.begun, record.last_used, record.submitted
        self._execution_count = record.execution_count
        self._lives.go_on(record, found)
        if unread:
            logger.warning("session %s: checkpoints that cannot be read are left out: %s", self.session_id, unread)
            self._unread = UNREAD.format(count=counted(len(unread), "checkpoint"))

    def begin_as(self, launched: Launched, origin: Origin) -> None:
        """Goes on from a checkpoint of another session, before `run`."""
        self.origin, self._execution_count = origin, origin.execution_count
        self._lives.begin_as(launched)

    def remember(self) -> None:
        """From now on a later server could go on with it."""
        self._remembered = self.generation
        self._remember()

    def _remember(self) -> None:
        life = self._lives.present
        if not self._remembered or life.launched is None or (self._ending and self._clear_at_end):
            return
        self._remembered, self._written = life.generation, time.monotonic()
        loss = self._lives.loss or Loss(0, "")
        record = SessionRecord(
            session_id=self.session_id,
            launched=life.launched,
            generation=life.generation,
            begun=self.begun,
            last_used=self.last_used,
            submitted=self._submitted,
            loss=loss.text,
            lost=loss.generation,
            execution_count=self._execution_count,
            origin=asdict(self.origin) if self.origin else {},
            checkpoints=self.checkpoints.records,
        )
        try:
            self.host.remember(record)
        except OSError as error:
            logger.warning("no later server will go on with session %s: %s", self.session_id, error)

    async def wait_resumed(self) -> None:
        """Waits until it is known what runs in a session of an earlier server; not for long."""
        if not self._resumed.is_set():
            with anyio.move_on_after(RESUME_SECONDS):
                await first(self._resumed, self._over)

    async def close(self, ending: SessionError, *, clear: bool = True) -> None:
        """Ends the session; calls in flight fail with `ending`. Returns when everything it owns is gone.

        Args:
            clear: False when its container is about to go anyway.
        """
        if self._ending is None:
            self._ending = ending
        self._clear_at_end = self._clear_at_end and clear
        self._lives.end()
        await self._over.wait()

    @property
    def workspace(self) -> str:
        """Its folder as the kernel sees it; "" before the first kernel."""
        return self._lives.workspace

    @property
    def idle_seconds(self) -> float:
        """How long nobody has used it; 0 while somebody does."""
        return 0.0 if self._users or not self._resumed.is_set() else time.monotonic() - self.last_used

    @property
    def generation(self) -> int:
        """Number of the kernel that it has now."""
        return self._lives.generation

    async def usage(self) -> Usage:
        """What its processes use now; of a session that nobody uses, what they did a moment ago.

        Raises:
            KernelError, EngineError: it cannot be told.
        """
        async with self._measuring:  # to measure takes a process: many may ask at a time
            if self._usage is None or self._users or time.monotonic() - self._measured > USAGE_SECONDS:
                self._usage, self._measured = await self.host.usage(self.session_id), time.monotonic()
            return self._usage

    @asynccontextmanager
    async def in_use(self, *, changes: bool = False) -> AsyncIterator[None]:
        """Keeps the session from expiring for the length of the block.

        Args:
            changes: the block changes its files or variables, and is no cell.

        Raises:
            SessionError: it has been ended, also where that makes the block fail.
        """
        self.check_open()
        self._users += 1
        try:
            yield
        except (KernelError, EngineError):
            self.check_open()
            raise
        finally:
            if changes:
                self._kept_ahead = False
            self._users -= 1
            self.last_used = time.monotonic()
            self._usage = None
            if self.last_used - self._written > WRITE_SECONDS:
                self._remember()

    async def wait_spawned(self) -> None:
        """Waits until its first kernel's process is there.

        Raises:
            KernelError, EngineError: it did not start.
            SessionError: the session was ended meanwhile.
        """
        await self._lives.wait_spawned()
        self.check_open()

    async def wait_ready(self) -> None:
        """Waits until its kernel answers; raises as `wait_spawned`."""
        await self._current_life()

    # -- checkpoints -----------------------------------------------------------------------------------------------

    async def checkpoint(self, label: str, wait: float) -> tuple[Checkpoint, Kept, list[Checkpoint]]:
        """Keeps the session as it is between two cells; returns also those for which there is no room any more.

        Args:
            wait: at most so many seconds for the cells that were sent before.

        Raises:
            CheckpointError: it cannot be kept, or a cell is still running.
            KernelError, EngineError: there is no kernel.
        """
        async with self._between_cells(wait):
            checkpoint = self.checkpoints.new(label, self._execution_count, await self._recorder.size())
            kept = await self._keep(checkpoint.key)
            dropped = self.checkpoints.add(checkpoint)
            self._remember()
        self._drop(dropped)
        return checkpoint, kept, dropped

    async def _keep(self, key: str) -> Kept:
        await self._current_life()
        try:
            with anyio.fail_after(CHECKPOINT_SECONDS):
                return await self.host.checkpoint(self.session_id, key)
        except TimeoutError:
            await self._forget(key)
            raise CheckpointError(f"The kernel did not fork within {CHECKPOINT_SECONDS:g} s. {UNREACHABLE}") from None
        except anyio.get_cancelled_exc_class():
            with anyio.move_on_after(DROP_SECONDS, shield=True):
                await self._forget(key)
            raise

    async def _keep_automatically(self) -> str:
        """Makes a checkpoint before a cell, if that is wanted; returns why there is none, if that is news."""
        if not self.checkpoints.keep_automatic:
            return ""
        try:
            if not self._kept_ahead:
                await self._add_automatic()
        except (CheckpointError, KernelError, EngineError) as error:
            news = str(error) if str(error) != self._unkept else ""
            self._unkept = str(error)
            return news and f"There is no checkpoint before this cell. {news}"
        self._unkept, self._kept_ahead = "", False
        self._drop(self.checkpoints.excess(automatic=True))
        return ""

    async def _keep_ahead(self) -> None:
        """Makes the checkpoint before the next cell while nobody waits for that: agents think between two calls."""
        async with self._turn:
            if self.waiting_jobs or self._ending is not None:
                return
            self._kept_ahead = True
            try:
                await self._add_automatic()
            except (CheckpointError, KernelError, EngineError, SessionError):  # the cell tries again, and tells
                self._kept_ahead = False

    async def _add_automatic(self) -> None:
        checkpoint = self.checkpoints.new("", self._execution_count, await self._recorder.size(), automatic=True)
        await self._keep(checkpoint.key)
        self._drop(self.checkpoints.add(checkpoint, ahead=True))

    def _drop(self, checkpoints: list[Checkpoint]) -> None:
        """Removes them while what comes next goes on."""
        assert self._tasks is not None
        for checkpoint in checkpoints:
            self._tasks.start_soon(self._forget, checkpoint.key)

    async def _forget(self, key: str) -> None:
        with suppress(KernelError, EngineError):
            await self.host.drop(self.session_id, key)

    async def roll_back(self, wanted: str, wait: float) -> tuple[Checkpoint, Restored]:
        """Makes the session what it was at a checkpoint, with a new generation; raises as `checkpoint`."""
        async with self._between_cells(wait):
            checkpoint = self.checkpoints.find(wanted)
            await self._check(checkpoint)
            with anyio.CancelScope(shield=True):  # half of it would be neither state
                restored = await self._lives.roll_back(checkpoint.key)
            self._execution_count, self._lives.loss = checkpoint.execution_count, None
            self._kept_ahead = False
            text = f"*Rolled back to checkpoint {checkpoint.described}: variables and files are what they were then.*"
            await self.remark(text)
            self._remember()
        return checkpoint, restored

    async def _check(self, checkpoint: Checkpoint) -> None:
        if checkpoint.key not in await self.host.checkpoints(self.session_id):
            self.checkpoints.remove(checkpoint.name)
            raise CheckpointError(
                f"Checkpoint {checkpoint.described} is gone: its process has ended. The session is as it was before."
            )

    @asynccontextmanager
    async def branching(self, wanted: str, wait: float) -> AsyncIterator[Checkpoint]:
        """A checkpoint to branch from: the one that is wanted, or ("") one of this moment, for the length of the block."""
        async with self._between_cells(wait):
            if wanted:
                checkpoint = self.checkpoints.find(wanted)
                await self._check(checkpoint)
                yield checkpoint
                return
            checkpoint = self.checkpoints.new("", self._execution_count, await self._recorder.size())
            await self._keep(checkpoint.key)
            try:
                yield checkpoint
            finally:
                with anyio.move_on_after(DROP_SECONDS, shield=True):
                    await self._forget(checkpoint.key)

    @asynccontextmanager
    async def _between_cells(self, wait: float) -> AsyncIterator[None]:
        async with self.in_use():
            acquired = False
            with anyio.move_on_after(wait):
                await self._turn.acquire()
                acquired = True
            if not acquired:
                raise CheckpointError(
                    f"A cell has been running for longer than {wait:g} s. Nothing was done. Call wait for it, or interrupt it."
                )
            try:
                self.check_open()
                yield
            finally:
                self._turn.release()

    async def begin_journal(self, journals: JournalFolder, size: int) -> None:
        """Has the journal of a branch begin with the first `size` bytes of its parent's, and say so.

        Raises:
            FileError: the disk is full.
        """
        assert self.origin is not None
        parent, count = self.origin.session_id, self.origin.execution_count
        await anyio.to_thread.run_sync(journals.branch, parent, size, self.session_id)
        place = f"after In [{count}]" if count else "before its first cell"
        await self.remark(f"*Branched from session `{parent}`, {place}: what follows ran here alone.*")

    async def remark(self, text: str) -> None:
        """Records, as Markdown, what happened between two cells."""
        await self._recorder.remark(text, self.generation)

    # -- cells -----------------------------------------------------------------------------------------------------

    def submit(self, cell: Cell) -> Job:
        """Takes a cell: it runs after all that were sent before it, whether anybody waits for it or not.

        What the code does, its death included, is data in the result.

        Raises:
            SessionError: the session has been ended.
        """
        self.check_open()
        assert self._tasks is not None, "a session takes cells once it is ready"
        self._submitted += 1
        job = Job(cell, self._submitted)
        self._jobs.append(job)
        self._tasks.start_soon(self._work, job)
        return job

    async def collect(self, job: Job, seconds: float, on_progress: OnProgress | None = None) -> CellResult:
        """Waits at most `seconds` for a job and returns its outcome, or what there is so far with status `running`.

        It returns at once when the job asks for input. An outcome is handed out once. To be cancelled leaves the job alone.

        Raises:
            KernelError, EngineError: there is no kernel to run it.
            SessionError: the session was ended meanwhile.
        """
        async with self.in_use():
            with anyio.move_on_after(seconds):
                while not job.done.is_set() and not job.input.asked.is_set():
                    with anyio.move_on_after(PROGRESS_SECONDS):
                        await (first(job.done, job.input.asked) if job.cell.interactive else job.done.wait())
                        continue
                    if on_progress is not None:
                        await on_progress(job.seconds, job.last_line)
        if job.done.is_set() and job in self._jobs:
            self._jobs.remove(job)
        result = job.outcome(self.session_id, self.generation)
        if result.status == "running" and not await self.host.answers():
            result.notes.append(SILENT)
        return result

    def job(self, number: int) -> Job | None:
        """The job of that number, while its outcome has not been collected."""
        return next((job for job in self._jobs if job.number == number), None)

    async def answer(self, job: Job, value: str | None) -> None:
        """Answers the prompt of a job; None if nobody wants to, which raises EOFError in the cell.

        Raises:
            KernelError: the kernel is gone.
        """
        prompt, password = job.input.prompt, job.input.password
        life = self._lives.present
        if prompt is None or job.execution is None or life.kernel is None:
            return  # it does not wait any more
        job.input.settle()
        if value is None:
            job.notes.append(DECLINED)
        shown = "" if value is None else HIDDEN if password else value
        job.execution.outputs.fold("stream", {"name": "stdout", "text": f"{prompt}{shown}\n"})
        await life.kernel.answer(END_OF_INPUT if value is None else value)

    async def look(self, expression: str) -> Look:
        """The variables, or the value of an expression, also while a cell is running.

        Raises:
            KernelError, EngineError: there is no kernel, or it does not answer.
            SessionError: the session has been ended.
        """
        async with self.in_use(changes=bool(expression)):
            life = await self._current_life()
            assert life.kernel is not None
            with anyio.move_on_after(LOOK_SECONDS):
                return await life.kernel.look(expression)
        raise KernelError(UNREACHABLE)

    @property
    def waiting_jobs(self) -> int:
        """How many cells wait for their turn."""
        return sum(job.started is None and not job.done.is_set() for job in self._jobs)

    async def abandon(self, job: Job) -> None:
        """Interrupts a job whose outcome nobody wants any more, and waits for its end."""
        job.abandoned = True
        job.stop()
        if job in self._jobs:
            self._jobs.remove(job)
        with anyio.move_on_after(STOP_SECONDS, shield=True):
            await job.done.wait()

    async def interrupt(self) -> Job | None:
        """Stops the running cell; its outcome stays to be collected. Returns it, or None if none is running."""
        job = self.running_job
        if job is not None:
            async with self.in_use():
                job.stop()
                with anyio.move_on_after(STOP_SECONDS):
                    await job.done.wait()
        return job

    @property
    def oldest_job(self) -> Job | None:
        """The first job whose outcome nobody has yet."""
        return self._jobs[0] if self._jobs else None

    @property
    def running_job(self) -> Job | None:
        """The job that the kernel is working on."""
        return next((job for job in self._jobs if job.started is not None and not job.done.is_set()), None)

    async def _work(self, job: Job) -> None:
        async def run() -> CellResult:
            async with self.in_use(), self._turn:
                return await self._run(job)

        await self._settle(job, run)
        if self.checkpoints.keep_automatic:
            await self._keep_ahead()

    async def _settle(self, job: Job, run: Callable[[], Awaitable[CellResult]]) -> None:
        """Runs a job to its end; its outcome is there afterwards, whatever happens."""
        try:
            job.result = await run()
        except (KernelError, EngineError, SessionError) as error:
            job.failure = error
        finally:
            if job.result is None and job.failure is None:  # the session's own task has failed
                job.failure = KernelError(BROKEN)
            job.input.settle()
            job.done.set()
            while len(self._jobs) > MAX_UNCOLLECTED and self._jobs[0].done.is_set():
                self._jobs.popleft()

    async def _run(self, job: Job) -> CellResult:
        life = await self._current_life()
        if self._remembered and life.generation != self._remembered:
            self._remember()
        if job.stopped:
            return CellResult(self.session_id, "interrupted", Outputs(), 0, life.generation, 0.0, [NEVER_STARTED])
        if news := await self._keep_automatically():
            job.notes.append(news)
        job.begun, job.started = datetime.now(timezone.utc), time.monotonic()
        return await self._finish(life, job)

    async def _finish(self, life: Life, job: Job, *, journaled: bool = False) -> CellResult:
        stopped = await self._runner.execute(life, job)
        self.check_open()
        result = await self._runner.result(life, job, stopped)
        self._execution_count = 0 if result.status == "died" else result.execution_count or self._execution_count
        if not journaled:
            await record(self._recorder, job, result)
        return result

    def record_between(self, cell: JournaledCell) -> None:
        """Records what happened beside the kernel, when no cell is running."""

        async def append() -> None:
            async with self._turn:
                try:
                    await self._recorder.append(cell)
                except FileError as error:
                    logger.warning("session %s: %s", self.session_id, error)

        if self._tasks is not None:
            self._tasks.start_soon(append)

    async def _resume(self) -> None:
        """Takes up what the kernel did for an earlier server, before any other cell."""
        try:
            async with self._turn:
                life = await self._current_life()
                cell, last = life.kernel.last_cell if life.kernel else None, await self._recorder.last()
                if last.begun and (cell is None or cell.msg_id not in (last.begun, last.finished)):
                    self._lives.lose(NEVER_ARRIVED.format(title=one_line(last.source, TITLE_CHARACTERS)))
                if cell is None:
                    return
                journaled = last.finished == cell.msg_id
                job = Job.resuming(cell, last)
                self._submitted = max(self._submitted, job.number)
                self._jobs.append(job)
                if cell.reply is None:
                    self._resumed.set()
                async with nullcontext() if journaled else self.in_use():
                    await self._settle(job, partial(self._finish, life, job, journaled=journaled))
        except (KernelError, EngineError, SessionError) as error:
            logger.info("session %s: its last cell cannot be resumed: %s", self.session_id, error)
        finally:
            if self._unread:  # not before: the result of the resumed cell may have been collected already
                self._lives.lose(self._unread)
            self._resumed.set()

    async def _current_life(self) -> Life:
        life = await self._lives.current()
        self.check_open()
        return life

    @property
    def ending(self) -> SessionError | None:
        """Why it has been ended, if it has."""
        return self._ending.again() if self._ending else None

    def check_open(self) -> None:
        """Raises SessionError if it has been ended."""
        if self._ending is not None:
            raise self._ending.again()
