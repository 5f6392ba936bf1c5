"""PY_EXEC_NETWORK=allow:…: sessions reach the hosts that are named, by a proxy, and nothing else (issue 6).

What is reached is a server on 127.0.0.1 of this machine; nothing beyond it is asked.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from kernel_server.hosts.proxy import is_allowed, is_reachable
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


@pytest.mark.anyio
@pytest.mark.docker
async def test_empty_list_is_nothing(docker_engine: None, tmp_path: Path, web_port: int) -> None:
    """Issue 6: empty list = nothing. (A sandbox of 2025 took it for everything: CVE-2025-66479.)"""
    settings = {"PY_EXEC_POOL": "0", "PY_EXEC_PRELOAD": "none", "PY_EXEC_NETWORK": "allow:"}
    async with serving(tmp_path, "docker", **settings) as kit, kit.session() as session:
        assert "network: only no host at all" in (await kit.call("init")).text
        await session.run(PROXY)
        assert await session.value(f"get('localhost', {web_port})[0]") == "403"
