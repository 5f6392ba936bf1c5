"""What a session leaves: nothing of it is another one's to see, and nobody is told that it is gone while it is there."""

from __future__ import annotations

import ast
from collections.abc import AsyncIterator
from functools import partial

import anyio
import pytest

from tests.attacks.test_kernel_host import PIECES
from tests.driving import Handle, Kit, eventually, in_own_task, serving

pytestmark = [pytest.mark.anyio, pytest.mark.docker, pytest.mark.one_container]

SESSIONS = 3
# With so few sessions a server has ten UIDs: the eleventh session gets that of the first one.
SETTINGS = {"PY_EXEC_SESSION_MAX": str(SESSIONS), "PY_EXEC_POOL": "0", "PY_EXEC_PRELOAD": "none"}
UIDS = 10
WORDS = "what was closed"
LEAVE = f"""
import os
for folder in ('/tmp', '/dev/shm'):
    os.makedirs(f'{{folder}}/left-{{os.getuid()}}/deep', 0o700)
    open(f'{{folder}}/left-{{os.getuid()}}/deep/file', 'w').write({WORDS!r})
    open(f'{{folder}}/key-{{os.getuid()}}', 'w').write({WORDS!r})
    os.chmod(f'{{folder}}/key-{{os.getuid()}}', 0o600)
"""
# Makes and removes files as fast as it can, where everybody's are.
CHURN = """
import os, subprocess, sys
code = '''
import os
while True:
    for folder in ("/tmp", "/dev/shm"):
        for number in range(50):
            name = f"{folder}/churn-{os.getpid()}-{number}"
            open(name, "w").close()
            os.unlink(name)
'''
churning = [subprocess.Popen([sys.executable, '-c', code]) for _ in range(4)]
"""


@pytest.fixture(scope="module")
async def kit(docker_engine: None, anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Kit]:
    async with in_own_task(serving(tmp_path_factory.mktemp("cleaning"), "docker", **SETTINGS)) as kit:
        yield kit


@pytest.fixture
async def watcher(kit: Kit) -> AsyncIterator[Handle]:
    """A session that looks at what others leave."""
    async with kit.session() as session:
        yield session


LEFT = """
import os
def left(uid):
    found = []
    for folder in ('/tmp', '/dev/shm'):
        for name in os.listdir(folder):
            try:
                if os.lstat(f'{folder}/{name}').st_uid == uid: found.append(f'{folder}/{name}')
            except FileNotFoundError:
                pass
    return found
"""


async def left(watcher: Handle, uid: int) -> list[str]:
    """Names in folders of all sessions that belong to a user."""
    return list(ast.literal_eval(await watcher.value(f"{LEFT}\nleft({uid})")))


async def test_churning_neighbour_keeps_nothing_from_being_removed(kit: Kit, watcher: Handle) -> None:
    """Finding 4: a name that was gone since the listing ended the helper, and a later session of the UID read the rest."""
    await watcher.value(CHURN)
    for _ in range(UIDS):
        async with kit.session() as closed:
            await closed.value(LEAVE)
            uid = int(await closed.value("os.getuid()"))
            assert len(await left(watcher, uid)) == 4, "the control: it is there before"
        assert await left(watcher, uid) == []


async def test_what_cannot_be_removed_yet_keeps_its_user_id(kit: Kit, watcher: Handle) -> None:
    """Finding 13: a process that does not end within 3 s left its files to whoever had the UID next, and a lie to the model."""
    slow = await kit.init()
    await slow.value(f"import os\n{PIECES}{LEAVE}")
    uid = int(await slow.value("os.getuid()"))
    # Frees 150 000 pieces at its end, for some 10 s, in which no signal ends it.
    await slow.value(
        "import subprocess, sys\nheld = pieces(150_000)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import os, sys; sys.stdin.read(); os.close(3)'], pass_fds=[held], "
        "stdin=subprocess.PIPE)\nos.dup2(held, 3)\nos.close(held);"
    )
    reply = await slow.call("close_session")
    assert not reply.is_error, reply.text
    seen = set()
    for _ in range(UIDS + 2):
        async with kit.session() as other:
            seen.add(int(await other.value("import os\nos.getuid()")))
        if await left(watcher, uid):
            assert uid not in seen

    async def is_removed() -> bool:
        return await left(watcher, uid) == []

    await eventually(is_removed, 60.0)
    if "could not" not in reply.text:  # then it was true
        assert "gone" in reply.text


async def test_last_two_of_a_family_leave_nothing(kit: Kit, watcher: Handle) -> None:
    """Closed at the same time, each left to the other what only the last one removes; the UID was the next session's."""
    closed = await kit.init()
    assert not (await closed.call("checkpoint")).is_error
    reply = await closed.call("branch_session")
    assert reply.raw.meta is not None
    (branch,) = reply.raw.meta["kernel_server/branches"]["session_ids"]
    await closed.value(LEAVE)
    uid = int(await closed.value("os.getuid()"))
    assert len(await left(watcher, uid)) == 4, "the control: it is there before"
    async with anyio.create_task_group() as tasks:
        for session_id in (closed.session_id, branch):
            tasks.start_soon(partial(kit.call, "close_session", session_id=session_id))
    assert await left(watcher, uid) == []
