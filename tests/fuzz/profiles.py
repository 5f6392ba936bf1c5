"""How long the fuzzers search; the deadline of an example is the check that nothing stalls."""

from __future__ import annotations

import os
from datetime import timedelta

from hypothesis import HealthCheck, settings

# With FUZZ_TIMES=20, twenty times as many examples, other ones each time.
TIMES = int(os.environ.get("FUZZ_TIMES", "1"))
DEADLINE = timedelta(seconds=5)  # well above a pause of a busy machine, well below what a client would notice
EXAMPLES = 100 * TIMES  # all of tests/fuzz takes less than a minute with these
SLOW_EXAMPLES = 30 * TIMES  # where each writes files

settings.register_profile(
    "ci",
    max_examples=EXAMPLES,
    deadline=DEADLINE,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
settings.register_profile("long", settings.get_profile("ci"), derandomize=False)


def load() -> None:
    """Takes effect for tests that are defined afterwards."""
    settings.load_profile("ci" if TIMES == 1 else "long")
