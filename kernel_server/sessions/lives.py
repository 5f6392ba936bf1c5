"""The kernels of one session, one after another: each is watched until its end, and followed by a fresh one."""

from __future__ import annotations

import logging
import signal
from contextlib import suppress
from dataclasses import dataclass, field, replace

import anyio

from kernel_server.errors import CheckpointError, EngineError, KernelError, KernelServerError
from kernel_server.hosts.base import Death, KernelHost, Launched, Restored, SessionRecord
from kernel_server.kernels.connection import KernelConnection, connect_kernel
from kernel_server.kernels.outputs import Outputs
from kernel_server.kernels.sockets import Context
from kernel_server.sessions.checkpoints import Checkpoints
from kernel_server.sessions.results import explain_death, explain_loss

logger = logging.getLogger(__name__)

KILL_SECONDS = 1.5
# Before a kernel is started in place of one that died unused, by how many of these have come before: the first may have been
# killed by somebody, and a session may have code that ends each of them at its start. A call that needs one does not wait.
PAUSES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0)
CONNECTION_KEYS = {"ip", "key", *(f"{channel}_port" for channel in ("shell", "iopub", "stdin", "control"))}


@dataclass
class Life:
    """One kernel, from its spawn to its end.

    Attributes:
        generation: its number in the session, from 1.
        launched: its process; that of an earlier server's kernel is there from the beginning.
        spawned: set when its process has become the session, or failed to.
        ready: set when it can be used, or failed to start.
        dead: set when the kernel host has said that its process is gone; what it has sent may still come in.
        ended: set when it is gone.
        succeeded: set when the next one has taken its place, or there will be none.
        failure: why it did not start.
        death: how it ended, once the kernel host has said so.
        needed: set when somebody needs it.
    """

    generation: int
    spawned: anyio.Event = field(default_factory=anyio.Event)
    ready: anyio.Event = field(default_factory=anyio.Event)
    dead: anyio.Event = field(default_factory=anyio.Event)
    ended: anyio.Event = field(default_factory=anyio.Event)
    succeeded: anyio.Event = field(default_factory=anyio.Event)
    launched: Launched | None = None
    kernel: KernelConnection | None = None
    failure: KernelServerError | None = None
    death: Death | None = None
    needed: anyio.Event = field(default_factory=anyio.Event)

    @property
    def pid(self) -> int:
        """Of its process; 0 before there is one."""
        return self.launched.pid if self.launched else 0

    def end(self, death: Death | None) -> None:
        """The kernel is gone: everybody who waits for it is told."""
        self.death = death
        if self.kernel is not None:
            self.kernel.end()
        self.ended.set()


@dataclass
class _Return:
    """To a checkpoint: what it did to files, or why it failed.

    Attributes:
        killed: set when nothing ends the session's processes any more; what is forked before may be ended with them.
    """

    name: str
    killed: anyio.Event = field(default_factory=anyio.Event)
    restored: Restored | None = None
    failure: str = ""


@dataclass(frozen=True)
class Loss:
    """The end of a kernel of which no result has told yet."""

    generation: int
    text: str


class Lives:
    """Keeps a kernel ready for a session; `keep` is its task.

    Attributes:
        checkpoints: to which the session can go back.
        workspace: the session's folder as its kernels see it; "" before the first of them.
        loss: what the next result has to tell.
        late: what was put out after the end of the cell that did it.
    """

    def __init__(
        self,
        session_id: str,
        host: KernelHost,
        context: Context,
        checkpoints: Checkpoints,
        *,
        warm: bool = False,
    ) -> None:
        self.workspace = ""
        self.checkpoints = checkpoints
        self.loss: Loss | None = None
        self.late = Outputs()
        self._session_id = session_id
        self._warm = warm
        self._host = host
        self._context = context
        self._life = Life(1)
        self._identity = session_id.encode()
        self._last_death: Death | None = None
        self._forked = False
        self._return: _Return | None = None
        self._wanted = anyio.Event()
        self._unused = 0  # kernels in a row that died before anybody needed them
        self._end = anyio.Event()

    def go_on(self, record: SessionRecord, found: Death | int) -> None:
        """Takes the session's kernel over from an earlier server, before `keep`.

        Args:
            found: process id of its kernel now, or how that ended.

        Raises:
            ValueError: the record is not of the form that it should be.
        """
        connection: object = record.launched.connection
        if not isinstance(connection, dict) or not connection.keys() >= CONNECTION_KEYS:
            raise ValueError("it does not say how its kernel is reached")
        self._life = Life(record.generation)
        self.workspace = record.launched.workspace
        if record.loss:
            self.loss = Loss(record.lost, record.loss)
        if found == record.launched.pid:
            self._life.launched = record.launched
            return
        # It has died meanwhile, or that server has not got to say that it had started another one.
        if record.lost != record.generation:  # the end of this one is news
            self._lose(found if isinstance(found, Death) else None)
        self._life = Life(record.generation + 1)

    def begin_as(self, launched: Launched) -> None:
        """The first kernel is a fork of another session's, before `keep`."""
        self._life.launched, self._forked = launched, True
        self.workspace = launched.workspace

    def lose(self, text: str) -> None:
        """The next result has to tell that, if there is nothing worse to tell."""
        self.loss = self.loss or Loss(self.generation - 1, text)

    @property
    def present(self) -> Life:
        """The present kernel, whatever its state."""
        return self._life

    @property
    def generation(self) -> int:
        """Number of the present kernel."""
        return self._life.generation

    async def keep(self) -> None:
        """Starts kernels, one after another, until `end`."""
        try:
            while not self._end.is_set():
                await self._serve_one()
        finally:
            self._life.succeeded.set()

    async def _serve_one(self) -> None:
        life = self._life
        try:
            forked = self._forked or self._return is not None
            resume = life.launched is not None and not forked
            self._forked = False
            launched = life.launched = life.launched or await self._spawn(life)
            self.workspace = launched.workspace
            life.spawned.set()
            serving = forked or (self._warm and life.generation == 1)
            async with connect_kernel(
                self._context, launched.connection, self.late, life.dead, self._identity, resume=resume, serving=serving
            ) as kernel:
                life.kernel = kernel
                if self._last_death is not None and self._last_death.pid == life.pid:
                    life.dead.set()
                life.ready.set()
                await first(life.dead, self._end, kernel.cut_off)
                if kernel.cut_off.is_set():
                    await self.kill()
                    await first(life.dead, self._end)
                if not self._end.is_set():
                    if self._return is None:
                        await kernel.drain()
                    life.end(self._last_death)
        except (KernelError, EngineError) as error:
            logger.info("session %s: no kernel: %s", self._session_id, error)  # callers are told
            life.failure = error
            life.end(None)
            life.spawned.set()
            life.ready.set()
            await self.kill()
            await first(self._wanted, self._end)  # do not spin: the next call tries again
        life.ended.set()
        if not self._end.is_set():
            self._wanted = anyio.Event()
            self._life = Life(life.generation + (life.failure is None))
            life.succeeded.set()
            await self._pause(life)

    async def _pause(self, life: Life) -> None:
        """Waits longer each time when nobody needs the kernels that die."""
        self._unused = 0 if life.needed.is_set() or life.failure else self._unused + 1
        seconds = PAUSES[min(max(self._unused - 1, 0), len(PAUSES) - 1)]
        if seconds and self._return is None:
            logger.warning(
                "session %s: %d kernels have died unused; the next one is started in %g s, or when it is needed",
                *(self._session_id, self._unused, seconds),
            )
            with anyio.move_on_after(seconds):
                await first(self._life.needed, self._end)

    async def _spawn(self, life: Life) -> Launched:
        if self._return is not None:
            await self._return.killed.wait()
        if self._return is not None:  # it has not failed meanwhile
            try:
                launched, self._return.restored = await self._host.rollback(self._session_id, self._return.name)
            except (CheckpointError, EngineError) as error:
                self._return.failure = str(error)
                self._lose(None)
            else:
                return launched
        if life.generation > 1:  # what the last kernel started must not live on beside a fresh one
            await self._host.kill(self._session_id)
        return await self._host.spawn(self._session_id, warm=self._warm and life.generation == 1)

    async def wait_spawned(self) -> None:
        """Waits until the first kernel's process is there; it goes on starting while its first cell is on the way.

        Raises:
            KernelError, EngineError: it did not start.
        """
        await self._life.spawned.wait()
        if self._life.failure is not None:
            raise self._life.failure.again()

    async def current(self) -> Life:
        """The present kernel once it is ready; where the last attempt to start one failed, there is another one.

        After `end` it is one that has ended.

        Raises:
            KernelError, EngineError: it did not start.
        """
        if self._life.failure is not None:
            self._wanted.set()
            await self._life.succeeded.wait()
        while True:
            life = self._life
            life.needed.set()
            await life.ready.wait()
            if self._end.is_set():
                return life
            if life.failure is not None:
                raise life.failure.again()
            if not life.dead.is_set() and not life.ended.is_set():
                return life
            await life.succeeded.wait()  # it has died just now

    def on_death(self, death: Death) -> None:
        """The kernel host reports that a kernel of this session has ended."""
        kernel = self._life.kernel
        if kernel is not None and kernel.cut_off.is_set() and death.signal == signal.SIGKILL:
            death = replace(death, cut_off=not (death.exceeded or death.out_of_memory))
        self._last_death = death
        if death.pid == self._life.pid and not self._life.dead.is_set():
            if self._return is None:
                self._lose(death)
            self._life.dead.set()

    def _lose(self, death: Death | None) -> None:
        """The present kernel is gone: the next result tells of that, and not of those before it."""
        cause = explain_death(death, False, self._host.description.memory)
        text = f"Since the last call: {cause} {self.explain_loss(self.generation)}"
        self.loss = Loss(self.generation, text)

    def explain_loss(self, generation: int) -> str:
        """What the end of the kernel of that number means."""
        return explain_loss(generation + 1, self.checkpoints.advice)

    async def roll_back(self, name: str) -> Restored:
        """Replaces the present kernel by what it was at a checkpoint.

        Raises:
            CheckpointError: that did not work. There is a fresh kernel then, and the next result tells of it.
            KernelError, EngineError: there is no kernel.
        """
        await self.current()
        self._return = _Return(name)
        life, returning = self._life, self._return
        try:
            try:
                await self._host.kill(self._session_id)
            finally:
                returning.killed.set()
            await first(life.succeeded, self._end)
            await self.current()
        except (KernelError, EngineError) as error:
            self._lose(None)
            returning.failure = returning.failure or str(error)
            returning.restored = None
        finally:
            self._return = None
        if returning.restored is None:
            raise CheckpointError(
                f"The checkpoint could not be brought back: {returning.failure} What the session had is gone, and a fresh "
                "kernel takes its place; its files may be partly those of the checkpoint."
            )
        return returning.restored

    async def kill(self) -> None:
        """Ends every process of the session; what is killed is told by `on_death`."""
        with anyio.move_on_after(KILL_SECONDS), suppress(KernelError, EngineError):
            await self._host.kill(self._session_id)

    def end(self) -> None:
        """There will be no more kernels; who uses the present one is told that it is gone."""
        self._end.set()
        self._life.end(None)
        self._life.spawned.set()
        self._life.ready.set()


async def first(*events: anyio.Event) -> None:
    """Waits until one of the events is set."""
    async with anyio.create_task_group() as tasks:

        async def wait(event: anyio.Event) -> None:
            await event.wait()
            tasks.cancel_scope.cancel()

        for event in events:
            tasks.start_soon(wait, event)
