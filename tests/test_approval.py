"""What a `.env` may decide that nobody has approved: attacks by a clone, by a session, by other users, each with its control."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernel_server.cli import main
from kernel_server.config import Settings, describe_settings, load_configuration, load_settings
from kernel_server.errors import ConfigurationError, ImageUnavailable
from kernel_server.hosts.engine import Engine
from kernel_server.hosts.images import ImageRequest, ensure_kernel_image
from tests.clients.wire import ROOT, SCRIPTS, run_command

OTHER_UID = 4321
# What opens something, with the attribute that it would change.
WIDENING = [
    ("PY_EXEC_ENGINE", "local", "engine"),
    ("PY_EXEC_NETWORK", "bridge", "network"),
    ("PY_EXEC_NETWORK", "allow:evil.example", "network"),
    ("PY_EXEC_NETWORK", "allow:", "network"),
    ("PY_EXEC_RUNTIME", "runc-without-walls", "runtime"),
    ("PY_EXEC_BUILD_NETWORK", "host", "build_network"),
    ("PY_EXEC_STATE_DIR", "state", "state_dir"),
    ("PY_EXEC_CA_BUNDLE", "own.pem", "ca_bundle"),
    ("PY_EXEC_MEMORY", "0", "memory"),
    ("PY_EXEC_MEMORY", "5g", "memory"),
    ("PY_EXEC_SESSION_MEMORY", "0", "session_memory"),
    ("PY_EXEC_WORKSPACE_SIZE", "1t", "workspace_size"),
    ("PY_EXEC_NOTEBOOK_TTL", "1", "notebook_ttl"),
    ("WORKDIR", "/", "workdir"),
    ("WORKDIR_IN", "/", "workdir_in"),
    ("WORKDIR_IN", "..", "workdir_in"),
    ("WORKDIR_IN", "~", "workdir_in"),
    ("WORKDIR_IN", "inside/../..", "workdir_in"),
    ("WORKDIR_IN", "link", "workdir_in"),
    ("WORKDIR_IN", "link/deeper", "workdir_in"),
    ("WORKDIR_OUT", "/tmp", "workdir_out"),
    ("WORKDIR_OUT", ".git", "workdir_out"),
    ("WORKDIR_OUT", "inside/.git/hooks", "workdir_out"),
    ("WORKDIR_IN", "round", "workdir_in"),
    ("WORKDIR_IN", "${SECRET}", "workdir_in"),
    ("DOCKER_IMAGE", "evil.example/${SECRET}", "image"),
]
NARROWING = [
    ("PY_EXEC_ENGINE", "docker", "engine", "docker"),
    ("PY_EXEC_NETWORK", "none", "network", "none"),
    ("PY_EXEC_ISOLATION", "strict", "isolation", "strict"),
    ("PY_EXEC_PACKAGES", "six", "packages", ["six"]),
    ("PY_EXEC_MEMORY", "1g", "memory", 1 << 30),
    ("PY_EXEC_SESSION_TTL", "5", "session_ttl", 5.0),
    ("PY_EXEC_NOTEBOOK_TTL", "9999999", "notebook_ttl", 9999999.0),
    ("DOCKER_IMAGE", "code_interpreter", "image", "code_interpreter"),
    ("WORKDIR_IN", "inside", "workdir_in", Path("inside")),
    ("WORKDIR_IN", ".", "workdir_in", Path()),
    ("WORKDIR_OUT", "inside/not/yet", "workdir_out", Path("inside/not/yet")),
]


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a client starts the server in, with a link that leads out of it; no setting but the state folder."""
    folder = tmp_path / "project"
    (folder / "inside").mkdir(parents=True)
    (folder / "link").symlink_to("/")
    (folder / "round").symlink_to("round")
    (folder / "own.pem").touch()
    monkeypatch.chdir(folder)
    for name, _, _ in describe_settings():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PY_EXEC_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("SECRET", "credential")
    return folder


@pytest.mark.parametrize(("name", "value", "attribute"), WIDENING)
@pytest.mark.parametrize("case", [str.upper, str.lower])
def test_what_widens_is_ignored_and_said_until_the_file_is_approved(
    name: str, value: str, attribute: str, case: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cloned project brings a `.env`. The controls: the same file counts where it is named, and where it is approved."""
    if name == "PY_EXEC_STATE_DIR":
        monkeypatch.delenv(name)
        monkeypatch.setenv("HOME", os.getcwd())
    written = name.lower() if case is str.lower else name
    Path(".env").write_text(f"export {written}='{value}'\nPY_EXEC_WAIT=7\n")
    loaded = load_configuration()
    usual = load_settings({"PY_EXEC_WAIT": "7"})
    assert getattr(loaded.settings, attribute) == getattr(usual, attribute)
    assert loaded.settings.wait == 7, "all else of it counts"
    assert loaded.origin.ignored == {name: value}
    (warning,) = [line for line in loaded.origin.lines() if line.startswith("warning")]
    assert f"{name}={value}" in warning
    assert "kernel-server trust" in warning
    assert "--env-file" in warning
    named = load_configuration(env_file=".env")
    assert getattr(named.settings, attribute) != getattr(usual, attribute)
    assert not named.origin.ignored


@pytest.mark.parametrize(("name", "value", "attribute", "expected"), NARROWING)
def test_what_narrows_counts_and_is_said(name: str, value: str, attribute: str, expected: object) -> None:
    """The promise: WORKDIR_IN, WORKDIR_OUT and DOCKER_IMAGE, among others, from `.env` in the current folder."""
    Path(".env").write_text(f"{name}={value}\n")
    loaded = load_configuration()
    assert getattr(loaded.settings, attribute) == expected
    assert list(loaded.origin.lines()) == [f"{name}={value} comes from {Path.cwd() / '.env'}"]


def test_absolute_folder_inside_counts(project: Path) -> None:
    """Ours: what counts is where it leads."""
    Path(".env").write_text(f"WORKDIR_IN={project / 'inside'}\nWORKDIR_OUT={project}\n")
    settings = load_settings()
    assert (settings.input_folder, settings.output_folder) == (project / "inside", project)


def test_folder_on_the_command_line_is_not_left_by_a_file(tmp_path: Path) -> None:
    """WORKDIR_IN of a file beats WORKDIR of the command line: only within that."""
    Path(".env").write_text("WORKDIR_IN=inside\nWORKDIR_OUT=.\n")
    other = tmp_path / "other"
    other.mkdir()
    loaded = load_configuration({"WORKDIR": str(other)})
    assert (loaded.settings.input_folder, loaded.settings.output_folder) == (other, other)
    assert loaded.origin.ignored.keys() == {"WORKDIR_IN", "WORKDIR_OUT"}


def test_approval_holds_for_the_file_as_it_was(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A session changes the file that the user has approved: it is not approved any more. Nor is a copy elsewhere."""
    Path(".env").write_text("PY_EXEC_NETWORK=bridge\nWORKDIR_IN=${HOME}\n")
    assert load_settings().network == "none"
    assert main(["trust"]) == 0
    assert "PY_EXEC_NETWORK=bridge" in capsys.readouterr().out
    settings = load_settings()
    assert (settings.network, settings.input_folder) == ("bridge", Path.home())
    with Path(".env").open("a") as file:
        file.write("PY_EXEC_ENGINE=local\n")
    settings = load_settings()
    assert (settings.network, settings.engine) == ("none", "docker")
    Path(".env").write_text("PY_EXEC_NETWORK=bridge\nWORKDIR_IN=${HOME}\n")
    assert load_settings().network == "bridge", "as it was"
    os.chdir(tmp_path)
    (tmp_path / ".env").write_bytes(Path("project/.env").read_bytes())
    assert load_settings().network == "none", "another folder"


@pytest.mark.parametrize("where", ["trusted", "."])
def test_approvals_of_others_do_not_count(where: str, tmp_path: Path) -> None:
    """A state folder that others can write to would let them approve. The control is before it."""
    Path(".env").write_text("PY_EXEC_NETWORK=bridge\n")
    assert main(["trust"]) == 0
    assert load_settings().network == "bridge"
    (record,) = (tmp_path / "state" / "trusted").iterdir()
    changed = record if where == "." else record.parent
    changed.chmod(0o777)
    assert load_settings().network == "none"


def as_another_users(path: Path) -> None:
    os.chown(path, OTHER_UID, OTHER_UID)


def as_everybodys(path: Path) -> None:
    path.chmod(0o666)


def as_a_link(path: Path) -> None:
    path.rename("real")
    path.symlink_to("real")


def as_a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("spoil", [as_another_users, as_everybodys, as_a_link, as_a_fifo])
def test_file_that_others_may_have_made_is_not_used_at_all(spoil: object) -> None:
    """In /tmp, say, or a folder that is shared. The control is the same file before."""
    if spoil is as_another_users and os.getuid() != 0:
        pytest.skip("needs root, to give a file away")
    path = Path(".env")
    path.write_text("PY_EXEC_WAIT=7\n")
    assert load_settings().wait == 7
    assert callable(spoil)
    spoil(path)
    loaded = load_configuration()
    assert loaded.settings.wait == 45
    (line,) = loaded.origin.lines()
    assert line.startswith(f"warning: {Path.cwd() / '.env'} ")
    assert "NOT used" in line
    assert main(["trust"]) == 1, "nor can it be approved"


def test_folder_of_that_name_is_none() -> None:
    """Some call their virtual environment `.env`."""
    Path(".env").mkdir()
    assert list(load_configuration().origin.lines()) == []


def test_named_file_that_is_not_there_is_a_bad_configuration() -> None:
    """Ours: it is not passed over."""
    with pytest.raises(ConfigurationError, match="--env-file 'none'"):
        load_configuration(env_file="none")


def test_file_sets_nothing_but_settings() -> None:
    """DOCKER_HOST and the like reach no program, also from a file that is approved: it is only read."""
    Path(".env").write_text("DOCKER_HOST=tcp://evil.example\nPIP_CERT=own.pem\nPIP_INDEX_URL=http://evil.example\n")
    before = dict(os.environ)
    for env_file in ("", ".env"):
        loaded = load_configuration(env_file=env_file)
        assert loaded.settings == load_settings()
        assert not loaded.origin.taken
    assert dict(os.environ) == before


def test_every_setting_is_judged() -> None:
    """A setting that is added must be thought about: those that nothing is asked of are these."""
    from kernel_server.approval import LIMITS, ONLY_APPROVED

    judged = {*ONLY_APPROVED, *LIMITS, "WORKDIR", "WORKDIR_IN", "WORKDIR_OUT", "PY_EXEC_NOTEBOOK_TTL"}
    free = {str(found.validation_alias) for found in Settings.model_fields.values()} - judged
    assert free == {
        "DOCKER_IMAGE",  # never fetched for a file that is not approved
        "PY_EXEC_SESSION_TTL", "PY_EXEC_SESSION_MAX", "PY_EXEC_ON_EXIT", "PY_EXEC_POOL", "PY_EXEC_CHECKPOINTS",
        "PY_EXEC_AUTO_CHECKPOINTS", "PY_EXEC_SESSIONS_PER_CONTAINER", "PY_EXEC_TIMEOUT", "PY_EXEC_WAIT",
        "PY_EXEC_OUTPUT_BYTES", "PY_EXEC_CPUS", "PY_EXEC_PRELOAD", "PY_EXEC_LOG_LEVEL",
        "PY_EXEC_ISOLATION", "PY_EXEC_PACKAGES",  # their defaults are the widest there are
    }  # fmt: skip


@pytest.mark.docker
def test_image_of_a_file_that_is_not_approved_is_not_fetched(docker_engine: None, tmp_path: Path) -> None:
    """Whoever names an image has code run while it is built upon, with a network. The control tries to pull it."""
    image = "localhost:9/no/such-image"
    Path(".env").write_text(f"DOCKER_IMAGE={image}\n")
    engine = Engine.connect()
    said: list[str] = []
    try:
        for fetch, why in ((load_settings().fetches_image, "nobody has approved"), (True, "cannot be pulled")):
            with pytest.raises(ImageUnavailable, match=why):
                ensure_kernel_image(engine, ImageRequest(tmp_path / "locks", image, fetch=fetch), said.append)
    finally:
        engine.close()
    assert said == [f"Pulling {image}…"]
    assert load_configuration(env_file=".env").settings.fetches_image


@pytest.mark.parametrize("command", [["serve"], ["sessions"]])
def test_what_a_file_sets_is_on_stderr(command: list[str], project: Path) -> None:
    """Of every command; stdout may be the MCP wire."""
    Path(".env").write_text("PY_EXEC_ENGINE=local\nPY_EXEC_WAIT=7\n")
    for entry in ([str(SCRIPTS / "kernel-server")], [sys.executable, str(ROOT / "server.py")]):
        done = run_command([*entry, *command], project)
        assert f"kernel-server: PY_EXEC_WAIT=7 comes from {project}/.env\n" in done.stderr
        assert f"kernel-server: warning: NOT used from {project}/.env: PY_EXEC_ENGINE=local. " in done.stderr


def test_mcp_run_says_it_too(project: Path) -> None:
    """The SDK's commands import server.py."""
    Path(".env").write_text("PY_EXEC_ENGINE=local\n")
    done = run_command([str(SCRIPTS / "mcp"), "run", str(ROOT / "server.py")], project)
    assert f"NOT used from {project}/.env: PY_EXEC_ENGINE=local. " in done.stderr


def test_doctor_says_it(project: Path) -> None:
    """With what to do."""
    Path(".env").write_text("PY_EXEC_ENGINE=local\nPY_EXEC_WAIT=7\n")
    done = run_command([sys.executable, "-m", "kernel_server", "doctor"], project, DOCKER_HOST="unix:///none.sock")
    assert f"ok    settings       PY_EXEC_WAIT=7 comes from {project}/.env\n" in done.stdout
    assert f"warn  settings       PY_EXEC_ENGINE=local of {project}/.env is not used" in done.stdout
    assert "→ If you trust this file: `kernel-server trust`" in done.stdout


PLANTED = "import os; open(os.environ['SEEN'], 'a').write(__name__)\n"
SHADOWED = ("json", "argparse", "anyio", "pydantic", "dotenv", "h11", "ipaddress", "docker")


@pytest.mark.parametrize("way", ["-m kernel_server", "server.py", "mcp run"])
def test_modules_in_the_start_folder_are_not_imported(way: str, project: Path, tmp_path: Path) -> None:
    """What cp_out puts into the folder in which a server is started is no code of the next one."""
    for name in SHADOWED:
        Path(f"{name}.py").write_text(PLANTED)
    seen = tmp_path / "seen"
    if way == "server.py":  # a checkout: the modules lie beside it
        (project / "server.py").write_bytes((ROOT / "server.py").read_bytes())
        (project / "kernel_server").symlink_to(ROOT / "kernel_server")
    command = {
        "-m kernel_server": [sys.executable, "-m", "kernel_server", "sessions"],
        "server.py": [sys.executable, "server.py", "sessions"],
        "mcp run": [str(SCRIPTS / "mcp"), "run", str(ROOT / "server.py")],
    }[way]
    done = run_command(command, project, SEEN=str(seen))
    assert done.returncode == 0, done.stderr
    assert not seen.exists(), seen.read_text()
    control = "import sys; sys.path.insert(0, ''); import json"
    subprocess.run([sys.executable, "-c", control], env={**os.environ, "SEEN": str(seen)}, check=True)
    assert seen.exists()


@pytest.mark.anyio
async def test_proxy_imports_nothing_from_the_start_folder(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a process of its own, started by `python -m`."""
    import tempfile

    from kernel_server.hosts.proxy import serve_proxy

    for name in SHADOWED:
        Path(f"{name}.py").write_text(PLANTED)
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as folder:
        async with serve_proxy(Path(folder) / "proxy", []):
            assert not (tmp_path / "seen").exists()
