"""An interrupt stops code, and harms nothing else."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from kernel_server.kernels.connection import KernelConnection
from kernel_server.kernels.outputs import Stream
from tests.kernels.test_bursts import running_kernel

pytestmark = pytest.mark.anyio

TRIES = 40


async def printed(kernel: KernelConnection, code: str) -> str:
    async with kernel.execute(code) as execution:
        await execution.wait_over()
    return "".join(item.text for item in execution.outputs.items if isinstance(item, Stream))


async def test_thread_that_is_asked_for_is_not_taken_for_dead(tmp_path: Path) -> None:
    """Ours: until 3.12, Python marks a thread as stopped if an exception comes while it is asked whether it lives.

    ipykernel asks so of the thread that sends output. Without the precaution, the first tries fail.
    """
    async with running_kernel(tmp_path) as kernel:
        await printed(
            kernel,
            "import threading, time\nthread = threading.Thread(target=time.sleep, args=(600,), daemon=True)\nthread.start()",
        )
        for _ in range(TRIES):
            async with kernel.execute("while True: thread.is_alive()") as execution:
                await execution.begun.wait()
                await anyio.sleep(0.01)
                await kernel.interrupt()
                with anyio.fail_after(10):
                    await execution.wait_over()
            assert execution.reply is not None
            assert execution.reply.error is not None
            assert execution.reply.error.ename == "KeyboardInterrupt"
            assert await printed(kernel, "print(thread.is_alive())") == "True\n"


async def test_join_of_a_thread_is_interrupted(tmp_path: Path) -> None:
    """The other way round: waiting for a thread goes through the same function of Python's."""
    async with running_kernel(tmp_path) as kernel:
        code = "import threading, time\nthread = threading.Thread(target=time.sleep, args=(600,), daemon=True)\nthread.start()\nthread.join()"
        async with kernel.execute(code) as execution:
            await execution.begun.wait()
            await anyio.sleep(0.3)
            await kernel.interrupt()
            with anyio.fail_after(5):
                await execution.wait_over()
        assert execution.reply is not None
        assert execution.reply.status == "error"
