"""What a session can do to the process that every session of the container hangs on, with the source at hand.

kernel_host is asked for checkpoints through code of the session, forks kernels, and removes what sessions leave. Nothing of
that may end it, hold it up, or tell a session what is another's. Each attack has a control that shows that it is one.
"""

from __future__ import annotations

import ast
from collections.abc import AsyncIterator

import pytest

from tests.driving import (
    Handle,
    Kit,
    docker_client,
    eventually,
    in_own_task,
    serving,
    stopwatch,
)

pytestmark = [pytest.mark.anyio, pytest.mark.docker]

ANSWER_SECONDS = 2.0  # issue 14: whatever a session does, others are answered within
SETTINGS = {"PY_EXEC_SESSION_MAX": "6", "PY_EXEC_POOL": "0", "PY_EXEC_PRELOAD": "none"}

# The kernel's line to kernel_host: the only pair of sockets that a new session has.
LINES = """
import ctypes, json, os, resource, signal, socket, stat, subprocess, sys, time
def lines():
    found = []
    for name in os.listdir('/proc/self/fd'):
        try:
            one = socket.socket(fileno=os.dup(int(name)))
        except OSError:
            continue
        if one.family == socket.AF_UNIX and one.type == socket.SOCK_SEQPACKET:
            found.append(one)
    return found
"""
# A file in many pieces that only the returned descriptor holds: Linux frees it when that is closed, which takes seconds.
PIECES = """
def pieces(count):
    held = os.open('big', os.O_RDWR | os.O_CREAT)
    os.unlink('big')
    for at in range(count):
        os.pwrite(held, b'x', at * 8192)
    return held
"""


@pytest.fixture(scope="module")
async def kit(docker_engine: None, anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Kit]:
    async with in_own_task(serving(tmp_path_factory.mktemp("kernel_host"), "docker", **SETTINGS)) as kit:
        yield kit


@pytest.fixture
async def attacker(kit: Kit) -> AsyncIterator[Handle]:
    async with kit.session() as session:
        await session.value(f"{LINES}{PIECES}")
        yield session


async def assert_served(kit: Kit) -> None:
    """Sessions begin and end, and files are listed, within the time that is promised."""
    with stopwatch() as elapsed:
        async with kit.session() as other:
            assert not (await other.call("list_files")).is_error
            assert await other.value("1 + 1") == "2"
    assert elapsed() < 3 * ANSWER_SECONDS


# -- what it is sent ---------------------------------------------------------------------------------------------------


async def test_no_descriptor_reaches_kernel_host(attacker: Handle) -> None:
    """Finding 6: it waited in close(2) for what a session had sent. The control: a pair of the session's own takes it."""
    sent = await attacker.value(
        "def send(one):\n"
        "    try:\n        socket.send_fds(one, [b'x'], [pieces(10)])\n        return 'sent'\n"
        "    except OSError as error:\n        return type(error).__name__\n"
        "own = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        "[send(one) for one in lines() if one.getpeername() == '' and one.fileno() not in map(socket.socket.fileno, own)][:1], "
        "send(own[0])"
    )
    assert ast.literal_eval(sent) == (["BrokenPipeError"], "sent")


async def test_end_of_a_session_with_a_file_in_pieces_holds_nobody_up(kit: Kit, attacker: Handle) -> None:
    """Finding 6: 100 000 pieces took kernel_host 7 s; the process that held them takes as long, and waits by itself."""
    await attacker.value("held = pieces(100_000);")
    with stopwatch() as elapsed:
        assert not (await attacker.call("run_code", code="os.kill(os.getpid(), 9)", wait=0.1)).is_error
        await assert_served(kit)
    assert elapsed() < 3 * ANSWER_SECONDS


async def hostile(session: Handle, code: str) -> None:
    """Has the session's process, and what is forked from it, answer kernel_host as `code` says."""
    await session.value(
        "import sys\nbranching = sys.modules['kernel_host.branching']\n"
        f"write_line = branching.write_line\n{code}\nbranching.write_line = answer\n"
    )


LARGE_ANSWER = """
def answer(descriptor, message):
    if 'result' in message and 'files' in message['result']:
        texts = ['\\U0001f600' * 2000] * 60
        message['result']['files'] = {'changed': texts, 'removed': texts, 'created': texts, 'count': 180}
        message['result']['lost'] = texts
        os.write(descriptor, json.dumps(message, ensure_ascii=False).encode() + b'\\n')
        return
    write_line(descriptor, message)
"""
# A line that does not end, and then the end of the process: 2 MB are more than anybody reports.
ENDLESS_LINE = """
def answer(descriptor, message):
    if 'result' in message:
        os.set_blocking(descriptor, True)
        for _ in range(40): os.write(descriptor, b'x' * 65536)
        os._exit(0)
    write_line(descriptor, message)
"""
EMPTY_ANSWERS = """
def answer(descriptor, message):
    os.write(descriptor, b'')
    write_line(descriptor, message)
"""
STRANGE_ANSWERS = {
    "no object": "b'[]\\n'",
    "nested": "b'[' * 50_000 + b'\\n'",
    "no text": "b'\\xff\\n'",
    "lists in place of numbers": "json.dumps({'result': {'files': [[]], 'lost': {'a': 1}}}).encode() + b'\\n'",
    "many objects": "b'{}\\n' * 20_000",
    "surrogates": 'b\'{"error": {"message": "\\\\ud800"}}\\n\'',
    "nothing": "b'\\n'",
}


async def test_largest_answer_of_a_rollback_is_one(kit: Kit, attacker: Handle) -> None:
    """Finding 1: four lists of 60 texts of 2 000 characters, 12 bytes each, ended all sessions of the container."""
    await hostile(attacker, LARGE_ANSWER)
    assert not (await attacker.call("checkpoint")).is_error
    async with kit.session() as other:
        await other.run("kept = 1")
        reply = await attacker.call("rollback")
        assert not reply.is_error, reply.text
        assert await other.value("kept") == "1"


async def test_end_within_a_line_goes_not_unnoticed(kit: Kit, attacker: Handle) -> None:
    """Finding R2: the request was never answered, and the session's UID was lost."""
    await hostile(attacker, ENDLESS_LINE)
    assert not (await attacker.call("checkpoint")).is_error
    for _ in range(3):
        assert (await attacker.call("rollback")).is_error
    await assert_served(kit)


@pytest.mark.parametrize("answer", STRANGE_ANSWERS.values(), ids=STRANGE_ANSWERS.keys())
async def test_strange_answer_is_the_end_of_its_request_alone(kit: Kit, attacker: Handle, answer: str) -> None:
    """Finding 1, R2, and their siblings."""
    await hostile(
        attacker,
        f"def answer(descriptor, message):\n    if 'begun' in message: return write_line(descriptor, message)\n"
        f"    if 'result' in message: os.write(descriptor, {answer})\n    else: write_line(descriptor, message)\n",
    )
    assert not (await attacker.call("checkpoint")).is_error
    async with kit.session() as other:
        await other.run("kept = 1")
        await attacker.call("rollback")
        assert await other.value("kept") == "1"
    await assert_served(kit)


async def test_checkpoints_leave_no_descriptors_in_kernel_host(kit: Kit, attacker: Handle) -> None:
    """Finding 8: eight for each answer to `checkpoint` that had no content, until the container ended."""
    host = int(await attacker.value("os.getppid()"))
    container = ast.literal_eval(await attacker.value("socket.gethostname()"))  # the beginning of its id

    def opened() -> int:
        with docker_client() as client:
            done = client.exec_create(container, ["ls", f"/proc/{host}/fd"])
            return len(client.exec_start(done).split())

    before = opened()
    assert before > 5, "the control: they can be seen"
    await hostile(attacker, EMPTY_ANSWERS)
    for _ in range(10):
        assert not (await attacker.call("checkpoint")).is_error
        assert not (await attacker.call("rollback")).is_error
    await attacker.call("close_session")
    await eventually(lambda: opened() < before)
