"""What the walls around each session cost: the same server and container with and without them, in turn."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from benchmarks.measure import Comparison, compare, in_turn
from benchmarks.spine import FIRST_DATAFRAME, Server
from tests.driving import Handle, Kit, kernel_host_given, serving

STARTS, CELLS = 25, 400


async def walls(_server: Server) -> list[Comparison]:
    """A session's start, without a spare one that would hide it, and a warm cell."""
    async with _kit(["seccomp", "landlock"]) as with_walls, _kit([]) as without:
        start, bare_start = await in_turn(STARTS, lambda: _start(with_walls), lambda: _start(without))
        async with with_walls.session() as session, without.session() as bare:
            for handle in (session, bare):
                await in_turn(10, lambda handle=handle: _cell(handle))  # type: ignore[misc]
            cell, bare_cell = await in_turn(CELLS, lambda: _cell(session), lambda: _cell(bare))
    return [
        compare("init + first DataFrame with / without walls", start * 1e3, bare_start * 1e3, "ms", at_most=1.1),
        compare("warm 1+1 with / without walls", cell * 1e3, bare_cell * 1e3, "ms", at_most=1.03),
    ]


@asynccontextmanager
async def _kit(names: list[str]) -> AsyncIterator[Kit]:
    with tempfile.TemporaryDirectory() as folder, kernel_host_given({"walls": names}):
        async with serving(Path(folder), "docker", PY_EXEC_POOL="0") as kit:
            async with kit.session():  # the container starts here
                pass
            yield kit


async def _start(kit: Kit) -> None:
    async with kit.session() as session:
        await session.run(FIRST_DATAFRAME)


async def _cell(session: Handle) -> None:
    await session.run("1+1")
