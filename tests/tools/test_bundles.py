"""Displays without a picture that can be sent: the best text, or a line that says what it is and what to do."""

from __future__ import annotations

from typing import Any

import pytest

from kernel_server.kernels.outputs import MAX_TYPE, Display, output_of
from kernel_server.tools.bundles import bundle_text
from tests.driving import Handle, stopwatch

pytestmark = pytest.mark.anyio

NOTEBOOK = "kept in the notebook (export_notebook)"
PLOTLY = "application/vnd.plotly.v1+json"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("Markdown('# Title')", "# Title"),
        ("Latex('$x$')", "$x$"),
        ("Math('x')", r"$\displaystyle x$"),
        ("JSON({'a': [1, 'é']})", '{"a": [1, "é"]}'),
        ("GeoJSON({'type': 'Point'})", '{"type": "Point"}'),
        ("Pretty('as it is')", "as it is"),
        ("Code('x = 1')", "x = 1"),
        ("HTML('<b>bold</b>')", f"[HTML: {NOTEBOOK}; print what you want to read here]"),
        (
            "SVG('<svg xmlns=\"http://www.w3.org/2000/svg\"/>')",
            f"[an SVG picture: {NOTEBOOK}; for a picture here make a PNG]",
        ),
        ("Javascript('1')", f"[a script for a browser: {NOTEBOOK}]"),
        ("Video(b'x', mimetype='video/mp4', embed=True)", f"[HTML: {NOTEBOOK}; print what you want to read here]"),
        ("YouTubeVideo('x')", f"[HTML: {NOTEBOOK}; print what you want to read here]"),
        ("object", "object"),
    ],
)
async def test_displays_of_ipython_come_as_their_best_text(session: Handle, value: str, text: str) -> None:
    """Issue 3: best of markdown and text; HTML and SVG are kept in the notebook, not sent."""
    reply = await session.run(f"from IPython.display import *\n{value}")
    assert reply.images == []
    assert reply.output == text


async def test_repr_that_only_names_a_type_is_shown_if_there_is_nothing_else(session: Handle) -> None:
    """Ours: it is what a person at a prompt sees."""
    assert (await session.value("object()")).startswith("<object at 0x")


async def test_own_bundle_of_an_object_is_shown_by_its_best_text(session: Handle) -> None:
    """Issue 3: _repr_mimebundle_ objects; the notebook keeps all of it."""
    bundle = {"text/html": "<p>", "text/plain": "plain", "text/markdown": "*best*", "image/svg+xml": "<svg/>"}
    reply = await session.run(f"class A:\n    def _repr_mimebundle_(self, **kwargs): return {bundle!r}\nA()")
    svg = f"[an SVG picture: {NOTEBOOK}; for a picture here make a PNG]"
    assert reply.output == f"*best*\n{svg}"
    await session.call("export_notebook", local_path="all.ipynb")
    assert '"<p>"' in (session.kit.output / "all.ipynb").read_text()


async def test_figure_as_svg_says_why_there_is_no_picture(session: Handle) -> None:
    """Issue 3: `<Figure size 640x480 with 1 Axes>` would say nothing."""
    code = "%config InlineBackend.figure_formats = ['svg']\nimport matplotlib.pyplot as plt\n_ = plt.plot([1])"
    assert (await session.run(code)).text == f"[an SVG picture: {NOTEBOOK}; for a picture here make a PNG]"


@pytest.mark.docker
@pytest.mark.parametrize("code", ["figure", "figure.show()"])
async def test_plotly_figure_says_what_helps(docker_session: Handle, code: str) -> None:
    """Issue 3: a static picture where the image can make one, else a clear note. The default image has no kaleido."""
    await docker_session.run(
        "import plotly.graph_objects as go\nfigure = go.Figure([go.Scatter(y=[1]), go.Bar(y=[2])])"
    )
    reply = await docker_session.run(code)
    draw = "for a picture here draw it with matplotlib"
    assert reply.text == f"[a plotly figure (scatter, bar, 2 traces): {NOTEBOOK}; {draw}]"


@pytest.mark.docker
async def test_estimator_and_frame_come_as_text(docker_session: Handle) -> None:
    """Issue 3: their HTML is for notebooks."""
    assert await docker_session.value("from sklearn.linear_model import Ridge\nRidge(alpha=2)") == "Ridge(alpha=2)"


BUNDLES: dict[str, tuple[dict[str, Any], str]] = {
    "plotly with a dump": (
        {PLOTLY: {"data": [{}]}, "text/plain": "Figure({'data'..."},
        "a plotly figure (scatter, 1 trace)",
    ),
    "plotly without traces": ({PLOTLY: {"data": [], "layout": {}}}, "a plotly figure:"),
    "plotly of wrong types": ({PLOTLY: {"data": [1, None, {"type": ["x"]}]}}, "a plotly figure (['x'], 3 traces)"),
    "plotly that is none": ({PLOTLY: "text"}, "a plotly figure:"),
    "vega": ({"application/vnd.vegalite.v6.json": {}, "text/plain": "<VegaLite 6 object>"}, "a Vega chart (Altair)"),
    "altair": ({"text/html": "<style>\n.vega-embed {", "text/plain": "alt.Chart(...)"}, "an Altair chart"),
    "bokeh": ({"application/vnd.bokehjs_exec.v0+json": "", "application/javascript": "x"}, "a Bokeh plot"),
    "widget": ({"application/vnd.jupyter.widget-view+json": {}}, "a widget"),
    "map": ({"text/plain": "<folium.folium.Map at 0x7f4576750250>", "text/html": "<div>"}, "HTML"),
    "pdf": ({"application/pdf": "JVBERg=="}, "a PDF"),
    "webp": ({"image/webp": "AAAA", "text/plain": "<IPython.core.display.Image object>"}, "an image (image/webp)"),
    "unknown": ({"application/x-unknown": "x"}, "an output that only a notebook can show (application/x-unknown)"),
    "nothing": ({}, "an output that only a notebook can show (nothing)"),
}


@pytest.mark.parametrize(("data", "name"), BUNDLES.values(), ids=BUNDLES.keys())
def test_what_cannot_be_shown_is_named(data: dict[str, Any], name: str) -> None:
    """Issue 3: a clear note, on one line, and no dump beside it. Bundles as these libraries send them."""
    text = bundle_text(data)
    assert text.startswith(f"[{name}")
    assert NOTEBOOK in text
    assert "\n" not in text


@pytest.mark.parametrize(
    "plain", ["IntSlider(value=0)", "  0%|          | 0/2 [00:00<?, ?it/s]", "<POINT (1 2)>"], ids=str
)
def test_text_beside_a_widget_is_enough(plain: str) -> None:
    """Issue 3: text where it says something, such as ipywidgets, tqdm, shapely."""
    assert bundle_text({"text/plain": plain, "application/vnd.jupyter.widget-view+json": {}}) == plain


SLOW = {
    "a type with a line end": {"application/" + "javascript" * 40_000 + "\n": "x"},
    "a name without an end": {"text/plain": "<" + "a" * (31 << 20), "text/html": "x"},
    "an address without an end": {"text/plain": "<a at 0x" + "a" * (31 << 20), "text/html": "x"},
}


@pytest.mark.parametrize("data", SLOW.values(), ids=SLOW.keys())
def test_no_bundle_holds_the_interpreter(data: dict[str, Any]) -> None:
    """A regular expression is one call: with a type of 400 KB, all sessions stood still for 40 s, in square time."""
    with stopwatch() as passed:
        bundle_text(data)
    assert passed() < 1


def test_longest_type_of_a_bundle() -> None:
    """RFC 6838: 127 characters on each side; what is longer is none, and nobody reads it."""
    data = {kind + "/" + "x" * (MAX_TYPE - 2): kind for kind in "ab"} | {"a/" + "x" * (MAX_TYPE - 1): "long"}
    display = output_of("display_data", {"data": data})
    assert isinstance(display, Display)
    assert list(display.data.values()) == ["a", "b"]
