"""A cell's result as content blocks: text, images and errors in the order in which they came, then the server's notes.

Captions of images, headings of late output, and lines that say where something was cut stand where they belong, in the
text of the cell: they are for convenience, and a cell can print the like.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mcp.types import CallToolResult, ContentBlock, ImageContent, TextContent

from kernel_server.kernels.changes import Changes
from kernel_server.kernels.outputs import Display, Error, Output, Outputs, Stream
from kernel_server.sessions.results import CellResult
from kernel_server.text import clean, counted, cut_middle, settle, strip_ansi
from kernel_server.tools.bundles import bundle_text
from kernel_server.tools.decoding import IMAGE_TYPES
from kernel_server.tools.meta import Truncated, result_meta
from kernel_server.tools.notes import unmarked, with_notes
from kernel_server.tools.pictures import Check, Gallery
from kernel_server.tools.summary import change_line
from kernel_server.tools.tracebacks import HINTS, brief

LATE = "[output of earlier cells, since their end:]"
OF_THIS_CELL = "[output of this cell:]"
CHANGES_ELSEWHERE = "list_variables and list_files have all"
SMALL_OUTPUTS, SMALL_CHARACTERS = 50, 32_000
LEAST_NOTES = 1_000  # bytes, however small a result may be
TIMEOUT_HINT = "Pass a larger timeout, or split the work into smaller cells."


@dataclass
class _Text:
    """A piece of text; `dropped` bytes of its middle never got here."""

    text: str
    dropped: int = 0


Piece = _Text | ImageContent


def settled(result: CellResult) -> CellResult:
    """The same, for another thread to render: of a cell that is running, the outputs as they are now."""
    return replace(result, outputs=_copied(result.outputs), late=_copied(result.late), notes=list(result.notes))


def is_small(result: CellResult) -> bool:
    """Whether it takes no time worth mentioning to render it: most results are such, and wait for no others."""
    outputs = [*result.outputs.items, *result.late.items]
    return len(outputs) <= SMALL_OUTPUTS and sum(map(_weight, outputs)) <= SMALL_CHARACTERS


def _weight(output: Output) -> int:
    match output:
        case Stream():
            return output.kept
        case Error():
            return len(output.evalue) + sum(map(len, output.traceback))
        case Display():
            is_picture = output.preview or any(kind.startswith("image/") for kind in output.data)
            return SMALL_CHARACTERS + 1 if is_picture else output.size


def render(result: CellResult, output_bytes: int, check: Check, *, one_shot: bool = False) -> CallToolResult:
    """The result of a tool that ran code; `content` only, since clients drop content beside structured output.

    Blocks for as long as it takes to look at text and pictures: for a thread of its own, see `settled`.

    Args:
        check: `Decoder.check`, for pictures.
        one_shot: the session is gone, so that its variables and files are of no interest.
    """
    if one_shot or result.status == "died":
        result = replace(result, changes=Changes())
    gallery = Gallery(check, session_kept=not one_shot)
    notes = [*_remarks(result), change_line(result.changes)]
    about = [_Text(note) for note in notes if note]
    left_out = _fit(about, max(output_bytes // 3, LEAST_NOTES), LEAST_NOTES, CHANGES_ELSEWHERE)
    pieces = _pieces(result, gallery)
    room = max(output_bytes - sum(len(note.text.encode()) for note in about), output_bytes // 3)
    left_out += _fit(pieces, room, output_bytes // 10, _how_to_get_the_rest(result))
    truncated = Truncated(
        text_bytes=left_out,
        images=gallery.left_out,
        images_downscaled=gallery.downscaled,
        outputs=result.outputs.dropped + result.late.dropped,
    )
    content = with_notes(_join(pieces), [piece.text for piece in about])
    return CallToolResult(content=content, _meta=result_meta(result, truncated))


def _copied(outputs: Outputs) -> Outputs:
    items = [
        Stream(item.name, item.head, item.tail, item.dropped) if isinstance(item, Stream) else replace(item)
        for item in outputs.items
    ]
    return Outputs(items, outputs.dropped)


def _pieces(result: CellResult, gallery: Gallery) -> list[Piece]:
    pieces = _shown(result.outputs.items, gallery)
    if late := _shown(result.late.items, gallery):
        pieces = [_Text(LATE), *late, *([_Text(OF_THIS_CELL)] if pieces else []), *pieces]
    return [piece for piece in pieces if not isinstance(piece, _Text) or piece.text.strip()]


def _shown(outputs: list[Output], gallery: Gallery) -> list[Piece]:
    pieces: list[Piece] = []
    for output in outputs:
        shown = gallery.show(output) if isinstance(output, Display) else None
        if shown is None:
            pieces.append(_text_piece(output))
            continue
        if shown.image:
            pieces.append(shown.image)
        pieces.append(_Text(shown.note))
    return pieces


def _remarks(result: CellResult) -> list[str]:
    remarks = []
    if dropped := result.outputs.dropped + result.late.dropped:
        remarks.append(f"{counted(dropped, 'more output')} dropped: too many or too large")
    if result.status == "timeout":
        remarks.append(f"The cell was stopped after {result.seconds:.1f} s: its timeout. {TIMEOUT_HINT}")
    elif result.status == "interrupted":
        remarks.append("The cell was interrupted.")
    error = result.outputs.error
    hint = HINTS.get(error.ename, "") if error else ""
    return [clean(remark) for remark in [*remarks, hint, *result.notes]]


def _text_piece(output: Output) -> _Text:
    if isinstance(output, Stream):
        return _Text(unmarked(clean(settle(strip_ansi(output.head + output.tail)))), output.dropped)
    return _Text(unmarked(clean(settle(brief(output) if isinstance(output, Error) else bundle_text(output.data)))))


def recorded_text(outputs: list[dict[str, Any]]) -> str:
    """All text of a journal's outputs, as it would be in a result that knows no limit."""
    parts = []
    for output in outputs:
        if output["output_type"] == "stream":
            parts.append(settle(strip_ansi(output["text"])))
        elif output["output_type"] == "error":
            parts.append(settle(brief(Error(output["ename"], output["evalue"], output["traceback"]))))
        elif image := next((mime_type for mime_type in IMAGE_TYPES if mime_type in output["data"]), ""):
            parts.append(f"[{image}]")
        else:
            parts.append(settle(bundle_text(output["data"])))
    return unmarked(clean("\n".join(part.rstrip("\n") for part in parts)))


def _how_to_get_the_rest(result: CellResult) -> str:
    if result.status == "running":
        return "the rest can be read when the cell is done"
    return (
        f"read_output(session_id={result.session_id!r}, execution_count={result.execution_count}) reads or searches it"
    )


def _fit(pieces: Sequence[Piece], limit: int, short: int, how_to_get_the_rest: str) -> int:
    """Cuts the longest texts until all of them fit; those of at most `short` bytes, such as a traceback, stay whole.

    Returns:
        How many bytes are missing.
    """
    texts = [piece for piece in pieces if isinstance(piece, _Text)]
    excess = sum(len(piece.text.encode()) for piece in texts) - limit
    missing = sum(piece.dropped for piece in texts)
    for piece in sorted(texts, key=lambda piece: -len(piece.text)):
        size = len(piece.text.encode())
        keep = min(size, max(size - max(excess, 0), short))
        piece.text = cut_middle(piece.text, keep, how_to_get_the_rest, piece.dropped)
        excess -= size - keep
        missing += size - keep
    return missing + _leave_out(texts, limit, how_to_get_the_rest) if excess > 0 else missing


def _leave_out(texts: list[_Text], limit: int, how_to_get_the_rest: str) -> int:
    """The same where there are too many short ones: a line takes the place of those in the middle."""
    head, tail = _how_many_fit(texts, limit * 2 // 3), _how_many_fit(texts[::-1], limit // 3)
    middle = texts[head : len(texts) - tail]
    missing = sum(len(piece.text.encode()) for piece in middle)
    for piece in middle:
        piece.text = ""
    middle[0].text = f"[… {len(middle)} of {len(texts)} outputs left out, {missing} bytes; {how_to_get_the_rest} …]"
    return missing


def _how_many_fit(texts: list[_Text], room: int) -> int:
    for count, piece in enumerate(texts):
        room -= len(piece.text.encode())
        if room < 0:
            return count
    return len(texts)


def _join(pieces: list[Piece]) -> list[ContentBlock]:
    """Neighbouring texts as one block."""
    content: list[ContentBlock] = []
    text = ""
    for piece in pieces:
        if isinstance(piece, _Text):
            if not piece.text:
                continue
            text += piece.text if not text or text.endswith("\n") else f"\n{piece.text}"
            continue
        if text:
            content.append(TextContent(type="text", text=text.rstrip("\n")))
            text = ""
        content.append(piece)
    if text:
        content.append(TextContent(type="text", text=text.rstrip("\n")))
    return content
