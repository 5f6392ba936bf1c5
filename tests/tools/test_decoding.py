"""Pictures are decoded before a model gets them, by a process that can do nothing else. No part of it is a mock."""

from __future__ import annotations

import atexit
import base64
import io
import os
import signal
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from PIL import Image, PngImagePlugin

from kernel_server.app import RENDERERS
from kernel_server.kernels.outputs import Display
from kernel_server.tools.decoding import Decoder
from kernel_server.tools.formats import MAX_INFLATED, MAX_SCANS, size_of
from kernel_server.tools.pictures import Gallery
from tests.driving import Handle, Kit, Reply, eventually, stopwatch
from tests.pictures import PNG, TINY_JPEG, chunk, make_png

SOUND = make_png(30, 20)
DECODER = Decoder()
atexit.register(DECODER.close)


def picture(mode: str, kind: str, **options: Any) -> bytes:
    """What Pillow writes of 50 x 33 pixels of noise."""
    made = io.BytesIO()
    size = len(Image.new(mode, (50, 33)).tobytes())
    Image.frombytes(mode, (50, 33), os.urandom(size)).save(made, kind, **options)
    return made.getvalue()


def png(*chunks: tuple[bytes, bytes], colour: int = 0, depth: int = 8, size: tuple[int, int] = (30, 20)) -> bytes:
    """One of these chunks, the header and the end aside."""
    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0)
    return PNG + b"".join(chunk(*one) for one in ((b"IHDR", header), *chunks, (b"IEND", b"")))


PIXELS = (b"IDAT", zlib.compress(bytes(31 * 20)))
JPEG = picture("RGB", "JPEG", quality=95)
PROGRESSIVE = picture("L", "JPEG", progressive=True)
FRAME = (struct.pack(">IIIIIHHBB", 0, 30, 20, 0, 0, 1, 10, 0, 0), struct.pack(">II", 1, 0))


def repeated_scans(data: bytes) -> bytes:
    """A progressive JPEG whose last scan comes again and again: each costs as much as the picture."""
    last = data.rfind(b"\xff\xda")
    return data[:-2] + data[last:-2] * MAX_SCANS + data[-2:]


def bombed(kind: bytes, before: bytes) -> bytes:
    """A PNG with a part that unpacks to 400 MB."""
    packing = zlib.compressobj(9)
    packed = b"".join(packing.compress(bytes(1 << 20)) for _ in range(400)) + packing.flush()
    return png((kind, before + packed), PIXELS)


# By what is wrong; whether Pillow itself refuses them, or takes them for what a person would see.
REFUSED: dict[str, tuple[str, bytes]] = {
    "pixels of garbage": ("image/png", png((b"IDAT", os.urandom(300)))),
    "no pixels": ("image/png", png()),
    "colour type 77": ("image/png", png(PIXELS, colour=77)),
    "depth 3": ("image/png", png(PIXELS, depth=3)),
    "a row too few": ("image/png", png((b"IDAT", zlib.compress(bytes(31 * 19))))),
    "a byte too few": ("image/png", png((b"IDAT", zlib.compress(bytes(31 * 20 - 1))))),
    "a byte too many": ("image/png", png((b"IDAT", zlib.compress(bytes(31 * 20 + 1))))),
    "more than can be inflated": ("image/png", png((b"IDAT", zlib.compress(bytes(1 << 28))))),
    "pixels without their checksum": ("image/png", png((b"IDAT", PIXELS[1][:-4]))),
    "something after the pixels": ("image/png", png((b"IDAT", PIXELS[1] + b"more"))),
    "an unknown filter": ("image/png", png((b"IDAT", zlib.compress(bytes([5]) + bytes(31 * 20 - 1))))),
    "pixels in two places": ("image/png", png((b"IDAT", PIXELS[1][:5]), (b"tEXt", b"a\0b"), (b"IDAT", PIXELS[1][5:]))),
    "no palette": ("image/png", png(PIXELS, colour=3)),
    "a palette of gray": ("image/png", png((b"PLTE", bytes(3)), PIXELS)),
    "a palette that is cut": ("image/png", png((b"PLTE", bytes(4)), PIXELS, colour=3)),
    "a palette after the pixels": ("image/png", png(PIXELS, (b"PLTE", bytes(3)), colour=3)),
    "two headers": ("image/png", png((b"IHDR", bytes(13)), PIXELS)),
    "an unknown critical part": ("image/png", png((b"ABCD", b""), PIXELS)),
    "a reserved part": ("image/png", png((b"abcd", b""), PIXELS)),
    "garbage after the end": ("image/png", SOUND + b"more"),
    "another picture after the end": ("image/png", SOUND + JPEG),
    "an end with content": ("image/png", SOUND[:-12] + chunk(b"IEND", b"x")),
    "a profile of 400 MB": ("image/png", bombed(b"iCCP", b"name\0\0")),
    "a text of 400 MB": ("image/png", bombed(b"zTXt", b"name\0\0")),
    "a text of 400 MB in Unicode": ("image/png", bombed(b"iTXt", b"name\0\1\0\0\0")),
    "a profile that is none": ("image/png", png((b"iCCP", b"name\0\0garbage"), PIXELS)),
    "an animation": ("image/png", png((b"acTL", FRAME[1]), (b"fcTL", FRAME[0]), PIXELS)),
    "frames without an animation": ("image/png", png(PIXELS, (b"fdAT", bytes(4) + PIXELS[1]))),
    "a bomb of pixels": ("image/png", png(PIXELS, size=(1 << 30, 1 << 30))),
    "gif": ("image/png", picture("L", "GIF")),
    "webp": ("image/png", picture("RGB", "WEBP")),
    "bmp": ("image/png", picture("RGB", "BMP")),
    "tiff": ("image/jpeg", picture("RGB", "TIFF")),
    "jpeg called png": ("image/png", JPEG),
    "png called jpeg": ("image/jpeg", SOUND),
    "jpeg of headers": ("image/jpeg", JPEG[: JPEG.find(b"\xff\xda")] + b"\xff\xd9"),
    "jpeg of headers and a scan's": ("image/jpeg", JPEG[: JPEG.find(b"\xff\xda") + 14] + b"\xff\xd9"),
    "too little for a jpeg's size": ("image/jpeg", JPEG[: JPEG.find(b"\xff\xda") + 17] + b"\xff\xd9"),
    "half a jpeg": ("image/jpeg", JPEG[: len(JPEG) // 2]),
    "half a jpeg with an end": ("image/jpeg", JPEG[: JPEG.find(b"\xff\xda")] + b"\xff\xda\0\2\xff\xd9"),
    "garbage after a jpeg": ("image/jpeg", JPEG + b"more"),
    "another jpeg after it": ("image/jpeg", JPEG + JPEG),
    "two frames": ("image/jpeg", JPEG[:2] + JPEG[JPEG.find(b"\xff\xc0") : JPEG.find(b"\xff\xc4")] + JPEG[2:]),
    "arithmetic coding": ("image/jpeg", JPEG.replace(b"\xff\xc0", b"\xff\xc9", 1)),
    "twelve bits": ("image/jpeg", JPEG.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c", 1)),
    "scans without end": ("image/jpeg", repeated_scans(PROGRESSIVE)),
    "no height": ("image/jpeg", JPEG.replace(struct.pack(">BHH", 8, 33, 50), struct.pack(">BHH", 8, 0, 50), 1)),
}
# The finding's own list: what Pillow refuses, and what only looks at the structure lets through.
OF_PILLOW = ("pixels of garbage", "a profile of 400 MB", "an unknown filter")

TAKEN: dict[str, tuple[str, bytes]] = {
    **{f"png {mode}": ("image/png", picture(mode, "PNG")) for mode in ("1", "L", "P", "RGB", "RGBA", "LA", "I;16")},
    "interlaced": (
        "image/png",
        PNG
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 3, 2, 8, 0, 0, 0, 1))
        # Passes 1, 4, 6 and 7 have pixels: one row of 2, one of 3 with 1 and 1 columns, each with its filter.
        + chunk(b"IDAT", zlib.compress(bytes(2) + bytes(2) + bytes(2) + bytes(4)))
        + chunk(b"IEND", b""),
    ),
    "profile and texts": (
        "image/png",
        picture("RGB", "PNG", icc_profile=os.urandom(5000), dpi=(72, 72), pnginfo=PngImagePlugin.PngInfo()),
    ),
    "an unknown part that may be passed over": ("image/png", png((b"teSt", b"x"), PIXELS)),
    "the largest text": ("image/png", png((b"zTXt", b"n\0\0" + zlib.compress(bytes(MAX_INFLATED))), PIXELS)),
    "largest": ("image/png", make_png(1500, 1500)),
    "jpeg": ("image/jpeg", JPEG),
    "tiny jpeg": ("image/jpeg", TINY_JPEG),
    "progressive": ("image/jpeg", PROGRESSIVE),
    "gray": ("image/jpeg", picture("L", "JPEG")),
    "cmyk": ("image/jpeg", picture("CMYK", "JPEG")),
    "restarts": ("image/jpeg", picture("RGB", "JPEG", restart_marker_blocks=2)),
    "exif and profile": (
        "image/jpeg",
        picture(
            "RGB", "JPEG", icc_profile=os.urandom(90_000), dpi=(72, 72), exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"
        ),
    ),
}


def sent(mime_type: str, data: bytes, decoder: Decoder | None = DECODER) -> bool:
    """Whether a client gets it; without a decoder, what its structure alone lets through."""
    check = decoder.check if decoder else lambda *_: "sound"
    shown = Gallery(check, session_kept=True).show(Display({mime_type: base64.b64encode(data).decode()}, {}))  # type: ignore[arg-type]  # a literal
    return bool(shown and shown.image)


@pytest.mark.parametrize(("mime_type", "data"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_decoded_is_not_sent(mime_type: str, data: bytes) -> None:
    """SECURITY.md. The decoder is asked by itself, too: it trusts nothing that was looked at before."""
    assert not sent(mime_type, data)
    assert len(data) > 1 << 20 or DECODER.check(mime_type, data) == "broken"


@pytest.mark.parametrize(("mime_type", "data"), TAKEN.values(), ids=TAKEN.keys())
def test_what_is_sound_is_sent(mime_type: str, data: bytes) -> None:
    """A decoder that refuses all would pass the rest; Pillow is the judge of what is sound."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
    assert sent(mime_type, data)


@pytest.mark.parametrize("name", OF_PILLOW)
def test_structure_alone_lets_them_through(name: str) -> None:
    """The control: without the decoder they would be sent, and Pillow refuses each."""
    mime_type, data = REFUSED[name]
    assert sent(mime_type, data, None)
    with pytest.raises((OSError, SyntaxError, ValueError)), Image.open(io.BytesIO(data)) as image:
        image.load()


@pytest.mark.parametrize("whole", [SOUND, JPEG, PROGRESSIVE], ids=["png", "jpeg", "progressive"])
def test_no_beginning_of_a_picture_is_sent(whole: bytes) -> None:
    """Wherever it is cut, and also where an end is put to it."""
    mime_type, end = ("image/png", whole[-12:]) if whole.startswith(PNG) else ("image/jpeg", whole[-2:])
    assert DECODER.check(mime_type, whole) == "sound"
    for length in range(0, len(whole) - len(end), max(1, len(whole) // 200)):
        assert size_of(mime_type, whole[:length]) is None
        if mime_type == "image/png":
            assert DECODER.check(mime_type, whole[:length] + end) == "broken"


# -- the process ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    """One whose process a test may harm; it has decoded a picture."""
    made = Decoder()
    try:
        assert made.check("image/png", SOUND) == "sound"
        yield made
    finally:
        made.close()


def test_process_starts_with_the_first_picture_and_ends_with_the_server() -> None:
    """Ours: a server whose sessions draw nothing has none."""
    decoder = Decoder()
    assert decoder.pid is None
    assert decoder.check("image/png", SOUND) == "sound"
    pid = decoder.pid
    assert decoder.check("image/jpeg", JPEG) == "sound"
    assert decoder.pid == pid, "one for all pictures"
    decoder.close()
    assert not Path(f"/proc/{pid}").exists()
    assert decoder.check("image/png", SOUND) == "unknown"


def test_process_that_died_is_replaced(decoder: Decoder) -> None:
    """A picture that it does not survive is not sent, and the next one is decoded."""
    assert decoder.pid is not None
    os.kill(decoder.pid, signal.SIGKILL)
    assert decoder.check("image/png", SOUND) == "unknown"
    assert decoder.check("image/png", SOUND) == "sound"


def test_process_that_hangs_is_replaced(decoder: Decoder) -> None:
    """Bounded in time, whatever a picture does to it."""
    stopped = decoder.pid
    assert stopped is not None
    os.kill(stopped, signal.SIGSTOP)
    with stopwatch() as passed:
        assert decoder.check("image/png", SOUND, 0.3) == "unknown"
        assert passed() < 5
    assert not Path(f"/proc/{stopped}").exists()
    assert decoder.check("image/png", SOUND) == "sound"


def test_thread_that_waits_for_its_turn_gives_up_in_time(decoder: Decoder) -> None:
    """A picture of one session cannot keep others waiting for longer than its own time."""
    assert decoder.pid is not None
    os.kill(decoder.pid, signal.SIGSTOP)
    first = threading.Thread(target=decoder.check, args=("image/png", SOUND, 60.0))
    first.start()
    assert decoder.check("image/png", SOUND, 0.3) == "unknown"
    decoder.close()
    first.join(20)
    assert not first.is_alive(), "close ends a check that is under way"


def test_process_has_no_rights(decoder: Decoder) -> None:
    """No files, processes and core dumps, little memory; not root, where the server is."""
    limits = Path(f"/proc/{decoder.pid}/limits").read_text()
    for name, limit in (
        ("Max open files", 0),
        ("Max processes", 0),
        ("Max file size", 0),
        ("Max core file size", 0),
        ("Max address space", 256 << 20),
    ):
        (line,) = [line for line in limits.splitlines() if line.startswith(name)]
        assert line.removeprefix(name).split()[:2] == [str(limit)] * 2, name
    status = dict(line.split(":", 1) for line in Path(f"/proc/{decoder.pid}/status").read_text().splitlines())
    assert "0" not in status["Uid"].split() + status["Gid"].split() + status["Groups"].split()
    assert int(status["CapEff"], 16) == 0
    environment = Path(f"/proc/{decoder.pid}/environ").read_bytes() if os.geteuid() == 0 else b""
    assert b"PATH=" not in environment, "nothing of the server's is in it"


ATTEMPTS = {
    "open": "open('/etc/passwd').read()",
    "socket": "__import__('socket').socket()",
    "memory": "bytearray(1 << 30)",
    "process": "__import__('os').fork()",
}


@pytest.mark.parametrize("attempt", ATTEMPTS.values(), ids=ATTEMPTS.keys())
def test_code_in_the_process_can_do_nothing(attempt: str) -> None:
    """What a picture could do that takes the process over; the control is the same code before its rights are gone."""
    code = "import os, socket\nfrom kernel_server.tools import decoder\n{}\ntry:\n  pid = " + attempt
    code += "\nexcept (OSError, MemoryError) as error: os._exit(7)\nos._exit(0)"
    ends = [
        subprocess.run([sys.executable, "-c", code.format(first)], timeout=60).returncode
        for first in ("", "decoder._give_up_rights()")
    ]
    assert ends == [0, 7]


# -- through the server --------------------------------------------------------------------------------------------------


def helpers_of_this_process() -> list[int]:
    """The processes that decode for servers of this process."""
    children: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # a thread that has just ended
            children += map(int, (task / "children").read_text().split())
    return [pid for pid in children if b"tools.decoder" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.anyio
async def test_picture_that_takes_too_long_holds_up_nobody(kit: Kit) -> None:
    """The event loop goes on, the picture is left out, and the next one is sent."""
    show = f"from IPython.display import *\ndisplay({{'image/png': {SOUND!r}, 'text/plain': 'a plot'}}, raw=True)"
    known = set(helpers_of_this_process())
    async with kit.session() as one, kit.session() as other:
        assert len((await one.run(show)).images) == 1
        for pid in set(helpers_of_this_process()) - known or known:
            os.kill(pid, signal.SIGSTOP)
        async with anyio.create_task_group() as tasks:
            replies = []

            async def run() -> None:
                replies.append(await one.run(show))

            tasks.start_soon(run)
            for _ in range(5):
                assert await other.value("1 + 1") == "2"
        (reply,) = replies
        assert (reply.status, reply.images, reply.result["truncated"]) == ("ok", [], {"images": 1})
        assert "[an image was left out: it could not be checked in time." in reply.text
        assert len((await one.run(show)).images) == 1


@pytest.mark.anyio
async def test_small_results_wait_for_no_pictures(kit: Kit) -> None:
    """Nine sessions with 900 broken pictures each kept another's `1 + 1` for 6 s: every thread was at work on those."""
    show = f"display({{'image/png': {SOUND!r}, 'text/plain': 'a plot'}}, raw=True)"
    known = set(helpers_of_this_process())
    async with AsyncExitStack() as stack:
        other, *many = [await stack.enter_async_context(kit.session()) for _ in range(RENDERERS + 1)]
        assert len((await other.run(show)).images) == 1
        for pid in set(helpers_of_this_process()) - known or known:
            os.kill(pid, signal.SIGSTOP)
        replies: list[Reply] = []

        async def run(session: Handle) -> None:
            replies.append(await session.run(show))

        async def waiting() -> bool:
            listed = (await kit.call("list_sessions")).text
            return listed.count("CPU") == RENDERERS + 1 and "running for" not in listed

        async with anyio.create_task_group() as tasks:
            for session in many:
                tasks.start_soon(run, session)
            await anyio.wait_all_tasks_blocked()
            await eventually(waiting)
            assert await other.value("1 + 1") == "2"
            assert not replies
            assert await other.value("print('x' * 100_000)")
            assert replies, "the control: what is not small waits for a thread"
        assert {reply.status for reply in replies} == {"ok"}


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["pixels of garbage", "half a jpeg", "an animation", "garbage after the end"])
async def test_note_says_that_a_picture_is_left_out(kit: Kit, name: str) -> None:
    """The model knows, and the notebook has what there was."""
    mime_type, data = REFUSED[name]
    async with kit.session() as session:
        reply = await session.run(f"display({{{mime_type!r}: {data!r}, 'text/plain': 'a plot'}}, raw=True)")
    assert reply.images == []
    assert reply.text == f"a plot\n[an image ({mime_type}) that is broken: kept in the notebook (export_notebook)]"
