"""`kernel-server clean`: removes what servers left behind that are gone, after showing it."""

from __future__ import annotations

import sys
from collections.abc import Collection
from contextlib import ExitStack

from kernel_server.care.engine import connected
from kernel_server.care.leftovers import Leftover, in_engine, in_folders
from kernel_server.config import Settings
from kernel_server.errors import EngineError, EngineUnavailable
from kernel_server.text import counted

INTERRUPTED = 130  # the shell's exit code for Ctrl-C


def clean(settings: Settings, names: Collection[str], *, yes: bool) -> int:
    """Shows leftovers, asks, and removes them. Returns the exit code: 0 if nothing is left, or nobody wanted it removed.

    Args:
        names: remove only these. What is kept for a later server is removed only so.
        yes: do not ask.
    """
    try:
        with ExitStack() as stack:
            found, complete = _find(settings, stack)
            return _clean(found, names, yes=yes) or int(not complete)
    except KeyboardInterrupt:
        print("\nStopped. What had not been removed by then is still there.", file=sys.stderr)
        return INTERRUPTED


def _find(settings: Settings, stack: ExitStack) -> tuple[list[Leftover], bool]:
    """Leftovers, and whether the engine could be asked; it is used until the end of `stack`."""
    try:
        engine = stack.enter_context(connected())
    except EngineUnavailable as error:
        print(f"kernel-server: {error.finding} What is left in it cannot be seen.", file=sys.stderr)
        return [*in_folders()], False
    found = [item for item in in_engine(engine, settings.state_dir) if isinstance(item, Leftover)]
    return [*found, *in_folders()], True


def _clean(found: list[Leftover], names: Collection[str], *, yes: bool) -> int:
    unknown = sorted(set(names) - {leftover.name for leftover in found})
    if unknown:
        print(f"kernel-server: no leftover, or not one of a server that is gone: {', '.join(unknown)}", file=sys.stderr)
        return 1
    chosen = [leftover for leftover in found if leftover.name in names or not (names or leftover.kept)]
    if not chosen:
        print("Nothing is left over.")
        return 0
    print(*chosen, sep="\n", flush=True)
    if not yes and not sys.stdin.isatty():
        print("kernel-server: nothing was removed: there is no terminal to ask; --yes removes it", file=sys.stderr)
        return 1
    if not yes and not _agreed(len(chosen)):
        print("Nothing was removed.")
        return 0
    kept = [leftover for leftover in chosen if not _remove(leftover)]
    print(f"{counted(len(chosen) - len(kept), 'thing')} removed.")
    return int(bool(kept))


def _agreed(count: int) -> bool:
    try:
        return input(f"Remove {'it' if count == 1 else f'these {count}'}? [y/N] ").strip().lower() in {"y", "yes"}
    except EOFError:
        return False


def _remove(leftover: Leftover) -> bool:
    try:
        leftover.remove()
    except (EngineError, OSError) as error:
        print(f"kernel-server: {leftover.name} is still there: {error}", file=sys.stderr)
        return False
    return True
