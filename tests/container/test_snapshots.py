"""Snapshots of a workspace, on real file systems, as a user without privileges where the tests run as root."""

from __future__ import annotations

import mmap
import os
import resource
import shutil
import signal
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_host import snapshots
from kernel_host.beneath import Refused
from kernel_host.cleaning import empty_folder
from kernel_host.copies import can_share
from kernel_host.identity import DEPUTY, acting_as
from kernel_host.snapshots import clone, drop, restore

ROOT = os.getuid() == 0
WORK, PRIVATE, STORE = "work", "private", "private/store"

Seen = dict[str, tuple[Any, ...]]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Paths are relative: on the way to the folder is one that is only root's."""
    monkeypatch.chdir(tmp_path)
    if ROOT:
        os.chown(".", DEPUTY, -1)
    with acting_as(DEPUTY) if ROOT else nullcontext():
        os.mkdir(WORK)
        os.mkdir(PRIVATE)
        yield


def take(name: str, limit_bytes: int = 0) -> snapshots.Taken:
    return snapshots.take(WORK, STORE, name, limit_bytes, PRIVATE)


@contextmanager
def seeing_all() -> Iterator[None]:
    user = os.geteuid()
    if ROOT:
        os.seteuid(0)
    try:
        yield
    finally:
        os.seteuid(user)


def copied(size: int) -> int:
    """Bytes that are copied where files cannot share them."""
    return 0 if can_share(PRIVATE) else size


def look(top: str = WORK) -> Seen:
    """What can be seen of a folder, but for inode numbers: of hard links, which names are the same file."""
    found: Seen = {}
    files: dict[int, list[str]] = {}
    with seeing_all():
        pending = [top]
        while pending:
            path = pending.pop()
            status = os.lstat(path)
            content: Any = None
            if stat.S_ISDIR(status.st_mode):
                pending.extend(f"{path}/{name}" for name in os.listdir(path))
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(status.st_mode):
                content = Path(path).read_bytes(), files.setdefault(status.st_ino, [])
                content[1].append(path[len(top) :])
            else:
                continue
            found[path[len(top) :]] = status.st_mode, status.st_mtime_ns, content
    for names in files.values():
        names.sort()
    return found


def copies(name: str, store: str = STORE) -> set[int]:
    return {entry.inode() for entry in os.scandir(f"{store}/{name}/files")}


def everything(top: str) -> list[str]:
    return sorted(os.path.join(folder, name) for folder, folders, files in os.walk(top) for name in [*folders, *files])


def put(path: str, content: bytes = b"x") -> None:
    Path(f"{WORK}/{path}").parent.mkdir(parents=True, exist_ok=True)
    Path(f"{WORK}/{path}").write_bytes(content)


def test_comes_back_as_it_was(home: None) -> None:
    """Ours: contents, modes, times, links, names; and what has come since is gone."""
    put("a/b/c", b"1")
    put(".hidden", b"2")
    put(os.fsdecode(b"\xff\n"), b"3")
    os.mkdir(f"{WORK}/empty")
    os.symlink("/etc", f"{WORK}/a/link")
    os.symlink(os.fsdecode(b"no\xffwhere"), f"{WORK}/a/dangling")
    os.link(f"{WORK}/.hidden", f"{WORK}/a/b/other name")
    os.utime(f"{WORK}/a/b/c", ns=(1, 1_234_567_891))
    os.chmod(f"{WORK}/a/b/c", 0o2640)
    before = look()
    assert take("one") == (4, copied(3), 0)
    shutil.rmtree(f"{WORK}/a")
    put("a", b"a file")
    os.unlink(f"{WORK}/.hidden")
    put(".hidden/new")
    done = restore(WORK, STORE, "one")
    assert look() == before
    assert sorted(done.changed.first) == [".hidden", "a"]
    assert done.removed.first == []
    assert {"a/b/c", "a/link", "a/b/other name"} <= set(done.created.first)
    assert take("two").bytes_copied == 0
    assert copies("two") == copies("one")


def test_what_is_the_same_is_neither_copied_nor_touched(home: None) -> None:
    """Ours: as the inodes say."""
    for number in range(50):
        put(f"{number % 7}/{number}", os.urandom(100))
    assert take("one").bytes_copied == copied(5000)
    put("3/3", b"changed")
    inodes = {path: os.stat(f"{WORK}/{path}").st_ino for path in ("3/10", "0/0")}
    assert take("two").bytes_copied == copied(len(b"changed"))
    assert len(copies("one") & copies("two")) == 49
    put("new")
    done = restore(WORK, STORE, "one")
    assert (done.changed.first, done.removed.first, done.created.first) == (["3/3"], ["new"], [])
    assert {path: os.stat(f"{WORK}/{path}").st_ino for path in inodes} == inodes
    assert take("three").bytes_copied == 0
    assert copies("three") == copies("one")


def test_lists_are_cut_and_counted(home: None) -> None:
    """Ours."""
    take("empty")
    for number in range(100):
        put(str(number))
    removed = restore(WORK, STORE, "empty").removed
    assert (len(removed.first), removed.count) == (40, 100)


def test_a_write_in_the_workspace_leaves_the_snapshot_alone(home: None) -> None:
    """Ours: neither to the file that was copied, nor to the one that came back, nor to that of a clone."""
    put("file", b"old")
    before = look()
    take("one")
    os.mkdir("branch")
    clone(STORE, "one", "branch", "private/other")
    for path in (f"{WORK}/file", "branch/file"):
        for _ in range(2):
            assert os.stat(path).st_nlink == 1
            with open(path, "r+b") as file:
                file.write(b"new")
            restore(os.path.dirname(path), STORE, "one")
            assert look(os.path.dirname(path)).keys() == before.keys()
            assert Path(path).read_bytes() == b"old"


def test_a_write_through_a_mapping_is_seen(home: None) -> None:
    """mmap(2): the ctime changes after the write and before the next write-back; ours: so it is started."""
    for name in ("file", "probe"):
        put(name, bytes(10_000))
    with open(f"{WORK}/probe", "r+b") as file, mmap.mmap(file.fileno(), 0) as probe:
        probe[0] = 1
        os.fsync(file.fileno())
        before = os.stat(f"{WORK}/probe").st_ctime_ns
        probe[0] = 2
        if os.stat(f"{WORK}/probe").st_ctime_ns == before:
            pytest.skip("this file system does not tell: tmpfs")
    with open(f"{WORK}/file", "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        for number in range(5):
            mapped[0] = number
            mapped[9_999] = number
            take(str(number))
    for number in range(5):
        restore(WORK, STORE, str(number))
        content = Path(f"{WORK}/file").read_bytes()
        assert (content[0], content[9_999]) == (number, number)


def test_locked_up_is_kept_locked_up(home: None) -> None:
    """Ours: files and folders that their owner may not read."""
    put("a/b/c", b"1")
    put("d/e", b"2")
    for path, mode in (("a/b/c", 0), ("a/b", 0o500), ("a", 0), ("d", 0o300)):
        os.chmod(f"{WORK}/{path}", mode)
    before = look() if ROOT else {}
    take("one")
    if ROOT:
        assert look() == before
    assert take("two").bytes_copied == 0
    empty_folder(WORK)
    restore(WORK, STORE, "one")
    os.chmod(f"{WORK}/a", 0o700)
    assert [stat.S_IMODE(os.stat(f"{WORK}/a/{path}").st_mode) for path in ("b", "b/c")] == [0o500, 0]
    os.chmod(f"{WORK}/a/b", 0o700)
    put("a/b/more/x")
    os.chmod(f"{WORK}/a/b/more", 0)
    os.chmod(f"{WORK}/a/b", 0o500)
    assert restore(WORK, STORE, "one").removed.first == ["a/b/more"]
    if ROOT:
        assert look() == before
    os.chmod(WORK, 0)
    restore(WORK, STORE, "one")
    assert stat.S_IMODE(os.stat(WORK).st_mode) == 0o755


def test_what_is_no_file_is_left_out_and_left_alone(home: None) -> None:
    """Ours: nothing waits for a FIFO."""
    put("x")
    os.mkfifo(f"{WORK}/fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{WORK}/socket")
        assert take("one") == (1, copied(1), 2)
        os.mkfifo(f"{WORK}/later")
        os.unlink(f"{WORK}/x")
        os.mkfifo(f"{WORK}/x")
        done = restore(WORK, STORE, "one")
    assert (done.removed.first, done.changed.first) == (["later"], ["x"])
    assert sorted(os.listdir(WORK)) == ["fifo", "socket", "x"]


def test_holes_stay_holes(home: None) -> None:
    """Ours."""
    with open(f"{WORK}/sparse", "wb") as file:
        file.seek(500_000_000)
        file.write(b"x" * 1000)
        file.truncate(1_000_000_000)
    assert take("one", 20_000_000).bytes_copied < 1_000_000
    os.unlink(f"{WORK}/sparse")
    restore(WORK, STORE, "one")
    status = os.stat(f"{WORK}/sparse")
    assert status.st_size == 1_000_000_000
    assert status.st_blocks * 512 < 1_000_000
    with open(f"{WORK}/sparse", "rb") as file:
        file.seek(499_999_999)
        assert file.read(1002) == b"\0" + b"x" * 1000 + b"\0"


def test_deeper_than_any_path(home: None) -> None:
    """Ours: path_resolution(7) allows 4096 bytes at a time."""

    def down(name: str, make: bool) -> int:
        folder = os.open(WORK, os.O_RDONLY)
        for _ in range(3000):
            if make:
                os.mkdir(name, dir_fd=folder)
            inner = os.open(name, os.O_RDONLY, dir_fd=folder)
            os.close(folder)
            folder = inner
        return folder

    try:
        bottom = down("deep", make=True)
        os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=bottom))
        os.close(bottom)
        take("one", 1_000_000_000)
        os.rename(f"{WORK}/deep", f"{WORK}/other")
        done = restore(WORK, STORE, "one")
        assert (done.removed.first, done.created.count) == (["other"], 3001)
        bottom = down("deep", make=False)
        assert os.listdir(bottom) == ["file"]
        os.close(bottom)
    finally:
        empty_folder(WORK)


def test_more_than_may_be_taken_is_refused_and_leaves_nothing(home: None) -> None:
    """Ours: what is shared counts once, what has not changed needs nothing."""
    if can_share(PRIVATE):
        pytest.skip("what is shared needs no room")
    put("a", os.urandom(1_000_000))
    take("one", 3_000_000)
    put("b", os.urandom(1_000_000))
    before = everything(PRIVATE), look()
    with pytest.raises(Refused, match=r"would copy 1\.0 MB, .* take 3\.0 MB .* may take 3\.5 MB \(PY_EXEC_WORKSPACE_S"):
        take("two", 3_500_000)
    assert (everything(PRIVATE), look()) == before
    take("two", 4_500_000)
    assert take("three", 1).bytes_copied == 0, "takes nothing"


def test_an_error_half_way_leaves_nothing(home: None) -> None:
    """Ours: setrlimit(2), RLIMIT_FSIZE stands for each error of a disk."""
    put("small", b"1")
    take("one")
    put("large", bytes(100_000))
    before = everything(PRIVATE), look()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(Refused, match=r"checkpoint two: .* file size limit"):
            take("two")
        os.mkdir("branch")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (everything(PRIVATE), look()) == before
    take("two")
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(Refused, match=r"checkpoint two: .* file size limit"):
            clone(STORE, "two", "branch", "private/other")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir("branch") + os.listdir("private/other") == []


@pytest.mark.parametrize("action", ["take", "restore", "drop"])
def test_killed_half_way(home: None, action: str) -> None:
    """Ours: the snapshots that there are stay right, the state tells no lie, the next one goes through."""
    for number in range(200):
        put(f"{number % 9}/{number}", os.urandom(50))
    kept = look()
    take("kept")
    actions: dict[str, Callable[[], Any]] = {
        "take": lambda: take("more"),
        "restore": lambda: restore(WORK, STORE, "kept"),
        "drop": lambda: drop(STORE, "more"),
    }
    for number in range(25):
        for changed in range(100):
            put(f"{changed % 9}/{changed}", os.urandom(50))
        put(f"new{number}/file")
        if action == "drop" and "more" not in snapshots.names(STORE):
            take("more")
        _killed_after(number * 600e-6 + 50e-6, actions[action])
        now = look()
        take("now")
        restore(WORK, STORE, "now")
        assert look() == now
        restore(WORK, STORE, "kept")
        assert look() == kept
        drop(STORE, "now")
        if action == "take" and "more" in snapshots.names(STORE):
            restore(WORK, STORE, "more")
            drop(STORE, "more")
    assert not [name for name in os.listdir(STORE) if name.startswith(".")]


def _killed_after(seconds: float, action: Callable[[], Any]) -> None:
    child = os.fork()
    if not child:
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, seconds)
            action()
        finally:
            os._exit(0)
    os.waitpid(child, 0)


def test_a_clone_shares_the_copies(home: None) -> None:
    """Ours: the first snapshot of a clone copies nothing that did not change."""
    put("a/b", b"1")
    put("c", b"2")
    before = look()
    take("one")
    os.mkdir("branch")
    clone(STORE, "one", "branch", "private/other")
    assert look("branch") == before
    assert copies("base", "private/other") == copies("one")
    Path("branch/c").write_bytes(b"three")
    assert snapshots.take("branch", "private/other", "next", 0, PRIVATE).bytes_copied == copied(len(b"three"))
    drop(STORE, "one")
    restore("branch", "private/other", "base")
    assert look("branch") == before
    with pytest.raises(Refused, match="empty"):
        clone("private/other", "base", "branch", "private/third")


def test_on_another_disk_it_copies(home: None) -> None:
    """Ours: link(2) and copy_file_range(2) may say EXDEV."""
    put("a", b"1" * 100_000)
    before = look()
    take("one")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as shm:
        os.mkdir(f"{shm}/branch")
        clone(STORE, "one", f"{shm}/branch", f"{shm}/store")
        assert look(f"{shm}/branch") == before
        snapshots.take(f"{shm}/branch", "private/far", "one", 0, PRIVATE)
        Path(f"{shm}/branch/a").write_bytes(b"2")
        restore(f"{shm}/branch", "private/far", "one")
        assert look(f"{shm}/branch") == before
        assert snapshots.take(f"{shm}/branch", "private/far", "two", 0, PRIVATE).bytes_copied == 0


def test_what_was_dropped_is_looked_for_in_the_others(home: None) -> None:
    """Ours: and copied where nothing has it."""
    put("a", b"1")
    take("one")
    put("b", b"23")
    take("two")
    drop(STORE, "two")
    assert take("three").bytes_copied == copied(2)
    drop(STORE, "one")
    assert take("four").bytes_copied == 0
    drop(STORE, "three")
    drop(STORE, "four")
    assert snapshots.names(STORE) == []
    assert take("five").bytes_copied == copied(3)


def test_names_that_cannot_be(home: None) -> None:
    """Ours: each says what can be done."""
    take("one")
    with pytest.raises(Refused, match="already a checkpoint 'one'"):
        take("one")
    with pytest.raises(Refused, match="no checkpoint 'two'; there are: 'one'"):
        restore(WORK, STORE, "two")
    for name in ("", ".", "..", "../x", ".unfinished", "state.json", "a/b", "\0"):
        for action in (take, lambda name: restore(WORK, STORE, name), lambda name: drop(STORE, name)):
            with pytest.raises(Refused, match="no name"):
                action(name)


@pytest.mark.parametrize("content", ["", "[]", "[1]", "{}", '[[0,"","folder",448,0],[1,"a","folder",448,0]]', None])
def test_a_store_that_was_tampered_with_is_refused(home: None, content: str | None) -> None:
    """Ours: a session may write into its own store; nothing waits for it, and it can be dropped."""
    put("a")
    take("one")
    for path in (f"{STORE}/state.json", f"{STORE}/one/index.json"):
        os.unlink(path)
        Path(path).write_text(content, encoding="utf-8") if content is not None else os.mkfifo(path)
    os.mkfifo(f"{STORE}/.unfinished.json")
    with pytest.raises(Refused, match="damaged"):
        restore(WORK, STORE, "one")
    assert take("two").bytes_copied == copied(1)
    drop(STORE, "one")
    restore(WORK, STORE, "two")


names = st.sampled_from(["a", "b", "c", ".d", "e\nf", os.fsdecode(b"\xff")])
numbers = st.integers(0, 99)  # of what there is
MODES = [0o644, 0o755, 0o700, 0o2750, 0o4711, *([0, 0o111, 0o300, 0o500] if ROOT else [])]
changes = st.one_of(
    st.tuples(st.sampled_from(["write", "append"]), numbers, st.binary(min_size=3, max_size=3)),
    st.tuples(st.just("truncate"), numbers, st.sampled_from([0, 2, 10_000])),
    st.tuples(st.just("chmod"), numbers, st.sampled_from(MODES)),
    st.tuples(st.sampled_from(["rename", "link", "symlink"]), numbers, numbers, names),
    st.tuples(st.sampled_from(["create", "mkdir", "mkfifo"]), numbers, names),
    st.tuples(st.sampled_from(["rmdir", "unlink", "touch"]), numbers),
)
actions = st.tuples(st.sampled_from(["take", "take", "restore", "restore", "clone", "drop"]), numbers)


def change(operation: str, number: int, *more: Any) -> None:
    """Does something with one of the entries, in or with one of the folders."""
    seen = look()
    there = [f"{WORK}{path}" for path in sorted(seen)]
    folders = [f"{WORK}{path}" for path in sorted(seen) if stat.S_ISDIR(seen[path][0])]
    path, inside = there[number % len(there)], f"{folders[number % len(folders)]}/{more[-1] if more else ''}"
    match operation:
        case "write" | "append":
            if os.path.isfile(path) and not os.path.islink(path):
                with open(path, "r+b" if operation == "write" else "ab") as file:
                    file.write(more[0])
        case "create":
            with open(inside, "xb") as file:
                file.write(b"new")
        case "rename" | "link":
            source = there[more[0] % len(there)]
            os.rename(source, inside) if operation == "rename" else os.link(source, inside, follow_symlinks=False)
        case "symlink":
            os.symlink(there[more[0] % len(there)], inside)
        case "touch":
            os.utime(path, follow_symlinks=False)
        case "mkdir" | "mkfifo":
            getattr(os, operation)(inside)
        case "chmod" | "truncate":
            if not os.path.islink(path):
                getattr(os, operation)(path, *more)
        case _:
            getattr(os, operation)(path)


class Model:
    """What each snapshot must be."""

    def __init__(self) -> None:
        self.snapshots: dict[str, Seen] = {}
        self._names = map(str, count())

    def act(self, action: str, number: int) -> None:
        if action == "take":
            name = next(self._names)
            self.snapshots[name] = look()
            take(name)
            self.check_that_all_is(name)
        elif self.snapshots:
            name = list(self.snapshots)[number % len(self.snapshots)]
            match action:
                case "restore":
                    restore(WORK, STORE, name)
                    self.check_that_all_is(name)
                case "clone":
                    self.check(name)
                case "drop":
                    drop(STORE, name)
                    del self.snapshots[name]

    def check_that_all_is(self, name: str) -> None:
        assert look() == self.snapshots[name]
        take("again")
        assert copies("again") == copies(name)
        drop(STORE, "again")

    def check(self, name: str) -> None:
        branch = f"branch{next(self._names)}"
        os.mkdir(branch)
        clone(STORE, name, branch, f"{PRIVATE}/{branch}")
        assert look(branch) == self.snapshots[name]
        snapshots.take(branch, f"{PRIVATE}/{branch}", "again", 0, PRIVATE)
        assert copies("again", f"{PRIVATE}/{branch}") == copies(name)


examples = count()


@given(st.lists(st.one_of(changes, changes, changes, actions), min_size=20, max_size=100))
@settings(
    max_examples=150,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_as_the_model(home: None, operations: list[tuple[Any, ...]]) -> None:
    """Ours: whatever was done, each snapshot comes back as it was, and only what has changed is copied."""
    model = Model()
    top = os.open(".", os.O_RDONLY)
    try:
        example = f"example{next(examples)}"
        os.makedirs(f"{example}/{WORK}")
        os.makedirs(f"{example}/{PRIVATE}")
        os.chdir(example)
        os.makedirs(f"{WORK}/a/a")
        os.makedirs(f"{WORK}/b/.d")
        for operation in operations:
            if operation[0] in ("take", "restore", "clone", "drop"):
                model.act(operation[0], operation[1])
            else:
                with suppress(OSError):
                    change(*operation)
        for name in model.snapshots:
            model.check(name)
    finally:
        os.fchdir(top)
        os.close(top)
        empty_folder(example)
