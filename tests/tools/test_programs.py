"""The table of programs: every text is what is written in `programs/`, where a person can read it."""

from __future__ import annotations

import difflib

import pytest

from tests.driving import Handle
from tests.tools.programs import GROUPS, Group

pytestmark = pytest.mark.anyio

LEAST_PROGRAMS = 70


@pytest.mark.docker
@pytest.mark.parametrize("name", GROUPS)
async def test_texts_are_as_written(docker_session: Handle, name: str) -> None:
    """Issue 3: a table of small programs and the exact text for each; `programs/__init__.py` says how to change it."""
    group = Group.read(name)
    real = await group.run(docker_session)
    lines = difflib.unified_diff(group.source.splitlines(), real.source.splitlines(), "written", "real", lineterm="")
    difference = "\n".join(lines)
    assert not difference, f"{name}:\n{difference}"


def test_table_is_large() -> None:
    """Issue 3: at least 70 programs, each with a title of its own."""
    titles = [program.title for name in GROUPS for program in Group.read(name).programs]
    assert len(titles) >= LEAST_PROGRAMS
    assert len(set(titles)) == len(titles)
