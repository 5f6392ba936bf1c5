"""What results cost: the look at variables and files, large outputs, a neighbour that floods, and tokens."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import Comparison, Timed, compare, in_turn
from benchmarks.spine import Server
from tests.tools.programs import GROUPS, Group

# The goals.
LOOK_MS = 3.0
PRINT_SECONDS = 3.0
PRINT_MEGABYTES = 100.0
FLOOD_RATIO = 2.0
BYTES_PER_TOKEN = 4

# What a session has after some work.
EVERYDAY = """
import numpy as np, pandas as pd
frames = [pd.DataFrame(np.random.rand(1_000_000, 20)) for _ in range(3)]
for number, frame in enumerate(frames): globals()[f"frame{number}"] = frame
for number in range(12): globals()[f"array{number}"] = np.random.rand(100_000)
for number in range(15): globals()[f"list{number}"] = list(range(number * 1_000))
for number in range(19): globals()[f"text{number}"] = "x" * 100 * number
for number in range(200): open(f"file{number}.csv", "w").write("a,b\\n")
"""
CROWDED = "for number in range(650): globals()[f'more{number}'] = [number, str(number)]"
LOOK = """
import json as _json, time as _time
_report = get_ipython().kernel._changes
def _look():
    begun = _time.perf_counter()
    _report.begin()
    _report.end()
    return _time.perf_counter() - begun
print(_json.dumps([_look() for _ in range(100)]))
"""
NO_LOOK = """
class _NoReport:
    begin = lambda self: None
    end = lambda self: {}
get_ipython().kernel._changes = _NoReport()
"""

OUTPUTS = {
    "100 MB in one print": "print('a' * 10**8)",
    "a million lines": "for number in range(10**6): print(number)",
}
PRINTS = 3

FLOODS = {
    "a flood": "while True: print('x' * 1000)",
    "a flood that is flushed": "while True: print('x' * 1000, flush=True)",
}
FLOOD_ROUNDS = 5
CELLS = 40  # of each round, quiet and flooded


async def look(server: Server) -> list[Comparison]:
    """The kernel's look at variables and files: by itself, and as what it adds to a warm `1+1`."""
    sessions = [await server.init(), await server.init()]
    for session_id in sessions:
        await server.call("run_code", code=EVERYDAY, session_id=session_id)
    looking, blind = sessions
    everyday = await _look_seconds(server, looking)
    await server.call("run_code", code=NO_LOOK, session_id=blind)
    both = await in_turn(200, *(_one_plus_one(server, session_id) for session_id in sessions))
    await server.call("run_code", code=CROWDED, session_id=looking)
    crowded = await _look_seconds(server, looking)
    await _close(server, *sessions)
    return [
        compare("look after a cell, 52 variables and 200 files / goal", everyday * 1e3, LOOK_MS, "ms", at_most=1),
        compare("look after a cell, 702 variables and 200 files / goal", crowded * 1e3, LOOK_MS, "ms", at_most=1),
        compare("warm 1+1 with / without the look", both[0] * 1e3, both[1] * 1e3, "ms", at_most=1.5),
    ]


async def _look_seconds(server: Server, session_id: str) -> float:
    printed = await server.call("run_code", code=LOOK, session_id=session_id)
    return float(statistics.median(json.loads(printed.content[0].text.splitlines()[0])))


async def large_outputs(server: Server) -> list[Comparison]:
    """Time, and growth of the server's peak memory, of cells that put out a lot."""
    rows = []
    for what, code in OUTPUTS.items():
        seconds, megabytes = [], []
        for _ in range(PRINTS):
            session_id = await server.init()
            before = _reset_peak(server)
            begun = time.perf_counter()
            await server.call("run_code", code=code, session_id=session_id)
            seconds.append(time.perf_counter() - begun)
            megabytes.append((_memory(server, "VmHWM") - before) / 1e6)
            await _close(server, session_id)
        rows += [
            compare(f"{what}: time / goal", statistics.median(seconds), PRINT_SECONDS, "s", at_most=1),
            compare(f"{what}: peak of the server / goal", max(megabytes), PRINT_MEGABYTES, "MB", at_most=1),
        ]
    return rows


def _reset_peak(server: Server) -> int:
    """Forgets the highest resident memory so far; returns the present one in bytes (proc(5), clear_refs)."""
    Path(f"/proc/{server.pid}/clear_refs").write_text("5")
    return _memory(server, "VmRSS")


def _memory(server: Server, field: str) -> int:
    lines = Path(f"/proc/{server.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024


async def flood(server: Server) -> list[Comparison]:
    """A `1+1` of one session while another prints without end, against the same in peace."""
    rows = []
    for what, code in FLOODS.items():
        noisy, calm = await server.init(), await server.init()
        action = _one_plus_one(server, calm)
        await in_turn(CELLS, action)
        quiet, flooded = [], []
        for _ in range(FLOOD_ROUNDS):
            quiet += [await _timed(action) for _ in range(CELLS)]
            await server.call("run_code", code=code, session_id=noisy, wait=0.5)
            flooded += [await _timed(action) for _ in range(CELLS)]
            await server.call("interrupt", session_id=noisy)
            await server.call("wait", session_id=noisy)
        await _close(server, noisy, calm)
        rows += [
            compare(f"1+1 beside {what} / in peace: {name}", beside * 1e3, alone * 1e3, "ms", at_most=FLOOD_RATIO)
            for name, beside, alone in (
                ("median", statistics.median(flooded), statistics.median(quiet)),
                ("p95", _p95(flooded), _p95(quiet)),
            )
        ]
    return rows


async def tokens(server: Server) -> list[Comparison]:
    """Text of the table of programs as a model gets it, against the same outputs as the kernel sent them."""
    ours, theirs = [], []
    for name in GROUPS:
        session_id = await server.init()
        for program in Group.read(name).programs:
            result = await server.client.call_tool(
                "run_code", {"code": program.code, "session_id": session_id, "timeout": program.timeout}
            )
            ours.append(sum(len(block.text.encode()) for block in result.content if block.type == "text"))
        await server.call("export_notebook", session_id=session_id, local_path="tokens.ipynb")
        theirs += _sent(server.workdir / "tokens.ipynb")
        await _close(server, session_id)
    shares: dict[str, Callable[[list[int]], float]] = {"all": sum, "the largest": max, "mean": statistics.mean}
    return [
        compare(
            f"tokens of {len(ours)} programs' texts / as the kernel sent them: {what}",
            share(ours) / BYTES_PER_TOKEN,
            share(theirs) / BYTES_PER_TOKEN,
            "",
            at_most=1,
        )
        for what, share in shares.items()
    ]


def _sent(notebook: Path) -> list[int]:
    """Bytes of text of each cell: streams, `text/plain`, tracebacks with their colours."""
    cells = json.loads(notebook.read_text())["cells"]
    return [sum(map(_text_bytes, cell["outputs"])) for cell in cells if cell["cell_type"] == "code"]


def _text_bytes(output: dict[str, object]) -> int:
    data = output.get("data")
    parts = [output.get("text"), output.get("traceback"), data.get("text/plain") if isinstance(data, dict) else None]
    return sum(len("".join(part).encode()) for part in parts if isinstance(part, str | list))


def _one_plus_one(server: Server, session_id: str) -> Timed:
    async def run() -> None:
        await server.call("run_code", code="1+1", session_id=session_id)

    return run


async def _timed(action: Timed) -> float:
    begun = time.perf_counter()
    await action()
    return time.perf_counter() - begun


def _p95(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=20)[-1]


async def _close(server: Server, *sessions: str) -> None:
    for session_id in sessions:
        await server.call("close_session", session_id=session_id)
