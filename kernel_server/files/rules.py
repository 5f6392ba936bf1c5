"""What a session may write on the host, by name: nothing that configures programs by lying there, unless a setting allows it.

A name that begins with a dot is that of a configuration on every Unix: `.git`, `.bashrc`, `.env`. Beyond those, the
server's own code is never written to.
"""

from __future__ import annotations

import functools
import importlib.machinery
import os
import re
import sys
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from kernel_server.errors import FileError
from kernel_server.secret import Secret
from kernel_server.text import quoted

TEMPORARY_PREFIX = ".kernel-server-"
MAX_LEFT_OUT = 100  # names that are kept of what was left out
MAX_SHOWN = 80  # characters of a name
SETTING = "PY_EXEC_OUT_FILES"
# Characters that file systems which fold case pass over, beside those of category Cf: Unicode's
# Default_Ignorable_Code_Point (DerivedCoreProperties.txt), by which ext4 and HFS+ take "\u200c.git" for ".git".
_IGNORABLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u3164\ufe00-\ufe0f\uffa0\ufff0-\ufff8\U000e0000-\U000e0fff]"
)

Identity = tuple[int, int]
"""Device and inode of a file or folder."""


@dataclass
class LeftOut:
    """What of a folder was not written, for people; the first are kept, since a session can make any number of them."""

    names: list[str] = field(default_factory=list)
    count: int = 0
    files: int = 0
    size: int = 0

    def add(self, name: str, why: str) -> None:
        self.count += 1
        if len(self.names) < MAX_LEFT_OUT:
            self.names.append(f"{quoted(name)} ({why})")


@dataclass(frozen=True)
class Rules:
    """What may be written.

    Attributes:
        anything: hidden names and executable files, too.
        secret: by which folders that this user's servers have made are known.
    """

    anything: bool = False
    secret: Secret = field(default_factory=Secret)

    def objection(self, name: str, *, modules: bool = True) -> str:
        """Why nothing is written under a name; "" where it may be.

        Args:
            modules: whether Python modules may be written.
        """
        if not modules and is_module(name):
            return "a Python module, where the server's own Python looks for modules"
        if _plain(name).startswith(TEMPORARY_PREFIX):
            return "a name that the server uses itself"
        return "" if self.anything or not is_hidden(name) else "its name begins with a dot"

    def check_path(self, path: str, argument: str) -> None:
        """Looks at all parts of a path beneath WORKDIR_OUT.

        Raises:
            FileError: nothing is written there.
        """
        for part in path.split("/"):
            if part not in ("", ".") and (why := self.objection(part)):
                raise FileError(f"{argument} {path[:MAX_SHOWN]!r}: {self.refusal(part, why)}")

    @staticmethod
    def refusal(name: str, why: str) -> str:
        """What to tell the model."""
        setting = f" Names that begin with a dot configure programs; {SETTING}=any allows them." if "dot" in why else ""
        return f"{name[:MAX_SHOWN]!r} is not written: {why}.{setting} Nothing was written; give another local_path."


def is_hidden(name: str) -> bool:
    """Whether a name begins with a dot, or some file system or program could take it for one that does."""
    return _plain(name).startswith(".")


def _plain(name: str) -> str:
    composed = unicodedata.normalize("NFKC", name)
    seen = "".join(character for character in composed if unicodedata.category(character) != "Cf")
    return _IGNORABLE.sub("", seen).lstrip().casefold()


def is_module(name: str) -> bool:
    """Whether Python would import a file of that name."""
    return _plain(name).endswith(tuple(importlib.machinery.all_suffixes()))


def identity(folder: int) -> Identity:
    """Of an open file or folder."""
    status = os.fstat(folder)
    return status.st_dev, status.st_ino


@functools.cache
def own_code() -> frozenset[Identity]:
    """The folders that this server runs from: its packages, its Python, and all that it imports from."""
    package = Path(__file__).resolve().parents[1]
    return frozenset(_identities([package, package.parent / "container", sys.prefix, sys.base_prefix, *sys.path]))


def _identities(paths: Iterable[Path | str]) -> Iterable[Identity]:
    for path in paths:
        if str(path) not in ("", "/") and os.path.isdir(path):
            status = os.stat(path)
            yield status.st_dev, status.st_ino
