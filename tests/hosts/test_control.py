"""The control connection to a peer that says what it should not."""

from __future__ import annotations

import asyncio
import json
from asyncio import StreamReader, StreamWriter
from pathlib import Path

import anyio
import pytest

from kernel_server.errors import HostLost
from kernel_server.hosts.control import MAX_LINE_BYTES, PROTOCOL, ControlFailed, connect_control

pytestmark = pytest.mark.anyio

HELLO = json.dumps({"protocol": PROTOCOL}).encode()
AUTHENTICATED = b'{"id": 1, "result": {}}'


async def ask(tmp_path: Path, *lines: bytes) -> None:
    """Connects, and sends one request; the peer's answers are `lines`, whatever it is asked."""

    async def serve(reader: StreamReader, writer: StreamWriter) -> None:
        for line in lines:
            writer.write(line + b"\n")
            await reader.readline()
        writer.close()

    server = await asyncio.start_unix_server(serve, tmp_path / "s")
    async with server:
        async with connect_control(tmp_path / "s", "token", 5.0, anyio.Event()) as control:
            await control.request("ping")


NOT_AN_ANSWER = [b"[]", b"1", b"[" * 50_000, b"\xff"]
BAD_ANSWERS = [b'{"id": 2}', b'{"id": 2, "result": 1}', b'{"id": 2, "error": "no"}', b'{"id": 2, "result": {"x": "']


@pytest.mark.parametrize("line", NOT_AN_ANSWER, ids=lambda line: line[:24].decode(errors="replace"))
async def test_line_that_is_no_answer_is_passed_over(tmp_path: Path, line: bytes) -> None:
    """Issue 14: a session has a part in what is answered, and all other sessions hang on the connection."""
    await ask(tmp_path, HELLO, AUTHENTICATED, line + b'\n{"id": 2, "result": {}}')


@pytest.mark.parametrize("line", BAD_ANSWERS, ids=lambda line: line[:24].decode(errors="replace"))
async def test_answer_that_is_none_is_the_end_of_its_request_alone(tmp_path: Path, line: bytes) -> None:
    """Issue 14: as above."""
    with pytest.raises(ControlFailed, match="cannot be read"):
        await ask(tmp_path, HELLO, AUTHENTICATED, line)


@pytest.mark.parametrize("size", [MAX_LINE_BYTES + 1, 3 * MAX_LINE_BYTES])
async def test_answer_that_is_too_long_is_the_end_of_its_request_alone(tmp_path: Path, size: int) -> None:
    """Issue 14: a fork of a checkpoint had 5.8 MB answered, and every session of the container ended."""
    line = b'{"id": 2, "result": {"x": "' + b"x" * size + b'"}}'

    async def serve(reader: StreamReader, writer: StreamWriter) -> None:
        for answer in (HELLO, AUTHENTICATED, line, b'{"id": 3, "result": {"next": 1}}'):
            writer.write(answer + b"\n")
            await reader.readline()
        writer.close()

    async with await asyncio.start_unix_server(serve, tmp_path / "s"):
        async with connect_control(tmp_path / "s", "token", 5.0, anyio.Event()) as control:
            with pytest.raises(ControlFailed, match="longer than"):
                await control.request("ping")
            assert await control.request("ping") == {"next": 1}


async def test_end_of_the_connection_is_the_end_of_the_request(tmp_path: Path) -> None:
    """What the others are compared with: nothing more will come."""
    with pytest.raises(HostLost, match="ended while it was asked to ping"):
        await ask(tmp_path, HELLO, AUTHENTICATED)


@pytest.mark.parametrize("line", [b"[]", b"null", b"[" * 50_000])
async def test_hello_that_is_none_is_told(tmp_path: Path, line: bytes) -> None:
    """Ours."""
    with pytest.raises(HostLost, match="did not introduce itself"):
        await ask(tmp_path, line)


async def test_other_version_is_told(tmp_path: Path) -> None:
    """container/README.md: of a container of an earlier server, say."""
    with pytest.raises(HostLost, match=f"speaks control protocol 2, this server {PROTOCOL}"):
        await ask(tmp_path, b'{"protocol": 2}')


async def test_good_lines_are_answers(tmp_path: Path) -> None:
    """What the others are compared with."""
    await ask(tmp_path, HELLO, AUTHENTICATED, b'{"id": 2, "result": {}}')
