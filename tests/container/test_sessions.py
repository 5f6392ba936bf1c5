"""The folders of sessions, as they come and go."""

from __future__ import annotations

import os
from pathlib import Path

from kernel_host.config import Config
from kernel_host.naming import WAITS
from kernel_host.sessions import Sessions

BRANCHES = 4


def test_folders_for_branches_do_not_pile_up(tmp_path: Path) -> None:
    """Issue 4: no growth. However many sessions there were at a time, what waits is enough for one more."""
    config = Config(str(tmp_path / "run"), str(tmp_path), isolation="process_group", branches=BRANCHES)
    for folder in (config.sessions_dir, config.private_dir, config.waiting_dir, config.run_dir):
        os.mkdir(folder)
    sessions = Sessions(config, walled=True)
    counts = []
    for number in (1, 7, 3):
        begun = [sessions.find_or_make(f"s{number}x{index}") for index in range(number)]
        assert len(os.listdir(config.waiting_dir)) == number * (1 + BRANCHES)  # its own has no name yet
        assert all(os.path.isdir(folder) for one in begun for folder in sessions.later_folders(one))
        for session in begun:
            sessions.forget(session, returned=sessions.release(session)()["became"] == WAITS)
            os.close(session.home)
        sessions.prepare()
        counts.append([len(os.listdir(folder)) for folder in (config.waiting_dir, config.private_dir)])
    assert counts == [[BRANCHES, BRANCHES]] * 3
