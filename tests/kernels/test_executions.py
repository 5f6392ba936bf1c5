"""When a cell is over: its reply is in, and what it has put out."""

from __future__ import annotations

import time

import anyio
import pytest

from kernel_server.kernels import executions
from kernel_server.kernels.executions import Execution
from kernel_server.kernels.outputs import MAX_OUTPUTS

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


async def test_time_in_which_others_are_read_is_no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours: where many sessions flood, what one of them put out is read late; none of it is lost for that."""
    for grace in ("IDLE_GRACE_SECONDS", "MAX_GRACE_SECONDS"):
        monkeypatch.setattr(executions, grace, 0.05)
    execution = Execution("1", held=time.monotonic)
    execution.take_reply(REPLY, {})
    with anyio.move_on_after(0.5):
        await execution.wait_over()
    assert not execution.over.is_set()
    execution.idle.set()
    with anyio.fail_after(SECONDS):
        await execution.wait_over()
    assert execution.over.is_set()


def test_pages_beyond_what_is_kept_are_counted_only() -> None:
    """Ours: 99 000 of them held up the server for a second."""
    execution = Execution("1")
    execution.take_reply({**REPLY, "payload": [{"source": "page", "data": {}}] * (MAX_OUTPUTS + 7)}, {})
    assert (len(execution.outputs.items), execution.outputs.dropped) == (MAX_OUTPUTS, 7)
