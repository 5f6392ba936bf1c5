"""What a `.env` may decide that the user has not approved, as pure functions, and how that is said.

Such a file may have come with a clone, or out of a session: it can narrow what sessions may do, and never widen it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kernel_server.envfile import EnvFile
from kernel_server.text import one_line

# Settings that decide what sessions can reach, or whom the server trusts.
ONLY_APPROVED = (
    *("PY_EXEC_ENGINE", "PY_EXEC_NETWORK", "PY_EXEC_RUNTIME", "PY_EXEC_CA_BUNDLE", "PY_EXEC_BUILD_NETWORK"),
    *("PY_EXEC_STATE_DIR", "PY_EXEC_OUT_FILES"),
)
LIMITS = ("PY_EXEC_MEMORY", "PY_EXEC_SESSION_MEMORY", "PY_EXEC_WORKSPACE_SIZE")  # 0 is none


@dataclass(frozen=True)
class Origin:
    """What a file has to do with the settings; values are as written.

    Attributes:
        file: None where there is none.
        taken: its settings that count, by name.
        ignored: those that do not, by name.
    """

    file: EnvFile | None = None
    taken: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)

    @property
    def remedy(self) -> str:
        """What to do where something is ignored."""
        if self.file is not None and self.file.refused:
            return f"Make it a file of your own that others cannot write to, or name it: `--env-file {self.file.path}`."
        return "If you trust this file: `kernel-server trust` in its folder, or `--env-file .env`."

    def lines(self) -> Iterator[str]:
        """What a person should know of it."""
        if self.file is None:
            return
        for name, value in self.taken.items():
            yield f"{name}={one_line(value)} comes from {self.file.path}"
        if self.file.refused:
            yield f"warning: {self.file.path} {self.file.refused}: it is NOT used. {self.remedy}"
        if self.ignored:
            listed = ", ".join(f"{name}={one_line(value)}" for name, value in self.ignored.items())
            why = "could open what is closed without it, and nobody has approved the file"
            yield f"warning: NOT used from {self.file.path}: {listed}. This {why}. {self.remedy}"


def narrows(name: str, value: Any, usual: Any) -> bool:
    """Whether a setting lets sessions do no more, and keeps no less of the user's, than without the file.

    Args:
        usual: its value without the file; of folders, the one that would count.
    """
    if name in ONLY_APPROVED:
        return bool(value == usual)
    if name in LIMITS:
        return bool(0 < value <= usual or value == usual)
    match name:
        case "WORKDIR" | "WORKDIR_IN" | "WORKDIR_OUT":
            return _is_in(value, usual)
        case "PY_EXEC_NOTEBOOK_TTL":  # a shorter one removes notebooks of all the user's servers
            return bool(value >= usual)
        case _:
            return True


def _is_in(folder: Path, outer: Path) -> bool:
    """Whether a folder lies in another one, links followed, and in no hidden one of it: `.git` configures programs."""
    try:
        with suppress(FileNotFoundError):
            os.stat(folder)  # from Python 3.13 on, `resolve` passes over links that go round in circles
        real, real_outer = folder.resolve(), outer.resolve()
    except (OSError, ValueError, RuntimeError):  # NUL, or links that go round in circles
        return False
    if not real.is_relative_to(real_outer):
        return False
    return not any(part.startswith(".") for part in real.relative_to(real_outer).parts)
