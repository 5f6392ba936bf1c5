"""Fetches wheels of exact versions: pip does, which knows the user's index, and takes nothing but wheels."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from kernel_server.errors import PackageError
from kernel_server.packages.environment import Environment
from kernel_server.packages.programs import Bounds, Ended, run_program, size_of
from kernel_server.packages.resolve import unreachable
from kernel_server.text import counted, human_size

BOUNDS = Bounds(240.0, 2 << 30)


async def download(
    wanted: dict[str, str],
    environment: Environment,
    folder: Path,
    variables: dict[str, str],
    on_size: Callable[[int], None],
) -> list[str]:
    """Fetches the wheels of `wanted` (name and version) into `folder`, an empty one; returns their names.

    Raises:
        PackageError: one cannot be had, they are too large, or it takes too long.
    """
    wheels, temporary = folder / "wheels", folder / "temporary"
    wheels.mkdir()
    temporary.mkdir()
    pinned = folder / "pinned.txt"
    pinned.write_text("".join(f"{name}=={version}\n" for name, version in wanted.items()), encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--progress-bar", "off", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(wheels), "--requirement", str(pinned)]
    command += ["--implementation", "cp", "--python-version", environment.python, "--abi", environment.abi]
    for platform in environment.platforms:
        command += ["--platform", platform]
    try:
        ended = await run_program(command, folder, {**variables, "TMPDIR": str(temporary)}, BOUNDS, on_size)
    except OSError as error:
        raise PackageError(f"pip cannot be run on the server's machine: {error.strerror}. Try again.") from error
    if ended.exit_code or ended.stopped:
        raise PackageError(_explain(ended, wanted, size_of(folder)))
    return _checked(wheels, wanted)


def _checked(folder: Path, wanted: dict[str, str]) -> list[str]:
    """The names of the files, which are the wheels that were asked for, and nothing else."""
    names = sorted(path.name for path in folder.iterdir())
    try:
        found = {(parsed[0], str(parsed[1])) for parsed in map(parse_wheel_filename, names)}
    except InvalidWheelFilename as error:
        raise PackageError(f"Nothing was installed: the index has sent what is no wheel. {error}.") from error
    if missing := [f"{name}=={version}" for name, version in wanted.items() if (name, version) not in found]:
        raise PackageError(f"Nothing was installed: the index did not send {', '.join(missing)}. Try again.")
    return names


def _explain(ended: Ended, wanted: dict[str, str], size: int) -> str:
    what = counted(len(wanted), "package")
    if ended.stopped == "size":
        return (
            f"Nothing was installed: {what} would take more than {human_size(BOUNDS.size)}, the most that is fetched in "
            "one call. Install fewer at a time, or a smaller variant."
        )
    if ended.stopped:
        return (
            f"Nothing was installed: {what} did not arrive within {BOUNDS.seconds:g} s ({human_size(size)} did). Call "
            "install_packages again: what has arrived whole is not fetched again."
        )
    errors = [line.partition(":")[2].strip() for line in ended.said.splitlines() if line.startswith("ERROR:")]
    return unreachable(errors[-1] if errors else f"pip ended with {ended.exit_code}")
