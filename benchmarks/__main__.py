"""`make bench`: prints every ratio that the project promises, measured in one run on this machine."""

from __future__ import annotations

import asyncio
import sys

from benchmarks import branching, density, results, spine, walls
from benchmarks.measure import Comparison, print_table

PARTS = (
    *(spine.warm_cell, spine.first_dataframe, spine.memory, spine.files),
    *(density.server_start, density.one_shot, density.many_inits, density.many_loops, density.private_memory),
    walls.walls,
    branching.branching,
    *(results.look, results.large_outputs, results.flood, results.tokens),
)


async def main(wanted: list[str]) -> None:
    """Runs the parts whose names are given, or all."""
    names = [part.__name__ for part in PARTS]
    if unknown := set(wanted) - set(names):
        raise SystemExit(f"no part {', '.join(sorted(unknown))}; there are: {', '.join(names)}")
    comparisons: list[Comparison] = []
    async with spine.started_server() as server:
        for part in PARTS:
            if not wanted or part.__name__ in wanted:
                print(f"measuring {part.__name__} …", file=sys.stderr)
                comparisons += await part(server)
    print_table(comparisons)


asyncio.run(main(sys.argv[1:]))
