"""The Docker host by itself: what is promised about its container, UIDs and run folder."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from kernel_server.app import host_settings
from kernel_server.config import load_settings
from kernel_server.hosts import docker as docker_module
from kernel_server.hosts.controlled import ControlledHost
from kernel_server.hosts.docker import docker_host
from kernel_server.hosts.engine import Engine
from kernel_server.hosts.rundir import RunFolder, run_folder
from kernel_server.hosts.uids import LARGE
from kernel_server.kernels.connection import connect_kernel
from kernel_server.kernels.outputs import Stream
from kernel_server.kernels.sockets import Context
from tests.driving import containers_of_this_process
from tests.hosts.test_images import JUPYTER_LIKE, PLAIN_DEBIAN, _derive

pytestmark = [pytest.mark.docker, pytest.mark.anyio]

OTHER_UID = 1234


@asynccontextmanager
async def started(**settings: str) -> AsyncIterator[ControlledHost]:
    async with docker_host(host_settings(load_settings(settings)), print) as host:
        yield host


async def printed(host: ControlledHost, session_id: str, code: str) -> str:
    launched = await host.spawn(session_id)
    with Context() as context:
        async with connect_kernel(context, launched.connection) as kernel, kernel.execute(code) as execution:
            await execution.wait_over()
    return "".join(item.text for item in execution.outputs.items if isinstance(item, Stream))


@contextmanager
def run_folder_of_another_user() -> Iterator[RunFolder]:
    with run_folder() as folder:
        for path in (folder.path, folder.outer):
            os.chown(path, OTHER_UID, OTHER_UID)
        yield folder


async def test_what_ends_a_kernel_does_not_reach_the_next_one() -> None:
    """Ours: a kill takes a moment, and the kernel's death has the next one asked for meanwhile."""
    async with started() as host:
        await host.spawn("k")
        for _ in range(5):
            await host.kill("k")
            async with anyio.create_task_group() as tasks:
                for _ in range(8):
                    tasks.start_soon(host.kill, "k")
                await anyio.wait_all_tasks_blocked()
                launched = await host.spawn("k")
            with Context() as context, anyio.fail_after(10):
                async with connect_kernel(context, launched.connection) as kernel, kernel.execute("print(1)") as said:
                    await said.wait_over()
            assert [item.text for item in said.outputs.items if isinstance(item, Stream)] == ["1\n"]


async def test_two_servers_have_uid_ranges_of_their_own() -> None:
    """RLIMIT_NPROC counts a UID across containers, so no two servers may share one (facts/security.md, H2)."""
    code = "import os; print(os.getuid())"
    async with started() as first, started() as second:
        uids = {int(await printed(first, "a" * 32, code)), int(await printed(second, "b" * 32, code))}
    assert len(uids) == 2
    assert all(uid >= LARGE.first for uid in uids)


async def test_all_in_the_run_folder_belongs_to_the_servers_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is not root must be able to connect to, and to remove, what kernel_host leaves (DESIGN)."""
    if os.getuid() != 0:
        pytest.skip("needs root to hand the run folder to another user")
    monkeypatch.setattr(docker_module, "_uid_inside", lambda _engine: OTHER_UID)
    monkeypatch.setattr(docker_module, "run_folder", run_folder_of_another_user)
    async with started() as host:
        assert await printed(host, "c" * 32, "print('hello')") == "hello\n"
        found = list(host.folder.path.rglob("*"))
        assert len([path for path in found if path.is_socket()]) == 5
        assert {path.lstat().st_uid for path in found} == {OTHER_UID}


async def test_preload_names_what_the_image_has() -> None:
    """PY_EXEC_PRELOAD: missing modules are passed over, others are there at once."""
    async with started(PY_EXEC_PRELOAD="no_such_module,json,numpy") as host:
        assert host.description.preloaded == ["json", "numpy"]
        assert await printed(host, "d" * 32, "import sys; print('numpy' in sys.modules)") == "True\n"


async def test_a_session_starts_with_random_numbers_of_its_own() -> None:
    """What a fork would give to every session alike is undone."""
    code = "import random, numpy; print(random.random(), numpy.random.rand())"
    async with started() as host:
        numbers = {await printed(host, name * 32, code) for name in "ef"}
    assert len({number for line in numbers for number in line.split()}) == 4


async def test_the_run_folder_is_gone_afterwards() -> None:
    """Nothing is left on the host."""
    async with started() as host:
        outer = host.folder.outer
        assert outer.is_dir()
    assert not Path(outer).exists()


def connections() -> int:
    """This process's to the engine."""
    return sum("socket:" in os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink())


async def test_no_connection_is_left() -> None:
    """The garbage collector found one to the output of a container, and warned in the middle of another test."""
    engine = Engine.connect()
    before_it = set(containers_of_this_process())
    async with started():
        (container,) = set(containers_of_this_process()) - before_it
        engine.attach(container).close()  # another connection of this client is kept for later
        before = connections()
        output = engine.attach(container)
        assert connections() > before
        output.close()  # nobody has read it
        assert connections() == before
        output = engine.attach(container)
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(partial(anyio.to_thread.run_sync, partial(list, output), abandon_on_cancel=True))
                await anyio.sleep(0.1)
                output.close()  # while it is read
                pipes = [os.pipe() for _ in range(5)]  # which get the number of the descriptor
        assert connections() == before
        for end in sum(pipes, ()):
            os.close(end)
    engine.close()


@pytest.mark.parametrize(
    ("name", "instructions", "code", "expected"),
    [
        ("plain", PLAIN_DEBIAN, "import importlib.util as u; print(u.find_spec('numpy'))", "None\n"),
        ("jupyter", JUPYTER_LIKE, "import image_module, path_module; print(image_module.answer)", "42\n"),
    ],
)
async def test_kernels_run_in_any_image(name: str, instructions: str, code: str, expected: str) -> None:
    """Issue 2: plain Debian; conda on PATH, with a USER and an ENTRYPOINT of its own; its packages are importable."""
    engine = Engine.connect()
    try:
        image = _derive(engine, name, instructions)
    finally:
        engine.close()
    async with started(DOCKER_IMAGE=image) as host:
        assert await printed(host, "0" * 32, code) == expected
        assert await printed(host, "1" * 32, "import os; print(os.getuid() >= 20000, os.listdir())") == "True []\n"
