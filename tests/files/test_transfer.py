"""Tar streams out of WORKDIR_IN and into WORKDIR_OUT: real folders, real streams, no container.

What a round trip keeps, and what a hostile, broken or oversized stream may not do.
"""

from __future__ import annotations

import io
import itertools
import os
import socket
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from kernel_server.errors import FileError
from kernel_server.files import transfer
from kernel_server.files.beneath import opened_folder
from kernel_server.files.members import MAX_HEADER_BYTES
from kernel_server.files.rules import TEMPORARY_PREFIX
from kernel_server.files.transfer import MAX_DEPTH, open_to_send, receive, write_text
from kernel_server.streams import IteratorReader

Tree = dict[str, bytes | None]
"""Path → content; None is a folder."""

LONG_NAME = "ü" * 127 + "x"  # 255 bytes


def make_tree(folder: Path, tree: Tree) -> None:
    for name, content in tree.items():
        path = folder / name
        if content is None:
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def read_tree(folder: Path) -> Tree:
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if not path.is_dir() or not any(path.iterdir())
    }


@contextmanager
def opened(path: Path) -> Iterator[int]:
    with opened_folder(path, "WORKDIR") as folder:
        yield folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    return folder


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def send(folder: Path, path: str) -> bytes:
    """The stream that goes into the container, with the name that comes back out of it."""
    with opened(folder) as descriptor, open_to_send(descriptor, path) as sending:
        sending.name = "item"
        return b"".join(sending.tar(20_000))


def take(stream: bytes, folder: Path, path: str = "item", *, name: str = "item", files: int, size: int) -> str:
    chunks = (stream[at : at + 1000] for at in range(0, len(stream), 1000))
    with opened(folder) as descriptor:
        return receive(chunks, descriptor, path, name=name, files=files, size=size)


TREES: dict[str, Tree] = {
    "plain": {"a.txt": b"hello", "b/c.txt": b"x" * 3000},
    "empty files": {"empty": b"", "b/empty": b""},
    "empty folders": {"none": None, "a/b/none": None},
    "names": {"with space": b"1", "ünï 😀": b"2", "new": b"3", "-rf": b"4", "quote'\"": b"5", " ": b"6"},
    "255 bytes": {LONG_NAME: b"1", f"{LONG_NAME}/{LONG_NAME}".replace("x", "y", 1): b"2"},
    "deep": {"/".join(["d"] * 60) + "/f": b"deep"},
    "bytes that are no UTF-8": {os.fsdecode(b"\xff\xfe"): b"1"},
    "block sizes": {f"f{size}": b"z" * size for size in (1, 511, 512, 513, 10_240)},
}


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES.keys())
def test_folder_survives_the_round_trip(tree: Tree, source: Path, target: Path) -> None:
    """Issue 2, files: names with spaces, Unicode and 255 bytes work. Nothing is lost and nothing is added."""
    make_tree(source / "data", tree)
    files = [content for content in tree.values() if content is not None]
    at = take(send(source, "data"), target, "data", files=len(files), size=sum(map(len, files)))
    assert at == "data"
    assert read_tree(target / "data") == read_tree(source / "data") == tree
    assert os.listdir(target) == ["data"], "no temporary folder is left"


def test_file_survives_the_round_trip(source: Path, target: Path) -> None:
    """Issue 2, files."""
    (source / "a b.bin").write_bytes(os.urandom(3_000_000))
    take(send(source, "a b.bin"), target, "new/folder/c.bin", files=1, size=3_000_000)
    assert (target / "new/folder/c.bin").read_bytes() == (source / "a b.bin").read_bytes()


def test_exec_bit_and_owner_are_in_the_stream(source: Path) -> None:
    """Ours: a script stays runnable in the workspace; other mode bits and owners of the host mean nothing there."""
    make_tree(source / "d", {"run.sh": b"#!/bin/sh\n", "plain": b""})
    (source / "d/run.sh").chmod(0o4750)
    (source / "d/plain").chmod(0o600)
    with tarfile.open(fileobj=io.BytesIO(send(source, "d"))) as archive:
        members = {member.name: (oct(member.mode), member.uid, member.gid) for member in archive}
    assert members == {
        "item": ("0o755", 20_000, 20_000),
        "item/plain": ("0o644", 20_000, 20_000),
        "item/run.sh": ("0o755", 20_000, 20_000),
    }


def test_links_devices_fifos_and_sockets_in_a_folder_are_left_out_and_named(source: Path, target: Path) -> None:
    """DESIGN, files: regular files and folders only. The copy says what is missing."""
    make_tree(source / "d", {"kept": b"1"})
    (source / "d/link").symlink_to("/etc/passwd")
    os.mkfifo(source / "d/fifo")
    with socket.socket(socket.AF_UNIX) as listener, opened(source) as descriptor:
        folder = os.open(source / "d", os.O_DIRECTORY)
        listener.bind(f"/proc/self/fd/{folder}/socket")
        os.close(folder)
        with open_to_send(descriptor, "d") as sending:
            sending.name = "item"
            stream = b"".join(sending.tar(0))
    take(stream, target, "d", files=1, size=1)
    assert read_tree(target) == {"d/kept": b"1"}
    assert sorted(sending.skipped) == ["item/fifo (a fifo)", "item/link (a symbolic link)", "item/socket (a socket)"]
    assert (sending.files, sending.size) == (1, 1)


@pytest.mark.parametrize(
    ("make", "path", "why"),
    [
        (lambda folder: None, "missing", "no such file"),
        (lambda folder: os.mkfifo(folder / "x"), "x", "a fifo"),
        (lambda folder: (folder / "x").symlink_to("/etc/passwd"), "x", "leaves WORKDIR_IN"),
        (lambda folder: (folder / "x").symlink_to("../outside"), "x", "leaves WORKDIR_IN"),
        (lambda folder: (folder / "x").symlink_to("/etc"), "x/passwd", "leaves WORKDIR_IN"),
        (lambda folder: (folder / "x").symlink_to("x"), "x", "in circles"),
        (lambda folder: (folder / "x").symlink_to("gone"), "x", "no such file"),
        (lambda folder: (folder / "x").write_bytes(b""), "x/y", "is a file"),
    ],
    ids=["missing", "fifo", "link", "relative link", "folder link", "loop", "dangling", "file as folder"],
)
def test_what_cannot_be_sent_is_refused(make: Callable[[Path], None], path: str, why: str, source: Path) -> None:
    """Issue 2, bad input: file to copy missing, a fifo, links that leave WORKDIR."""
    (source.parent / "outside").write_bytes(b"secret")
    make(source)
    with opened(source) as descriptor, pytest.raises(FileError, match=why), open_to_send(descriptor, path):
        pass


def test_device_is_refused(source: Path) -> None:
    """Issue 2, bad input: reading it would never end, or do something."""
    with (
        opened(Path("/dev")) as descriptor,
        pytest.raises(FileError, match="a device"),
        open_to_send(descriptor, "zero"),
    ):
        pass


def test_link_within_the_folder_is_followed(source: Path, target: Path) -> None:
    """Ours: the user made it in the user's own folder; named itself, it stands for what it points to."""
    (source / "real").write_bytes(b"data")
    (source / "link").symlink_to("real")
    take(send(source, "link"), target, files=1, size=4)
    assert (target / "item").read_bytes() == b"data"


def test_unreadable_file_in_a_folder_is_named(source: Path) -> None:
    """Ours: a copy without it would be a silent loss. Root reads everything, so the file vanishes instead."""
    make_tree(source / "d", {"a": b"1", "b": b"2"})
    with opened(source) as descriptor, open_to_send(descriptor, "d") as sending:
        stream = sending.tar(0)
        for _ in range(4):  # header of d, header, content and padding of a
            next(stream)
        (source / "d/b").unlink()
        with pytest.raises(FileError, match=r"d/b could not be read.*Nothing was copied"):
            list(stream)


def test_file_that_shrinks_while_it_is_read_is_an_error(source: Path) -> None:
    """Ours: the tar header has promised more; filling up with zeros would be a lie."""
    (source / "log").write_bytes(b"x" * 5_000_000)
    with opened(source) as descriptor, open_to_send(descriptor, "log") as sending:
        stream = sending.tar(0)
        next(stream)
        next(stream)
        os.truncate(source / "log", 10)
        with pytest.raises(FileError, match="became shorter"):
            list(stream)


def test_file_that_grows_while_it_is_read_is_sent_as_it_was(source: Path, target: Path) -> None:
    """Ours: a log that is being written can be copied."""
    (source / "log").write_bytes(b"first")
    with opened(source) as descriptor, open_to_send(descriptor, "log") as sending:
        sending.name = "item"
        stream = sending.tar(0)
        data = next(stream)
        with open(source / "log", "ab") as file:
            file.write(b" and more")
        data += b"".join(stream)
    take(data, target, files=1, size=5)
    assert (target / "item").read_bytes() == b"first"


# -- the way out: the stream is hostile ----------------------------------------------------------------------------


def tar(*members: tuple[str, bytes, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of (name, type, content)."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            info.size = len(content)
            info.linkname = "/etc/passwd"
            info.mode = 0o4777
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def long_header(kind: bytes, size: int) -> bytes:
    """The head of a header that goes on for `size` bytes."""
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


CONTROLS = "\n\r\x1b\b\x01\x7f\x85\x9b"
REG, DIR = tarfile.REGTYPE, tarfile.DIRTYPE
HOSTILE: dict[str, bytes] = {
    "parent": tar(("../x", REG, b"1")),
    "parent within": tar(("item", DIR, b""), ("item/../../x", REG, b"1")),
    "absolute": tar(("/tmp/x", REG, b"1")),
    "another root": tar(("other", REG, b"1")),
    "beside the item": tar(("item", REG, b"1"), ("other", REG, b"")),
    "empty part": tar(("item", DIR, b""), ("item//x", REG, b"1")),
    "symbolic link": tar(("item", tarfile.SYMTYPE, b"")),
    "hard link": tar(("item", tarfile.LNKTYPE, b"")),
    "link in a folder": tar(("item", DIR, b""), ("item/x", tarfile.SYMTYPE, b""), ("item/x", REG, b"1")),
    "folder through a link": tar(("item", DIR, b""), ("item/x", tarfile.SYMTYPE, b""), ("item/x/y", REG, b"1")),
    "device": tar(("item", tarfile.CHRTYPE, b"")),
    "block device": tar(("item", tarfile.BLKTYPE, b"")),
    "fifo": tar(("item", tarfile.FIFOTYPE, b"")),
    "same name twice": tar(("item", DIR, b""), ("item/x", REG, b"1"), ("item/x", REG, b"")),
    "file as folder": tar(("item", REG, b"1"), ("item/x", REG, b"")),
    "folder missing": tar(("item", DIR, b""), ("item/a/b", REG, b"1")),
    "too little": tar(("item", REG, b"")),
    "too much": tar(("item", REG, b"12")),
    "too many": tar(("item", DIR, b""), ("item/a", REG, b"1"), ("item/b", REG, b"")),
    "nothing": tar(),
    "no stream at all": b"",
    "garbage": b"garbage" * 1000,
    "cut in the header": tar(("item", REG, b"1"))[:300],
    "cut in the content": tar(("item", REG, b"1" * 5000))[:2048],
    **{f"control {character!r}": tar(("item", DIR, b""), (f"item/a{character}b", REG, b"1")) for character in CONTROLS},
    "folder with a control": tar(("item", DIR, b""), ("item/\x9b2J", DIR, b""), ("item/x", REG, b"1")),
    "very deep": tar(*((f"item{'/d' * depth}", DIR, b"") for depth in range(MAX_DEPTH + 1)), ("item/x", REG, b"1")),
    "long name": long_header(tarfile.GNUTYPE_LONGNAME, 1 << 30) + tar(("item", REG, b"1")),
    "long extended header": long_header(tarfile.XHDTYPE, 1 << 30) + tar(("item", REG, b"1")),
    "long global header": long_header(tarfile.XGLTYPE, 1 << 30) + tar(("item", REG, b"1")),
    "255 bytes too long": tar(("item", DIR, b""), (f"item/{'x' * 256}", REG, b"1")),
}


@pytest.mark.parametrize("stream", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_stream_is_refused_and_leaves_nothing(stream: bytes, target: Path) -> None:
    """DESIGN, files: regular files and folders only, whole or not at all; the host treats every byte as hostile."""
    (target / "old").write_bytes(b"kept")
    with pytest.raises(FileError, match="Nothing was written"):
        take(stream, target, "new", files=1, size=1)
    assert read_tree(target) == {"old": b"kept"}
    assert os.listdir(target.parent) == ["out"]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_good_stream_of_any_format_is_taken(form: int, target: Path) -> None:
    """The positive control of the table above; engines write GNU or PAX tars."""
    stream = tar(("item", DIR, b""), ("item/x", REG, b"1"), form=form)
    assert take(stream, target, "new", files=1, size=1) == "new"
    assert read_tree(target) == {"new/x": b"1"}
    assert (target / "new/x").stat().st_mode & 0o7000 == 0, "no setuid bit from inside"


def test_more_than_was_announced_is_stopped_on_its_way(target: Path) -> None:
    """Ours: a stream that grows without end must not fill the host's disk before it is refused."""
    header = tarfile.TarInfo("item")
    header.size = 1 << 40
    sent = 0

    def chunks() -> Iterator[bytes]:
        nonlocal sent
        yield header.tobuf(tarfile.PAX_FORMAT)
        while sent < 64 << 20:
            sent += 1 << 20
            yield bytes(1 << 20)

    with opened(target) as descriptor, pytest.raises(FileError, match="Nothing was written"):
        receive(chunks(), descriptor, "x", name="x", files=1, size=1000)
    assert sent <= 4 << 20
    assert os.listdir(target) == []


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_header_without_end_is_not_taken_into_memory(kind: bytes, target: Path) -> None:
    """Ours: tarfile reads as much as a header names, 8 GB and more."""
    sent = 0

    def chunks() -> Iterator[bytes]:
        nonlocal sent
        yield long_header(kind, 64 << 20)
        while sent < 64 << 20:
            sent += 1 << 16
            yield bytes(1 << 16)
        yield tar(("item", REG, b"1"))

    with (
        opened(target) as descriptor,
        pytest.raises(FileError, match=r"headers that are too long.*Nothing was written"),
    ):
        receive(chunks(), descriptor, "x", name="x", files=1, size=1)
    assert sent <= MAX_HEADER_BYTES
    sent = 0
    with suppress(tarfile.TarError), tarfile.open(fileobj=IteratorReader(chunks()), mode="r:") as archive:
        archive.getmembers()
    assert sent == 64 << 20, "the control: tarfile alone reads all of it"


def test_headers_of_many_members_are_not_kept(target: Path) -> None:
    """Ours: each may have as much; tarfile keeps them all, and global ones apply to all that follow."""
    note = tarfile.TarInfo.create_pax_global_header({"note": "x" * 100_000})
    stream = tar(("item", DIR, b""), *((f"item/{number}", REG, b"") for number in range(200)))
    members = (
        part
        for at in range(0, 201 * 512, 512)
        for part in (note.replace(b"note", b"%04d" % (at // 512)), stream[at : at + 512])
    )
    tracemalloc.start()
    try:
        with opened(target) as descriptor:
            chunks = itertools.chain(members, [bytes(1024)])
            receive(chunks, descriptor, "x", name="x", files=200, size=0)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
    assert len(os.listdir(target / "x")) == 200


def test_folders_count_beside_files(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours: empty folders use up a file system as files do."""
    monkeypatch.setattr(transfer, "MAX_ENTRIES", 10)
    folders = [(f"item/{number}", DIR, b"") for number in range(10)]
    take(tar(("item", DIR, b""), *folders[:8], ("item/x", REG, b"1")), target, "fits", files=1, size=1)
    with pytest.raises(FileError, match=r"more than 10 files and folders.*Nothing was written"):
        take(tar(("item", DIR, b""), *folders), target, "more", files=0, size=0)
    assert os.listdir(target) == ["fits"]


@pytest.mark.parametrize("path", ["new/deep/", ".", "there"])
def test_file_with_an_odd_name_needs_another(path: str, target: Path) -> None:
    """Ours: in the session it may be called anything; here its name would be orders to a terminal."""
    (target / "there").mkdir()
    stream = tar(("item", REG, b"1"))
    with pytest.raises(FileError, match=r"'a\\x1b\[2Jb' holds control characters.*name the file in local_path"):
        take(stream, target, path, name="a\x1b[2Jb", files=1, size=1)
    assert read_tree(target) == {"there": None}
    assert take(stream, target, "there/b", name="a\x1b[2Jb", files=1, size=1) == "there/b"


def test_stream_that_breaks_off_is_an_error_of_its_own_kind(target: Path) -> None:
    """Ours: the container can be gone in the middle; what the source raises comes out, and nothing is left."""

    def chunks() -> Iterator[bytes]:
        yield tar(("item", REG, b"1" * 5000))[:1024]
        raise FileError("The container is gone.")

    with opened(target) as descriptor, pytest.raises(FileError, match="gone"):
        receive(chunks(), descriptor, "x", name="x", files=1, size=5000)
    assert os.listdir(target) == []


def test_full_disk_leaves_what_was_there(small_disk: Path) -> None:
    """Issue 2, bad input: disk full while copying; nothing is lost and nothing half is left."""
    (small_disk / "report").write_bytes(b"old")
    stream = tar(("item", REG, b"x" * 1_000_000))
    with pytest.raises(FileError, match=r"disk is full.*Nothing was written"):
        take(stream, small_disk, "report", files=1, size=1_000_000)
    assert read_tree(small_disk) == {"report": b"old"}


def test_missing_folder_and_file_as_folder_are_told(tmp_path: Path) -> None:
    """Issue 2, bad input: WORKDIR missing, a file. The message names the variable."""
    (tmp_path / "file").touch()
    with (
        pytest.raises(FileError, match=r"WORKDIR_IN.*does not exist; create it"),
        opened_folder(tmp_path / "missing", "WORKDIR_IN"),
    ):
        pass
    with pytest.raises(FileError, match=r"WORKDIR_OUT.*is a file"), opened_folder(tmp_path / "file", "WORKDIR_OUT"):
        pass


# -- where it goes -------------------------------------------------------------------------------------------------

ONE_FILE = tar(("item", REG, b"new"))
ONE_FOLDER = tar(("item", DIR, b""), ("item/a", REG, b"new"), ("item/sub", DIR, b""), ("item/sub/b", REG, b"n"))


@pytest.mark.parametrize(
    ("before", "path", "at", "after"),
    [
        ({}, "x", "x", {"x": b"new"}),
        ({"x": b"old"}, "x", "x", {"x": b"new"}),
        ({}, "a/b/x", "a/b/x", {"a/b/x": b"new"}),
        ({"d": None}, "d", "d/name", {"d/name": b"new"}),
        ({"d/name": b"old"}, "d", "d/name", {"d/name": b"new"}),
        ({}, "d/", "d/name", {"d/name": b"new"}),
        ({}, ".", "name", {"name": b"new"}),
        ({"d/e": None}, "d/e/", "d/e/name", {"d/e/name": b"new"}),
    ],
)
def test_file_goes_where_cp_would_put_it(before: Tree, path: str, at: str, after: Tree, target: Path) -> None:
    """DESIGN, tools: a file is replaced; a folder takes the file in under its name, as cp(1) does."""
    make_tree(target, before)
    assert take(ONE_FILE, target, path, name="name", files=1, size=3) == at
    assert read_tree(target) == after


@pytest.mark.parametrize(
    ("before", "path", "after"),
    [
        ({}, "d", {"d/a": b"new", "d/sub/b": b"n"}),
        ({"d/z": b"kept"}, "d", {"d/a": b"new", "d/sub/b": b"n", "d/z": b"kept"}),
        ({"d/a": b"old", "d/sub/z": b"kept"}, "d", {"d/a": b"new", "d/sub/b": b"n", "d/sub/z": b"kept"}),
        ({"d": None}, "d/", {"d/name/a": b"new", "d/name/sub/b": b"n"}),
        ({}, "x/y/d", {"x/y/d/a": b"new", "x/y/d/sub/b": b"n"}),
    ],
)
def test_folder_is_merged(before: Tree, path: str, after: Tree, target: Path) -> None:
    """DESIGN, tools: an existing folder is merged into: same names are replaced, others stay."""
    make_tree(target, before)
    take(ONE_FOLDER, target, path, name="name", files=2, size=4)
    assert read_tree(target) == after


@pytest.mark.parametrize(
    ("before", "path", "stream"),
    [
        ({"d": b"file"}, "d", ONE_FOLDER),
        ({"d/a": None, "d/sub": None}, "d", ONE_FOLDER),
        ({"d/sub": b"file"}, "d", ONE_FOLDER),
        ({"d/name": None}, "d", ONE_FILE),
        ({"d": b"file"}, "d/x", ONE_FILE),
    ],
    ids=[
        "file for folder",
        "folder for file within",
        "file for folder within",
        "folder of that name",
        "file on the way",
    ],
)
def test_what_is_in_the_way_stays_and_nothing_moves(before: Tree, path: str, stream: bytes, target: Path) -> None:
    """DESIGN, files: whole or not at all; what cannot be done is found out before anything moves."""
    make_tree(target, before)
    files, size = (1, 3) if stream is ONE_FILE else (2, 4)
    with pytest.raises(FileError):
        take(stream, target, path, name="name", files=files, size=size)
    assert read_tree(target) == before


@pytest.mark.parametrize("path", ["link", "link/x", "link/new/x", "folder/link/x"])
def test_link_that_leaves_the_folder_is_never_written_through(path: str, target: Path) -> None:
    """Issue 2, bad input: links that leave WORKDIR. The outside stays as it was."""
    outside = target.parent / "outside"
    outside.mkdir()
    (target / "folder").mkdir()
    (target / "link").symlink_to(outside)
    (target / "folder/link").symlink_to(outside)
    try:
        take(ONE_FILE, target, path, files=1, size=3)
    except FileError as error:
        assert "link" in str(error)
    assert read_tree(outside) == {}
    assert not [name for name in os.listdir(target) if name.startswith(TEMPORARY_PREFIX)]


def test_final_link_is_replaced_not_followed(target: Path) -> None:
    """Ours: as rename(2) does; its old target outside stays as it was."""
    (target.parent / "outside").write_bytes(b"old")
    (target / "x").symlink_to("../outside")
    take(ONE_FILE, target, "x", files=1, size=3)
    assert (target / "x").read_bytes() == b"new"
    assert not (target / "x").is_symlink()
    assert (target.parent / "outside").read_bytes() == b"old"


def test_text_is_written_whole_or_not_at_all(small_disk: Path) -> None:
    """Issue 2, notebook: the old file is intact when writing the new one fails."""
    with opened(small_disk) as folder:
        assert write_text(folder, "a/n.ipynb", "{}ü", "default.ipynb") == "a/n.ipynb"
        with pytest.raises(FileError, match="disk is full"):
            write_text(folder, "a/n.ipynb", "x" * 1_000_000, "default.ipynb")
    assert read_tree(small_disk) == {"a/n.ipynb": "{}ü".encode()}


def test_negative_size_is_stopped_before_anything_is_written(target: Path) -> None:
    """Ours: tar can say one in base 256; up to a whole chunk of what followed was written before it was noticed."""
    header = bytearray(tarfile.TarInfo("item").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 11 + b"\xfe"
    header[148:156] = b"%06o\0 " % (256 + sum(header[:148]) + sum(header[156:]))
    with pytest.raises(FileError, match="more than it had announced"):
        take(bytes(header) + bytes(4 << 20), target, files=1, size=0)
    assert os.listdir(target) == []


def test_headers_upon_headers_are_a_broken_copy(target: Path) -> None:
    """Python, tarfile: each extended header is read within the one before, until the stack ends."""
    header = tarfile.TarInfo("x")
    header.type = tarfile.XHDTYPE
    with pytest.raises(FileError, match="broke off"):
        take(header.tobuf(tarfile.GNU_FORMAT) * 20_000, target, files=1, size=0)


def test_more_files_than_announced_are_not_written(target: Path) -> None:
    """Ours: empty ones take room, too."""
    with pytest.raises(FileError, match="more than it had announced"):
        take(send_many(3), target, files=2, size=0)


def send_many(count: int) -> bytes:
    headers = [tarfile.TarInfo("item"), *(tarfile.TarInfo(f"item/{number}") for number in range(count))]
    headers[0].type = tarfile.DIRTYPE
    return b"".join(header.tobuf(tarfile.PAX_FORMAT) for header in headers) + bytes(1024)
