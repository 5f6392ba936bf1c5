"""Branches and checkpoints of sessions with much in memory, against loading it again and against cells without."""

from __future__ import annotations

import asyncio
import statistics
import time

from benchmarks.measure import Comparison, compare
from benchmarks.spine import Server, started_server

GIGABYTE = 1_000_000_000
ROOMY = {"PY_EXEC_MEMORY": "12g", "PY_EXEC_SESSION_MEMORY": "4g", "PY_EXEC_WORKSPACE_SIZE": "8g"}
MAKE = """
import numpy as np, pandas as pd
df = pd.DataFrame(np.random.default_rng(1).random(({rows}, 10)), columns=list("abcdefghij"))
"""
ROWS = GIGABYTE // 80
BRANCHES = 5
CELLS = 30
PAUSES = {"0.2 s after the last": 0.2, "right after the last": 0.0}  # a model takes longer than that between two calls
MAX_WAIT_SECONDS = 600
SIZES = {"100 MB": (GIGABYTE // 10, 15.0), "1 GB": (GIGABYTE, 60.0)}


async def branching(server: Server) -> list[Comparison]:
    """What a branch takes in time and memory, and what a checkpoint before each cell adds to it."""
    return [*await _branches(), *await _checkpoints()]


async def _branches() -> list[Comparison]:
    async with started_server(PY_EXEC_POOL="0", **ROOMY) as server:
        session_id = await server.init()
        await _run(server, session_id, MAKE.format(rows=ROWS))
        before = await _container_bytes(server)
        branched, ids = [], []
        for _ in range(BRANCHES):
            start = time.perf_counter()
            result = await server.call("branch_session", session_id=session_id)
            branch = result.meta["kernel_server/branches"]["session_ids"][0]
            await _run(server, branch, "df.shape")
            branched.append(time.perf_counter() - start)
            ids.append(branch)
        extra = (await _container_bytes(server) - before) / BRANCHES
        for branch in ids:
            await server.call("close_session", session_id=branch)
        # A tenth of the frame: its time is the tenth, and its file is not larger than a workspace should be.
        await _run(server, session_id, "df.iloc[: len(df) // 10].to_csv('frame.csv')")
        start = time.perf_counter()
        await _run(server, session_id, "again = pd.read_csv('frame.csv')")
        loaded = 10 * (time.perf_counter() - start)
    ours = statistics.median(branched)
    return [
        compare(
            "branch with a frame of 1 GB / reading it from CSV (ten times a tenth)",
            ours * 1e3,
            loaded * 1e3,
            "ms",
            faster=20,
        ),
        compare("memory of an untouched branch / its frame of 1 GB", extra / 1e6, GIGABYTE / 1e6, "MB", at_most=0.03),
    ]


async def _run(server: Server, session_id: str, code: str) -> None:
    """Runs a cell, which must come to a good end: what fails, for want of memory for example, is fast."""
    told = await server.call("run_code", session_id=session_id, code=code, wait=MAX_WAIT_SECONDS)
    status = told.meta["kernel_server/result"]["status"]
    if status != "ok":
        raise RuntimeError(f"{status}: {told.content[0].text}")


async def _container_bytes(server: Server) -> int:
    """Memory of the container without the page cache; shared pages count once."""

    def read() -> int:
        statistics_ = server.container.stats(stream=False)["memory_stats"]["stats"]
        return int(statistics_["rss"] if "rss" in statistics_ else statistics_["anon"])

    return await asyncio.to_thread(read)


async def _checkpoints() -> list[Comparison]:
    found = []
    for size, (count, most) in SIZES.items():
        seconds: dict[str, list[float]] = {}
        for name, automatic in (("with", "3"), ("without", "0")):
            async with started_server(PY_EXEC_AUTO_CHECKPOINTS=automatic, PY_EXEC_POOL="0", **ROOMY) as server:
                seconds[name] = await _cell(server, count // 80)
        for when, with_, without in zip(PAUSES, seconds["with"], seconds["without"], strict=True):
            found.append(
                compare(
                    f"a checkpoint before a cell, {size} in memory, {when} / {most:g} ms",
                    (with_ - without) * 1e3,
                    most,
                    "ms",
                    at_most=1.0,
                )
            )
    return found


async def _cell(server: Server, rows: int) -> list[float]:
    """Median time of a call, for each of PAUSES."""
    session_id = await server.init()
    await _run(server, session_id, MAKE.format(rows=rows))

    async def once(pause: float) -> float:
        await asyncio.sleep(pause)
        start = time.perf_counter()
        await _run(server, session_id, "1+1")
        return time.perf_counter() - start

    return [statistics.median([await once(pause) for _ in range(CELLS)]) for pause in PAUSES.values()]
