"""A cell's result as content blocks: text, images and errors in the order in which they came."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Any

from mcp.types import CallToolResult, ContentBlock, ImageContent, TextContent

from kernel_server.kernels.outputs import Display, Error, Output, Stream
from kernel_server.sessions.results import CellResult
from kernel_server.text import clean, counted, cut_middle, human_size, settle, strip_ansi

RESULT_META = "kernel_server/result"
# Claude Desktop refuses results of more than 1 MB in all.
MAX_IMAGES_BASE64 = 700_000
IMAGE_SIGNATURES = {"image/png": b"\x89PNG\r\n\x1a\n", "image/jpeg": b"\xff\xd8\xff"}
TEXT_TYPES = ("text/markdown", "text/plain", "application/json")
TIMEOUT_HINT = "Pass a larger timeout, or split the work into smaller cells."
IMAGE_HINT = (
    "too large for one result. Make it smaller, for example with plt.figure(dpi=72), "
    "or save it to a file and use cp_out; export_notebook holds it too"
)
INPUT_HINT = (
    "Nobody can answer input() or getpass() here. Put the value into the code, "
    "or write it into a file with edit_file and read that."
)


@dataclass
class _Text:
    """A piece of text; `dropped` bytes of its middle never got here."""

    text: str
    dropped: int = 0


Piece = _Text | ImageContent


def render(result: CellResult, output_bytes: int) -> CallToolResult:
    """The result of a tool that ran code; `content` only, since clients drop content beside structured output."""
    pieces = _pieces(result)
    _fit(pieces, output_bytes, _how_to_get_the_rest(result))
    content = _join(pieces) or [TextContent(type="text", text="(no output)")]
    meta = {
        "status": result.status,
        "session_id": result.session_id,
        "execution_count": result.execution_count,
        "generation": result.generation,
        "seconds": round(result.seconds, 3),
    }
    return CallToolResult(content=content, _meta={RESULT_META: meta})


def _pieces(result: CellResult) -> list[Piece]:
    pieces: list[Piece] = []
    images_size = 0
    for output in result.outputs.items:
        image = _image(output)
        if image is None:
            pieces.append(_text_piece(output))
        elif images_size + len(image.data) <= MAX_IMAGES_BASE64:
            images_size += len(image.data)
            pieces.append(image)
        else:
            size = human_size(len(image.data) * 3 // 4)
            pieces.append(_Text(f"[an image of {size} was left out: {IMAGE_HINT}]"))
    pieces.extend(_Text(f"[{remark}]") for remark in _remarks(result))
    return [piece for piece in pieces if not isinstance(piece, _Text) or piece.text.strip()]


def _remarks(result: CellResult) -> list[str]:
    remarks = []
    if result.outputs.dropped:
        remarks.append(f"{counted(result.outputs.dropped, 'more output')} dropped: too many or too large")
    if result.status == "timeout":
        remarks.append(f"The cell was stopped after {result.seconds:.1f} s: its timeout. {TIMEOUT_HINT}")
    elif result.status == "interrupted":
        remarks.append("The cell was interrupted.")
    return remarks + result.notes


def _text_piece(output: Output) -> _Text:
    if isinstance(output, Stream):
        return _Text(clean(settle(strip_ansi(output.head + output.tail))), output.dropped)
    return _Text(clean(_traceback(output) if isinstance(output, Error) else _bundle_text(output.data)))


def _image(output: Output) -> ImageContent | None:
    if not isinstance(output, Display):
        return None
    for mime_type, signature in IMAGE_SIGNATURES.items():
        data = output.data.get(mime_type)
        if not isinstance(data, str):
            continue
        compact = "".join(data.split())
        try:
            if base64.b64decode(compact, validate=True).startswith(signature):
                return ImageContent(type="image", data=compact, mime_type=mime_type)
        except (binascii.Error, ValueError):
            continue
    return None


def _bundle_text(data: dict[str, Any]) -> str:
    for mime_type in TEXT_TYPES:
        if mime_type in data:
            value = data[mime_type]
            return strip_ansi(value if isinstance(value, str) else str(value))
    kinds = ", ".join(sorted(data)) or "nothing"
    return f"[an output that only a notebook can show ({kinds}); see it with export_notebook]"


def _traceback(error: Error) -> str:
    frames = [strip_ansi(line) for line in error.traceback] or [f"{error.ename}: {error.evalue}"]
    frames = [frame for frame in frames if frame.strip("-")]
    if error.ename == "StdinNotImplementedError":
        frames = [frame for frame in frames if "/ipykernel/" not in frame] + [INPUT_HINT]
    return "\n".join(frames)


def recorded_text(outputs: list[dict[str, Any]]) -> str:
    """All text of a journal's outputs, as it would be in a result that knows no limit."""
    parts = []
    for output in outputs:
        if output["output_type"] == "stream":
            parts.append(settle(strip_ansi(output["text"])))
        elif output["output_type"] == "error":
            parts.append(_traceback(Error(output["ename"], output["evalue"], output["traceback"])))
        elif image := next((mime_type for mime_type in IMAGE_SIGNATURES if mime_type in output["data"]), ""):
            parts.append(f"[{image}]")
        else:
            parts.append(_bundle_text(output["data"]))
    return clean("\n".join(part.rstrip("\n") for part in parts))


def _how_to_get_the_rest(result: CellResult) -> str:
    if result.status == "running":
        return "the rest can be read when the cell is done"
    return (
        f"read_output(session_id={result.session_id!r}, execution_count={result.execution_count}) reads or searches it"
    )


def _fit(pieces: list[Piece], limit: int, how_to_get_the_rest: str) -> None:
    """Cuts the longest texts until all of them fit; short ones, such as a traceback, stay whole."""
    texts = [piece for piece in pieces if isinstance(piece, _Text)]
    excess = sum(len(piece.text.encode()) for piece in texts) - limit
    for piece in sorted(texts, key=lambda piece: -len(piece.text)):
        size = len(piece.text.encode())
        keep = max(size - max(excess, 0), limit // 10)
        piece.text = cut_middle(piece.text, keep, how_to_get_the_rest, piece.dropped)
        excess -= size - keep


def _join(pieces: list[Piece]) -> list[ContentBlock]:
    """Neighbouring texts as one block."""
    content: list[ContentBlock] = []
    text = ""
    for piece in pieces:
        if isinstance(piece, _Text):
            text += piece.text if not text or text.endswith("\n") else f"\n{piece.text}"
            continue
        if text:
            content.append(TextContent(type="text", text=text.rstrip("\n")))
            text = ""
        content.append(piece)
    if text:
        content.append(TextContent(type="text", text=text.rstrip("\n")))
    return content
