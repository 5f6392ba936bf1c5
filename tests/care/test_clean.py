"""`kernel-server clean`: what a server left that is gone, it finds and removes; what a live one has, it does not.

Other servers may run beside these tests, so that nothing is ever removed here but by its name.
"""

from __future__ import annotations

import os
import pty
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from kernel_server.care.leftovers import Leftover, in_engine, in_folders
from kernel_server.hosts.engine import BuildRequest, Engine
from kernel_server.hosts.images import (
    BASE_LABEL,
    DEFAULT_IMAGE,
    FALLBACK_IMAGE,
    LAYER_REPOSITORY,
    ImageRequest,
    find_ready,
)
from tests.clients.wire import ROOT, WireServer, containers_of, run_command, server_environment, wire_server
from tests.driving import docker_client

pytestmark = [pytest.mark.docker, pytest.mark.anyio]

COMMAND = [sys.executable, "-m", "kernel_server", "clean"]
SETTINGS = {"PY_EXEC_PRELOAD": "none", "PY_EXEC_POOL": "0", "PY_EXEC_SESSIONS_PER_CONTAINER": "1"}
SERVER = [sys.executable, str(ROOT / "server.py"), *(f"--{name}={value}" for name, value in SETTINGS.items())]


@pytest.fixture
def engine(docker_engine: None) -> Iterator[Engine]:
    connected = Engine.connect()
    yield connected
    connected.close()


@pytest.fixture
def run_parent() -> Iterator[Path]:
    """A folder for run folders that no other server sweeps; its path is short, for the sockets in it."""
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def old_layer(engine: Engine) -> Iterator[str]:
    """A layer as an earlier version would have built it."""
    base = DEFAULT_IMAGE if engine.image(DEFAULT_IMAGE) else FALLBACK_IMAGE
    key = secrets.token_hex(6)
    dockerfile = f"FROM {base}\nENV KEY={key}\n".encode()
    image = engine.build(BuildRequest({"Dockerfile": dockerfile}, labels={BASE_LABEL: base}), lambda _: None)
    engine.tag(image, LAYER_REPOSITORY, key)
    name = f"{LAYER_REPOSITORY}:{key}"
    yield name
    engine.remove_image(name)


def found(engine: Engine, state: Path) -> dict[str, str]:
    """Kind of each leftover by its name."""
    items = [*in_engine(engine, state), *in_folders()]
    return {item.name: item.kind for item in items if isinstance(item, Leftover)}


async def _started(server: WireServer) -> dict[str, Any]:
    """Starts a session, and returns its container."""
    await server.initialize()
    started = await server.call("init")
    assert not started.get("isError"), f"{started}\n{server.stderr}"
    (container,) = containers_of(server.process.pid)
    return container


def _belongings(container: dict[str, Any], state: Path) -> dict[str, str]:
    """What a server with that container has, as `found` would show it."""
    (volume,) = [path.name for path in (state / "volumes").iterdir()]
    folder = Path(container["Labels"]["kernel_server.run_dir"]).parent
    return {container["Names"][0].strip("/"): "container", volume: "shared volume", str(folder): "run folder"}


def _age(belongings: dict[str, str], state: Path) -> None:
    """As if more time had passed than a server takes to lock what it makes."""
    for name, kind in belongings.items():
        if kind != "container":
            os.utime(name if kind == "run folder" else state / "volumes" / name, (0, 0))


async def test_what_a_killed_server_left_goes_and_what_a_live_one_has_stays(
    engine: Engine, tmp_path: Path, run_parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue 5: `clean` removes leftovers after showing them; never anything of a live server, not even by its name."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(run_parent))
    (tmp_path / "live").mkdir()
    state, live_state = tmp_path / "state", tmp_path / "live" / "state"
    async with wire_server(SERVER, tmp_path / "live") as live, wire_server(SERVER, tmp_path) as doomed:
        living, container = _belongings(await _started(live), live_state), await _started(doomed)
        belongings = _belongings(container, state)
        _age(living, live_state)
        assert not found(engine, live_state).keys() & living.keys()
        with docker_client() as client:
            client.pause(container["Id"])  # or it would leave by itself, once its server is gone
        assert not found(engine, state).keys() & belongings.keys()
        doomed.process.send_signal(signal.SIGKILL)
        await doomed.process.wait()
        _age(belongings, state)
        shown = found(engine, state)
        assert {name: shown.get(name) for name in belongings} == belongings
        assert not shown.keys() & living.keys()

        refused = run_command([*COMMAND, "--yes", *belongings, *living], tmp_path)
        assert refused.returncode == 1
        assert all(name in refused.stderr for name in living)
        assert found(engine, state).keys() >= belongings.keys()

        done = run_command([*COMMAND, "--yes", *belongings], tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert all(f"{kind:<14} {name}\n" in done.stdout for name, kind in belongings.items())
        assert done.stdout.endswith("3 things removed.\n")
        assert containers_of(doomed.process.pid) == []
        assert not set(engine.volumes("kernel-server-shared-")) & belongings.keys()
        assert [path.name for path in run_parent.iterdir()] == [Path(name).name for name in living if "/" in name]
        assert not (await live.call("run_code", code="1"))["isError"]


async def test_old_layer_is_removed_and_the_current_one_stays(engine: Engine, old_layer: str, tmp_path: Path) -> None:
    """Issue 5: layers pile up, one for each version."""
    current = find_ready(engine, ImageRequest(tmp_path))
    assert current, "`make image` builds it"
    shown = found(engine, tmp_path)
    assert shown[old_layer] == "image layer"
    names = {name for name, image in engine.image_names(LAYER_REPOSITORY).items() if image == current}
    assert names - shown.keys()
    done = run_command([*COMMAND, old_layer, "--yes"], tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"image layer    {old_layer}\n1 thing removed.\n"
    assert old_layer not in engine.image_names(LAYER_REPOSITORY)


async def test_layer_that_a_container_uses_stays(engine: Engine, old_layer: str, tmp_path: Path) -> None:
    """Issue 5: never anything of a live server, of another version too."""
    with docker_client() as client:
        container = client.create_container(old_layer, ["true"])
        try:
            assert old_layer not in found(engine, tmp_path)
        finally:
            client.remove_container(container)
    assert old_layer in found(engine, tmp_path)


async def test_images_with_other_names_are_not_ours(engine: Engine, old_layer: str, tmp_path: Path) -> None:
    """Ours: a person may have given a layer a name of their own, to keep it."""
    tag = f"mine-{secrets.token_hex(4)}"
    image = engine.image(old_layer)
    assert image is not None
    engine.tag(image.id, LAYER_REPOSITORY, tag)
    try:
        assert f"{LAYER_REPOSITORY}:{tag}" not in found(engine, tmp_path)
    finally:
        engine.remove_image(f"{LAYER_REPOSITORY}:{tag}")


async def test_nothing_is_removed_without_a_terminal_to_ask(engine: Engine, old_layer: str, tmp_path: Path) -> None:
    """Ours: a script has to say --yes."""
    done = run_command([*COMMAND, old_layer], tmp_path)
    assert done.returncode == 1
    assert done.stdout == f"image layer    {old_layer}\n"
    assert "--yes removes it" in done.stderr
    assert old_layer in engine.image_names(LAYER_REPOSITORY)


@pytest.mark.parametrize(
    ("answer", "code", "said", "removed"),
    [
        (b"y\n", 0, "1 thing removed.", True),
        (b"n\n", 0, "Nothing was removed.", False),
        (b"\n", 0, "Nothing was removed.", False),
        (b"\x04", 0, "Nothing was removed.", False),
        (None, 130, "Stopped.", False),
    ],
    ids=["yes", "no", "enter", "end of input", "Ctrl-C"],
)
async def test_a_person_is_asked(
    engine: Engine, old_layer: str, tmp_path: Path, answer: bytes | None, code: int, said: str, removed: bool
) -> None:
    """Issue 5: removes leftovers after showing them; anything but a clear yes leaves them."""
    shown, exit_code = _on_terminal([*COMMAND, old_layer], tmp_path, answer)
    assert shown.index(old_layer) < shown.index("[y/N]")
    assert exit_code == code
    assert said in shown
    assert (old_layer not in engine.image_names(LAYER_REPOSITORY)) is removed


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    """As a person does, until it has helped: a signal right before input() begins to read does not end that."""
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.5)


def _on_terminal(command: list[str], folder: Path, answer: bytes | None) -> tuple[str, int]:
    """Runs a command on a terminal, and answers its question; None interrupts it."""
    master, slave = pty.openpty()
    environment = server_environment(folder)
    with subprocess.Popen(command, cwd=folder, env=environment, stdin=slave, stdout=slave, stderr=slave) as process:
        os.close(slave)
        shown = b""
        while b"[y/N] " not in shown:
            shown += os.read(master, 1000)
        if answer is None:
            _interrupt(process)
        else:
            os.write(master, answer)
        with suppress(OSError):  # EIO: nobody has the terminal open any more
            while data := os.read(master, 1000):
                shown += data
        code = process.wait(30)
    os.close(master)
    return shown.decode(), code


async def test_without_an_engine_the_rest_is_cleaned(tmp_path: Path, run_parent: Path) -> None:
    """Ours: what is in the engine cannot be seen, and it says so."""
    folder = run_parent / "ks-00000000"
    folder.mkdir()
    (folder / "lock").touch()
    os.utime(folder, (0, 0))
    socket = f"unix://{tmp_path}/none.sock"
    done = run_command([*COMMAND, "--yes", str(folder)], tmp_path, XDG_RUNTIME_DIR=str(run_parent), DOCKER_HOST=socket)
    assert done.returncode == 1
    assert "There is no Docker engine" in done.stderr
    assert done.stdout.endswith("1 thing removed.\n")
    assert not folder.exists()
