"""Journals while sessions run: nobody waits for another's, what is full is reported, branches share their parent's."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import anyio
import pytest

from kernel_server import app
from kernel_server.transcripts.folder import JournalFolder
from kernel_server.transcripts.journal import Bounds
from tests.driving import Handle, Kit, Reply, eventually, serving
from tests.sessions.test_branching import branches, close, notebook

pytestmark = pytest.mark.anyio

forks = pytest.mark.skipif(sys.version_info < (3, 11), reason="local kernels have ipykernel 6 here")
WAIT_SECONDS = 20.0
LARGE = "print('x' * 1_000_000)"


def journal_of(session: Handle) -> Path:
    return session.kit.state / "journals" / f"{session.session_id}.jsonl"


@contextmanager
def slow_disk(session: Handle) -> Iterator[int]:
    """The journal of a session takes no more than 64 KB until somebody reads from what is given: a fifo is in its place."""
    path = journal_of(session)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        yield reader
    finally:
        os.close(reader)
        path.unlink()


def drain(reader: int) -> bytes:
    """What is written until the line ends."""
    os.set_blocking(reader, True)
    parts = [os.read(reader, 1 << 16)]
    while not parts[-1].endswith(b"}\n"):
        parts.append(os.read(reader, 1 << 16))
    return b"".join(parts)


async def test_nobody_waits_for_the_journal_of_another_session(local_kit: Kit) -> None:
    """Ours: it was written in the event loop. The result still comes after its record."""
    replies: list[Reply] = []
    async with local_kit.session() as slow, local_kit.session() as other:
        await slow.run("1")
        with slow_disk(slow) as reader:
            async with anyio.create_task_group() as tasks:

                async def run() -> None:
                    replies.append(await slow.run(LARGE))

                tasks.start_soon(run)
                with anyio.fail_after(WAIT_SECONDS):
                    await eventually(lambda: _is_full(reader), WAIT_SECONDS)
                    for number in range(3):
                        assert await other.value(f"1 + {number}") == f"{1 + number}"
                    assert replies == [], "before it is recorded, there is no result"
                    written = await anyio.to_thread.run_sync(drain, reader)
            assert replies[0].status == "ok"
            assert b"x" * 1_000_000 in written


def _is_full(reader: int) -> bool:
    """Whether a large record is on its way: what a cell's beginning takes is less."""
    import fcntl
    import struct
    import termios

    waiting = fcntl.ioctl(reader, termios.FIONREAD, b"\0" * 4)
    return bool(struct.unpack("i", waiting)[0] > 60_000)


@pytest.fixture
async def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Kit]:
    """A server whose journals may have little."""
    bounds = Bounds(cell=30_000, journal=60_000, folder=120_000)
    monkeypatch.setattr(app, "JournalFolder", partial(JournalFolder, bounds=bounds, look_seconds=0))
    async with serving(tmp_path, "local", PY_EXEC_PRELOAD="none", PY_EXEC_POOL="0") as kit:
        yield kit


async def test_full_journal_is_reported_by_each_cell_that_it_costs_something(small: Kit) -> None:
    """Ours: sources stay, the notebook says where outputs are missing, and another session is none the worse."""
    session, other = await small.init(), await small.init()
    texts = [(await session.run(f"print({number}, 'x' * 20_000)")).text for number in range(4)]
    assert ["not recorded" in text for text in texts] == [False, False, True, True]
    assert "the session's journal has its 60 KB of outputs" in texts[3]
    too_large = await other.run("print('x' * 40_000)")
    assert "a cell's outputs may take 30 KB" in too_large.text
    assert "not recorded" not in (await other.run("print('x' * 20_000)")).text
    cells = await notebook(session, small)
    assert [source for _, source in cells] == [f"print({number}, 'x' * 20_000)" for number in range(4)]
    document = json.loads((small.output / "told.ipynb").read_text())
    assert "1 output of this cell is not recorded" in "".join(document["cells"][3]["outputs"][0]["text"])
    assert "not recorded" in (await session.call("read_output")).text


async def test_full_folder_is_reported_by_the_next_call(small: Kit) -> None:
    """Ours: ended sessions go, oldest first; those that there are stay."""
    first, second, third = [await small.init() for _ in range(3)]
    for session in (first, second, third):
        for _ in range(2):
            await session.run("print('x' * 20_000)")
        if session is not third:
            await session.call("close_session")
    assert not journal_of(first).exists()
    gone = await first.call("export_notebook")
    assert gone.is_error
    assert "all journals together may have 120 KB" in gone.text
    assert "oldest first" in (await first.call("read_output")).text
    listed = await small.call("list_sessions")
    assert "what ran in 1 ended session was removed" in listed.text
    assert listed.raw.structured_content is not None
    assert listed.raw.structured_content["notes"][0] in listed.text
    assert "was removed" not in (await small.call("list_sessions")).text, "told once"
    assert [len(await notebook(session, small)) for session in (second, third)] == [2, 2]


@forks
async def test_branches_share_what_their_parent_ran(local_kit: Kit) -> None:
    """Issue 7, notebooks; ours: nothing is copied, whatever its size. Also those of branches, after all others have ended."""
    parent, code = await local_kit.init(), "print('x' * 40_000); x = 1"
    await parent.run(code)
    (first,) = await branches(parent)
    await parent.run("'later'")
    await first.run("x += 1")
    (second,) = await branches(first)
    await second.run("x")
    assert journal_of(parent).stat().st_size > 40_000
    assert max(journal_of(one).stat().st_size for one in (first, second)) < 2_000
    await close(parent, first)
    told = [source for kind, source in await notebook(second, local_kit) if kind == "code"]
    assert told == [code, "x += 1", "x"]
    assert "x" * 40_000 in (local_kit.output / "told.ipynb").read_text()
    await close(second)
