"""Standard output and error: everything in order, with its cell, whoever wrote it."""

from __future__ import annotations

import pytest

from tests.driving import Handle

pytestmark = pytest.mark.anyio


async def test_both_streams_come_in_order(session: Handle) -> None:
    """Issue 3: text in order. ipykernel sends what it has of one, then what it has of the other."""
    code = "import sys\nprint('first')\nprint('second', file=sys.stderr)\nprint('third')\n'value'"
    assert await session.value(code) == "first\nsecond\nthird\n'value'"


async def test_nothing_is_lost_when_streams_alternate_for_long(session: Handle) -> None:
    """Ours: after a number of turns order is not worth a message for each of them."""
    text = await session.value("import sys\nfor n in range(2000): print(n, file=sys.stderr if n % 2 else sys.stdout)")
    numbers = [int(line) for line in text.splitlines() if line.isdecimal()]
    assert sorted(numbers) == list(range(2000))
    assert numbers[:900] == list(range(900))


async def test_bytes_can_be_written(session: Handle) -> None:
    """Ours: programs for a terminal do so."""
    assert (
        await session.value("import sys\nsys.stdout.buffer.write('naïve\\n'.encode()); print('after')")
        == "naïve\nafter"
    )


# ipykernel does not read the descriptors where it sees pytest's environment, as with the local engine.
@pytest.mark.docker
async def test_output_of_programs_comes_before_the_value(docker_session: Handle) -> None:
    """Ours: with ipykernel it comes when a thread has read it, often with a later cell."""
    for _ in range(10):
        assert await docker_session.value("import os\nos.write(1, b'written\\n')\n'value'") == "written\n'value'"
        assert await docker_session.value("os.system('echo said');") == "said"
        assert await docker_session.value("None") == "(no output)"


@pytest.mark.docker
async def test_letters_of_programs_are_whole(docker_session: Handle) -> None:
    """Ours: what is read from a pipe may end in the middle of a letter."""
    code = "import os\nfor byte in 'é☃\\n'.encode() * 100: os.write(1, bytes([byte])) and None"
    assert (await docker_session.value(code)).splitlines()[:100] == ["é☃"] * 100


@pytest.mark.docker
async def test_children_leave_the_pipe_to_the_session(docker_session: Handle) -> None:
    """Ours: a forked process has the same stream objects."""
    code = (
        "import os, sys\n"
        "def work():\n"
        "    os.write(1, b'of a child\\n')\n"
        "    sys.stdout.flush()\n"
        "    os._exit(0)\n"
        "for _ in range(20):\n"
        "    pid = os.fork()\n"
        "    if not pid: work()\n"
        "    os.waitpid(pid, 0) and None\n"
    )
    assert (await docker_session.value(code)).splitlines()[:20] == ["of a child"] * 20
