"""Which packages have to come, so that what is asked for can be imported: uv decides, beside what is there already.

uv knows the session's Python by numbers and names only, and what is installed there from a folder of metadata that is
made up for it; it installs nothing. Source distributions are out of the question: to read one means to run it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from kernel_server.errors import PackageError
from kernel_server.packages.environment import Environment
from kernel_server.packages.programs import Bounds, Ended, run_program
from kernel_server.text import cut_middle, one_line

BOUNDS = Bounds(60.0, 64 << 20)
MAX_EXPLANATION_BYTES = 1_500  # uv tells its whole way to a contradiction
UNRESOLVED = "No solution found"  # how uv begins where the index has answered, and nothing fits
# The platforms that uv knows for glibc: 2.17, then these (uv pip install --help). One below the session's is right, too.
GLIBC_MINORS = (17, 28, *range(31, 41))
_CHANGE = re.compile(r"^ ([-+~]) ([A-Za-z0-9._-]+)==(\S+)", re.MULTILINE)
_GLIBC = re.compile(r"manylinux_2_(\d+)_")
_CAUSE = re.compile(r"^(?:error|  cause): ")


@dataclass(frozen=True)
class Plan:
    """What has to be done; all by canonical name and version.

    Attributes:
        wanted: what comes in.
        replaced: the versions that these take the place of.
        present: what was asked for, and is there already.
    """

    wanted: dict[str, str]
    replaced: dict[str, str]
    present: dict[str, str]


async def resolve(
    requirements: Sequence[Requirement],
    environment: Environment,
    folder: Path,
    variables: dict[str, str],
    *,
    trust_session: bool,
) -> Plan:
    """Finds out what has to come.

    Args:
        folder: an empty one.
        variables: the environment for uv; see `sources`.
        trust_session: whether to believe what a session says of what its own packages need. Where only some packages may
            be installed, it could ask for others in this way.

    Raises:
        PackageError: nothing fits, or the index cannot be asked.
    """
    target, asked = folder / "present", folder / "requirements.txt"
    _write_present(target, environment, trust_session=trust_session)
    asked.write_text("".join(f"{requirement}\n" for requirement in requirements), encoding="utf-8")
    ended = await _run_uv(target, asked, environment, folder, variables)
    if ended.exit_code or ended.stopped:
        raise PackageError(_explain(ended, environment))
    changes = [
        (sign, str(canonicalize_name(name)), str(version)) for sign, name, version in _CHANGE.findall(ended.said)
    ]
    wanted = {name: version for sign, name, version in changes if sign != "-"}
    replaced = {name: version for sign, name, version in changes if sign == "-" and name in wanted}
    names = [canonicalize_name(requirement.name) for requirement in requirements]
    there = environment.distributions
    return Plan(wanted, replaced, {name: there[name].version for name in names if name in there and name not in wanted})


def _write_present(target: Path, environment: Environment, *, trust_session: bool) -> None:
    """The metadata of what is there: https://packaging.python.org/en/latest/specifications/recording-installed-packages/."""
    target.mkdir()
    for found in environment.distributions.values():
        requires = found.requires if trust_session or not found.own else ()
        lines = ["Metadata-Version: 2.1", f"Name: {found.name}", f"Version: {found.version}"]
        lines += [f"Provides-Extra: {extra}" for extra in sorted(set(_extras(requires)))]
        lines += [f"Requires-Dist: {one_line(text, len(text))}" for text in requires]
        info = target / f"{found.name.replace('-', '_')}-{found.version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("\n".join([*lines, "", ""]), encoding="utf-8")


def _extras(requires: Sequence[str]) -> Iterator[str]:
    for text in requires:
        yield from re.findall(r"extra == [\"']([A-Za-z0-9._-]+)[\"']", text)


async def _run_uv(
    target: Path, asked: Path, environment: Environment, folder: Path, variables: dict[str, str]
) -> Ended:
    from uv import find_uv_bin

    command = [find_uv_bin(), "pip", "install", "--dry-run", "--no-config", "--no-progress", "--color", "never"]
    command += ["--only-binary", ":all:", "--index-strategy", "unsafe-best-match"]  # as pip takes indexes
    command += ["--python", sys.executable, "--no-python-downloads", "--python-version", environment.python]
    command += ["--python-platform", platform_of(environment), "--target", str(target), "--requirements", str(asked)]
    try:
        return await run_program(command, folder, variables, BOUNDS)
    except OSError as error:
        raise PackageError(f"uv cannot be run on the server's machine: {error.strerror}. Try again.") from error


def platform_of(environment: Environment) -> str:
    """The session's platform as uv calls it.

    Raises:
        PackageError: there are no wheels for it.
    """
    if (
        environment.markers.get("implementation_name") == "cpython"
        and environment.markers.get("sys_platform") == "linux"
    ):
        minors = [int(found[1]) for tag in environment.platforms if (found := _GLIBC.match(tag))]
        if minors:
            return f"{environment.machine}-manylinux_2_{max(m for m in GLIBC_MINORS if m <= max(*minors, 17))}"
        if any(tag.startswith("musllinux_") for tag in environment.platforms):
            return f"{environment.machine}-unknown-linux-musl"
    raise PackageError(
        f"Packages can be installed for CPython on Linux only; this session has {environment.markers.get('implementation_name')} "
        f"on {environment.markers.get('sys_platform')}."
    )


def _explain(ended: Ended, environment: Environment) -> str:
    if ended.stopped == "size":
        return "The description of these packages is larger than can be. Ask for other versions, or for fewer packages."
    if ended.stopped:
        return f"Which packages are needed was not clear after {BOUNDS.seconds:g} s. Give exact versions, or fewer packages at a time."
    lines = [line for line in ended.said.splitlines() if not line.startswith(("Using ", "Resolved "))]
    if any(UNRESOLVED in line for line in lines):
        told = [_CAUSE.sub("", line).strip() for line in lines if UNRESOLVED not in line and "--no-build" not in line]
        text = cut_middle("\n".join(filter(None, told)), MAX_EXPLANATION_BYTES, "ask for fewer packages at a time")
        return (
            f"Nothing was installed: there is no fitting set of wheels for Python {environment.python} on Linux "
            f"{environment.machine}.\n{text}\nCheck the name, or choose another version. Packages without a wheel (source "
            "only) cannot be installed: nothing is built here."
        )
    causes = [_CAUSE.sub("", line) for line in lines if _CAUSE.match(line)]
    return unreachable(causes[-1] if causes else f"uv ended with {ended.exit_code}")


def unreachable(cause: str) -> str:
    """What to tell where the index does not answer as it should."""
    return (
        f"Nothing was installed: the package index could not be used from the server's machine ({one_line(cause, 200)}). "
        "Try again later; if it stays so, tell the user to check the network, the proxy and pip's configuration there."
    )
