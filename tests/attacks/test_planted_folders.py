"""Another user of the machine plants what a server looks for: run folders, links to such, records, locks, containers' names.

The other user is a process with another user id. Each attack has its control: the same by this user works, or a look by
name alone would have been taken in.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from kernel_server import presence
from kernel_server.app import host_settings
from kernel_server.config import load_settings
from kernel_server.errors import HostLost
from kernel_server.hosts import rundir
from kernel_server.hosts.controlled import Owner
from kernel_server.hosts.docker import DockerHosts, HostRecord
from kernel_server.hosts.images import DEFAULT_IMAGE, FALLBACK_IMAGE
from kernel_server.hosts.orphans import RUN_DIR_LABEL
from kernel_server.hosts.rundir import abandoned, is_kept, kept_folders, parent_folder, parent_folders, read_record
from kernel_server.locks import claimed
from kernel_server.private import open_private, private_folder, write_private
from kernel_server.secret import Secret, user_secret
from tests.driving import docker_client
from tests.faults.servers import Servers

OTHER_UID = 4321
# Plants a run folder; where a second path is given, a link to that in its place. Says so, and answers at its socket.
# All is imported before it becomes a user who may not read this installation.
PLANT = """
import os, socket, sys
folder, target, record, uid = sys.argv[1:]
os.setgroups([])
os.setgid(int(uid))
os.setuid(int(uid))
if target:
    os.symlink(target, folder)
else:
    os.mkdir(folder, 0o700)
try:
    os.mkdir(folder + "/k")
except FileExistsError:
    pass
open(folder + "/host", "w").write(record)
open(folder + "/lock", "w")
listener = socket.socket(socket.AF_UNIX)
listener.bind(folder + "/k/control")
os.chmod(folder + "/k/control", 0o777)
listener.listen()
try:
    os.utime(target or folder, (0, 0))
except PermissionError:
    pass
print("planted", flush=True)
while True:
    listener.accept()
    print("taken in", flush=True)
"""


@pytest.fixture
def parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:  # pytest must not make its folder in ours
    """A folder for everybody, as /tmp is; its path is short, for the sockets in it."""
    if os.getuid() != 0:
        pytest.skip("needs root, to be another user")
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as folder:
        path = Path(folder)
        path.chmod(0o1777)
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield path


@pytest.fixture
async def servers(tmp_path: Path, docker_engine: None, anyio_backend: str) -> AsyncIterator[Servers]:
    """Starts servers that go on with each other's sessions."""
    async with AsyncExitStack() as stack:
        servers = Servers(tmp_path, stack)
        yield servers
    servers.remove_leftovers()


class Planter:
    """A process of another user that has planted a run folder."""

    def __init__(self, folder: Path, target: str = "", record: str = "{}") -> None:
        self.folder = folder
        self.to_ours = bool(target) and os.stat(target).st_uid == os.getuid()
        command = [sys.executable, "-I", "-c", PLANT, str(folder), target, record, str(OTHER_UID)]
        self.process = subprocess.Popen(command, cwd="/", stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        if (said := self.process.stdout.readline()) != "planted\n":
            pytest.fail(f"the attack failed by itself: {said}{self.end()}")

    def end(self) -> str:
        """What it has said since."""
        self.process.kill()
        said = self.process.communicate()[0]
        return str(said)


@pytest.fixture(params=["folder", "link", "link to a folder of ours"])
def planted(parent: Path, request: pytest.FixtureRequest) -> Iterator[Planter]:
    """What another user can make of the name of a run folder."""
    target = ""
    if request.param != "folder":
        kind = 0 if request.param.endswith("ours") else OTHER_UID
        (parent / "target").mkdir()
        (parent / "target").chmod(0o1777)
        os.chown(parent / "target", kind, kind)
        target = str(parent / "target")
    planter = Planter(parent / "ks-aaaaaaaa", target)
    yield planter
    if planter.process.poll() is None:
        planter.end()


def test_planted_folder_is_none_of_ours(planted: Planter, parent: Path) -> None:
    """It is not seen, not served, not claimed, not removed; nothing is made in it."""
    if planted.to_ours:
        assert planted.folder.stat().st_uid == os.getuid(), "the control: a look by its name is taken in"
    before = sorted(planted.folder.iterdir())
    assert parent in parent_folders()
    assert list(rundir.run_folders(parent)) == []
    assert kept_folders() == []
    for look in (is_kept, rundir.is_held, lambda path: read_record(path / "host")):
        with pytest.raises(OSError, match=r"\w"):
            look(planted.folder)
    with pytest.raises(OSError, match=r"\w"), rundir.taken_over(planted.folder):
        pass
    with rundir.run_folder() as folder:
        assert folder.outer.parent == parent, "the control: one of ours is made beside it"
        assert list(rundir.run_folders(parent)) == [folder.outer]
    assert sorted(planted.folder.iterdir()) == before
    assert planted.end() == ""


@pytest.mark.parametrize("target", ["ours", "theirs"])
def test_no_lock_is_made_through_a_link(parent: Path, target: str) -> None:
    """Of an abandoned folder without a lock, one is made: in the folder, and never where a link leads. The control has none."""
    victim = parent / "victim"
    victim.mkdir()
    if target == "theirs":
        os.chown(victim, OTHER_UID, OTHER_UID)
    os.utime(victim, (0, 0))
    (parent / "ks-aaaaaaaa").symlink_to(victim)
    mine = parent / "ks-bbbbbbbb"
    mine.mkdir(0o700)
    os.utime(mine, (0, 0))
    assert list(abandoned(parent)) == [mine]
    assert list(victim.iterdir()) == []
    assert list(mine.iterdir()) == [mine / "lock"]


@pytest.mark.anyio
@pytest.mark.docker
async def test_server_neither_adopts_nor_obeys_a_planted_folder(servers: Servers, parent: Path) -> None:
    """The whole attack: the instance of a real server, an answering socket, and the name of somebody's container.

    The control is the folder of a real server that was killed: that one is adopted.
    """
    first = await servers.start(XDG_RUNTIME_DIR=str(parent))
    mine = await first.begin("x = 1")
    (genuine,) = rundir.run_folders(parent)
    record = read_record(genuine / "host")
    await first.kill()
    (parent / "target").mkdir()
    (parent / "target").chmod(0o1777)
    with docker_client() as client:
        image = next(name for name in (DEFAULT_IMAGE, FALLBACK_IMAGE) if client.images(name))
        victim = client.create_container(image, "true", labels={RUN_DIR_LABEL: "/elsewhere/ks-xxxxxxxx/k"})["Id"]
        record["container_id"] = victim
        planters = [
            Planter(parent / "ks-aaaaaaaa", "", json.dumps(record)),
            Planter(parent / "ks-bbbbbbbb", str(parent / "target"), json.dumps(record)),
        ]
        try:
            second = await servers.start(XDG_RUNTIME_DIR=str(parent))
            assert await second.run(mine, "x") == "1"
            await second.begin("y = 2")
            await second.end_of_stdin()
            await second.wire.wait()
            assert victim in {found["Id"] for found in client.containers(all=True)}
        finally:
            said = [planter.end() for planter in planters]
            with suppress(Exception):
                client.remove_container(victim, force=True)
    assert said == ["", ""]


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777, 0o700])
@pytest.mark.parametrize("above", [False, True])
def test_folder_in_which_others_can_replace_entries_is_not_used(parent: Path, mode: int, above: bool) -> None:
    """A TMPDIR without the sticky bit: a folder of ours could be swapped for theirs at any time. The controls are 1777 and 700."""
    folder = parent / "p" if above else parent
    if above:
        folder.mkdir()
        os.environ["XDG_RUNTIME_DIR"] = os.environ["TMPDIR"] = str(folder)
        tempfile.tempdir = None
    parent.chmod(mode)
    is_safe = mode in (0o1777, 0o700)
    assert (parent_folder() == folder) is is_safe
    assert (folder in parent_folders()) is is_safe


def test_folder_below_one_of_another_user_is_not_used(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who owns a folder renames what is in it, whatever its mode."""
    (parent / "theirs" / "mine").mkdir(parents=True)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(parent / "theirs" / "mine"))
    assert parent_folder() == parent / "theirs" / "mine"
    os.chown(parent / "theirs", OTHER_UID, OTHER_UID)
    assert parent_folder() == parent


class TestRecord:
    """A host record counts with the mark that only this user's servers can make, for its folder and for all that it says."""

    @pytest.fixture
    def hosts(self, parent: Path, tmp_path: Path) -> DockerHosts:
        return DockerHosts(host_settings(load_settings({"PY_EXEC_STATE_DIR": str(tmp_path / "state")})))

    def kept(self, hosts: DockerHosts, secret: Secret | None = None, **changes: Any) -> Path:
        from dataclasses import asdict

        with rundir.run_folder() as folder:
            record = HostRecord(hosts._settings.instance, Owner.new(), "c" * 64, "image", "")
            marked = record.marked(secret or user_secret(hosts._settings.state_dir), folder.outer)
            folder.write("host", {**asdict(marked), **changes})
            folder.kept = True
        return folder.outer

    def test_counts_as_it_was_written(self, hosts: DockerHosts) -> None:
        outer = self.kept(hosts)
        assert [found.outer for found in hosts.kept()] == [outer]

    @pytest.mark.parametrize(
        "changes",
        [
            {"container_id": "d" * 64},
            {"volume": "v"},
            {"owner": {"token": "t"}},
            {"mark": ""},
            {"mark": "é"},
            {"mark": 1},
        ],
    )
    def test_is_passed_over_when_it_was_changed(self, hosts: DockerHosts, changes: dict[str, Any]) -> None:
        self.kept(hosts, **changes)
        assert hosts.kept() == []

    def test_is_passed_over_with_another_secret(self, hosts: DockerHosts) -> None:
        self.kept(hosts, Secret())
        assert hosts.kept() == []

    def test_is_passed_over_in_another_folder(self, hosts: DockerHosts) -> None:
        outer = self.kept(hosts)
        outer.rename(outer.with_name("ks-bbbbbbbb"))
        assert hosts.kept() == []

    @pytest.mark.parametrize("spoil", ["chmod", "chown", "link", "fifo"])
    def test_is_passed_over_where_another_user_may_have_made_it(self, hosts: DockerHosts, spoil: str) -> None:
        outer = self.kept(hosts)
        host = outer / "host"
        if spoil == "chmod":
            host.chmod(0o666)
        elif spoil == "chown":
            os.chown(host, OTHER_UID, OTHER_UID)
        else:
            real = host.rename(outer / "real")
            host.symlink_to(real) if spoil == "link" else os.mkfifo(host)
        assert hosts.kept() == []

    @pytest.mark.anyio
    @pytest.mark.docker
    async def test_names_no_container_but_its_own(self, hosts: DockerHosts) -> None:
        """What a record names is looked at and removed only where the container's label names the folder."""
        with docker_client() as client:
            image = next(name for name in (DEFAULT_IMAGE, FALLBACK_IMAGE) if client.images(name))
            victim = str(
                client.create_container(image, "true", labels={RUN_DIR_LABEL: "/elsewhere/ks-xxxxxxxx/k"})["Id"]
            )
            try:
                outer = self.kept(hosts)
                record = HostRecord(hosts._settings.instance, Owner.new(), victim, "image", "")
                host = json.dumps(
                    {
                        **record.marked(user_secret(hosts._settings.state_dir), outer).__dict__,
                        "owner": record.owner.__dict__,
                    }
                )
                (outer / "host").write_text(host)
                (found,) = hosts.kept()
                with pytest.raises(HostLost):
                    async with found.take_over(lambda _: None):
                        pass
                assert victim in {there["Id"] for there in client.containers(all=True)}
                assert not outer.exists(), "nobody can go on with it"
            finally:
                client.remove_container(victim, force=True)


@pytest.mark.anyio
async def test_records_are_whole_for_who_reads_meanwhile(tmp_path: Path) -> None:
    """A longer record after a shorter one, and the other way round, two thousand times."""
    records = [b'{"x": "%s"}\n' % (b"y" * size) for size in (1, 100_000)]
    ended = threading.Event()

    def write() -> None:
        for number in range(2_000):
            write_private("record", folder, records[number % 2])
        ended.set()

    with private_folder(tmp_path) as folder:
        write_private("record", folder, records[0])
        writer = threading.Thread(target=write)
        writer.start()
        while not ended.is_set():
            assert (tmp_path / "record").read_bytes() in records
        writer.join()
    assert os.listdir(tmp_path) == ["record"]
    assert (tmp_path / "record").stat().st_mode & 0o777 == 0o600


def test_record_that_does_not_fit_leaves_the_one_before(small_disk: Path) -> None:
    """The disk is full: the error says so, and nothing half is left."""
    with private_folder(small_disk, make=True) as folder:
        write_private("record", folder, b"old")
        with pytest.raises(OSError, match="No space"):
            write_private("record", folder, bytes(1 << 20))
    assert (small_disk / "record").read_bytes() == b"old"
    assert os.listdir(small_disk) == ["record"]


class TestStateFolder:
    """Locks, announcements and the secret: in the state folder, which somebody may have put where others write."""

    @pytest.mark.parametrize("spoil", ["link", "chown", "fifo"])
    def test_lock_of_another_is_not_claimed(self, tmp_path: Path, spoil: str) -> None:
        lock = tmp_path / "lock"
        lock.touch()
        with claimed(lock):
            pass
        if spoil == "chown":
            if os.getuid() != 0:
                pytest.skip("needs root")
            os.chown(lock, OTHER_UID, OTHER_UID)
        else:
            real = lock.rename(tmp_path / "real")
            lock.symlink_to(real) if spoil == "link" else os.mkfifo(lock)
        with pytest.raises(OSError, match=r"\w"), claimed(lock):
            pass

    def test_announcement_of_another_is_not_shown(self, tmp_path: Path) -> None:
        if os.getuid() != 0:
            pytest.skip("needs root")
        with presence.announced(tmp_path / "servers", "docker") as announce:
            announce(["a"])
            assert len(presence.servers(tmp_path / "servers")) == 1
            (path,) = (tmp_path / "servers").iterdir()
            os.chown(path, OTHER_UID, OTHER_UID)
            assert presence.servers(tmp_path / "servers") == []

    def test_secret_is_one_for_all_servers_and_for_nobody_else(self, tmp_path: Path) -> None:
        found: list[str] = []
        threads = [threading.Thread(target=lambda: found.append(user_secret(tmp_path).mark("x"))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 8
        assert len(set(found)) == 1
        assert os.listdir(tmp_path / "keys") == ["secret"]
        assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700
        assert (tmp_path / "keys/secret").stat().st_mode & 0o777 == 0o600
        assert user_secret(tmp_path / "other").mark("x") not in found
        (tmp_path / "keys/secret").chmod(0o666)
        assert user_secret(tmp_path).mark("x") not in found, "somebody else may have written it"

    def test_parts_of_a_mark_do_not_run_into_each_other(self) -> None:
        secret = Secret(b"key")
        assert secret.mark("ab", "c") != secret.mark("a", "bc")
        assert secret.has_made(secret.mark("ab", "c"), "ab", "c")
        assert not secret.has_made(secret.mark("ab", "c"), "ab", "c", "")


def test_private_file_is_no_fifo_and_no_link(tmp_path: Path) -> None:
    """Neither waits for somebody to write."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("/etc/passwd")
    with private_folder(tmp_path) as folder:
        for name in ("fifo", "link"):
            with pytest.raises(OSError, match=r"\w"):
                open_private(name, folder)
