"""The MCP Inspector from npm, installed once into `build/inspector`, which git ignores."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.clients.calls import FORM, Caller
from tests.clients.wire import ROOT, SCRIPTS, wire_server
from tests.driving import in_own_task

FOLDER = ROOT / "build" / "inspector"
INSPECTOR = "@modelcontextprotocol/inspector@2.12.0"
# The Inspector wants Node.js 22.19; with an older one, npx takes an Inspector of another age.
NODE = "node@22"
INSTALL_SECONDS = 600
# A global npmrc may answer npx's question with no.
NPM = {"npm_config_yes": "true", "npm_config_audit": "false", "npm_config_fund": "false"}

# Everything that the server can say is in its log: what must not be there is looked for.
ASKING: dict[str, Any] = {"PY_EXEC_ENGINE": "local", "PY_EXEC_PRELOAD": "none", "PY_EXEC_LOG_LEVEL": "DEBUG"}


@pytest.fixture(scope="session")
async def legacy_client(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Caller]:
    """A client of 2025-11-25 and its own server process, with local kernels."""
    folder = tmp_path_factory.mktemp("legacy")
    async with in_own_task(wire_server([sys.executable, str(ROOT / "server.py")], folder, **ASKING)) as server:
        await server.initialize(**FORM)
        yield Caller(server, modern=False)


@pytest.fixture(scope="session")
async def modern_client(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Caller]:
    """A client of 2026-07-28 and its own server process, with local kernels."""
    folder = tmp_path_factory.mktemp("modern")
    async with in_own_task(wire_server([sys.executable, str(ROOT / "server.py")], folder, **ASKING)) as server:
        yield Caller(server, modern=True)


@pytest.fixture
async def legacy(legacy_client: Caller) -> AsyncIterator[Caller]:
    """A client of 2025-11-25 with a session."""
    async with legacy_client.session() as caller:
        yield caller


@pytest.fixture
async def modern(modern_client: Caller) -> AsyncIterator[Caller]:
    """A client of 2026-07-28 with a session."""
    async with modern_client.session() as caller:
        yield caller


@pytest.fixture(params=["legacy", "modern"])
def caller(request: pytest.FixtureRequest) -> Caller:
    """A client of the one era, then one of the other, with a session."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Caller)
    return found


@dataclass(frozen=True)
class Inspector:
    """An installed Inspector.

    Attributes:
        command: the path of `mcp-inspector`.
        path: a PATH with its Node.js, and the scripts of this virtual environment, in front.
    """

    command: str
    path: str


@pytest.fixture(scope="session")
def inspector() -> Inspector:
    """Needs Node.js and npm: without them it skips, but never in CI."""
    missing = [name for name in ("node", "npm", "npx") if shutil.which(name) is None]
    if missing:
        message = f"the tests of the Inspector need Node.js and npm; not found: {', '.join(missing)}"
        if os.environ.get("CI"):
            pytest.fail(message, pytrace=False)
        pytest.skip(message)
    programs = FOLDER / "node_modules" / ".bin"
    _install(programs)
    path = os.pathsep.join([str(SCRIPTS), str(programs), os.environ["PATH"]])
    return Inspector(str(programs / "mcp-inspector"), path)


def _install(programs: Path) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    stamp = FOLDER / "installed"
    with open(FOLDER / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the suite may run more than once at a time
        if stamp.is_file() and stamp.read_text() == INSPECTOR and (programs / "mcp-inspector").exists():
            return
        (FOLDER / "package.json").write_text('{"private": true}\n')
        done = subprocess.run(
            ["npm", "install", "--prefix", str(FOLDER), INSPECTOR, NODE],
            env={**os.environ, **NPM},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS,
            check=False,
        )
        if done.returncode:
            pytest.fail(f"npm could not install the Inspector:\n{done.stderr[-2000:]}", pytrace=False)
        stamp.write_text(INSPECTOR)
