"""Session code that attaches descriptors to what it sends: whoever drops the last one may wait as long as it likes."""

from __future__ import annotations

import array
import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from kernel_server.kernels import descriptors, zmtp
from kernel_server.kernels.outputs import Display
from kernel_server.kernels.sockets import Context
from tests.driving import eventually
from tests.kernels.test_bursts import running_kernel
from tests.kernels.test_sockets import GREETED, hostile, listening, ours, received

pytestmark = pytest.mark.anyio

SECONDS = 20.0
LINGER_SECONDS = 600
PING = zmtp.command(b"PING", bytes(2))
SO_UNKNOWN = 9_999  # to Linux before 6.16, SO_PASSRIGHTS is as unknown as this one

needs_refusal = pytest.mark.skipif(
    tuple(map(int, os.uname().release.split(".")[:2])) < (6, 16), reason="Linux refuses descriptors from 6.16 on"
)


@pytest.fixture
def older_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptors, "SO_PASSRIGHTS", SO_UNKNOWN)


@contextmanager
def lingering() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A TCP connection whose last close waits until the other one, which comes second, is closed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours, other = socket.create_connection(listener.getsockname()), listener.accept()[0]
        with ours, other:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, LINGER_SECONDS))
            ours.setblocking(False)
            with pytest.raises(BlockingIOError):
                while True:
                    ours.send(bytes(1 << 20))
            yield ours, other


def attach(peer: socket.socket, attached: socket.socket, flags: int = 0) -> None:
    """Sends the last descriptor of it, beside what every receiver takes."""
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [attached.fileno()]))
    peer.sendmsg([PING], [rights], flags)
    attached.close()


def closers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "closer"]


async def test_reading_without_protection_waits_for_the_close(tmp_path: Path) -> None:
    """Positive control: a plain socket's `recv` takes as long as the sender wants."""
    with listening(tmp_path / "s") as listener, socket.socket(socket.AF_UNIX) as plain, lingering() as (ours, other):
        plain.connect(str(tmp_path / "s"))
        with listener.accept()[0] as peer:
            attach(peer, ours)
            reading = threading.Thread(target=plain.recv, args=(1_000,))
            reading.start()
            reading.join(0.5)
            assert reading.is_alive()
            other.close()
            reading.join(SECONDS)
            assert not reading.is_alive()


@needs_refusal
@pytest.mark.parametrize("flags", [0, socket.MSG_OOB], ids=["plain", "urgent"])
async def test_descriptors_are_refused_to_their_sender(tmp_path: Path, flags: int) -> None:
    """Ours: also before the handshake; the connection goes on."""
    with hostile(tmp_path / "s", hello=b"") as (client, peer), lingering() as (attached, _):
        with pytest.raises(PermissionError):
            attach(peer, attached, flags)
        peer.sendall(GREETED + zmtp.message([b"and so on"]))
        assert await received(client) == [b"and so on"]


@pytest.mark.parametrize("flags", [0, socket.MSG_OOB], ids=["plain", "urgent"])
async def test_on_older_linux_they_end_the_connection_and_the_loop_goes_on(
    tmp_path: Path, older_linux: None, flags: int
) -> None:
    """Ours: a thread waits for the close; the loop does not."""
    before = len(os.listdir("/proc/self/fd"))
    with hostile(tmp_path / "s") as (client, peer), lingering() as (attached, other):
        await client.connected()
        attach(peer, attached, flags)
        with anyio.fail_after(SECONDS):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(client.recv_multipart)
                await client.wait_ended()
                tasks.cancel_scope.cancel()
        assert closers()
        other.close()
    await eventually(lambda: not closers())
    assert len(os.listdir("/proc/self/fd")) == before


async def test_on_older_linux_nobody_waits_for_what_is_closed_unread(tmp_path: Path, older_linux: None) -> None:
    """Ours: neither the one who closes a socket, nor the end of the server, nor those that are closed next."""
    with lingering() as (attached, other), listening(tmp_path / "s") as listener:
        with Context() as context:
            with ours(tmp_path / "s") as client, listener.accept()[0] as peer:
                attach(peer, attached)
                client.close()
            assert context is not None
        assert closers()
        other.close()
        await eventually(lambda: not closers())


async def test_on_older_linux_messages_arrive_whole(tmp_path: Path, older_linux: None) -> None:
    """Ours: looking at what comes before it is read loses and repeats nothing."""
    sent = [os.urandom(size) for size in (1, 255, 70_000, 5_000_000)]
    with hostile(tmp_path / "s") as (client, peer):
        sending = threading.Thread(target=peer.sendall, args=(zmtp.message(sent) * 3,))
        sending.start()
        assert [await received(client) for _ in range(3)] == [sent] * 3
        sending.join()


ATTACH = """
import array, os, socket
def attach():
    for name in os.listdir("/proc/self/fd"):
        try:
            opened = socket.socket(fileno=os.dup(int(name)))
            opened.getpeername()
            channel = os.fsdecode(opened.getsockname()).rpartition("-")[2]
            opened.sendmsg([bytes((4, 7)) + b"\\x04PING" + bytes(2)], [(1, socket.SCM_RIGHTS, array.array("i", [0]))])
            yield channel, "sent"
        except PermissionError:
            yield channel, "refused"
        except OSError:
            pass
sorted(set(attach()))
"""


@needs_refusal
async def test_session_code_cannot_attach_descriptors_on_any_channel(tmp_path: Path) -> None:
    """Ours, with a real kernel: each of its four connections refuses, and the session goes on."""
    async with running_kernel(tmp_path) as kernel:
        ports = sorted(str(getattr(kernel._client, f"{channel}_port")) for channel in kernel._sockets)
        async with kernel.execute(ATTACH) as execution:
            with anyio.fail_after(SECONDS):
                await execution.wait_over()
            (shown,) = execution.outputs.items
            assert isinstance(shown, Display)
            found = dict(eval(shown.data["text/plain"]))  # noqa: S307 - of a kernel of our own
            assert {port: found.get(port) for port in ports} == dict.fromkeys(ports, "refused")
        assert (await kernel.look("6 * 7")).text == "42"


async def test_on_older_linux_a_kernel_that_attaches_descriptors_is_cut_off(tmp_path: Path, older_linux: None) -> None:
    """Positive control of the above: without the refusal they are sent."""
    async with running_kernel(tmp_path) as kernel, kernel.execute(ATTACH):
        with anyio.fail_after(SECONDS):
            await kernel.cut_off.wait()
        assert all(opened.ended for opened in kernel._sockets.values())
