"""`kernel-server doctor`: each thing that can be wrong is made wrong, and told with a way to mend it."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from kernel_server.care import engine as engine_checks
from kernel_server.care.doctor import doctor
from kernel_server.config import load_settings
from kernel_server.hosts.engine import DEFAULT_SOCKET
from tests.clients.wire import run_command, server_environment
from tests.driving import docker_client

COMMAND = [sys.executable, "-m", "kernel_server", "doctor"]
OTHER_UID = 1234
# Everything is imported before it becomes a user who may not read this installation.
AS_ANOTHER_USER = f"""
import os, sys
import docker, docker.utils
from kernel_server import cli
from kernel_server.care import clean, doctor, sessions
os.setgroups([])
os.setgid({OTHER_UID})
os.setuid({OTHER_UID})
sys.exit(cli.main(["doctor"]))
"""


@pytest.fixture
def no_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """For checks that have nothing to do with an engine."""
    path = tmp_path / "none.sock"
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    return path


def found(capsys: pytest.CaptureFixture[str], **settings: str) -> tuple[int, dict[str, str]]:
    """Exit code, and the lines of each finding (`level finding → mend`) by what was looked at."""
    code = doctor(load_settings(settings))
    return code, _by_what(capsys.readouterr().out)


def _by_what(shown: str) -> dict[str, str]:
    lines: dict[str, str] = {}
    what = ""
    for line in shown.splitlines():
        if not line.startswith(" "):
            what = line[6:21].strip()
            line = f"{line[:5].strip()} {line[21:]}"  # noqa: PLW2901 - level and finding
        lines[what] = f"{lines[what]}\n{line.strip()}" if what in lines else line.strip()
    return lines


@pytest.mark.docker
def test_all_is_looked_at_and_nothing_fails_where_everything_works(tmp_path: Path) -> None:
    """Issue 5: engine, permissions, image, versions with known holes, cgroup version, disk, leftovers of ours."""
    done = run_command([*COMMAND, "--WORKDIR", str(tmp_path)], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    checks = _by_what(done.stdout)
    assert {
        "python", "packages", "WORKDIR_IN", "WORKDIR_OUT", "state folder", "run folder", "engine", "version",
        "known holes", "users", "limits", "profiles", "Landlock", "storage", "engine's disk", "image", "leftovers",
    } <= checks.keys()  # fmt: skip
    with docker_client() as client:
        version, info = client.version(), client.info()
    assert f"Docker {version['Version']} (API {version['ApiVersion']})" in checks["version"]
    assert f"cgroup v{info['CgroupVersion']}, driver {info['CgroupDriver']}" in checks["limits"]
    assert info["Driver"] in checks["storage"]
    assert not (tmp_path / "state").exists(), "it changes nothing"


@pytest.mark.docker
def test_missing_layer_is_told_with_the_command_that_builds_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Issue 5: the image; nothing is pulled or built to find out."""
    code, checks = found(capsys, DOCKER_IMAGE="localhost:9/no/such-image")
    assert code == 0
    assert checks["image"].startswith("warn localhost:9/no/such-image is not here")
    assert "kernel-server build" in checks["image"]


def test_no_engine_fails_and_all_else_is_looked_at(no_engine: Path, tmp_path: Path) -> None:
    """Issue 5: it works without an engine, and says how to get one."""
    done = run_command(COMMAND, tmp_path)
    checks = _by_what(done.stdout)
    assert (done.returncode, done.stderr) == (1, "")
    assert checks["engine"].startswith(f"FAIL There is no Docker engine at {no_engine}.\n→ Install Docker")
    assert {"python", "packages", "state folder", "run folder", "leftovers"} <= checks.keys()


@pytest.mark.docker
def test_engine_that_may_not_be_used_is_told_apart_from_one_that_does_not_run(tmp_path: Path) -> None:
    """Issue 5: permissions. A real other user, at the real engine's socket."""
    if os.getuid() != 0 or not DEFAULT_SOCKET.exists() or DEFAULT_SOCKET.stat().st_mode & stat.S_IWOTH:
        pytest.skip("needs root, and an engine whose socket is not for everybody")
    environment = server_environment(tmp_path)
    environment.pop("DOCKER_HOST", None)
    done = subprocess.run(
        [sys.executable, "-c", AS_ANOTHER_USER],
        cwd="/",
        env={**environment, "PY_EXEC_STATE_DIR": "/var/lib/kernel-server"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    checks = _by_what(done.stdout)
    assert (done.returncode, done.stderr) == (1, "")
    assert checks["engine"].startswith(f"FAIL You may not talk to the Docker engine at {DEFAULT_SOCKET}.\n→ Join its")
    assert checks["state folder"].startswith("FAIL /var/lib/kernel-server cannot be made")
    assert checks["WORKDIR_OUT"].startswith("warn / cannot be written to"), "nobody has chosen it"


def test_engine_that_never_answers_is_given_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours: it ends in bounded time; here that of one request, made short."""
    monkeypatch.setattr(engine_checks, "REQUEST_TIMEOUT", 0.5)
    path = tmp_path / "stuck.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
        code, checks = found(capsys)
    assert code == 1
    assert checks["engine"].startswith(f"FAIL The Docker engine at {path} does not answer")


def test_local_engine_is_said_to_isolate_nothing(
    no_engine: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """DESIGN: `local` is for development, and never silent about it; no Docker engine is asked."""
    code, checks = found(capsys, PY_EXEC_ENGINE="local", PY_EXEC_STATE_DIR=str(tmp_path))
    assert code == 0
    assert checks["engine"].startswith("warn PY_EXEC_ENGINE=local: code runs as your user")
    assert checks["ipykernel"].startswith("ok ")


@pytest.mark.usefixtures("no_engine")
def test_missing_folders_fail_by_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Issue 5: cp_in and cp_out would fail, each with its own folder."""
    (tmp_path / "file").touch()
    _, checks = found(capsys, WORKDIR_IN=str(tmp_path / "none"), WORKDIR_OUT=str(tmp_path / "file"))
    assert checks["WORKDIR_IN"].startswith(f"FAIL {tmp_path / 'none'} does not exist\n→ ")
    assert checks["WORKDIR_OUT"].startswith(f"FAIL {tmp_path / 'file'} is not a folder\n→ ")


@pytest.mark.usefixtures("no_engine")
def test_state_folder_that_cannot_be_made_fails(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Issue 5: nothing would be recorded, and no image built."""
    (tmp_path / "file").touch()
    _, checks = found(capsys, PY_EXEC_STATE_DIR=str(tmp_path / "file" / "state"))
    assert checks["state folder"].startswith(f"FAIL {tmp_path / 'file' / 'state'} cannot be made\n→ ")


@pytest.mark.usefixtures("no_engine")
def test_state_folder_of_another_user_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Ours: what is kept there could be his."""
    if os.getuid() != 0:
        pytest.skip("needs root, to give a folder away")
    folder = tmp_path / "state"
    folder.mkdir()
    _, checks = found(capsys, PY_EXEC_STATE_DIR=str(folder))
    assert checks["state folder"].startswith("ok ")
    os.chown(folder, OTHER_UID, OTHER_UID)
    _, checks = found(capsys, PY_EXEC_STATE_DIR=str(folder))
    assert checks["state folder"].startswith(f"warn {folder} belongs to another user\n→ Set PY_EXEC_STATE_DIR")


@pytest.mark.usefixtures("no_engine")
def test_full_disk_fails(capsys: pytest.CaptureFixture[str], small_disk: Path) -> None:
    """Issue 5: disk."""
    code, checks = found(capsys, PY_EXEC_STATE_DIR=str(small_disk))
    assert code == 1
    assert checks["state folder"].startswith("FAIL only ")
    assert "kernel-server clean" in checks["state folder"]


@pytest.mark.usefixtures("no_engine")
def test_run_folder_passes_over_a_path_that_is_too_long(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """unix(7): the path of a socket has at most 107 bytes."""
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    _, checks = found(capsys)
    assert f"since XDG_RUNTIME_DIR={long} is too long" in checks["run folder"]


@pytest.mark.usefixtures("no_engine")
def test_a_missing_and_an_old_package_fail_by_name(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue 5: what is installed against what is declared; here a declaration that this environment does not meet."""
    folder = tmp_path / "kernel_server-0.0.dist-info"
    folder.mkdir()
    needs = ["no-such-package>=1", "anyio>=999.1", "docker>=1,<2", "pydantic>=2", "mypy>=99; extra == 'dev'"]
    lines = "".join(f"Requires-Dist: {need}\n" for need in needs)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: kernel-server\nVersion: 0.0\n{lines}")
    monkeypatch.syspath_prepend(str(tmp_path))
    _, checks = found(capsys)
    problems = checks["packages"].partition("\n")[0].split("; ")
    assert [problem.split(" is ")[0] for problem in problems] == ["FAIL no-such-package", "anyio", "docker"]
    assert problems[1].endswith("needs >=999.1")


@pytest.mark.docker
def test_unknown_runtime_is_told_with_those_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    """Issue 6: PY_EXEC_RUNTIME."""
    code, checks = found(capsys, PY_EXEC_RUNTIME="no-such-runtime")
    assert code == 1
    assert checks["runtime"].startswith("FAIL the engine has no runtime no-such-runtime")
    assert "runc" in checks["runtime"]
    _, checks = found(capsys, PY_EXEC_RUNTIME="runc")
    assert checks["runtime"].startswith("ok")


@pytest.mark.docker
def test_missing_landlock_is_told_and_fails_where_it_is_demanded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue 6: doctor says which layers are on."""
    monkeypatch.setattr(engine_checks, "LANDLOCK_ABI", 1_000)  # a Linux that has not enough of it
    _, checks = found(capsys)
    assert checks["Landlock"].startswith("warn ABI")
    code, checks = found(capsys, PY_EXEC_ISOLATION="strict")
    assert code == 1
    assert checks["Landlock"].startswith("FAIL ABI")
