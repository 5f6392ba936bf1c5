"""What the helper that copies out of a workspace counts, and what it leaves out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from kernel_host import files
from kernel_host.beneath import Refused

from kernel_server.files.beneath import opened_folder


def send(folder: Path, staging: Path) -> dict[str, Any]:
    staging.mkdir()
    with opened_folder(folder, "") as source, opened_folder(staging, "") as target:
        return files.send(source, target, "d", "item", 1_000)


def test_folders_count_beside_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours: empty folders take no bytes, and use up the user's file system nevertheless."""
    monkeypatch.setattr(files, "MAX_ENTRIES", 10)
    for number in range(8):
        (tmp_path / f"d/{number}").mkdir(parents=True)
    (tmp_path / "d/x").touch()
    assert send(tmp_path, tmp_path / "fits")["files"] == 1
    (tmp_path / "d/8").mkdir()
    with pytest.raises(Refused, match="more than 10 files and folders in all; pack them"):
        send(tmp_path, tmp_path / "more")


def test_name_with_control_characters_is_left_out_and_told_with_escapes(tmp_path: Path) -> None:
    """Ours: the rest of the folder is copied, as it is beside fifos and links."""
    names = ["a\nb", "a\x1b[2Jb", "a\x7f", "a\x9b2J", "kept", "ü 😀", os.fsdecode(b"\xff")]
    for name in names:
        (tmp_path / "d/sub" / name).mkdir(parents=True)
        (tmp_path / "d/sub" / name / "x").touch()
    told = send(tmp_path, tmp_path / "staging")
    assert sorted(os.listdir(tmp_path / "staging/item/sub")) == sorted(names[4:])
    assert (told["files"], told["skipped_count"]) == (3, 4)
    shown = [
        rf"d/sub/{name} (control characters in its name)" for name in (r"a\x0ab", r"a\x1b[2Jb", r"a\x7f", r"a\x9b2J")
    ]
    assert told["skipped"] == shown
