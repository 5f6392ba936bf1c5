"""branch_session that is cancelled or fails: all of the branches, or none, and no kernel that nobody knows of."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from kernel_server.errors import FileError
from kernel_server.hosts.base import HostSettings, Launched
from kernel_server.hosts.controlled import ControlledHost
from kernel_server.hosts.local import LocalHosts
from kernel_server.sessions.registry import Limits, Registry, open_registry
from kernel_server.sessions.session import Session
from kernel_server.transcripts.folder import JournalFolder
from tests.driving import Kit, eventually, serving
from tests.sessions.test_branching import branches, close

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(
        sys.version_info < (3, 11), reason="local kernels have ipykernel 6 here: see test_branching_old"
    ),
]
MOMENTS = (0.0, 0.005, 0.01, 0.015, 0.02, 0.04, 0.08, 0.16)


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> list[ControlledHost]:
    """The kernel hosts that are asked for a branch."""
    asked: list[ControlledHost] = []
    branch = ControlledHost.branch

    async def noted(self: ControlledHost, *names: str) -> Launched:
        asked.append(self)
        return await branch(self, *names)

    monkeypatch.setattr(ControlledHost, "branch", noted)
    return asked


@asynccontextmanager
async def registry_of(folder: Path) -> AsyncIterator[Registry]:
    """Sessions with local kernels, without a server around them."""
    settings = HostSettings("", [], 8, 0, 0, 0, 0, 0, folder, None, "")
    async with open_registry(LocalHosts(settings), Limits(600.0, 40), JournalFolder(folder / "journals")) as registry:
        yield registry


async def listed(kit: Kit) -> set[str]:
    content = (await kit.call("list_sessions")).raw.structured_content
    assert content is not None
    return {session["session_id"] for session in content["sessions"]}


@pytest.fixture(params=["local", pytest.param("docker", marks=pytest.mark.docker)])
async def lone(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Kit]:
    """A server without spare sessions: what its kernel host has are sessions."""
    async with serving(tmp_path, request.param, PY_EXEC_PRELOAD="none", PY_EXEC_POOL="0") as kit:
        yield kit


async def test_cancelled_call_leaves_no_kernel_that_nobody_owns(lone: Kit, hosts: list[ControlledHost]) -> None:
    """Ours: its id was not known yet where the cancellation struck, so that it took memory and a place until reset."""
    session = await lone.init()
    await session.run("x = 41")
    for seconds in MOMENTS:
        with anyio.move_on_after(seconds):
            await lone.client.call_tool("branch_session", {"session_id": session.session_id, "count": 2})
    (branch,) = await branches(session)  # its turn comes when all others have been given up

    async def agree() -> bool:
        return set(await hosts[0].kernels()) == await listed(lone) >= {session.session_id, branch.session_id}

    await eventually(agree)
    assert await branch.value("x + 1") == "42"
    journals = {path.stem for path in (lone.state / "journals").glob("*.jsonl")}
    assert journals <= await listed(lone), "no journal of a branch that never was"
    await close(branch, session)


async def test_registry_that_is_cancelled_has_none_of_the_branches(tmp_path: Path, hosts: list[ControlledHost]) -> None:
    """Ours: cancelled at every moment, without a client between; here nobody could learn of one that was made."""
    async with registry_of(tmp_path) as registry:
        session = await registry.open()
        await session.wait_ready()
        made = 0
        for seconds in MOMENTS:
            with anyio.move_on_after(seconds) as scope:
                _, found = await registry.branch(session.session_id, "", 2, 5.0)
                made += len(found)
            assert len(registry.sessions) == 1 + made, f"cancelled after {seconds} s: {scope.cancelled_caught}"
            assert set(await session.host.kernels()) == {one.session_id for one in registry.sessions}
        assert len(hosts) > 1


async def test_failure_of_the_last_leaves_none_of_the_branches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours: all of them, or none; a full disk registered a branch that its call did not name."""
    async with registry_of(tmp_path) as registry:
        session = await registry.open()
        await session.wait_ready()
        begun: list[Session] = []
        begin = Session.begin_journal

        async def full(self: Session, journals: JournalFolder, size: int) -> None:
            begun.append(self)
            await begin(self, journals, size)
            if len(begun) == 3:
                raise FileError("No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(Session, "begin_journal", full)
            with pytest.raises(FileError, match="No space left"):
                await registry.branch(session.session_id, "", 3, 5.0)
        assert [one.session_id for one in registry.sessions] == [session.session_id]
        assert set(await session.host.kernels()) == {session.session_id}
        assert os.listdir(tmp_path / "journals") == ["lock"]
        _, found = await registry.branch(session.session_id, "", 3, 5.0)
        assert len(registry.sessions) == 1 + len(found) == 4, "the control; and no place is lost"
