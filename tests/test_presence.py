"""Servers say that they run, and what sessions they have; nobody has to ask them. No engine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kernel_server.presence import announced, servers

PROGRAM = """
import sys
from pathlib import Path
from kernel_server.presence import announced
with announced(Path(sys.argv[1]), "docker") as announce:
    announce(["a", "b"])
    print("announced", flush=True)
    sys.stdin.read()
"""


def test_a_server_is_there_with_its_sessions_and_then_gone(tmp_path: Path) -> None:
    """Issue 5: live sessions of all servers of this user; a shorter list leaves nothing of a longer one."""
    with announced(tmp_path / "servers", "local") as announce:
        for sessions in (["a" * 32, "b" * 32], ["b" * 32], []):
            announce(sessions)
            (found,) = servers(tmp_path / "servers")
            assert (found.pid, found.engine, found.sessions) == (os.getpid(), "local", sessions)
    assert servers(tmp_path / "servers") == []
    assert list((tmp_path / "servers").iterdir()) == []


def test_a_killed_server_is_not_there_and_the_next_one_removes_its_file(tmp_path: Path) -> None:
    """Ours: the lock tells, not the file."""
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"announced\n"
        (found,) = servers(tmp_path)
        assert (found.pid, found.sessions) == (process.pid, ["a", "b"])
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert servers(tmp_path) == []
    assert len(list(tmp_path.iterdir())) == 1
    with announced(tmp_path, "docker"):
        assert [server.pid for server in servers(tmp_path)] == [os.getpid()]
        assert len(list(tmp_path.iterdir())) == 1


def test_a_server_runs_where_it_cannot_say_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Ours: a listing for people is no reason to refuse work."""
    (tmp_path / "file").touch()
    with announced(tmp_path / "file" / "servers", "docker") as announce:
        announce(["a"])
    assert "will not show this server" in caplog.text


def test_a_server_of_another_version_is_there_without_its_sessions(tmp_path: Path) -> None:
    """Ours: what cannot be read is not guessed."""
    with announced(tmp_path, "docker"):
        (path,) = tmp_path.iterdir()
        path.write_text('{"format": 2}\n')
        (found,) = servers(tmp_path)
    assert (found.pid, found.sessions) == (os.getpid(), None)
