"""Files under fire: a planter swaps what is copied, at full speed, while it is copied.

Sources: facts/security.md section 3 (H1, H9), section 5 (T2); issue 6, "Files under fire". `make races` does the same with
more transfers.
"""

from __future__ import annotations

import os
from pathlib import Path

import anyio
import pytest

from tests.attacks import planting
from tests.attacks.arena import LETTERS, SECRETS, asked
from tests.attacks.planting import PATTERNS
from tests.attacks.races import HANG_SECONDS, Found, control, race
from tests.attacks.transfers import OnHost, Transfers
from tests.driving import Handle, Kit, Reply, stopwatch

TRANSFERS = 10_000  # of all patterns: issue 6
CONTROL_TRIES = 400_000  # a planter that has half a processor needs many where the gap is short
SHARE = 0.2  # of the transfers that must succeed: without these, nothing would be shown
HARMLESS = "file_grows_and_shrinks"  # only takes time: the naive one comes to its limit, too
ROUNDS = 6
SERVER = ("describe", "send_file", "send_folder", "receive_file", "receive_folder", "edit", "replace", "list_files")


@pytest.fixture
def root() -> None:
    if os.getuid() != 0:
        assert not os.environ.get("CI"), "in CI, tests run as root"
        pytest.skip("only root can become a session's user")


def _check(found: Found, count: int) -> None:
    assert found.leaks == []
    assert found.errors == {}, "all that is not done is refused, with a reason for the model"
    assert found.transfers == count
    assert found.slowest < HANG_SECONDS
    assert found.succeeded.total() > SHARE * count


@pytest.mark.parametrize("pattern", PATTERNS)
def test_nothing_leaks_and_nothing_hangs_while_a_session_swaps_its_files(root: None, pattern: str) -> None:
    """T2: 0 bytes of anything not the session's, 0 writes outside, 0 hangs; what cannot be done is refused."""
    count = TRANSFERS // len(PATTERNS)
    found = race(pattern, count, Transfers)
    _check(found, count)
    assert set(found.succeeded) == set(SERVER), "every kind of transfer has succeeded"
    assert found.refused.total() > 0, "and the planter was in time"


@pytest.mark.parametrize("pattern", PATTERNS)
def test_nothing_leaks_on_the_host_while_another_program_swaps_in_workdir(root: None, pattern: str) -> None:
    """H9: planted links in WORKDIR_IN and WORKDIR_OUT, swapped while files are copied, lead nowhere."""
    count = TRANSFERS // len(PATTERNS) // 2
    _check(race(pattern, count, OnHost), count)


@pytest.mark.parametrize("pattern", [pattern for pattern in PATTERNS if pattern != HARMLESS])
def test_the_same_planter_gets_the_better_of_who_looks_first_and_then_opens(root: None, pattern: str) -> None:
    """The positive control of both: the races are real. It stops when it has lost a few, mostly within 10 000 tries."""
    assert control(pattern, CONTROL_TRIES).leaks


# -- through the whole server -----------------------------------------------------------------------------------------

VICTIM = f"""
import os, pathlib
secrets = {SECRETS!r}
os.umask(0)
for name in ('x', 'folder/x', 'folder/d/x', 'secret', 'locked', 'folder/only-there'):
    path = pathlib.Path('/tmp/victim', name)
    path.parent.mkdir(parents=True, exist_ok=True)
    _ = path.write_bytes(secrets)
tree = lambda: sorted((str(path), path.is_file() and path.read_bytes()) for path in pathlib.Path('/tmp/victim').rglob('*'))
before = tree()
"""


class _Copies:
    """Calls of all tools that move files, with what a planter swaps meanwhile."""

    def __init__(self, session: Handle) -> None:
        self._session = session
        self.succeeded, self.refused, self.slowest = 0, 0, 0.0

    async def of(self, pattern: str, number: int) -> None:
        file, copy = asked(pattern), f"{pattern}-{number}"
        for tool, arguments in (
            ("cp_out", {"container_path": file, "local_path": f"{copy}-file"}),
            ("cp_in", {"local_path": "new", "container_path": file}),
            ("cp_out", {"container_path": pattern, "local_path": f"{copy}-folder"}),
            ("edit_file", {"container_path": file, "content": "new now"}),
            ("edit_file", {"container_path": file, "content": "one", "old": "now"}),
            ("cp_in", {"local_path": "folder", "container_path": pattern}),
            ("list_files", {"path": pattern}),
        ):
            with stopwatch() as seconds:
                self._count(await self._session.call(tool, **arguments))
            self.slowest = max(self.slowest, seconds())

    def _count(self, reply: Reply) -> None:
        if reply.is_error:
            assert "failed" not in reply.text, f"no reason: {reply.text}"
            self.refused += 1
        else:
            self.succeeded += 1
        assert "only-there" not in reply.text


@pytest.mark.anyio
@pytest.mark.docker
@pytest.mark.one_container
async def test_nothing_leaks_through_the_server_while_session_code_swaps(docker_kit: Kit) -> None:
    """T2, through client, server and engine: the victim's files are in /tmp, where every session may read and write them."""
    (docker_kit.input / "planting.py").write_bytes(Path(planting.__file__).read_bytes())
    (docker_kit.input / "new").write_text("new")
    (docker_kit.input / "folder").mkdir()
    (docker_kit.input / "folder/x").write_text("new")
    async with docker_kit.session() as victim, docker_kit.session() as attacker:
        await victim.value(VICTIM)
        await attacker.call("cp_in", local_path="planting.py")
        await attacker.value("import subprocess, sys, planting")
        copies = _Copies(attacker)
        for pattern in PATTERNS:
            depth = planting.DEPTH + 1
            await attacker.value(
                f"planting.make_own('{pattern}', {depth})\n"
                f"planter = subprocess.Popen([sys.executable, 'planting.py', '{pattern}', '.', '/tmp/victim'])"
            )
            for number in range(ROUNDS):
                await copies.of(pattern, number)
            assert await attacker.value("alive = planter.poll() is None; planter.kill(); alive") == "True"
        assert await victim.value("tree() == before") == "True"
        await victim.run("import shutil; shutil.rmtree('/tmp/victim')")
    assert copies.slowest < HANG_SECONDS
    assert copies.succeeded > SHARE * (copies.succeeded + copies.refused)
    assert copies.refused > 0
    _check_copied(docker_kit.output)


def _check_copied(folder: Path) -> None:
    found = list(folder.rglob("*"))
    assert found
    for path in found:
        assert not path.is_symlink()
        assert path.is_dir() or not path.read_bytes().translate(None, LETTERS), path
    assert not [path for path in found if path.name == "only-there"]


@pytest.mark.anyio
@pytest.mark.docker
async def test_session_can_neither_stop_nor_kill_what_copies_its_files(docker_session: Handle) -> None:
    """Ours: a call would wait for a quarter of an hour for one that is stopped."""
    stopper = (
        "import os, signal\n"
        "spared = os.getpid(), os.getppid()\n"
        "open('begun', 'w').close()\n"
        "while True:\n"
        "    for name in filter(str.isdigit, os.listdir('/proc')):\n"
        "        try: int(name) in spared or os.kill(int(name), signal.SIGSTOP)\n"
        "        except OSError: pass\n"
    )
    await docker_session.run(f"import subprocess, sys\nstopper = subprocess.Popen([sys.executable, '-c', {stopper!r}])")
    await docker_session.wait_for_file("begun")
    with anyio.fail_after(HANG_SECONDS):
        for number in range(10):
            copied = await docker_session.call("cp_out", container_path="begun", local_path=f"copy-{number}")
            assert not copied.is_error, copied.text
            assert not (await docker_session.call("edit_file", container_path="x", content="new")).is_error
            assert not (await docker_session.call("list_files")).is_error
    assert await docker_session.value("stopper.kill(); 'goes on'") == "'goes on'"
