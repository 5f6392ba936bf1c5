"""Resources through a real MCP client: a session's notebook, whole outputs, files of its workspace."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import anyio
import nbformat
import pytest
from mcp import MCPError
from mcp.types import INVALID_PARAMS, BlobResourceContents, TextResourceContents

from kernel_server.tools.resources import MAX_BYTES, MAX_OUTPUT_BYTES
from tests.driving import CALL_SECONDS, Handle, Kit, containers_of_this_process, serving

pytestmark = pytest.mark.anyio

NOTEBOOK_TYPE = "application/x-ipynb+json"
NO_SESSION = "0" * 32


async def read(kit: Kit, uri: str) -> TextResourceContents | BlobResourceContents:
    """The one content of a resource."""
    with anyio.fail_after(CALL_SECONDS):
        (content,) = (await kit.client.read_resource(uri)).contents
    assert content.uri == uri
    return content


async def text(session: Handle, path: str) -> str:
    """The text of a resource of a session."""
    content = await read(session.kit, uri_of(session, path))
    assert isinstance(content, TextResourceContents)
    return content.text


async def refusal(kit: Kit, uri: str) -> str:
    """What the client is told of a resource that is not there: MCP says which code, and that the URI comes with it."""
    with anyio.fail_after(CALL_SECONDS), pytest.raises(MCPError) as raised:
        await kit.client.read_resource(uri)
    assert raised.value.error.code == INVALID_PARAMS
    assert raised.value.error.data == {"uri": uri}
    assert "Traceback" not in raised.value.error.message
    return raised.value.error.message


def uri_of(session: Handle, path: str) -> str:
    """The URI of something of a session."""
    return f"kernel://sessions/{session.session_id}/{path}"


# -- lists -----------------------------------------------------------------------------------------------------------


async def test_templates_say_what_there_is(local_kit: Kit) -> None:
    """Ours: MCP wants a template's type only where all its resources have it; descriptions have no indentation."""
    templates = (await local_kit.client.list_resource_templates()).resource_templates
    assert {template.uri_template: template.mime_type for template in templates} == {
        "kernel://sessions/{session_id}/notebook.ipynb": NOTEBOOK_TYPE,
        "kernel://sessions/{session_id}/outputs/{execution_count}": "text/plain",
        "kernel://sessions/{session_id}/files/{+path}": None,
    }
    for template in templates:
        assert template.title
        assert template.description
        assert "\n  " not in template.description


async def test_notebooks_of_live_sessions_are_listed(kit: Kit) -> None:
    """Issue 3, resources: what there is now, in the order of its beginning, and nothing else."""

    async def listed() -> list[str]:
        resources = (await kit.client.list_resources()).resources
        assert {resource.mime_type for resource in resources} <= {NOTEBOOK_TYPE}
        return [resource.uri for resource in resources]

    before = await listed()
    async with kit.session() as one, kit.session() as other:
        assert await listed() == [*before, uri_of(one, "notebook.ipynb"), uri_of(other, "notebook.ipynb")]
    assert await listed() == before


@pytest.mark.docker
@pytest.mark.one_container
async def test_listing_and_wrong_ids_start_no_container(docker_engine: None, tmp_path: Path) -> None:
    """Ours: clients list at their start, and give only 0.5 s for it."""
    before = set(containers_of_this_process())
    async with serving(tmp_path, "docker") as kit:
        assert (await kit.client.list_resources()).resources == []
        assert len((await kit.client.list_resource_templates()).resource_templates) == 3
        for path in ("notebook.ipynb", "outputs/0", "files/x"):
            assert "Call init" in await refusal(kit, f"kernel://sessions/{NO_SESSION}/{path}")
        assert set(containers_of_this_process()) == before


# -- the notebook ----------------------------------------------------------------------------------------------------


async def test_notebook_is_the_exported_one_also_after_the_session(kit: Kit) -> None:
    """Issue 3, resources: the same text as in the file of export_notebook."""
    session = await kit.init()
    await session.run("print('ü')\n1 / 0")
    await session.run("6 * 7")
    live = await read(kit, uri_of(session, "notebook.ipynb"))
    assert live.mime_type == NOTEBOOK_TYPE
    await session.call("export_notebook", local_path="x.ipynb")
    assert isinstance(live, TextResourceContents)
    assert live.text == (kit.output / "x.ipynb").read_text(encoding="utf-8")
    await session.call("close_session")
    assert await text(session, "notebook.ipynb") == live.text


async def test_notebook_of_a_fresh_session_is_empty(session: Handle) -> None:
    """Ours: the listed resource can be read before anything has run."""
    notebook = nbformat.reads(await text(session, "notebook.ipynb"), as_version=4)
    nbformat.validate(notebook)
    assert notebook.cells == []


async def test_notebook_that_is_too_large_names_the_tool(local_kit: Kit) -> None:
    """Ours: a resource is one message."""
    async with local_kit.session() as session:
        await session.run(f"display({{'text/html': 'x' * {MAX_BYTES}}}, raw=True)")
        message = await refusal(session.kit, uri_of(session, "notebook.ipynb"))
    assert "export_notebook" in message


# -- outputs ---------------------------------------------------------------------------------------------------------


async def test_output_is_the_whole_text_also_after_the_session(kit: Kit) -> None:
    """Issue 3, get the rest: what a result cuts is whole here. 0 is the last cell."""
    session = await kit.init()
    cut = await session.run("for i in range(3000): print(f'line {i:05}')")
    assert "read_output" in cut.text
    await session.run("'last'")
    whole = "\n".join(f"line {i:05}" for i in range(3000))
    assert await text(session, "outputs/1") == whole
    assert await text(session, "outputs/0") == "'last'"
    await session.call("close_session")
    assert await text(session, "outputs/1") == whole


async def test_huge_output_is_cut_in_the_middle(session: Handle) -> None:
    """Ours: head and tail, and how to page through the rest."""
    await session.run("print('first'); print(('x' * 99 + '\\n') * 20_000); print('last')")
    output = await text(session, "outputs/1")
    assert len(output.encode()) < MAX_OUTPUT_BYTES + 1000
    assert output.startswith("first\n")
    assert output.endswith("\nlast")
    assert f"read_output(session_id={session.session_id!r}, execution_count=1) pages through it" in output


@pytest.mark.parametrize("number", ["x", "-1", "1.0", "٣", "9" * 30, "%20", "1e1", "+1"])
async def test_number_of_no_cell_is_refused(session: Handle, number: str) -> None:
    """Bad input gets a clear error."""
    assert "is no number of a cell" in await refusal(session.kit, uri_of(session, f"outputs/{number}"))


async def test_cell_that_has_not_run_is_refused(session: Handle) -> None:
    """The same words as those of read_output."""
    assert "Nothing has run" in await refusal(session.kit, uri_of(session, "outputs/0"))
    await session.run("1")
    assert "No cell 7 has run" in await refusal(session.kit, uri_of(session, "outputs/7"))


# -- files -----------------------------------------------------------------------------------------------------------

TEXTS = {
    "a.txt": ("ü 😀\r\n\x1b[1m", "text/plain"),
    "empty": ("", "text/plain"),
    "a.py": ("x = 1", "text/x-python"),
    "a.CSV": ("x,y", "text/csv"),
    "a.json": ("{}", "application/json"),
    "a.ipynb": ("{}", NOTEBOOK_TYPE),
    "a.md": ("# a", "text/markdown"),
    "a.svg": ("<svg/>", "image/svg+xml"),
    "a.png": ("no image", "text/plain"),
    "data:text/evil,a.b": ("x", "text/plain"),
    "C:x": ("x", "text/plain"),
    "~x": ("x", "text/plain"),
}
BYTES = {
    "a.png": (b"\x89PNG\r\n", "image/png"),
    "a.csv": ("ü".encode("latin-1"), "text/csv"),
    "a.csv.gz": (b"\x1f\x8b", "application/gzip"),
    "a.bz2": (b"BZ\xff", "application/octet-stream"),
    "data:text/evil,a": (b"\xff", "application/octet-stream"),
    "nul": (b"a\0b", "application/octet-stream"),
}
FOLDER = "import os; os.mkdir('data:text')\n"


async def test_text_files_come_as_they_are(session: Handle) -> None:
    """Issue 3, resources: text with a type of text if it is UTF-8."""
    await session.run(f"{FOLDER}for name, value in {TEXTS!r}.items(): open(name, 'w', newline='').write(value[0])")
    for name, (expected, mime_type) in TEXTS.items():
        content = await read(session.kit, uri_of(session, f"files/{name}"))
        assert isinstance(content, TextResourceContents), name
        assert (content.text, content.mime_type) == (expected, mime_type), name


async def test_other_files_come_as_bytes(session: Handle) -> None:
    """Issue 3, resources: bytes, with the type that the name says."""
    await session.run(f"{FOLDER}for name, value in {BYTES!r}.items(): open(name, 'wb').write(value[0])")
    for name, (expected, mime_type) in BYTES.items():
        content = await read(session.kit, uri_of(session, f"files/{name}"))
        assert isinstance(content, BlobResourceContents), name
        assert (base64.b64decode(content.blob), content.mime_type) == (expected, mime_type), name


@pytest.mark.parametrize(
    "written",
    ["d/ä b%23%3F%25.txt", "d%2F%C3%A4%20b%23%3f%25.txt", "./d//ä b%23%3F%25.txt", "%64/ä%20b%23%3F%25%2etxt"],
)
async def test_name_can_be_written_in_every_way_that_uris_have(session: Handle, written: str) -> None:
    """RFC 3986, section 2.1: percent-encoding; clients differ in what they encode."""
    await session.call("edit_file", container_path="d/ä b#?%.txt", content="here")
    assert await text(session, f"files/{written}") == "here"


async def test_file_of_the_largest_size_arrives_and_one_byte_more_does_not(session: Handle) -> None:
    """Ours: sizes are said, and cp_out is named."""
    await session.run(f"open('fits', 'wb').write(b'a' * {MAX_BYTES}); open('more', 'wb').write(b'a' * {MAX_BYTES + 1})")
    assert await text(session, "files/fits") == "a" * MAX_BYTES
    assert "cp_out copies it" in await refusal(session.kit, uri_of(session, "files/more"))


async def test_sparse_file_of_huge_size_is_refused_at_once(session: Handle) -> None:
    """Ours: a size costs a session nothing; it must not cost the server anything either."""
    await session.run("open('sparse', 'wb').truncate(4 << 30)")
    assert "cp_out copies it" in await refusal(session.kit, uri_of(session, "files/sparse"))


async def test_file_that_grows_meanwhile_stays_within_the_bound(session: Handle) -> None:
    """Ours: each read gives a part that was there, or says that there is too much; never more than the bound."""
    code = f"""
import os, threading
open('log', 'w').close()
def grow():
    with open('log', 'ab', buffering=0) as file:
        while file.tell() < {2 * MAX_BYTES}:
            file.write(b'x' * 100_000)
threading.Thread(target=grow).start()
"""
    await session.run(code)
    uri, refused = uri_of(session, "files/log"), ""
    while not refused:
        try:
            content = await read(session.kit, uri)
        except MCPError as error:
            refused = error.error.message
        else:
            assert isinstance(content, TextResourceContents)
            assert len(content.text) <= MAX_BYTES
    assert "cp_out" in refused or "more than 8000000 bytes" in refused


HOSTILE = {
    "missing": "no such file",
    "missing/x": "no such file",
    "kept/x": "is a file, not a folder",
    "": "is empty; give",
    ".": "is a folder; cp_out copies folders",
    "folder": "folder is a folder; cp_out",
    "folder/": "folder is a folder; cp_out",
    "../kept": r"holds '..'",
    "..": r"holds '..'",
    "folder/../kept": r"holds '..'",
    "folder/../../kept": r"holds '..'",
    "%2e%2e/kept": r"holds '..'",
    "%2E%2E%2Fkept": r"holds '..'",
    ".%2e/kept": r"holds '..'",
    "%252e%252e/kept": "no such file",
    "..%5Ckept": "no such file",
    "/etc/passwd": "relative to the workspace",
    "%2Fetc%2Fpasswd": "relative to the workspace",
    "//etc/passwd": "relative to the workspace",
    "kept%00": "NUL",
    "kept%00.png": "NUL",
    "%ED%A0%80": "no such file",
    "%FF": "no such file",
    "%0a": "no such file|is empty",
    "x" * 256: "255 bytes",
    "%C3%BC" * 128: "255 bytes",
    "x/" * 3000 + "x": "longer than|no such file",
    "x" * 70_000: "There is no resource",
    "kept?x=1": "There is no resource",
    "kept#x": "There is no resource",
    "link": "symbolic link",
    "links/passwd": "symbolic link",
    "links/../kept": r"holds '..'",
    "self": "symbolic link",
    "proc/self/environ": "symbolic link",
    "fd/0": "symbolic link",
    "null": "symbolic link",
    "fifo": "a fifo",
    "socket": "a socket",
    "closed": "may not access",
}
PLANT = """
import os, socket
open('kept', 'w').write('kept'); os.mkdir('folder')
for name, target in [('link', '/etc/passwd'), ('links', '/etc'), ('self', 'kept'), ('proc', '/proc'),
                     ('fd', '/proc/self/fd'), ('null', '/dev/null')]:
    os.symlink(target, name)
os.mkfifo('fifo')
socket.socket(socket.AF_UNIX).bind('socket')
open('closed', 'w').close(); os.chmod('closed', 0)
"""


async def test_hostile_paths_are_refused_with_a_reason(session: Handle) -> None:
    """DESIGN, files: names are resolved beneath the workspace, no link is followed, only regular files are read."""
    await session.run(PLANT)
    for path, why in HOSTILE.items():
        if path == "closed" and os.getuid() == 0 and session.kit.engine == "local":
            continue  # root may read every file
        message = await refusal(session.kit, uri_of(session, f"files/{path}"))
        assert any(reason in message for reason in why.split("|")), f"{path[:80]!r}: {message[:300]}"
    assert await text(session, "files/kept") == "kept"


async def test_device_is_refused(local_kit: Kit) -> None:
    """The same; in a container nobody can make one."""
    if os.getuid() != 0:
        pytest.skip("making a device needs root")
    async with local_kit.session() as session:
        os.mknod(Path(session.workspace) / "zero", 0o020666, os.makedev(1, 5))
        assert "a device" in await refusal(session.kit, uri_of(session, "files/zero"))


async def test_file_of_another_session_is_out_of_reach(docker_kit: Kit) -> None:
    """DESIGN, files: an id opens its own workspace only, whatever its session plants there."""
    async with docker_kit.session() as attacker, docker_kit.session() as victim:
        await victim.run("open('secret', 'w').write('secret')")
        await attacker.run(f"import os; os.symlink({victim.workspace!r}, 'to'); os.symlink('to/secret', 'secret')")
        for path in ("to/secret", "secret", f"../{victim.session_id}/secret", f"{victim.workspace}/secret"):
            await refusal(docker_kit, uri_of(attacker, f"files/{path}"))
        assert await text(victim, "files/secret") == "secret"


# -- sessions --------------------------------------------------------------------------------------------------------

UNKNOWN = {
    f"kernel://sessions/{NO_SESSION}/files/x": "Unknown session_id",
    f"kernel://sessions/{NO_SESSION}/notebook.ipynb": "Unknown session_id",
    f"kernel://sessions/{NO_SESSION}/outputs/1": "Unknown session_id",
    "kernel://sessions//files/x": "Unknown session_id",
    "kernel://sessions/*/notebook.ipynb": "Unknown session_id",
    "kernel://sessions/a%2Fb/notebook.ipynb": "Unknown session_id",
    "kernel://sessions/%2e%2e/notebook.ipynb": "There is no resource",
    "kernel://sessions/%2Fetc%2Fpasswd/notebook.ipynb": "There is no resource",
    "kernel://sessions/a%00/notebook.ipynb": "There is no resource",
    "kernel://sessions": "There is no resource",
    "KERNEL://x": "There is no resource",
    "file:///etc/passwd": "There is no resource",
    "": "There is no resource",
    "\0": "There is no resource",
}


@pytest.mark.parametrize("uri", UNKNOWN)
async def test_unknown_resource_is_refused_with_what_there_is(local_kit: Kit, uri: str) -> None:
    """MCP, resources: -32602 with the URI; ours: what to do."""
    message = await refusal(local_kit, uri)
    assert UNKNOWN[uri] in message
    assert "init" in message


async def test_files_of_an_ended_session_are_gone(kit: Kit) -> None:
    """Ours: the message is that of the tools."""
    session = await kit.init()
    await session.run("open('x', 'w').write('x')")
    await session.call("close_session")
    message = await refusal(kit, uri_of(session, "files/x"))
    assert "was closed by close_session" in message
    assert "Call init" in message


@pytest.mark.parametrize("path", ["notebook.ipynb", "outputs/0", "files/x"])
async def test_reading_is_use(anyio_backend: str, tmp_path: Path, path: str) -> None:
    """DESIGN: sessions end PY_EXEC_SESSION_TTL after their last use; here they are read for four times that."""
    async with serving(tmp_path, "local", PY_EXEC_SESSION_TTL="0.4", PY_EXEC_PRELOAD="none") as kit:
        session = await kit.init()
        await session.run("_ = open('x', 'w').write('x')")
        end = anyio.current_time() + 1.6
        while anyio.current_time() < end:
            await text(session, path)
        assert not (await session.run("1")).is_error


async def test_reads_go_on_while_a_cell_runs(session: Handle) -> None:
    """Ours: what a running cell has written can be looked at; many at a time."""
    await session.run("open('x', 'w').write('x'); import time")
    await session.run("time.sleep(1000)", wait=0.1)
    async with anyio.create_task_group() as tasks:
        for path in ["files/x", "outputs/1", "notebook.ipynb"] * 5:
            tasks.start_soon(text, session, path)
    await session.call("interrupt")
