"""Journals are bounded in bytes as they are written: a cell, a session, and the folder; and nothing that is left out is silent."""

from __future__ import annotations

import json
import os
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kernel_server.errors import FileError, JournalRemoved
from kernel_server.kernels.outputs import Display, Error, Output, Outputs, Stream
from kernel_server.transcripts.folder import JournalFolder
from kernel_server.transcripts.journal import Bounds, Journal
from kernel_server.transcripts.notebook import make_notebook
from tests.transcripts.test_journal import cell, sources
from tests.transcripts.test_notebook import read

IDS = [f"{number:032x}" for number in range(10)]
PLAIN = {"plain": "x", "latin": "é", "cyrillic": "ж", "cjk": "漢", "emoji": "😀", "surrogates": "\udc80"}


class Sessions:
    """Which sessions there are; the rest have ended."""

    def __init__(self, *there: str) -> None:
        self.there = set(there)

    def look(self) -> Any:
        return self.there.__contains__


def folder_of(path: Path, sessions: Sessions | None = None, **bounds: int) -> JournalFolder:
    return JournalFolder(path, (sessions or Sessions()).look, Bounds(**bounds), look_seconds=0)


def run(folder: JournalFolder, session_id: str, source: str = "1", *outputs: Output) -> str:
    """Records a cell; returns what is reported of it."""
    return folder.journal(session_id).append(cell(source, outputs=Outputs(list(outputs))))


def age(folder: JournalFolder, *session_ids: str) -> None:
    """The first was written to longest ago."""
    for number, session_id in enumerate(session_ids):
        os.utime(folder.journal(session_id).path, (1000 + number, 1000 + number))


def left(path: Path) -> list[str]:
    """Sessions whose journal is there, by the last digit of their ids."""
    return sorted(name[31] for name in os.listdir(path) if name.endswith(".jsonl"))


# -- a cell ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("character", PLAIN.values(), ids=PLAIN.keys())
def test_what_is_written_is_about_what_it_is(tmp_path: Path, character: str) -> None:
    """Ours: Latin-1 took six bytes a character, twelve outside of the BMP."""
    journal, text = Journal(tmp_path / "j.jsonl"), character * 100_000
    journal.append(cell(outputs=Outputs([Stream("stdout", text)])))
    assert journal.size < len(text.encode("utf-8", "surrogatepass")) + 500


@pytest.mark.parametrize(
    "output",
    [
        Stream("stdout", "\x01" * 3_000),
        Stream("stderr", "x" * 11_000),
        Display({"text/html": "\x01" * 3_000}, {}),
        Display({"text/plain": ""}, {"note": "\\" * 8_000}),
        Display({"application/json": {"\x01" * 3_000: 1}}, {}),
        Display({"application/json": [[[]]] * 3_000}, {}, 3),
        Display({"application/json": [1.5] * 3_000}, {}),
        Error("E", "\x01" * 3_000, []),
        Error("E", "", ["x" * 11_000]),
    ],
)
def test_output_that_is_too_large_as_written_is_left_out_and_reported(tmp_path: Path, output: Output) -> None:
    """Ours: what counts is what is written, whatever it takes in memory. What fits beside it stays."""
    folder = folder_of(tmp_path, cell=10_000)
    outputs = [Stream("stdout", "before"), output, Display({"text/plain": "after"}, {})]
    told = run(folder, IDS[0], "source", *outputs)
    assert told == (
        "1 output of this cell is not recorded: a cell's outputs may take 10 KB in its journal. read_output and "
        "export_notebook do not have it."
    )
    journal = folder.journal(IDS[0])
    assert journal.size < 10_000
    (record,) = journal.cells()
    assert record["source"] == "source"
    assert record["notes"] == [told]
    assert [one.get("text") or one["data"]["text/plain"] for one in record["outputs"]] == [
        "before",
        "after",
        f"[{told}]\n",
    ]
    read(make_notebook(journal.cells(), IDS[0], ""))
    assert run(folder_of(tmp_path, cell=30_000), IDS[1], "source", *outputs) == "", "the control: it fits there"


def test_largest_cell_that_memory_holds_is_bounded(tmp_path: Path) -> None:
    """Ours: 32 MB in memory made 200 MB of journal."""
    journal = Journal(tmp_path / "j.jsonl")
    told = journal.append(cell(outputs=Outputs([Display({"text/html": "\x01" * (32 << 20)}, {})])))
    assert "1 output of this cell is not recorded" in told
    assert journal.size < 1_000
    assert journal.append(cell(outputs=Outputs([Display({"text/html": "x" * (32 << 20)}, {})]))) == ""


def test_recording_takes_no_second_copy_in_memory(tmp_path: Path) -> None:
    """Ours: 32 sessions may record their largest cells at once. The control is what json gives as a whole."""
    text = "é" * 8_000_000
    cells = cell(outputs=Outputs([Display({"text/html": text}, {}), Stream("stdout", "x")]))
    journal = Journal(tmp_path / "j.jsonl")

    def peak(work: Callable[[], object]) -> int:
        tracemalloc.start()
        try:
            work()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(lambda: journal.append(cells)) < 0.3 * len(text)
    assert peak(lambda: json.dumps(text, ensure_ascii=False)) > len(text)
    assert journal.size > 16_000_000


def test_what_else_a_session_has_its_part_in_is_bounded(tmp_path: Path) -> None:
    """Ours: a kernel says why it cannot be kept, and which cell it had last."""
    journal = Journal(tmp_path / "j.jsonl")
    journal.append(cell(notes=["😀" * 1_000_000] * 1_000, msg_id="x" * 1_000_000))
    assert journal.size < 400_000
    journal.append(cell(notes=["kept"] * 3, msg_id="m2"))
    assert [record["notes"] for record in journal.cells()][1] == ["kept"] * 3
    assert journal.last().finished == "m2"


# -- a session ---------------------------------------------------------------------------------------------------------


def test_full_journal_records_sources_and_says_so(tmp_path: Path) -> None:
    """Ours: a bound for each session. The earlier outputs stay, since branches refer to them."""
    folder = folder_of(tmp_path, journal=20_000)
    told = [run(folder, IDS[0], f"cell {number}", Stream("stdout", "x" * 3_000)) for number in range(20)]
    reported = [bool(text) for text in told]
    assert reported == sorted(reported), "once it is full, it stays so"
    assert 5 <= reported.index(True) <= 7
    assert "branch_session goes on with the same variables and a journal of its own" in told[-1]
    journal = folder.journal(IDS[0])
    assert sources(journal) == [f"cell {number}" for number in range(20)]
    assert journal.size < 20_000 + 20 * 1_000
    assert run(folder, IDS[1], "other", Stream("stdout", "x" * 3_000)) == "", "the control: another session"


# -- the folder --------------------------------------------------------------------------------------------------------


def fill(folder: JournalFolder, *numbers: int) -> None:
    for number in numbers:
        run(folder, IDS[number], f"cell of {number}", Stream("stdout", "x" * 9_000))


def test_full_folder_loses_ended_sessions_oldest_first_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Ours: a bound for the folder; the log, the next call and the removed session's id tell of it."""
    sessions = Sessions(IDS[1])
    folder = folder_of(tmp_path, sessions, cell=10_000, folder=50_000)
    fill(folder, 2, 1, 0)
    age(folder, IDS[2], IDS[1], IDS[0])
    assert folder.take_news() == ""
    fill(folder, 3, 4, 5, 6)
    assert left(tmp_path) == ["1", "3", "4", "5", "6"], (
        "that of a session that is there stays, and the oldest of the others go"
    )
    assert sum(path.stat().st_size for path in tmp_path.glob("*.jsonl")) <= 50_000
    assert "2 ended sessions" in folder.take_news()
    assert folder.take_news() == "", "told once"
    assert "oldest first" in caplog.text
    for gone in (IDS[2], IDS[0]):
        assert folder.find(gone) is None
        with pytest.raises(JournalRemoved, match="all journals together may have 50 KB"):
            folder.check_not_removed(gone)
    for other in (IDS[1], IDS[9], "x"):
        folder.check_not_removed(other)
    assert folder_of(tmp_path).removed_for_room() == 2, "a later server knows"


def test_full_folder_with_nothing_to_remove_records_sources_only(tmp_path: Path) -> None:
    """Ours: the bound holds also where all sessions are there."""
    folder = folder_of(tmp_path, Sessions(*IDS), cell=10_000, folder=30_000)
    fill(folder, 0, 1, 2)
    told = run(folder, IDS[3], "source", Stream("stdout", "x" * 9_000))
    assert "Close sessions that are no longer needed" in told
    assert left(tmp_path) == ["0", "1", "2", "3"]
    assert sources(folder.journal(IDS[3])) == ["source"]


def test_what_other_servers_write_counts(tmp_path: Path) -> None:
    """Ours: servers share the folder, and each looks anew before long."""
    ours, theirs = (folder_of(tmp_path, cell=10_000, folder=60_000) for _ in range(2))
    fill(ours, 0)
    age(ours, IDS[0])
    fill(theirs, 1, 2, 3, 4)
    fill(ours, 5, 6, 7)
    assert sum(path.stat().st_size for path in tmp_path.glob("*.jsonl")) <= 60_000
    assert "0" not in left(tmp_path)
    assert "7" in left(tmp_path)


# -- branches ----------------------------------------------------------------------------------------------------------


def branch(folder: JournalFolder, parent: int, number: int) -> None:
    folder.branch(IDS[parent], folder.journal(IDS[parent]).size, IDS[number])


def test_branch_refers_to_its_parent_and_goes_its_own_way(tmp_path: Path) -> None:
    """Issue 7, notebooks: what the parent ran until then comes first; nothing is copied."""
    folder = folder_of(tmp_path)
    fill(folder, 0)
    branch(folder, 0, 1)
    assert folder.journal(IDS[1]).size < 100
    fill(folder, 0, 1)
    branch(folder, 1, 2)
    fill(folder, 1, 2)
    assert sources(folder.journal(IDS[0])) == ["cell of 0"] * 2
    assert sources(folder.journal(IDS[1])) == ["cell of 0", "cell of 1", "cell of 1"]
    assert sources(folder.journal(IDS[2])) == ["cell of 0", "cell of 1", "cell of 2"]
    shown = {info.session_id[31]: (info.cells, info.begins) for info in folder.kept()}
    assert shown == {"0": (2, "cell of 0"), "1": (3, "cell of 0"), "2": (3, "cell of 0")}


def test_branch_has_what_its_parent_had_when_that_is_full_later(tmp_path: Path) -> None:
    """Ours: the bytes that a branch refers to never change."""
    folder = folder_of(tmp_path, journal=20_000)
    fill(folder, 0)
    branch(folder, 0, 1)
    fill(folder, *[0] * 5)
    (record,) = folder.journal(IDS[1]).cells()
    assert record["outputs"][0]["text"] == "x" * 9_000
    assert run(folder, IDS[1], "1", Stream("stdout", "x" * 9_000)) == "", "it has a bound of its own"


def test_branch_of_a_torn_line_has_what_is_whole(tmp_path: Path) -> None:
    """Ours: a server that was killed left half a line, and the next one branched."""
    folder = folder_of(tmp_path)
    fill(folder, 0)
    with folder.journal(IDS[0]).path.open("ab") as file:
        file.write(b'{"source": "to')
    branch(folder, 0, 1)
    fill(folder, 0, 1)
    assert sources(folder.journal(IDS[1])) == ["cell of 0", "cell of 1"]


def test_branch_of_a_session_that_ran_nothing_begins_with_nothing(tmp_path: Path) -> None:
    """Ours."""
    folder = folder_of(tmp_path)
    branch(folder, 0, 1)
    assert sources(folder.journal(IDS[1])) == []
    with pytest.raises(FileError, match="No branch was made"):
        folder.branch(IDS[0], 100, IDS[1])


def test_parent_stays_as_long_as_a_branch_needs_it(tmp_path: Path) -> None:
    """Ours: by age, whatever the order; the whole family goes with its last member."""
    folder = folder_of(tmp_path)
    fill(folder, 0)
    branch(folder, 0, 1)
    branch(folder, 1, 2)
    fill(folder, 3)
    age(folder, IDS[0], IDS[1], IDS[3])
    folder.sweep(3600)
    assert left(tmp_path) == ["0", "1", "2"], "the control: one without branches is swept"
    assert sources(folder.journal(IDS[2])) == ["cell of 0"]
    age(folder, IDS[0], IDS[1], IDS[2])
    folder.sweep(3600)
    assert left(tmp_path) == []
    with pytest.raises(JournalRemoved, match="PY_EXEC_NOTEBOOK_TTL"):
        folder.check_not_removed(IDS[0])


def test_session_that_is_there_is_never_swept(tmp_path: Path) -> None:
    """Ours: one in which a cell has been running for longer than PY_EXEC_NOTEBOOK_TTL lost what it had run before."""
    sessions = Sessions(IDS[0])
    folder = folder_of(tmp_path, sessions)
    fill(folder, 0)
    age(folder, IDS[0])
    folder.sweep(60)
    assert left(tmp_path) == ["0"]
    sessions.there.clear()
    folder.sweep(60)
    assert left(tmp_path) == []


def test_full_folder_loses_branches_before_their_parent(tmp_path: Path) -> None:
    """Ours: the parent of a branch that is there stays, however old and large it is."""
    sessions = Sessions(IDS[2])
    folder = folder_of(tmp_path, sessions, cell=10_000, folder=50_000)
    fill(folder, 0)
    branch(folder, 0, 1)
    branch(folder, 0, 2)
    fill(folder, 1)
    age(folder, IDS[0], IDS[1], IDS[2])
    fill(folder, 3, 4, 5, 6)
    assert "1" not in left(tmp_path)
    assert {"0", "2", "6"} <= set(left(tmp_path))
    assert sources(folder.journal(IDS[2])) == ["cell of 0"]
    sessions.there.clear()
    fill(folder, 7, 8)
    assert {"0", "2"}.isdisjoint(left(tmp_path))


def test_journal_whose_parent_somebody_removed_says_so(tmp_path: Path) -> None:
    """Ours: never half a transcript that looks whole."""
    folder = folder_of(tmp_path)
    fill(folder, 0)
    branch(folder, 0, 1)
    fill(folder, 1)
    folder.journal(IDS[0]).path.unlink()
    with pytest.raises(FileError, match="is not there any more"):
        sources(folder.journal(IDS[1]))
    assert [info.session_id for info in folder.kept()] == []


def test_journal_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """Ours: ASCII, and branches as copies."""
    folder = folder_of(tmp_path)
    fill(folder, 0)
    old = folder.journal(IDS[1])
    record = next(iter(folder.journal(IDS[0]).cells()))
    lines = [{"begins": "m1", "source": "é\ud800"}, {**record, "source": "é\ud800", "msg_id": "m1"}]
    old.path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="ascii")
    assert sources(old) == ["é\ud800"]
    assert old.last().finished == "m1"
    branch(folder, 1, 2)
    fill(folder, 2)
    assert sources(folder.journal(IDS[2])) == ["é\ud800", "cell of 2"]
    assert {info.session_id[31]: info.cells for info in folder.kept()} == {"0": 1, "1": 1, "2": 2}


def test_last_lines_are_read_in_time_that_is_linear(tmp_path: Path) -> None:
    """Ours: a last line of 16 MB took 0.9 s, one of 48 MB 8 s; beside that, reading and parsing take 0.1 s."""
    journal = Journal(tmp_path / "j.jsonl")
    journal.append(cell(outputs=Outputs([Display({"text/html": "x" * 39_000_000}, {})]), msg_id="m1"))
    begun = time.perf_counter()
    json.loads(journal.path.read_bytes())
    plain = time.perf_counter() - begun
    assert journal.last().finished == "m1"
    assert time.perf_counter() - begun - plain < 20 * plain
