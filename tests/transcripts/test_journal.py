"""The journal of a session: what survives crashes and full disks, and who may read it."""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from kernel_server.errors import FileError
from kernel_server.kernels.outputs import Display, Error, Outputs, Stream
from kernel_server.transcripts.folder import MAX_FIRST_LINE, JournalFolder, JournalInfo
from kernel_server.transcripts.journal import Journal
from kernel_server.transcripts.records import JournaledCell, LastLines

BEGUN = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)
SESSION_ID = "0123456789abcdef" * 2


def cell(source: str = "1", **more: Any) -> JournaledCell:
    given: dict[str, Any] = {
        "outputs": Outputs(),
        "execution_count": 1,
        "status": "ok",
        "generation": 1,
        "begun": BEGUN,
        "ended": BEGUN + timedelta(seconds=1.5),
        **more,
    }
    return JournaledCell(source, **given)


def sources(journal: Journal) -> list[str]:
    return [record["source"] for record in journal.cells()]


def test_cell_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    """Ours: outputs as nbformat 4 has them, times in UTC."""
    outputs = Outputs(
        [
            Stream("stderr", "warning\n"),
            Display({"text/plain": "1", "image/png": "AAAA"}, {"a": 1}),
            Display({"text/plain": "2"}, {}, 3),
            Error("ValueError", "why", ["line 1", "line 2"]),
        ]
    )
    journal = Journal(tmp_path / "new" / "folder" / "j.jsonl")
    journal.append(
        cell("ünï\n'\"\\", outputs=outputs, execution_count=3, status="error", generation=2, notes=["a note"])
    )
    assert list(journal.cells()) == [
        {
            "source": "ünï\n'\"\\",
            "execution_count": 3,
            "status": "error",
            "generation": 2,
            "begun": "2026-01-01T12:00:00+00:00",
            "ended": "2026-01-01T12:00:01.500000+00:00",
            "notes": ["a note"],
            "msg_id": "",
            "outputs": [
                {"output_type": "stream", "name": "stderr", "text": "warning\n"},
                {
                    "output_type": "display_data",
                    "data": {"text/plain": "1", "image/png": "AAAA"},
                    "metadata": {"a": 1},
                },
                {"output_type": "execute_result", "data": {"text/plain": "2"}, "metadata": {}, "execution_count": 3},
                {"output_type": "error", "ename": "ValueError", "evalue": "why", "traceback": ["line 1", "line 2"]},
            ],
        }
    ]


def test_journals_are_listed_with_what_tells_them_apart(tmp_path: Path) -> None:
    """Issue 5: a person finds the id of the session to export; the one that was used last comes first."""
    folder = JournalFolder(tmp_path)
    assert folder.kept() == []
    old, new = folder.journal("0" * 32), folder.journal("1" * 32)
    for source in ("import pandas", "2"):
        old.append(cell(source))
    new.append(cell("x" * MAX_FIRST_LINE))
    os.utime(old.path, (1000, 1000))
    status = new.path.stat()
    assert folder.kept() == [
        JournalInfo("1" * 32, 1, status.st_size, status.st_mtime, ""),
        JournalInfo("0" * 32, 2, old.path.stat().st_size, 1000, "import pandas"),
    ]


def test_journal_is_for_its_user_only(tmp_path: Path) -> None:
    """DESIGN, lifetime: the state folder holds what agents do; 0600 also under a careless umask."""
    before = os.umask(0)
    try:
        journal = Journal(tmp_path / "journals" / "j.jsonl")
        journal.append(cell())
    finally:
        os.umask(before)
    assert oct(journal.path.stat().st_mode & 0o777) == "0o600"
    assert oct(journal.path.parent.stat().st_mode & 0o777) == "0o700"


@pytest.mark.parametrize("kept", [1, 40, -2])
def test_torn_last_line_is_passed_over(tmp_path: Path, kept: int) -> None:
    """Ours: a crash can only tear the last line; the cells before it stay good."""
    journal = Journal(tmp_path / "j.jsonl")
    journal.append(cell("first"))
    whole = journal.path.read_bytes()
    journal.append(cell("torn"))
    last = journal.path.read_bytes()[len(whole) :]
    journal.path.write_bytes(whole + last[:kept])
    assert sources(journal) == ["first"]


def test_cell_after_a_torn_line_is_not_lost(tmp_path: Path) -> None:
    """Ours: a server that comes back appends to the journal of the session it adopts."""
    journal = Journal(tmp_path / "j.jsonl")
    journal.append(cell("first"))
    with open(journal.path, "ab") as file:
        file.write(b'{"source": "to')
    journal.append(cell("second"))
    assert sources(journal) == ["first", "second"]


@pytest.mark.parametrize(
    "line", [b"\n", b"null\n", b"[1]\n", b"[" * 50_000 + b"\n", b'{"source": "only"}\n', b"\xff\xfe\n"]
)
def test_line_that_is_no_cell_is_passed_over(tmp_path: Path, line: bytes) -> None:
    """Ours: one bad line must not take the whole transcript with it."""
    journal = Journal(tmp_path / "j.jsonl")
    journal.append(cell("first"))
    with open(journal.path, "ab") as file:
        file.write(line)
    journal.append(cell("second"))
    assert sources(journal) == ["first", "second"]


def test_full_disk_leaves_earlier_cells_good_and_later_ones_possible(small_disk: Path) -> None:
    """Issue 2: disk full; nothing is lost. The error names the setting, and what was half written is taken back."""
    journal = Journal(small_disk / "journals" / "j.jsonl")
    journal.append(cell("first"))
    size = journal.path.stat().st_size
    with pytest.raises(FileError, match="PY_EXEC_STATE_DIR"):
        journal.append(cell("x" * 1_000_000))
    assert journal.path.stat().st_size == size
    journal.append(cell("second"))
    assert sources(journal) == ["first", "second"]


def test_lone_surrogates_survive(tmp_path: Path) -> None:
    """Ours: Python prints them; the journal keeps what was there, a pair that makes a character as the pair it was."""
    journal = Journal(tmp_path / "j.jsonl")
    texts = ["\ud800\n", "\ud83d\ude00", "😀", "\udfff" * 100_000]
    journal.append(cell("print('\ud800')", outputs=Outputs([Stream("stdout", text) for text in texts])))
    (record,) = journal.cells()
    assert record["source"] == "print('\ud800')"
    assert [output["text"] for output in record["outputs"]] == texts


def test_journal_is_found_by_a_session_id_and_by_nothing_else(tmp_path: Path) -> None:
    """Ours: the id comes from a client; a path in it must lead nowhere."""
    folder = JournalFolder(tmp_path / "journals")
    assert folder.find(SESSION_ID) is None, "nothing has run in it"
    folder.journal(SESSION_ID).append(cell())
    (tmp_path / "outside.jsonl").write_text("{}\n")
    assert folder.find(SESSION_ID) is not None
    for hostile in ("../outside", "", ".", SESSION_ID.upper(), f"{SESSION_ID}\n", f"x/../{SESSION_ID}", "a" * 32):
        assert folder.find(hostile) is None


def test_old_journals_are_swept(tmp_path: Path) -> None:
    """Issue 5: notebooks of ended sessions are kept for a time, which is a setting."""
    folder = JournalFolder(tmp_path)
    old, young = folder.journal("a" * 32), folder.journal("b" * 32)
    old.append(cell())
    young.append(cell())
    past = old.path.stat().st_mtime - 60 - 1
    os.utime(old.path, (past, past))
    folder.sweep(60)
    assert sorted(os.listdir(tmp_path)) == sorted([young.path.name, "lock", "removed"])


def test_journal_of_a_session_that_ran_nothing_is_empty(tmp_path: Path) -> None:
    """Ours."""
    assert list(Journal(tmp_path / "none.jsonl").cells()) == []


def test_last_lines_tell_what_was_finished_and_what_was_begun(tmp_path: Path) -> None:
    """Ours: a later server learns from them what it may believe of a kernel; cells that were only begun are not shown."""
    journal = JournalFolder(tmp_path).journal("a" * 32)
    assert journal.last() == LastLines()
    journal.begin("m1", "first")
    assert journal.last() == LastLines("", "m1", "first")
    journal.append(cell("first", msg_id="m1"))
    assert journal.last() == LastLines("m1")
    journal.begin("m2", "x" * 200_000)
    assert journal.last() == LastLines("m1", "m2", "x" * 200_000)
    with journal.path.open("ab") as file:
        file.write(b'{"source": "torn')
    assert journal.last() == LastLines("m1", "m2", "x" * 200_000)
    assert sources(journal) == ["first"]
    (info,) = JournalFolder(tmp_path).kept()
    assert (info.cells, info.begins) == (1, "first")
