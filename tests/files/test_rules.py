"""Which names a session may give to what it writes on the host."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel_server.errors import FileError
from kernel_server.files import rules as module
from kernel_server.files.rules import Rules, is_hidden, is_module
from kernel_server.files.transfer import write_text


@pytest.mark.parametrize(
    "name",
    [".env", ".ENV", ". git", "..x", "...", " .git", "\u200c.git", "\u200b\u200d.git", "\ufeff.env", "\u3164.env", "\u00a0.env",
     "\uff0eenv", "\u2024env", "\ufe52env", "\U000e0001.env", "\ufe0f.git", "\u034f.git", "\u00ad.git"],
)  # fmt: skip
def test_hidden_names(name: str) -> None:
    """A dot, or what a file system that folds case, or a program that normalizes, takes for one."""
    assert is_hidden(name)
    assert "begins with a dot" in Rules().objection(name)
    assert not Rules(anything=True).objection(name)


@pytest.mark.parametrize(
    "name", ["env", "a.b", "ünï 😀.txt", "-rf", " ", "x .git", "~", "_.env", "é.txt", os.fsdecode(b"\xff.a")]
)
def test_other_names(name: str) -> None:
    """The control."""
    assert not is_hidden(name)
    assert not Rules().objection(name)


@pytest.mark.parametrize("anything", [False, True])
def test_names_of_temporary_folders_are_never_written(anything: bool) -> None:
    """The server would remove them."""
    for name in (".kernel-server-0123456789abcdef", ".kernel-server-", ".Kernel-Server-x", "\u200c.kernel-server-x"):
        assert "the server uses itself" in Rules(anything).objection(name)


def test_modules() -> None:
    """By Python's own list of suffixes."""
    assert all(map(is_module, ["json.py", "JSON.PY", "x.so", "x.pyc", "x.abi3.so"]))
    assert not any(map(is_module, ["py", "x.python", "x.csv", "so"]))


@pytest.fixture
def folding(tmp_path: Path) -> Iterator[Path]:
    """A file system that has short names and folds case: vfat, where `.git` is `GIT~1`, too."""
    if os.getuid() != 0:
        pytest.skip("mounting needs root")
    image, folder = tmp_path / "image", tmp_path / "mounted"
    folder.mkdir()
    image.write_bytes(bytes(4 << 20))
    made = subprocess.run(["mkfs.vfat", str(image)], capture_output=True, check=False) if _has("mkfs.vfat") else None
    if (
        made is None
        or made.returncode
        or subprocess.run(["mount", "-o", "loop", str(image), str(folder)], capture_output=True).returncode
    ):
        pytest.skip("no vfat here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _has(program: str) -> bool:
    import shutil

    return shutil.which(program) is not None


def write(folder: Path, path: str, rules: Rules | None = None) -> str:
    descriptor = os.open(folder, os.O_DIRECTORY)
    try:
        return write_text(descriptor, path, "new", "name", rules or Rules())
    finally:
        os.close(descriptor)


def test_short_names_of_hidden_folders_lead_nowhere(folding: Path) -> None:
    """vfat: `GIT~1/config` is `.git/config`. The control is a folder that is not hidden, in another case."""
    (folding / ".git").mkdir()
    (folding / "Shown").mkdir()
    assert os.path.samefile(folding / ".git", folding / "GIT~1"), "the attack is one"
    with pytest.raises(FileError, match="begins with a dot"):
        write(folding, "GIT~1/config")
    assert os.listdir(folding / ".git") == []
    assert write(folding, "SHOWN/config") == "SHOWN/config"


class TestOwnCode:
    """A server that runs in a clone, with WORKDIR_OUT in it: a session must not write the next server."""

    @pytest.fixture(autouse=True)
    def clone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
        folder = tmp_path / "clone"
        for name in ("kernel_server/sub", "out"):
            (folder / name).mkdir(parents=True)
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.syspath_prepend(str(folder / "kernel_server"))
        module.own_code.cache_clear()
        yield folder
        module.own_code.cache_clear()

    @pytest.mark.parametrize(
        "path",
        [
            "server.py",
            "json.py",
            "sitecustomize.py",
            "x/__init__.py",
            "x.so",
            "kernel_server/x.txt",
            "kernel_server/sub/x",
        ],
    )
    def test_is_not_written_to(self, clone: Path, path: str) -> None:
        for rules in (Rules(), Rules(anything=True)):
            with pytest.raises(FileError, match="the server's own"):
                write(clone, path, rules)

    @pytest.mark.parametrize("path", ["result.csv", "x/result.csv"])
    def test_has_room_for_other_files(self, clone: Path, path: str) -> None:
        assert write(clone, path) == path

    def test_does_not_concern_folders_of_their_own(self, clone: Path) -> None:
        assert write(clone / "out", "json.py") == "json.py"


def test_own_code_is_that_of_this_process() -> None:
    """The package, its Python, and what it imports from."""
    module.own_code.cache_clear()
    import kernel_server

    for path in (Path(kernel_server.__file__).parent, Path(sys.prefix)):
        assert (path.stat().st_dev, path.stat().st_ino) in module.own_code()
