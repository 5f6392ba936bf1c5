"""list_sessions and list_files through a real MCP client: text and structured output say the same. Both engines."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from tests.driving import Handle, Kit, serving

pytestmark = pytest.mark.anyio

MAKE_FILES = """
import os
os.makedirs("plots/empty")
os.makedirs(".hidden/deep")
for name, text in {"a.txt": "12345", "plots/b.csv": "x" * 2000, ".hidden/deep/c": "", "größe\\n.md": ""}.items():
    open(name, "w").write(text)
    os.utime(name, (1_700_000_000, 1_700_000_000))
os.symlink("/etc/passwd", "link")
"""


async def test_files_are_listed_with_size_and_time(session: Handle) -> None:
    """Issue 4: list_files. Hidden files are left out, links are not followed, empty folders are shown."""
    await session.run(MAKE_FILES)
    reply = await session.call("list_files")
    assert reply.raw.structured_content is not None
    found = {file["path"]: file for file in reply.raw.structured_content["files"]}
    assert set(found) == {"a.txt", "plots/b.csv", "plots/empty/", "gr\u00f6\u00dfe\n.md", "link"}
    assert found["a.txt"] == {"path": "a.txt", "size": 5, "modified": 1_700_000_000.0}
    assert found["link"]["size"] == 0
    assert reply.raw.structured_content["more"] == 0
    assert "2023-11-14 22:13:20     2.0 KB  plots/b.csv" in reply.text.splitlines()


async def test_one_folder_is_listed_with_paths_of_the_workspace(session: Handle) -> None:
    """Ours: what is listed can be given to cp_out as it stands."""
    await session.run(MAKE_FILES)
    reply = await session.call("list_files", path=f"{session.workspace}/plots")
    assert [line.split("  ")[-1] for line in reply.text.splitlines()] == ["plots/b.csv", "plots/empty/"]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("nope", "no such file or folder"),
        ("a.txt", "not a folder"),
        ("../", "'..'"),
        ("/etc", "outside the workspace"),
        ("out", "symbolic link"),
    ],
)
async def test_what_is_no_folder_of_the_workspace_is_refused(session: Handle, path: str, reason: str) -> None:
    """Issue 6: a session's links lead nowhere."""
    await session.run("import os\nopen('a.txt', 'w').close()\nos.symlink('/etc', 'out')")
    reply = await session.call("list_files", path=path)
    assert reply.is_error
    assert reason in reply.text


async def test_more_files_than_fit_are_counted(session: Handle) -> None:
    """Ours: a listing is bounded, and says so."""
    await session.run("for i in range(1200): open(f'{i:04}', 'w').close()")
    reply = await session.call("list_files")
    assert reply.raw.structured_content is not None
    assert len(reply.raw.structured_content["files"]) == 1000
    assert reply.raw.structured_content["more"] == 200
    assert reply.text.splitlines()[-1] == "[and 200 more; list a folder in it]"


async def test_times_that_no_calendar_has_are_listed(session: Handle) -> None:
    """Ours: a session sets the times of its files as it likes."""
    await session.run("import os\nopen('x', 'w').close()\nos.utime('x', (-10**9, -10**9))")
    assert not (await session.call("list_files")).is_error


async def test_empty_workspace_and_shared_folder(session: Handle) -> None:
    """Ours: nothing is said in so many words; the shared folder needs no session."""
    assert (await session.call("list_files")).text == "(no files)"
    (session.kit.input / "for_all.txt").write_text("1", encoding="utf-8")
    await session.kit.call("cp_in", local_path="for_all.txt", container_path="/workspace/shared/for_all.txt")
    assert "for_all.txt" in (await session.kit.call("list_files", path="/workspace/shared")).text
    assert (await session.kit.call("list_files")).is_error


async def test_sessions_are_listed_with_what_they_use_and_run(kit: Kit) -> None:
    """Issue 4: id, age, idle, memory, cpu, busy with what."""
    async with kit.session() as busy, kit.session() as idle:
        await idle.run("held = bytearray(b'x' * 50_000_000)")
        async with anyio.create_task_group() as tasks:
            code = "open('begun', 'w').close()\nimport os, time\nwhile not os.path.exists('go'): time.sleep(0.01)"
            tasks.start_soon(busy.run, code)
            await busy.wait_for_file("begun")
            reply = await kit.call("list_sessions")
            await busy.call("edit_file", container_path="go", content="")
        assert reply.raw.structured_content is not None
        found = {item["session_id"]: item for item in reply.raw.structured_content["sessions"]}
        assert found[busy.session_id]["running"].startswith("open('begun'")
        assert found[busy.session_id]["running_seconds"] >= 0
        assert found[busy.session_id]["idle"] == 0
        assert found[idle.session_id]["running"] == ""
        assert found[idle.session_id]["memory"] > 50_000_000
        assert found[idle.session_id]["memory"] > found[busy.session_id]["memory"]
        assert found[idle.session_id]["cpu"] > 0
        assert found[idle.session_id]["processes"] == 1
        assert all(session_id in reply.text for session_id in found)


async def test_listing_no_sessions_starts_no_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours: to look starts nothing. Here there is no engine, so that a start would be an error, as that of `init` is."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    async with serving(tmp_path, "docker") as kit:
        listed = await kit.call("list_sessions")
        assert not listed.is_error
        assert (listed.text, listed.raw.structured_content) == (
            "There are no sessions.",
            {"sessions": [], "notes": []},
        )
        assert "no Docker engine at" in (await kit.call("init")).text


async def test_sessions_that_are_gone_are_not_listed(kit: Kit) -> None:
    """Ours: neither closed ones nor one-shot ones, nor those that only stand ready."""
    async with kit.session() as session:
        await kit.call("run_code", code="1")
    listed = await kit.call("list_sessions")
    assert session.session_id not in listed.text
    assert listed.raw.structured_content == {"sessions": [], "notes": []}
    assert listed.text == "There are no sessions."
