"""What a soak has found, as tables and as lines of PASS or FAIL."""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from benchmarks.soak_samples import Sample, trend

MEMORY = "container: memory, MB"
# Over the last two thirds of the run. The container's memory goes up and down with what the sessions hold just then, and
# up at first, when all of them are young.
SETTLED_SECONDS = 300.0
MAX_GROWTH = {"server: RSS, MB": 0.05, "container: kernel_host's RSS, MB": 0.05, MEMORY: 0.10}
MAX_GROWTH_AT_REST = 0.05
WIDTH = 130
SHOWN = 10


@dataclass
class Record:
    """What happened.

    Attributes:
        seconds: of each thing done, by kind.
        ended: how many sessions ended how.
        errors: what was not as it must be, in words.
        strays: what was left of sessions some time after their end: `folders`, `processes`.
        said: by the server on stderr, warnings and worse.
        left: what was still there after the server's end.
    """

    calls: int = 0
    begun: int = 0
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    ended: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    errors: list[str] = field(default_factory=list)
    strays: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    samples: list[Sample] = field(default_factory=list)
    said: str = ""
    left: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Verdict:
    """One thing that was looked at."""

    what: str
    passed: bool
    detail: str


def verdicts(record: Record, before: Sample, after: Sample) -> list[Verdict]:
    """What must be so.

    Args:
        before, after: of the server at rest, after the warm-up and at the end.
    """
    containers = {sample.figures["containers"] for sample in record.samples}
    changed = before.differs(after)
    return [
        Verdict("no error", not record.errors, f"{len(record.errors)} in {record.calls} calls"),
        Verdict("no warning of the server", not record.said, f"{len(record.said.splitlines())} lines on stderr"),
        Verdict("one container while it runs", containers == {1.0}, f"{sorted(containers)}"),
        *(
            Verdict(f"no {kind} of ended sessions", not record.strays[kind], _some(record.strays[kind]))
            for kind in ("folders", "processes")
        ),
        Verdict("at rest as after the warm-up: descriptors, processes, folders", not changed, _some(changed)),
        *(_growth(record, name, bound) for name, bound in MAX_GROWTH.items() if name != MEMORY or _is_long(record)),
        _growth_at_rest(before, after),
        Verdict("nothing is left after the end of the server", not record.left, _some(record.left)),
    ]


def _growth(record: Record, name: str, bound: float) -> Verdict:
    growth = trend(record.samples, name).growth
    return Verdict(f"{name}: growth below {bound:.0%}", growth < bound, f"{growth:+.1%} in the last two thirds")


def _is_long(record: Record) -> bool:
    return bool(record.samples) and record.samples[-1].at - record.samples[0].at > SETTLED_SECONDS


def _growth_at_rest(before: Sample, after: Sample) -> Verdict:
    memory = [sample.figures[MEMORY] for sample in (before, after)]
    passed = memory[1] < memory[0] * (1 + MAX_GROWTH_AT_REST)
    return Verdict(
        f"{MEMORY}, at rest: growth below {MAX_GROWTH_AT_REST:.0%}", passed, f"{memory[0]:.4g} → {memory[1]:.4g}"
    )


def _some(items: list[str]) -> str:
    return ", ".join(items[:SHOWN]) + (f" and {len(items) - SHOWN} more" if len(items) > SHOWN else "")


def print_report(record: Record, before: Sample, after: Sample, verdicts: list[Verdict]) -> None:
    """Prints all of it."""
    console = Console(width=WIDTH)
    console.print(_kinds(record), _figures(record, before, after))
    endings = ", ".join(f"{count} {how}" for how, count in sorted(record.ended.items()))
    one_shots = len(record.seconds["one-shot"])
    console.print(
        f"{record.calls} calls, {record.begun} sessions begun: {endings}; {one_shots} one-shot calls beside them"
    )
    for error in record.errors:
        console.print(f"ERROR {error}", markup=False)
    if record.said:
        console.print("the server's stderr:", record.said[-5_000:], markup=False)
    for verdict in verdicts:
        console.print(
            f"{'PASS' if verdict.passed else 'FAIL'}  {verdict.what}: {verdict.detail or 'none'}", markup=False
        )


def _kinds(record: Record) -> Table:
    table = _table("what was done", "times", "p50, ms", "p95, ms")
    for kind, seconds in sorted(record.seconds.items(), key=lambda item: -len(item[1])):
        cuts = statistics.quantiles(seconds, n=20) if len(seconds) > 1 else seconds * 19
        table.add_row(kind, str(len(seconds)), f"{statistics.median(seconds) * 1e3:.0f}", f"{cuts[-1] * 1e3:.0f}")
    return table


def _figures(record: Record, before: Sample, after: Sample) -> Table:
    table = _table(
        "figure", "at rest before", "mean", "peak", "slope per hour", "of the mean, per hour", "at rest after"
    )
    for name in before.figures:
        found = trend(record.samples, name)
        part = f"{found.hourly / found.mean:+.1%}" if found.mean else ""
        numbers = (before.figures[name], found.mean, found.peak)
        row = [f"{number:.5g}" for number in numbers]
        table.add_row(name, *row, f"{found.hourly:+.3g}", part, f"{after.figures[name]:.5g}")
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(first)
    for heading in others:
        table.add_column(heading, justify="right")
    return table
