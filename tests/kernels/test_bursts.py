"""Overlapping requests to one real kernel: the pattern in which jupyter_client's own senders lose wake-ups."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from kernel_server.hosts.base import HostSettings
from kernel_server.hosts.local import local_host
from kernel_server.kernels.connection import KernelConnection, connect_kernel
from kernel_server.kernels.sockets import Context

BURSTS = 1000
LARGEST_BURST = 12
STALL_SECONDS = 10.0  # a burst takes about 0.1 s


@asynccontextmanager
async def running_kernel(state_dir: Path) -> AsyncIterator[KernelConnection]:
    settings = HostSettings("", [], 1, 0, 0, 0, 0, 0, state_dir, None, "")
    async with local_host(settings, print) as host:
        launched = await host.spawn("bursts")
        with Context() as context:
            async with connect_kernel(context, launched.connection) as kernel:
                yield kernel


async def run_cell(kernel: KernelConnection, number: int) -> None:
    async with kernel.execute(f"print({number}); {number}") as execution:
        await execution.wait_over()
    assert execution.reply is not None, f"cell {number} lost its reply"
    if execution.reply.status == "ok":
        printed = [getattr(item, "text", "") for item in execution.outputs.items]
        assert f"{number}\n" in printed, f"cell {number} lost its output"


@pytest.mark.anyio
async def test_no_burst_stalls_and_no_reply_is_lost(tmp_path: Path) -> None:
    """Of 1000 bursts of up to 12 overlapping cells, probes and interrupts each one is answered in full (DESIGN, sending)."""
    chance = random.Random(20261122)  # noqa: S311 - the same bursts every time
    async with running_kernel(tmp_path) as kernel:
        requests = 0
        for burst in range(BURSTS):
            with anyio.fail_after(STALL_SECONDS):
                async with anyio.create_task_group() as tasks:
                    for _ in range(chance.randint(1, LARGEST_BURST)):
                        requests += 1
                        kind = chance.choices(("cell", "probe", "interrupt"), (6, 3, 1))[0]
                        if kind == "cell":
                            tasks.start_soon(run_cell, kernel, requests)
                        elif kind == "probe":
                            tasks.start_soon(kernel.probe)
                        else:
                            tasks.start_soon(kernel.interrupt)
            assert kernel.unreadable == 0, f"burst {burst}"
        assert requests > BURSTS


@pytest.mark.anyio
async def test_a_request_without_an_answer_is_noticed(tmp_path: Path) -> None:
    """Positive control: the bound above does fail a burst whose kernel does not answer."""
    async with running_kernel(tmp_path) as kernel:
        with pytest.raises(TimeoutError):
            with anyio.fail_after(0.5):
                await run_cell_for_ever(kernel)
        await kernel.interrupt()


async def run_cell_for_ever(kernel: KernelConnection) -> None:
    async with kernel.execute("import time\nwhile True: time.sleep(1)") as execution:
        await execution.wait_over()
