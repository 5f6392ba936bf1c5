"""The local host: kernel_host as a plain child process, without an engine."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from kernel_server.errors import FileError, HostLost
from kernel_server.hosts.base import HostSettings
from kernel_server.hosts.controlled import ControlledHost
from kernel_server.hosts.local import local_host
from tests.driving import eventually

pytestmark = pytest.mark.anyio

REQUESTS = 400  # with the bug this guards against, kernel_host died within 50
AT_A_TIME = 8


@asynccontextmanager
async def started(tmp_path: Path) -> AsyncIterator[ControlledHost]:
    async with local_host(HostSettings("", [], 1, 0, 0, 0, 0, 0, tmp_path, None, ""), print) as host:
        yield host


async def test_kernel_host_survives_many_short_helpers(tmp_path: Path) -> None:
    """A helper's last words and its death can arrive in one batch of events; that once ended kernel_host."""
    async with started(tmp_path) as host:
        await host.spawn("s")
        assert await host.edit("s", "a.txt", "hello", "")

        async def describe() -> None:
            for _ in range(REQUESTS // AT_A_TIME):
                assert await host.describe("s", "a.txt") == ("file", 5)

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                for _ in range(AT_A_TIME):
                    tasks.start_soon(describe)


async def test_a_refusal_names_the_path_and_the_reason(tmp_path: Path) -> None:
    """What a helper refuses arrives as a FileError."""
    async with started(tmp_path) as host:
        await host.spawn("s")
        with pytest.raises(FileError, match=r"nothing\.txt: there is no such file"):
            await host.describe("s", "nothing.txt")


async def test_its_end_is_noticed_by_those_who_wait(tmp_path: Path) -> None:
    """kernel_host killed: requests fail at once instead of waiting for their deadline."""
    async with started(tmp_path) as host:
        launched = await host.spawn("s")
        parent = int(Path(f"/proc/{launched.pid}/stat").read_text(encoding="ascii").split()[3])
        os.kill(parent, 9)
        with anyio.fail_after(5), pytest.raises(HostLost):
            while True:
                await host.describe("s", ".")
        with anyio.fail_after(5):  # and its kernels go with it
            await eventually(lambda: not Path(f"/proc/{launched.pid}/cmdline").exists())
