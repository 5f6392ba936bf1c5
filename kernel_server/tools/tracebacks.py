"""A traceback as a model reads it best: the session's own code with its lines, and of libraries the place that raised.

Works on what IPython puts into an `error` message: a list with a rule, a header, one text for each frame and the
message, and the same again for each exception of a chain. Exception groups come as Python itself prints them. What is
none of these stays as it is, since kernels are hostile and old ones differ. The notebook keeps every frame.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby

from kernel_server.kernels.outputs import Error
from kernel_server.text import counted, strip_ansi

CONTEXT_LINES = 2  # before and after the line that runs, in the session's own code
MAX_LINE = 300  # characters of a line of source
MAX_FRAMES = 16  # shown of one exception, where recursion makes thousands
MAX_COMPARED = 10_000  # characters of the last message
MAX_CHAIN = 6  # exceptions shown of a chain
MAX_NATIVE_LINES = 8  # of source and marks beneath it, as Python prints them
MAX_PACKAGES = 3  # named where their frames are left out
HEADER = "Traceback (most recent call last):"
MACHINERY = ("IPython", "ipykernel", "kernel_host")  # that runs the cell, in the same process
PSEUDO_FILES = ("<string>", "<stdin>", "<timed eval>", "<timed exec>", "<magic-timeit>")  # code that a cell made
NO_SOURCE = "Could not get source, probably due dynamically evaluated source code."
EXIT_ADVICE = "An exception has occurred, use %tb to see the full traceback."
# What to do next, by the name of the exception: the class may be one of the session's own, so nothing here depends on it.
HINTS = {
    "StdinNotImplementedError": "Nobody can answer input() or getpass() here. Put the value into the code, "
    "or write it into a file with edit_file and read that.",
    "ModuleNotFoundError": "list_packages names what can be imported.",
}

_RULE = re.compile(r"-{20,}$")
_HEADER = re.compile(r".* Traceback \(most recent call last\)(?:\n|$)")
_LINK = re.compile(r"(?:The above exception was the direct cause|During handling of the above exception)[^\n]*")
_SIMILAR = re.compile(r" *\[\.\.\. skipping similar frames: [^,]*\((\d{1,9}) times\)\]")
_SKIPPED = re.compile(r" *\[\.\.\. skipping hidden ")
_VERBOSE = re.compile(r"(?:File (?P<file>[^\n]+?):|(?P<cell>Cell In\[\d+\]), line )(?P<line>\d+)(?P<rest>[^\n]*)")
_NATIVE = re.compile(
    r"(?P<indent>(?: *\| )?  )"
    r"(?:File \"(?P<quoted>[^\"\n]+)\", line |File (?P<file>[^\"\n][^\n]*?):|(?P<cell>Cell In\[\d+\]), line )"
    r"(?P<line>\d+)(?P<rest>[^\n]*)"
)
_CELL_FILE = re.compile(r"<ipython-input-(\d+)-\w+>")
_INSTALLED = re.compile(r".*/(?:site|dist)-packages/(.+)|/.*/(kernel_host/[^/]+\.py)")
_STANDARD = re.compile(r".*/lib/(python3\.\d+)/(.+)")
_FROZEN = re.compile(r"<frozen ([\w.]+)>")
_COMPILED = re.compile(r"(?:src/)?(?![~/])(.+\.(?:pyx|pxi|pxd))")  # Cython leaves the paths of its build
_ARROW = re.compile(r"-*> ?\d+")
_BLANK = re.compile(r" *\d* *$")
_EMPTY_MESSAGE = re.compile(r"^([\w.]+):\s*$")


@dataclass(frozen=True)
class _Frame:
    """A call that was under way.

    Attributes:
        package: the library that it belongs to; empty for the session's own code.
        indent: before each of its lines, in what Python itself printed.
        count: of such calls, one within the other.
    """

    place: str
    name: str
    source: tuple[str, ...]
    package: str = ""
    indent: str = ""
    count: int = field(default=1, compare=False)


@dataclass
class _Raised:
    """An exception of a chain: its frames and its text in order, and the sentence that ties it to the one before."""

    link: str = ""
    has_header: bool = False
    parts: list[_Frame | str] = field(default_factory=list)

    @property
    def frames(self) -> list[_Frame]:
        return [part for part in self.parts if isinstance(part, _Frame)]

    @property
    def message(self) -> str:
        """Its text without the name of its class."""
        return self.parts[-1].partition(":")[2].strip() if self.parts and isinstance(self.parts[-1], str) else ""

    def adds_to(self, message: str) -> bool:
        """Whether it says what the last message does not: libraries often raise one error from another."""
        return any(_is_own(frame) for frame in self.frames) or self.message not in message


def brief(error: Error) -> str:
    """The text for the model; never raises, and takes linear time."""
    items = [strip_ansi(item) for item in error.traceback] or [f"{error.ename}: {error.evalue}"]
    *earlier, last = _chain(_separated(items))
    message = last.message[:MAX_COMPARED]
    shown = [raised for raised in earlier if raised.adds_to(message)]
    if len(shown) >= MAX_CHAIN:
        left_out = counted(len(shown) - MAX_CHAIN + 2, "more exception")
        shown = [shown[0], _Raised(shown[1].link, parts=[f"… {left_out} …"]), *shown[-MAX_CHAIN + 3 :]]
    texts = [_text(raised, libraries=False) for raised in shown]
    texts.append(_text(last, libraries=error.ename != "KeyboardInterrupt"))
    links = [raised.link for raised in (*shown, last)]
    text = texts[0] + "".join(f"\n\n{link}\n\n{text}" for link, text in zip(links[1:], texts[1:], strict=True))
    return text if text.strip() else f"{error.ename}: {error.evalue}"


def _separated(items: list[str]) -> list[str]:
    """The frames of a traceback that was too large to be kept as a list; each ended with an empty line."""
    if len(items) == 1 and (header := _HEADER.search(items[0][:1000])):
        return [header[0], *items[0][header.end() :].split("\n\n")]
    return items


def _chain(items: Iterable[str]) -> list[_Raised]:
    chain = [_Raised()]
    for item in items:
        if link := _LINK.fullmatch(item.strip()):
            chain.append(_Raised(link[0]))
        elif _HEADER.fullmatch(item):
            chain[-1].has_header = True
        elif frame := _verbose_frame(item) or _similar_frame(item, chain[-1].parts):
            chain[-1].parts.append(frame)
        elif not (_RULE.match(item) or _SKIPPED.match(item) or item.strip() in {"", EXIT_ADVICE}):
            chain[-1].parts += _native(item.rstrip())
    return chain


def _verbose_frame(item: str) -> _Frame | None:
    """A frame as IPython shows it: the place, then numbered lines with an arrow."""
    found = _VERBOSE.match(item)
    if not found:
        return None
    source = item[found.end() :].strip("\n").split("\n")
    return _frame(found["file"] or found["cell"], found["line"], found["rest"], source)


def _similar_frame(item: str, parts: list[_Frame | str]) -> _Frame | None:
    """The many calls that IPython left out because they are like the one before."""
    found = _SIMILAR.match(item)
    last = parts[-1] if parts else None
    return replace(last, count=int(found[1])) if found and isinstance(last, _Frame) else None


def _native(text: str) -> Iterator[_Frame | str]:
    """The frames that Python itself has printed into a text (also beside the bars of a group), and what is between."""
    head: re.Match[str] | None = None
    source: list[str] = []
    rest: list[str] = []
    for line in (*text.split("\n"), None):
        if head and line is not None and line.startswith(f"{head['indent']}  "):
            source.append(line)
            continue
        if head:
            file = head["quoted"] or head["file"] or head["cell"]
            yield _frame(file, head["line"], head["rest"], source, head["indent"])
        source = []
        head = _NATIVE.match(line) if line is not None else None
        if rest and (head or line is None):
            yield "\n".join(rest)
            rest = []
        if not head and line is not None:
            rest.append(line)


def _frame(file: str, line: str, rest: str, source: list[str], indent: str = "") -> _Frame:
    shown, package = _located(file)
    name = rest.removeprefix(",").strip().removeprefix("in ")
    place = f"{shown}, line {line}" if shown.startswith("Cell ") else f"File {shown}:{line}"
    lines = tuple(text[:MAX_LINE] + "…" * (len(text) > MAX_LINE) for text in source if text and NO_SOURCE not in text)
    return _Frame(place, "" if name == "<module>" else name, lines, package, indent)


def _located(file: str) -> tuple[str, str]:
    """The short name of a file, and the package it belongs to; none for the session's own code."""
    if cell := _CELL_FILE.fullmatch(file):
        return f"Cell In[{cell[1]}]", ""
    if found := _INSTALLED.fullmatch(file) or _COMPILED.fullmatch(file):
        path = found[found.lastindex or 0]
        return path, _first_name(path)
    if found := _STANDARD.fullmatch(file):
        return f"{found[1]}/{found[2]}", _first_name(found[2])
    if found := _FROZEN.fullmatch(file):
        return file, _first_name(found[1])
    if file.startswith("<") and file not in PSEUDO_FILES:
        return file, file
    return file.removeprefix("~/"), ""  # a session's home is its workspace


def _first_name(path: str) -> str:
    """The package of a file or module."""
    return path.partition("/")[0].partition(".")[0]


def _is_own(frame: _Frame) -> bool:
    return not frame.package


def _text(raised: _Raised, *, libraries: bool) -> str:
    """One exception; without `libraries`, the frames of libraries are not even counted."""
    wanted = [part for part in raised.parts if isinstance(part, str) or part.package not in MACHINERY]
    lines: list[str] = []
    for are_frames, group in groupby(wanted, lambda part: isinstance(part, _Frame)):
        if not are_frames:
            lines += [_EMPTY_MESSAGE.sub(r"\1", part) for part in group if isinstance(part, str)]
            continue
        shown = _frames_lines([part for part in group if isinstance(part, _Frame)], libraries=libraries)
        lines += [HEADER, *shown] if raised.has_header and shown and not lines else shown
    return "\n".join(lines)


def _frames_lines(frames: list[_Frame], *, libraries: bool) -> list[str]:
    """The text of frames that follow each other, in pieces that stand for one or more of them."""
    pieces: list[tuple[int, str]] = []
    for are_own, group in groupby(frames, _is_own):
        run = list(group)
        if are_own:
            pieces += _own_pieces(run)
        elif libraries:
            pieces += _library_pieces(run, is_innermost=run[-1] is frames[-1])
    if len(pieces) > MAX_FRAMES:
        hidden = pieces[MAX_FRAMES // 2 : -MAX_FRAMES // 2]
        note = f"    … {counted(sum(count for count, _ in hidden), 'more frame')} …"
        pieces[MAX_FRAMES // 2 : -MAX_FRAMES // 2] = [(0, note)]
    return [text for _, text in pieces]


def _own_pieces(run: list[_Frame]) -> Iterator[tuple[int, str]]:
    for frame, group in groupby(run):
        yield 1, "\n".join([_head(frame, frame.name), *_context(frame)])
        if repeats := sum(same.count for same in group) - 1:
            yield repeats, f"{frame.indent}    … the same frame {counted(repeats, 'more time')} …"


def _library_pieces(run: list[_Frame], *, is_innermost: bool) -> Iterator[tuple[int, str]]:
    """How many frames there are, and the last of them if it is the one that raised."""
    hidden = run[:-1] if is_innermost else run
    if hidden:
        packages = ", ".join(list(dict.fromkeys(frame.package for frame in hidden))[:MAX_PACKAGES])
        count = sum(frame.count for frame in hidden)
        yield count, f"{run[0].indent}    … {counted(count, 'frame')} in {packages} …"
    if is_innermost:
        name = run[-1].name.partition("(")[0]
        yield 1, "\n".join([_head(run[-1], name), *_arrow_line(run[-1])])


def _head(frame: _Frame, name: str) -> str:
    return f"{frame.indent}{frame.place}{name and ', in '}{name}"


def _context(frame: _Frame) -> list[str]:
    """The line that runs and those around it."""
    if frame.indent:
        return list(frame.source[:MAX_NATIVE_LINES])
    arrow = next((index for index, line in enumerate(frame.source) if _ARROW.match(line)), CONTEXT_LINES)
    lines = list(frame.source[max(0, arrow - CONTEXT_LINES) : arrow + CONTEXT_LINES + 1])
    while lines and _BLANK.match(lines[-1]):
        lines.pop()
    return lines


def _arrow_line(frame: _Frame) -> list[str]:
    if frame.indent:
        return list(frame.source[:1])
    return [line for line in frame.source if _ARROW.match(line)][:1]
