"""Versions with known holes: what counts as mended. None of these needs an engine."""

from __future__ import annotations

import pytest

from kernel_server.care.holes import HOLES, is_mended, is_packaged, parse_version

LINES = ("1.2.8", "1.3.3", "1.4.0-rc.3")


@pytest.mark.parametrize(
    ("version", "mended"),
    [
        ("1.1.99", False),
        ("1.2.7", False),
        ("1.2.8", True),
        ("1.2.10", True),
        ("1.3.2", False),
        ("v1.3.3", True),
        ("1.4.0-rc.2", False),
        ("1.4.0-rc.3", True),
        ("1.4.0", True),
        ("1.5.0-rc.1", True),
        ("2.0", True),
        ("1.1.5+ds1", False),
        ("1.2.8-0ubuntu1", True),
    ],
)
def test_each_release_line_has_its_own_first_mended_version(version: str, mended: bool) -> None:
    """facts/security.md 2.2: runc's three holes of November 2025; lines before the first were never mended."""
    parsed = parse_version(version)
    assert parsed is not None
    assert is_mended(parsed, LINES) is mended


@pytest.mark.parametrize("hole", HOLES, ids=lambda hole: hole.names)
def test_each_hole_is_mended_by_the_versions_that_it_names(hole: object) -> None:
    """Ours: a slip in the table would warn for ever, or never."""
    fixed = getattr(hole, "fixed")  # noqa: B009 - the ids of parametrize hide the type
    for text in fixed:
        parsed = parse_version(text)
        assert parsed is not None
        assert is_mended(parsed, fixed)
        assert not is_mended((*parsed[:2], parsed[2] - 1, parsed[3]), fixed)


@pytest.mark.parametrize("text", ["", "unknown", "1", "dev"])
def test_what_is_no_version_is_none(text: str) -> None:
    """Ours: an engine that hides its version is not taken for a mended one."""
    assert parse_version(text) is None


def test_versions_of_distributions_are_told_apart() -> None:
    """Ours: Debian's 1.1.5+ds1 has the fix of 2024 (its changelog); Docker's own numbers say all."""
    assert all(map(is_packaged, ["1.1.5+ds1", "20.10.24+dfsg1", "1.2.5-0ubuntu1"]))
    assert not any(map(is_packaged, ["29.5.1", "v1.7.27", "1.4.0-rc.3"]))
