"""One file out of a tar stream that may be anything."""

from __future__ import annotations

import io
import itertools
import tarfile
from collections.abc import Iterator

import pytest

from kernel_server.errors import FileError
from kernel_server.files.contents import FRAME_BYTES, mime_type, read_item, text_or_bytes


def tar(*members: tuple[bytes, bytes]) -> bytes:
    """A tar of members, each with its type and contents."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for kind, data in members:
            info = tarfile.TarInfo("item")
            info.type, info.size, info.linkname = kind, len(data), "/etc/passwd"
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    """A stream in chunks."""
    return (data[start : start + size] for start in range(0, len(data), size))


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 100_000])
@pytest.mark.parametrize("chunk", [1000, 1 << 20])
def test_contents_come_out_whole(size: int, chunk: int) -> None:
    """Ours: at every edge of tar's blocks, in chunks of any size."""
    data = bytes(index % 251 for index in range(size))
    assert read_item(pieces(tar((tarfile.REGTYPE, data)), chunk), size) == data


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        b"\0" * 10_240,
        b"no tar" * 1000,
        tar((tarfile.DIRTYPE, b"")),
        tar((tarfile.SYMTYPE, b"")),
        tar((tarfile.LNKTYPE, b"")),
        tar((tarfile.FIFOTYPE, b"")),
        tar((tarfile.CHRTYPE, b"")),
        tar((tarfile.REGTYPE, b"123")),
        tar((tarfile.REGTYPE, b"12345")),
        tar((tarfile.REGTYPE, b"1234"))[:514],
    ],
)
def test_other_streams_are_refused(stream: bytes) -> None:
    """Ours: four bytes were announced; a folder, a link, a device, less, more or a torn stream are none of that."""
    with pytest.raises(FileError, match="Try again"):
        read_item(pieces(stream, 1000), 4)


def test_endless_stream_is_read_no_further_than_announced() -> None:
    """Ours: the bound holds while it is read, of headers too."""
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        info = tarfile.TarInfo("item")
        info.type, info.size = tarfile.XHDTYPE, 1 << 40  # an extended header, which tarfile reads into memory
        for chunk in itertools.chain([info.tobuf(tarfile.GNU_FORMAT)], itertools.repeat(b"x" * 1024)):
            taken += len(chunk)
            yield chunk

    with pytest.raises(FileError, match="headers that are too long"):
        read_item(endless(), 1000)
    assert taken <= 1000 + FRAME_BYTES + 1024


def test_text_is_utf8_without_nul() -> None:
    """Ours: what is not exactly the text of its bytes stays bytes."""
    assert text_or_bytes("\ufeffü\r\n".encode()) == "\ufeffü\r\n"
    for data in (b"a\0", b"\xff\xfea", "ü".encode("latin-1"), b"\xed\xa0\x80"):
        assert text_or_bytes(data) == data


def test_type_is_by_the_end_of_the_name_only() -> None:
    """Python, mimetypes: a name is taken for a URL, and the type of a `data:` URL is whatever it says."""
    assert mime_type("data:text/html;a,x", b"") == "application/octet-stream"
    assert mime_type("data:text/html;a,x.csv", "") == "text/csv"
    assert mime_type("x/y.tar.gz", b"") == "application/gzip"
    assert mime_type("x.gz/y", b"") == "application/octet-stream"
