"""Objects that kernels share: their reference counts are not written, so that their pages stay shared."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# In a process of its own: it is for ever.
COUNTS = """
import ctypes, sys
from kernel_host.immortal import immortalize

def count(item):
    return ctypes.c_uint32.from_address(id(item)).value

class Thing:
    pass

shared, text, thing = ["a", {"b": ("c",)}], "".join(["te", "xt"]), Thing()
thing.text = text
for _ in immortalize():
    pass
immortal = count(None)
lasting = [shared, shared[1], text, thing, Thing, count, count.__code__, *count.__code__.co_names]
assert all(count(item) == immortal for item in lasting), [count(item) for item in lasting]
copies = [lasting] * 1000 + [shared] * 1000
assert count(shared) == immortal, "it is written again"
del copies
later = ["made afterwards"]
assert count(later) < 10, "what comes later is as ever"
import gc, json, weakref
gc.collect()
made = weakref.ref(Thing())
assert made() is None, "what comes later ends as ever"
assert json.loads('{"a": [1, 2]}') == {"a": [1, 2]}
"""


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Python has immortal objects since 3.12")
def test_what_there_is_becomes_immortal_and_what_comes_later_does_not() -> None:
    """Issue 4, memory: PEP 683. Half of a kernel's private memory was copies of pages with reference counts."""
    path = str(ROOT / "container")
    done = subprocess.run(
        [sys.executable, "-c", COUNTS], env={"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="about Python without immortal objects")
def test_older_python_is_left_alone() -> None:
    """Ours: until 3.11, a count is a count."""
    from kernel_host.immortal import immortalize

    assert list(immortalize()) == []
