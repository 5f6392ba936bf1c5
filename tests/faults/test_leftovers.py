"""What a server leaves that is killed between two steps, the next one removes (issue 5: 0 containers, folders)."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest

from kernel_server.files.rules import TEMPORARY_PREFIX, Rules
from kernel_server.files.transfer import write_text
from kernel_server.hosts.control import connect_control
from kernel_server.hosts.engine import Engine
from kernel_server.hosts.handles import Handles
from kernel_server.hosts.orphans import RUN_DIR_LABEL, remove_stopped
from kernel_server.hosts.rundir import HOST_RECORD, abandoned, run_folder
from kernel_server.locks import claimed
from kernel_server.secret import Secret
from tests.clients.wire import containers_of
from tests.driving import docker_client, eventually, serving
from tests.faults.servers import Servers


@pytest.fixture
def parent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for run folders; its path is short, for the sockets in it."""
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield Path(folder)


@pytest.fixture
def engine(docker_engine: None) -> Iterator[Engine]:
    connected = Engine.connect()
    yield connected
    connected.close()


def make_folder(parent: Path, name: str, *files: str) -> Path:
    """A run folder as it looks some time after its server has been killed."""
    folder = parent / f"ks-{name}"
    folder.mkdir()
    for file in files:
        (folder / file).touch()
    os.utime(folder, (0, 0))
    return folder


@pytest.mark.parametrize("files", [(), ("lock",), (HOST_RECORD,)], ids=["being made", "with a lock", "being removed"])
def test_run_folder_of_a_killed_server_goes_with_the_next_one(parent: Path, files: tuple[str, ...]) -> None:
    """Ours: in whatever state it was left, with or without its lock."""
    left = make_folder(parent, "aaaaaaaa", *files)
    with run_folder():
        assert not left.exists()


@pytest.mark.parametrize("name", ["report.csv", "locks", "host.txt", "session-", "K"])
def test_folder_of_the_user_with_such_a_name_is_left_alone(parent: Path, name: str) -> None:
    """Ours: nothing goes for its name. The control is the one beside it, which has what servers put there."""
    users = make_folder(parent, "reports0", "lock", name)
    left = make_folder(parent, "aaaaaaaa", "lock", "session-0a", ".new-0a")
    assert list(abandoned(parent)) == [left]
    with run_folder():
        assert users.exists()
        assert not left.exists()


def test_run_folder_that_is_being_made_is_left_alone(parent: Path) -> None:
    """Ours: its server has not locked it yet. The other way round, the one above goes."""
    young = make_folder(parent, "aaaaaaaa")
    os.utime(young)
    assert list(abandoned(parent)) == []


@pytest.mark.docker
def test_container_that_was_made_and_never_started_goes_with_the_next_one(parent: Path, engine: Engine) -> None:
    """Issue 5: its server was killed in between, and nothing in it can end it. One whose server lives stays."""
    with docker_client() as client, ExitStack() as stack:
        made = [make_container(client, make_folder(parent, name, "lock"), stack) for name in ("aaaaaaaa", "bbbbbbbb")]
        with claimed(parent / "ks-aaaaaaaa" / "lock"):
            remove_stopped(engine)
            left = {found["Id"] for found in client.containers(all=True)}
    assert [container in left for container in made] == [True, False]


def make_container(client: Any, outer: Path, stack: ExitStack) -> str:
    image = client.images()[0]["Id"]
    made = str(client.create_container(image, "true", labels={RUN_DIR_LABEL: f"{outer}/k"})["Id"])

    def remove() -> None:
        if made in {found["Id"] for found in client.containers(all=True)}:
            client.remove_container(made, force=True)

    stack.callback(remove)
    return made


@pytest.mark.parametrize("spoil", ["", "name", "mark", "secret", "link"])
def test_unfinished_copy_of_a_killed_server_goes_with_the_next_copy(tmp_path: Path, spoil: str) -> None:
    """Ours: WORKDIR_OUT belongs to the user. A copy that another server is making stays, and so does what only looks like one."""
    rules = Rules(secret=Secret(b"of this user"))
    left, other = (tmp_path / f"{TEMPORARY_PREFIX}{n * 8}{rules.secret.mark('copy', n * 8)[:8]}" for n in "ab")
    for path in (left, other):
        path.mkdir()
        (path / "item").write_text("half")
        os.utime(path, (0, 0))
    if spoil == "name":
        left = left.rename(tmp_path / f"{TEMPORARY_PREFIX}mine")
    elif spoil == "mark":
        left = left.rename(tmp_path / f"{TEMPORARY_PREFIX}{'c' * 8}{left.name[-8:]}")
    elif spoil == "secret":
        rules = Rules(secret=Secret(b"of another one"))
    elif spoil == "link":
        (tmp_path / "away").symlink_to(left.rename(tmp_path / "users"))
        left = (tmp_path / "away").rename(left)
    folder, copying = os.open(tmp_path, os.O_DIRECTORY), os.open(other, os.O_DIRECTORY)
    try:
        fcntl.flock(copying, fcntl.LOCK_EX)
        write_text(folder, "a.txt", "whole", "a.txt", rules)
    finally:
        os.close(copying)
        os.close(folder)
    assert (left / "item").exists() is bool(spoil)
    assert {path.name for path in tmp_path.iterdir()} - {left.name, "users"} == {other.name, "a.txt"}


@pytest.mark.anyio
@pytest.mark.parametrize("after", ["", "0" * 16, "x"])
async def test_session_cannot_make_a_folder_that_looks_like_an_unfinished_copy(tmp_path: Path, after: str) -> None:
    """Whatever the settings are; on a file system that folds case, too."""
    async with serving(tmp_path, "local", PY_EXEC_OUT_FILES="any") as kit, kit.session() as session:
        for name in (f"{TEMPORARY_PREFIX}{after}", f"{TEMPORARY_PREFIX.upper()}{after}"):
            await session.run(f"import os; os.makedirs('d/{name}/e', exist_ok=True)")
            assert "the server uses itself" in (await session.call("cp_out", container_path=f"d/{name}")).text
            reply = await session.call("cp_out", container_path="d")
            assert name in reply.text
            assert os.listdir(kit.output / "d") == []
        (kit.output / "d").rmdir()
        await session.run("os.makedirs('.hidden', exist_ok=True)")
        assert not (await session.call("cp_out", container_path=".hidden")).is_error, "the control"


@pytest.mark.anyio
@pytest.mark.docker
async def test_copy_on_its_way_in_goes_when_the_container_is_taken_over(servers: Servers) -> None:
    """Ours: gigabytes of a copy whose server was killed must not stay for as long as the container."""
    first = await servers.start()
    session_id = await first.begin("x = 1")
    await first.kill()
    (container,) = containers_of(first.pid)
    run_dir = Path(container["Labels"][RUN_DIR_LABEL])
    token = json.loads((run_dir.parent / "host").read_text().splitlines()[0])["owner"]["token"]
    async with connect_control(run_dir / "control", token, 5, anyio.Event()) as control:
        await control.request("stage", session=Handles().of(session_id), staging="left")

    def staged() -> str:
        with docker_client() as client:
            made = client.exec_create(container["Id"], ["ls", "/workspace/.staging"])
            return str(client.exec_start(made["Id"]).decode())

    assert staged() == "left\n"
    second = await servers.start()
    assert await second.run(session_id, "x") == "1"
    await eventually(lambda: staged() == "")


@pytest.mark.anyio
@pytest.mark.docker
async def test_session_that_was_closed_leaves_no_record(servers: Servers) -> None:
    """Ours: a later server would take it for one that was lost. Its kernel dies while it is being removed."""
    first = await servers.start()
    session_ids = [await first.begin("x = 1") for _ in range(4)]
    (container,) = containers_of(first.pid)
    folder = Path(container["Labels"][RUN_DIR_LABEL]).parent
    assert len(list(folder.glob("session-*"))) == len(session_ids)
    for session_id in session_ids[1:]:
        await first.text("close_session", session_id=session_id)
    assert [path.name for path in folder.glob("session-*")] == [f"session-{session_ids[0]}"]


@pytest.mark.anyio
@pytest.mark.docker
async def test_server_that_ends_leaves_no_shared_volume(servers: Servers) -> None:
    """Ours: also when the container of a session that was closed a moment ago is just being removed, and uses it."""
    settings: dict[str, Any] = {"PY_EXEC_ON_EXIT": "remove", "PY_EXEC_SESSIONS_PER_CONTAINER": "1"}
    for closed in (True, False):
        server = await servers.start(**settings)
        session_ids = [await server.begin("x = 1") for _ in range(2)]
        if closed:
            for session_id in session_ids:
                await server.text("close_session", session_id=session_id)
        await server.end_of_stdin()
        await server.wire.wait()
        assert list((servers.state / "volumes").iterdir()) == []
