"""Which UIDs the sessions of a container have: RLIMIT_NPROC counts a UID across containers, so no two share any."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class UidRanges:
    """Ranges of `size` UIDs from `first`, `many` in all.

    The container's name reserves its range: names are unique in an engine.
    """

    name: str
    first: int
    size: int
    many: int

    def others(self, uid: int) -> list[tuple[str, int]]:
        """Name and first UID of each range that does not hold `uid`, in random order."""
        ranges = [(f"{self.name}-{slot}", self.first + slot * self.size) for slot in range(self.many)]
        found = [(name, first) for name, first in ranges if not first <= uid < first + self.size]
        return random.sample(found, len(found))


# All below 65534, which is nobody's and near the usual size of a user namespace (rootless engines).
LARGE = UidRanges("kernel-server", 20_000, 1_000, 40)
SMALL = UidRanges("kernel-server-small", 60_000, 10, 550)
