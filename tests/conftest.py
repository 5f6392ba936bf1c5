"""Fixtures: one server with a real container for most tests, one with local kernels for the engine-free part.

`kit` is both, one after the other: a promise that does not depend on Docker is kept by either engine.
"""

from __future__ import annotations

import gc
import http.server
import os
import shutil
import signal
import threading
import warnings
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from kernel_server.errors import EngineError
from kernel_server.hosts.engine import Engine
from tests.driving import Handle, Kit, in_own_task, serving


def pytest_configure(config: pytest.Config) -> None:
    """docker-py leaves the socket of a failed connection to the garbage collector, which may run in any later test."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell starts what it runs in the background so
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for family in ("1, type=1", "AddressFamily.AF_UNIX, type=SocketKind.SOCK_STREAM"):
        config.addinivalue_line("filterwarnings", rf"ignore:unclosed <socket.socket fd=\d+, family={family}, proto=0>")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """All tests can be run with a container for each session, but for those about a common one."""
    if os.environ.get("PY_EXEC_SESSIONS_PER_CONTAINER", "0") != "0":
        apart = [item for item in items if item.get_closest_marker("one_container")]
        items[:] = [item for item in items if item not in apart]
        config.hook.pytest_deselected(items=apart)


def pytest_sessionfinish() -> None:
    """The same for what is collected last, when pytest's own filters are gone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"unclosed <socket.socket fd=\d+, family=.*, proto=0>$", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Our sockets, and those of pyzmq, know asyncio only."""
    return "asyncio"


@pytest.fixture(scope="session")
def docker_engine() -> None:
    """A test that needs an engine fails without one, and is never skipped: it would hide what it should show."""
    try:
        Engine.connect().close()
    except EngineError as error:
        pytest.fail(f"This test needs a Docker engine; `make engine` starts one. {error}", pytrace=False)


@pytest.fixture(scope="session")
async def docker_server(
    docker_engine: None, anyio_backend: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Kit]:
    folder = tmp_path_factory.mktemp("docker")
    async with in_own_task(serving(folder, "docker")) as kit:
        yield kit


@pytest.fixture(scope="session")
async def local_server(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Kit]:
    folder = tmp_path_factory.mktemp("local")
    async with in_own_task(serving(folder, "local")) as kit:
        yield kit


@pytest.fixture
def docker_kit(docker_server: Kit) -> Iterator[Kit]:
    """The server with a container that most tests share; its folders are empty."""
    yield docker_server
    _empty(docker_server)


@pytest.fixture
def local_kit(local_server: Kit) -> Iterator[Kit]:
    """The server with local kernels that most tests share; its folders are empty."""
    yield local_server
    _empty(local_server)


@pytest.fixture(params=["local", pytest.param("docker", marks=pytest.mark.docker)])
def kit(request: pytest.FixtureRequest) -> Kit:
    """A server with local kernels, then one with a container."""
    found = request.getfixturevalue(f"{request.param}_kit")
    assert isinstance(found, Kit)
    return found


@pytest.fixture
async def session(kit: Kit) -> AsyncIterator[Handle]:
    """A session of `kit`."""
    async with kit.session() as handle:
        yield handle


@pytest.fixture
async def docker_session(docker_kit: Kit) -> AsyncIterator[Handle]:
    """A session in a container."""
    async with docker_kit.session() as handle:
        yield handle


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KB. Only root can mount one, and there is no other real way to fill a disk."""
    if os.getuid() != 0:
        pytest.skip("mounting a small file system needs root")
    import subprocess

    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def web_port() -> Iterator[int]:
    """Of a web server of this machine."""

    class Hello(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"hello")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the overridden one
            """Says nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hello) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def _empty(kit: Kit) -> None:
    for folder in (kit.input, kit.output):
        for entry in folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
