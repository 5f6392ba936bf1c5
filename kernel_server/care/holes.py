"""Versions of an engine and its parts that have known holes through which a session could reach its host.

Those that kernel-server closes by itself are left out: sessions have no network, so holes of Docker's networks
(CVE-2024-29018) and of Docker Desktop's (CVE-2025-9074) are none here.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

_VERSION = re.compile(r"v?(\d+)\.(\d+)(?:\.(\d+))?(?:[-~]?rc\.?(\d+))?")
# Such as 1.1.5+ds1, 20.10.24+dfsg1, 1.2.5-0ubuntu1: packages with fixes that their number does not show.
_DISTRIBUTION = re.compile(r"\d[+~-](?!rc)")

Version = tuple[int, int, int, float]


@dataclass(frozen=True)
class Hole:
    """One hole, or several that were mended together.

    Attributes:
        component: as in `EngineFacts.components`.
        fixed: the first version without it of each release line that was mended.
        what: what it lets a session do.
    """

    component: str
    names: str
    fixed: tuple[str, ...]
    what: str


HOLES = (
    Hole("runc", "CVE-2024-21626", ("1.1.12",), "a process can keep a folder of the host open"),
    Hole(
        "runc",
        "CVE-2025-31133, CVE-2025-52565, CVE-2025-52881",
        ("1.2.8", "1.3.3", "1.4.0-rc.3"),
        "races at the start of a container give write access to /proc of the host",
    ),
    Hole(
        "engine",
        "CVE-2026-31431",
        ("29.4.3",),
        "where the Linux kernel has not been mended (“Copy Fail”), a process can change what others read from files",
    ),
    Hole(
        "engine",
        "CVE-2026-41567, CVE-2026-41568, CVE-2026-42306",
        ("29.5.1",),
        "copying into a container can run its programs as root, or write to other places of the host",
    ),
)


def parse_version(text: str) -> Version | None:
    """A version such as `v1.4.0-rc.3` as numbers to compare; None if it is none."""
    match = _VERSION.match(text)
    if match is None:
        return None
    major, minor, patch, candidate = match.groups()
    return int(major), int(minor), int(patch or 0), int(candidate) if candidate else math.inf


def is_mended(version: Version, fixed: tuple[str, ...]) -> bool:
    """Whether a version is at least the fixed one of its own release line, or newer than all that were mended."""
    mended = [parsed for text in fixed if (parsed := parse_version(text))]
    return version >= next((parsed for parsed in mended if parsed[:2] == version[:2]), max(mended))


def is_packaged(text: str) -> bool:
    """Whether a distribution made this version: it may have fixes that its number does not show."""
    return _DISTRIBUTION.search(text) is not None
