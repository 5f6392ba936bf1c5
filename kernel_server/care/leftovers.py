"""What servers left behind that are gone: found by locks that nobody holds any more, so never something of a live one.

Things of other users are passed over. A stranger is a thing of which it cannot be told whose it is, since it has no lock
in the folders that are seen from here: it is shown, and left alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kernel_server.hosts import volumes
from kernel_server.hosts.engine import ContainerInfo, Engine
from kernel_server.hosts.images import old_layers
from kernel_server.hosts.orphans import RUN_DIR_LABEL, folder_of, is_gone
from kernel_server.hosts.rundir import LOCK, abandoned, is_kept, parent_folders
from kernel_server.locks import claimed
from kernel_server.private import private_folder


@dataclass(frozen=True)
class Leftover:
    """A thing that can be removed; `remove` raises EngineError or OSError where it cannot.

    Attributes:
        kept: a later server could go on with it; removed only by its name.
    """

    kind: str
    name: str
    remove: Callable[[], object]
    kept: bool = False

    def __str__(self) -> str:
        return f"{self.kind:<14} {self.name}"


@dataclass(frozen=True)
class Stranger:
    """Perhaps a leftover; `command` removes it."""

    name: str
    command: str


def in_folders() -> Iterator[Leftover]:
    """What can be found without an engine."""
    for parent in sorted(parent_folders()):
        for folder in abandoned(parent):
            yield Leftover("run folder", str(folder), partial(_remove_folder, folder))


def _remove_folder(folder: Path) -> None:
    with private_folder(folder) as opened, claimed(LOCK, opened):
        shutil.rmtree(folder)


def in_engine(engine: Engine, state: Path) -> Iterator[Leftover | Stranger]:
    """Containers, shared volumes and layers of images, in the order in which they can be removed."""
    containers = engine.containers()
    yield from _containers(engine, containers)
    yield from _volumes(engine, state / "volumes")
    used = {container.image for container in containers}
    for name, layer in old_layers(engine).items():
        if layer.id not in used:
            yield Leftover("image layer", name, partial(engine.remove_image, name))


def _containers(engine: Engine, containers: list[ContainerInfo]) -> Iterator[Leftover | Stranger]:
    for container in containers:
        if RUN_DIR_LABEL not in container.labels:
            continue
        remove = partial(engine.remove_container, container.id)
        gone = is_gone(container)
        if gone and _is_kept(folder_of(container)):
            yield Leftover("kept container", container.name, remove, kept=True)
        elif gone:
            yield Leftover("container", container.name, remove)
        elif gone is None:
            yield Stranger(container.name, f"docker rm -f {container.name}")


def _is_kept(folder: Path) -> bool:
    try:
        return is_kept(folder)
    except OSError:
        return False


def _volumes(engine: Engine, folder: Path) -> Iterator[Leftover | Stranger]:
    there = set(engine.volumes(volumes.PREFIX))
    known = {path.name for path in folder.glob(f"{volumes.PREFIX}*")}
    for path in volumes.abandoned(folder):
        yield Leftover("shared volume", path.name, partial(_remove_volume, engine, path))
    for name in sorted(there - known):
        yield Stranger(name, f"docker volume rm {name}")


def _remove_volume(engine: Engine, lock: Path) -> None:
    with claimed(lock):
        engine.remove_volume(lock.name)
        lock.unlink()
