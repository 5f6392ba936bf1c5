"""What session code finds in its own process: it is forked from one that serves all others, and has its memory."""

from __future__ import annotations

import ast
from collections.abc import AsyncIterator

import pytest

from kernel_server.hosts.controlled import find_session
from kernel_server.hosts.rundir import read_record
from tests.driving import Handle, Kit, in_own_task, serving

pytestmark = [pytest.mark.anyio, pytest.mark.docker]

SETTINGS = {"PY_EXEC_PRELOAD": "none", "PY_EXEC_POOL": "1", "PY_EXEC_ON_EXIT": "keep"}
# All memory that can be read, for what is asked for; in pieces, so that the needle is not where it is looked for.
LOOK = """
def in_memory(halves):
    found = set()
    with open('/proc/self/maps') as maps, open('/proc/self/mem', 'rb', 0) as memory:
        for line in maps:
            span, access, *_ = line.split()
            if access[0] != 'r' or '[v' in line: continue
            start, end = (int(one, 16) for one in span.split('-'))
            try:
                memory.seek(start)
                data = memory.read(end - start)
            except (OSError, ValueError, OverflowError):
                continue
            for number, (one, other) in enumerate(halves):
                at = data.find(one)
                while at >= 0:
                    if data[at + len(one):][:len(other)] == other: found.add(number)
                    at = data.find(one, at + 1)
    return sorted(found)
"""
STACK = """
def on_stack():
    import sys
    frame, found = sys._getframe(), set()
    while frame:
        found |= {type(value).__module__ for value in frame.f_locals.values()}
        frame = frame.f_back
    return sorted(module for module in found if module.startswith('kernel_host.'))
"""


@pytest.fixture(scope="module")
async def kit(docker_engine: None, anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Kit]:
    async with in_own_task(serving(tmp_path_factory.mktemp("secrets"), "docker", **SETTINGS)) as kit:
        yield kit


async def found_in(session: Handle, secrets: list[str]) -> list[int]:
    """Numbers of those that are in the session's memory; it is told them in halves."""
    halves = [(secret[: len(secret) // 2].encode(), secret[len(secret) // 2 :].encode()) for secret in secrets]
    return list(ast.literal_eval(await session.value(f"{LOOK}\nin_memory({halves!r})")))


async def test_ids_of_others_are_nowhere_in_memory(kit: Kit) -> None:
    """Findings 16 and R4: the ids of all sessions that were there before were on the stack, and in the heap."""
    others = []
    for _ in range(3):
        async with kit.session() as ended:
            await ended.run("1")
            others.append(ended.session_id)
    async with kit.session() as living, kit.session() as session:
        await living.call("checkpoint")
        await living.call("list_packages")
        await living.call("list_files")
        others.append(living.session_id)
        assert await found_in(session, others) == []
        assert await found_in(session, [session.session_id]) == [0], (
            "the control: its own is in the path of its workspace"
        )
        (branched,) = (await living.call("branch_session")).raw.meta["kernel_server/branches"]["session_ids"]  # type: ignore[index]
        async with kit.session() as later:
            assert await found_in(later, [*others, session.session_id, branched]) == []
        await kit.call("close_session", session_id=branched)


async def test_nothing_of_kernel_host_is_on_the_stack(kit: Kit) -> None:
    """Finding R4: `_getframe` led to the server's object, with all that it knows."""
    async with kit.session() as session:
        found = ast.literal_eval(await session.value(f"{STACK}\non_stack()"))
        assert "kernel_host.kernel" in found, "the control: what is on the stack can be seen"
        assert not {"kernel_host.server", "kernel_host.loop", "kernel_host.sessions", "kernel_host.connections"} & {
            *found
        }


async def test_configuration_of_kernel_host_is_not_in_its_environment(kit: Kit) -> None:
    """Finding 16: /proc/self/environ shows what a process was started with, whatever has been taken out since."""
    async with kit.session() as session:
        environment = await session.value("open('/proc/self/environ', 'rb').read()")
        assert b"PATH=" in ast.literal_eval(environment), "the control"
        assert b"run_dir" not in ast.literal_eval(environment)


async def test_ids_are_on_no_command_line(kit: Kit) -> None:
    """Finding R4: `uv --prefix /workspace/sessions/<id>` was in /proc/*/cmdline, which all can read."""
    watch = """
import glob, threading
seen, over = set(), threading.Event()
def watch():
    while not over.is_set():
        for path in glob.glob('/proc/[0-9]*/cmdline'):
            try: seen.add(open(path, 'rb').read())
            except OSError: pass
threading.Thread(target=watch).start()
"""
    async with kit.session() as watcher, kit.session() as other:
        await watcher.value(watch)
        reply = await other.call("install_packages", packages=["six"])
        assert not reply.is_error, reply.text
        await watcher.value("over.set()")
        seen = ast.literal_eval(await watcher.value("[line for line in seen if b'uv' in line or b'sessions' in line]"))
        assert any(b"--prefix" in line for line in seen), "the control: uv was seen"
        assert not [line for line in seen if other.session_id.encode() in line]


async def test_keys_and_token_are_nowhere_in_memory(kit: Kit) -> None:
    """Finding 16: the key of another kernel was found; the owner's token passed through the same memory (R13)."""
    async with kit.session() as other:
        await other.call("checkpoint")
        outer = find_session(other.session_id)
        assert outer is not None
        key = read_record(outer / f"session-{other.session_id}")["launched"]["connection"]["key"]
        token = read_record(outer / "host")["owner"]["token"]
        assert not (await other.call("rollback")).is_error
        later = read_record(outer / f"session-{other.session_id}")["launched"]["connection"]["key"]
        assert key != later
        async with kit.session() as session:
            assert await found_in(session, [key, later, token]) == []
        assert 1 in await found_in(other, [key, later]), "the control: its own is in its memory"
