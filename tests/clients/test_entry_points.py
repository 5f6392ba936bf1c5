"""Every documented way to start the server really serves, and none of them needs Docker until a tool does."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mcp import Client, StdioServerParameters

from tests.clients.wire import ROOT, SCRIPTS, run_command, server_environment, wire_server

pytestmark = pytest.mark.anyio

TOOLS = {
    "init",
    "run_code",
    "run_file",
    "cp_in",
    "cp_out",
    "edit_file",
    "list_packages",
    "close_session",
    "reset",
    "export_notebook",
}
PYTHON = sys.executable
ENTRIES = {
    "server.py": [PYTHON, str(ROOT / "server.py")],
    "server.py with arguments": [PYTHON, str(ROOT / "server.py"), "--WORKDIR_IN", "A", "--WORKDIR_OUT", "B"],
    "python -m kernel_server serve": [PYTHON, "-m", "kernel_server", "serve"],
    "kernel-server serve": [str(SCRIPTS / "kernel-server"), "serve"],
    "mcp run server.py": [str(SCRIPTS / "mcp"), "run", str(ROOT / "server.py")],
}


@pytest.mark.parametrize("entry", ENTRIES)
async def test_entry_point_serves_without_an_engine(entry: str, tmp_path: Path) -> None:
    """Issue 2: it answers initialize and tools/list without Docker; the first call that needs it gets a clear error."""
    for name in ("A", "B"):
        (tmp_path / name).mkdir()
    command, *arguments = ENTRIES[entry]
    await _drive_without_engine(command, arguments, tmp_path, tmp_path)


async def test_uv_run_serves(tmp_path: Path) -> None:
    """Issue 2: `uv run python server.py`, in the environment that `uv sync` makes of pyproject.toml."""
    uv = shutil.which("uv", path=str(SCRIPTS)) or shutil.which("uv")
    if uv is None:
        pytest.skip("there is no uv here")
    # An environment of its own: uv would change the one that runs these tests. uv.lock is ignored by git.
    environment = {"UV_PROJECT_ENVIRONMENT": str(ROOT / "build" / f"uv-{sys.version_info[0]}.{sys.version_info[1]}")}
    synced = run_command([uv, "sync", "--quiet", "--python", PYTHON], ROOT, seconds=300, **environment)
    assert synced.returncode == 0, synced.stderr
    await _drive_without_engine(uv, ["run", "--python", PYTHON, "python", "server.py"], tmp_path, ROOT, **environment)


async def _drive_without_engine(
    command: str, arguments: list[str], folder: Path, cwd: Path, **environment: str
) -> None:
    socket = folder / "no-engine.sock"
    parameters = StdioServerParameters(
        command=command,
        args=arguments,
        env=server_environment(folder, DOCKER_HOST=f"unix://{socket}", PY_EXEC_ENGINE="docker", **environment),
        cwd=cwd,
    )
    async with Client(parameters, read_timeout_seconds=60) as client:
        tools = (await client.list_tools()).tools
        result = await client.call_tool("init")
    assert {tool.name for tool in tools} >= TOOLS
    assert result.is_error
    text = result.content[0]
    assert text.type == "text"
    assert f"There is no Docker engine at {socket}" in text.text


@pytest.mark.parametrize(
    "argv", [["mcp", "dev", "server.py"], ["x", "--bogus", "--WORKDIR_IN"], ["-c", "--help"], [""]]
)
def test_import_of_server_py_ignores_the_command_line(argv: list[str], tmp_path: Path) -> None:
    """facts/mcp.md 3: `mcp dev` imports server.py in its own process; a parser at module level would end that."""
    code = f"import sys; sys.argv = {argv!r}; sys.path.insert(0, {str(ROOT)!r}); import server; print(server.mcp.name)"
    done = run_command([PYTHON, "-c", code], tmp_path)
    assert (done.returncode, done.stdout) == (0, "kernel-server\n"), done.stderr


BAD = ["--PY_EXEC_SESSION_MAX", "many", "--py-exec-timeout", "soon", "--PY_EXEC_ENGINE", "podman"]


@pytest.mark.parametrize("entry", ["server.py", "kernel-server serve"])
def test_bad_settings_are_all_named_at_once(entry: str, tmp_path: Path) -> None:
    """DESIGN, configuration: every bad value is reported at once with its accepted form; exit code 2."""
    done = run_command([*ENTRIES[entry], *BAD], tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    for problem in (
        "PY_EXEC_SESSION_MAX='many': needs a whole number",
        "PY_EXEC_TIMEOUT='soon': needs seconds",
        "PY_EXEC_ENGINE='podman': needs docker or local",
    ):
        assert problem in done.stderr
    assert "Traceback" not in done.stderr


def test_bad_settings_in_dotenv_are_named(tmp_path: Path) -> None:
    """README: settings in `.env` of the current folder, the only way to give some to `mcp dev server.py`."""
    (tmp_path / ".env").write_text("PY_EXEC_SESSION_TTL=never\nPY_EXEC_MEMORY=lots\n")
    done = run_command([PYTHON, str(ROOT / "server.py")], tmp_path)
    assert done.returncode == 2
    assert "PY_EXEC_SESSION_TTL='never': needs seconds above 0" in done.stderr
    assert "PY_EXEC_MEMORY='lots': needs a size such as 512m or 4g" in done.stderr


def test_misspelled_option_is_refused(tmp_path: Path) -> None:
    """Ours: argparse names it; nothing is guessed from a prefix of an option."""
    done = run_command([*ENTRIES["server.py"], "--WORKDIR", ".", "--WORKDIR_INN", "A"], tmp_path)
    assert done.returncode == 2
    assert "--WORKDIR_INN" in done.stderr


async def test_stdin_at_its_end_ends_the_server_with_0(tmp_path: Path) -> None:
    """MCP, stdio shutdown: the client closes the server's stdin. No engine was ever needed."""
    async with wire_server(ENTRIES["server.py"], tmp_path) as server:
        await server.initialize()
        assert server.process.stdin is not None
        await server.process.stdin.aclose()
        assert await server.wait() == 0


def test_nothing_but_the_protocol_on_stdout(tmp_path: Path) -> None:
    """MCP, stdio: with nobody at the other end the server says nothing and ends."""
    done = subprocess.run(
        ENTRIES["server.py"],
        cwd=tmp_path,
        env=server_environment(tmp_path),
        input="",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")
