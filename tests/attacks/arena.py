"""Where races take place: a session's folder, its staging, and a victim's tree that must stay as it is."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.attacks.planting import DEPTH, FOLDER, LOCKED, OWN, PATTERNS, SECRET, make_own

SESSION_UID, VICTIM_UID = 31_001, 31_002
MAX_BYTES = 16 << 20
SECRETS = b"THE VICTIM'S " * 600
ONLY_THERE = "only-there"  # a name in the victim's folder
LETTERS = b"\0" + bytes(set(OWN + b"new one"))  # all that a session's file can have
_ASKED = {"folder_and_link": "d/x", "deep_folder_moved": "d/" * DEPTH + "x"}


def asked(pattern: str) -> str:
    """The file that transfers are about."""
    return f"{pattern}/{_ASKED.get(pattern, 'x')}"


class Arena:
    """A session's folder with its staging, a victim's tree that all may read and write, and nothing else."""

    def __init__(self, folder: Path) -> None:
        self.session, self.victim, self.staging = folder / "session", folder / "victim", folder / "closed" / "staging"
        self._folder = folder

    def make(self) -> None:
        """Fills it."""
        self._folder.chmod(0o755)
        self.staging.mkdir(parents=True)
        self.staging.parent.chmod(0o700)
        self.session.mkdir()
        for pattern in PATTERNS:
            make_own(f"{self.session}/{pattern}", DEPTH + 1 if pattern in _ASKED else 0)
        (self.victim / FOLDER / "d").mkdir(parents=True)
        for name in (SECRET, LOCKED, "x", f"{FOLDER}/x", f"{FOLDER}/d/x", f"{FOLDER}/{ONLY_THERE}"):
            (self.victim / name).write_bytes(SECRETS)
        _own(self.session, SESSION_UID, 0o700, 0o644)
        _own(self.staging, SESSION_UID, 0o700, 0o600)
        # Permissions of the victim's protect nothing: what is shown is the care of those who open.
        _own(self.victim, VICTIM_UID, 0o777, 0o666)
        (self.victim / LOCKED).chmod(0o600)

    def outside(self) -> dict[str, tuple[object, ...]]:
        """All that no transfer may change: what is in the arena, but for the session's own."""
        found: dict[str, tuple[object, ...]] = {}
        for top, folders, names in os.walk(self._folder):
            if Path(top) == self._folder:
                folders.remove("session")
            for name in folders + names:
                path = Path(top, name)
                status = path.lstat()
                content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
                found[str(path)] = (status.st_mode, status.st_uid, status.st_ino, content)
        return found

    def foreign(self) -> list[str]:
        """Files of the session's that hold what is not its own; the victim's own file under another name does."""
        locked = (self.victim / LOCKED).stat().st_ino
        return [f"foreign bytes in {path}" for path in _regular_files(self.session) if is_foreign(path, locked)]


def _own(top: Path, uid: int, folder_mode: int, file_mode: int) -> None:
    for path in (top, *top.rglob("*")):
        os.chown(path, uid, uid)
        path.chmod(folder_mode if path.is_dir() else file_mode)


def _regular_files(top: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(top):
        paths = (Path(folder, name) for name in names)
        yield from (path for path in paths if stat.S_ISREG(path.lstat().st_mode))


def is_foreign(path: Path, but: int = 0) -> bool:
    with path.open("rb") as file:
        return bool(file.read(MAX_BYTES).translate(None, LETTERS)) and os.fstat(file.fileno()).st_ino != but


@contextmanager
def arena() -> Iterator[Arena]:
    """An arena for one run."""
    folder = Path(tempfile.mkdtemp(prefix="races-"))
    try:
        made = Arena(folder)
        made.make()
        yield made
    finally:
        shutil.rmtree(folder)
