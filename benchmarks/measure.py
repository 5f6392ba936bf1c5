"""Timing two things in turn and printing how they compare."""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

Timed = Callable[[], Awaitable[object]]


@dataclass(frozen=True)
class Comparison:
    """Two medians of one run.

    Attributes:
        ours, theirs: in `unit`.
        goal: what the ratio is meant to be, such as `<= 1.7x` or `>= 8x faster`.
        faster: the ratio is theirs / ours (how much faster we are), else ours / theirs.
    """

    what: str
    ours: float
    theirs: float
    unit: str
    goal: str
    met: bool
    ratio: float


def compare(
    what: str,
    ours: float,
    theirs: float,
    unit: str,
    *,
    at_most: float = 0,
    at_least: float = 0,
    faster: float = 0,
    limit: float = 0,
) -> Comparison:
    """Ours against theirs; give one of `at_most` or `at_least` (ours / theirs), `faster` (theirs / ours), `limit` (ours)."""
    if faster:
        ratio = theirs / ours
        return Comparison(what, ours, theirs, unit, f"at least {faster:g}x faster", ratio >= faster, ratio)
    ratio = ours / theirs
    if limit:
        return Comparison(what, ours, theirs, unit, f"at most {limit:g} {unit}", ours <= limit, ratio)
    if at_least:
        return Comparison(what, ours, theirs, unit, f"at least {at_least:g}x", ratio >= at_least, ratio)
    return Comparison(what, ours, theirs, unit, f"at most {at_most:g}x", ratio <= at_most, ratio)


async def in_turn(rounds: int, *actions: Timed) -> list[float]:
    """Median seconds of each action over `rounds`, taken A B A B …, so that a drift of the machine hits all alike."""
    seconds: list[list[float]] = [[] for _ in actions]
    for _ in range(rounds):
        for action, list_of_seconds in zip(actions, seconds, strict=True):
            start = time.perf_counter()
            await action()
            list_of_seconds.append(time.perf_counter() - start)
    return [statistics.median(values) for values in seconds]


def print_table(comparisons: list[Comparison]) -> None:
    """Prints all comparisons side by side."""
    table = Table(title="kernel-server, one run on this machine (medians)")
    for heading in ("what", "ours", "theirs", "ratio", "goal", ""):
        table.add_column(heading, justify="left" if heading in ("what", "goal", "") else "right")
    for row in comparisons:
        table.add_row(
            row.what,
            f"{row.ours:.1f} {row.unit}",
            f"{row.theirs:.1f} {row.unit}",
            f"{row.ratio:.2f}x",
            row.goal,
            "met" if row.met else "MISSED",
        )
    Console(width=130).print(table)
