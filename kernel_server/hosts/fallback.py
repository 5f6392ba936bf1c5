"""Runs `container/make-base.sh`: a base image from Debian packages, where no registry can be reached."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# Lines of the scripts in container/ that are meant for people.
SCRIPT_PREFIX = "kernel-server: "
# Seconds for the script, which takes a minute with a good line.
MAKE_BASE_TIMEOUT = 900.0
# Last lines of its output that an error shows.
LINES_IN_ERROR = 8


def is_possible() -> bool:
    """Whether the script can work: it needs root for a chroot, and debootstrap or a way to install that."""
    return os.geteuid() == 0 and bool(shutil.which("debootstrap") or shutil.which("apt-get"))


def make(script: Path, tag: str, address: str, ca_bundle: Path | None, report: Callable[[str], None]) -> list[str]:
    """Runs the script to its end or its deadline, and returns its last lines. Whether it worked, the engine knows.

    Args:
        script: container/make-base.sh.
        tag: the name of the image to make.
        address: of the engine that gets it.
        ca_bundle: authorities that the image is to trust; None leaves the choice to the script.
        report: gets the lines that are meant for people.
    """
    environment = {**os.environ, "DOCKER_HOST": address}
    if ca_bundle:
        environment["PY_EXEC_CA_BUNDLE"] = str(ca_bundle)
    # `sh`: an installed wheel may have lost the x bit.
    return _run(["sh", str(script), tag], environment, report)


def _run(command: list[str], environment: dict[str, str], report: Callable[[str], None]) -> list[str]:
    """Runs it to its end or its deadline and returns its last lines; nothing of it outlives this call."""
    tail: deque[str] = deque(maxlen=LINES_IN_ERROR)
    # stdin may be the MCP wire; its own process group, so that all of it can be ended.
    process = subprocess.Popen(
        command,
        env=environment,
        cwd="/",  # not the user's folder, where sessions may put files
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    deadline = threading.Timer(MAKE_BASE_TIMEOUT, _terminate, [process])
    deadline.start()
    try:
        assert process.stdout is not None  # PIPE above
        for line in map(str.rstrip, process.stdout):
            tail.append(line)
            if line.startswith(SCRIPT_PREFIX):
                report(line.removeprefix(SCRIPT_PREFIX))
        process.wait()
    finally:
        deadline.cancel()
        _terminate(process)
    return list(tail)


def _terminate(process: subprocess.Popen[str]) -> None:
    """SIGTERM to its group: the script's own trap removes its temporary folder."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
