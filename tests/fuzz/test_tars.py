"""Tar streams out of a container: nothing is written outside WORKDIR_OUT, nor half; a stream that lies is told."""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kernel_server.errors import FileError
from kernel_server.files.beneath import opened_folder
from kernel_server.files.contents import read_item
from kernel_server.files.transfer import receive
from tests.fuzz.profiles import SLOW_EXAMPLES
from tests.fuzz.tars import extended, pieces, signed, tars

SECRET = b"not to be touched"
NEGATIVE = signed(
    tarfile.TarInfo("item").tobuf()[:124] + b"\xff" * 10 + b"\xfe\0" + tarfile.TarInfo("item").tobuf()[136:]
)
LOCAL_PATHS = ["new", "new/deep", ".", "old", "folder", "folder/"]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@settings(max_examples=2 * SLOW_EXAMPLES)
@given(
    tars(),
    st.sampled_from(LOCAL_PATHS),
    st.integers(0, 3),
    st.sampled_from([0, 1, 40, 512, 2000]),
    st.integers(1, 2000),
)
@example(NEGATIVE + b"x" * 5000 + b"\0" * 1024, "new", 1, 10, 1000)
@example(extended(2000), "new", 1, 0, 1000)
def test_any_stream_arrives_whole_or_not_at_all(stream: bytes, path: str, files: int, size: int, chunk: int) -> None:
    """Issue 6: tar members. What was there before is still there."""
    with tempfile.TemporaryDirectory() as base:
        out = Path(base, "out")
        (out / "folder").mkdir(parents=True)
        for name in ("secret", "out/old", "out/folder/kept"):
            Path(base, name).write_bytes(SECRET)
        before = tree(Path(base))
        with opened_folder(out, "WORKDIR_OUT") as folder:
            try:
                receive(pieces(stream, chunk), folder, path, name="item", files=files, size=size)
            except FileError as error:
                assert str(error).endswith((".", "…")), error
                assert "None" not in str(error)
                assert tree(Path(base)) == before
                return
        after = tree(Path(base))
        new = {name: data for name, data in after.items() if before.get(name) != data}
        assert all(name.startswith("out/") for name in new)
        assert not any(".kernel-server-" in name for name in after)
        assert after["secret"] == after["out/folder/kept"] == SECRET
        assert sum(map(len, new.values())) <= size


@given(tars(), st.sampled_from([0, 1, 40, 512, 2000]), st.integers(1, 2000))
@example(NEGATIVE + b"x" * 5000, 10, 1000)
@example(extended(2000), 0, 1000)
def test_any_stream_is_the_file_that_was_announced_or_an_error(stream: bytes, size: int, chunk: int) -> None:
    """The same of resources, which are read into memory."""
    try:
        assert len(read_item(pieces(stream, chunk), size)) == size
    except FileError as error:
        assert str(error).endswith("Try again.")


@pytest.mark.parametrize("stream", [extended(2000), NEGATIVE + b"x" * 5000])
def test_tarfile_alone_raises_or_believes_a_size(stream: bytes) -> None:
    """The control: the same streams without the guard."""
    try:
        with tarfile.open(fileobj=io.BytesIO(stream), mode="r:") as archive:
            assert [member.size for member in archive if member.size < 0]
    except (RecursionError, tarfile.TarError, OSError, ValueError):
        return


def test_writer_that_trusts_names_leaves_the_folder(tmp_path: Path) -> None:
    """The control: what the check of the names is for."""
    name = "item/../../escaped"
    (tmp_path / "out/item").mkdir(parents=True)
    Path(os.path.join(tmp_path, "out", name)).write_bytes(b"")
    assert (tmp_path / "escaped").exists()
