"""What is said of the packages in a folder, also where a session has put there what it likes: `importlib.metadata` would wait
for a fifo, and read a device, or a file of any size, to its end.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from importlib.metadata import Distribution, PathDistribution, distributions
from pathlib import Path

# Of one file, of which what counts is at the beginning; the list of files of the largest packages takes 5 MB.
MAX_BYTES, MAX_RECORD_BYTES = 1 << 20, 16 << 20
MAX_ALL_BYTES = 64 << 20  # a few hundred packages have 10 MB


class _Budget:
    left = MAX_ALL_BYTES


class _Careful(PathDistribution):
    """Reads regular files only, and so much of them; what else there is counts as missing."""

    def __init__(self, folder: Path, budget: _Budget) -> None:
        super().__init__(folder)
        self._folder, self._budget = folder, budget

    def read_text(self, filename: str | os.PathLike[str]) -> str | None:
        """The beginning of a file."""
        try:
            descriptor = os.open(self._folder / filename, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return None
            limit = MAX_RECORD_BYTES if filename == "RECORD" else MAX_BYTES
            text = file.read(min(limit, self._budget.left))
        self._budget.left -= len(text)
        return text.decode(errors="replace")


def found_in(folder: str) -> Iterator[Distribution]:
    """The packages in a folder of a session; none where it is no folder."""
    budget = _Budget()
    if os.path.isdir(folder):  # a file would be opened, as an archive
        for distribution in distributions(path=[folder]):
            place = getattr(distribution, "_path", None)
            if isinstance(place, Path):
                yield _Careful(place, budget)
