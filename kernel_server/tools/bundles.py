"""The text that stands for a MIME bundle: the best that it has, or a line that says what it is and what to do.

HTML, SVG and scripts stay in the notebook; no model is sent them.
"""

from __future__ import annotations

import json
import re
from typing import Any

from kernel_server.text import counted, one_line, strip_ansi

TEXT_TYPES = ("text/markdown", "text/plain", "text/latex", "application/json", "application/geo+json")
PLOTLY = "application/vnd.plotly.v1+json"
IN_NOTEBOOK = "kept in the notebook (export_notebook)"
DRAW = "for a picture here draw it with matplotlib"
PRINT = "print what you want to read here"
ALTAIR = "for a picture here alt.renderers.enable('png') if vl_convert is installed, else draw it with matplotlib"

# What only a browser draws: a text beside it says less than the name.
CHARTS = (
    (re.compile(r"application/vnd\.vega(lite)?\.v\d+[.+]json"), "a Vega chart (Altair)", ALTAIR),
    (re.compile(r"application/vnd\.bokehjs_exec\..*"), "a Bokeh plot", DRAW),
)
# What cannot be sent, by the most telling type; a text beside it may say as much.
OTHERS = (
    (re.compile(r"image/svg\+xml"), "an SVG picture", "for a picture here make a PNG"),
    (re.compile(r"image/(png|jpeg)"), "an image ({}) that is broken", ""),
    (re.compile(r"image/.*"), "an image ({}), which cannot be sent", "for a picture here make a PNG"),
    (re.compile(r"(audio|video)/.*"), "a recording ({})", ""),
    (re.compile(r"application/pdf"), "a PDF", PRINT),
    (re.compile(r"application/vnd\.jupyter\.widget-view\+json"), "a widget, which nobody can use here", PRINT),
    (re.compile(r"text/html"), "HTML", PRINT),
    # DOTALL: the last `.*` always succeeds. Else a line end in the type has each `javascript` in it tried, in square time.
    (re.compile(r"application/.*(javascript|bokehjs_load).*", re.DOTALL), "a script for a browser", ""),
)
# `repr`s that only name a type: <IPython.core.display.HTML object>, <folium.folium.Map at 0x7f…>, <Figure size …>.
_EMPTY = re.compile(r"<[\w.]+( object)?( at 0x[0-9a-f]+)?>|<Figure size .*>|<PIL\.[\w.]+ .*>")
MAX_EMPTY = 1_000  # characters of one; in 32 MB that only begin so, the expression holds the interpreter for seconds


def bundle_text(data: dict[str, Any]) -> str:
    """What a model reads of a bundle without a picture that can be sent."""
    if note := _chart(data):
        return note
    text = _best_text(data)
    if text and not any(mime_type.startswith("image/") for mime_type in data):
        return text
    return f"{text}\n{_other(data)}".lstrip("\n")


def _best_text(data: dict[str, Any]) -> str:
    alone = len(data) == 1
    for mime_type in TEXT_TYPES:
        value = data.get(mime_type)
        if value is None:
            continue
        text = strip_ansi(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        if alone or mime_type != "text/plain" or not _is_empty(text):
            return text
    return ""


def _is_empty(text: str) -> bool:
    return len(text) <= MAX_EMPTY and bool(_EMPTY.fullmatch(text))


def _chart(data: dict[str, Any]) -> str:
    if PLOTLY in data:
        return _note(f"a plotly figure{_traces(data[PLOTLY])}", DRAW)
    html = data.get("text/html")
    if isinstance(html, str) and "vega-embed" in html[:1000]:
        return _note("an Altair chart", ALTAIR)
    return _first_note(CHARTS, data)


def _other(data: dict[str, Any]) -> str:
    known = _first_note(OTHERS, data)
    kinds = one_line(", ".join(sorted(data)) or "nothing")
    return known or _note(f"an output that only a notebook can show ({kinds})", "")


def _first_note(kinds: tuple[tuple[re.Pattern[str], str, str], ...], data: dict[str, Any]) -> str:
    for pattern, what, advice in kinds:
        for mime_type in data:
            if pattern.fullmatch(mime_type):
                return _note(what.format(one_line(mime_type, 40)), advice)
    return ""


def _note(what: str, advice: str) -> str:
    return f"[{what}: {IN_NOTEBOOK}{advice and f'; {advice}'}]"


def _traces(figure: Any) -> str:
    """Such as ` (scatter, 2 traces)`; nothing for what is no figure."""
    traces = figure.get("data") if isinstance(figure, dict) else None
    if not isinstance(traces, list) or not traces:
        return ""
    kinds = {str(trace.get("type", "scatter"))[:30]: None for trace in traces if isinstance(trace, dict)}
    return f" ({one_line(', '.join(list(kinds)[:3]))}, {counted(len(traces), 'trace')})"
