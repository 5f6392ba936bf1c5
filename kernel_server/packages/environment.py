"""What a session's Python is and has, as its kernel host tells it: data that a session may have made up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name, is_normalized_name
from packaging.version import InvalidVersion, Version


@dataclass(frozen=True)
class Distribution:
    """A package that is there.

    Attributes:
        name: canonical (PEP 503).
        requires: what it needs, each as in its metadata.
        own: the session has installed it, or made it up; else it is part of the image.
    """

    name: str
    version: str
    requires: tuple[str, ...] = ()
    own: bool = False


@dataclass(frozen=True)
class Environment:
    """For which Python wheels have to be.

    Attributes:
        markers: PEP 508's environment markers.
        abi: tag of the interpreter, such as `cp313`.
        platforms: tags that it takes, the best first.
        distributions: what is there; of two with one name, the one that is imported.
    """

    markers: dict[str, str]
    abi: str
    platforms: tuple[str, ...]
    distributions: dict[str, Distribution]

    @property
    def python(self) -> str:
        """Its version, such as `3.13.5`."""
        return str(Version(self.markers["python_full_version"]))

    @property
    def machine(self) -> str:
        """The architecture, such as `x86_64`."""
        return self.markers["platform_machine"]


def read_environment(told: dict[str, Any]) -> Environment:
    """Takes what the kernel host has told, and leaves out what is no package.

    Raises:
        ValueError, KeyError: it is not what it should be.
    """
    markers = {str(name): str(value) for name, value in dict(told["markers"]).items()}
    Version(markers["python_full_version"])
    distributions: dict[str, Distribution] = {}
    for item in told["distributions"]:
        with suppress(InvalidVersion):
            name, version = canonicalize_name(str(item["name"])), str(Version(str(item["version"])))
            if is_normalized_name(name) and name not in distributions:
                requires = tuple(_requirements(item["requires"]))
                distributions[name] = Distribution(name, version, requires, bool(item["own"]))
    return Environment(markers, str(told["abi"]), tuple(str(tag) for tag in told["platforms"]), distributions)


def _requirements(texts: list[object]) -> Iterator[str]:
    for text in texts:
        with suppress(InvalidRequirement):
            requirement = Requirement(str(text))
            if not requirement.url:  # nothing is fetched from where a session says
                yield str(requirement)
