"""Our sockets against libzmq's, as kernels have them, and against peers that write what they like."""

from __future__ import annotations

import functools
import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import zmq

from kernel_server.errors import KernelError
from kernel_server.kernels import zmtp
from kernel_server.kernels.connection import DEATH_SECONDS, connect_kernel
from kernel_server.kernels.sockets import DEALER, SUB, SUBSCRIBE, Context, Socket
from tests.driving import eventually, stopwatch
from tests.kernels.test_bursts import running_kernel

pytestmark = pytest.mark.anyio

SECONDS = 20.0
MB = 1_000_000
GREETED = zmtp.GREETING + zmtp.ready(Socket_Type=b"ROUTER")


@contextmanager
def libzmq(kind: int, path: Path) -> Iterator[zmq.Socket[bytes]]:
    """A peer of the sort that a kernel has; it has a thread of its own."""
    with zmq.Context() as context, context.socket(kind) as peer:
        peer.setsockopt(zmq.LINGER, 0)
        peer.setsockopt(zmq.RCVTIMEO, int(SECONDS * 1000))
        peer.bind(f"ipc://{path}")
        yield peer


@contextmanager
def ours(path: Path, kind: int = DEALER, identity: bytes = b"") -> Iterator[Socket]:
    with Context() as context:
        made = context.socket(kind)
        made.identity = identity
        made.connect(f"ipc://{path}")
        if kind == SUB:
            made.setsockopt(SUBSCRIBE, b"")
        yield made


@contextmanager
def listening(path: Path, backlog: int = 10) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(backlog)
        yield listener


@contextmanager
def hostile(path: Path, kind: int = DEALER, hello: bytes = GREETED) -> Iterator[tuple[Socket, socket.socket]]:
    """Ours, and the plain other end of it, which has sent `hello`."""
    with listening(path) as listener, ours(path, kind, b"me") as client, listener.accept()[0] as peer:
        peer.settimeout(SECONDS)
        peer.sendall(hello)
        yield client, peer


async def aside(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls it in a thread."""
    return await anyio.to_thread.run_sync(functools.partial(function, *arguments), abandon_on_cancel=True)


async def received(client: Socket) -> list[bytes]:
    with anyio.fail_after(SECONDS):
        return await client.recv_multipart()


def read_exactly(peer: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += peer.recv(size - len(data)) or pytest.fail("the connection has ended")
    return data


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# -- libzmq -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parts",
    [
        [b""],
        [b"", b""],
        [b"x" * 255, b"y" * 256, b""],
        [b"%d" % number for number in range(zmtp.MAX_PARTS)],
        [b"z" * 60 * MB],
    ],
    ids=["empty", "two", "sizes", "many", "60 MB"],
)
async def test_router_gets_what_is_sent_and_its_answer_arrives(tmp_path: Path, parts: list[bytes]) -> None:
    """ZMTP 3.0: identity, framing. 60 MB take no longer than a second each way; mostly it is a tenth of that."""
    with libzmq(zmq.ROUTER, tmp_path / "s") as router, ours(tmp_path / "s", identity=b"me") as client:
        with stopwatch() as passed:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(client.send_multipart, parts)
                assert await aside(router.recv_multipart) == [b"me", *parts]
            router.send_multipart([b"me", *parts])
            assert await received(client) == parts
            assert passed() < 2


@pytest.mark.parametrize("kind", [zmq.XPUB, zmq.PUB], ids=["XPUB", "PUB"])
async def test_publisher_learns_of_the_subscription(tmp_path: Path, kind: int) -> None:
    """ZMTP 3.1: SUBSCRIBE. PUB, which ipykernel 6 has, does not tell when it has read it."""
    with libzmq(kind, tmp_path / "s") as publisher, ours(tmp_path / "s", SUB) as client:
        if kind == zmq.XPUB:
            assert await aside(publisher.recv) == b"\x01"
            publisher.send_multipart([b"topic", b"content"])
        else:
            await client.connected()
            with anyio.move_on_after(0.2):
                while True:
                    publisher.send_multipart([b"topic", b"content"])
                    await anyio.sleep(0.01)
        assert await received(client) == [b"topic", b"content"]


async def test_message_waits_until_a_kernel_accepts(tmp_path: Path) -> None:
    """Ours: a kernel's socket listens before there is a kernel."""
    with listening(tmp_path / "s") as listener, ours(tmp_path / "s", identity=b"me") as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.send_multipart, [b"early"])
            await anyio.wait_all_tasks_blocked()
            with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
                router.setsockopt(zmq.USE_FD, os.dup(listener.fileno()))
                router.setsockopt(zmq.RCVTIMEO, int(SECONDS * 1000))
                router.bind(f"ipc://{tmp_path}/s")
                assert await aside(router.recv_multipart) == [b"me", b"early"]


async def test_connection_waits_for_room_among_those_to_be_accepted(tmp_path: Path) -> None:
    """unix(7): connecting fails with EAGAIN then."""
    with (
        listening(tmp_path / "s", backlog=0) as listener,
        ours(tmp_path / "s") as first,
        ours(tmp_path / "s") as second,
    ):
        peers = []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(second.connected)
            for _ in range(2):
                peers.append((await aside(listener.accept))[0])
                peers[-1].sendall(GREETED)
        await first.connected()
        for peer in peers:
            peer.close()


async def test_messages_of_many_senders_are_not_mixed(tmp_path: Path) -> None:
    """Ours: each is longer than the buffer of the connection."""
    with libzmq(zmq.ROUTER, tmp_path / "s") as router, ours(tmp_path / "s") as client:
        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(client.send_multipart, [b"%02d" % number * 300_000] * 2)
            found = [(await aside(router.recv_multipart))[1:] for _ in range(20)]
    assert found == [[b"%02d" % number * 300_000] * 2 for number in range(20)]


# -- hostile peers ----------------------------------------------------------------------------------------------------


async def test_handshake_says_what_we_are(tmp_path: Path) -> None:
    """ZMTP 3.0, READY; what comes before the kernel's is nothing else."""
    with hostile(tmp_path / "s", hello=b"") as (client, peer):
        expected = zmtp.GREETING + zmtp.ready(Socket_Type=b"DEALER", Identity=b"me")
        assert read_exactly(peer, len(expected)) == expected
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.send_multipart, [b"early"])
            await anyio.wait_all_tasks_blocked()
            peer.setblocking(False)
            with pytest.raises(BlockingIOError):
                peer.recv(1)
            peer.settimeout(SECONDS)
            peer.sendall(GREETED)
        assert read_exactly(peer, 7) == b"\x00\x05early"


@pytest.mark.parametrize("minor", [0, 1])
async def test_subscription_is_what_the_peers_version_knows(tmp_path: Path, minor: int) -> None:
    """ZMTP 3.0: a message; 3.1: a command."""
    hello = GREETED[:11] + bytes((minor,)) + GREETED[12:]
    with hostile(tmp_path / "s", SUB, hello) as (client, peer):
        await client.connected()
        read_exactly(peer, len(zmtp.GREETING + zmtp.ready(Socket_Type=b"SUB")))
        expected = b"\x04\x0a\x09SUBSCRIBE" if minor else b"\x00\x01\x01"
        assert read_exactly(peer, len(expected)) == expected


async def test_ping_is_answered_and_other_commands_are_ignored(tmp_path: Path) -> None:
    """ZMTP 3.1, heartbeating: with its context, of at most 16 octets."""
    with hostile(tmp_path / "s") as (client, peer):
        await client.connected()
        read_exactly(peer, len(zmtp.GREETING + zmtp.ready(Socket_Type=b"DEALER", Identity=b"me")))
        odd = [zmtp.command(b"READY", b""), zmtp.command(b"WHAT", b"x" * 9_000), b"\x04\x00", b"\x04\x01\xff"]
        peer.sendall(b"".join(odd) + zmtp.command(b"PING", b"\x00\x09" + b"c" * 30) + zmtp.message([b"good"]))
        assert await received(client) == [b"good"]
        assert read_exactly(peer, 23) == b"\x04\x15\x04PONG" + b"c" * 16


async def test_peer_that_pings_and_does_not_read_is_not_answered_for_ever(tmp_path: Path) -> None:
    """Ours: no answer is kept for it."""
    with hostile(tmp_path / "s") as (client, peer):
        await aside(peer.sendall, zmtp.command(b"PING", bytes(18)) * 100_000 + zmtp.message([b"good"]))
        assert await received(client) == [b"good"]


@pytest.mark.parametrize(
    "hello",
    [
        b"HTTP/1.1 400 Bad Request\r\n" * 10,
        bytes(100),
        b"\xff" * 10_000_000,
        GREETED[:10] + b"\x01" + GREETED[11:],
        zmtp.GREETING + zmtp.message([b"a message"]),
        zmtp.GREETING + zmtp.command(b"ERROR", b"\x02no"),
        GREETED + b"\xff\xff",
        GREETED + zmtp.command(b"ERROR", b"\x02no"),
    ],
    ids=["HTTP", "zeros", "ones", "ZMTP 2", "message", "ERROR", "flags", "late ERROR"],
)
async def test_what_is_no_zmtp_ends_the_connection(tmp_path: Path, hello: bytes) -> None:
    """ZMTP 3.0; whoever sends is told, whoever reads is not."""
    with hostile(tmp_path / "s", hello=b"") as (client, peer):
        sending = threading.Thread(target=lambda: _send_all(peer, hello))
        sending.start()
        await eventually(lambda: client.ended)
        await aside(sending.join)
        with pytest.raises(ConnectionError):
            await client.send_multipart([b"x"])
        with anyio.move_on_after(0.05) as waiting:
            await client.recv_multipart()
        assert waiting.cancelled_caught


def _send_all(peer: socket.socket, data: bytes) -> None:
    try:
        peer.sendall(data)
    except ConnectionError:
        pass


async def test_nothing_is_kept_of_two_gigabytes_and_the_next_message_arrives(tmp_path: Path) -> None:
    """Ours. Positive control: libzmq takes them all in, with the same peer (SECURITY.md had the figures)."""
    part = zmtp.message([bytes(50 * MB)])
    more = b"\x03" + part[1:]

    def send() -> None:
        for _ in range(39):
            peer.sendall(more)
        peer.sendall(part + zmtp.message([b"good"]))

    with hostile(tmp_path / "s") as (client, peer):
        sending = threading.Thread(target=send)
        before, highest, found = resident_bytes(), 0, []

        async def read() -> None:
            found.extend([await client.recv_multipart(), await client.recv_multipart()])
            tasks.cancel_scope.cancel()

        sending.start()
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read)
                while True:
                    highest = max(highest, resident_bytes())
                    await anyio.sleep(0.005)
        await aside(sending.join)
    cut, good = found
    assert [part is zmtp.CUT for part in cut] == [False] + [True] * 39
    assert good == [b"good"]
    assert highest - before < 150 * MB  # the first part, and its copy


async def test_sender_waits_while_nobody_reads(tmp_path: Path) -> None:
    """Ours: one message is read ahead, and what the connection itself holds."""
    message = zmtp.message([b"x" * 100_000])
    with hostile(tmp_path / "s") as (client, peer):
        await client.connected()
        peer.setblocking(False)
        sent, still = 0, 0
        while still < 20:
            try:
                sent += peer.send((message * 2)[sent % len(message) :][: len(message)])
                still = 0
            except BlockingIOError:
                still += 1
                await anyio.sleep(0.01)
        assert sent < 10 * len(message)
        whole, rest = divmod(sent, len(message))
        for _ in range(whole):
            assert await received(client) == [b"x" * 100_000]
        peer.sendall(message[rest:])
        assert await received(client) == [b"x" * 100_000]


async def test_parts_of_no_bytes_let_others_work(tmp_path: Path) -> None:
    """Ours: two bytes for each part are the most work for the least of a kernel's own."""
    tiny = b"\x01\x00" * 1_000_000
    with hostile(tmp_path / "s") as (client, peer):
        sending = threading.Thread(target=peer.sendall, args=(tiny + zmtp.message([b""]),))
        turns, longest = 0, 0.0

        async def read() -> None:
            assert await client.recv_multipart() == [b""] * zmtp.MAX_PARTS
            tasks.cancel_scope.cancel()

        sending.start()
        with anyio.fail_after(SECONDS):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read)
                while True:
                    begun = time.thread_time()
                    await anyio.lowlevel.checkpoint()
                    turns, longest = turns + 1, max(longest, time.thread_time() - begun)
        await aside(sending.join)
        assert turns > 1_000
        assert longest < 0.1


async def test_what_was_sent_before_the_end_is_received(tmp_path: Path) -> None:
    """Ours: a kernel's last words."""
    with hostile(tmp_path / "s") as (client, peer):
        await client.connected()
        peer.sendall(zmtp.message([b"last"]) + zmtp.message([b"words"]) + zmtp.message([b"half"])[:-1])
        peer.close()
        with pytest.raises(ConnectionError):
            await client.send_multipart([b"x"])
        assert [await received(client), await received(client)] == [[b"last"], [b"words"]]
        with anyio.move_on_after(0.05) as waiting:
            await client.recv_multipart()
        assert waiting.cancelled_caught
        assert client.ended


async def test_send_that_was_cancelled_half_way_is_the_last_one(tmp_path: Path) -> None:
    """Ours: what came next would be taken for its rest."""
    data = os.urandom(5 * MB)
    with hostile(tmp_path / "s") as (client, peer):
        with anyio.move_on_after(0.1) as sending:
            await client.send_multipart([data])
        assert sending.cancelled_caught
        with pytest.raises(ConnectionError, match="half sent"):
            await client.send_multipart([b"x"])
        read_exactly(peer, len(zmtp.GREETING + zmtp.ready(Socket_Type=b"DEALER", Identity=b"me")))
        came = peer.recv(5 * MB)
        assert came == zmtp.message([data])[: len(came)]


async def test_send_that_was_cancelled_before_it_began_does_no_harm(tmp_path: Path) -> None:
    """Ours."""
    with hostile(tmp_path / "s") as (client, peer):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.send_multipart, [bytes(MB)])
            await anyio.wait_all_tasks_blocked()
            with anyio.move_on_after(0.05) as sending:
                await client.send_multipart([b"never"])
            assert sending.cancelled_caught
            await aside(read_exactly, peer, len(GREETED))
            reading = threading.Thread(target=read_exactly, args=(peer, MB))
            reading.start()
        await client.send_multipart([b"next"])
        await aside(reading.join)
        peer.settimeout(0.2)
        rest = b""
        while not rest.endswith(b"\x00\x04next"):
            rest += peer.recv(1_000)
        assert b"never" not in rest


async def test_sender_is_told_when_the_connection_ends_meanwhile(tmp_path: Path) -> None:
    """Ours: also where we close it ourselves."""
    for end in ("peer", "client"):
        with hostile(tmp_path / end) as (client, peer):

            async def send(client: Socket = client) -> None:
                with pytest.raises(ConnectionError):
                    await client.send_multipart([bytes(5 * MB)])

            with anyio.fail_after(SECONDS):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(send)
                    await anyio.wait_all_tasks_blocked()
                    (peer if end == "peer" else client).close()


async def test_a_thousand_pings_are_not_a_thousand_answers(tmp_path: Path) -> None:
    """Ours: each was a call into the kernel. Whoever asks once is answered, by what comes first."""
    ping = zmtp.command(b"PING", b"\0\0first")
    with hostile(tmp_path / "s") as (client, peer):
        await client.connected()
        peer.sendall(ping + zmtp.command(b"PING", b"\0\0then") * 1_000 + zmtp.message([b"on"]))
        assert await received(client) == [b"on"]
        await client.send_multipart([b"end"])
        answers = b""
        while not answers.endswith(b"\x00\x03end"):
            answers += await aside(peer.recv, 1_000)
        assert zmtp.command(b"PONG", b"first") in answers
        assert answers.count(b"PONG") < 10


async def test_nothing_is_left_of_closed_sockets(tmp_path: Path) -> None:
    """Ours: no descriptor, whatever the socket was doing."""
    before = len(os.listdir("/proc/self/fd"))
    with hostile(tmp_path / "s") as (client, _), listening(tmp_path / "full", 0), ours(tmp_path / "full"):
        with ours(tmp_path / "full"), Context() as context:  # one that tries again and again
            context.socket(DEALER)  # one that was never connected
            with anyio.move_on_after(0.05):
                await client.recv_multipart()
    assert len(os.listdir("/proc/self/fd")) == before


# -- connections to kernels -------------------------------------------------------------------------------------------


def info(folder: Path) -> dict[str, Any]:
    ports = {
        f"{channel}_port": number for number, channel in enumerate(("shell", "iopub", "stdin", "control", "hb"), 1)
    }
    return {**ports, "transport": "ipc", "ip": f"{folder}/s", "key": b"key", "signature_scheme": "hmac-sha256"}


@pytest.mark.parametrize(
    ("fault", "text"),
    [("missing", "No such file or directory"), ("deaf", "Connection refused"), ("files", "Too many open files")],
)
async def test_kernel_that_cannot_be_reached_is_an_error(tmp_path: Path, fault: str, text: str) -> None:
    """Ours: and nothing of the attempt is left."""
    if fault != "missing":
        for port in (1, 2, 3, 4):
            with listening(tmp_path / f"s-{port}"):
                pass
    before = len(os.listdir("/proc/self/fd"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Context() as context:
        try:
            if fault == "files":
                resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
            with pytest.raises(KernelError, match=f"cannot connect to the kernel: {text}. Try again."):
                async with connect_kernel(context, info(tmp_path)):
                    pass
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert len(os.listdir("/proc/self/fd")) == before


CLOSE = """
import os, socket
for name in os.listdir("/proc/self/fd"):
    try:
        opened = socket.socket(fileno=os.dup(int(name)))
        if opened.getsockname().endswith("-{port}"): opened.shutdown(socket.SHUT_RDWR)
    except (OSError, AttributeError):
        pass
"""


@pytest.mark.parametrize("channel", ["shell", "iopub"])
async def test_kernel_that_closes_a_connection_takes_no_requests_any_more(tmp_path: Path, channel: str) -> None:
    """Ours: without iopub, a cell's output would be lost and its end not be told."""
    async with running_kernel(tmp_path) as kernel:
        port = getattr(kernel._client, f"{channel}_port")
        async with kernel.execute(CLOSE.replace("{port}", str(port))):
            await eventually(lambda: kernel._sockets[channel].ended)
        with stopwatch() as passed, pytest.raises(KernelError, match="does not take requests any more"):
            async with kernel.execute("1"):
                pass
        assert passed() < 2 * DEATH_SECONDS
