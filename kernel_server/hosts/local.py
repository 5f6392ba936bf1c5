"""Kernels as plain child processes of the server's user: NO ISOLATION. For development, and only when asked for."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel

from kernel_server.errors import HostLost
from kernel_server.hosts.base import HostDescription, HostSettings, KeptHost, Report
from kernel_server.hosts.control import connect_control
from kernel_server.hosts.controlled import ControlledHost, Owner
from kernel_server.hosts.images import container_folder
from kernel_server.hosts.rundir import run_folder
from kernel_server.streams import IteratorReader
from kernel_server.tasks import running

logger = logging.getLogger(__name__)

START_SECONDS = 60.0
STOP_SECONDS = 5.0
PIPE_BYTES = 1 << 20


class LocalArchive:
    """Tar streams to and from a folder of this machine; the counterpart of Docker's archive API."""

    def put(self, folder: str, tar: Iterator[bytes]) -> None:
        with tarfile.open(fileobj=IteratorReader(tar), mode="r|", bufsize=PIPE_BYTES) as archive:
            # Python 3.12 and 3.13 warn without a filter; older ones do not know the argument.
            archive.extraction_filter = lambda member, _: member
            for member in archive:  # we made it ourselves: regular files and folders with clean names
                archive.extract(member, folder, numeric_owner=True)

    def get(self, path: str) -> Iterator[bytes]:
        reader, writer = os.pipe()
        # A second process writes the tar, so that this one reads it as a stream like any other.
        command = ["tar", "--format=pax", "-C", os.path.dirname(path), "-cf", "-", os.path.basename(path)]
        with subprocess.Popen(command, stdout=writer) as process:
            os.close(writer)
            with open(reader, "rb") as stream:
                while chunk := stream.read(PIPE_BYTES):
                    yield chunk
        if process.returncode:
            raise HostLost(f"tar ended with {process.returncode}")


class LocalHosts:
    """See `KernelHosts`."""

    def __init__(self, settings: HostSettings) -> None:
        self._settings = settings

    def start(self, report: Report) -> AbstractAsyncContextManager[ControlledHost]:
        return local_host(self._settings, report)

    def kept(self) -> Sequence[KeptHost]:
        return []  # its processes end with their server

    def whereabouts(self, session_id: str) -> str:
        return ""

    def renew(self) -> Callable[[], Awaitable[None]]:
        return anyio.lowlevel.checkpoint  # each removes its own folders


@asynccontextmanager
async def local_host(settings: HostSettings, report: Report) -> AsyncIterator[ControlledHost]:
    """Starts kernel_host as a child process; ends it, and all kernels, on leaving.

    Raises:
        HostLost: it did not start, mostly because ipykernel is not installed (`pip install 'kernel-server[local]'`).
    """
    report("Starting kernels as local processes, without isolation")
    with run_folder() as folder:
        owner = Owner.new()
        workspace = folder.outer / "workspace"  # goes with the run folder, whatever happens to this process
        process = await anyio.open_process(
            [sys.executable, "-s", str(container_folder() / "kernel_host")],
            env={**os.environ, "KERNEL_HOST_CONFIG": json.dumps(_config(settings, folder.path, workspace, owner))},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=None,
        )
        ended = anyio.Event()

        async def watch() -> None:
            await process.wait()
            ended.set()

        async with running(watch):
            try:
                async with connect_control(folder.path / "control", owner.token, START_SECONDS, ended) as control:
                    yield ControlledHost(control, folder, LocalArchive(), _describe(control.hello))
            finally:
                await _stop(process)


async def _stop(process: anyio.abc.Process) -> None:
    with anyio.CancelScope(shield=True):
        if process.returncode is None:
            process.terminate()
        with anyio.move_on_after(STOP_SECONDS):
            await process.wait()
        if process.returncode is None:
            process.kill()
            await process.wait()


def _config(settings: HostSettings, run_dir: Path, workspace: Path, owner: Owner) -> dict[str, Any]:
    return {
        "run_dir": str(run_dir),
        "workspace_dir": str(workspace),
        "isolation": "process_group",
        "preload": settings.preload,
        "owner": owner.digest,
        "lease_seconds": 2.0,
        "limits": {"data": settings.session_memory} if settings.session_memory else {},
    }


def _describe(hello: dict[str, Any]) -> HostDescription:
    return HostDescription(
        engine="local",
        isolation="NONE: code runs as your user on this machine (PY_EXEC_ENGINE=local)",
        python=str(hello["python"]),
        preloaded=list(hello["preloaded"]),
        image="",
        limits="",
        memory="",
        network="that of this machine",
    )
