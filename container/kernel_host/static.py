"""Static pictures of charts that only a browser can draw, where the session has a library that makes them."""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from typing import Any

PLOTLY = re.compile(r"application/vnd\.plotly\.v1\+json")
VEGA_LITE = re.compile(r"application/vnd\.vegalite\.v\d+[.+]json")
DRAWING_SECONDS = 30.0  # kaleido starts a browser

_failed: set[str] = set()  # libraries that could not, or did not come back; each try may take seconds


def with_picture(data: dict[str, Any]) -> dict[str, Any]:
    """The MIME bundle, with a PNG added if it is a chart without one and the session can draw it."""
    if any(mime_type.startswith("image/") for mime_type in data):
        return data
    for mime_type, value in data.items():
        for pattern, library, draw in ((PLOTLY, "kaleido", _plotly), (VEGA_LITE, "vl_convert", _vega_lite)):
            if pattern.fullmatch(mime_type) and library not in _failed and find_spec(library):
                drawn = _in_time(library, draw, value)
                return {**data, "image/png": drawn} if drawn else data
    return data


def _plotly(figure: dict[str, Any]) -> bytes:
    parts = {name: figure[name] for name in ("data", "layout", "frames") if name in figure}
    return bytes(import_module("plotly.io").to_image(parts, format="png", validate=False))


def _vega_lite(chart: dict[str, Any]) -> bytes:
    return bytes(import_module("vl_convert").vegalite_to_png(chart))


def _in_time(library: str, draw: Callable[[dict[str, Any]], bytes], value: dict[str, Any]) -> bytes | None:
    drawn: list[bytes] = []

    def work() -> None:
        with suppress(Exception), warnings.catch_warnings():  # a library may have no browser, no fonts, ...
            warnings.simplefilter("ignore")
            drawn.append(draw(value))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(DRAWING_SECONDS)
    if drawn:
        return drawn[0]
    _failed.add(library)
    return None
