"""The kernel image: what a build promises on any base, told with a real engine; keys and error texts without one.

The images made here keep their names, so that a second run of the suite finds them in the engine's build cache.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel_server.errors import ImageUnavailable
from kernel_server.hosts import images
from kernel_server.hosts.engine import BuildRequest, Engine
from kernel_server.hosts.images import (
    DEFAULT_IMAGE,
    FALLBACK_IMAGE,
    LAYER_REPOSITORY,
    ImageRequest,
    build_context,
    container_folder,
    ensure_kernel_image,
    layer_key,
)

TEST_REPOSITORY = "kernel-server-tests"
# Where PyPI is reached through an inspecting proxy, the base image may not know its authority.
CA_BUNDLE = Path(os.environ["PY_EXEC_CA_BUNDLE"]) if os.environ.get("PY_EXEC_CA_BUNDLE") else None
PYTHON = "/opt/kernel_server/venv/bin/python"
# Seconds for a program in a container.
RUN_TIMEOUT = 120

# Debian's python3 and no python3-venv: from the fallback by taking it away, from python:slim by taking Debian's own.
PLAIN_DEBIAN = """
RUN if [ -e /usr/bin/python3 ]; then apt-get purge -qq -y python3-venv python3.13-venv; \
    else apt-get update -qq && apt-get install -qq -y --no-install-recommends python3 \
        && rm -rf /var/lib/apt/lists /usr/local/bin/python* /usr/local/bin/pip*; fi
"""
# What Jupyter stacks look like: Python in /opt/conda, found by PATH, a user and an entrypoint of their own.
JUPYTER_LIKE = """
RUN python3 -m venv /opt/conda && useradd -u 4321 jovyan \
    && echo 'answer = 42' >$(echo /opt/conda/lib/python3.*/site-packages)/image_module.py \
    && mkdir /opt/more && echo 'answer = 43' >/opt/more/path_module.py
ENV PATH=/opt/conda/bin:$PATH PYTHONPATH=/opt/more PYTHONDONTWRITEBYTECODE=1
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
HEALTHCHECK CMD false
USER jovyan
ENTRYPOINT ["false"]
"""
WITHOUT_PYTHON = "RUN rm -f /usr/bin/python* /usr/local/bin/python*"


def test_container_folder_is_found_in_a_checkout() -> None:
    """Ours: without it nothing can be built."""
    assert (container_folder() / "Dockerfile").is_file()


def test_context_holds_what_the_dockerfile_copies_and_no_more() -> None:
    """Ours: scripts of the host side, documents and caches would only change the key."""
    names = build_context(container_folder()).keys()
    assert {"Dockerfile", "install.sh", "requirements-kernel.txt", "requirements-data.txt"} <= names
    assert {name for name in names if "/" not in name and not name.startswith("requirements-")} == {
        "Dockerfile",
        "install.sh",
    }
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]


@pytest.mark.parametrize(
    "other",
    [
        ("sha256:2", {"a": b"1"}, False),
        ("sha256:1", {"a": b"2"}, False),
        ("sha256:1", {"b": b"1"}, False),
        ("sha256:1", {"a": b"1"}, True),
        ("sha256:1", {"a": b"1", "b": b""}, False),
    ],
)
def test_key_changes_with_base_content_name_and_data_stack(other: tuple[str, dict[str, bytes], bool]) -> None:
    """Ours: a stale layer would run an old kernel_host."""
    base, context, data_stack = other
    assert layer_key(base, context, data_stack=data_stack) != layer_key("sha256:1", {"a": b"1"}, data_stack=False)


def test_data_stack_is_for_the_default_image_only(tmp_path: Path) -> None:
    """DESIGN.md: any other image brings its own packages."""
    assert ImageRequest(tmp_path).with_data_stack
    assert not ImageRequest(tmp_path, image="mine").with_data_stack
    assert ImageRequest(tmp_path, image="mine", data_stack=True).with_data_stack


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    connected = Engine.connect()
    yield connected
    connected.close()


@pytest.fixture(scope="module")
def default_image(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> str:
    return ensure_kernel_image(engine, ImageRequest(tmp_path_factory.mktemp("lock"), ca_bundle=CA_BUNDLE), print)


def _derive(engine: Engine, name: str, instructions: str, base: str = "") -> str:
    """Builds a small image on a base, or the default one; the cached one when nothing changed."""
    base = base or (DEFAULT_IMAGE if engine.image(DEFAULT_IMAGE) else FALLBACK_IMAGE)
    dockerfile = f"FROM {base}\nUSER root\n{instructions}\n"
    image_id = engine.build(BuildRequest({"Dockerfile": dockerfile.encode()}), print)
    engine.tag(image_id, TEST_REPOSITORY, name)
    return f"{TEST_REPOSITORY}:{name}"


def _run(image: str, *command: str) -> str:
    """Runs a program the way the server does: nothing of the image's entrypoint, root file system read-only."""
    arguments = ["docker", "run", "--rm", "--network=none", "--read-only", "--user=0:0", "--tmpfs=/tmp"]
    arguments += [f"--entrypoint={command[0]}", image, *command[1:]]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=RUN_TIMEOUT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# Starts a kernel as the image's rehearsal does, and prints what it was configured to.
CONFIGURED = """
import os, sys, tempfile
sys.path.insert(0, "/opt/kernel_server")
from kernel_host import kernel, preload
preload.preload([])
def note(app):
    shell = app.shell
    said = f"{shell.ast_node_interactivity} {shell.colors} {shell.user_ns.get('begun')}\\n"
    os.write(out, said.encode())
    os._exit(0)
out = os.dup(1)
folder = tempfile.mkdtemp()
launch = kernel.KernelLaunch("configured", b"key", folder, folder, folder, None, None, {}, {})
if os.fork() == 0:
    kernel.run(launch, lambda: None, started=note)
os.wait()
"""


@pytest.mark.docker
@pytest.mark.usefixtures("default_image")
class TestDefaultImage:
    """The image that `docker build container` makes."""

    def test_data_stack_and_mcp_are_importable(self, default_image: str) -> None:
        """Issue 2: the default image has the data stack and `mcp[cli]`."""
        modules = "numpy, pandas, scipy, sklearn, matplotlib.pyplot, seaborn, plotly, ipykernel, mcp.server, typer"
        assert _run(default_image, PYTHON, "-I", "-c", f"import {modules}; print('fine')") == "fine\n"

    def test_nothing_is_left_to_compile_at_start(self, default_image: str) -> None:
        """Ours: the root file system is read-only, so what is not compiled in the image is compiled at every start."""
        code = (
            "import json, pandas, ipykernel, os\n"
            "print([m.__name__ for m in (json, pandas, ipykernel) if not os.path.exists(m.__cached__)])"
        )
        assert _run(default_image, PYTHON, "-I", "-c", code) == "[]\n"

    def test_ipython_configuration_of_an_image_counts(self, engine: Engine, default_image: str) -> None:
        """IPython: system-wide configuration lies in /etc/ipython. Where there is none, no kernel looks for files."""
        assert _run(default_image, PYTHON, "-s", "-c", CONFIGURED) == "last_expr nocolor None\n"
        config = "c.InteractiveShell.ast_node_interactivity = 'all'"
        instructions = (
            f'RUN mkdir -p /etc/ipython/startup && echo "{config}" > /etc/ipython/ipython_config.py'
            " && echo 'begun = 1' > /etc/ipython/startup/first.py"
        )
        image = _derive(engine, "configured", instructions, default_image)
        assert _run(image, PYTHON, "-s", "-c", CONFIGURED) == "all nocolor 1\n"

    def test_layer_adds_folders_and_neither_setuid_files_nor_caches(self, default_image: str) -> None:
        """Ours: the server mounts over the two folders; the rest would be attack surface and size."""
        script = (
            "ls -d /workspace /run/kernel_server /opt/kernel_server/matplotlib/fontlist-*;"
            "find /opt/kernel_server -perm /6000; find /root/.cache /tmp -type f"
        )
        lines = _run(default_image, "sh", "-c", f"({script}) 2>/dev/null; true").splitlines()
        assert len(lines) == 3, lines

    def test_protocol_label_is_set(self, engine: Engine, default_image: str) -> None:
        """Ours: it tells an image that can be run as it is."""
        info = engine.image(default_image)
        assert info is not None
        assert info.labels[images.PROTOCOL_LABEL] == images.PROTOCOL

    def test_second_call_uses_the_cache_and_an_image_with_the_layer_is_used_as_it_is(
        self, engine: Engine, default_image: str, tmp_path: Path
    ) -> None:
        """DESIGN.md: built once; `DOCKER_IMAGE=code_interpreter` after a `docker build` by hand."""
        engine.tag(default_image, TEST_REPOSITORY, "code_interpreter")
        lines: list[str] = []
        assert ensure_kernel_image(engine, ImageRequest(tmp_path), lines.append) == default_image
        named = ImageRequest(tmp_path, image=f"{TEST_REPOSITORY}:code_interpreter")
        assert ensure_kernel_image(engine, named, lines.append) == default_image
        assert lines == []


@pytest.mark.docker
@pytest.mark.usefixtures("default_image")
class TestAnyImage:
    """`DOCKER_IMAGE` may be any image with Python >= 3.10."""

    def test_plain_debian_with_python3_only(self, engine: Engine, tmp_path: Path) -> None:
        """Issue 2, any image: Debian's python3 has neither pip nor ensurepip."""
        request = ImageRequest(tmp_path, image=_derive(engine, "plain", PLAIN_DEBIAN), ca_bundle=CA_BUNDLE)
        image = ensure_kernel_image(engine, request, print)
        code = "import sys, ipykernel, mcp.server, importlib.util as u; print(sys.base_prefix, u.find_spec('numpy'))"
        assert _run(image, PYTHON, "-I", "-c", code) == "/usr None\n"

    def test_own_packages_user_entrypoint_and_shell_of_the_image(self, engine: Engine, tmp_path: Path) -> None:
        """Issue 2, any image: conda in /opt/conda with PATH set by ENV; a non-root USER and its own ENTRYPOINT."""
        request = ImageRequest(tmp_path, image=_derive(engine, "jupyter", JUPYTER_LIKE), ca_bundle=CA_BUNDLE)
        image = ensure_kernel_image(engine, request, print)
        code = "import ipykernel, image_module, path_module; print(image_module.answer, path_module.answer)"
        assert _run(image, PYTHON, "-I", "-c", code) == "42 43\n"
        # Compiled although the image says PYTHONDONTWRITEBYTECODE.
        _run(image, PYTHON, "-I", "-c", "import os, image_module; assert os.path.exists(image_module.__cached__)")

    def test_image_without_python_is_refused_with_the_reason(self, engine: Engine, tmp_path: Path) -> None:
        """Issue 2, bad input: base image without Python."""
        name = _derive(engine, "no-python", WITHOUT_PYTHON)
        with pytest.raises(ImageUnavailable, match=r"no Python >= 3\.10 on PATH.*DOCKER_IMAGE"):
            ensure_kernel_image(engine, ImageRequest(tmp_path, image=name), print)

    def test_image_that_cannot_be_pulled_is_refused_with_the_engines_reason(
        self, engine: Engine, tmp_path: Path
    ) -> None:
        """Issue 2, bad input: image missing and not buildable. The registry is a port where nothing listens."""
        name = "localhost:9/no/such-image"
        with pytest.raises(ImageUnavailable, match=r"(?s)no/such-image.* cannot be pulled: .*connect.*docker load"):
            ensure_kernel_image(engine, ImageRequest(tmp_path, image=name), print)

    def test_build_without_a_way_to_the_index_says_so(self, engine: Engine, tmp_path: Path) -> None:
        """Ours: exit code 97 of install.sh, by a build network that leads nowhere."""
        name = _derive(engine, "offline", "ENV OFFLINE=1")
        with pytest.raises(ImageUnavailable, match="package index cannot be reached"):
            ensure_kernel_image(engine, ImageRequest(tmp_path, image=name, build_network="none"), print)

    def test_missing_ca_bundle_is_refused_by_name(self, engine: Engine, tmp_path: Path) -> None:
        """Ours: a build without it would fail minutes later, and less clearly."""
        name = _derive(engine, "offline", "ENV OFFLINE=1")
        request = ImageRequest(tmp_path, image=name, ca_bundle=tmp_path / "missing.pem")
        with pytest.raises(ImageUnavailable, match=r"missing\.pem cannot be read"):
            ensure_kernel_image(engine, request, print)

    def test_concurrent_calls_build_once(self, engine: Engine, tmp_path: Path) -> None:
        """DESIGN.md: the container starts once, also under concurrent first calls."""
        request = ImageRequest(tmp_path, image=_derive(engine, "plain", PLAIN_DEBIAN), ca_bundle=CA_BUNDLE)
        image = ensure_kernel_image(engine, request, print)
        # Another name keeps the layer in the engine's build cache, while its own is taken away.
        engine.tag(image, TEST_REPOSITORY, "plain-layer")
        for name in [name for name, found in engine.image_names(LAYER_REPOSITORY).items() if found == image]:
            engine.remove_image(name)
        lines: list[str] = []
        results: list[str] = []
        threads = [
            threading.Thread(target=lambda: results.append(ensure_kernel_image(engine, request, lines.append)))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(results)) == 1
        assert len(results) == len(threads)
        assert len([line for line in lines if line.startswith("Building")]) == 1
