"""install_packages through a real MCP client: a session without network gets packages, and no code of them runs outside.

Most tests have a shelf of hand-made wheels in place of an index; those marked so use the one that pip is configured for.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from kernel_server.packages import download
from kernel_server.packages.environment import read_environment
from kernel_server.packages.programs import Bounds
from kernel_server.sessions.installs import AT_A_TIME
from tests.driving import Handle, Kit, Reply, eventually, serving, stopwatch

pytestmark = pytest.mark.anyio

UNREACHABLE_SECONDS = 20.0
QUICK_SECONDS = 20.0  # a third of the time after which the server gives up

# A build backend that tells that it ran, whatever it is asked for.
BACKEND = """
import pathlib
pathlib.Path({mark!r}).touch()
def build_wheel(*args, **kwargs): raise SystemExit("ran")
build_sdist = prepare_metadata_for_build_wheel = get_requires_for_build_wheel = build_wheel
"""


@dataclass(frozen=True)
class Shelf:
    """A folder of packages that pip finds in place of an index."""

    folder: Path

    def wheel(self, name: str, version: str, *requires: str, size: int = 0, tag: str = "py3-none-any") -> None:
        """Adds a package with one module of its name, which has its version."""
        info = f"{name}-{version}.dist-info"
        needs = "".join(f"Requires-Dist: {text}\n" for text in requires)
        files = {
            f"{name}/__init__.py": f"VERSION = {version!r}\n",
            f"{name}/data.bin": "x" * size,
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}\n",
            f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n",
        }
        files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
        with zipfile.ZipFile(self.folder / f"{name}-{version}-{tag}.whl", "w") as archive:
            for path, text in files.items():
                archive.writestr(path, text)

    def source(self, name: str, version: str, mark: Path) -> Path:
        """Adds a source distribution; `mark` appears when code of it runs."""
        files = {
            "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
            "backend.py": BACKEND.format(mark=str(mark)),
            "setup.py": BACKEND.format(mark=str(mark)),
            "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        }
        path = self.folder / f"{name}-{version}.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            for file, text in files.items():
                member = tarfile.TarInfo(f"{name}-{version}/{file}")
                member.size = len(text)
                archive.addfile(member, io.BytesIO(text.encode()))
        return path


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    folder = tmp_path / "shelf"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return Shelf(folder)


@pytest.fixture
async def local_session(local_kit: Kit) -> AsyncIterator[Handle]:
    async with local_kit.session() as handle:
        yield handle


async def install(session: Handle, *packages: str) -> Reply:
    return await session.call("install_packages", packages=list(packages))


async def installed(session: Handle, *packages: str) -> list[str]:
    """The lines of a call that must succeed."""
    reply = await install(session, *packages)
    assert not reply.is_error, reply.text
    return reply.text.splitlines()


# -- with the index that pip is configured for -------------------------------------------------------------------------


async def test_package_and_what_it_needs_are_importable_at_once(session: Handle) -> None:
    """Issue 6: in the kernel that has just failed to import it. Nothing shows in the workspace."""
    assert "[install_packages fetches packages that are missing.]" in (await session.run("import slugify")).text
    lines = await installed(session, "python-slugify", "toolz")
    names = [line.partition("==")[0] for line in lines]
    assert names == ["installed python-slugify", "installed text-unidecode", "installed toolz"]
    reply = await session.run("import slugify, toolz\nprint(slugify.slugify('a b'))")
    assert reply.output == "a-b"
    assert "files" not in reply.result
    assert (await session.call("list_files")).text == "(no files)"
    assert lines[0].removeprefix("installed ") in (await session.call("list_packages")).text.splitlines()


@pytest.mark.docker
async def test_compiled_wheel_is_for_the_python_of_the_container(docker_session: Handle) -> None:
    """Ours: whatever Python the server has; the container has no network before and after."""
    (line,) = await installed(docker_session, "ujson")
    assert line.startswith("installed ujson==")
    assert await docker_session.value("import ujson; print(ujson.dumps([1]))") == "[1]"
    assert (await docker_session.run("import socket; socket.getaddrinfo('localhost.example', 80)")).status == "error"


async def test_what_has_no_fitting_wheel_is_told_with_what_helps(local_session: Handle) -> None:
    """Issue 6: the text is the resolver's, short, and says for which Python it looked."""
    for package, reason in {
        "docopt": "docopt have no usable wheels",
        "six==99": "no version of six==99",
        "no-such-package-of-kernel-server": "was not found",
        "pywin32": "no wheels with a matching",
    }.items():
        reply = await install(local_session, package)
        assert reply.is_error
        assert reason in reply.text
        assert f"wheels for Python {sys.version.split()[0]} on Linux" in reply.text
        assert "choose another version" in reply.text
        assert len(reply.text) < 2_500


# -- with a shelf ------------------------------------------------------------------------------------------------------


async def test_what_is_there_and_fits_is_kept(local_session: Handle, shelf: Shelf) -> None:
    """Issue 6: nothing is replaced without need; what is replaced is told, and when the kernel does not see it."""
    for version in ("1.0", "2.0"):
        shelf.wheel("base", version)
    shelf.wheel("plain", "1.0", "base")
    shelf.wheel("picky", "1.0", "base>=2")
    assert await installed(local_session, "base<2") == ["installed base==1.0"]
    assert await local_session.value("import base; print(base.VERSION)") == "1.0"
    assert await installed(local_session, "plain", "base") == ["installed plain==1.0", "already there: base==1.0"]
    *lines, note = await installed(local_session, "picky")
    assert sorted(lines) == ["installed base==2.0 (instead of 1.0)", "installed picky==1.0"]
    assert note.startswith("[base had been imported before: this kernel keeps the old version.")
    assert await local_session.value("print(base.VERSION)") == "1.0"
    assert "generation 2" in (await local_session.run("exit()")).text
    assert await local_session.value("import base, picky; print(base.VERSION)") == "2.0"


@pytest.mark.docker
async def test_packages_of_the_image_can_be_replaced(docker_session: Handle, shelf: Shelf) -> None:
    """Ours: what a session installs comes first, in its kernel and in programs; what every kernel has imported stays."""
    shelf.wheel("tzdata", "1999.1")  # in the image because of pandas, and imported by no kernel
    shelf.wheel("numpy", "0.1")
    before = dict(line.split("==") for line in (await docker_session.call("list_packages")).text.splitlines())
    lines = await installed(docker_session, "tzdata<2000", "numpy<1")
    assert lines[:2] == [
        f"installed numpy==0.1 (instead of {before['numpy']})",
        f"installed tzdata==1999.1 (instead of {before['tzdata']})",
    ]
    assert "numpy: every kernel has it imported from the start" in lines[2]
    assert await docker_session.value("import tzdata; print(tzdata.VERSION)") == "1999.1"
    program = "import tzdata, numpy; print(tzdata.VERSION, numpy.VERSION)"
    assert await docker_session.value(f"!python -c '{program}'") == "1999.1 0.1"
    assert "tzdata==1999.1" in (await docker_session.call("list_packages")).text.splitlines()


@pytest.mark.docker
async def test_what_is_needed_depends_on_the_python_of_the_session(docker_session: Handle, shelf: Shelf) -> None:
    """PEP 508: markers are the session's, whatever Python the server has."""
    python = await docker_session.value("import platform; print(platform.python_version())")
    shelf.wheel("base", "1.0")
    shelf.wheel("other", "1.0")
    shelf.wheel("app", "1.0", f"base; python_full_version == '{python}'", f"other; python_full_version != '{python}'")
    assert await installed(docker_session, "app") == ["installed app==1.0", "installed base==1.0"]


async def test_busy_kernel_gets_packages_too(session: Handle, shelf: Shelf) -> None:
    """Issue 6: it needs no turn, and the running cell itself finds what has come."""
    shelf.wheel("base", "1.0")
    code = """
import importlib.util, time
assert not importlib.util.find_spec('base')
open('begun', 'w').close()
while not importlib.util.find_spec('base'): time.sleep(0.01)
import base; print(base.VERSION)
"""
    replies = []
    async with anyio.create_task_group() as tasks:

        async def run() -> None:
            replies.append(await session.run(code))

        tasks.start_soon(run)
        await session.wait_for_file("begun")
        assert await installed(session, "base") == ["installed base==1.0"]
    assert replies[0].output == "1.0", replies[0].text


async def test_packages_outlive_the_kernel_and_go_with_the_session(kit: Kit, shelf: Shelf) -> None:
    """Issue 6: they are files of the session, which no other session has; they are its user's."""
    shelf.wheel("base", "1.0")
    async with kit.session() as session, kit.session() as other:
        await installed(session, "base")
        assert (await session.run("import os; os._exit(1)")).status == "died"
        assert await session.value("import base; print(base.VERSION)") == "1.0"
        assert await session.value("import os; print(os.stat(base.__file__).st_uid == os.getuid())") == "True"
        assert await installed(session, "base") == ["already there: base==1.0"]
        assert "base==1.0" not in (await other.call("list_packages")).text.splitlines()
        assert (await other.run("import base")).status == "error"


async def test_notebook_has_what_was_installed(local_session: Handle, shelf: Shelf) -> None:
    """Ours: a person who opens it learns what it takes to run it again."""
    shelf.wheel("base", "1.0")
    await installed(local_session, "base")
    await local_session.run("import base")
    await local_session.call("export_notebook", local_path="n.ipynb")
    text = (local_session.kit.output / "n.ipynb").read_text(encoding="utf-8")
    assert text.index('"%pip install base==1.0"') < text.index('"import base"')


async def test_no_code_of_a_package_runs_outside(local_session: Handle, shelf: Shelf, tmp_path: Path) -> None:
    """Issue 6. pip itself runs the source distribution (the control); here it is not even opened, nor is what a wheel
    names by URL."""
    mark = tmp_path / "ran"
    path = shelf.source("evil", "1.0", mark)
    shelf.wheel("lure", "1.0", f"evil @ {path.as_uri()}")
    shelf.wheel("needs", "1.0", "evil")
    for package in ("evil", "lure", "needs"):
        reply = await install(local_session, package)
        assert reply.is_error, reply.text
        assert "evil" in reply.text
    assert not mark.exists()
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(tmp_path / "down"), "evil"]
    await anyio.to_thread.run_sync(lambda: subprocess.run(command, check=False, capture_output=True))
    assert mark.exists()


async def test_session_that_is_closed_meanwhile_is_told_as_such(tmp_path: Path, shelf: Shelf) -> None:
    """Ours: and what was fetched for it is gone."""
    shelf.wheel("base", "1.0")
    async with serving(tmp_path, "local", PY_EXEC_WAIT="0.001") as kit:
        session = await kit.init()
        assert "Not done" in (await install(session, "base")).text
        await session.call("close_session")
        assert "was closed by close_session" in (await install(session, "base")).text
        await eventually(lambda: not list((kit.state / "packages").iterdir()))


async def test_what_a_session_makes_up_is_passed_over(session: Handle, shelf: Shelf) -> None:
    """Ours: a file of its own keeps it neither from installing nor from seeing what there is."""
    shelf.wheel("base", "1.0")
    await session.run("""
import os, site
for name, text in {"x": b"\\xff", "y": b"", "z": b"Name: z\\nVersion: none\\nRequires-Dist: " + b"a" * 2_000_000}.items():
    os.makedirs(f"{site.USER_SITE}/{name}-1.dist-info")
    open(f"{site.USER_SITE}/{name}-1.dist-info/METADATA", "wb").write(text)
""")
    assert await installed(session, "base") == ["installed base==1.0"]
    assert "base==1.0" in (await session.call("list_packages")).text.splitlines()


async def test_what_never_ends_in_place_of_metadata_is_passed_over(session: Handle, shelf: Shelf) -> None:
    """Ours: a fifo held the call for a minute, and a device would fill the helper's memory."""
    shelf.wheel("base", "1.0")
    await session.run("""
import os, site
for name in ("fifo", "device", "large", "folder", "loop"):
    os.makedirs(f"{site.USER_SITE}/{name}-1.dist-info")
    with open(f"{site.USER_SITE}/{name}-1.dist-info/RECORD", "w") as file: file.truncate(1 << 30)
os.chdir(site.USER_SITE)
os.mkfifo("fifo-1.dist-info/METADATA"), os.mkfifo("one-1.egg-info")
os.symlink("/dev/zero", "device-1.dist-info/METADATA"), os.symlink("METADATA", "loop-1.dist-info/METADATA")
with open("large-1.dist-info/METADATA", "w") as file: _ = file.write("Name: large\\nVersion: 1\\n"), file.truncate(1 << 30)
os.mkdir("folder-1.dist-info/METADATA")
""")
    with anyio.fail_after(QUICK_SECONDS):
        assert await installed(session, "base") == ["installed base==1.0"]
        listed = (await session.call("list_packages")).text.splitlines()
    assert "base==1.0" in listed
    assert "large==1" in listed


REFUSED = {
    "": "is not a requirement",
    "-r requirements.txt": "is an option",
    "--index-url=x": "is an option",
    "./folder": "is a path or a URL",
    "/etc/passwd": "is a path or a URL",
    "pkg.whl": "is a path or a URL",
    "pkg-1.0.tar.gz": "is a path or a URL",
    "https://example.org/pkg.zip": "is a path or a URL",
    "git+https://example.org/x": "is a path or a URL",
    "pkg @ https://example.org/pkg.whl": "URL",
    "pkg @ file:///pkg": "names a URL",
    "six==": "is not a requirement",
    "six attrs": "is not a requirement",
    "six\nattrs": "is not a requirement",
    "six; rm -rf /": "",
    "$(touch x)": "",
    "x" * 400: "is not a requirement",
    "\ud800": "is not a requirement",
}


async def test_what_is_no_package_is_refused_with_what_to_give(local_kit: Kit, shelf: Shelf) -> None:
    """Issue 6: no URLs, no paths, no options; the text says what to give instead."""
    async with local_kit.session() as session:
        for package, reason in REFUSED.items():
            if package.isascii():
                reply = await install(session, package)
                assert reply.is_error, package
                assert reason in reply.text, package
                assert "Give a name with an optional version" in reply.text
        assert "packages is empty" in (await install(session)).text
        assert "at most 100" in (await install(session, *["six"] * 101)).text
    no_session = await local_kit.call("install_packages", packages=["six"])
    assert no_session.is_error
    assert "needs a session_id" in no_session.text
    assert "Call init" in no_session.text


async def test_only_listed_packages_and_what_they_need(tmp_path: Path, shelf: Shelf) -> None:
    """PY_EXEC_PACKAGES: the list is in the description; a session that lies about its packages gets no others."""
    shelf.wheel("base", "1.0")
    shelf.wheel("app", "1.0", "base")
    shelf.wheel("forbidden", "1.0")
    lie = """
import os, site
info = os.path.join(site.USER_SITE, 'other_one-1.0.dist-info')
os.makedirs(info)
open(info + '/METADATA', 'w').write('Metadata-Version: 2.1\\nName: other-one\\nVersion: 1.0\\nRequires-Dist: forbidden\\n')
"""
    async with serving(tmp_path, "local", PY_EXEC_PACKAGES="App, Other_One") as kit, kit.session() as session:
        tools = (await kit.client.list_tools()).tools
        (tool,) = [tool for tool in tools if tool.name == "install_packages"]
        assert "Only these can be installed, with what they need: app, other-one." in (tool.description or "")
        refused = await install(session, "app", "forbidden", "base")
        assert refused.is_error
        assert refused.text == (
            "base, forbidden may not be installed here (PY_EXEC_PACKAGES). Allowed, with what they need: app, other-one. "
            "Nothing was installed."
        )
        await session.run(lie)
        assert await installed(session, "APP", "other.one") == [
            "installed app==1.0",
            "installed base==1.0",
            "already there: other-one==1.0",
        ]


async def test_tool_that_is_turned_off_is_not_there(tmp_path: Path) -> None:
    """PY_EXEC_PACKAGES=none: a model does not see what would only refuse, and no hint names it."""
    async with serving(tmp_path, "local", PY_EXEC_PACKAGES="none") as kit:
        assert "install_packages" not in [tool.name for tool in (await kit.client.list_tools()).tools]
        assert "install_packages" not in (await kit.call("run_code", code="import no_such_module")).text


@pytest.mark.docker
async def test_pip_in_a_cell_is_told_of_the_tool(docker_session: Handle) -> None:
    """Ours: pip's own words lead nowhere without a network."""
    for code in (
        "!pip install no-such-package",
        "%pip install no-such-package",
        "!uv pip install -t x no-such-package",
    ):
        text = (await docker_session.run(code)).text
        assert "Call the tool install_packages" in text
        assert "retries" not in text, "uv tries three times more, which takes 8 s, unless it is told not to"
    assert "install_packages" not in (await docker_session.run("!pip --version")).text


async def test_what_takes_long_is_waited_for_by_the_same_call(tmp_path: Path, shelf: Shelf) -> None:
    """Ours: clients give up after 60 s. Meanwhile, other packages have to wait."""
    shelf.wheel("base", "1.0")
    async with serving(tmp_path, "local", PY_EXEC_WAIT="0.001") as kit, kit.session() as session:
        first = await install(session, "base")
        assert "Call install_packages with exactly the same packages" in first.text
        other = await install(session, "base", "six")
        assert other.is_error
        assert "base is being installed in this session" in other.text
        replies = []

        async def again() -> bool:
            replies.append(await install(session, "base"))
            return "Not done" not in replies[-1].text

        await eventually(again)
        assert replies[-1].text == "installed base==1.0"


# uv reads the RECORD of what it replaces; nobody ever writes to this one.
STALLS = """
import os, site
info = f"{site.USER_SITE}/base-0.5.dist-info"
os.makedirs(info)
open(f"{info}/METADATA", "w").write("Metadata-Version: 2.1\\nName: base\\nVersion: 0.5\\n")
os.mkfifo(f"{info}/RECORD")
"""


async def test_sessions_that_stall_what_unpacks_keep_no_other_from_installing(tmp_path: Path, shelf: Shelf) -> None:
    """Ours: two of them held both places for as long as uv may take in a session, five minutes at a time."""
    shelf.wheel("base", "1.0")
    async with serving(tmp_path, "local", PY_EXEC_WAIT="0.2", PY_EXEC_PRELOAD="none") as kit:
        stalling, other = [await kit.init() for _ in range(AT_A_TIME + 1)], await kit.init()

        async def unpacks(session: Handle) -> bool:
            return "unpacking in the session" in (await install(session, "base>=1")).text

        async def is_installed() -> bool:
            return (await install(other, "base")).text == "installed base==1.0"

        for session in stalling:
            await session.run(STALLS)
            await eventually(partial(unpacks, session))
        await eventually(is_installed, QUICK_SECONDS)
        assert all([await unpacks(session) for session in stalling]), "the control: they still hold theirs up"
        again = await install(stalling[0], "six")
        assert "base>=1 is being installed in this session" in again.text, "one place for each session"
        wheels = [path.name for path in (kit.state / "packages").rglob("*.whl")]
        assert wheels == [], "what is in the session takes no room here"
        for session in stalling:
            await session.call("close_session")


async def test_more_than_fits_is_not_fetched(local_kit: Kit, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 6: bounded in size; nothing stays on the server's disk."""
    monkeypatch.setattr(download, "BOUNDS", Bounds(60.0, 300_000))
    shelf.wheel("base", "1.0", size=1_000_000)
    async with local_kit.session() as session:
        reply = await install(session, "base")
    assert reply.is_error
    assert reply.text.startswith("Nothing was installed")
    assert not list((local_kit.state / "packages").iterdir())


async def test_index_that_cannot_be_reached_is_told_soon(local_kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 6: within bounded time, and as what it is."""
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    async with local_kit.session() as session:
        with stopwatch() as seconds:
            reply = await install(session, "toolz>0.1")
            assert seconds() < UNREACHABLE_SECONDS
    assert reply.is_error
    assert "the package index could not be used from the server's machine" in reply.text


def test_what_a_session_says_of_itself_is_no_path_and_no_url() -> None:
    """Ours: its metadata is written down for uv, which must neither write nor fetch where a session wants."""
    told: dict[str, Any] = {
        "markers": {"python_full_version": "3.13.5"},
        "abi": "cp313",
        "platforms": ["linux_x86_64"],
        "distributions": [
            {"name": "../../x", "version": "1", "requires": [], "own": True},
            {"name": "y", "version": "../1", "requires": [], "own": True},
            {"name": "Z_z", "version": "1.0", "requires": ["a @ https://example.org/a.whl", "b>=1", "=="], "own": True},
        ],
    }
    (found,) = read_environment(told).distributions.values()
    assert (found.name, found.version, found.requires) == ("z-z", "1.0", ("b>=1",))
