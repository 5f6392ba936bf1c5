"""What a session holds, as the kernel host sees it; asked for in a session, where nothing else belongs to its user."""

from __future__ import annotations

import ast
from collections.abc import AsyncIterator

import pytest

from tests.driving import Handle, Kit, in_own_task, kernel_host_given, serving

pytestmark = [pytest.mark.anyio, pytest.mark.docker]

PRELUDE = """
import ctypes, mmap, os, signal, subprocess, sys
SIZE = 50_000_000
def held():
    code = (
        "import os, sys; sys.path.insert(0, '/opt/kernel_server')\\n"
        "from kernel_host.holdings import Holdings\\nfrom kernel_host.usage import processes_by_uid\\n"
        "holdings = Holdings(os.getuid(), processes_by_uid()[os.getuid()], os.stat('.').st_dev)\\n"
        "print(*holdings.in_memory(), holdings.on_disk(['.']).bytes, holdings.in_folder('/dev/shm').least)"
    )
    return [float(size) / 1e6 for size in subprocess.check_output([sys.executable, '-c', code]).split()]
def fork(count):
    return [os.fork() or signal.pause() for _ in range(count)]
def file(path, size=SIZE):
    with open(path, 'wb') as made: made.write(bytes(size))
    return path
def mapped(path):
    with open(path, 'r+b') as opened: made = mmap.mmap(opened.fileno(), 0)
    return made if made[::4096] else None
"""


@pytest.fixture(scope="module")
async def server(
    docker_engine: None, anyio_backend: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Kit]:
    """Without the filter of system calls: a session can then hold memory in every way."""
    with kernel_host_given({"walls": []}):
        async with in_own_task(serving(tmp_path_factory.mktemp("holdings"), "docker")) as kit:
            yield kit


@pytest.fixture
async def docker_session(server: Kit) -> AsyncIterator[Handle]:
    async with server.session() as session:
        yield session


ABOUT = 8  # MB: what else processes do


@pytest.mark.parametrize(
    ("code", "memory", "disk", "shm"),
    [
        ("kept = b'x' * SIZE", 50, 0, 0),
        ("fork(10)", 0, 0, 0),
        ("kept = b'x' * SIZE; fork(10)", 50, 0, 0),
        ("one = os.memfd_create('x'); os.write(one, bytes(SIZE)); fork(3)", 50, 0, 0),
        ("kept = mmap.mmap(-1, SIZE); kept[:] = bytes(SIZE); fork(3)", 50, 0, 0),
        ("kept = mapped(file('/dev/shm/x')); fork(3)", 50, 0, 50),
        ("kept = open(file('/dev/shm/x')); os.unlink('/dev/shm/x'); fork(3)", 50, 0, 50),
        ("kept = mapped(file('/dev/shm/x')); os.unlink('/dev/shm/x')", 50, 0, 50),
        ("kept = mapped(file('x'))", 0, 50, 0),
        ("kept = open(file('x')); os.unlink('x'); fork(3)", 0, 50, 0),
        ("file('x'); [os.link('x', f'x{n}') for n in range(5)]", 0, 50, 0),
        ("[file(f'/dev/shm/{n}', 0) for n in range(14_000)]", 14, 0, 0),
    ],
    ids=[
        "memory",
        "forks",
        "memory before forks",
        "memfd",
        "shared mapping",
        "mapped file in memory",
        "open file in memory without a name",
        "mapped file in memory without a name",
        "mapped file on disk",
        "open file on disk without a name",
        "file of five names",
        "empty files in memory",
    ],
)
async def test_everything_counts_once_where_it_lies(
    docker_session: Handle, code: str, memory: int, disk: int, shm: int
) -> None:
    """Issue 4: of several processes or descriptors too; a cache of the disk is not memory that a session holds."""
    await docker_session.value(f"{PRELUDE}before = held()")
    await docker_session.value(f"{code};")
    after = await docker_session.value("[size - old for size, old in zip(held(), before)]")
    least, _, on_disk, in_folder = ast.literal_eval(after)
    assert [least, on_disk, in_folder] == [pytest.approx(size, abs=ABOUT) for size in (memory, disk, shm)]


async def test_process_that_cannot_be_looked_into_may_hold_anything(docker_session: Handle) -> None:
    """Ours: prctl(2), PR_SET_DUMPABLE."""
    assert await docker_session.value(f"{PRELUDE}held()[1] < float('inf')") == "True"
    await docker_session.run("if not os.fork(): ctypes.CDLL(None).prctl(4, 0, 0, 0, 0); signal.pause()")
    assert await docker_session.value("held()[1] == float('inf')") == "True"
