"""Large pieces of work: one at a time, and everybody's turn comes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

import anyio
import pytest

from kernel_server.kernels.turns import Turns, turns

pytestmark = pytest.mark.anyio

SECONDS = 10.0


class Somebody:
    """Whose turn it may be."""


async def test_one_at_a_time_in_a_thread_and_all_results_arrive() -> None:
    """Ours: errors as well."""
    made, at_work, most = Turns(), 0, 0

    def work(number: int) -> int:
        nonlocal at_work, most
        assert threading.current_thread() is not threading.main_thread()
        at_work += 1
        most = max(most, at_work)
        at_work -= 1
        if number == 3:
            raise ValueError(number)
        return number

    found: list[int] = []

    async def ask(number: int) -> None:
        try:
            found.append(await made.run(Somebody(), partial(work, number)))
        except ValueError as error:
            found.append(-error.args[0])

    with anyio.fail_after(SECONDS):
        async with anyio.create_task_group() as tasks:
            for number in range(8):
                tasks.start_soon(ask, number)
    assert sorted(found) == [-3, 0, 1, 2, 4, 5, 6, 7]
    assert most == 1


async def test_next_is_the_one_whose_last_turn_is_longest_ago() -> None:
    """Ours: four channels of one that floods do not come before one that has something large now and then."""
    made, order = Turns(), list[str]()
    flooding, rare = Somebody(), Somebody()
    release = threading.Event()
    with anyio.fail_after(SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(made.run, flooding, partial(release.wait, SECONDS))
            await anyio.wait_all_tasks_blocked()
            for _ in range(3):
                tasks.start_soon(made.run, flooding, partial(order.append, "flooding"))
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(made.run, rare, partial(order.append, "rare"))
            await anyio.wait_all_tasks_blocked()
            release.set()
    assert order == ["rare", "flooding", "flooding", "flooding"]


async def test_cancelled_ones_keep_nobody_waiting() -> None:
    """Ours: neither one that waits, nor one whose work is under way, nor one whose turn has just come."""
    made, done = Turns(), list[str]()
    release = threading.Event()
    scopes = [anyio.CancelScope() for _ in range(2)]

    async def cancelled(scope: anyio.CancelScope, work: Callable[[], object]) -> None:
        with scope:
            await made.run(Somebody(), work)

    with anyio.fail_after(SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(cancelled, scopes[0], partial(release.wait, SECONDS))
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(cancelled, scopes[1], partial(done.append, "cancelled"))
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(made.run, Somebody(), partial(done.append, "done"))
            await anyio.wait_all_tasks_blocked()
            for scope in scopes:
                scope.cancel()
            release.set()
    assert done == ["done"]
    with anyio.fail_after(SECONDS):
        await made.run(Somebody(), partial(done.append, "again"))
    assert done == ["done", "again"]


async def test_turns_are_those_of_the_event_loop() -> None:
    """Ours: one for all kernels."""
    assert turns() is turns()
