"""PY_EXEC_NETWORK=allow:…: sessions reach the hosts that are named, by a proxy, and nothing else (issue 6).

What is reached is a server on 127.0.0.1 of this machine; nothing beyond it is asked.
"""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import anyio
import pytest

from kernel_server.hosts.forwarding import ADDRESS_SECONDS, Forwarder
from kernel_server.hosts.proxy import is_allowed, is_reachable, serve_proxy
from tests.driving import Handle, serving

PROXY = """
import http.client, socket, urllib.request
def get(host, port, path='/'):
    connection = http.client.HTTPConnection('127.0.0.1', 3128, timeout=20)
    connection.request('GET', f'http://{host}:{port}{path}')
    answer = connection.getresponse()
    return answer.status, answer.reason, answer.read().decode()
def tunnel(host, port):
    connection = http.client.HTTPConnection('127.0.0.1', 3128, timeout=20)
    connection.set_tunnel(host, port)
    connection.request('GET', '/')
    return connection.getresponse().read().decode()
def direct(address, kind=socket.SOCK_STREAM):
    try:
        socket.socket(socket.AF_INET, kind).connect(address)
        return 'connected'
    except OSError as error:
        return type(error).__name__
"""


@pytest.mark.parametrize(
    ("host", "port", "allowed"),
    [
        ("example.org", 443, True),
        ("example.org", 80, True),
        ("example.org", 22, False),
        ("www.example.org", 443, False),
        ("notexample.org", 443, False),
        ("example.org.evil.test", 443, False),
        ("a.example.com", 443, True),
        ("a.b.example.com", 443, True),
        ("example.com", 443, False),
        ("evilexample.com", 443, False),
        ("example.net", 8080, True),
        ("example.net", 443, False),
        ("", 443, False),
    ],
)
def test_hosts_are_those_that_are_named(host: str, port: int, allowed: bool) -> None:
    """Ours: a name means ports 80 and 443, `*.` what is below it, and no part of a name matches."""
    hosts = ["example.org", "*.example.com", "example.net:8080"]
    assert is_allowed(host, port, hosts) is allowed
    assert not is_allowed(host, port, []), "an empty list is nothing"


@pytest.mark.parametrize(
    ("address", "host", "reachable"),
    [
        ("1.1.1.1", "example.org", True),
        ("169.254.169.254", "example.org", False),
        ("127.0.0.1", "example.org", False),
        ("10.0.0.5", "example.org", True),
        ("10.0.0.6", "example.org", False),
        ("::1", "example.org", False),
        ("127.0.0.1", "localhost", True),
    ],
)
def test_names_lead_to_public_addresses_only(address: str, host: str, reachable: bool) -> None:
    """Ours: who owns the name of a listed host must not choose services of this machine or network."""
    assert is_reachable(address, host, ["example.org", "10.0.0.5", "localhost:80"]) is reachable


@pytest.mark.anyio
@pytest.mark.docker
@pytest.mark.parametrize("per_container", ["0", "1"])
async def test_named_hosts_are_reached_and_nothing_else(
    docker_engine: None, tmp_path: Path, web_port: int, per_container: str
) -> None:
    """Issue 6: named hosts only; each refused host is named in the result."""
    settings = {"PY_EXEC_SESSIONS_PER_CONTAINER": per_container, "PY_EXEC_POOL": "0", "PY_EXEC_PRELOAD": "none"}
    async with serving(tmp_path, "docker", PY_EXEC_NETWORK=f"allow:localhost:{web_port}", **settings) as kit:
        async with kit.session() as session:
            assert f"network: only localhost:{web_port}, by" in (await kit.call("init")).text
            await session.run(PROXY)
            assert await session.value(f"get('localhost', {web_port})") == "(200, 'OK', 'hello')"
            assert await session.value(f"tunnel('localhost', {web_port})") == "'hello'"
            await _others_are_refused(session, web_port, shared=per_container == "0")


async def _others_are_refused(session: Handle, port: int, *, shared: bool) -> None:
    for host, other in (("example.org", 80), ("localhost", port + 1), ("127.0.0.1", port)):
        refused = await session.value(f"get('{host}', {other})[:2]")
        assert refused.startswith("(403, '"), refused
        assert host in refused
    tunnelled = await session.run("tunnel('example.org', 443)")
    assert "403 example.org is not among the hosts of PY_EXEC_NETWORK" in tunnelled.text
    by_name = await session.run("urllib.request.urlopen('https://example.org')")
    assert "example.org is not among the hosts of PY_EXEC_NETWORK" in by_name.text
    assert f"Sessions reach only localhost:{port}" in by_name.text
    error = "PermissionError" if shared else "ConnectionRefusedError"
    assert await session.value(f"direct(('127.0.0.1', {port}))") == repr(error)
    assert await session.value("direct(('192.0.2.1', 80))") == repr("PermissionError" if shared else "OSError")
    if shared:
        assert await session.value("direct(('127.0.0.1', 53), socket.SOCK_DGRAM)") == repr("PermissionError")


@asynccontextmanager
async def proxy(*hosts: str) -> AsyncIterator[Path]:
    """The real process, without a container in front of it."""
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as folder:
        path = Path(folder) / "proxy"
        async with serve_proxy(path, hosts):
            yield path


@contextmanager
def silent_host() -> Iterator[int]:
    """A port of this machine that does not answer: its queue of connections is full, so that more SYNs are dropped."""
    with socket.socket() as listener, ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(8):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


async def ask(path: Path, request: str) -> bytes:
    """All that comes back."""
    async with await anyio.connect_unix(path) as stream:
        await stream.send(request.encode())
        said = b""
        with suppress(anyio.EndOfStream):
            while True:
                said += await stream.receive()
    return said


def get(port: int, host: str = "localhost") -> str:
    return f"GET http://{host}:{port}/ HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n"


@pytest.mark.anyio
@pytest.mark.parametrize(
    "way", ["CONNECT {}:{} HTTP/1.1\r\nHost: x\r\n\r\n", "GET http://{}:{}/ HTTP/1.1\r\nHost: x\r\n\r\n"]
)
async def test_host_that_does_not_answer_holds_up_nobody_else(way: str, web_port: int) -> None:
    """One session asks for it as often as it likes; others are served meanwhile. Each attempt ends with an error.

    The control: a silent host is one, since a connection to it is not made within a second.
    """
    with silent_host() as silent:
        with pytest.raises(TimeoutError), anyio.fail_after(1):
            await anyio.connect_tcp("127.0.0.1", silent)
        async with proxy(f"localhost:{silent}", f"localhost:{web_port}") as path:
            with anyio.fail_after(60):
                async with anyio.create_task_group() as tasks:
                    answers: list[bytes] = []

                    async def attack() -> None:
                        answers.append(await ask(path, way.format("localhost", silent)))

                    for _ in range(200):
                        tasks.start_soon(attack)
                    for _ in range(20):
                        with anyio.fail_after(ADDRESS_SECONDS):
                            assert b"hello" in await ask(path, get(web_port))
                    assert len(answers) == 0, "it was asked meanwhile"
            assert {answer.partition(b"\r\n")[0][:12] for answer in answers} <= {b"HTTP/1.1 502", b"HTTP/1.1 504"}
            assert len(answers) == 200


@pytest.mark.anyio
async def test_connections_that_are_held_give_way_to_others(web_port: int) -> None:
    """A session holds as many as there may be, and says nothing: the one that has been idle longest is closed."""
    forwarder = Forwarder([f"localhost:{web_port}"], most=5)
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as folder:
        path = Path(folder) / "proxy"
        async with await asyncio.start_unix_server(forwarder.serve, path):
            async with AsyncExitStack() as stack:
                held = [await stack.enter_async_context(await anyio.connect_unix(path)) for _ in range(20)]
                with anyio.fail_after(10):
                    for _ in range(10):
                        assert b"hello" in await ask(path, get(web_port))
                    for stream in held[:15]:
                        with pytest.raises(anyio.EndOfStream):
                            await stream.receive()


@pytest.mark.anyio
async def test_names_from_a_session_reach_the_log_as_text(capfd: pytest.CaptureFixture[str]) -> None:
    """Orders to a terminal, lines of their own, endless names: the server's log is read by a person."""
    evil = "\x1b]0;owned\x07\x1b[2J\u202ex" + "y" * 5_000
    async with proxy("example.org") as path:
        for name in (evil, "a\rb", "%1b%5b2J", "\x9b2J", "x" * 60_000, "\\x1b[2J"):
            for request in (
                f"CONNECT {name}:443 HTTP/1.1\r\nHost: x\r\n\r\n",
                f"GET http://{name}/ HTTP/1.1\r\nHost: {name}\r\n\r\n",
            ):
                answer = await ask(path, request)
                assert answer[:10] == b"HTTP/1.1 4", answer
        assert b" 403 evil.test is not among" in await ask(path, "CONNECT evil.test:443 HTTP/1.1\r\nHost: x\r\n\r\n")
    said = capfd.readouterr().err
    assert "refused evil.test: is not among the hosts" in said, "the control"
    assert all(character.isprintable() or character == "\n" for character in said), ascii(said)
    assert all(len(line) < 400 and line.startswith("kernel-server: proxy: ") for line in said.splitlines())


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        ("", b""),
        ("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"HTTP/1.1 400"),
        ("GET https://localhost/ HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 400"),
        ("CONNECT localhost HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 400"),
        ("CONNECT localhost:99999 HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 403"),
        ("CONNECT :443 HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 403"),
        ("\x16\x03\x01\x02\x00\r\n\r\n", b"HTTP/1.1 400"),
        ("GET http://[::1 HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 400"),
        ("GET http://x:y/ HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 400"),
        ("A" * 100_000, b"HTTP/1.1 400"),
        ("GET http://localhost@evil.test/ HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 403 evil.test"),
        ("GET http://localhost#@evil.test/ HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 403 localhost:80"),
        ("CONNECT 127.0.0.1:{port} HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 403"),
        ("CONNECT [::ffff:127.0.0.1]:{port} HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 403"),
        ("CONNECT LOCALHOST.:{port} HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 200"),
    ],
)
async def test_odd_requests_get_an_answer(request_: str, answer: bytes, web_port: int) -> None:
    """What is not named is refused in whatever way it is written; the proxy goes on."""
    async with proxy(f"localhost:{web_port}") as path:
        async with await anyio.connect_unix(path) as stream:
            await stream.send(request_.format(port=web_port).encode() or b" ")
            await stream.send_eof()
            with anyio.fail_after(10):
                said = b""
                with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                    said = await stream.receive()
        assert said.startswith(answer.replace(b" localhost:80", b" localhost")), said
        assert b"hello" in await ask(path, get(web_port)), "others are served"


@pytest.mark.anyio
async def test_host_gets_its_own_name_and_nothing_for_proxies(tmp_path: Path) -> None:
    """RFC 9112, 3.2.2: the Host header of a session does not decide. What follows is passed on as it is."""
    got: list[bytes] = []

    async def host(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.append(await reader.readexactly(1))
        while not got[0].endswith(b"12345"):
            got[0] += await reader.read(1000)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(3_000_000))
        writer.close()

    async with await asyncio.start_server(host, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with proxy(f"localhost:{port}") as path:
            answer = await ask(
                path,
                f"POST http://localhost:{port}/a%20b?c=d#e HTTP/1.1\r\nHost: fronted.example\r\nProxy-Authorization: x\r\n"
                "Connection: keep-alive\r\nAccept: */*\r\nContent-Length: 5\r\n\r\n12345",
            )
    assert answer == b"HTTP/1.1 200 OK\r\n\r\n" + bytes(3_000_000)
    lines = got[0].decode().split("\r\n")
    assert lines[0] == "POST /a%20b?c=d HTTP/1.1"
    assert set(lines[1:]) == {
        f"Host: localhost:{port}",
        "Connection: close",
        "accept: */*",
        "content-length: 5",
        "",
        "12345",
    }


@pytest.mark.anyio
@pytest.mark.docker
async def test_empty_list_is_nothing(docker_engine: None, tmp_path: Path, web_port: int) -> None:
    """Issue 6: empty list = nothing. (A sandbox of 2025 took it for everything: CVE-2025-66479.)"""
    settings = {"PY_EXEC_POOL": "0", "PY_EXEC_PRELOAD": "none", "PY_EXEC_NETWORK": "allow:"}
    async with serving(tmp_path, "docker", **settings) as kit, kit.session() as session:
        assert "network: only no host at all" in (await kit.call("init")).text
        await session.run(PROXY)
        assert await session.value(f"get('localhost', {web_port})[0]") == "403"
