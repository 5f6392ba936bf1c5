"""What may be asked for: names with versions and extras, from the index, and where a setting says so, only some names."""

from __future__ import annotations

from dataclasses import dataclass

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name, is_normalized_name

from kernel_server.errors import RequestError
from kernel_server.text import one_line

MAX_REQUIREMENTS = 100
MAX_CHARACTERS = 300
FORM = "Give a name with an optional version, such as 'six', 'pandas<3' or 'requests[socks]>=2.32'"
ANY, NONE = "any", "none"


@dataclass(frozen=True)
class Allowed:
    """Which packages may be installed.

    Attributes:
        names: canonical (PEP 503); with what they need. None is all there are.
    """

    names: frozenset[str] | None = None

    @classmethod
    def only(cls, names: list[str]) -> Allowed:
        """Those of the setting; `any` is all, `none` none."""
        return cls(None if names == [ANY] else frozenset(canonicalize_name(name) for name in names if name != NONE))

    @property
    def nothing(self) -> bool:
        """Whether no package may be installed at all."""
        return self.names == frozenset()

    @property
    def listed(self) -> str:
        """The names for a reader."""
        return ", ".join(sorted(self.names or ()))


def check_names(names: list[str]) -> list[str]:
    """The names of the setting.

    Raises:
        ValueError: it is neither `any` nor `none` nor names.
    """
    if not names or ((ANY in names or NONE in names) and len(names) > 1):
        raise ValueError("any and none stand alone")
    if not all(is_normalized_name(canonicalize_name(name)) for name in names):
        raise ValueError("not the name of a package")
    return names


def read_requirements(texts: list[str], allowed: Allowed) -> list[Requirement]:
    """What a model asks for.

    Raises:
        RequestError: something in it is not a requirement, or not one that may be installed.
    """
    if not texts:
        raise RequestError(f"packages is empty. {FORM}.")
    if len(texts) > MAX_REQUIREMENTS:
        raise RequestError(f"packages has {len(texts)} entries; give at most {MAX_REQUIREMENTS}.")
    requirements = [_read(text) for text in texts]
    if allowed.names is not None:
        refused = sorted({found.name for found in requirements if canonicalize_name(found.name) not in allowed.names})
        if refused:
            raise RequestError(
                f"{', '.join(refused)} may not be installed here (PY_EXEC_PACKAGES). Allowed, with what they need: "
                f"{allowed.listed}. Nothing was installed."
            )
    return requirements


def _read(text: str) -> Requirement:
    shown = one_line(repr(text), 80)
    stripped = text.strip()
    if stripped.startswith("-"):
        raise RequestError(f"{shown} is an option; only packages can be given. {FORM}.")
    is_place = stripped.startswith((".", "/", "~")) or stripped.endswith((".whl", ".tar.gz", ".zip", ".txt"))
    if is_place or ("/" in stripped and " @ " not in stripped and "@" not in stripped.partition("/")[0]):
        raise RequestError(
            f"{shown} is a path or a URL; only packages of the index can be given. {FORM}. "
            "Your own code comes in with cp_in and is imported from the workspace."
        )
    try:
        requirement = Requirement(stripped) if len(text) <= MAX_CHARACTERS else None
    except InvalidRequirement:
        requirement = None
    if requirement is None:
        raise RequestError(f"{shown} is not a requirement. {FORM}, one package in each entry.")
    if requirement.url:
        raise RequestError(f"{shown} names a URL; only packages of the index can be given. {FORM}.")
    return requirement
