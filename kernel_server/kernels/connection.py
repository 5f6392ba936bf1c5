"""A connection to one kernel: one reader task for each channel, replies routed by parent `msg_id`.

jupyter_client makes messages and signatures, and connects our own sockets, on which we send ourselves.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Literal, cast

import anyio

from kernel_server.errors import KernelError
from kernel_server.kernels.changes import Look, look_of
from kernel_server.kernels.executions import Execution, Input
from kernel_server.kernels.messages import TOO_MUCH, Message, decode
from kernel_server.kernels.outputs import Outputs, output_of
from kernel_server.kernels.replays import LastCell, last_cell_of
from kernel_server.kernels.shares import WORK_SECONDS, Pace, Share
from kernel_server.kernels.sockets import Context, Socket
from kernel_server.kernels.turns import LARGE_BYTES, turns
from kernel_server.tasks import running

if TYPE_CHECKING:
    from jupyter_client.asynchronous.client import AsyncKernelClient

logger = logging.getLogger(__name__)

READY_SECONDS = 20.0
RESUME_SECONDS = 300.0  # for one that may have to finish something in native code first
REPLAYS, REPLAY_SECONDS = 3, 20.0  # how often what was put out is asked for, and how long it is waited for
FOLLOW_SECONDS = 2.0
PROBE_INTERVAL_SECONDS = 0.1
SEND_SECONDS = 10.0  # a kernel that takes no request for so long is stuck
DRAIN_SECONDS, QUIET_SECONDS = 1.0, 0.1  # after a kernel's end: at most, and without a message
DEATH_SECONDS = 2.0  # between the end of a kernel's connections and word of its own end

Channel = Literal["shell", "control", "stdin"]


@dataclass
class _Waiting:
    arrived: anyio.Event = field(default_factory=anyio.Event)
    content: dict[str, Any] | None = None


class KernelConnection:
    """Requests to one kernel; `connect_kernel` makes one.

    Attributes:
        unreadable: messages that did not parse and were dropped.
        last_cell: of a kernel that served another server before, what it was given last.
        cut_off: set when it has closed a connection, and goes on: neither requests nor results get through any more.
    """

    def __init__(self, client: AsyncKernelClient, sockets: dict[str, Socket], late: Outputs) -> None:
        self.unreadable = 0
        self.last_cell: LastCell | None = None
        self.cut_off = anyio.Event()
        self._late = late
        self._received = self._resting = 0
        self._client = client
        self._sockets = sockets
        for socket in sockets.values():
            socket.share.kernel = self
        self._executions: dict[str, Execution] = {}
        self._waiting: dict[str, _Waiting] = {}
        self._subscribed = anyio.Event()
        self._replayed = anyio.Event()
        self._catching_up = self._replaying = False
        self._ended = anyio.Event()

    # -- requests --------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def execute(
        self,
        code: str,
        stdin: Input | None = None,
        *,
        silent: bool = False,
        about: dict[str, Any] | None = None,
        on_send: Callable[[str], Awaitable[None]] | None = None,
    ) -> AsyncIterator[Execution]:
        """Sends a cell; inside the block its outputs arrive in the `Execution`. Leaving does not stop the cell.

        Args:
            stdin: takes the prompts of `input()`, which fails at once without it.
            about: what a later server has to know of it; see `LastCell`.
            on_send: told its msg_id before it is sent.

        Raises:
            KernelError: the kernel is gone or takes no requests.
        """
        content = {
            "code": code,
            "silent": silent,
            "store_history": not silent,
            "user_expressions": {},
            "allow_stdin": stdin is not None,
            "stop_on_error": False,
        }
        message = self._client.session.msg("execute_request", content, metadata={"kernel_server": about or {}})
        execution = Execution(message["header"]["msg_id"], input=stdin, held=self._held)
        self._executions[execution.msg_id] = execution
        try:
            if on_send is not None:
                await on_send(execution.msg_id)
            await self._send("shell", message)
            yield execution
        finally:
            self._executions.pop(execution.msg_id, None)

    @asynccontextmanager
    async def resume(self, cell: LastCell, stdin: Input | None = None) -> AsyncIterator[Execution]:
        """The same for a cell that another server has sent: inside the block arrives all that it has put out."""
        execution = self._executions[cell.msg_id] = Execution(cell.msg_id, input=stdin, held=self._held)
        execution.begun.set()
        try:
            async with running(partial(self._follow, execution)):
                yield execution
        finally:
            self._executions.pop(execution.msg_id, None)

    async def _follow(self, execution: Execution) -> None:
        """Has everything sent again, and asks for the reply until it is there: the one that was sent first is lost."""
        with suppress(KernelError):  # its end is told to everybody who waits
            self._replaying = True
            self._replaying = not await self._replay()
            asked = False
            while execution.reply is None:
                cell = await self._ask_last_cell()
                if cell is None or cell.msg_id != execution.msg_id:
                    execution.end()  # it says that it never had this cell
                    return
                if cell.reply is not None:
                    execution.missing = cell.missing
                    execution.take_reply(cell.reply, cell.reply_metadata)
                elif cell.asks and execution.input and not asked:
                    execution.input.ask(cell.asks)
                asked = True
                with anyio.move_on_after(FOLLOW_SECONDS):
                    await execution.replied.wait()

    async def _replay(self) -> bool:
        """Has all sent again; False if it does not come in time."""
        for _ in range(REPLAYS):
            self._replayed = anyio.Event()
            await self._request("control", "replay_request", {"outputs": True})
            with anyio.move_on_after(REPLAY_SECONDS):
                await self._replayed.wait()
                return True
        return False

    async def _ask_last_cell(self) -> LastCell | None:
        return last_cell_of(await self._request("control", "replay_request"))

    async def interrupt(self) -> None:
        """Asks the kernel to raise KeyboardInterrupt in the running cell."""
        await self._request("control", "interrupt_request")

    async def probe(self) -> None:
        """Asks for kernel_info on the shell channel: answered once nothing is running."""
        await self._request("shell", "kernel_info_request")

    async def answer(self, value: str) -> None:
        """Answers the prompt of the running cell; END_OF_INPUT raises EOFError in it."""
        await self._send("stdin", self._client.session.msg("input_reply", {"value": value}))

    async def look(self, expression: str) -> Look:
        """The session's variables or, if one is given, the value of an expression; also while a cell is running."""
        return look_of(await self._request("control", "list_variables_request", {"expression": expression}))

    async def _request(self, channel: Channel, msg_type: str, content: dict[str, Any] | None = None) -> dict[str, Any]:
        message = self._client.session.msg(msg_type, content or {})
        msg_id = message["header"]["msg_id"]
        waiting = self._waiting[msg_id] = _Waiting()
        try:
            await self._send(channel, message)
            await waiting.arrived.wait()
        finally:
            del self._waiting[msg_id]
        if waiting.content is None:
            raise KernelError("The kernel ended.")
        return waiting.content

    async def _send(self, channel: Channel, message: dict[str, Any]) -> None:
        if self._ended.is_set():
            raise KernelError("The kernel ended.")
        try:
            with anyio.fail_after(SEND_SECONDS):
                if self._sockets["iopub"].ended:
                    raise ConnectionError("what it puts out would be lost")
                await self._sockets[channel].send_multipart(self._client.session.serialize(message))
        except OSError as error:
            if isinstance(error, ConnectionError) and await self._is_ending():
                return  # whoever waits for an answer is told
            raise KernelError(
                "The kernel does not take requests any more. Copy out the files that you need, close the session, and "
                "go on in a new one."
            ) from error

    async def _is_ending(self) -> bool:
        """Whether connections that have ended are the first sign of the kernel's own end."""
        with anyio.move_on_after(DEATH_SECONDS):
            await self._ended.wait()
        return self._ended.is_set()

    # -- messages --------------------------------------------------------------------------------------------------

    def end(self) -> None:
        """The kernel process is gone: everybody who waits for it is told."""
        self._ended.set()
        for socket in self._sockets.values():
            socket.close()
        for execution in self._executions.values():
            execution.end()
        for waiting in self._waiting.values():
            waiting.arrived.set()

    async def read(self, channel: str) -> None:
        """Reads one channel for ever; a message that does not parse is counted and dropped.

        A kernel that sends faster than it is read would keep the event loop to itself: with a message at hand, `recv`
        does not yield.
        """
        socket, pace = self._sockets[channel], Pace()
        while True:
            if pace.worked > WORK_SECONDS:
                await self._rest(socket.share, pace)
            frames = await socket.recv_multipart()
            if sum(map(len, frames)) > LARGE_BYTES:
                with self._putting_off(), socket.share.waiting():
                    message = await turns().run(self, partial(self._decode, frames))
                pace.begin()
                self._take(channel, message)
            else:
                pace.begin()
                self.receive(channel, frames)
            del frames  # as large as one may be, it is not kept beside the next
            pace.end()

    async def watch(self) -> None:
        """Looks for connections that end, and not because the kernel does."""
        async with anyio.create_task_group() as tasks:

            async def wait(socket: Socket) -> None:
                await socket.wait_ended()
                tasks.cancel_scope.cancel()

            for socket in self._sockets.values():
                tasks.start_soon(wait, socket)
        if not await self._is_ending():
            self.cut_off.set()

    async def _rest(self, share: Share, pace: Pace) -> None:
        seconds = share.begin_rest(pace.worked)
        try:
            with self._putting_off():
                await anyio.sleep(seconds)
        finally:
            share.end_rest()
        pace.worked = 0.0

    @contextmanager
    def _putting_off(self) -> Iterator[None]:
        """There may be more messages than have been read."""
        self._resting += 1
        try:
            yield
        finally:
            self._resting -= 1

    def receive(self, channel: str, frames: list[bytes]) -> None:
        """Takes in one message."""
        self._take(channel, self._decode(frames))

    def _decode(self, frames: list[bytes]) -> Message | Exception:
        """All of the work with a message that nothing else depends on; it may run in a thread."""
        try:
            message = decode(self._client.session, frames)
            return replace(message, output=output_of(message.msg_type, message.content))
        except Exception as error:  # a kernel can make any reader raise: see `decode`
            return error

    def _take(self, channel: str, message: Message | Exception) -> None:
        self._received += 1
        try:
            if isinstance(message, Exception):
                raise message
            self._route(channel, message)
        except Exception as error:
            self.unreadable += 1
            logger.debug("dropped an unreadable message on %s: %s", channel, type(error).__name__)

    def _route(self, channel: str, message: Message) -> None:
        execution = self._executions.get(message.parent)
        if channel == "iopub":
            self._route_iopub(message, execution)
        elif waiting := self._waiting.get(message.parent):
            waiting.content = {"error": TOO_MUCH} if message.refused else message.content
            waiting.arrived.set()
        elif execution and message.msg_type == "input_request" and execution.input:
            execution.input.ask(message.content)
        elif execution and message.msg_type == "execute_reply":
            # Of a cell that ends well there is never so much.
            error = {"status": "error", "ename": "ReplyTooLarge", "evalue": TOO_MUCH}
            execution.take_reply(error if message.refused else message.content, message.metadata)

    def _route_iopub(self, message: Message, execution: Execution | None) -> None:
        self._subscribed.set()
        msg_type, content = message.msg_type, message.content
        if execution:
            execution.received += 1
        if msg_type == "replay" and self._replaying:  # session code could send one, too
            self._route_replay(end=content.get("end") is True)
        elif self._catching_up:
            return  # it comes once more
        elif execution and msg_type == "execute_input":
            execution.begun.set()
        elif msg_type != "status":
            # After idle, it is a thread of the cell that goes on.
            outputs = execution.outputs if execution and not execution.idle.is_set() else self._late
            outputs.fold(msg_type, content, refused=message.refused, output=message.output)
        elif execution and content.get("execution_state") == "idle":
            execution.idle.set()

    def _route_replay(self, *, end: bool) -> None:
        if end:
            self._replayed.set()
            return
        self._catching_up = False
        self._late.take()
        for execution in self._executions.values():
            execution.restart()

    async def drain(self) -> None:
        """Takes in what a kernel whose process is gone has still sent."""
        end, received = self._read_seconds() + DRAIN_SECONDS, -1
        while (received != self._received or self._resting) and self._read_seconds() < end:
            received = self._received
            await anyio.sleep(QUIET_SECONDS)

    def _held(self) -> float:
        return self._sockets["iopub"].share.held

    def _read_seconds(self) -> float:
        """A clock that stands still while what the kernel puts out waits for others to be served."""
        return time.monotonic() - self._held()

    async def wait_ready(self, *, serving: bool = False) -> None:
        """Ready means that our subscription is in place: requests wait in the sockets until the kernel serves them.

        What shows it is any message on IOPub: `iopub_welcome` (JEP 65), or the status of a probe. ipykernel can miss the
        moment for the former, when it is sending just then, so probes follow until something comes.

        Args:
            serving: also that the kernel has got so far as to serve requests.
        """
        await self._wait_connected()
        with anyio.move_on_after(PROBE_INTERVAL_SECONDS):
            await self._subscribed.wait()
        while not self._subscribed.is_set():
            await self.probe()
            with anyio.move_on_after(PROBE_INTERVAL_SECONDS):
                await self._subscribed.wait()
        if serving:
            await self.probe()

    async def catch_up(self) -> None:
        """Ready, for a kernel that served another server before, and may be busy: `last_cell` is known as well."""
        self._catching_up = True
        await self._wait_connected()
        while True:
            self.last_cell = await self._ask_last_cell()
            if self.last_cell is not None and self.last_cell.reply is None:
                break
            with anyio.move_on_after(REPLAY_SECONDS):
                await self.probe()  # behind a cell that was sent, but has not begun
                self.last_cell = await self._ask_last_cell()
                break
        while not self._subscribed.is_set():
            await self._ask_last_cell()
            with anyio.move_on_after(PROBE_INTERVAL_SECONDS):
                await self._subscribed.wait()
        self._catching_up = self.last_cell is not None

    async def _wait_connected(self) -> None:
        """Until the kernel has accepted all connections; only then SEND_SECONDS are a long time."""
        try:
            for socket in self._sockets.values():
                await socket.connected()
        except ConnectionError as error:
            ended = await self._is_ending()
            raise KernelError("The kernel ended." if ended else "The kernel has closed its connections.") from error


@cache
def import_client() -> type[AsyncKernelClient]:
    """jupyter_client takes 0.1 s to import: the server need not wait for it at its start, nor the first kernel."""
    import traitlets
    from jupyter_client.asynchronous.client import AsyncKernelClient

    class Client(AsyncKernelClient):
        """With sockets of our own."""

        context = traitlets.Instance(Context)  # type: ignore[assignment]  # it wants zmq's

    return Client


@asynccontextmanager
async def connect_kernel(
    context: Context,
    connection_info: dict[str, Any],
    late: Outputs | None = None,
    dead: anyio.Event | None = None,
    identity: bytes = b"",
    *,
    resume: bool = False,
    serving: bool = False,
) -> AsyncIterator[KernelConnection]:
    """Connects to a kernel whose sockets are bound, and waits until it is ready.

    Args:
        identity: to whom it replies; of a later server with the same one, it takes answers for questions to this one.
        resume: it has served another server before; `last_cell` has to be resumed next, if there is one.
        serving: see `KernelConnection.wait_ready`.
        late: takes what is put out when no cell is running, or by the threads of earlier ones.
        dead: set when its process is gone, so that nobody waits for it to be ready.

    Raises:
        KernelError: it is not ready within READY_SECONDS, has ended, or no more files can be opened.
    """

    async def end_when_dead() -> None:
        if dead is not None:
            await dead.wait()
            connection.end()

    client = import_client()(context=context)
    client.load_connection_info(cast("Any", dict(connection_info)))
    # Against replays by others on a network; on sockets that only the kernel reaches it would cost 1 KB for each cell.
    client.session.digest_history_size = 0
    identity = identity or client.session.bsession
    sockets = _open_sockets(client, identity)
    connection = KernelConnection(client, sockets, Outputs() if late is None else late)
    try:
        async with running(connection.watch, *(partial(connection.read, channel) for channel in sockets)):
            try:
                with anyio.fail_after(RESUME_SECONDS if resume else READY_SECONDS):
                    async with running(end_when_dead):
                        await (connection.catch_up() if resume else connection.wait_ready(serving=serving))
            except TimeoutError as error:
                raise KernelError(f"The kernel did not answer within {READY_SECONDS:g} s.") from error
            yield connection
    finally:
        connection.end()


def _open_sockets(client: AsyncKernelClient, identity: bytes) -> dict[str, Socket]:
    makers: dict[str, Callable[[], Any]] = {
        "iopub": client.connect_iopub,
        "shell": partial(client.connect_shell, identity=identity),
        "control": partial(client.connect_control, identity=identity),
        "stdin": partial(client.connect_stdin, identity=identity),
    }
    sockets: dict[str, Socket] = {}
    try:
        for channel, make in makers.items():
            sockets[channel] = make()
    except OSError as error:
        for socket in sockets.values():
            socket.close()
        raise KernelError(f"The server cannot connect to the kernel: {error.strerror or error}. Try again.") from error
    return sockets
