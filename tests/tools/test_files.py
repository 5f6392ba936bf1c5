"""run_file, edit_file, cp_in, cp_out and export_notebook through a real MCP client."""

from __future__ import annotations

import gc
import os
import re
from pathlib import Path

import nbformat
import pytest

from tests.driving import Handle, Kit

pytestmark = pytest.mark.anyio

LONG_NAME = "ü" * 127 + "x"  # 255 bytes
NAMES = ["plain.txt", "with space.txt", "ünï 😀.txt", "-rf", "$HOME {1+1} %x.txt", "line\nbreak", "a'b\"c", LONG_NAME]
SHOW = "import sys\nprint(sys.argv, __name__, __file__)"


# -- run_file --------------------------------------------------------------------------------------------------------


async def test_script_runs_as_main_with_its_arguments_untouched(session: Handle) -> None:
    """DESIGN, tools: like %run, as __main__. IPython would expand $name, {name} and ~ in the line of a magic."""
    await session.run("HOME = 'expanded'")
    await session.call("edit_file", container_path="s/x.py", content=SHOW)
    arguments = ["a b", "$HOME", "{1+1}", "~", "*", "", "'\"", "-i", "--", "\\n", "ü\nz"]
    reply = await session.call("run_file", path="s/x.py", args=arguments)
    path = f"{session.workspace}/s/x.py"
    assert reply.text == f"{[path, *arguments]} __main__ {path}"
    assert reply.status == "ok"
    assert reply.raw.structured_content is None


@pytest.mark.parametrize("name", [f"{name}.py" for name in NAMES if name != LONG_NAME])
async def test_script_of_any_name_runs(session: Handle, name: str) -> None:
    """Issue 2, files: names with spaces and Unicode work."""
    assert not (await session.call("edit_file", container_path=name, content="print('ran')")).is_error
    assert (await session.call("run_file", path=name)).text == "ran"


async def test_script_has_a_fresh_namespace_and_leaves_its_variables(session: Handle) -> None:
    """The docstring of run_file."""
    await session.run("x = 'old'")
    await session.call("edit_file", container_path="x.py", content="seen = 'x' in globals()\nx = 'new'")
    await session.call("run_file", path="x.py")
    assert await session.value("[seen, x]") == "[False, 'new']"


async def test_failing_script_shows_its_traceback_and_the_session_lives(session: Handle) -> None:
    """Issue 2: an exception is data; the line of the script is in the traceback."""
    await session.run("kept = 1")
    await session.call("edit_file", container_path="x.py", content="a = 1\nraise ValueError('in the script')")
    reply = await session.call("run_file", path="x.py")
    assert reply.status == "error"
    assert "x.py" in reply.text
    assert reply.output.endswith("ValueError: in the script")
    assert await session.value("kept") == "1"


@pytest.mark.parametrize("ending", ["sys.exit()", "sys.exit(0)", "sys.exit(3)", "raise SystemExit", "exit()", "quit()"])
async def test_script_may_exit(session: Handle, ending: str) -> None:
    """Ours: scripts end with sys.exit; %run catches it, and the kernel goes on."""
    await session.run("kept = 1")
    await session.call(
        "edit_file", container_path="x.py", content=f"import sys\nprint('before')\n{ending}\nprint('no')"
    )
    reply = await session.call("run_file", path="x.py")
    assert not reply.is_error
    assert reply.text.startswith("before")
    assert "no" not in reply.text.split()
    if ending not in ("exit()", "quit()"):
        assert await session.value("kept") == "1"


async def test_script_runs_without_a_session(kit: Kit) -> None:
    """DESIGN, tools: no id is a one-shot session; there, only the shared folder can hold a script."""
    if kit.engine == "docker":
        (kit.input / "job.py").write_text("import sys; print('job', sys.argv[1:])")
        await kit.call("cp_in", local_path="job.py", container_path="/workspace/shared/job.py")
        assert (await kit.call("run_file", path="/workspace/shared/job.py", args=["1"])).text == "job ['1']"
    reply = await kit.call("run_file", path="missing.py")
    assert "missing.py" in reply.text
    assert "not found" in reply.text or "no such file" in reply.text


# -- edit_file -------------------------------------------------------------------------------------------------------


async def test_file_is_created_with_its_folders_and_overwritten(session: Handle) -> None:
    """DESIGN, tools: writes a text file."""
    created = await session.call("edit_file", container_path="a/b ü/c.txt", content="one ü 😀\r\n")
    assert created.text.startswith("Created 'a/b ü/c.txt'")
    assert await session.value("open('a/b ü/c.txt', 'rb').read().decode()") == repr("one ü 😀\r\n")
    overwrote = await session.call("edit_file", container_path="a/b ü/c.txt", content="")
    assert overwrote.text.startswith("Overwrote")
    assert await session.value("import os; os.path.getsize('a/b ü/c.txt'), os.listdir('a/b ü')") == "(0, ['c.txt'])"


async def test_passage_that_occurs_once_is_replaced(session: Handle) -> None:
    """DESIGN, tools: with `old`, replaces that text; white space and line ends count."""
    await session.call("edit_file", container_path="x", content="a = 1\nb = 2\nc = 3\n")
    reply = await session.call("edit_file", container_path="x", old="b = 2\nc", content="$1 \\1 {c}")
    assert reply.text.startswith("Replaced the passage in 'x'")
    assert await session.value("open('x').read()") == repr("a = 1\n$1 \\1 {c} = 3\n")
    await session.call("edit_file", container_path="x", old="a = 1\n", content="")
    assert await session.value("open('x').read()") == repr("$1 \\1 {c} = 3\n")


async def test_overlapping_passage_does_not_count_as_once(session: Handle) -> None:
    """Ours: `aa` occurs twice in `aaa`, so that which one is meant is unclear."""
    await session.call("edit_file", container_path="x", content="aaa")
    assert (await session.call("edit_file", container_path="x", old="aa", content="b")).is_error
    assert await session.value("open('x').read()") == "'aaa'"


async def test_mode_of_an_edited_file_stays(session: Handle) -> None:
    """Ours: a script stays executable; the session owns what edit_file makes."""
    await session.call("edit_file", container_path="x", content="old")
    await session.run("import os; os.chmod('x', 0o750)")
    await session.call("edit_file", container_path="x", content="new", old="old")
    assert await session.value("oct(os.stat('x').st_mode & 0o7777), os.stat('x').st_uid == os.getuid()") == (
        "('0o750', True)"
    )


async def test_large_file_is_written(session: Handle) -> None:
    """Ours: 5 MB of text; the text does not go through the control connection's 1 MB lines."""
    content = "0123456789\n" * 500_000
    assert not (await session.call("edit_file", container_path="big", content=content)).is_error
    assert await session.value("len(open('big').read())") == str(len(content))


# -- cp_in and cp_out ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
async def test_file_of_any_name_goes_in_and_out(session: Handle, name: str) -> None:
    """Issue 2, files: names with spaces, Unicode and 255 bytes work."""
    data = os.urandom(5000)
    (session.kit.input / name).write_bytes(data)
    into = await session.call("cp_in", local_path=name)
    assert not into.is_error, into.text
    assert await session.value("import os; os.listdir()") == repr([name])
    outside = name.replace("\n", " ")
    out = await session.call("cp_out", container_path=name, local_path="" if outside == name else outside)
    assert not out.is_error, out.text
    assert os.listdir(session.kit.output) == [outside]
    assert (session.kit.output / outside).read_bytes() == data


async def test_folder_goes_in_and_out(session: Handle) -> None:
    """Issue 2, files: folders with all that is in them; empty files and folders too; the session owns them."""
    folder = session.kit.input / "data"
    for path, data in (("a.txt", b"1"), ("sub dir/ü.bin", os.urandom(3000)), (f"{LONG_NAME}/{LONG_NAME}", b"2")):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    (folder / "empty").touch()
    (folder / "none/none").mkdir(parents=True)
    reply = await session.call("cp_in", local_path="data")
    assert reply.text.startswith("Copied 4 files, 3.0 KB, to 'data'"), reply.text
    assert await session.value(
        "import os\nall(os.stat(p).st_uid == os.getuid() for p, _, _ in os.walk('data')), "
        "open('data/sub dir/new', 'w').write('x')"
    ) == ("(True, 1)")
    assert not (await session.call("cp_out", container_path="data", local_path="back")).is_error
    (folder / "sub dir/new").write_text("x")
    assert _tree(session.kit.output / "back") == _tree(folder)


def _tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"/" for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("container_path", "expected"),
    [("", "x.txt"), ("y.txt", "y.txt"), ("d", "d/x.txt"), ("new/", "new/x.txt"), ("a/b/y", "a/b/y"), (".", "x.txt")],
)
async def test_file_goes_in_where_cp_would_put_it(session: Handle, container_path: str, expected: str) -> None:
    """DESIGN, tools: default name is the basename; a folder takes the file in."""
    (session.kit.input / "in").mkdir()
    (session.kit.input / "in/x.txt").write_text("new")
    await session.run("import os; os.mkdir('d')")
    reply = await session.call("cp_in", local_path="in/x.txt", container_path=container_path)
    assert f"to {expected!r}" in reply.text
    assert await session.value(f"open({expected!r}).read()") == "'new'"


async def test_folder_is_merged_into_one_that_exists(session: Handle) -> None:
    """DESIGN, tools; the docstring of cp_in: same names are replaced, others stay. Both ways."""
    (session.kit.input / "d/sub").mkdir(parents=True)
    (session.kit.input / "d/same").write_text("new")
    (session.kit.input / "d/sub/more").write_text("new")
    await session.run(
        "import os; os.makedirs('d/sub'); open('d/same', 'w').write('old'); open('d/sub/kept', 'w').write('kept')"
    )
    assert not (await session.call("cp_in", local_path="d")).is_error
    assert await session.value("open('d/same').read(), sorted(os.listdir('d/sub'))") == "('new', ['kept', 'more'])"
    (session.kit.output / "d").mkdir()
    (session.kit.output / "d/mine").write_text("kept")
    assert not (await session.call("cp_out", container_path="d")).is_error
    assert sorted(_tree(session.kit.output / "d")) == ["mine", "same", "sub", "sub/kept", "sub/more"]


async def test_what_is_in_the_way_stays(session: Handle) -> None:
    """DESIGN, files: whole or not at all; found out before anything moves."""
    (session.kit.input / "d/b").mkdir(parents=True)
    (session.kit.input / "d/a").write_text("new")
    await session.run("import os; os.makedirs('d'); open('d/a', 'w').write('old'); open('d/b', 'w').write('a file')")
    reply = await session.call("cp_in", local_path="d")
    assert reply.is_error
    assert "in the way" in reply.text
    assert await session.value("open('d/a').read(), open('d/b').read()") == "('old', 'a file')"


async def test_special_files_in_a_folder_are_left_out_and_named(session: Handle) -> None:
    """DESIGN, files: regular files and folders only. Both ways, the result says what is missing."""
    folder = session.kit.input / "d"
    folder.mkdir()
    (folder / "kept").write_text("1")
    (folder / "link").symlink_to("/etc/passwd")
    os.mkfifo(folder / "fifo")
    into = await session.call("cp_in", local_path="d")
    assert "1 file, 1 byte" in into.text
    assert "'d/fifo (a fifo)', 'd/link (a symbolic link)'" in into.text
    code = (
        "import os, socket\nos.symlink('/etc/passwd', 'd/link'); os.mkfifo('d/fifo')\n"
        "s = socket.socket(socket.AF_UNIX); os.chdir('d'); s.bind('socket'); os.chdir('..'); sorted(os.listdir('d'))"
    )
    assert await session.value(code) == "['fifo', 'kept', 'link', 'socket']"
    out = await session.call("cp_out", container_path="d")
    assert not out.is_error, out.text
    assert "'d/fifo (a fifo)', 'd/link (a symbolic link)', 'd/socket (a socket)'" in out.text
    assert _tree(session.kit.output) == {"d": b"/", "d/kept": b"1"}


async def test_link_within_workdir_in_is_followed(session: Handle) -> None:
    """Ours: the user made it in the user's own folder."""
    (session.kit.input / "real").write_text("data")
    (session.kit.input / "link").symlink_to("real")
    assert not (await session.call("cp_in", local_path="link")).is_error
    assert await session.value("open('link').read()") == "'data'"


async def test_absolute_path_in_the_own_workspace_is_accepted(session: Handle) -> None:
    """DESIGN, tools: absolute only inside the own workspace or /workspace/shared."""
    if session.kit.engine == "local":
        assert session.workspace.startswith("/")
    (session.kit.input / "x").write_text("1")
    assert not (await session.call("cp_in", local_path="x", container_path=f"{session.workspace}/y")).is_error
    assert not (await session.call("cp_out", container_path=f"{session.workspace}/y")).is_error
    assert (session.kit.output / "y").read_text() == "1"


async def test_workspace_of_another_session_is_out_of_reach(kit: Kit) -> None:
    """DESIGN, tools: absolute only inside the own workspace."""
    async with kit.session() as one, kit.session() as other:
        await one.run("open('secret', 'w').write('s')")
        reply = await other.call("cp_out", container_path=f"{one.workspace}/secret")
        assert reply.is_error
        assert "outside the workspace" in reply.text


@pytest.mark.docker
async def test_shared_folder_is_seen_by_all_sessions_and_written_by_none(docker_kit: Kit) -> None:
    """DESIGN, tools: /workspace/shared is read-only for sessions, the one place that needs no session."""
    (docker_kit.input / "common").mkdir()
    (docker_kit.input / "common/data.csv").write_text("x,y\n1,2\n")
    reply = await docker_kit.call("cp_in", local_path="common", container_path="/workspace/shared/common")
    assert not reply.is_error, reply.text
    async with docker_kit.session() as one, docker_kit.session() as other:
        for session in (one, other):
            assert await session.value("open('/workspace/shared/common/data.csv').read()") == repr("x,y\n1,2\n")
            for attempt in (
                "open('/workspace/shared/new', 'w')",
                "open('/workspace/shared/common/data.csv', 'a')",
                "import os; os.unlink('/workspace/shared/common/data.csv')",
                "import os; os.chmod('/workspace/shared', 0o777)",
                "import os; os.rename('/workspace/shared/common', 'mine')",
            ):
                assert re.search("PermissionError|Read-only|OSError", (await session.run(attempt)).text), attempt
    out = await docker_kit.call("cp_out", container_path="/workspace/shared/common/data.csv", local_path="back")
    assert not out.is_error, out.text
    assert (docker_kit.output / "back").read_text() == "x,y\n1,2\n"
    edited = await docker_kit.call(
        "edit_file", container_path="/workspace/shared/common/data.csv", content="z", old="y"
    )
    assert not edited.is_error, edited.text


@pytest.mark.docker
@pytest.mark.parametrize("way", ["in", "out"])
async def test_one_gigabyte_passes_with_little_memory(docker_session: Handle, way: str) -> None:
    """Issue 2, files: 1 GB passes with < 64 MB of extra host memory.

    VmHWM of this process, where server and client run, is set back before the copy (proc(5), clear_refs). The file is
    sparse, so that the test measures memory and not the disk; every byte of it is sent.
    """
    size = 1 << 30
    if way == "in":
        with open(docker_session.kit.input / "big", "wb") as file:
            file.truncate(size)
    else:
        await docker_session.value(f"open('big', 'wb').truncate({size})")
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = _memory("VmRSS")
    if way == "in":
        reply = await docker_session.call("cp_in", local_path="big")
    else:
        reply = await docker_session.call("cp_out", container_path="big")
    assert not reply.is_error, reply.text
    assert "1.1 GB" in reply.text
    assert _memory("VmHWM") - before < 64 << 20
    if way == "in":
        assert await docker_session.value("import os; os.path.getsize('big')") == str(size)
    else:
        assert (docker_session.kit.output / "big").stat().st_size == size


def _memory(name: str) -> int:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[name].split()[0]) << 10


# -- export_notebook -------------------------------------------------------------------------------------------------


async def test_exported_notebook_holds_all_that_ran(kit: Kit) -> None:
    """Issue 2, notebook: valid, with outputs; also of a session that has ended."""
    async with kit.session() as session:
        await session.run("x = 1\nprint('shown')\nx")
        await session.run("import matplotlib.pyplot as plt\n_ = plt.plot([1])")
        await session.run("1/0")
        await session.call("edit_file", container_path="a b.py", content="print('script')")
        await session.call("run_file", path="a b.py", args=["c d"])
        assert not (await session.call("export_notebook")).is_error
    ended = await session.call("export_notebook", local_path="sub/after.ipynb")
    assert not ended.is_error, ended.text
    names = [f"session-{session.session_id[:8]}.ipynb", "sub/after.ipynb"]
    first, second = (nbformat.read(kit.output / name, as_version=nbformat.NO_CONVERT) for name in names)
    nbformat.validate(first)
    assert first.cells == second.cells
    assert [cell.source for cell in first.cells][2:] == ["1/0", "%run 'a b.py' 'c d'"]
    kinds = [[output.output_type for output in cell.outputs] for cell in first.cells]
    assert kinds == [["stream", "execute_result"], ["display_data"], ["error"], ["stream"]]
    assert [cell.execution_count for cell in first.cells] == [1, 2, 3, 4]
    assert "image/png" in first.cells[1].outputs[0].data


async def test_notebook_of_an_unknown_session_is_refused(kit: Kit) -> None:
    """Ours: the id is looked up as a file name; a path in it must lead nowhere."""
    for session_id in ("0" * 32, "../../etc/passwd", ""):
        reply = await kit.call("export_notebook", session_id=session_id)
        assert reply.is_error
        assert "Call init" in reply.text
    assert os.listdir(kit.output) == []


async def test_a_script_is_executable_on_its_way_in_and_not_out(session: Handle) -> None:
    """What comes out is to be read before it is run; in the session, a script runs as it did."""
    script = session.kit.input / "tool.sh"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o744)
    await session.call("cp_in", local_path="tool.sh")
    assert await session.value("import os; os.access('tool.sh', os.X_OK)") == "True"
    (session.kit.output / "tool.sh").write_text("old")
    (session.kit.output / "tool.sh").chmod(0o755)
    await session.run("os.makedirs('d'); os.link('tool.sh', 'd/tool.sh')")
    for path in ("tool.sh", "d"):
        assert not (await session.call("cp_out", container_path=path)).is_error
    for path in ("tool.sh", "d/tool.sh"):
        assert (session.kit.output / path).read_text() == "#!/bin/sh\n"
        assert (session.kit.output / path).stat().st_mode & 0o111 == 0


HIDDEN = [
    ".env",
    ".git/hooks/pre-commit",
    "sub/.git/config",
    "./.bashrc",
    ".ENV",
    ". git",
    " .env",
    "\u200c.git/config",
]


@pytest.mark.parametrize("path", HIDDEN)
async def test_nothing_comes_out_under_a_name_that_configures_programs(session: Handle, path: str) -> None:
    """Neither from cp_out, nor from export_notebook, whether the folder is there or not. The control is `x/...`."""
    (session.kit.output / ".git/hooks").mkdir(parents=True)
    before = _tree(session.kit.output)
    await session.run("open('evil', 'w').write('evil')")
    for tool, arguments in (("cp_out", {"container_path": "evil"}), ("export_notebook", {})):
        reply = await session.call(tool, local_path=path, **arguments)
        assert reply.is_error, reply.text
        assert "begins with a dot" in reply.text
        assert "PY_EXEC_OUT_FILES=any" in reply.text
        assert _tree(session.kit.output) == before
    assert not (await session.call("cp_out", container_path="evil", local_path=f"x/{path.replace('.', 'x')}")).is_error


async def test_hidden_files_of_a_folder_are_left_out_and_named(session: Handle) -> None:
    """`.git` inside a folder is never written, nor merged into; a hidden file needs a name of its own."""
    await session.run(
        "import os\nfor path in ('d/.git/hooks/pre-commit', 'd/.git/config', 'd/kept', 'd/sub/.env', 'd/sub/kept', '.rc'):\n"
        "    os.makedirs(os.path.dirname(path) or '.', exist_ok=True); _ = open(path, 'w').write('new')"
    )
    (session.kit.output / "d/.git").mkdir(parents=True)
    (session.kit.output / "d/.git/config").write_text("the user's")
    reply = await session.call("cp_out", container_path="d")
    assert reply.text.startswith("Copied 2 files, 6 bytes, to 'd'"), reply.text
    assert "d/.git (its name begins with a dot), d/sub/.env (its name begins with a dot)." in reply.text
    assert _tree(session.kit.output) == {
        "d": b"/", "d/.git": b"/", "d/.git/config": b"the user's", "d/kept": b"new", "d/sub": b"/", "d/sub/kept": b"new",
    }  # fmt: skip
    assert (await session.call("cp_out", container_path=".rc")).is_error
    assert not (await session.call("cp_out", container_path=".rc", local_path="rc")).is_error
    assert not (await session.call("cp_out", container_path="d/.git", local_path="git")).is_error
    assert (session.kit.output / "git/config").read_text() == "new"


async def test_links_of_the_user_do_not_lead_into_hidden_folders(session: Handle) -> None:
    """A folder `hooks` that is a link to `.git/hooks`: what counts is where it leads. The control is one to `shown`."""
    for name in (".git", "shown"):
        (session.kit.output / name / "hooks").mkdir(parents=True)
    (session.kit.output / "hidden").symlink_to(".git/hooks")
    (session.kit.output / "link").symlink_to("shown/hooks")
    await session.run("import os; os.makedirs('hidden'); os.makedirs('link'); _ = open('x', 'w').write('x')")
    reply = await session.call("cp_out", container_path="x", local_path="hidden/x")
    assert "it leads into '.git'" in reply.text
    assert (await session.call("cp_out", container_path="x", local_path="hidden/")).is_error
    assert not list((session.kit.output / ".git/hooks").iterdir())
    assert not (await session.call("cp_out", container_path="x", local_path="link/x")).is_error
    assert (session.kit.output / "shown/hooks/x").exists()
