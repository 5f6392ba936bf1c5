"""What a session can import, and wheels that are installed for it, in a forked helper that has become the session's UID.

Wheels were fetched by the server: there is no network here. To install one is to unpack it. No code of it runs, and if
some did it would be the session's, with the session's limits.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain, islice, repeat
from typing import Any

from . import identity
from .beneath import Folder, Refused

INSTALL_SECONDS = 300.0  # a GB of wheels takes a minute on a slow disk
# A session can put there what it likes; all of it, as JSON, has to fit into one answer (connections.MAX_LINE_BYTES).
MAX_DISTRIBUTIONS, MAX_CHARACTERS, MAX_ALL_BYTES = 5_000, 300, 900_000
MAX_ERROR_CHARACTERS = 2_000
MAX_MODULES = 20  # of one package


def packages(user_site: str) -> dict[str, Any]:
    """Name and version of every distribution on the path, sorted by name.

    Args:
        user_site: what the session has installed; "" for none.
    """
    found: dict[str, str] = {}
    for distribution in _distributions(user_site):
        found.setdefault(distribution["name"], distribution["version"])  # the first is the one that is imported
    return {"packages": sorted(found.items(), key=lambda item: item[0].lower())}


def environment(user_site: str) -> dict[str, Any]:
    """For which Python wheels have to be, and what is there already: all that a resolver has to know."""
    from packaging import tags
    from packaging.markers import default_environment

    # Not by the list of all tags: it has 1200, for every Python that there ever was.
    return {
        "markers": dict(default_environment()),
        "abi": next(iter(tags.sys_tags())).abi,
        "platforms": list(tags.platform_tags()),
        "distributions": list(_distributions(user_site)),
    }


def _distributions(user_site: str) -> Iterator[dict[str, Any]]:
    """Name, version, what it needs, and whether it is the session's own; first those that win where there are two."""
    from importlib import metadata

    from .metadata import found_in

    own = found_in(user_site) if user_site else ()
    found = chain(zip(own, repeat(True)), zip(metadata.distributions(), repeat(False)))
    left = MAX_ALL_BYTES
    for distribution, is_own in islice(found, MAX_DISTRIBUTIONS):
        with suppress(Exception):  # a session puts there what it likes, also what is no text
            told = {
                "name": distribution.metadata["Name"][:MAX_CHARACTERS],
                "version": distribution.version[:MAX_CHARACTERS],
                "requires": [text for text in distribution.requires or [] if len(text) <= MAX_CHARACTERS],
                "own": is_own,
            }
            left -= len(json.dumps(told))
            if left > 0:
                yield told


def _installed(wheels: list[str], user_site: str, preloaded: set[str]) -> Iterator[dict[str, Any]]:
    """What can be imported of the packages that came with `wheels`."""
    from packaging.utils import canonicalize_name, parse_wheel_filename

    from .metadata import found_in

    names = {parse_wheel_filename(wheel)[0] for wheel in wheels}
    for distribution in found_in(user_site):
        with suppress(Exception):  # as above
            name = canonicalize_name(distribution.metadata["Name"])
            if name not in names:
                continue
            sources = [file for file in distribution.files or () if file.suffix in {".py", ".so"}]
            tops = {file.parts[0].partition(".")[0] for file in sources}
            modules = sorted(top for top in tops if top.isidentifier() and len(top) <= MAX_CHARACTERS)[:MAX_MODULES]
            yield {"name": name, "modules": modules, "preloaded": not preloaded.isdisjoint(modules)}


def install(staging: int, name: str, private: str, begin: Callable[[], None], limits: dict[str, int]) -> dict[str, Any]:
    """Installs the wheels in the folder `name` of the open staging folder where `pip install --user` would.

    They are exactly what is wanted: nothing is resolved here.

    Args:
        private: folder of the session in which the wheels are meanwhile: it cannot reach staging.
        begin: goes to the session's workspace and raises the session's walls, when the wheels are in `private`.
    """
    preloaded = set(sys.modules)  # as every kernel finds them
    folder = f"{private}/{name}-{os.getpid()}"
    os.mkdir(folder, 0o700)
    try:
        with Folder(staging, name) as staged:
            target = os.open(folder, os.O_DIRECTORY | os.O_RDONLY | os.O_CLOEXEC)
            wheels = sorted(os.listdir(staged))
            for wheel in wheels:
                os.rename(wheel, wheel, src_dir_fd=staged, dst_dir_fd=target)
            os.close(target)
        begin()
        home = os.getcwd()
        identity.make_dumpable()
        identity.yield_to_host()
        identity.set_limits(limits)
        _run_uv([f"{folder}/{wheel}" for wheel in wheels], folder, home)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {"packages": list(_installed(wheels, identity.user_site(home), preloaded))}


def _run_uv(wheels: list[str], folder: str, home: str) -> None:
    from uv import find_uv_bin

    command = [find_uv_bin(), "pip", "install", "--no-config", "--offline", "--no-index", "--no-deps", "--no-build"]
    command += ["--no-cache", "--link-mode", "copy", "--no-progress", "--color", "never", "--no-python-downloads"]
    command += [
        "--python",
        sys.executable,
        "--prefix",
        ".local",
        "--",
        *wheels,
    ]  # no path of the workspace: it has the id
    # Nothing of ours: the session could read it. Few threads: they count against its limit.
    environment = {"HOME": home, "TMPDIR": folder, "PATH": os.defpath, "LC_ALL": "C.UTF-8"}
    environment.update(dict.fromkeys(("UV_CONCURRENT_INSTALLS", "RAYON_NUM_THREADS", "TOKIO_WORKER_THREADS"), "2"))
    try:
        done = subprocess.run(
            command,
            cwd=home,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=INSTALL_SECONDS,
            preexec_fn=identity.die_with_parent,
        )
    except subprocess.TimeoutExpired:
        raise Refused(
            f"the packages could not be unpacked within {INSTALL_SECONDS:g} s; nobody knows how far it got"
        ) from None
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        said = "\n".join(line for line in lines if not line.startswith("Using "))[-MAX_ERROR_CHARACTERS:]
        how = f"exit code {done.returncode}" if done.returncode > 0 else f"signal {-done.returncode}"
        raise Refused(f"the packages could not be unpacked ({how}): {said}")
