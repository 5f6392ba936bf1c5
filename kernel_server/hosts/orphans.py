"""Containers whose server is gone: found by the lock in its run folder, so never one of a server that lives."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from pathlib import Path

from kernel_server.errors import EngineError
from kernel_server.hosts.engine import ContainerInfo, Engine
from kernel_server.hosts.rundir import LOCK, PREFIX
from kernel_server.locks import claimed
from kernel_server.private import private_folder

logger = logging.getLogger(__name__)

RUN_DIR_LABEL = "kernel_server.run_dir"
STOPPED = {"created", "exited", "dead"}
START_SECONDS = 60.0  # a container that has not begun to run by then, never will


def folder_of(container: ContainerInfo) -> Path:
    """The run folder of one of our containers, where its server's lock is."""
    return Path(container.labels[RUN_DIR_LABEL]).parent


def is_gone(container: ContainerInfo) -> bool | None:
    """Whether the server of a container of this user is gone; None where that cannot be told."""
    folder = folder_of(container)
    try:
        if not folder.name.startswith(PREFIX):
            return False
        with private_folder(folder) as opened, claimed(LOCK, opened):
            return True
    except FileNotFoundError:
        # Its server has removed the folder, or has another /tmp than we; no container runs without, or for long.
        never_started = container.state in STOPPED and time.time() - container.created > START_SECONDS
        return True if never_started else None
    except OSError:  # held, or another user's
        return False


def remove_stopped(engine: Engine) -> None:
    """Removes containers that do not run and whose server is gone.

    One that was killed between making a container and starting it leaves such a one: nothing ends by itself that has
    never begun. It has to go before its run folder, which tells whose it is.
    """
    with suppress(EngineError):
        for container in engine.containers():
            if RUN_DIR_LABEL in container.labels and container.state in STOPPED and is_gone(container):
                engine.remove_container(container.id)
                logger.info("removed what a server left behind: %s", container.name)
