"""A session that floods the server with what it could not keep."""

from __future__ import annotations

import os
from pathlib import Path

import anyio
import pytest

from tests.driving import Handle, eventually, serving, stopwatch
from tests.kernels.test_descriptors import ATTACH, needs_refusal

pytestmark = pytest.mark.anyio

MB = 1_000_000
FLOODS = {
    "parts of 50 MB": "[b'x' * 50_000_000] * 40",
    "parts without end": "[b'x' * 500] * 1_000_000",
    "parts of no bytes": "[b''] * 1_000_000",
}


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("parts", FLOODS.values(), ids=FLOODS)
async def test_message_of_gigabytes_neither_fills_the_server_nor_keeps_others_waiting(
    tmp_path: Path, parts: str
) -> None:
    """Ours. libzmq took 2 GB of the first: positive control, in SECURITY.md until there were sockets of our own."""
    code = f"get_ipython().kernel.iopub_socket.send_multipart({parts}, copy=False); print('sent')"
    async with serving(tmp_path, "local") as kit, kit.session() as session, kit.session() as other:
        await other.value("1")
        before, highest, longest = resident_bytes(), 0, 0.0

        async def flood() -> None:
            await session.value(code)  # what it prints comes behind the flood, and may be late
            tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(flood)
            while True:
                with stopwatch() as passed:
                    assert await other.value("1 + 1") == "2"
                longest = max(longest, passed())
                highest = max(highest, resident_bytes())

        async def answers() -> bool:
            return await session.value("6 * 7") == "42"

        await eventually(answers)
        assert highest - before < 400 * MB
        assert longest < 2


@needs_refusal
async def test_descriptors_cannot_be_attached_to_messages(session: Handle) -> None:
    """Ours: by the code of a session that shares a container, too. Positive control: tests/kernels/test_descriptors.py."""
    found = await session.value(f"{ATTACH}\nsorted({{outcome for channel, outcome in attach() if channel}})")
    assert found == "['refused']"
