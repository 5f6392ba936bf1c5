"""A secret of this user, in the state folder: what was made with it is known again by a later server, and by nobody else."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
from contextlib import suppress
from pathlib import Path

from kernel_server.private import UNFINISHED, private_folder, read_private, write_private

logger = logging.getLogger(__name__)

NAME = "secret"
SECRET_BYTES = 32


class Secret:
    """Makes marks that only who has the secret can make."""

    def __init__(self, key: bytes | None = None) -> None:
        """Without a key, one that ends with this process."""
        self._key = key or secrets.token_bytes(SECRET_BYTES)

    def mark(self, *parts: str) -> str:
        """What belongs to `parts`; 64 hex digits."""
        seen = b"".join(f"{len(part)}:{part}".encode(errors="surrogateescape") for part in parts)
        return hmac.new(self._key, seen, hashlib.sha256).hexdigest()

    def has_made(self, mark: str, *parts: str) -> bool:
        """Whether a mark is the one of `parts`."""
        return hmac.compare_digest(str(mark).encode(errors="replace"), self.mark(*parts).encode())


def user_secret(state_dir: Path) -> Secret:
    """The one in a state folder, made if it is not there; where that cannot be, one that ends with this process."""
    try:
        with private_folder(state_dir / "keys", make=True) as folder:
            return Secret(_read_or_make(folder))
    except OSError as error:
        logger.warning("what this server leaves cannot be known again by a later one: %s", error)
        return Secret()


def _read_or_make(folder: int) -> bytes:
    with suppress(FileNotFoundError):
        return _checked(read_private(NAME, folder))
    new = f"{UNFINISHED}{secrets.token_hex(8)}"
    write_private(new, folder, secrets.token_bytes(SECRET_BYTES))
    try:
        with suppress(FileExistsError):  # another server was faster
            os.link(new, NAME, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        os.unlink(new, dir_fd=folder)
    return _checked(read_private(NAME, folder))


def _checked(key: bytes) -> bytes:
    if len(key) != SECRET_BYTES:
        raise OSError(f"the file {NAME} has {len(key)} bytes, not {SECRET_BYTES}; remove it")
    return key
