"""Lines of kernel_host's control protocol: a bad one is the end of the request that it answers, and of no more."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kernel_server.errors import KernelServerError
from kernel_server.hosts.control import Control, ControlFailed, ControlRefused
from kernel_server.hosts.controlled import ControlledHost
from tests.fuzz.hostile import json_values, mostly, nested, numbers, packed, record, texts

SECONDS = 2.0
FILE = record(path=texts, size=numbers, modified=numbers)
DEATH = record(
    event=st.just("death"),
    session=texts,
    pid=numbers,
    exit_code=numbers,
    signal=numbers,
    oom_kills=numbers,
    exceeded=record(what=texts, used=numbers, limit=numbers, unit=texts),
)
results = record(
    pid=numbers,
    ip=texts,
    memory=numbers,
    cpu_seconds=numbers,
    processes=numbers,
    oom_kills=numbers,
    sessions=st.lists(record(session=texts, pid=numbers, death=DEATH), max_size=3),
    kind=texts,
    size=numbers,
    files=st.lists(FILE, max_size=3) | numbers,
    more=numbers,
    created=st.booleans(),
    packages=st.lists(st.tuples(texts, texts) | texts, max_size=3),
    path=texts,
    uid=numbers,
    skipped=st.lists(texts, max_size=3),
    skipped_count=numbers,
    limit=numbers,
    used=numbers,
    available=numbers,
    total=numbers,
)
answers = record(
    id=st.sampled_from([1, 1, 1, 0, 2, True]),
    result=results,
    error=record(code=st.sampled_from(["refused", "x"]), message=texts),
)
lines = st.one_of(
    st.one_of(answers, DEATH, json_values).map(packed),
    st.sampled_from(
        [b"", b"{", b"[" * 50_000, b"NaN", b"1" * 5000, b"\xff", b"x" * 100_000, b'{"id": 1, "error": {}}']
    ),
    st.binary(max_size=20),
)


class Wire:
    """A connection on which `sent` comes first; then an answer to each request, or its end without one."""

    def __init__(self, sent: list[bytes], answer: Any = None) -> None:
        self.reader = asyncio.StreamReader(limit=1 << 16)
        self._sent, self._answer = sent, answer
        writer = SimpleNamespace(write=self._write, drain=self._drain)
        self.control = Control(self.reader, writer, {"sessions_dir": "/x"})  # type: ignore[arg-type]  # these two are all that is used

    def _write(self, request: bytes) -> None:
        told, self._sent = self._sent, []
        if self._answer is not None:
            told.append(packed({"id": json.loads(request)["id"], "result": self._answer}))
        self.reader.feed_data(b"".join(line + b"\n" for line in told))
        if self._answer is None:
            self.reader.feed_eof()

    async def _drain(self) -> None:
        return


def driven(wire: Callable[[], Wire], use: Callable[[Control], Coroutine[Any, Any, None]]) -> None:
    """Runs `use` while the connection is read."""

    async def drive() -> None:
        with anyio.fail_after(SECONDS):
            control = wire().control
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(control.read)
                await use(control)
                tasks.cancel_scope.cancel()
            control.close()

    anyio.run(drive)


@given(st.lists(lines, max_size=5))
@example([json.dumps({"id": 1, "result": nested(900)}).encode()])
@example([b'{"id": 1}'])
@example([b"[]"])
def test_any_line_is_an_answer_or_passed_over(sent: list[bytes]) -> None:
    """control.py: bounded, and a bad line ends no more than the request that it answers; whoever waits is told."""

    async def ask(control: Control) -> None:
        with suppress(ControlRefused, ControlFailed, KernelServerError):
            assert isinstance(await control.request("ping"), dict)

    driven(lambda: Wire(sent), ask)


async def _take(host: ControlledHost) -> None:
    async with host.take("s", "x", 1):
        pass


async def _deaths(host: ControlledHost) -> None:
    await host.answers()
    host._control._reader.feed_eof()
    async for _ in host.deaths():
        pass


CALLS: dict[str, Callable[[ControlledHost], Coroutine[Any, Any, Any]]] = {
    "spawn": lambda host: host.spawn("s"),
    "kernels": lambda host: host.kernels(),
    "usage": lambda host: host.usage("s"),
    "answers": lambda host: host.answers(),
    "memory": lambda host: host.is_short_of_memory(),
    "describe": lambda host: host.describe("s", "x"),
    "list_files": lambda host: host.list_files("s", "x"),
    "packages": lambda host: host.packages("s"),
    "put": lambda host: host.put("s", "x", lambda _: iter(()), "x"),
    "take": _take,
    "deaths": _deaths,
}


@given(st.sampled_from(sorted(CALLS)), mostly(results), st.lists(mostly(DEATH), max_size=2))
def test_any_answer_is_a_value_or_a_typed_error(call: str, result: Any, deaths: list[Any]) -> None:
    """Ours: an answer of another form is told as a lost host, never as an error that nobody foresaw."""

    async def ask(control: Control) -> None:
        archive = SimpleNamespace(put=lambda folder, tar: None, get=lambda path: iter(()))
        with TemporaryDirectory() as outer, suppress(KernelServerError):
            folder = SimpleNamespace(path=Path(outer), outer=Path(outer))
            await CALLS[call](ControlledHost(control, folder, archive, None))  # type: ignore[arg-type]  # the rest is not used

    events = [packed(death) for death in deaths]
    driven(lambda: Wire(events, {} if result is None else result), ask)


def test_reader_without_checks_fails_on_the_same_lines() -> None:
    """The control: what a route that trusts its peer does."""
    with pytest.raises(AttributeError):
        json.loads(b"[]").get("id")
    with pytest.raises(RecursionError):
        json.loads(b"[" * 50_000)
