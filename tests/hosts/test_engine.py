"""Connecting to an engine: each way in which it fails says what to do. None of these needs an engine."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from kernel_server.errors import EngineUnavailable
from kernel_server.hosts import engine as engine_module
from kernel_server.hosts.engine import Engine, _local_address, _split_reference

if TYPE_CHECKING:
    from pathlib import Path


def test_missing_socket_says_install_or_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 2, bad input: no engine."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(EngineUnavailable, match=r"no Docker engine at .*none\.sock.*Install.*systemctl start docker"):
        Engine.connect()


def test_dead_socket_says_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours: a killed engine leaves its socket; connecting is refused."""
    path = tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    with pytest.raises(EngineUnavailable, match=r"does not answer.*systemctl start docker"):
        Engine.connect()


def test_plain_file_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours: a wrong path in DOCKER_HOST."""
    path = tmp_path / "file"
    path.touch()
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    with pytest.raises(EngineUnavailable, match="is not a socket"):
        Engine.connect()


def test_bad_docker_host_shows_the_accepted_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours: the message names the variable, its value, and what is accepted."""
    monkeypatch.setenv("DOCKER_HOST", "nonsense://x")
    with pytest.raises(EngineUnavailable, match=r"DOCKER_HOST='nonsense://x'.*unix:///"):
        Engine.connect()


def test_remote_engine_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours: port 9 of this machine, where nothing listens."""
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")
    with pytest.raises(EngineUnavailable, match=r"DOCKER_HOST=tcp://127\.0\.0\.1:9 does not answer"):
        Engine.connect()


def test_dead_socket_of_the_system_does_not_hide_a_rootless_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours: the first at which somebody answers; if nobody does, the first, so that the error names it."""
    system, rootless = tmp_path / "system.sock", tmp_path / "docker.sock"
    monkeypatch.setattr(engine_module, "DEFAULT_SOCKET", system)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert _local_address() == f"unix://{system}"
    with socket.socket(socket.AF_UNIX) as dead, socket.socket(socket.AF_UNIX) as alive:
        dead.bind(str(system))
        alive.bind(str(rootless))
        assert _local_address() == f"unix://{system}"
        alive.listen()
        assert _local_address() == f"unix://{rootless}"
        dead.listen()
        assert _local_address() == f"unix://{system}"


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("python", ("python", "latest")),
        ("python:3.13-slim", ("python", "3.13-slim")),
        ("localhost:5000/a/b", ("localhost:5000/a/b", "latest")),
        ("localhost:5000/a/b:c", ("localhost:5000/a/b", "c")),
        ("a@sha256:0123", ("a@sha256:0123", None)),
    ],
)
def test_reference_is_split_at_its_tag(reference: str, expected: tuple[str, str | None]) -> None:
    """Docker: without a tag, `latest`; the API would pull all tags. A port is no tag."""
    assert _split_reference(reference) == expected
