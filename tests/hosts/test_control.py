"""The control connection to a peer that says what it should not."""

from __future__ import annotations

import asyncio
import json
from asyncio import StreamReader, StreamWriter
from pathlib import Path

import anyio
import pytest

from kernel_server.errors import HostLost
from kernel_server.hosts.control import PROTOCOL, connect_control

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


BAD = [b"[]", b"1", b"[" * 50_000, b'{"id": 2}', b'{"id": 2, "result": 1}', b'{"id": 2, "error": "no"}', b"\xff"]


@pytest.mark.parametrize("line", BAD, ids=lambda line: line[:24].decode(errors="replace"))
async def test_bad_line_ends_the_connection_and_the_request(tmp_path: Path, line: bytes) -> None:
    """Ours: it was an exception that nobody caught, and took the server's task with it."""
    with pytest.raises(HostLost, match="ended while it was asked to ping"):
        await ask(tmp_path, HELLO, AUTHENTICATED, line)


@pytest.mark.parametrize("line", [b"[]", b"null", b"[" * 50_000])
async def test_hello_that_is_none_is_told(tmp_path: Path, line: bytes) -> None:
    """Ours."""
    with pytest.raises(HostLost, match="did not introduce itself"):
        await ask(tmp_path, line)


async def test_good_lines_are_answers(tmp_path: Path) -> None:
    """What the others are compared with."""
    await ask(tmp_path, HELLO, AUTHENTICATED, b'{"id": 2, "result": {}}')
