"""A server's container, as somebody else on this machine treats it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL, Signals

from tests.clients.wire import RUN_DIR_LABEL, containers_of
from tests.driving import docker_client

PYTHON = "/opt/kernel_server/venv/bin/python"
FIND_KERNEL_HOST = """
import glob, os
for folder in glob.glob("/proc/[0-9]*"):
    parent = int(open(folder + "/stat").read().rpartition(")")[2].split()[1])
    if parent == 1 and b"kernel_host" in open(folder + "/cmdline", "rb").read():
        print(os.path.basename(folder))
"""


@dataclass(frozen=True)
class Container:
    """One of them; `run_dir` is its folder for sockets on the host."""

    id: str
    run_dir: Path

    @classmethod
    def of(cls, pid: int) -> Container:
        """The only container of the server with that process id."""
        (found,) = containers_of(pid)
        return cls(str(found["Id"]), Path(found["Labels"][RUN_DIR_LABEL]))

    def kill(self) -> None:
        with docker_client() as client:
            client.kill(self.id)

    def stop(self) -> None:
        with docker_client() as client:
            client.stop(self.id)

    def pause(self) -> None:
        with docker_client() as client:
            client.pause(self.id)

    def unpause(self) -> None:
        with docker_client() as client:
            client.unpause(self.id)

    def is_there(self) -> bool:
        with docker_client() as client:
            return bool(client.containers(all=True, filters={"id": self.id}))

    def has_left_nothing(self) -> bool:
        return not self.is_there() and not self.run_dir.parent.exists()

    def run(self, code: str) -> str:
        """What Python code prints that runs as root in it."""
        with docker_client() as client:
            made = client.exec_create(self.id, [PYTHON, "-c", code], user="0:0")
            return str(client.exec_start(made["Id"]).decode())

    def signal(self, pid: int, number: Signals) -> None:
        """Sends a signal to a process by its number inside."""
        assert self.run(f"import os; os.kill({pid}, {number:d}); print('sent')") == "sent\n"

    def kill_kernel_host(self) -> None:
        """All else in the container ends with it, what sends the signal included."""
        self.run(f"import os; os.kill({int(self.run(FIND_KERNEL_HOST))}, {SIGKILL:d})")
