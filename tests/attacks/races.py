"""Transfers, while a planter with the session's user id swaps what they ask for.

Needs root, to become that user. The control is an implementation that looks first and then opens, as root: what it does
wrong shows that the planter is fast enough to show anything.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event

from tests.attacks.arena import SESSION_UID, Arena, arena
from tests.attacks.planting import Planter
from tests.attacks.transfers import REFUSALS, Naive, OnHost, Transfers

HANG_SECONDS = 10.0  # facts/security.md section 5, T2
CONTROL_HANG_SECONDS = 0.2
ENOUGH = 3  # hits of the control in a pattern

_spawning = get_context("spawn")  # of a process with threads, as pytest's is, no copy should be made


class Hang(BaseException):
    """A call took too long."""


@dataclass
class Found:
    """What came of the transfers of one pattern.

    Attributes:
        succeeded, refused: how many, by the kind of transfer.
        leaks: what came out, or went in, that must not have, in words.
        errors: what was neither a success nor a refusal.
        slowest: seconds of the longest call.
    """

    succeeded: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    leaks: list[str] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0

    @property
    def transfers(self) -> int:
        return self.succeeded.total() + self.refused.total() + self.errors.total()


def _plant(place: Arena, pattern: str, begun: Event) -> None:
    os.setgroups([])
    os.setresgid(SESSION_UID, SESSION_UID, SESSION_UID)
    os.setresuid(SESSION_UID, SESSION_UID, 0)  # see planting
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    begun.set()
    Planter(str(place.session), str(place.victim)).run(pattern)


def _work(
    kind: type[Transfers | OnHost | Naive], place: Arena, pattern: str, count: int, patience: float, answer: Connection
) -> None:
    def on_alarm(*_: object) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, on_alarm)
    transfers, found = kind(place, pattern), Found()
    transfers.begin()
    for number in range(count):
        _one(transfers.kinds[number % len(transfers.kinds)], patience, found)
        if kind is Naive and len(found.leaks) >= ENOUGH:
            break
    answer.send(found)


def _one(transfer: Callable[[], None], patience: float, found: Found) -> None:
    name, begun = transfer.__name__, time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, patience)
    try:
        transfer()
        found.succeeded[name] += 1
    except REFUSALS:
        found.refused[name] += 1
    except (AssertionError, Hang) as error:
        found.leaks.append(f"{name}: {str(error) or 'it hung'}")
    except Exception as error:  # whatever it is, a model would have got it instead of a reason
        found.errors[f"{name}: {error!r}"] += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    found.slowest = max(found.slowest, time.monotonic() - begun)


def _race(kind: type[Transfers | OnHost | Naive], place: Arena, pattern: str, count: int, patience: float) -> Found:
    begun, (ours, theirs) = _spawning.Event(), _spawning.Pipe(duplex=False)
    planter = _spawning.Process(target=_plant, args=(place, pattern, begun), daemon=True)
    worker = _spawning.Process(target=_work, args=(kind, place, pattern, count, patience, theirs), daemon=True)
    planter.start()
    try:
        assert begun.wait(30), "the planter did not start"
        worker.start()
        theirs.close()  # so that the end of the worker is seen
        found: Found = ours.recv()
        assert planter.is_alive(), "the planter has ended"
        return found
    finally:
        for process in (planter, worker):
            if process.pid:
                process.kill()
                process.join()


def race(pattern: str, count: int, kind: type[Transfers | OnHost] = Transfers) -> Found:
    """So many transfers; what changed outside is among the leaks."""
    with arena() as place:
        before = place.outside()
        found = _race(kind, place, pattern, count, HANG_SECONDS)
        after = place.outside()
        changed = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
        found.leaks += [f"changed outside: {path}" for path in changed] + place.foreign()
    return found


def control(pattern: str, count: int) -> Found:
    """At most so many by the naive one; it stops when it has done enough that is wrong."""
    with arena() as place:
        return _race(Naive, place, pattern, count, CONTROL_HANG_SECONDS)
