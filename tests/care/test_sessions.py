"""`kernel-server sessions`, with real servers."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from kernel_server.care.sessions import sessions
from kernel_server.config import load_settings
from kernel_server.hosts import rundir
from tests.clients.wire import ROOT, WireServer, run_command, wire_server

pytestmark = pytest.mark.anyio

COMMAND = [sys.executable, "-m", "kernel_server", "sessions"]
SERVER = [
    sys.executable,
    str(ROOT / "server.py"),
    "--PY_EXEC_ENGINE=local",
    "--PY_EXEC_PRELOAD=none",
    "--PY_EXEC_POOL=0",
]


async def _init(server: WireServer) -> str:
    await server.initialize()
    started = await server.call("init")
    return str(started["_meta"]["kernel_server/session"]["session_id"])


async def test_live_and_kept_sessions_of_two_servers_are_listed(tmp_path: Path) -> None:
    """Issue 5: of all servers of this user; a killed server has none, and what ran in its sessions can be exported."""
    (tmp_path / "other").mkdir()
    async with (
        wire_server(SERVER, tmp_path) as first,
        wire_server(SERVER, tmp_path / "other", PY_EXEC_STATE_DIR=str(tmp_path / "state")) as second,
    ):
        mine, idle, theirs = await _init(first), await _init(first), await _init(second)
        for server, session_id in ((first, mine), (second, theirs)):
            await server.call("run_code", code=f"answer = {server.process.pid}\nanswer", session_id=session_id)

        shown = run_command(COMMAND, tmp_path).stdout
        assert f"Server {first.process.pid} (local, since " in shown
        assert f"in {tmp_path / 'other'}), 1 session\n" in shown
        assert f"  {idle}  no cell has ended yet\n" in shown
        assert _line(shown, mine).endswith(f"answer = {first.process.pid}")
        assert "   1 cell  " in _line(shown, theirs)
        assert shown.endswith("Of sessions that have ended, nothing is kept.\n")

        await first.call("close_session", session_id=idle)
        second.process.send_signal(signal.SIGKILL)
        await second.process.wait()
        live, ended = run_command(COMMAND, tmp_path).stdout.split("Sessions that have ended")
    assert mine in live
    assert "Server" in live
    assert str(second.process.pid) not in live
    assert theirs in ended
    assert idle not in live + ended


def _line(shown: str, session_id: str) -> str:
    (line,) = [line for line in shown.splitlines() if session_id in line]
    return line


async def test_nothing_is_said_to_be_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours: also where no server has ever run. What others on this machine have left is not looked at."""
    monkeypatch.setattr(rundir, "parent_folders", lambda: {tmp_path})
    assert sessions(load_settings({"PY_EXEC_STATE_DIR": str(tmp_path / "none")})) == 0
    assert capsys.readouterr().out == (
        f"No server runs with the state folder {tmp_path / 'none'}.\nOf sessions that have ended, nothing is kept.\n"
    )
    assert not (tmp_path / "none").exists()


async def test_code_that_was_run_does_not_reach_the_terminal_as_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ours: an escape sequence in a cell (7 or 8 bits) would move the cursor, or worse, of the person who looks."""
    folder = tmp_path / "journals"
    folder.mkdir()
    record = (
        '{"source": "\\u001b[2J\\u009b2J\\u202ex", "execution_count": 1, "status": "ok", "generation": 1, "begun": "", '
        '"ended": "", "notes": [], "outputs": []}\n'
    )
    (folder / f"{'0' * 32}.jsonl").write_text(record)
    sessions(load_settings({"PY_EXEC_STATE_DIR": str(tmp_path)}))
    shown = capsys.readouterr().out
    assert "�[2J�2J�x" in shown
    assert all(character.isprintable() or character == "\n" for character in shown)
