"""`make fuzz`: the properties of tests/fuzz for as long as you like, guided by coverage where atheris is installed.

atheris is no requirement of the project: `.venv/bin/pip install atheris` where there is one for your Python. Without it
the properties are given random bytes. The tools need a server, and stay with pytest: `FUZZ_TIMES=20 pytest tests/fuzz/test_tools.py`.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import logging
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from tests.fuzz.profiles import DEADLINE, load

TARGETS = {
    "bytes": "test_zmtp.test_any_bytes_are_read_or_refused",
    "frames": "test_frames.test_after_any_frames_a_reply_still_arrives",
    "content": "test_outputs.test_whatever_a_cell_puts_out_makes_a_result_within_its_budget",
    "bundles": "test_bundles.test_picture_that_is_sent_is_sound_and_small",
    "pictures": "test_bundles.test_any_bytes_are_a_sound_picture_or_none",
    "active": "test_bundles.test_active_content_is_not_in_the_text",
    "notebooks": "test_notebooks.test_notebook_of_any_outputs_is_valid_and_not_trusted",
    "changes": "test_replies.test_changes_are_of_their_form_or_not_there",
    "looks": "test_replies.test_look_is_shown_or_an_error",
    "last cells": "test_replies.test_last_cell_can_be_gone_on_with",
    "previews": "test_replies.test_preview_names_only_pictures_of_the_workspace",
    "control lines": "test_control.test_any_line_is_an_answer_or_ends_the_connection",
    "control answers": "test_control.test_any_answer_is_a_value_or_a_typed_error",
    "tars to disk": "test_tars.test_any_stream_arrives_whole_or_not_at_all",
    "tars to memory": "test_tars.test_any_stream_is_the_file_that_was_announced_or_an_error",
    "local paths": "test_paths.test_local_path_is_beneath_its_folder_or_refused",
    "container paths": "test_paths.test_container_path_is_in_the_workspace_or_shared_or_refused",
}
MAX_INPUT = 8192  # bytes, of which hypothesis makes an example
REPORT_SECONDS = 0.5
GRACE_SECONDS = 60.0  # to start and to end
HAS_ATHERIS = importlib.util.find_spec("atheris") is not None


class Record:
    """What a target did so far, in a file: libFuzzer ends the process without a word to Python."""

    def __init__(self, path: Path, run: Callable[[bytes], object]) -> None:
        self._path, self._run = path, run
        self.executions, self.slowest, self.failure = 0, 0.0, ""
        self._written = 0.0

    def __call__(self, data: bytes) -> None:
        begun = time.monotonic()
        try:
            self._run(data)
        except Exception as error:
            self.failure = f"{type(error).__name__}: {error}"[:300]
            raise
        finally:
            now = time.monotonic()
            self.executions += 1
            self.slowest = max(self.slowest, now - begun)
            if self.failure or now - self._written > REPORT_SECONDS:
                self._written = now
                found = {"executions": self.executions, "slowest": self.slowest, "failure": self.failure}
                self._path.write_text(json.dumps(found))


def fuzz(target: str, seconds: float, path: Path) -> None:
    """Runs one target in this process, until its time is over or it fails."""
    logging.disable()
    load()
    atheris: Any = importlib.import_module("atheris") if HAS_ATHERIS else None
    with atheris.instrument_imports(include=["kernel_server"]) if atheris else nullcontext():
        module, _, name = TARGETS[target].partition(".")
        test = getattr(importlib.import_module(f"tests.fuzz.{module}"), name)
    record = Record(path, test.hypothesis.fuzz_one_input)
    if atheris:
        options = [f"-max_total_time={seconds:.0f}", f"-max_len={MAX_INPUT}", "-len_control=20", "-verbosity=0"]
        atheris.Setup([sys.argv[0], *options, f"-timeout={DEADLINE.total_seconds():.0f}"], record)
        atheris.Fuzz()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        record(os.urandom(secrets.randbelow(MAX_INPUT)))


def main() -> int:
    """Runs the targets one after the other, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="in all")
    parser.add_argument("--target", choices=TARGETS, action="append", help="only these")
    parser.add_argument("--record", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    wanted = given.target or list(TARGETS)
    share = given.seconds / len(wanted)
    if given.record:
        fuzz(wanted[0], given.seconds, given.record)
        return 0
    print(
        "guided by coverage (atheris)"
        if HAS_ATHERIS
        else "NOT guided by coverage: atheris is not installed; random bytes"
    )
    failed = [target for target in wanted if not run(target, share)]
    print(f"failed: {', '.join(failed)}" if failed else "no exception, no stall")
    return 1 if failed else 0


def run(target: str, seconds: float) -> bool:
    """Runs a target in a child and tells what it did; False if it failed, stalled or died."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "record")
        command = [sys.executable, "-m", "benchmarks.fuzz", "--record", str(path), "--target", target]
        child = subprocess.run(
            [*command, "--seconds", f"{seconds}"],
            cwd=Path(__file__).parent.parent,
            env={**os.environ, "TMPDIR": folder},
            capture_output=True,
            timeout=seconds + GRACE_SECONDS,
        )
        nothing: dict[str, Any] = {"executions": 0, "slowest": 0.0, "failure": ""}
        found = json.loads(path.read_text()) if path.exists() else nothing
    ended = found["failure"] or ("" if child.returncode == 0 and found["executions"] else child.stderr.decode()[-2000:])
    stalled = found["slowest"] > DEADLINE.total_seconds()
    verdict = ended or ("STALL" if stalled else "ok")
    print(
        f"{target:16} {found['executions']:9} executions in {seconds:4.0f} s, slowest {found['slowest']:.3f} s  {verdict}",
        flush=True,
    )
    return verdict == "ok"


if __name__ == "__main__":
    sys.exit(main())
