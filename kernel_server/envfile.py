"""`.env` files: reads one without being led astray, and remembers which of them the user has approved.

A `.env` in the current folder may have come with a clone, or out of a session. It refuses to know settings: what such a
file may decide is `config`'s business. The only module that knows python-dotenv.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from dotenv import dotenv_values

from kernel_server.errors import ConfigurationError
from kernel_server.private import open_private, private_folder

NAME = ".env"
MAX_BYTES = 1 << 20
REFERENCE = "${"  # python-dotenv would put a variable of the environment in its place


@dataclass(frozen=True)
class EnvFile:
    """One that was read.

    Attributes:
        content: its bytes.
        named: the user has named it, so that it is approved.
        refused: why its content is not used; "" where it is.
    """

    path: Path
    content: bytes = b""
    named: bool = False
    refused: str = ""

    def values(self, *, references: bool) -> dict[str, str]:
        """What it sets, by name in upper case, without what is empty.

        Args:
            references: whether `${NAME}` stands for a variable of the environment.

        Raises:
            ConfigurationError: it is not UTF-8.
        """
        try:
            text = io.StringIO(self.content.decode())
        except UnicodeDecodeError as error:
            raise ConfigurationError([f"{self.path}: needs UTF-8 text (byte {error.start} is none)"]) from error
        found = dotenv_values(stream=text, interpolate=references)
        return {name.upper(): value for name, value in found.items() if value}

    def _record(self, state_dir: Path) -> Path:
        seen = os.fsencode(self.path.resolve()) + b"\0" + self.content
        return state_dir / "trusted" / hashlib.sha256(seen).hexdigest()

    def is_trusted(self, state_dir: Path) -> bool:
        """Whether the user has named it, or approved it as it is now."""
        if self.named:
            return True
        record = self._record(state_dir)
        try:
            with private_folder(record.parent) as folder:
                os.close(open_private(record.name, folder))
        except OSError:
            return False
        return True

    def trust(self, state_dir: Path) -> None:
        """Remembers that the user approves it as it is now.

        Raises:
            OSError: the state folder cannot be written to, or is open to others.
        """
        record = self._record(state_dir)
        with private_folder(record.parent, make=True) as folder:
            os.close(open_private(record.name, folder, os.O_WRONLY | os.O_CREAT))


def find_file(folder: Path) -> EnvFile | None:
    """The `.env` of a folder, if there is one. It is refused where somebody else may have made it."""
    path = folder / NAME
    try:
        content, status = _read(path, os.O_NOFOLLOW)
    except (FileNotFoundError, IsADirectoryError):  # some call their virtual environment so
        return None
    except OSError as error:
        return EnvFile(path, refused="is a link" if path.is_symlink() else _unreadable(error))
    if status.st_uid not in (0, os.geteuid()):
        return EnvFile(path, refused="belongs to another user")
    if status.st_mode & stat.S_IWOTH:
        return EnvFile(path, refused="can be written by every user")
    return EnvFile(path, content)


def named_file(name: str) -> EnvFile:
    """A file that the user has named.

    Raises:
        ConfigurationError: it cannot be read.
    """
    path = Path(os.path.expanduser(name)).absolute()
    try:
        return EnvFile(path, _read(path, 0)[0], named=True)
    except OSError as error:
        needs = "needs a file with lines of the form NAME=value"
        raise ConfigurationError([f"--env-file {name!r} {_unreadable(error)}: {needs}"]) from error


def _unreadable(error: OSError) -> str:
    return f"cannot be read ({error.strerror})"


def _read(path: Path, flags: int) -> tuple[bytes, os.stat_result]:
    # O_NONBLOCK: a fifo is refused, not waited for.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | flags)
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        if status.st_size > MAX_BYTES:
            raise OSError(errno.EFBIG, f"it has more than {MAX_BYTES} bytes")
        return os.read(descriptor, MAX_BYTES), status
    finally:
        os.close(descriptor)
