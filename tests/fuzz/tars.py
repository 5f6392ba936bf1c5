"""Tar streams as nobody should make them: links, devices, absolute names, sizes that lie, headers that were tampered with."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.hostile import PARTS, damaged

NAMES = [
    *(
        "item",
        "item",
        "item",
        "item/a",
        "item/b",
        "item/a/c",
        "item/",
        "item/../../x",
        "item/../x",
        "../x",
        "/etc/x",
        "/item",
    ),
    *(
        "item/.",
        "item//a",
        "item/" + "x" * 255,
        "item/" + "é" * 200,
        "item/" + "/".join(["d"] * 300),
        "other",
        "",
        "item/ ",
    ),
]
TYPES = [
    *(
        tarfile.REGTYPE,
        tarfile.REGTYPE,
        tarfile.REGTYPE,
        tarfile.DIRTYPE,
        tarfile.DIRTYPE,
        tarfile.AREGTYPE,
        tarfile.LNKTYPE,
    ),
    *(
        tarfile.SYMTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.FIFOTYPE,
        tarfile.CONTTYPE,
        tarfile.GNUTYPE_SPARSE,
        b"Z",
    ),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
]
SIZES = [-1, -512, -(1 << 40), 1, 511, 513, 1 << 20, 1 << 62]
PAX = [
    b"path",
    b"size",
    b"mtime",
    b"linkpath",
    b"GNU.sparse.map",
    b"GNU.sparse.size",
    b"GNU.sparse.major",
    b"hdrcharset",
    b"uid",
]
FIELDS = [(0, 100), (100, 8), (108, 8), (124, 12), (136, 12), (156, 1), (157, 100), (257, 8), (329, 8), (345, 155)]


@st.composite
def tars(draw: Callable[..., Any]) -> bytes:
    """Up to six members, whole, damaged or torn."""
    data = b"".join(draw(st.lists(members(), max_size=6)))
    end = draw(st.sampled_from([b"\0" * 1024, b"\0" * 1024, b"", b"\0" * 512, b"x" * 700]))
    made: bytes = draw(st.one_of(st.just(data + end), st.just(data + end), damaged(data + end)))
    return made


@st.composite
def members(draw: Callable[..., Any]) -> bytes:
    body = draw(st.one_of(st.binary(max_size=40), st.sampled_from([b"", b"x" * 512, b"x" * 1000]), pax_records()))
    info = tarfile.TarInfo(draw(st.sampled_from(NAMES) | st.lists(st.sampled_from(PARTS[2:8])).map("item/".join)))
    info.type = draw(st.sampled_from(TYPES))
    info.linkname = draw(st.sampled_from(["", "/etc/passwd", "../../x", "item"]))
    info.size = draw(st.one_of(st.just(len(body)), st.just(len(body)), st.just(len(body)), st.sampled_from(SIZES)))
    info.mode = draw(st.sampled_from([0o644, 0o755, 0o7777, 0]))
    info.mtime = draw(st.sampled_from([0, 1, 1 << 40]))
    header = info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogatepass")
    for at, size in draw(st.lists(st.sampled_from(FIELDS), max_size=1)):
        header = signed(header[:at] + draw(st.binary(min_size=size, max_size=size)) + header[at + size :])
    padded: bytes = header + body + b"\0" * (-len(body) % tarfile.BLOCKSIZE)
    return padded


@st.composite
def pax_records(draw: Callable[..., Any]) -> bytes:
    """The contents of an extended header; lengths may be wrong."""
    data = b""
    for key, value in draw(
        st.lists(st.tuples(st.sampled_from(PAX) | st.binary(max_size=5), st.binary(max_size=20)), max_size=3)
    ):
        record = key + b"=" + draw(st.sampled_from([value, b"-1", b"1,2,3", b"1" * 5000, b"item/a", b"nan"])) + b"\n"
        length = draw(st.sampled_from([len(record) + len(str(len(record))) + 1, 0, 10**9]))
        data += f"{length} ".encode() + record
    return data


def signed(header: bytes) -> bytes:
    """With the checksum that makes tarfile believe it."""
    total = 256 + sum(header[:148]) + sum(header[156:512])
    return header[:148] + b"%06o\0 " % total + header[156:]


def extended(times: int) -> bytes:
    """So many extended headers one behind the other."""
    info = tarfile.TarInfo("x")
    info.type = tarfile.XHDTYPE
    return info.tobuf(tarfile.GNU_FORMAT) * times


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    """A stream in chunks."""
    return (data[start : start + size] for start in range(0, len(data), size))
