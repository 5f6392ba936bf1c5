"""The shared volume by itself: what a killed server left is not forgotten before it is gone."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import pytest

from kernel_server.errors import HostLost
from kernel_server.hosts.engine import Engine
from kernel_server.hosts.volumes import PREFIX, SharedVolume
from tests.driving import docker_client
from tests.hosts.test_images import _derive

pytestmark = pytest.mark.docker


def test_volume_that_is_still_in_use_is_left_to_the_next_server(tmp_path: Path) -> None:
    """Ours: the container of a killed server stays for ten seconds; a server that starts meanwhile cannot remove more."""
    lock = tmp_path / f"{PREFIX}{secrets.token_hex(8)}"
    lock.touch()
    os.utime(lock, (0, 0))
    engine = Engine.connect()
    image = _derive(engine, "no-python", "RUN rm -f /usr/bin/python* /usr/local/bin/python*")
    with docker_client() as client:
        config = client.create_host_config(binds=[f"{lock.name}:/shared"])
        container = client.create_container(image, ["true"], host_config=config)
        try:
            _start_and_end(tmp_path, engine)
            assert lock.exists()
            assert engine.volumes(PREFIX).count(lock.name) == 1
        finally:
            client.remove_container(container)
    _start_and_end(tmp_path, engine)
    assert not list(tmp_path.iterdir())
    assert lock.name not in engine.volumes(PREFIX)
    engine.close()


def test_start_that_was_given_up_leaves_nothing(tmp_path: Path) -> None:
    """Ours: a start that is cancelled goes on in its thread for a moment, while the server ends."""
    engine = Engine.connect()
    volume = SharedVolume(tmp_path)
    assert not volume.retire()
    with pytest.raises(HostLost, match="ended"):
        volume.open(engine)
    assert not list(tmp_path.iterdir())
    engine.close()


def _start_and_end(folder: Path, engine: Engine) -> None:
    volume = SharedVolume(folder)
    volume.open(engine)
    volume.remove(engine)
