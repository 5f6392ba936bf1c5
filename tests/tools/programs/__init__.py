"""The table of programs: what a model gets, to the letter, for small programs of every kind.

Each `.txt` file here is a group whose programs run one after the other in one session of the default image:

    ==== a title
    1 + 1
    ---- ok
    2

The title may end with `| timeout=1`, which is passed to run_code. The line after the code has the status of the result;
the text of the result follows, with a line such as `[image/png]` for each image. What differs from run to run is
replaced (see `normalised`), and of long texts the middle is a checksum (see `abridged`). Lines before the first title
are for readers.

After a change of what results look like: `python -m tests.tools.programs [group ...]` runs the programs and rewrites the
texts; read the difference before it is committed. A new program needs its title and code only.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path

from mcp.types import ImageContent, TextContent

from tests.driving import Handle, Reply

FOLDER = Path(__file__).parent
GROUPS = sorted(path.stem for path in FOLDER.glob("*.txt"))

MAX_LINES, KEPT_LINES = 60, 20
MAX_CHARACTERS, KEPT_CHARACTERS = 600, 200  # of a line

_STATUS = re.compile(r"^---- (\w+)$", re.MULTILINE)
_REPLACED = [
    (re.compile(r"\b[0-9a-f]{32}\b"), "<session>"),
    (re.compile(r"(<ipython-input-\d+-)[0-9a-f]+>"), r"\1…>"),
    (re.compile(r"\b0x[0-9a-f]{6,}\b"), "0x…"),
    (re.compile(r"\b\d+(?:\.\d+)?(?:e[+-]\d+)? (?:ns|[µμ]s|ms|s|min)\b"), "<time>"),
    (re.compile(r"\[\d\d:\d\d<[^\]\n]*\]"), "[<time>]"),
    (re.compile(r"\b(Thread|Task|pid)([- ])\d+\b"), r"\1\2<number>"),
    (re.compile(r"/tmp/tmp\w{8}\b"), "/tmp/<name>"),
    (re.compile(r" +$", re.MULTILINE), ""),
]


@dataclass(frozen=True)
class Program:
    """A program of the table, and what is said to come of it."""

    title: str
    code: str
    status: str = ""
    text: str = ""

    @property
    def timeout(self) -> float:
        """Of the cell, in seconds; 0 is the server's default."""
        return float(self.title.partition("| timeout=")[2] or 0)


@dataclass(frozen=True)
class Group:
    """The programs of a file."""

    name: str
    head: str
    programs: list[Program]

    @classmethod
    def read(cls, name: str) -> Group:
        """The group in the file `name`.txt."""
        head, *parts = re.split(r"^==== ", (FOLDER / f"{name}.txt").read_text(encoding="utf-8"), flags=re.MULTILINE)
        return cls(name, head, [_program(part) for part in parts])

    @property
    def source(self) -> str:
        """The text of the file."""
        return self.head + "\n".join(
            f"==== {program.title}\n{program.code}\n---- {program.status}\n{program.text}\n"
            for program in self.programs
        )

    async def run(self, session: Handle) -> Group:
        """The same programs with what really came of them."""
        return replace(self, programs=[await _run(session, program) for program in self.programs])


def _program(part: str) -> Program:
    title, _, rest = part.partition("\n")
    code, status, text = (*_STATUS.split(rest, maxsplit=1), "", "")[:3]
    return Program(title, code.strip("\n"), status, text.strip("\n"))


async def _run(session: Handle, program: Program) -> Program:
    reply = await session.run(program.code, timeout=program.timeout)
    status = "refused" if reply.is_error else reply.status
    return replace(program, status=status, text=abridged(normalised(shown(reply)).strip("\n")))


def shown(reply: Reply) -> str:
    """A result as text, block by block."""
    blocks = []
    for block in reply.raw.content:
        if isinstance(block, TextContent):
            blocks.append(block.text)
        elif isinstance(block, ImageContent):
            blocks.append(f"[{block.mime_type}]")
    return "\n".join(blocks)


def normalised(text: str) -> str:
    """Without what differs from run to run: ids, addresses, durations, numbers of threads, names of temporary files.

    Blanks at the ends of lines go as well, which many editors remove.
    """
    for pattern, replacement in _REPLACED:
        text = pattern.sub(replacement, text)
    return text


def abridged(text: str) -> str:
    """Head and tail of what nobody would read whole; the checksum says whether the middle is the same."""
    lines = text.split("\n")
    if len(lines) > MAX_LINES:
        middle = lines[KEPT_LINES:-KEPT_LINES]
        note = f"<{len(middle)} lines, SHA-256 {_checksum(chr(10).join(middle))}>"
        lines = [*lines[:KEPT_LINES], note, *lines[-KEPT_LINES:]]
    return "\n".join(_abridged_line(line) for line in lines)


def _abridged_line(line: str) -> str:
    if len(line) <= MAX_CHARACTERS:
        return line
    middle = line[KEPT_CHARACTERS:-KEPT_CHARACTERS]
    note = f"<{len(middle)} characters, SHA-256 {_checksum(middle)}>"
    return line[:KEPT_CHARACTERS] + note + line[-KEPT_CHARACTERS:]


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
