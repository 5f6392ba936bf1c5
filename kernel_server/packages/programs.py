"""Programs that the server runs to find and fetch packages: bounded in time and disk, and ended with their call."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.abc

POLL_SECONDS = 0.2
MAX_SAID_BYTES = 256 << 10  # of what a program says; its end counts


@dataclass(frozen=True)
class Ended:
    """How a program ended.

    Attributes:
        said: stdout and stderr.
        stopped: why it was ended: "time", "size" or "".
    """

    exit_code: int
    said: str
    stopped: str = ""


@dataclass(frozen=True)
class Bounds:
    """How long a program may run, in seconds, and how many bytes there may be in the folder in which it works."""

    seconds: float
    size: int


async def run_program(
    command: Sequence[str],
    folder: Path,
    environment: dict[str, str],
    bounds: Bounds,
    on_size: Callable[[int], None] = lambda _size: None,
) -> Ended:
    """Runs a program in `folder` until it ends or is ended; to be cancelled ends it, too.

    Args:
        on_size: told how many bytes are in the folder, some times a second.

    Raises:
        OSError: it cannot be started.
    """
    process = await anyio.open_process(
        list(command), cwd=folder, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT
    )
    said = bytearray()
    stopped = ""
    try:
        # No single file beyond the bound either, however fast it comes.
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (bounds.size, bounds.size))
        with anyio.move_on_after(bounds.seconds) as deadline:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_listen, process, said)
                while process.returncode is None:
                    with anyio.move_on_after(POLL_SECONDS):
                        await process.wait()
                        break
                    size = await anyio.to_thread.run_sync(size_of, folder)
                    on_size(size)
                    if size > bounds.size:
                        stopped = "size"
                        _kill(process)
        stopped = "time" if deadline.cancelled_caught else stopped
    finally:
        with anyio.CancelScope(shield=True):
            if process.returncode is None:
                _kill(process)
            await process.aclose()
    return Ended(process.returncode or 0, bytes(said).decode(errors="replace"), stopped)


async def _listen(process: anyio.abc.Process, said: bytearray) -> None:
    assert process.stdout is not None
    async for chunk in process.stdout:
        said += chunk
        del said[:-MAX_SAID_BYTES]


def _kill(process: anyio.abc.Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder, as far as they are still there."""
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                size += os.lstat(os.path.join(place, name)).st_size
    return size
