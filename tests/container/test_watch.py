"""The files of a workspace, as inotify tells of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kernel_host import watch as watch_module
from kernel_host.variables import Changes
from kernel_host.watch import Watch

QUEUE = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text(encoding="ascii"))


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A workspace with a file and a folder."""
    folder = tmp_path / "workspace"
    (folder / "sub").mkdir(parents=True)
    (folder / "old").write_text("x")
    (folder / "sub" / "kept").write_text("x")
    while time.clock_gettime_ns(watch_module.CLOCK_REALTIME_COARSE) <= (folder / "sub" / "kept").stat().st_ctime_ns:
        pass  # a tick of some milliseconds
    yield folder
    subprocess.run(["rm", "-rf", str(folder)], check=True)  # shutil is not made for deep trees


@pytest.fixture
def watch(root: Path) -> Iterator[Watch]:
    """A watch of it."""
    made = Watch(str(root))
    yield made
    os.close(made._fd)


def test_files_that_were_there_are_not_new(root: Path, watch: Watch) -> None:
    """Ours: of what was done before the first look, nothing is told."""
    assert watch.changes() == Changes()
    (root / "sub" / "kept").write_text("y")
    assert watch.changes() == Changes(changed=["sub/kept"])
    (root / "other").write_text("y")
    watch.forget()
    assert watch.changes() == Changes()


def test_lost_events_cost_no_truth(root: Path, watch: Watch) -> None:
    """Ours, inotify(7): of more than max_queued_events the rest is lost, and only that is told."""
    for _ in range(QUEUE // 3 + 1):
        (root / "x").touch()
        (root / "x").unlink()
        (root / "y").touch()
        (root / "y").unlink()
    (root / "new").write_text("x")
    (root / "old").write_text("z")
    (root / "sub" / "deep").mkdir()
    (root / "sub" / "deep" / "file").write_text("x")
    assert watch.changes() == Changes(created=["new", "sub/deep/file"], changed=["old"])
    (root / "sub" / "kept").unlink()
    (root / "sub" / "deep" / "file").write_text("y")
    assert watch.changes() == Changes(changed=["sub/deep/file"], removed=["sub/kept"])


def test_deep_tree_made_in_one_go_is_told(root: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours: deeper than Python calls."""
    monkeypatch.setattr(watch_module, "MAX_FOLDERS", 5_000)
    path = str(root)
    for _ in range(1500):
        path += "/d"
        os.mkdir(path)
    Path(path, "file").touch()
    assert watch.changes().created == ["d/" * 1500 + "file"]


def test_folder_that_is_moved_away_is_not_followed(root: Path, watch: Watch, tmp_path: Path) -> None:
    """Ours: what happens outside of the workspace is nobody's business."""
    shutil.move(root / "sub", tmp_path / "outside")
    assert watch.changes() == Changes(removed=["sub/kept"])
    (tmp_path / "outside" / "kept").write_text("y")
    (tmp_path / "outside" / "more").write_text("y")
    assert watch.changes() == Changes()
    shutil.move(tmp_path / "outside", root / "again")
    (root / "again" / "more").write_text("z")
    assert watch.changes() == Changes(created=["again/kept", "again/more"])


def test_links_are_not_followed(root: Path, watch: Watch, tmp_path: Path) -> None:
    """Ours: a link is a file; what is behind it may be anything, also the folder itself."""
    (root / "sub" / "loop").symlink_to(root)
    (root / "out").symlink_to(tmp_path)
    (tmp_path / "elsewhere").touch()
    assert watch.changes() == Changes(created=["out", "sub/loop"])


def test_more_folders_than_are_watched_are_passed_over(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours: the work is bounded; of the folders that are watched, all is told, also after lost events."""
    monkeypatch.setattr(watch_module, "MAX_FOLDERS", 2)
    watch = Watch(str(root))
    (root / "more").mkdir()
    (root / "more" / "file").touch()
    (root / "old").write_text("z")
    watch._look_again()
    assert watch.changes() == Changes(changed=["old"])
    os.close(watch._fd)


def test_beyond_its_bound_nothing_is_said_of_files(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours: an unpacked archive of a million files must not fill the kernel's memory."""
    monkeypatch.setattr(watch_module, "MAX_FILES", 10)
    watch = Watch(str(root))
    for number in range(30):
        (root / str(number)).touch()
    assert watch.changes() == Changes()
    (root / "new").touch()
    assert watch.changes() == Changes()


def test_without_inotify_nothing_is_said_of_files(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours: a user may have no instance of it left (max_user_instances)."""
    monkeypatch.setattr(watch_module, "EVENTS", 0)  # inotify_add_watch refuses it
    watch = Watch(str(root))
    (root / "new").touch()
    assert watch.changes() == Changes()
    os.close(watch._fd)
