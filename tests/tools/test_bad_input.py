"""Bad input gets a clear error, and nothing is lost: issue 2's list as one table, on both engines.

Each entry is a call that must be refused with a message that says what to do; afterwards the session still has its
variable and its file.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.driving import Handle, Kit, serving

pytestmark = pytest.mark.anyio


def nothing(_: Path) -> None:
    """Most entries need no files."""


@dataclass(frozen=True)
class Bad:
    """A call that is refused.

    Attributes:
        why: a regular expression that the message must hold.
        make: puts files into WORKDIR_IN beforehand.
        code: runs in the session beforehand.
    """

    tool: str
    why: str
    arguments: dict[str, Any] = field(default_factory=dict)
    make: Callable[[Path], object] = nothing
    code: str = ""


def bad_file(folder: Path) -> None:
    (folder / "file").write_bytes(b"1")


def bad_link(folder: Path) -> None:
    (folder / "link").symlink_to("/etc/passwd")


def bad_folder_link(folder: Path) -> None:
    (folder / "link").symlink_to("/etc")


def bad_fifo(folder: Path) -> None:
    os.mkfifo(folder / "fifo")


def bad_socket(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        descriptor = os.open(folder, os.O_DIRECTORY)
        listener.bind(f"/proc/self/fd/{descriptor}/socket")
        os.close(descriptor)


def cp_in(local_path: str, why: str, make: Callable[[Path], object] = nothing, **more: Any) -> Bad:
    return Bad("cp_in", why, {"local_path": local_path, **more}, make)


def cp_out(container_path: str, why: str, code: str = "", **more: Any) -> Bad:
    return Bad("cp_out", why, {"container_path": container_path, **more}, code=code)


def edit(container_path: str, why: str, content: str = "x", code: str = "", **more: Any) -> Bad:
    return Bad("edit_file", why, {"container_path": container_path, "content": content, **more}, code=code)


BAD: dict[str, Bad] = {
    # paths on the host
    "cp_in absolute": cp_in("/etc/passwd", "relative to WORKDIR_IN"),
    "cp_in home": cp_in("~/x", "relative to WORKDIR_IN"),
    "cp_in parent": cp_in("../x", r"holds '\.\.'"),
    "cp_in NUL": cp_in("a\0b", "NUL"),
    "cp_in surrogate": cp_in("a\ud800", "surrogate|utf-8"),
    "cp_in empty": cp_in("", "is empty; give"),
    "cp_in long name": cp_in("x" * 256, "255 bytes"),
    "cp_in missing": cp_in("missing", "no such file or folder in WORKDIR_IN"),
    "cp_in beneath a file": cp_in("file/x", "is a file, not a folder", bad_file),
    "cp_in link": cp_in("link", "leaves WORKDIR_IN; copy the file", bad_link),
    "cp_in through a link": cp_in("link/passwd", "leaves WORKDIR_IN; copy the file", bad_folder_link),
    "cp_in fifo": cp_in("fifo", "a fifo; only files and folders", bad_fifo),
    "cp_in socket": cp_in("socket", "not a regular file|a socket", bad_socket),
    # paths in the container, on the way in
    "cp_in to /etc": cp_in("file", "outside the workspace; use", bad_file, container_path="/etc/x"),
    "cp_in to the parent": cp_in("file", r"holds '\.\.'", bad_file, container_path="../x"),
    "cp_in to NUL": cp_in("file", "NUL", bad_file, container_path="a\0b"),
    "cp_in to a file's inside": cp_in("file", "is a file, not a folder", bad_file, container_path="kept/x"),
    # paths in the container, on the way out
    "cp_out /etc": cp_out("/etc/passwd", "outside the workspace; use"),
    "cp_out parent": cp_out("../x", r"holds '\.\.'"),
    "cp_out empty": cp_out("", "is empty; give"),
    "cp_out missing": cp_out("missing", "no such file or folder in the workspace"),
    "cp_out link": cp_out("link", "symbolic link", "import os; os.symlink('/etc/passwd', 'link')"),
    "cp_out through a link": cp_out("dir/passwd", "symbolic link", "import os; os.symlink('/etc', 'dir')"),
    "cp_out fifo": cp_out("fifo", "a fifo", "import os; os.mkfifo('fifo')"),
    "cp_out to /": cp_out("kept", "relative to WORKDIR_OUT", local_path="/tmp/x"),
    "cp_out to the parent": cp_out("kept", r"holds '\.\.'", local_path="../x"),
    "cp_out to NUL": cp_out("kept", "control characters", local_path="a\0"),
    "cp_out to a long name": cp_out("kept", "255 bytes", local_path="x" * 256),
    # edit_file
    "edit outside": edit("/etc/x", "outside the workspace; use"),
    "edit parent": edit("../x", r"holds '\.\.'"),
    "edit empty": edit("", "is empty; give"),
    "edit folder": edit(".", "is a folder; give"),
    "edit folder with slash": edit("new/", "is a folder; give"),
    "edit an existing folder": edit("d", "is a folder", code="import os; os.mkdir('d')"),
    "edit old absent": edit("kept", "does not occur in it; it must match exactly", old="absent"),
    "edit old twice": edit("kept", r"occurs 2 times \(lines 1, 2\); give more", old="line"),
    "edit old in a missing file": edit("missing", "no such file; leave out `old`", old="x"),
    "edit old in a missing folder": edit("missing/x", "no such file", old="x"),
    "edit link": edit("link", "a symbolic link", code="import os; os.symlink('kept', 'link')"),
    "edit through a link": edit("dir/x", "symbolic link", code="import os; os.symlink('/tmp', 'dir')"),
    "edit fifo": edit("fifo", "a fifo", code="import os; os.mkfifo('fifo')"),
    "edit no UTF-8": edit("b", r"not UTF-8 text \(byte 1\)", old="a", code="open('b', 'wb').write(b'a\\xff')"),
    # run_code and run_file
    "code empty": Bad("run_code", "code is empty; give", {"code": ""}),
    "code blank": Bad("run_code", "code is empty; give", {"code": " \n\t"}),
    "file missing": Bad("run_file", "no such file or folder in the workspace", {"path": "missing.py"}),
    "file is a folder": Bad("run_file", "is a folder; give a script", {"path": "."}),
    "file outside": Bad("run_file", "outside the workspace", {"path": "/etc/passwd"}),
    "file parent": Bad("run_file", r"holds '\.\.'", {"path": "../x.py"}),
    "file link": Bad(
        "run_file", "symbolic link", {"path": "l.py"}, code="import os; os.symlink('/etc/passwd', 'l.py')"
    ),
    # arguments
    "code missing": Bad("run_code", "code is missing", {}),
    "misspelled": Bad("run_code", r"unknown argument 'timout'\. Did you mean 'timeout'\?", {"code": "1", "timout": 1}),
    "misspelled code": Bad("run_code", r"'cod'\. Did you mean 'code'\?.*Nothing was done", {"cod": "1"}),
    "misspelled path": Bad("cp_in", r"'localpath'\. Did you mean 'local_path'\?", {"localpath": "x"}),
    "misspelled old": Bad("edit_file", "'olds'", {"container_path": "kept", "content": "gone", "olds": "x"}),
    "timeout of no number": Bad("run_code", "timeout='soon'", {"code": "1", "timeout": "soon"}),
    "negative timeout": Bad("run_code", "timeout=-1", {"code": "1", "timeout": -1}),
    "args of no list": Bad("run_file", "args", {"path": "x.py", "args": 5}),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
async def test_bad_input_gets_a_clear_error_and_nothing_is_lost(session: Handle, bad: Bad) -> None:
    """Issue 2, "Bad input gets a clear error, and nothing is lost"."""
    await session.run("kept = 'the variable'")
    await session.call("edit_file", container_path="kept", content="line 1\nline 2\n")
    if bad.code:
        assert (await session.run(bad.code)).status == "ok"
    bad.make(session.kit.input)
    reply = await session.call(bad.tool, **bad.arguments)
    assert reply.is_error, reply.text
    assert re.search(bad.why, reply.text), reply.text
    assert "Error executing tool" not in reply.text, "the SDK's words for an error that nobody foresaw"
    assert "Traceback" not in reply.text
    assert await session.value("print(kept)\nprint(open('kept').read())") == "the variable\nline 1\nline 2"
    assert os.listdir(session.kit.output) == [], "nothing half is left"


@pytest.mark.parametrize("argument", ["content", "old"])
async def test_lone_surrogates_in_a_text_file_are_refused(session: Handle, argument: str) -> None:
    """Issue 2, bad input: content with lone surrogates. JSON can carry them as escapes; UTF-8 cannot."""
    reply = await session.call("edit_file", **{"container_path": "x", "content": "c", argument: "a\ud800"})
    assert reply.is_error
    assert "lone surrogate at character 1" in reply.text
    assert await session.value("import os; os.listdir()") == "[]"


async def test_lone_surrogates_in_code_are_refused(session: Handle) -> None:
    """Ours: they cannot be sent to the kernel."""
    reply = await session.run("x = '\ud800'")
    assert reply.is_error
    assert "lone surrogate" in reply.text
    assert await session.value("1") == "1"


# -- what user code does is data, not an error of the tool -------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("def f(:", "SyntaxError"),
        ("1/0", "ZeroDivisionError: division by zero"),
        ("input('name?')", "Nobody can answer input"),
        ("import getpass; getpass.getpass()", "Nobody can answer input"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import sys; sys.exit('done')", "SystemExit: done"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise ValueError('\\ud800')", "surrogates not allowed"),
        ("def f(): f()\nf()", "RecursionError"),
        ("%nosuchmagic", "nosuchmagic"),
        ("!exit 3", ""),
        ("import sys; sys.stdout.buffer.write(b'a\\xffb')", ""),
        ("import os; _ = os.write(1, b'a\\xffb')", ""),
        ("import sys; sys.stdout.close(); sys.stderr.close()", ""),
    ],
)
async def test_code_that_fails_is_a_result_and_the_session_lives(session: Handle, code: str, shown: str) -> None:
    """Issue 2, bad input: syntax error, input(), invalid UTF-8. STYLE: what user code does is data."""
    await session.run("kept = 1")
    reply = await session.run(code)
    assert not reply.is_error, reply.text
    assert reply.status in ("error", "ok")
    assert shown in reply.text
    if shown:
        assert reply.text.isprintable() or "\n" in reply.text
        reply.text.encode()
    assert await session.value("kept") == "1"


async def test_invalid_utf8_of_a_child_is_shown_with_a_mark(session: Handle) -> None:
    """Issue 2, bad input: prints invalid UTF-8."""
    assert "a" in (await session.run("!printf 'a\\377b'")).text


# -- folders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "tool", "arguments"),
    [
        ("WORKDIR_IN", "cp_in", {"local_path": "x"}),
        ("WORKDIR_OUT", "cp_out", {"container_path": "x"}),
        ("WORKDIR_OUT", "export_notebook", {}),
    ],
)
async def test_missing_folder_is_told_and_may_be_made_later(
    anyio_backend: str, tmp_path: Path, setting: str, tool: str, arguments: dict[str, str]
) -> None:
    """Issue 2, bad input: WORKDIR missing, a file. The server need not be started again."""
    folder = tmp_path / "later"
    async with (
        serving(tmp_path, "local", PY_EXEC_PRELOAD="none", **{setting: str(folder)}) as kit,
        kit.session() as session,
    ):
        await session.run("open('x', 'w').write('1')")
        missing = await session.call(tool, **arguments)
        assert missing.is_error
        assert f"{setting}, the folder '{folder}', does not exist; create it" in missing.text
        folder.write_text("a file")
        file = await session.call(tool, **arguments)
        assert file.is_error
        assert "is a file, not a folder" in file.text
        folder.unlink()
        folder.mkdir()
        (folder / "x").write_text("1")
        assert not (await session.call(tool, **arguments)).is_error


async def test_full_disk_of_the_host_keeps_the_old_file(anyio_backend: str, small_disk: Path, tmp_path: Path) -> None:
    """Issue 2, bad input: disk full while copying; nothing is lost."""
    (small_disk / "big").write_text("old")
    async with (
        serving(tmp_path, "local", PY_EXEC_PRELOAD="none", WORKDIR_OUT=str(small_disk)) as kit,
        kit.session() as session,
    ):
        await session.run("open('big', 'w').write('x' * 1_000_000); open('small', 'w').write('new')")
        for name in ("big", "."):
            reply = await session.call("cp_out", container_path=name, local_path="big")
            assert reply.is_error
            assert re.search("disk is full|may be copied out", reply.text), reply.text
        assert (small_disk / "big").read_text() == "old"
        assert os.listdir(small_disk) == ["big"]
        assert not (await session.call("cp_out", container_path="small")).is_error


async def test_unknown_tool_is_named_with_the_closest_one(local_kit: Kit) -> None:
    """Ours: models misremember names."""
    reply = await local_kit.call("run_python", code="1")
    assert reply.is_error
    assert "There is no tool 'run_python'" in reply.text
    assert "run_code" in reply.text


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("x" * 100_000, {}),
        ("init", {"x" * 100_000: 1}),
        ("init", {f"x{number}": 1 for number in range(10_000)}),
        ("read_output", {"session_id": "x" * 100_000}),
        ("run_code", {"timeout": ["x" * 100_000], "code": "1"}),
    ],
    ids=["name", "argument", "arguments", "id", "value"],
)
async def test_error_about_something_very_long_is_short(local_kit: Kit, tool: str, arguments: dict[str, Any]) -> None:
    """Ours: it goes into a model's context."""
    reply = await local_kit.call(tool, **arguments)
    assert reply.is_error
    assert len(reply.text) < 5_000
