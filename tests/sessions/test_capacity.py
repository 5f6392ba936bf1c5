"""PY_EXEC_SESSIONS_PER_CONTAINER: who shares a container, what that means for the others, and what is left. Real ones."""

from __future__ import annotations

import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients.wire import ROOT, wire_server
from tests.driving import Kit, containers_of_this_process, docker_client, eventually, serving

pytestmark = [pytest.mark.anyio, pytest.mark.docker]

SHARED_PREFIX = "kernel-server-shared-"
SETTINGS: dict[str, Any] = {"PY_EXEC_PRELOAD": "none", "PY_EXEC_POOL": "0", "PY_EXEC_SESSIONS_PER_CONTAINER": "1"}
WHERE = "import os\n(os.uname().nodename, os.getuid())"
VISIBLE = "sorted({os.stat(f'/proc/{name}').st_uid for name in os.listdir('/proc') if name.isdigit()} - {0})"


@pytest.fixture
async def kit(tmp_path: Path) -> AsyncIterator[Kit]:
    """A server with a container for each session."""
    async with serving(tmp_path, "docker", **SETTINGS) as kit:
        yield kit


def volumes() -> set[str]:
    """The volumes for shared folders that the engine has."""
    with docker_client() as client:
        found = client.volumes(filters={"name": SHARED_PREFIX})["Volumes"] or []
    return {str(volume["Name"]) for volume in found}


async def test_sessions_see_neither_host_name_nor_processes_of_each_other(kit: Kit) -> None:
    """Issue 4: `1` gives a container each. Their UIDs differ as well, since limits count them across containers."""
    first, second = await kit.init(), await kit.init()
    (name, uid), (other_name, other_uid) = [eval(await session.value(WHERE)) for session in (first, second)]  # noqa: S307
    assert name != other_name
    assert uid != other_uid
    assert await first.value(VISIBLE) == f"[{uid}]"


async def test_sessions_fill_a_container_before_there_is_another(tmp_path: Path) -> None:
    """Issue 4: at most so many in each; a place that gets free is used again while the container lives."""
    async with serving(tmp_path, "docker", **{**SETTINGS, "PY_EXEC_SESSIONS_PER_CONTAINER": "2"}) as kit:
        sessions = [await kit.init() for _ in range(3)]
        names = [(await session.value(WHERE)).split(",")[0] for session in sessions]
        assert names[0] == names[1] != names[2]
        await sessions[0].call("close_session")
        fourth = await kit.init()
        assert (await fourth.value(WHERE)).split(",")[0] == names[0]


async def test_container_goes_with_its_session(kit: Kit) -> None:
    """Issue 4: what was used is never used again."""
    before = set(containers_of_this_process())
    session = await kit.init()
    (container,) = set(containers_of_this_process()) - before
    await session.call("close_session")
    await eventually(lambda: container not in containers_of_this_process())


async def test_spare_sessions_are_started_containers(tmp_path: Path) -> None:
    """Issue 4: from a small pool of started containers; it is filled again."""
    before = set(containers_of_this_process())

    def started() -> set[str]:
        return set(containers_of_this_process()) - before

    async with serving(tmp_path, "docker", **{**SETTINGS, "PY_EXEC_POOL": "1"}) as kit:
        await kit.init()
        await eventually(lambda: len(started()) == 2)
        found: set[str] = set()

        async def has_spare() -> bool:
            found.clear()
            found.update(started())
            session = await kit.init()
            name = eval(await session.value(WHERE))[0]  # noqa: S307
            return any(container.startswith(name) for container in found)

        await eventually(has_spare)
    await eventually(lambda: not started())


async def test_end_of_one_container_is_told_to_its_session_only(kit: Kit) -> None:
    """Issue 4: one bad session must not hurt the others."""
    before = set(containers_of_this_process())
    unlucky = await kit.init()
    (container,) = set(containers_of_this_process()) - before
    other = await kit.init()
    await other.run("kept = 1")
    with docker_client() as client:
        client.kill(container)

    async def is_told() -> bool:
        return "killed or crashed" in (await unlucky.run("1")).text

    await eventually(is_told)
    assert await other.value("kept") == "1"
    assert await (await kit.init()).value("1") == "1"


async def test_shared_folder_is_common_to_all_and_written_by_none(kit: Kit) -> None:
    """DESIGN, files: /workspace/shared is for all sessions to read; it is that of a later container, too."""
    first = await kit.init()
    (kit.input / "data.txt").write_text("for all")
    assert not (await kit.call("cp_in", local_path="data.txt", container_path="/workspace/shared/data.txt")).is_error
    second = await kit.init()
    for session in (first, second):
        assert await session.value("open('/workspace/shared/data.txt').read()") == "'for all'"
        reply = await session.run("open('/workspace/shared/data.txt', 'a')")
        assert "PermissionError" in reply.text
    listed = await kit.call("cp_out", container_path="/workspace/shared/.", local_path="all")
    assert listed.text.startswith("Copied 1 file")


async def test_shared_folder_is_empty_after_a_reset(kit: Kit) -> None:
    """DESIGN, tools: reset throws away all files."""
    await kit.init()
    (kit.input / "data.txt").write_text("for all")
    await kit.call("cp_in", local_path="data.txt", container_path="/workspace/shared/data.txt")
    (old,) = _volumes_of(kit)
    assert not (await kit.call("reset")).is_error
    assert await (await kit.init()).value("import os\nos.listdir('/workspace/shared')") == "[]"
    assert old not in volumes()


async def test_nothing_is_left_at_the_end_of_the_server(tmp_path: Path) -> None:
    """Ours: a volume with a name does not go with a container."""
    before = set(containers_of_this_process())
    async with serving(tmp_path, "docker", **SETTINGS) as kit:
        await kit.init()
        (volume,) = _volumes_of(kit)
        assert volume in volumes()
    assert volume not in volumes()
    await eventually(lambda: set(containers_of_this_process()) == before)
    assert not list((tmp_path / "state" / "volumes").iterdir())


def _volumes_of(kit: Kit) -> list[str]:
    """Those that this server has taken: each is named by a locked file."""
    return [path.name for path in (kit.state / "volumes").iterdir()]


async def test_what_a_killed_server_left_is_removed_by_the_next(tmp_path: Path) -> None:
    """Ours: nobody else can; that of a server that lives stays."""
    async with wire_server([sys.executable, str(ROOT / "server.py")], tmp_path, **SETTINGS) as server:
        await server.initialize()
        await server.call("init")
        (left,) = [path.name for path in (tmp_path / "state" / "volumes").iterdir()]
        server.process.send_signal(signal.SIGKILL)
        await server.process.wait()
    assert left in volumes()
    with docker_client() as client:
        await eventually(lambda: not _users(client, left), 40)
    async with serving(tmp_path, "docker", **SETTINGS) as kit:
        await kit.init()
        assert left not in volumes()
        (own,) = _volumes_of(kit)
        async with serving(tmp_path, "docker", **SETTINGS) as second:
            await second.init()
            assert own in volumes()


def _users(client: Any, volume: str) -> Any:
    return client.containers(all=True, filters={"volume": volume})
