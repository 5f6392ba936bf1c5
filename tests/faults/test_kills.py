"""A busy server is killed at random moments: the short form of `make kills` (issue 5)."""

from __future__ import annotations

import pytest

from benchmarks.kills import Plan, kills
from benchmarks.kills_report import verdicts

pytestmark = [pytest.mark.anyio, pytest.mark.docker]


@pytest.mark.parametrize("per_container", [0, 1])
async def test_random_kills_lose_no_finished_cell_and_leave_nothing(docker_engine: None, per_container: int) -> None:
    """Issue 5, what it shows: 0 containers, volumes, folders, sockets, and 0 finished cells missing from any journal."""
    record = await kills(Plan(6, users=3, per_container=per_container, ttl=12, pace=0.3, cells=11))
    assert record.errors == []
    assert record.kills.total() >= 6
    assert record.cells["finished"] > 10
    assert [verdict for verdict in verdicts(record) if not verdict.passed] == []
