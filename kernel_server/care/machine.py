"""Checks of this machine that need no engine: Python, packages, folders."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from kernel_server import __version__
from kernel_server.care.check import Check
from kernel_server.care.engine import check_disk
from kernel_server.care.holes import parse_version
from kernel_server.config import Settings
from kernel_server.hosts.rundir import parent_folder

DISTRIBUTION = "kernel-server"
_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(?:\[[^]]*\])?(?P<bounds>[^;]*)(?:;\s*(?P<marker>.*))?")
STATE_BYTES = 20_000_000  # less than that, and the next picture in a journal may not fit
ENOUGH_STATE_BYTES = 500_000_000


def check_machine(settings: Settings) -> Iterator[Check]:
    """All of them."""
    yield Check("ok", "python", f"{platform.python_version()} ({sys.executable}), kernel-server {__version__}")
    yield _packages()
    yield _input(settings)
    yield _output(settings)
    yield _state(settings.state_dir)
    yield _run_folder()


def _packages() -> Check:
    try:
        declared = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        finding = "kernel-server is not installed here (a checkout on PYTHONPATH), so nothing says what it needs"
        return Check("warn", "packages", finding, "`pip install .` in the checkout.")
    needed = [found for text in declared if (found := _REQUIREMENT.fullmatch(text)) and not found["marker"]]
    problems = [problem for found in needed if (problem := _problem(found["name"], found["bounds"]))]
    if problems:
        return Check("FAIL", "packages", "; ".join(problems), "`pip install --upgrade kernel-server`, or `make tools`.")
    return Check("ok", "packages", f"all {len(needed)} are as declared")


def _problem(name: str, bounds: str) -> str:
    """What is wrong with a package; `bounds` such as `>=2.3,<3`, which are the only two kinds that we declare."""
    try:
        installed = metadata.version(name)
    except metadata.PackageNotFoundError:
        return f"{name} is missing"
    version = parse_version(installed)
    for operator, text in re.findall(r"(>=|<)\s*([\w.]+)", bounds):
        bound = parse_version(text if "." in text else f"{text}.0")
        if version is None or bound is None or (version < bound if operator == ">=" else version >= bound):
            return f"{name} is {installed}, needs {bounds.strip()}"
    return ""


def _input(settings: Settings) -> Check:
    folder = settings.input_folder
    if not folder.is_dir():
        return Check("FAIL", "WORKDIR_IN", f"{folder} {_what(folder)}", "Make it, or name another one; cp_in needs it.")
    if not os.access(folder, os.R_OK | os.X_OK):
        return Check("FAIL", "WORKDIR_IN", f"{folder} cannot be read", "Change its permissions, or name another one.")
    return Check("ok", "WORKDIR_IN", str(folder))


def _output(settings: Settings) -> Check:
    folder = settings.output_folder
    if not folder.is_dir():
        mend = "Make it, or name another one; cp_out and export_notebook need it."
        return Check("FAIL", "WORKDIR_OUT", f"{folder} {_what(folder)}", mend)
    if os.access(folder, os.W_OK | os.X_OK):
        return Check("ok", "WORKDIR_OUT", str(folder))
    # Nobody chose the current folder of this command: clients start servers in one of their own.
    chosen = settings.workdir_out is not None or settings.workdir != Path()
    mend = "Change its permissions, or name another one."
    return Check("FAIL" if chosen else "warn", "WORKDIR_OUT", f"{folder} cannot be written to", mend)


def _what(folder: Path) -> str:
    return "is not a folder" if folder.exists() else "does not exist"


def _state(folder: Path) -> Check:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        mend = (
            "Change its permissions, or set PY_EXEC_STATE_DIR: without it nothing is recorded, and no image is built."
        )
        return Check(
            "FAIL", "state folder", f"{folder} cannot be {'written to' if existing == folder else 'made'}", mend
        )
    if existing == folder and folder.stat().st_uid not in (0, os.geteuid()):
        mend = "Set PY_EXEC_STATE_DIR to a folder of your own: who owns it can change what is kept there."
        return Check("warn", "state folder", f"{folder} belongs to another user", mend)
    return check_disk("state folder", existing, STATE_BYTES, ENOUGH_STATE_BYTES)


def _run_folder() -> Check:
    try:
        parent = parent_folder()
    except OSError as error:
        return Check("FAIL", "run folder", str(error), "Set TMPDIR to a short path, such as /tmp.")
    wished = os.environ.get("XDG_RUNTIME_DIR")
    if wished and Path(wished) != parent:
        finding = (
            f"sockets go to {parent}, since XDG_RUNTIME_DIR={wished} is too long, not yours to write, or open to others"
        )
        return Check("ok", "run folder", finding)
    return Check("ok", "run folder", f"sockets go to {parent}")
