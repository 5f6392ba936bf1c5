"""Path arguments: what is accepted stays beneath its folder, what is not is told."""

from __future__ import annotations

import os.path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kernel_server.errors import FileError
from kernel_server.files.contents import mime_type
from kernel_server.files.paths import MAX_NAME_BYTES, SHARED, container_path, local_relative

WORKSPACE = "/workspace/sessions/0123"
SPOTS = [
    *(
        "..",
        ".",
        "",
        "~",
        "a",
        "\0",
        "\ud800",
        "x" * 255,
        "x" * 256,
        "é" * 128,
        " ",
        "\n",
        "\x1b[2J",
        "-rf",
        "*",
        "a\\..\\b",
    ),
    *(
        "/proc/self/fd/3",
        "/etc/passwd",
        WORKSPACE,
        f"{WORKSPACE}4",
        SHARED,
        f"{SHARED}x",
        "/workspace",
        "//",
        "C:\\",
        "%2e%2e",
    ),
]
paths = st.one_of(
    st.lists(st.sampled_from(SPOTS) | st.text(st.characters(), max_size=8), max_size=8).map("/".join),
    st.text(st.characters(), max_size=40),
    st.integers(1, 4096).map("/a".__mul__),
    st.integers(1, 4096).map("a".__mul__),
)


def check_beneath(relative: str) -> None:
    """Nothing that leads out, and nothing that a file system cannot name."""
    assert not relative.startswith("/")
    assert os.path.normpath(relative or ".") == (relative or ".")
    assert not relative.startswith("..")
    assert "\0" not in relative
    assert all(len(part.encode()) <= MAX_NAME_BYTES for part in relative.split("/"))


@given(paths)
@example("a" * 4096)
@example("../" * 1365)
@example("/proc/self/fd/3")
def test_local_path_is_beneath_its_folder_or_refused(path: str) -> None:
    """Issue 6, paths: WORKDIR_IN and WORKDIR_OUT are all there is."""
    try:
        relative = local_relative(path, "local_path", "WORKDIR_IN")
    except FileError as error:
        assert str(error)
        return
    check_beneath(relative)
    assert mime_type(relative, "")


@given(paths, st.sampled_from([WORKSPACE, ""]))
@example(f"{WORKSPACE}/../0124/x", WORKSPACE)
@example(f"{SHARED}/..", WORKSPACE)
@example("/workspace/sessions/01234", WORKSPACE)
def test_container_path_is_in_the_workspace_or_shared_or_refused(path: str, workspace: str) -> None:
    """The same of the container; without a session only the shared folder is left."""
    try:
        found = container_path(path, "container_path", workspace)
    except FileError as error:
        assert str(error)
        return
    check_beneath(found.relative)
    assert found.shared or workspace
    if path.startswith("/"):
        root = SHARED if found.shared else workspace
        assert os.path.normpath("/" + path.lstrip("/")) == os.path.normpath(f"{root}/{found.relative}")


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a\0b", "x" * 256, "a/../../x"])
def test_check_of_a_path_can_fail(path: str) -> None:
    """The control: paths as they came."""
    with pytest.raises(AssertionError):
        check_beneath(path)
