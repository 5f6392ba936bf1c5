"""`make races`: transfers while a planter swaps what is copied, at full speed; nothing may leak, change outside, or hang."""

from __future__ import annotations

import argparse
import os
import sys
import time

from tests.attacks.planting import PATTERNS
from tests.attacks.races import HANG_SECONDS, Found, control, race
from tests.attacks.transfers import OnHost, Transfers

SHOWN = 5  # of what is wrong


def is_good(found: Found) -> bool:
    """Whether all was copied or refused, and nothing leaked."""
    return not found.leaks and not found.errors and found.slowest < HANG_SECONDS and found.succeeded.total() > 0


def main(transfers: int) -> int:
    """Races of all patterns, and their control; returns the exit code."""
    each, good, begun = transfers // len(PATTERNS), True, time.monotonic()
    for kind, what in (
        (Transfers, "kernel_host, as the session"),
        (OnHost, "the server, in WORKDIR_IN and WORKDIR_OUT"),
    ):
        print(f"{what}\n{'':26}{'copied':>9}{'refused':>9}{'leaks':>7}{'other':>7}{'slowest':>10}")
        for pattern in PATTERNS:
            found = race(pattern, each, kind)
            good = good and is_good(found)
            counts = found.succeeded.total(), found.refused.total(), len(found.leaks), found.errors.total()
            print(f"{pattern:26}{counts[0]:9}{counts[1]:9}{counts[2]:7}{counts[3]:7}{found.slowest * 1000:7.0f} ms")
            for wrong in (*found.leaks, *found.errors)[:SHOWN]:
                print(f"    {wrong}")
    print("the control, which looks first and then opens: tries until its first faults")
    for pattern in PATTERNS:
        found = control(pattern, transfers)
        print(f"{pattern:26}{found.transfers + len(found.leaks):9}  {'; '.join(sorted(set(found.leaks))) or 'none'}")
    print(
        f"{'PASS' if good else 'FAIL'}: {each * len(PATTERNS)} transfers of each side, {time.monotonic() - begun:.0f} s"
    )
    return 0 if good else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.races", description=__doc__)
    parser.add_argument("--transfers", type=int, default=10_000, help="of each side, over all patterns")
    given = parser.parse_args()
    if os.getuid() != 0:
        sys.exit("Only root can become the user of a session; nothing was done.")
    sys.exit(main(given.transfers))
