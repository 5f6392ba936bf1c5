"""MIME bundles: a picture is sent only if its type, size and structure are right; everything else is a note or text."""

from __future__ import annotations

import atexit
import base64
import io
import struct
import zlib
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from kernel_server.kernels.outputs import Display, Outputs
from kernel_server.tools.bundles import bundle_text
from kernel_server.tools.decoding import Decoder
from kernel_server.tools.formats import MAX_SIDE
from kernel_server.tools.pictures import MAX_IMAGES_BASE64, Gallery
from tests.fuzz.hostile import PNGS, bundles, displays, encoded, mostly, pictures, texts
from tests.pictures import PNG, TINY_JPEG, make_png

ACTIVE = "SECRET-MARKUP"
DECODER = Decoder()
atexit.register(DECODER.close)


def check_picture(mime_type: str, data: str) -> None:
    """As strictly as a client that refuses a broken image; an independent reader, not the code under test."""
    assert len(data) <= MAX_IMAGES_BASE64
    decoded = base64.b64decode(data, validate=True)
    with Image.open(io.BytesIO(decoded), formats=[mime_type.removeprefix("image/").upper()]) as image:
        image.load()
    if mime_type == "image/jpeg":
        assert decoded.startswith(b"\xff\xd8\xff")
        assert b"\xff\xd9" in decoded[4:]
        return
    assert mime_type == "image/png"
    assert decoded.startswith(PNG)
    width, height = struct.unpack_from(">II", decoded, 16)
    assert 0 < width <= MAX_SIDE
    assert 0 < height <= MAX_SIDE
    at, kind = len(PNG), b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", decoded, at)
        body = decoded[at + 4 : at + 8 + length]
        assert struct.unpack_from(">I", decoded, at + 8 + length) == (zlib.crc32(body),)
        at += 12 + length


@given(st.lists(displays, max_size=6), st.booleans())
@example([{"data": {"image/png": base64.b64encode(png).decode()}} for png in PNGS], False)
def test_picture_that_is_sent_is_sound_and_small(sent: list[Any], session_kept: bool) -> None:
    """Issue 6: images are checked before they are sent on: type, size, pixels."""
    outputs, gallery, total = Outputs(), Gallery(DECODER.check, session_kept=session_kept), 0
    for content in sent:
        outputs.fold("display_data", content)
    for display in outputs.items:
        assert isinstance(display, Display)
        shown = gallery.show(display)
        if shown is None:
            assert bundle_text(display.data)
        elif shown.image:
            check_picture(shown.image.mime_type, shown.image.data)
            total += len(shown.image.data)
        else:
            assert shown.note
    assert total <= MAX_IMAGES_BASE64


@given(bundles | st.dictionaries(texts, mostly(encoded), max_size=5))
def test_active_content_is_not_in_the_text(data: dict[str, Any]) -> None:
    """Issue 6: HTML, SVG and scripts stay in the notebook."""
    active = {"text/html": f"<b>{ACTIVE}", "image/svg+xml": f"<svg>{ACTIVE}", "application/javascript": ACTIVE}
    assert ACTIVE not in bundle_text({**data, **active})


@given(pictures)
def test_any_bytes_are_a_sound_picture_or_none(data: bytes) -> None:
    """The same of both types, whichever the bytes claim to be."""
    for mime_type in ("image/png", "image/jpeg"):
        shown = Gallery(DECODER.check, session_kept=False).show(
            Display({mime_type: base64.b64encode(data).decode()}, {})
        )
        if shown and shown.image:
            check_picture(mime_type, shown.image.data)


def test_sound_pictures_are_sent() -> None:
    """A gallery that sends nothing would pass all of this."""
    for mime_type, data in (("image/png", make_png(3, 2)), ("image/jpeg", TINY_JPEG)):
        shown = Gallery(DECODER.check, session_kept=False).show(
            Display({mime_type: base64.b64encode(data).decode()}, {})
        )
        assert shown is not None
        assert shown.image is not None


@pytest.mark.parametrize(
    "data", [PNG, make_png(3, 2)[:-1], make_png(3, 2).replace(b"IDAT", b"IDAX"), make_png(1501, 1)]
)
def test_check_of_a_picture_can_fail(data: bytes) -> None:
    """The control: what a server would send that only looked at the signature."""
    assert data.startswith(PNG)
    with pytest.raises((AssertionError, struct.error, OSError, SyntaxError)):
        check_picture("image/png", base64.b64encode(data).decode())
