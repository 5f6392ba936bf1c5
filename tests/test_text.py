"""Cleaning and cutting of text: pure functions."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_server import text
from kernel_server.text import (
    blocks_of_lines,
    clean,
    counted,
    cut_middle,
    encodable,
    human_size,
    one_line,
    settle,
    strip_ansi,
)


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b[38;5;196mx\x1b[K", "x"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;http://a\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bMup", "up"),
        ("no codes [31m", "no codes [31m"),
    ],
)
def test_escape_sequences_are_removed(raw: str, plain: str) -> None:
    """ECMA-48, section 5: CSI and OSC sequences, two-byte escapes."""
    assert strip_ansi(raw) == plain


@given(
    st.lists(
        st.sampled_from(["\x1b[31m", "\x1b]0;t\x07", "\x1b]8;;x\x1b\\", "a\n", "\x1b", "\x1b\\", "\x9b", "\x1b["])
    ),
    st.integers(1, 40),
)
def test_long_texts_are_cleaned_as_short_ones(parts: list[str], piece: int) -> None:
    """Issue 14: in pieces, since one substitution in 32 MB held the interpreter for 3.4 s; where they meet, nothing changes."""
    raw = "".join(parts)
    whole = strip_ansi(raw), clean(raw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "PIECE", piece)
        assert (strip_ansi(raw), clean(raw)) == whole


def test_clean_text_is_fit_for_utf8_and_json() -> None:
    """Ours: a lone surrogate would break the MCP wire; tabs and line ends stay."""
    assert clean("a\ud800b\x00c\x1bd\te\nf\rg") == "a\ufffdb\ufffdc\ufffdd\te\nf\rg"
    assert clean("ünï 😀") == "ünï 😀"
    assert encodable("\x1b[31m\udcff") == "\x1b[31m\ufffd"


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        ("1%\r50%\r100%", "100%"),
        ("100%\r5", "500%"),
        ("a\r\nb\r\n", "a\nb\n"),
        ("abc\b\bX", "aX"),
        ("\b\bx", "x"),
        ("one\ntwo\rTWO\nthree", "one\nTWO\nthree"),
        ("a\n\bb\r\n\rc\r", "a\nb\nc"),
        ("😀\b\ud800x\b", "\ud800"),
    ],
)
def test_settled_text_is_what_a_terminal_shows(printed: str, shown: str) -> None:
    """Ours: progress bars as their last state."""
    assert settle(printed) == shown


@pytest.mark.parametrize(
    "text", ["x" * 500_000 + "\b" * 500_000, "x" * 500_000 + "\ra" * 500_000], ids=["erase", "return"]
)
def test_hostile_terminal_codes_take_linear_time(text: str) -> None:
    """Ours: this runs in the server's event loop; in quadratic time one session would stop all others for an hour."""
    assert len(settle(text)) in (0, 500_000)


@given(st.text("ab\r\n\b😀\x0b\u2028", max_size=30), st.integers(1, 10))
def test_long_texts_are_settled_as_short_ones(raw: str, piece: int) -> None:
    """In blocks of lines: where they meet, nothing changes."""
    whole = settle(raw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "PIECE", piece)
        assert settle(raw) == whole
        assert "".join(blocks_of_lines(raw)) == raw
        assert all(block.endswith("\n") for block in list(blocks_of_lines(raw))[:-1])


@pytest.mark.parametrize(
    "printed", ["\U0001f600" * 500_000 + "\b", "\U0001f600\r" * 250_000, "\r\U0001f600\n" * 170_000]
)
def test_settling_makes_no_object_of_each_character(printed: str) -> None:
    """What a cell may print, 4 million characters, took 0.5 GB; eight results are made at a time."""
    tracemalloc.start()
    try:
        settle(printed)
        assert tracemalloc.get_traced_memory()[1] < 15_000_000
    finally:
        tracemalloc.stop()


def test_short_text_is_not_cut() -> None:
    """Ours: exactly the limit still fits."""
    assert cut_middle("x" * 100, 100, "hint") == "x" * 100


@pytest.mark.parametrize("text", ["x" * 5000, "line\n" * 1000, "😀" * 1250, "a\n" + "x" * 5000 + "\nz", "\n" * 5000])
def test_cut_text_keeps_head_and_tail_and_counts_what_is_missing(text: str) -> None:
    """DESIGN, results: head and tail, and how to get the rest; the figures add up, and no character is split."""
    cut = cut_middle(text, 1000, "HOW")
    head, marker, tail = _parts(cut)
    assert len(head.encode()) <= 667
    assert len(tail.encode()) <= 334
    assert text.startswith(head)
    assert text.endswith(tail)
    missing, whole = (int(word) for word in marker.split() if word.isdigit())
    assert whole == len(text.encode())
    kept = len((head + tail).encode())
    assert kept <= whole - missing <= kept + 2 or not text.strip(), "line ends at the cut may be missing from both"
    assert "HOW" in marker


def test_cut_text_counts_what_was_dropped_before() -> None:
    """Ours: a flood is cut on its way in; the total is still the true one."""
    _, marker, _ = _parts(cut_middle("x" * 50, 1000, "HOW", dropped=10_000))
    assert "of 10050 bytes" in marker


def _parts(cut: str) -> tuple[str, str, str]:
    head, _, rest = cut.partition("\n[… ") if "\n[… " in cut else ("", "", cut.removeprefix("[… "))
    marker, _, tail = rest.partition(" …]\n")
    return head, marker, tail


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 KB"),
        (12_345, "12 KB"),
        (1_500_000, "1.5 MB"),
        (3 * 10**12, "3000 GB"),
    ],
)
def test_size_for_people(size: int, shown: str) -> None:
    """Ours: decimal units, as disks and Docker have them."""
    assert human_size(size) == shown


def test_one_line_is_short_and_has_no_line_ends() -> None:
    """Ours: for listings and logs."""
    assert one_line("a\n b\t\x00c") == "a b \ufffdc"
    assert one_line("x" * 200) == "x" * 119 + "…"
    assert (counted(1, "file"), counted(0, "file"), counted(2, "file")) == ("1 file", "0 files", "2 files")
