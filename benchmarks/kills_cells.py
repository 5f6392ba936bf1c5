"""The cells of a session whose server is killed now and then: what each must put out, and what then has to be recorded."""

from __future__ import annotations

import base64
import random
import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.soak_user import Wrong, same
from tests.driving import Reply

TAG = re.compile(r"print\('cell (\d+)', done, total\)")
SAID = re.compile(r"cell (\d+)\b")
EVIDENCE = "finished.txt"
EXIT_CODE = 3
BEGIN = f"""\
total, done = 0, []
def note(number):
    global total
    total += number
    done.append(number)
    with open({EVIDENCE!r}, 'a') as file:
        file.write(f'{{number}}\\n')
"""


@dataclass
class Cell:
    """A cell, of which the last thing that it does is to note its number, in a variable and in a file.

    Attributes:
        lines: what it prints between its first line and its end.
        ending: what it does after the note: nothing, an error, or the end of its kernel.
        told: what its result was, once somebody has had it.
        homeless: it ran in a fresh kernel, where nothing that it needs was there.
    """

    number: int
    kind: str
    code: str
    lines: list[str] = field(default_factory=list)
    images: int = 0
    ending: str = "ok"
    generation: int = 1
    told: str = ""
    homeless: bool = False

    @property
    def status(self) -> str:
        """What its result must have."""
        return "error" if self.homeless else self.ending


def make(kind: str, number: int, rng: random.Random) -> Cell:
    """A cell of that kind; the first of each kernel is `begin`."""
    body, lines, images, ending = _body(kind, number, rng)
    last = {"ok": "", "error": f"raise LookupError('{number}')", "died": f"import os; os._exit({EXIT_CODE})"}[ending]
    prologue = BEGIN if kind == "begin" else ""
    code = f"{prologue}print('cell {number}', done, total)\n{body}note({number})\n{last}".rstrip()
    return Cell(number, kind, code, lines, images, ending)


def _body(kind: str, number: int, rng: random.Random) -> tuple[str, list[str], int, str]:
    match kind:
        case "prints":
            count = rng.randint(1, 60)
            body = f"for i in range({count}): print({number}, 'line', i)\n"
            return body, [f"{number} line {i}" for i in range(count)], 0, "ok"
        case "long":
            count = rng.randint(4, 12)
            body = f"import time\nfor i in range({count}):\n    print('step', i, flush=True); time.sleep(0.25)\n"
            return body, [f"step {i}" for i in range(count)], 0, "ok"
        case "picture":
            body = f"import base64\ndisplay({{'image/png': {_png(number)!r}, 'text/plain': 'picture'}}, raw=True)\n"
            return body, [], 1, "ok"
        case "error":
            return "", [], 0, "error"
        case "death":  # what it has printed has to leave the process first
            return f"import time; time.sleep({rng.choice((0.2, 1.0))})\n", [], 0, "died"
        case _:
            return "", [], 0, "ok"


def reading(number: int, path: str, data: bytes) -> Cell:
    """A cell that reads a file that came in."""
    code = f"print('cell {number}', done, total)\nimport zlib\nprint(zlib.crc32(open({path!r}, 'rb').read()))\n"
    return Cell(number, "reads", f"{code}note({number})", [str(zlib.crc32(data))])


def _png(number: int) -> str:
    """A picture of one pixel in a colour of its own."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixel = bytes((0, number & 255, number >> 8 & 255, 7))
    header = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixel)) + chunk(b"IEND", b"")
    return base64.b64encode(data).decode()


def number_of(text: str) -> int | None:
    """Which cell a result is of, by what it has printed or by its traceback."""
    said = SAID.match(text) or TAG.search(text)
    return int(said[1]) if said else None


def state_of(text: str) -> tuple[list[int], int]:
    """What a cell found: which had finished before it in its kernel, and their sum."""
    found = re.match(r"cell \d+ \[([\d, ]*)\] (\d+)(\n|$)", text)
    if found is None:
        raise Wrong(f"a cell's first line is {text[:200]!r}")
    return [int(number) for number in found[1].split(",") if number.strip()], int(found[2])


def judge(cell: Cell, reply: Reply) -> None:
    """Raises Wrong unless a result is what it must be, beside what the cell found."""
    same(f"status of {cell.kind} {cell.number}", reply.status, cell.status)
    _judge_text(cell, reply.text.splitlines())
    same(f"images of {cell.kind} {cell.number}", len(reply.images), 0 if cell.homeless else cell.images)


def _judge_text(cell: Cell, text: Sequence[str]) -> None:
    if cell.homeless:
        if not any("NameError" in line for line in text):
            raise Wrong(f"{cell.kind} {cell.number} in a fresh kernel: {text!r:.400}")
        return
    same(f"lines of {cell.kind} {cell.number}", list(text[1 : 1 + len(cell.lines)]), cell.lines)
    rest = [line for line in text[1 + len(cell.lines) :] if not line.startswith("[")]
    if cell.ending == "error":
        same(f"last line of {cell.kind} {cell.number}", rest[-1:], [f"LookupError: {cell.number}"])
    elif rest:
        raise Wrong(f"{cell.kind} {cell.number} puts out more than it should: {rest!r:.400}")


def judge_record(cell: Cell, record: dict[str, Any]) -> None:
    """The same for what the journal has of it."""
    what = f"the journal's {cell.kind} {cell.number}"
    same(f"status of {what}", record["status"], cell.status)
    same(f"generation of {what}", record["generation"], cell.generation)
    text = "".join(output["text"] for output in record["outputs"] if output["output_type"] == "stream").splitlines()
    errors = [f"{o['ename']}: {o['evalue']}" for o in record["outputs"] if o["output_type"] == "error"]
    if cell.homeless or cell.status != "died":
        _judge_text(cell, text + errors)
        same(f"first line of {what}", text[:1], cell.told.splitlines()[:1] if cell.told and text else text[:1])
    images = [output["data"].get("image/png") for output in record["outputs"] if "data" in output]
    same(f"images of {what}", len(images), 0 if cell.homeless else cell.images)
