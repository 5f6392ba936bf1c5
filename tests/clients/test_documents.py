"""What the documents say is what the code does: settings, tools, snippets."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mcp import Client

from kernel_server.app import create_server
from kernel_server.cli import COMMANDS, main
from kernel_server.config import describe_settings, load_settings
from kernel_server.tools.meta import ResultMeta
from tests.clients.wire import ROOT, SCRIPTS, server_environment

README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTAINER_README = (ROOT / "container" / "README.md").read_text(encoding="utf-8")
SETTINGS = list(describe_settings())


def _section(title: str) -> str:
    return README.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def _blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def _rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[1:]]


def test_settings_table_is_that_of_the_code() -> None:
    """DESIGN, configuration: README and code are compared; neither is remembered by hand."""
    expected = [[f"`{name}`", f"`{default}`" if default else "", text] for name, default, text in SETTINGS]
    assert _rows(_section("Settings")) == expected


def test_every_command_is_in_the_readme() -> None:
    """Ours: and those for looking after an installation in a table of their own."""
    assert not [command for command in COMMANDS if f"`kernel-server {command}`" not in README and command != "serve"]
    listed = [command for command, _ in _rows(_section("Looking after it"))]
    assert listed == [
        "`kernel-server doctor`",
        "`kernel-server sessions`",
        "`kernel-server clean`",
        "`kernel-server build`",
    ]


def test_dotenv_example_has_every_setting_with_its_default() -> None:
    """The same for `.env.example`; as it stands, it sets nothing."""
    lines = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    assert all(line.startswith("#") for line in lines if line)
    given = [line.removeprefix("# ") for line in lines]
    expected = [part for name, default, text in SETTINGS for part in (text, f"{name}={default}")]
    assert [line for line in given if line][2:] == expected


def test_dotenv_example_is_accepted_when_everything_is_taken_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours: who removes every `#` gets a working file; empty values are the defaults."""
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    (tmp_path / ".env").write_text(re.sub(r"^# (?=[A-Z_]+=)", "", text, flags=re.MULTILINE), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for name, _, _ in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    with_file = load_settings()
    (tmp_path / ".env").unlink()
    assert with_file == load_settings()


@pytest.mark.anyio
async def test_tools_table_is_that_of_the_server() -> None:
    """Every tool with all of its arguments."""
    listed = {}
    for signature, _ in _rows(_section("Tools")):
        name, _, arguments = signature.strip("`").rstrip(")").partition("(")
        listed[name] = [part for part in arguments.split(", ") if part]
    async with Client(create_server(load_settings())) as client:
        tools = (await client.list_tools()).tools
    assert {name: set(arguments) for name, arguments in listed.items()} == {
        tool.name: set(tool.input_schema.get("properties", {})) for tool in tools
    }


def test_result_table_is_that_of_the_code() -> None:
    """`_meta` is documented with every key."""
    expected = [[f"`{name}`", key.description] for name, key in ResultMeta.model_fields.items()]
    assert _rows(_section("Results")) == expected


@pytest.mark.anyio
async def test_resources_table_is_that_of_the_server() -> None:
    """Every template."""
    async with Client(create_server(load_settings())) as client:
        templates = (await client.list_resource_templates()).resource_templates
    listed = [uri.strip("`") for uri, _ in _rows(_section("Resources"))]
    assert listed == [template.uri_template for template in templates]


@pytest.mark.anyio
async def test_descriptions_fit_every_client() -> None:
    """facts/mcp.md 5: Claude Code cuts a tool's description and the server's instructions at 2 KB each."""
    async with Client(create_server(load_settings())) as client:
        tools = (await client.list_tools()).tools
        assert len((client.instructions or "").encode()) < 2000
    for tool in tools:
        assert tool.title
        assert tool.description
        assert len(tool.description.encode()) < 2000
        assert "\n  " not in tool.description, "indentation of the docstring"
        for name, schema in tool.input_schema.get("properties", {}).items():
            assert schema.get("description"), f"{tool.name}: {name}"


@pytest.mark.docker
def test_quick_start_gives_the_answer_that_the_readme_shows(tmp_path: Path) -> None:
    """STYLE: every snippet is run by a test."""
    section = _section("Quick start")
    (code,) = _blocks(section, "python")
    (answer,) = _blocks(section, "text")
    assert len(code.strip().splitlines()) < 10
    environment = server_environment(tmp_path)
    environment["PATH"] = f"{SCRIPTS}:{environment['PATH']}"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, answer), done.stderr


def test_client_configurations_are_valid_and_their_arguments_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    """Each snippet parses, and kernel-server takes the arguments in it (`--help` stops it before it serves)."""
    servers = [
        server
        for block in _blocks(_section("Clients"), "json")
        for group in json.loads(block).values()
        for server in group.values()
    ]
    tomllib = pytest.importorskip("tomllib") if sys.version_info >= (3, 11) else None
    if tomllib is not None:
        (codex,) = _blocks(_section("Clients"), "toml")
        servers.extend(tomllib.loads(codex)["mcp_servers"].values())
    assert len(servers) >= 2
    for server in servers:
        assert Path(server["command"]).name == "kernel-server"
        with pytest.raises(SystemExit) as stopped:
            main([*server["args"], "--help"])
        assert stopped.value.code == 0
    assert "--WORKDIR_IN" in capsys.readouterr().out


def test_control_protocol_is_documented() -> None:
    """container/README.md names every operation and event of kernel_host, and the number of its protocol."""
    files = sorted((ROOT / "container" / "kernel_host").glob("*.py"))
    source = "\n".join(path.read_text(encoding="utf-8") for path in files)
    table = re.split(r"operations: dict\[.*\] = \{", source, maxsplit=1)[1].split("}", 1)[0]
    operations = set(re.findall(r'"(\w+)": ', table))
    events = set(re.findall(r'"event": "(\w+)"', source))
    documented = set(re.findall(r"^\| `(\w+)` \|", CONTAINER_README, re.MULTILINE))
    assert operations
    assert events
    assert operations | events <= documented
    package = (ROOT / "container" / "kernel_host" / "__init__.py").read_text(encoding="utf-8")
    (number,) = re.findall(r"^PROTOCOL = (\d+)$", package, re.MULTILINE)
    assert f"## The control protocol, version {number}\n" in CONTAINER_README


def test_requirements_name_no_index_and_cover_the_dependencies() -> None:
    """DESIGN, dependencies: pins without registry URLs."""
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9_.-]+==\S+( ; .+)?", line) for line in lines)
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    declared = project.split("\ndependencies = [", 1)[1].split("\n]", 1)[0]
    names = {re.sub("[._]", "-", name.lower()) for name in re.findall(r'"([\w.-]+)', declared)}
    assert names <= {line.partition("==")[0] for line in lines}
