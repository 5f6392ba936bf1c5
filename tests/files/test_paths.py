"""Which paths are accepted: a table. Nothing is opened here; links are the business of test_transfer and the tools."""

from __future__ import annotations

import pytest

from kernel_server.errors import FileError
from kernel_server.files.paths import SHARED, ContainerPath, check_parts, container_path, local_relative

WORKSPACE = "/workspace/sessions/0123"
NAME_255 = "ü" * 127 + "x"
NAME_256 = "ü" * 128

ACCEPTED_LOCAL = [
    ("a.csv", "a.csv"),
    ("a//b/./c", "a/b/c"),
    ("a/", "a"),
    (".", "."),
    ("./", "."),
    ("with space/ünï 😀.txt", "with space/ünï 😀.txt"),
    ("...", "..."),
    ("..a", "..a"),
    ("-rf", "-rf"),
    ("line\nbreak", "line\nbreak"),
    ("a~", "a~"),
    ("back\\slash", "back\\slash"),
    (NAME_255, NAME_255),
]

REFUSED_EVERYWHERE = [
    ("", "is empty"),
    ("  ", "is empty"),
    ("..", "holds '..'"),
    ("a/../b", "holds '..'"),
    ("a/..", "holds '..'"),
    ("a\0b", "NUL"),
    ("a\ud800", "surrogate"),
    (NAME_256, "255 bytes"),
]


@pytest.mark.parametrize(("path", "relative"), ACCEPTED_LOCAL)
def test_local_path_is_accepted_and_normalized(path: str, relative: str) -> None:
    """DESIGN, files: names are resolved beneath WORKDIR; issue 2: spaces, Unicode and 255 bytes work."""
    assert local_relative(path, "local_path", "WORKDIR_IN") == relative


@pytest.mark.parametrize(
    ("path", "why"), [*REFUSED_EVERYWHERE, ("/etc/passwd", "relative to WORKDIR_IN"), ("~/x", "relative to WORKDIR_IN")]
)
def test_local_path_is_refused_by_name(path: str, why: str) -> None:
    """Issue 2, bad input. The message names the argument, and can be sent as UTF-8."""
    with pytest.raises(FileError, match="local_path") as raised:
        local_relative(path, "local_path", "WORKDIR_IN")
    assert why in str(raised.value)
    str(raised.value).encode()


@pytest.mark.parametrize("character", "\n\r\x1b\b\x01\x7f\x85\x9b")
def test_path_that_is_written_to_holds_no_control_characters(character: str) -> None:
    """Ours: the user's shell and terminal would trip over it. What is there already can be read."""
    path = f"a/b{character}c"
    assert local_relative(path, "local_path", "WORKDIR_IN") == path
    with pytest.raises(FileError, match="holds control characters; give a local_path without") as raised:
        local_relative(path, "local_path", "WORKDIR_OUT")
    assert character not in str(raised.value)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a/b.txt", ContainerPath(False, "a/b.txt")),
        (".", ContainerPath(False, "")),
        ("a/", ContainerPath(False, "a", True)),
        (WORKSPACE, ContainerPath(False, "")),
        (f"{WORKSPACE}/a", ContainerPath(False, "a")),
        (f"/{WORKSPACE}//a/", ContainerPath(False, "a", True)),
        (SHARED, ContainerPath(True, "")),
        (f"{SHARED}/data.csv", ContainerPath(True, "data.csv")),
    ],
)
def test_container_path_is_accepted(path: str, expected: ContainerPath) -> None:
    """DESIGN, tools: relative is the own workspace; absolute only there or in /workspace/shared."""
    assert container_path(path, "container_path", WORKSPACE) == expected


@pytest.mark.parametrize(
    ("path", "why"),
    [
        *REFUSED_EVERYWHERE,
        ("/", "outside the workspace"),
        ("/etc/passwd", "outside the workspace"),
        ("/workspace", "outside the workspace"),
        ("/workspace/sessions", "outside the workspace"),
        ("/workspace/sessions/9999/secret", "outside the workspace"),
        (f"{WORKSPACE}4/secret", "outside the workspace"),
        (f"{SHARED}-not", "outside the workspace"),
        (f"{WORKSPACE}/../9999", "holds '..'"),
        (f"{SHARED}/../.staging", "holds '..'"),
    ],
)
def test_container_path_is_refused_by_name(path: str, why: str) -> None:
    """Issue 2, bad input: a container path outside the workspace. A prefix of a name is no folder."""
    with pytest.raises(FileError, match="container_path") as raised:
        container_path(path, "container_path", WORKSPACE)
    assert why in str(raised.value)


def test_without_a_session_only_the_shared_folder_is_left() -> None:
    """DESIGN, tools: the one place that needs no session."""
    assert container_path(f"{SHARED}/x", "container_path", "") == ContainerPath(True, "x")
    with pytest.raises(FileError, match="needs a session_id"):
        container_path("x", "container_path", "")
    with pytest.raises(FileError, match="outside the workspace"):
        container_path("/etc/passwd", "container_path", "")


def test_empty_parts_and_dots_vanish() -> None:
    """POSIX: repeated slashes and `.` mean nothing."""
    assert check_parts("//a/./b//", "path") == ["a", "b"]
