"""Disks that are full, files that cannot be opened and clocks that jump (issue 5, faults)."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from tests.driving import Kit, serving
from tests.faults.servers import Server, Servers

pytestmark = pytest.mark.anyio

REPEATS = 2
FULL = "No space left on device"


@pytest.fixture
async def crowded(tmp_path: Path, small_disk: Path, anyio_backend: str) -> AsyncIterator[Kit]:
    """A server with its journals on a small disk."""
    async with serving(tmp_path, "local", PY_EXEC_STATE_DIR=str(small_disk)) as kit:
        yield kit


@contextmanager
def filled(folder: Path) -> Iterator[None]:
    """The disk of `folder` is full for the length of the block."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while file.write(b"x" * size):
                    pass
            except OSError:
                continue
    yield
    filler.unlink()


async def test_full_disk_costs_the_record_of_a_cell_and_nothing_else(crowded: Kit, small_disk: Path) -> None:
    """Issue 5: host disk full. The cell's result comes and says so; earlier cells stay good, later ones are recorded."""
    async with crowded.session() as session:
        await session.run("x = 'before'")
        for turn in range(REPEATS):
            with filled(small_disk):
                told = await session.run(f"print('while full {turn}' * 500)")
                assert told.status == "ok"
                assert told.output.startswith("while full")
                assert FULL in told.text
                assert "Free some disk space" in told.text
                exported = await session.call("export_notebook", local_path="n.ipynb")
                assert f"{turn + 1} cell" in exported.text
            assert FULL not in (await session.run(f"'after {turn}'")).text
        await session.call("export_notebook", local_path="n.ipynb")
        notebook = (crowded.output / "n.ipynb").read_text()
        assert [text in notebook for text in ("before", "while full", "after 0", "after 1")] == [
            True,
            False,
            True,
            True,
        ]
        async with crowded.session() as other:
            with filled(small_disk):
                assert (await other.run("1 + 1")).output.startswith("2")


async def test_full_output_folder_gets_nothing_half(tmp_path: Path, small_disk: Path) -> None:
    """Issue 5, R12: cp_out and export_notebook fail with the reason, and leave what was there as it was."""
    async with serving(tmp_path, "local", WORKDIR_OUT=str(small_disk)) as kit, kit.session() as session:
        await session.run(
            "open('large', 'w').write('a' * 1_000_000)\nopen('small', 'w').write('a' * 9_000)\nprint('b' * 9_000)"
        )
        (small_disk / "small").write_text("old")
        for _ in range(REPEATS):
            with filled(small_disk):
                for failed in (
                    await session.call("cp_out", container_path="large"),
                    await session.call("cp_out", container_path="small"),
                    await session.call("export_notebook", local_path="n.ipynb"),
                ):
                    assert failed.is_error
                    assert "disk is full" in failed.text or "which is what may be copied out" in failed.text
                assert {path.name for path in small_disk.iterdir()} == {"small", "filler"}
                assert (small_disk / "small").read_text() == "old"
            assert not (await session.call("export_notebook", local_path="n.ipynb")).is_error
            assert not (await session.call("cp_out", container_path="small", local_path="new")).is_error
            (small_disk / "new").unlink()
            (small_disk / "n.ipynb").unlink()


@contextmanager
def no_more_files(pid: int, spare: int) -> Iterator[None]:
    """A process cannot open more than `spare` files for the length of the block."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    taken = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    free = [number for number in range(before[0]) if number not in taken]  # a file gets the lowest
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (free[spare], before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


@pytest.mark.docker
async def test_too_many_open_files_are_told_and_soon_over(servers: Servers) -> None:
    """Issue 5: sessions go on; what needs a file says that there is none, and works when there is."""
    server = await servers.start()
    (servers.folder / "data.txt").write_text("data")
    session_id = await server.begin("x = 1\nopen('made.txt', 'w').write('made')")
    for spare in (0, 1, 2):
        with no_more_files(server.pid, spare):
            assert (await server.call("run_code", code="x += 1\nx", session_id=session_id)).status == "ok"
            texts = await _use_files(server, session_id)
            if not spare:
                assert all("Too many open files" in text for text in texts)
            refused = await server.call("init")
            assert refused.is_error
            assert "Too many open files" in refused.text
        assert await server.run(await server.begin("y = 2"), "y") == "2"
        assert [text for text in await _use_files(server, session_id) if "Too many" in text] == []
    assert await server.run(session_id, "x") == "4"


async def _use_files(server: Server, session_id: str) -> list[str]:
    """What tools say that need to open files."""
    return [
        await server.text("cp_in", local_path="data.txt", session_id=session_id),
        await server.text("cp_out", container_path="made.txt", session_id=session_id),
        await server.text("edit_file", container_path="a", content="b", session_id=session_id),
        await server.text("export_notebook", session_id=session_id),
    ]


async def test_clock_that_jumps_neither_ends_nor_keeps_a_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue 5, R13: what waits for its time goes by the monotonic clock."""
    real = time.time
    async with serving(tmp_path, "local", PY_EXEC_SESSION_TTL="1.2") as kit:
        session = await kit.init()
        for hours in (24, -24):
            monkeypatch.setattr(time, "time", lambda hours=hours: real() + 3600 * hours)
            assert (await session.run("import time\ntime.sleep(0.6)\n6 * 7")).output.startswith("42")
            assert session.session_id in (await kit.call("list_sessions")).text
        await anyio.sleep(2)
        assert "expired" in (await session.run("1")).text
