"""How kernels share the event loop, by a clock that goes on when it is told to."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest

from kernel_server.kernels.shares import MAX_REST_SECONDS, RESTS, WORK_SECONDS, Pace, Share, Shares


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Flood:
    """A channel that has always more to read: what it got of the loop's time."""

    share: Share
    step: float
    until: float = 0.0
    resting: bool = False
    worked: float = 0.0
    due: float = 0.0

    def work(self, clock: Clock) -> None:
        if self.resting:
            self.share.end_rest()
        clock.now += self.step
        self.worked += self.step
        self.due += self.step
        self.resting = self.due > WORK_SECONDS
        if self.resting:
            self.until = clock.now + self.share.begin_rest(self.due)
            self.due = 0.0


def channel(shares: Shares, kernel: object) -> Share:
    share = Share(shares)
    share.kernel = kernel
    return share


def flooded(steps: dict[str, list[float]], seconds: float = 60.0) -> dict[str, list[float]]:
    """The part of the time that each channel gets of a loop that does nothing else.

    Args:
        steps: how long each piece of work on a channel takes, for all channels of each kernel.
    """
    clock = Clock()
    shares = Shares(clock)
    floods = {kernel: [Flood(channel(shares, kernel), step) for step in given] for kernel, given in steps.items()}
    everybody = list(itertools.chain(*floods.values()))
    end = clock.now + seconds
    while clock.now < end:
        clock.now = max(clock.now, min(flood.until for flood in everybody))
        for flood in everybody:
            if flood.until <= clock.now:
                flood.work(clock)
    return {kernel: [flood.worked / seconds for flood in given] for kernel, given in floods.items()}


def test_one_flood_gets_a_third_of_the_time() -> None:
    """Ours: others get RESTS times as much."""
    assert flooded({"a": [0.0004]})["a"][0] == pytest.approx(1 / (1 + RESTS), rel=0.05)


@pytest.mark.parametrize("kernels", [2, 4, 8, 32])
def test_many_floods_get_no_more_than_half_of_the_time_together(kernels: int) -> None:
    """Ours: each had a third for itself, so that three left nothing to others."""
    got = flooded({str(number): [0.0004] for number in range(kernels)})
    assert 0.3 < sum(part for (part,) in got.values()) < 1 / RESTS + 0.05


def test_floods_of_all_channels_get_no_more_than_one() -> None:
    """Ours: a kernel has four."""
    got = flooded({"one": [0.0004], "four": [0.0004] * 4, "other": [0.0004]}, 120)
    assert sum(got["four"]) < 1.5 * got["one"][0]
    assert got["one"][0] == pytest.approx(got["other"][0], rel=0.2)


def test_flood_of_costly_steps_gets_no_more_than_one_of_cheap_ones() -> None:
    """Ours: but for what is beyond the longest rest."""
    got = flooded({"cheap": [0.0004], "costly": [0.04]})
    assert got["costly"][0] == pytest.approx(got["cheap"][0], rel=0.3)


def test_rest_is_bounded_for_one_alone_and_grows_with_the_others() -> None:
    """Ours: what others add to it is counted as held."""
    clock = Clock()
    shares = Shares(clock)
    first, second = channel(shares, "a"), channel(shares, "b")
    assert first.begin_rest(60) == MAX_REST_SECONDS
    assert first.held == 0
    assert second.begin_rest(0.01) == pytest.approx(2 * RESTS * 0.01)
    assert second.held == pytest.approx(RESTS * 0.01)
    first.end_rest()
    second.end_rest()
    assert not shares.resting
    assert second.begin_rest(0.01) == pytest.approx(RESTS * 0.01)


def test_waiting_is_held_also_while_it_lasts() -> None:
    """Ours: a cell must not be taken for over because what it put out is not read yet."""
    clock = Clock()
    share = Share(Shares(clock))
    with share.waiting():
        clock.now += 3
        assert share.held == 3
    clock.now += 3
    assert share.held == 3


def test_what_others_had_meanwhile_counts_as_rest() -> None:
    """Ours: ordinary connections never rest."""
    clock = Clock()
    pace = Pace(clock)
    for _ in range(100):
        pace.begin()
        clock.now += WORK_SECONDS / 2
        pace.end()
        assert pace.worked <= WORK_SECONDS
        clock.now += WORK_SECONDS * RESTS / 2
