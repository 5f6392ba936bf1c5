"""What one session does to the others of its container: they answer, and keep what they have. A real container.

Each protection has a control: without it, the same attack does harm.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from kernel_server.hosts import containers, docker
from kernel_server.hosts.base import HostSettings
from kernel_server.hosts.engine import ContainerSpec
from tests.driving import Handle, Kit, Reply, eventually, in_own_task, serving, stopwatch

pytestmark = [pytest.mark.anyio, pytest.mark.docker]

ANSWER_SECONDS = 2.0  # issue 4
SETTINGS = {"PY_EXEC_MEMORY": "1500m", "PY_EXEC_SESSION_MEMORY": "1g", "PY_EXEC_WORKSPACE_SIZE": "300m"}
# The filter of system calls would keep sessions from memfd_create and System V; the supervisor has to hold without it.
WITHOUT: dict[str, dict[str, Any]] = {
    "protected": {"walls": ["landlock"]},
    "unsupervised": {"walls": ["landlock"], "supervise": False},
    "unlimited": {"limits": {}},
}
KEPT = 100_000_000  # bytes of the other session
KEEP = f"kept = bytearray(b'x') * {KEPT}"
START = "import subprocess, sys, time\ndef start(code): return subprocess.Popen([sys.executable, '-c', code])\n"

# 2 GB in processes that no limit of a process stops.
HOG = "x = [bytearray(b'x') * 1_000_000 for _ in range(30)]; import time; time.sleep(30)"
HOGS = f'{START}hogs = [start("{HOG}") for _ in range(64)]\n[hog.wait() for hog in hogs];'

# 2 GB that are in no process.
MEMFD = "import os\nfor _ in range(20):\n    held = os.memfd_create('x')\n    for _ in range(100): os.write(held, bytes(10**6))\n"
SYSTEM_V = (
    "import ctypes\nlibc = ctypes.CDLL(None)\nlibc.shmat.restype = ctypes.c_void_p\nfor _ in range(200):\n"
    "    at = libc.shmat(libc.shmget(0, 10**7, 0o1600), None, 0)\n"
    "    ctypes.memset(at, 1, 10**7)\n    libc.shmdt(ctypes.c_void_p(at))\n"
)
SHARED = "import mmap\nheld = [mmap.mmap(-1, 10**8) for _ in range(20)]\nfor block in held:\n    for at in range(0, 10**8, 4096): block[at] = 1\n"
# As MEMFD, in a process that nobody can look into; with a thread that ends all of its user that it can see.
HIDDEN = f"import ctypes; ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)\n{MEMFD}"
MURDEROUS = (
    "import os, signal, threading\ndef end_all():\n    while True:\n        try: os.kill(-1, signal.SIGKILL)\n"
    f"        except ProcessLookupError: pass\nthreading.Thread(target=end_all, daemon=True).start()\n{MEMFD}"
)


@dataclass(frozen=True)
class Pair:
    """Two sessions of a container."""

    victim: Handle
    attacker: Handle


@pytest.fixture(scope="module")
def folder(docker_engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """For folders of servers. Those that are named in WITHOUT configure their kernel host otherwise."""
    made = containers.container_spec

    def spec(settings: HostSettings, *arguments: Any) -> ContainerSpec:
        usual = made(settings, *arguments)
        changes = WITHOUT.get(settings.state_dir.parent.name, {})
        config = json.loads(usual.environment["KERNEL_HOST_CONFIG"]) | changes
        return replace(usual, environment={"KERNEL_HOST_CONFIG": json.dumps(config)})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(docker, "container_spec", spec)
        yield tmp_path_factory.mktemp("neighbours")


@pytest.fixture(scope="module")
async def server(folder: Path, anyio_backend: str) -> AsyncIterator[Kit]:
    async with in_own_task(serving(folder / "protected", "docker", **SETTINGS)) as kit:
        yield kit


@pytest.fixture(scope="module")
async def unsupervised_server(folder: Path, anyio_backend: str) -> AsyncIterator[Kit]:
    async with in_own_task(serving(folder / "unsupervised", "docker", **SETTINGS)) as kit:
        yield kit


@pytest.fixture
async def pair(server: Kit) -> AsyncIterator[Pair]:
    async with _pair(server) as pair:
        yield pair


@pytest.fixture
async def unsupervised(unsupervised_server: Kit) -> AsyncIterator[Pair]:
    """Without the supervisor."""
    async with _pair(unsupervised_server) as pair:
        yield pair


@pytest.fixture(scope="module")
async def unlimited_server(folder: Path, anyio_backend: str) -> AsyncIterator[Kit]:
    async with in_own_task(serving(folder / "unlimited", "docker", **SETTINGS)) as kit:
        yield kit


@pytest.fixture
async def unlimited(unlimited_server: Kit) -> AsyncIterator[Handle]:
    """Without resource limits."""
    async with unlimited_server.session() as session:
        yield session


@asynccontextmanager
async def _pair(kit: Kit) -> AsyncIterator[Pair]:
    async with kit.session() as victim, kit.session() as attacker:
        await victim.run(KEEP)
        yield Pair(victim, attacker)


async def beside(pair: Pair, code: str) -> Reply:
    """Runs code in a session, while the other one is asked again and again and must answer in time."""
    replies: list[Reply] = []

    async def attack() -> None:
        replies.append(await pair.attacker.run(code, wait=30))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(attack)
        while not replies:
            with stopwatch() as passed:
                assert await pair.victim.value("print(len(kept))") == str(KEPT)
                assert passed() < ANSWER_SECONDS
            await anyio.sleep(0.02)
    return replies[0]


# -- memory --------------------------------------------------------------------------------------------------------


async def test_many_small_processes_that_eat_memory(pair: Pair) -> None:
    """Issue 4: 64 small hogs in session A. The one that holds most is stopped, and told why."""
    reply = await beside(pair, HOGS)
    assert reply.status == "died"
    assert "the session held" in reply.text
    assert "PY_EXEC_MEMORY" in reply.text
    assert (await pair.attacker.run("1")).text == "1"


GROWS = "x = []\\nwhile len(x) < 500: x.append(bytearray(b'x') * 1_000_000)\\nimport time; time.sleep(30)"
SCORE = "open(f'/proc/{pid}/oom_score_adj').read().strip()"
SCORES = f"[{SCORE} for pid in (os.getpid(), growing.pid)]"


async def test_programs_go_before_kernels(pair: Pair) -> None:
    """Ours: the OOM killer may be faster than the supervisor, and took the kernel of the other session."""
    assert not (await pair.attacker.call("checkpoint")).is_error
    await pair.attacker.run(f'{START}import os\ngrowing = start("{GROWS}")')

    async def is_offered() -> bool:
        return await pair.attacker.value(SCORES) == "['800', '1000']"

    await eventually(is_offered)
    await pair.attacker.run("growing.kill(); growing.wait()")
    assert not (await pair.attacker.call("rollback")).is_error
    assert await pair.attacker.value(f"import os\npid = os.getpid()\n{SCORE}") == "'800'", "a checkpoint is no program"


ALL_SCORES = """
import glob
scores = {}
for path in glob.glob('/proc/[0-9]*/oom_score_adj'):
    name = open(path.replace('oom_score_adj', 'comm')).read().strip()
    scores.setdefault(name, []).append(int(open(path).read()))
sorted(scores.pop('sleep')), max(map(max, scores.values())), min(map(min, scores.values())) < 800
"""


async def test_decoys_go_before_kernels_and_the_kernel_host(pair: Pair) -> None:
    """Ours: without them the container ended in 2 of 22 runs of test_memory_death, with them in 0 of 40."""

    async def are_there() -> bool:
        return await pair.attacker.value(ALL_SCORES) == f"({[900] * 8}, 800, True)"

    await eventually(are_there)


@pytest.mark.parametrize(
    "code", [MEMFD, SYSTEM_V, SHARED, HIDDEN, MURDEROUS], ids=["memfd", "system v", "shared", "hidden", "murderous"]
)
async def test_memory_that_no_limit_of_a_process_sees(pair: Pair, code: str) -> None:
    """facts/security.md H6: files without a name and shared memory pass RLIMIT_DATA; also of who does not want to be seen."""
    reply = await beside(pair, code)
    assert reply.status == "died"
    assert "the session held" in reply.text
    assert (await pair.attacker.run("1")).text == "1"


@pytest.mark.parametrize("code", [HOGS, MEMFD, SYSTEM_V], ids=["processes", "memfd", "system v"])
async def test_memory_without_the_supervisor(unsupervised: Pair, code: str) -> None:
    """The control: the OOM killer takes the largest process, whoever has filled the memory."""

    async def is_lost() -> bool:
        return (await unsupervised.victim.run("print(len(kept))")).text != str(KEPT)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(unsupervised.attacker.run, code)
        await eventually(is_lost)
        tasks.cancel_scope.cancel()


async def test_second_offence_with_less_memory(pair: Pair) -> None:
    """Ours: who was stopped for much is stopped again for less, where others hold more than before."""
    assert (await beside(pair, MEMFD)).status == "died"
    await pair.victim.run("more = bytearray(b'x') * 100_000_000")
    assert (await beside(pair, MEMFD)).status == "died"


async def test_forked_processes_are_not_to_blame_for_what_they_share(pair: Pair) -> None:
    """Ours: 20 children of a kernel show as 20 times its size; the one who holds the memory is another."""
    await pair.victim.run("import os, signal\nchildren = [os.fork() or signal.pause() for _ in range(20)]")
    reply = await beside(pair, MEMFD)
    assert reply.status == "died"
    assert await pair.victim.value("[os.kill(child, 0) for child in children] == [None] * 20") == "True"


# -- limits of processes -------------------------------------------------------------------------------------------


async def test_memory_bomb_is_an_error_of_the_session(pair: Pair) -> None:
    """Issue 4: MemoryError first, with the limit; its variables stay."""
    reply = await beside(pair, "mine = 1\nx = []\nwhile True: x.append(bytearray(b'x') * 10_000_000)")
    assert reply.status == "error"
    assert "MemoryError" in reply.text
    assert "1g of memory (PY_EXEC_SESSION_MEMORY)" in reply.text
    assert await pair.attacker.value("mine") == "1"


async def test_fork_bomb(pair: Pair) -> None:
    """Issue 4: RLIMIT_NPROC; the error names the limit, and the session can be closed."""
    code = "import os, time\nwhile True:\n    if os.fork() == 0:\n        time.sleep(30)\n        os._exit(0)"
    reply = await beside(pair, code)
    assert "256 processes and threads" in reply.text
    assert not (await pair.attacker.call("close_session")).is_error


async def test_descriptors_run_out(pair: Pair) -> None:
    """Issue 4: RLIMIT_NOFILE; the session goes on, and its error can still be shown."""
    with stopwatch() as passed:
        reply = await beside(pair, "held = []\nwhile True: held.append(open('/dev/null'))")
        assert passed() < 5
    lines = reply.text.splitlines()
    assert lines[:2] == ["Traceback (most recent call last):", "Cell In[1], line 2"]
    assert lines[4] == "OSError: [Errno 24] Too many open files: '/dev/null'"
    assert reply.notes[0] == "[Limit: A process may have 4096 files open at a time.]"
    assert await pair.attacker.value("held.clear(); print('on')\n1 + 1") == "on\n2"


async def test_one_large_file(pair: Pair) -> None:
    """Issue 4: RLIMIT_FSIZE; an error with the limit, and nothing is lost."""
    reply = await beside(pair, "file = open('big', 'wb')\nwhile True: file.write(bytes(10**6))")
    assert reply.status == "error"
    assert "300m (PY_EXEC_WORKSPACE_SIZE)" in reply.text


@pytest.mark.parametrize(
    "code",
    [
        "import mmap\nlen(mmap.mmap(-1, 1_300_000_000, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))",
        "import threading\nwait = threading.Event().wait\nfor _ in range(300): threading.Thread(target=wait, daemon=True).start()",
        "len([os.open('/dev/null', os.O_RDONLY) for _ in range(5_000)])",
        "open('big', 'wb').truncate(400_000_000)",
    ],
    ids=["data", "nproc", "nofile", "fsize"],
)
async def test_without_limits_of_processes(code: str, pair: Pair, unlimited: Handle) -> None:
    """The control: the same is an error with them, and none without."""
    assert (await pair.attacker.run(f"import os\n{code}")).status == "error"
    assert (await unlimited.run(f"import os\n{code}")).status == "ok"


# -- disk ----------------------------------------------------------------------------------------------------------

FILES = "for n in range(12):\n    with open(f'part{n}', 'wb') as file: file.write(bytes(50_000_000))\n"
UNNAMED = (
    "import tempfile\nheld = [tempfile.TemporaryFile(buffering=0) for _ in range(12)]\n"
    "for file in held: file.write(bytes(50_000_000))\n"
)
WAIT = "import time; time.sleep(10)"


@pytest.mark.parametrize("code", [FILES, UNNAMED], ids=["files", "unnamed files"])
async def test_many_files_that_fill_the_disk(pair: Pair, code: str) -> None:
    """Issue 4: no limit of a process sees their sum, nor those that were removed and are open."""
    reply = await beside(pair, code + WAIT)
    assert reply.status == "died"
    assert "PY_EXEC_WORKSPACE_SIZE" in reply.text


async def test_too_many_files_stay_and_can_be_removed(pair: Pair) -> None:
    """Issue 4: who was stopped for files is not stopped again while another is, and goes on as before without them."""
    assert (await beside(pair, FILES + WAIT)).status == "died"
    await pair.attacker.run(KEEP)
    assert (await beside(Pair(pair.attacker, pair.victim), FILES + WAIT)).status == "died"
    assert await pair.attacker.value("!rm part*\nimport os\nlen(kept), os.listdir()") == f"({KEPT}, [])"
    await pair.victim.run(KEEP)
    assert (await beside(pair, FILES + WAIT)).status == "died"


async def test_disk_without_the_supervisor(unsupervised: Pair) -> None:
    """The control: twice as much as is allowed."""
    assert (await beside(unsupervised, FILES)).status == "ok"
    size = await unsupervised.attacker.value("import os\nsum(os.stat(name).st_blocks for name in os.listdir()) * 512")
    assert int(size) >= 600_000_000


# -- files in memory -----------------------------------------------------------------------------------------------

FILL = "with open('{folder}/full', 'wb', buffering=0) as file:\n    while True: file.write(bytes(10**6))"
FILL_UNNAMED = (  # memory that is mapped, of a file that has neither name nor descriptor
    "import mmap, os\nopen('{folder}/full', 'wb').truncate(260 << 20)\nwith open('{folder}/full', 'r+b') as file:\n"
    "    held = mmap.mmap(file.fileno(), 260 << 20)\nos.unlink('{folder}/full')\n"
    "for at in range(0, 250 << 20, 4096): held[at] = 1\nos.statvfs('{folder}').f_bavail"
)
USE = """
import os, time
from multiprocessing.shared_memory import SharedMemory
until = time.monotonic() + 2
while True:
    try:
        with open('{folder}/mine', 'wb') as file: file.write(bytes(30 << 20))
        break
    except OSError:
        os.unlink('{folder}/mine')
        if time.monotonic() > until: raise
        time.sleep(0.02)
os.unlink('{folder}/mine')
block = SharedMemory(create=True, size=10**6)
block.buf[:] = bytes(10**6)
block.unlink()
"""


@pytest.mark.parametrize("folder_in_memory", ["/dev/shm", "/tmp"])
@pytest.mark.parametrize("code", [FILL, FILL_UNNAMED], ids=["file", "mapped"])
async def test_full_folder_in_memory_is_soon_free_for_others(pair: Pair, code: str, folder_in_memory: str) -> None:
    """Issue 4: all sessions share it; the one that fills it is told, stopped, and what it has there is removed."""
    full = await pair.attacker.run(code.format(folder=folder_in_memory))
    assert full.status == "died" or code == FILL_UNNAMED or "[Errno 28] No space left" in full.text
    used = await pair.victim.run(USE.format(folder=folder_in_memory))
    assert used.status == "ok", used.text
    told = full.text + (await pair.attacker.run("1")).text
    assert f"the session's files in {folder_in_memory} took 2" in told
    assert await pair.attacker.value(f"import os; os.path.exists('{folder_in_memory}/full')") == "False"


async def test_full_folder_without_the_supervisor(unsupervised: Pair) -> None:
    """The control: for as long as the other session lives, there is no space."""
    full = await unsupervised.attacker.run(FILL.format(folder="/dev/shm"))
    assert "[Errno 28] No space left" in full.text
    assert "hold 256m each, for all sessions" in full.text
    used = await unsupervised.victim.run(USE.format(folder="/dev/shm"))
    assert "[Errno 28] No space left" in used.text
    mapped = await unsupervised.victim.run("block = SharedMemory(create=True, size=10**7); block.buf[:] = bytes(10**7)")
    assert "killed by SIGBUS: memory that it had mapped from a file was not there" in mapped.text


# -- processors ----------------------------------------------------------------------------------------------------

HASH = "import hashlib, threading; work = lambda: hashlib.pbkdf2_hmac('md5', b'', b'', 1 << 30)"
BUSY = f"{HASH}; threading.Thread(target=work).start(); work()"
SPIN = f'{START}hogs = [start("{BUSY}") for _ in range(4)]'
SOME_WORK = "import threading; threading.Thread(target=lambda: all(iter(lambda: True, False)), daemon=True).start()"
NICE = """
import os
threads = [int(name) for hog in hogs for name in os.listdir(f'/proc/{hog.pid}/task')]
seconds = sum(sum(map(int, open(f'/proc/{hog.pid}/stat').read().split()[13:15])) for hog in hogs) / 100
len(threads), {os.getpriority(os.PRIO_PROCESS, thread) for thread in threads}, seconds > 2
"""


async def test_many_busy_processes(pair: Pair) -> None:
    """Issue 4: processors are shared between sessions; while others want some, too, who has many waits, with every thread."""
    await pair.victim.run(SOME_WORK)
    await pair.attacker.run(SPIN)

    async def waits() -> bool:
        return (await pair.attacker.value(NICE)).startswith("(8, {19}")

    await eventually(waits, seconds=60)


async def test_many_busy_processes_without_the_supervisor(unsupervised: Pair) -> None:
    """The control: they have what all sessions start with."""
    await unsupervised.victim.run(SOME_WORK)
    await unsupervised.attacker.run(SPIN)

    async def has_worked() -> bool:
        return (await unsupervised.attacker.value(NICE)).endswith("True)")

    await eventually(has_worked, seconds=60)
    assert await unsupervised.attacker.value(NICE) == "(8, {5}, True)"
