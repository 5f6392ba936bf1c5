"""`kernel-server sessions`: which sessions the servers of this user have, and which can still be exported."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from kernel_server.config import Settings
from kernel_server.hosts.controlled import read_sessions
from kernel_server.hosts.rundir import kept_folders
from kernel_server.presence import Presence, servers
from kernel_server.text import counted, human_size, one_line
from kernel_server.transcripts.folder import JournalFolder, JournalInfo

SHOWN_SOURCE = 60  # characters of the first cell


def sessions(settings: Settings) -> int:
    """Prints live sessions by server, then those that have ended and whose journal is kept. Returns the exit code."""
    for line in _lines(settings):
        print(line)
    return 0


def _lines(settings: Settings) -> Iterator[str]:
    recorded = JournalFolder(settings.state_dir / "journals")
    journals = {info.session_id: info for info in recorded.kept()}
    running = servers(settings.state_dir / "servers")
    for server in running:
        yield _server_line(server)
        for session_id in server.sessions or ():
            yield f"  {_session_line(session_id, journals.pop(session_id, None))}"
    if not running:
        yield f"No server runs with the state folder {settings.state_dir}."
    for folder in kept_folders():
        yield _printable(f"Kept for the next server with the same settings, in {folder}:")
        for record in read_sessions(folder):
            yield f"  {_session_line(record.session_id, journals.pop(record.session_id, None))}"
    if journals:
        yield "Sessions that have ended, whose notebook every server with this folder still exports (export_notebook):"
        yield from (f"  {_session_line(session_id, info)}" for session_id, info in journals.items())
    else:
        yield "Of sessions that have ended, nothing is kept."
    if removed := recorded.removed_for_room():
        yield f"{counted(removed, 'journal')} of ended sessions had to make room for newer ones."


def _server_line(server: Presence) -> str:
    known = [server.engine, f"since {_time(server.begun)}", f"in {server.folder}" if server.folder else ""]
    count = "unknown sessions" if server.sessions is None else counted(len(server.sessions), "session")
    return _printable(f"Server {server.pid} ({', '.join(filter(None, known))}), {count}")


def _session_line(session_id: str, info: JournalInfo | None) -> str:
    if info is None:
        return _printable(f"{session_id}  no cell has ended yet")
    begins = one_line(info.begins.strip().partition("\n")[0], SHOWN_SOURCE)
    columns = (
        session_id,
        _time(info.modified),
        f"{counted(info.cells, 'cell'):>9}",
        f"{human_size(info.size):>9}",
        begins,
    )
    return _printable("  ".join(columns))


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M")


def _printable(line: str) -> str:
    """Nothing that moves the cursor: what agents have run is on its way to a terminal."""
    return "".join(character if character.isprintable() else "\ufffd" for character in line).rstrip()
