"""When a cell is over: its reply is in, and what it has put out."""

from __future__ import annotations

import anyio
import pytest

from kernel_server.kernels import executions
from kernel_server.kernels.executions import Execution

pytestmark = pytest.mark.anyio

SECONDS = 10.0
REPLY = {"status": "ok", "execution_count": 1}


async def test_idle_is_waited_for_as_long_as_output_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours: the reply overtakes large outputs, which others must not wait for; none of them is lost for that."""
    monkeypatch.setattr(executions, "IDLE_GRACE_SECONDS", 0.2)
    execution = Execution("1")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(execution.wait_over)
        execution.take_reply(REPLY, {})
        for _ in range(10):
            await anyio.sleep(0.05)
            execution.received += 1
        assert not execution.over.is_set()
        execution.idle.set()
        with anyio.fail_after(SECONDS):
            await execution.over.wait()


@pytest.mark.parametrize("putting_out", [False, True])
async def test_idle_that_never_comes_is_given_up(monkeypatch: pytest.MonkeyPatch, putting_out: bool) -> None:
    """Ours: also where a kernel puts out without end."""
    monkeypatch.setattr(executions, "IDLE_GRACE_SECONDS", 0.1 if not putting_out else SECONDS)
    monkeypatch.setattr(executions, "MAX_GRACE_SECONDS", 0.3 if putting_out else SECONDS)
    execution = Execution("1")
    execution.take_reply(REPLY, {})

    async def put_out() -> None:
        while putting_out:
            execution.received += 1
            await anyio.sleep(0.01)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(put_out)
        with anyio.fail_after(SECONDS / 2):
            await execution.wait_over()
        tasks.cancel_scope.cancel()
    assert execution.over.is_set()
