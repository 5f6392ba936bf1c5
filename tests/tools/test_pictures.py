"""Pictures in results: small ones as they are, large ones as a preview with the original kept. Both engines."""

from __future__ import annotations

import atexit
import base64
import json
from typing import Any

import pytest

from kernel_server.kernels.outputs import Display
from kernel_server.kernels.previews import Preview
from kernel_server.tools.decoding import Decoder
from kernel_server.tools.formats import MAX_PARTS
from kernel_server.tools.pictures import Gallery
from tests.driving import Handle, Kit
from tests.pictures import PNG, TINY_JPEG, chunk, decoded, make_png, png_size

pytestmark = pytest.mark.anyio

NOISE = """
import io, numpy as np
from PIL import Image
from IPython.display import clear_output, display
def noise(width=1600, height=1000):
    return Image.fromarray(np.random.randint(0, 256, (height, width, 3), dtype=np.uint8))
"""
FIGURE = """
import matplotlib.pyplot as plt
from IPython.display import Image
figure = plt.figure(figsize=(60, 40), dpi=100)
plt.plot([1, 3, 2])
figure.savefig('large.png')
plt.close()
"""


async def copied(session: Handle, path: str) -> bytes:
    reply = await session.call("cp_out", container_path=path, local_path="copy")
    assert not reply.is_error, reply.text
    return (session.kit.output / "copy").read_bytes()


async def notebook_outputs(session: Handle) -> list[dict[str, Any]]:
    reply = await session.call("export_notebook", local_path="session.ipynb")
    assert not reply.is_error, reply.text
    notebook = json.loads((session.kit.output / "session.ipynb").read_text())
    return [output for cell in notebook["cells"] for output in cell.get("outputs", [])]


# -- large pictures --------------------------------------------------------------------------------------------------


async def test_large_figure_is_sent_small_and_kept_whole(session: Handle) -> None:
    """Issue 3: at most 1500 px and 700 KB, the original in the workspace; the text says so."""
    await session.run(FIGURE)
    reply = await session.run("display(Image('large.png'))")
    (image,) = reply.images
    assert png_size(decoded(image)) == (1500, 1000)
    assert "[image shown at 1500x1000; the original 6000x4000 is in images/cell-2-1.png]" in reply.text
    assert reply.result["truncated"] == {"images_downscaled": 1}
    original = await copied(session, "images/cell-2-1.png")
    assert png_size(original) == (6000, 4000)
    assert original == await copied(session, "large.png")


async def test_notebook_has_the_original_and_no_preview(session: Handle) -> None:
    """Issue 3, with DESIGN: a person opens the notebook to see what there was."""
    await session.run(FIGURE)
    await session.run("Image('large.png')")
    (output,) = await notebook_outputs(session)
    assert png_size(base64.b64decode(output["data"]["image/png"])) == (6000, 4000)
    assert "kernel_server" not in output["metadata"]


async def test_figure_of_matplotlib_is_made_smaller_too(session: Handle) -> None:
    """Issue 3: figures come after the code of a cell has run; the number in the file's name is the cell's."""
    reply = await session.run("import matplotlib.pyplot as plt\nplt.figure(figsize=(60, 40))\n_ = plt.plot([1, 2])")
    (image,) = reply.images
    assert max(png_size(decoded(image))) == 1500
    assert "is in images/cell-1-1.png]" in reply.text
    assert max(png_size(await copied(session, "images/cell-1-1.png"))) > 1500


async def test_value_of_a_cell_is_made_smaller_too(session: Handle) -> None:
    """Issue 3: execute_result as well as display_data."""
    await session.run(NOISE)
    reply = await session.run("noise(800, 800)")
    (image,) = reply.images
    assert len(image.data) < 300_000
    assert "the original 800x800 is in images/cell-2-1.png]" in reply.text


async def test_small_plot_is_sent_byte_for_byte(session: Handle) -> None:
    """Issue 3: only what is too large is changed; nothing is written for the rest."""
    await session.run("import matplotlib.pyplot as plt\nfrom IPython.display import Image\nplt.plot([1, 2])")
    reply = await session.run("plt.plot([1, 2])\nplt.savefig('small.png')\nplt.close()\nImage('small.png')")
    (image,) = reply.images
    assert decoded(image) == await copied(session, "small.png")
    assert "truncated" not in reply.result
    assert await session.value("import os; os.path.exists('images')") == "False"


async def test_many_large_pictures_all_arrive(session: Handle) -> None:
    """Issue 3: 700 KB of base64 in all, and still each of twelve is there to be seen."""
    await session.run(NOISE)
    reply = await session.run("for _ in range(12): display(noise())")
    assert len(reply.images) == 12
    assert sum(len(image.data) for image in reply.images) <= 700_000
    for number in range(1, 13):
        assert f"is in images/cell-2-{number}.png]" in reply.text
    assert reply.result["truncated"] == {"images_downscaled": 12}


async def test_usual_plots_are_not_changed_by_their_number(session: Handle) -> None:
    """Issue 3: ten plots in one cell are nothing special."""
    code = "import matplotlib.pyplot as plt\nfor n in range(10):\n    plt.figure()\n    plt.plot([n, 1, 3])"
    reply = await session.run(code)
    assert len(reply.images) == 10
    assert "truncated" not in reply.result


async def test_each_cell_has_the_whole_room(session: Handle) -> None:
    """Issue 3: the limit is one result's."""
    await session.run(NOISE)
    first, second = [(await session.run("noise()")).images[0] for _ in range(2)]
    assert len(second.data) > len(first.data) / 2


async def test_updates_of_a_display_use_room_once(session: Handle) -> None:
    """Issue 3: a live plot shows its last state as large as its first, and one original is kept: the last."""
    await session.run(NOISE)
    reply = await session.run(
        "shown = display(noise(), display_id=True)\nfor _ in range(8): shown.update(noise())\n"
        "shown.update(noise(1700, 900))\ndisplay(noise(1600, 900))"
    )
    assert len(reply.images) == 2
    assert len(reply.images[0].data) > 60_000
    assert "the original 1700x900 is in images/cell-2-1.png]" in reply.text
    assert "the original 1600x900 is in images/cell-2-2.png]" in reply.text
    assert png_size(await copied(session, "images/cell-2-1.png")) == (1700, 900)
    assert await session.value("import os; sorted(os.listdir('images'))") == "['cell-2-1.png', 'cell-2-2.png']"


async def test_cleared_pictures_make_room(session: Handle) -> None:
    """Issue 3: an animation by clear_output shows its last frame as large as its first."""
    await session.run(NOISE)
    reply = await session.run("for _ in range(8):\n    clear_output(wait=True)\n    display(noise())")
    (image,) = reply.images
    assert len(image.data) > 60_000
    assert await session.value("import os; os.listdir('images')") == "['cell-2-1.png']"


async def test_file_of_that_name_is_never_overwritten(session: Handle) -> None:
    """Issue 3: the workspace is the session's."""
    await session.call("edit_file", container_path="images/cell-2-1.png", content="mine")
    await session.run(NOISE)
    reply = await session.run("noise()")
    assert "is in images/cell-2-1_2.png]" in reply.text
    assert await copied(session, "images/cell-2-1.png") == b"mine"


async def test_original_that_cannot_be_saved_is_in_the_notebook(session: Handle) -> None:
    """Issue 3: a full disk, or a file where the folder should be, loses no picture."""
    await session.call("edit_file", container_path="images", content="a file")
    await session.run(NOISE)
    reply = await session.run("noise()")
    assert len(reply.images) == 1
    assert "the original 1600x1000 is in the notebook (export_notebook)]" in reply.text


async def test_one_shot_call_names_the_notebook(kit: Kit) -> None:
    """DESIGN, tools: nothing of the workspace stays after a one-shot call."""
    reply = await kit.call("run_code", code=NOISE + "noise()")
    assert len(reply.images) == 1
    assert "is in the notebook (export_notebook)]" in reply.text


async def test_picture_larger_than_a_notebook_should_hold_is_recorded_as_its_preview(session: Handle) -> None:
    """Ours: 36 MB of noise; the original stays in the workspace."""
    await session.run(NOISE)
    reply = await session.run("noise(4000, 3000)")
    assert "the original 4000x3000 is in images/cell-2-1.png]" in reply.text
    (output,) = await notebook_outputs(session)
    assert output["data"]["image/jpeg"] == reply.images[0].data
    assert png_size(await copied(session, "images/cell-2-1.png")) == (4000, 3000)


async def test_transparency_is_shown_as_white(session: Handle) -> None:
    """Ours: as in a notebook; a model would see it as black."""
    reply = await session.run("from PIL import Image\nImage.new('RGBA', (3000, 2000))")
    (session.kit.input / "seen.png").write_bytes(decoded(reply.images[0]))
    await session.call("cp_in", local_path="seen.png")
    assert await session.value("Image.open('seen.png').convert('RGB').getpixel((0, 0))") == "(255, 255, 255)"


async def test_first_frame_of_a_gif_is_shown(session: Handle) -> None:
    """Ours: models take PNG and JPEG for sure; the rest is made into one."""
    code = "b = io.BytesIO()\nnoise(40, 30).save(b, 'GIF')\ndisplay({'image/gif': b.getvalue()}, raw=True)"
    reply = await session.run(NOISE + code)
    (image,) = reply.images
    assert image.mime_type in ("image/png", "image/jpeg")
    assert "the original is in images/cell-1-1.gif]" in reply.text


async def test_picture_of_a_thread_is_made_smaller_too(session: Handle) -> None:
    """Ours: ipykernel keeps what it sends with by thread."""
    await session.run(NOISE)
    code = "import threading\nt = threading.Thread(target=lambda: display(noise()))\nt.start()\nt.join()"
    assert "is in images/cell-2-1.png]" in (await session.run(code)).text


async def test_without_pillow_large_pictures_are_left_out_by_name(session: Handle) -> None:
    """Issue 3: any image may be the base; DESIGN: Claude Desktop refuses more than 1 MB."""
    await session.run(FIGURE)
    reply = await session.run("import sys\nsys.modules['PIL'] = None\nImage('large.png')")
    assert reply.images == []
    assert "[an image of 6000x4000 (" in reply.text
    assert "was left out" in reply.text
    assert "It is in images/cell-2-1.png: show it alone with display(Image(...)), or copy it with cp_out]" in reply.text
    assert reply.result["truncated"] == {"images": 1}
    (output,) = await notebook_outputs(session)
    assert png_size(base64.b64decode(output["data"]["image/png"])) == (6000, 4000)


@pytest.mark.parametrize(
    "broken",
    [PNG, make_png(20, 20)[:-20], make_png(3000, 20)[:-70], b"<script>"],
    ids=["no header", "cut off", "large and cut off", "no picture"],
)
async def test_broken_picture_shows_its_text(session: Handle, broken: bytes) -> None:
    """Issue 3: some models refuse a whole conversation for one broken image. The notebook keeps what there was."""
    reply = await session.run(f"display({{'image/png': {broken!r}, 'text/plain': 'a plot'}}, raw=True)")
    assert reply.status == "ok"
    assert reply.images == []
    assert reply.text == "a plot\n[an image (image/png) that is broken: kept in the notebook (export_notebook)]"


async def test_libraries_still_see_that_they_are_in_a_notebook(session: Handle) -> None:
    """Ours: rich and others ask for the name of the shell's class."""
    assert await session.value("type(get_ipython())") == "ipykernel.zmqshell.ZMQInteractiveShell"


# -- what hostile kernels send -----------------------------------------------------------------------------------------

SOUND = make_png(30, 20)
DECODER = Decoder()
atexit.register(DECODER.close)


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def shown(display: Display) -> tuple[list[str], str]:
    result = Gallery(DECODER.check, session_kept=True).show(display)
    if result is None:
        return [], ""
    return [result.image.data] if result.image else [], result.note


def test_preview_is_preferred_and_announced() -> None:
    """Issue 3; the figures are those of the original."""
    preview = Preview("image/png", text(SOUND), "images/cell-1-1.png", 6000, 4000)
    note = "[image shown at 30x20; the original 6000x4000 is in images/cell-1-1.png]"
    assert shown(Display({"image/png": text(make_png(40, 20))}, {}, preview=preview)) == ([text(SOUND)], note)


def test_preview_without_its_original_is_enough() -> None:
    """Ours: what is larger than a message may be is not in it."""
    preview = Preview("image/png", text(SOUND))
    images, note = shown(Display({"text/plain": "x"}, {}, preview=preview))
    assert images == [text(SOUND)]
    assert note == "[image shown at 30x20; the original is in the notebook (export_notebook)]"


BAD_IMAGES = {
    "no base64": ("image/png", "%%%"),
    "empty": ("image/png", ""),
    "signature alone": ("image/png", text(PNG)),
    "too wide": ("image/png", text(make_png(1501, 1))),
    "no pixels": ("image/png", text(make_png(0, 5))),
    "wrong checksum": ("image/png", text(SOUND[:-30] + b"x" + SOUND[-29:])),
    "no end": ("image/png", text(SOUND[:-12])),
    "header is not first": ("image/png", text(PNG + chunk(b"tEXt", b"") + SOUND[8:])),
    "parts without end": ("image/png", text(SOUND[:-12] + chunk(b"tEXt", b"") * MAX_PARTS)),
    "png called jpeg": ("image/jpeg", text(SOUND)),
    "jpeg cut off": ("image/jpeg", text(TINY_JPEG[:-2])),
    "jpeg without frame": ("image/jpeg", text(b"\xff\xd8\xff\xda\x00\x02\xff\xd9")),
    "jpeg of one byte in a circle": ("image/jpeg", text(b"\xff\xd8" + b"\xff\xe0\x00\x00" * 10)),
    "jpeg of fill bytes": ("image/jpeg", text(b"\xff\xd8" + b"\xff" * 100_000)),
    "svg": ("image/svg+xml", text(SOUND)),
    "too much": ("image/png", text(SOUND[:-12] + chunk(b"tEXt", bytes(530_000)) + SOUND[-12:])),
}


@pytest.mark.parametrize(("mime_type", "data"), BAD_IMAGES.values(), ids=BAD_IMAGES.keys())
def test_bad_image_is_not_sent(mime_type: str, data: str) -> None:
    """facts/security.md: kernels are hostile. Neither as a preview nor as the picture itself."""
    assert shown(Display({mime_type: data}, {}))[0] == []
    assert shown(Display({}, {}, preview=Preview(mime_type, data)))[0] == []
    sound = Display({"image/png": text(SOUND)}, {}, preview=Preview(mime_type, data))
    assert shown(sound)[0] == [text(SOUND)]


def test_jpeg_is_taken_where_the_png_is_bad() -> None:
    """Pillow's pictures come as both."""
    both = Display({"image/png": "%%%", "image/jpeg": text(TINY_JPEG)}, {})
    assert shown(both) == ([text(TINY_JPEG)], "")


def test_images_of_a_result_are_limited_in_all() -> None:
    """DESIGN, results: 700 KB; whatever a kernel claims."""
    large = text(SOUND[:-12] + chunk(b"tEXt", bytes(200_000)) + SOUND[-12:])
    gallery = Gallery(DECODER.check, session_kept=True)
    results = [gallery.show(Display({}, {}, preview=Preview("image/png", large))) for _ in range(5)]
    assert [bool(result and result.image) for result in results] == [True, True, False, False, False]
