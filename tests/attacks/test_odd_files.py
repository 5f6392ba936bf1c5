"""Single files that a copy could stumble over: sparse and growing ones, odd names, deep folders.

Source: issue 6, "Files under fire". Names with spaces and Unicode, fifos, sockets and links in peace are in tests/tools/test_files.py.
"""

from __future__ import annotations

import ast
import os
from pathlib import Path

import anyio
import pytest

from kernel_server.files.paths import MAX_PATH_BYTES
from kernel_server.text import harmless
from tests.driving import Handle, stopwatch

pytestmark = [pytest.mark.anyio, pytest.mark.docker]

QUICK_SECONDS = 5.0
# A line end, a screen that is cleared, the same by a control character of 8 bits, text that runs backwards, no UTF-8.
NAMES = (b"a\nb", b"a\x1b[2Jb", "a\x9b2Jb".encode(), "a\u202eb".encode(), b"a\rb", b"a\bb", b"\xff\xfe", b"x" * 255)
PRINTABLE = ("a\u202eb".encode(), b"\xff\xfe", b"x" * 255)
DEEP = """
import os
here = os.getcwd()
for _ in range({}): os.mkdir('d'); os.chdir('d')
_ = open('x', 'w').write('own'); os.chdir(here)
"""


async def test_sparse_files_are_refused_at_once_beyond_what_a_workspace_may_hold(docker_session: Handle) -> None:
    """Ours: 64 GB that take no disk in the workspace would fill those of the engine and the host."""
    single = await docker_session.run("_ = open('big', 'wb').truncate(64 << 30)")
    assert "PY_EXEC_WORKSPACE_SIZE" in single.text, "one file of that size cannot be made at all"
    await docker_session.value("os = __import__('os'); [open(f'big{n}', 'wb').truncate(7 << 30) for n in range(9)]")
    with stopwatch() as seconds:
        refused = await docker_session.call("cp_out", container_path=".", local_path="all")
        assert seconds() < QUICK_SECONDS
    assert refused.is_error
    assert "more than 8589934592 bytes in all, which is what may be copied out at once" in refused.text
    assert os.listdir(docker_session.kit.output) == []


async def test_sparse_file_comes_out_byte_for_byte(docker_session: Handle) -> None:
    """Ours: holes are skipped on the way to staging, wherever they are."""
    code = (
        "import os\nwith open('x', 'wb') as f:\n"
        "    for at in (0, 5_000_000, 9_999_999): f.seek(at); _ = f.write(b'own' * 1000)\n"
        "    f.truncate(20_000_000)\n"
    )
    await docker_session.value(code + "os.stat('x').st_blocks * 512 < 1_000_000")
    reply = await docker_session.call("cp_out", container_path="x")
    assert not reply.is_error, reply.text
    expected = bytearray(20_000_000)
    for at in (0, 5_000_000, 9_999_999):
        expected[at : at + 3000] = b"own" * 1000
    assert (docker_session.kit.output / "x").read_bytes() == expected


async def test_file_that_grows_while_it_is_copied_comes_as_it_was(docker_session: Handle) -> None:
    """Ours: no copy goes on for as long as somebody writes."""
    writer = "f = open('x', 'ab', 0)\nwhile True: f.write(b'own ' * 10)"
    await docker_session.run(f"import subprocess, sys\nwriter = subprocess.Popen([sys.executable, '-c', {writer!r}])")
    await docker_session.wait_for_file("x")
    with anyio.fail_after(60):
        reply = await docker_session.call("cp_out", container_path="x")
    await docker_session.run("writer.kill()")
    assert not reply.is_error, reply.text
    data = (docker_session.kit.output / "x").read_bytes()
    assert data == (b"own " * (len(data) // 4 + 1))[: len(data)]


async def test_names_that_break_terminals_stay_and_are_shown_without_harm(docker_session: Handle) -> None:
    """Ours: no message holds what a terminal would obey, nor does the user's folder. All else comes out under its name."""
    code = f"import os\nnames = {NAMES!r}\nos.mkdir('d'); os.mkdir('links')\n"
    code += "for name in names: open(b'd/' + name, 'w').close(); os.symlink('x', b'links/' + name)"
    texts = [(await docker_session.run(code)).text]
    out = await docker_session.call("cp_out", container_path="d")
    assert not out.is_error, out.text
    assert sorted(map(os.fsencode, os.listdir(docker_session.kit.output / "d"))) == sorted(PRINTABLE)
    assert r"d/a\x1b[2Jb (control characters in its name)" in out.text
    alone = await docker_session.call("cp_out", container_path="d/a\nb")
    assert "'a\\nb' holds control characters; give a local_path" in alone.text
    assert not (await docker_session.call("cp_out", container_path="d/a\nb", local_path="a b")).is_error
    left_out = await docker_session.call("cp_out", container_path="links")
    assert "Copied 0 files, 0 bytes, to 'links'" in left_out.text
    texts += [out.text, alone.text, left_out.text, (await docker_session.call("list_files")).text]
    for name in (name.decode() for name in NAMES if name != b"\xff\xfe"):
        refused = await docker_session.call("cp_out", container_path=f"links/{name}", local_path="link")
        assert refused.is_error
        assert "a symbolic link" in refused.text
        edited = await docker_session.call("edit_file", container_path=f"d/{name}", content="new")
        assert not edited.is_error, edited.text
        into = await docker_session.call("cp_in", local_path=_put(docker_session, name), container_path=f"in/{name}")
        assert not into.is_error, into.text
        shared = await docker_session.call("edit_file", container_path=f"/workspace/shared/{name}", content="new")
        texts += [reply.text for reply in (refused, edited, into, shared)]
    assert [text for text in texts if text != harmless(text)] == []


def _put(session: Handle, name: str) -> str:
    Path(session.kit.input, name).write_text("new")
    return name


async def test_folder_with_names_of_any_bytes_goes_in(docker_session: Handle) -> None:
    """Ours: what is no UTF-8 on the host is the same bytes in the workspace."""
    folder = docker_session.kit.input / "d"
    folder.mkdir()
    for name in NAMES:
        (folder / os.fsdecode(name)).touch()
    reply = await docker_session.call("cp_in", local_path="d")
    assert not reply.is_error, reply.text
    listed = await docker_session.value("import os; print(sorted(os.listdir(b'd')))")
    assert ast.literal_eval(listed) == sorted(NAMES)


async def test_folder_that_is_too_deep_to_copy_is_refused_in_words(docker_session: Handle) -> None:
    """Ours: it was a RecursionError. One that is not comes out; what is deeper can be packed."""
    await docker_session.run(DEEP.format(1500))
    refused = await docker_session.call("cp_out", container_path="d")
    assert refused.is_error
    assert "more than 200 folders deep; pack it" in refused.text
    assert not (await docker_session.call("list_files")).is_error
    await docker_session.run("os.mkdir('less'); os.chdir('less')\n" + DEEP.format(100) + "os.chdir('..')")
    assert not (await docker_session.call("cp_out", container_path="less")).is_error
    assert (docker_session.kit.output / "less" / ("d/" * 100) / "x").read_text() == "own"


async def test_listing_of_long_paths_is_cut_not_lost(docker_session: Handle) -> None:
    """Ours: the answer of kernel_host has a limit, which a thousand long paths would break."""
    code = "import os\nname = '\\x01' * 255\nhere = os.getcwd()\nfor _ in range(3): os.mkdir(name); os.chdir(name)\n"
    await docker_session.run(code + "for n in range(900): open(f'{n:03}' + name[:250], 'w').close()\nos.chdir(here)")
    reply = await docker_session.call("list_files")
    assert not reply.is_error, reply.text[:300]
    listed = reply.raw.structured_content
    assert listed is not None
    assert len(listed["files"]) + listed["more"] == 900
    assert listed["more"] > 0


@pytest.mark.parametrize("tool", ["cp_in", "cp_out", "edit_file", "list_files", "run_file"])
async def test_path_without_end_is_refused_and_all_sessions_live(docker_session: Handle, tool: str) -> None:
    """Ours: a request that is longer than kernel_host takes has ended the container, with all sessions in it."""
    path = "ü/" * 400_000
    (docker_session.kit.input / "x").touch()
    arguments = {
        "cp_in": {"local_path": "x", "container_path": path},
        "cp_out": {"container_path": path},
        "edit_file": {"container_path": path + "x", "content": "new"},
        "list_files": {"path": path},
        "run_file": {"path": path + "x.py"},
    }
    await docker_session.run("kept = 1")
    reply = await docker_session.call(tool, **arguments[tool])
    assert reply.is_error
    assert f"is longer than {MAX_PATH_BYTES} bytes" in reply.text
    assert await docker_session.value("kept") == "1"
