"""Sessions that lie to kernel_host about checkpoints and branches: it must stay, and so must all other sessions."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.driving import Handle, Kit

pytestmark = [pytest.mark.anyio, pytest.mark.docker]

# What the kernel sends in place of what it should, in place of the fork (`_checkpoint`), or as a branch (`_revive`).
LIES = {
    "no JSON": b"\xff{",
    "no object": b"[1, 2]\n",
    "empty object": b"{}\n",
    "reasons that are a number": b'{"refused": 5}\n',
    "reasons of all kinds": b'{"refused": [1, null, {}, "\\u001b[31m", "x"]}\n',
    "ready without a fork": b'{"forked": []}\n{"ready": {}}\n',
    "deep": b'{"ready": ' + b"[" * 5_000 + b"]" * 5_000 + b"}\n",
    "numbers": b'{"ready": {"files": 1e999, "bytes_copied": -1}}\n',
    "long": b'{"refused": ["' + b"x" * 50_000 + b'"]}\n',
}
FIND = "import sys, os\nbranching = next(m for n, m in sys.modules.items() if n.endswith('kernel_host.branching'))\n"
LIE = """
def lie(app, member, asked):
    line = branching.Line.of(asked.descriptors[0])
    for part in {parts!r}:
        line.socket.send(part)
branching._checkpoint = lie
"""
ITSELF = """
def lie(app, member, asked):
    line = branching.Line.of(asked.descriptors[0])
    line.send({"forked": []}), line.send({"ready": {"files": 1, "bytes_copied": 1}})
    kept.append(line)
kept = []
branching._checkpoint = lie
"""
FALSE_BRANCH = """
def lie(member, message):
    line = branching.Line.of(received[0])
    for part in {parts!r}:
        line.socket.send(part)
    os._exit(0)
begin = branching._begin
received = []
def note(answer, message):
    received.append(os.dup(message.descriptors[-1]))
    begin(answer, message)
branching._begin, branching._move = note, lie
"""


@pytest.fixture
async def other(docker_kit: Kit) -> AsyncIterator[Handle]:
    """A session that has nothing to do with it."""
    async with docker_kit.session() as handle:
        await handle.run("kept = 5")
        yield handle
        assert await handle.value("kept") == "5"
        assert not (await handle.call("checkpoint")).is_error, "kernel_host still does what it is for"


@pytest.mark.parametrize("lie", list(LIES))
async def test_lies_about_a_checkpoint(docker_session: Handle, other: Handle, lie: str) -> None:
    """Issue 6, every byte from a session is hostile: in answers of kernels and their forks."""
    parts = [part + b"\n" for part in LIES[lie].split(b"\n") if part]
    await docker_session.run(FIND + LIE.format(parts=parts))
    answer = await docker_session.call("checkpoint")
    assert answer.is_error, answer.text
    assert "\x1b" not in answer.text
    assert len(answer.text) < 5_000


async def test_kernel_that_says_it_is_its_own_fork(docker_session: Handle, other: Handle) -> None:
    """Ours: else its end would be taken for that of a checkpoint, and its number for that of a kernel that lives."""
    await docker_session.run(FIND + ITSELF)
    assert (await docker_session.call("checkpoint")).is_error
    died = await docker_session.run("import os\nos._exit(3)")
    assert died.status == "died"
    assert (await docker_session.run("1")).text == "1"


@pytest.mark.parametrize("lie", list(LIES))
async def test_lies_of_a_branch(docker_session: Handle, other: Handle, lie: str) -> None:
    """Issue 6: what the fork of a checkpoint reports, which a session can have changed before."""
    parts = [part + b"\n" for part in LIES[lie].replace(b"ready", b"result").split(b"\n") if part]
    await docker_session.run(FIND + FALSE_BRANCH.format(parts=parts))
    answer = await docker_session.call("branch_session")
    assert answer.is_error, answer.text
    assert len(answer.text) < 5_000
