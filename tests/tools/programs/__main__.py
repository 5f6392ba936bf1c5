"""Runs the programs and rewrites their texts: `python -m tests.tools.programs [group ...]`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import anyio

from tests.driving import serving
from tests.tools.programs import FOLDER, GROUPS, Group


async def rewrite(names: list[str]) -> None:
    """Rewrites the files of these groups."""
    with tempfile.TemporaryDirectory() as folder:
        async with serving(Path(folder), "docker") as kit:
            for name in names:
                async with kit.session() as session:
                    group = await Group.read(name).run(session)
                (FOLDER / f"{name}.txt").write_text(group.source, encoding="utf-8")
                print(f"{name}: {len(group.programs)} programs")


if __name__ == "__main__":
    anyio.run(rewrite, sys.argv[1:] or GROUPS)
