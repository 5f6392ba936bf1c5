"""Text for models and notebooks: cleaning and cutting, as pure functions."""

from __future__ import annotations

import re
import sys
import unicodedata
from array import array
from collections.abc import Iterator

# Characters that are worked on at a time: a long substitution holds the interpreter for seconds, whatever thread it is in.
PIECE = 1 << 16
# CSI sequences, OSC sequences and two-byte escapes: ECMA-48, section 5.
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
# Control characters, those of ISO 6429 beyond ASCII too (a terminal obeys U+009B as it does ESC [), and the overrides
# of writing direction, which show any text as another. The other marks of direction belong to Arabic and Hebrew text.
_UNPRINTABLE = re.compile(r"[\x00-\x07\x0b\x0c\x0e-\x1f\x7f-\x9f\u202d\u202e\ud800-\udfff]")
# Beside those, what turns the direction of writing, ends a line, or is text that no person sees: Unicode Technical
# Report 36, section 2.10.2 (bidirectional text spoofing); Unicode 16, section 23.9 (tag characters).
_MISLEADING = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\U000e0000-\U000e007f]"
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # C0, DEL and C1: ECMA-48, section 5
_BEGINS = re.compile(r"\x1b(?!\\)")  # an escape sequence; ESC \\ is the end of one
_PLAIN = re.compile(r"[\w./+@=~#%<>|…-]+(?:\[\w+(?:, [\w/]+)?\])?")
# Letters to Unicode that show as a space (the fillers of Hangul): with them a sentence would be one word.
_BLANK_LETTERS = frozenset("\u115f\u1160\u3164\uffa0")
_SURROGATE = re.compile(r"[\ud800-\udfff]")

BACKSPACE, LINE_FEED = 8, 10
MAX_ERASED = 8 << 20  # characters, each of which takes 12 bytes meanwhile; what a cell prints is shorter
MAX_REASONS, MAX_REASON = 5, 300  # characters of each


def strip_ansi(text: str) -> str:
    """Without colour codes and cursor movements."""
    if len(text) <= PIECE:
        return _ANSI.sub("", text)
    pieces, at = [], 0
    while at < len(text):
        following = _BEGINS.search(text, at + PIECE)
        end = following.start() if following else len(text)
        pieces.append(_ANSI.sub("", text[at:end]))
        at = end
    return "".join(pieces)


def clean(text: str) -> str:
    """Fit for JSON, UTF-8 and a terminal: lone surrogates, control characters and overrides of direction become `�`."""
    if len(text) <= PIECE:
        return _UNPRINTABLE.sub("\ufffd", text)
    return "".join(_UNPRINTABLE.sub("\ufffd", text[at : at + PIECE]) for at in range(0, len(text), PIECE))


def harmless(text: str) -> str:
    """`clean`, and nothing is left that moves the cursor, changes the order of what is shown, or is not to be seen.

    For messages that hold names of files: sessions name theirs as they like.
    """
    return _MISLEADING.sub("\ufffd", clean(text))


def quoted(name: str, limit: int = 200) -> str:
    """A name that a session has made up, in quotes unless it is one word: it cannot pass for the words around it."""
    shown = one_line(name, limit)
    if _PLAIN.fullmatch(shown) and not any(map(_is_no_letter, shown)):
        return shown
    if "'" not in shown:
        return f"'{shown}'"
    return '"' + shown.replace('"', '\\"') + '"'


def _is_no_letter(character: str) -> bool:
    """Whether it shows as something else: modifiers (Lm) have the shapes of colons, commas and quotes."""
    return character in _BLANK_LETTERS or unicodedata.category(character) == "Lm"


def session_says(text: str) -> str:
    """What a session's own process gives as reasons, one in each line, introduced as its own, each short, and few."""
    lines = [one_line(line, MAX_REASON) for line in text.splitlines() if line.strip()]
    more = f"\n- and {counted(len(lines) - MAX_REASONS, 'more reason')}" if len(lines) > MAX_REASONS else ""
    return "The session's kernel says:" + "".join(f"\n- {line}" for line in lines[:MAX_REASONS]) + more


def has_controls(text: str) -> bool:
    """Whether a terminal would take a part of it for an order, line ends included."""
    return bool(_CONTROL.search(text))


def encodable(text: str) -> str:
    """Fit for UTF-8: lone surrogates become `�`; all else, escape codes too, stays."""
    return _SURROGATE.sub("\ufffd", text)


def settle(text: str) -> str:
    """What a terminal shows after carriage returns and backspaces: progress bars as their last state.

    Linear in the length of the text, which comes from a session, in time and in memory: no object for each character.
    """
    if "\b" in text:
        text = _erase(text) if len(text) <= MAX_ERASED else text.replace("\b", "\ufffd")
    if "\r" not in text:
        return text
    blocks = blocks_of_lines(text.replace("\r\n", "\n"))
    return "".join("\n".join(map(_last_state, block.split("\n"))) for block in blocks)


def blocks_of_lines(text: str) -> Iterator[str]:
    """A text in blocks of whole lines: as a list, short lines would take fifty times their size."""
    begin = 0
    while begin < len(text):
        end = text.find("\n", begin + PIECE) + 1 or len(text)
        yield text[begin:end]
        begin = end


def _erase(text: str) -> str:
    """Each backspace takes the character before it away, within its line."""
    codec = f"utf-32-{sys.byteorder[0]}e"
    shown = array("I")
    for code in memoryview(text.encode(codec, "surrogatepass")).cast("I"):
        if code != BACKSPACE:
            shown.append(code)
        elif shown and shown[-1] != LINE_FEED:
            shown.pop()
    return shown.tobytes().decode(codec, "surrogatepass")


def _last_state(line: str) -> str:
    """Each part between carriage returns covers the beginning of those before it."""
    if "\r" not in line:
        return line
    pieces: list[str] = []
    covered, end = 0, len(line)
    while end >= 0:
        begin = line.rfind("\r", 0, end) + 1
        if end - begin > covered:
            pieces.append(line[begin + covered : end])
            covered = end - begin
        end = begin - 1
    return "".join(pieces)


def cut_middle(text: str, limit: int, how_to_get_the_rest: str, dropped: int = 0) -> str:
    """Head and tail of a text of more than `limit` bytes, with a line between them that says what is missing.

    Args:
        dropped: bytes that are missing in the middle of `text` already.
    """
    data = text.encode()
    if len(data) <= limit and not dropped:
        return text
    head = data[: limit * 2 // 3].decode(errors="ignore")
    tail = data[-(limit // 3) :].decode(errors="ignore")
    head = head[: head.rfind("\n", len(head) // 2) + 1 or len(head)]
    tail = tail[tail.find("\n") + 1 :] if "\n" in tail[: len(tail) // 2] else tail
    whole = len(data) + dropped
    missing = whole - len(head.encode()) - len(tail.encode())
    return f"{head.rstrip()}\n[… {missing} of {whole} bytes left out; {how_to_get_the_rest} …]\n{tail.lstrip(chr(10))}"


def counted(number: int, noun: str) -> str:
    """`1 file`, `3 files`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def one_line(text: str, limit: int = 120) -> str:
    """A text as one short line, for logs and listings."""
    line = harmless(" ".join(clean(text).split()))
    return line if len(line) <= limit else line[: limit - 1] + "…"


def human_size(size: int) -> str:
    """`12 bytes`, `3.4 KB`, `120 MB`."""
    if size < 1000:
        return counted(size, "byte")
    amount = float(size)
    for unit in ("KB", "MB", "GB"):
        amount /= 1000
        if amount < 1000 or unit == "GB":
            break
    return f"{amount:.1f} {unit}" if amount < 10 else f"{amount:.0f} {unit}"
