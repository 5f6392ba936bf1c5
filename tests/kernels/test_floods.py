"""Cells that put out more than anybody keeps: head and tail survive, the rest is counted, and others have their turn."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
import zmq
from jupyter_client.asynchronous.client import AsyncKernelClient

from kernel_server.kernels.connection import KernelConnection
from kernel_server.kernels.executions import Execution
from kernel_server.kernels.outputs import MAX_TAIL_BYTES, MAX_TEXT_BYTES, Outputs, Stream
from kernel_server.kernels.sockets import SUB, SUBSCRIBE, Context
from tests.driving import eventually
from tests.kernels.test_bursts import running_kernel

pytestmark = pytest.mark.anyio

SECONDS = 30.0
MESSAGES = 2_000


@asynccontextmanager
async def run(kernel: KernelConnection, code: str) -> AsyncIterator[Execution]:
    """The cell at its end."""
    async with kernel.execute(code) as execution:
        with anyio.fail_after(SECONDS):
            await execution.wait_over()
        yield execution


def folded(*texts: str, dropped: int = 0) -> Stream:
    """What is kept of these; `dropped` characters are missing before the last."""
    outputs = Outputs()
    for text in texts[:-1]:
        outputs.fold("stream", {"name": "stdout", "text": text})
    outputs.fold("stream", {"name": "stdout", "text": texts[-1], **({"dropped": dropped} if dropped else {})})
    (stream,) = outputs.items
    assert isinstance(stream, Stream)
    return stream


def test_text_that_the_kernel_dropped_counts_as_dropped() -> None:
    """Ours: the same as if the whole had come."""
    whole = "".join(chr(97 + number % 26) for number in range(MAX_TEXT_BYTES + 3 * MAX_TAIL_BYTES))
    head, middle, tail = whole[:MAX_TEXT_BYTES], whole[MAX_TEXT_BYTES:-MAX_TAIL_BYTES], whole[-MAX_TAIL_BYTES:]
    assert folded(head, tail, dropped=len(middle)) == folded(head, middle, tail)


def test_what_was_last_before_a_gap_is_dropped_with_it() -> None:
    """Ours: head and tail would else close up over what is missing. The head stays closed after it."""
    kept = folded("x" * MAX_TEXT_BYTES, "old tail", "new tail", dropped=5)
    assert (kept.tail, kept.dropped) == ("new tail", 5 + len("old tail"))
    early = folded("head", "tail", dropped=5)
    assert early.text == "head\n… 5 characters left out …\ntail"


@pytest.mark.parametrize("dropped", [-1, True, 1.5, "7", 1 << 60, None])
def test_count_of_dropped_characters_that_is_none_is_ignored(dropped: object) -> None:
    """STYLE: kernels are hostile."""
    outputs = Outputs()
    outputs.fold("stream", {"name": "stdout", "text": "a", "dropped": dropped})
    assert outputs.items == [Stream("stdout", "a")]


async def test_kernel_sends_head_and_tail_of_a_flood_and_the_count_is_exact(tmp_path: Path) -> None:
    """Ours: of 30 MB in one print and of 3 MB in lines the same is kept as if all had been sent."""
    long, lines = "print('0123456789' * 3_000_000)", "for number in range(500_000): print(number)"
    async with running_kernel(tmp_path) as kernel:
        async with run(kernel, long) as execution:
            assert execution.outputs.items == [folded("0123456789" * 3_000_000 + "\n")]
        async with run(kernel, lines) as execution:
            assert execution.outputs.items == [folded("".join(f"{number}\n" for number in range(500_000)))]


async def test_printed_text_is_not_kept_in_the_kernel(tmp_path: Path) -> None:
    """Ours: IPython keeps it for `%notebook`, so that a loop that prints would fill the memory of its session."""
    async with running_kernel(tmp_path) as kernel:
        async with run(kernel, "for _ in range(1000): print('x' * 100)"):
            pass
        async with run(kernel, "len(getattr(get_ipython().history_manager, 'outputs', {}).get(1, []))") as execution:
            assert [getattr(item, "data", item) for item in execution.outputs.items] == [{"text/plain": "0"}]


async def test_output_of_threads_children_and_odd_texts_is_complete(tmp_path: Path) -> None:
    """Ours: the short way of writing is for the cell's own thread; all others take the long one."""
    code = """
import os, sys, threading
def work(number):
    for _ in range(200): print(f"<{number}>", end="")
threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
for thread in threads: thread.start()
for _ in range(200): print("<main>", end="")
for thread in threads: thread.join()
sys.stdout.flush()
if os.fork() == 0:
    print("<child>", end="")
    sys.stdout.flush()
    os._exit(0)
os.wait()
print("\\ud800é", end="")
"""
    async with running_kernel(tmp_path) as kernel, run(kernel, code) as execution:
        (stream,) = execution.outputs.items
        assert isinstance(stream, Stream)
        counts = {part: stream.text.count(part) for part in ("<0>", "<1>", "<2>", "<3>", "<main>", "<child>")}
        assert counts == {"<0>": 200, "<1>": 200, "<2>": 200, "<3>": 200, "<main>": 200, "<child>": 1}
        assert stream.text.endswith("\\ud800é")


@pytest.mark.parametrize("flush", [True, False])
async def test_interrupted_flood_is_over_with_all_that_it_sent(tmp_path: Path, flush: bool) -> None:
    """Ours: what is queued at the interrupt is little, so that `idle` is not given up before it comes."""
    async with running_kernel(tmp_path) as kernel:
        code = f"while True: print('x' * 100_000, flush={flush})"
        async with kernel.execute(code) as execution:
            await eventually(lambda: len(getattr([*execution.outputs.items, ""][0], "head", "")) > 1_000_000)
            with anyio.fail_after(SECONDS):
                await kernel.interrupt()
                await execution.wait_over()
            assert execution.idle.is_set()
            assert execution.outputs.ended_with_error


RICH = """
kernel = get_ipython().kernel
session = kernel.session
header, parent = session.msg_header("display_data"), kernel.get_parent()["header"]
content = b'{"data":{"application/json":[' + b"[]," * 10_000_000 + b'[]]},"metadata":{}}'
parts = [session.pack(header), session.pack(parent), b"{}", content]
for _ in range(5):
    kernel.iopub_socket.send_multipart([b"display_data", b"<IDS|MSG>", session.sign(parts), *parts])
print("and so on")
"""


async def test_message_of_millions_of_values_is_told_as_dropped_and_others_are_served(tmp_path: Path) -> None:
    """Ours: each took 5 s and a gigabyte of the server, and nobody else had a turn."""
    (tmp_path / "other").mkdir()
    async with running_kernel(tmp_path) as kernel, running_kernel(tmp_path / "other") as other:
        async with kernel.execute(RICH) as execution:
            with anyio.fail_after(SECONDS):
                while not execution.outputs.dropped:
                    assert (await other.look("1 + 1")).text == "2"
                await execution.wait_over()
        assert (execution.outputs.items, execution.outputs.dropped) == ([Stream("stdout", "and so on\n")], 5)
        assert execution.idle.is_set()
        assert execution.reply is not None
        assert execution.reply.status == "ok"


async def test_reader_of_a_flooded_channel_lets_others_work(tmp_path: Path) -> None:
    """Issue 3: one session's flood is not another's delay. With a message at hand, receiving never yields by itself."""
    client = AsyncKernelClient()
    names = ["stdout"] * MESSAGES + ["stderr"]
    with zmq.Context() as libzmq, libzmq.socket(zmq.XPUB) as flooding, Context() as context:
        flooding.set_hwm(len(names))
        flooding.bind(f"ipc://{tmp_path}/flood")
        flooded = context.socket(SUB)
        flooded.setsockopt(SUBSCRIBE, b"")
        flooded.connect(f"ipc://{tmp_path}/flood")
        await flooded.connected()
        await anyio.to_thread.run_sync(flooding.recv)  # the subscription
        for name in names:
            message = client.session.msg("stream", {"name": name, "text": "x" * 1000})
            flooding.send_multipart(client.session.serialize(message))
        outputs, turns = Outputs(), 0
        connection = KernelConnection(client, {"iopub": flooded}, outputs)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(connection.read, "iopub")
            with anyio.fail_after(SECONDS):
                while len(outputs.items) < 2:
                    await anyio.lowlevel.checkpoint()
                    turns += 1
            tasks.cancel_scope.cancel()
    assert connection.unreadable == 0
    assert turns > 20
