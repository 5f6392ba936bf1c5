"""What the threads of a cell put out after its end. Both engines.

Issue 3: output that comes after the end of its cell is attached to the next result. Events are files: a thread waits
for one, puts something out, and makes another.
"""

from __future__ import annotations

import json
from typing import Any

import anyio
import pytest

from kernel_server.kernels import outputs as outputs_module
from kernel_server.kernels.outputs import MAX_TAIL_BYTES, MAX_TEXT_BYTES
from kernel_server.tools.render import LATE, OF_THIS_CELL
from tests.driving import Handle, eventually

pytestmark = pytest.mark.anyio

SETUP = """
import os, sys, threading, time

def later(name, act):
    def work():
        while not os.path.exists(f'{name}.go'):
            time.sleep(0.01)
        try:
            act()
        finally:
            sys.stdout.flush(); sys.stderr.flush()
            open(f'{name}.done', 'w').close()
    threading.Thread(target=work, daemon=True).start()

def until(path):
    while not os.path.exists(path):
        time.sleep(0.01)
"""


@pytest.fixture
async def threads(session: Handle) -> Handle:
    """A session with `later(name, act)` and `until(path)`."""
    await session.value(SETUP)
    return session


async def after_its_cell(session: Handle, act: str) -> None:
    """A thread of a cell that is over does something."""
    assert (await session.run(f"later('t', lambda: {act})")).text == "(no output)"
    await session.call("edit_file", container_path="t.go", content="")
    await session.wait_for_file("t.done")


async def notebook(session: Handle) -> list[dict[str, Any]]:
    """The code cells of the session's notebook."""
    await session.call("export_notebook", local_path="n.ipynb")
    cells = json.loads((session.kit.output / "n.ipynb").read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


async def test_comes_with_the_next_result_once(threads: Handle) -> None:
    """Issue 3; it says that it is not this cell's."""
    await after_its_cell(threads, "print('late')")
    assert (await threads.run("print('now')")).text == f"{LATE}\nlate\n{OF_THIS_CELL}\nnow"
    assert (await threads.run("print('again')")).text == "again"


async def test_comes_alone_where_the_cell_puts_nothing_out(threads: Handle) -> None:
    """Ours."""
    await after_its_cell(threads, "print('late')")
    assert (await threads.run("pass")).text == f"{LATE}\nlate"


async def test_is_in_the_notebook(threads: Handle) -> None:
    """Ours: a notebook holds all that was put out; here, with the cell whose result tells of it."""
    await after_its_cell(threads, "print('late')")
    await threads.run("print('now')")
    last = (await notebook(threads))[-1]
    assert ["".join(output["text"]) for output in last["outputs"]] == ["late\n", "now\n"]


async def test_picture_comes_as_an_image(threads: Handle) -> None:
    """Ours: whatever a cell can display."""
    await threads.run("import matplotlib.pyplot as plt\nfigure, _ = plt.subplots(); plt.close()")
    await after_its_cell(threads, "display(figure)")
    reply = await threads.run("'now'")
    assert reply.kinds == ["text", "image", "text"]
    assert reply.text.startswith(f"{LATE}\n")
    assert reply.text.endswith(f"{OF_THIS_CELL}\n'now'")


async def test_exception_of_a_thread_is_no_error_of_the_next_cell(threads: Handle) -> None:
    """Ours: the status is that of the cell."""
    await after_its_cell(threads, "1 / 0")
    # Python writes the traceback when the thread ends, after it has made the file.
    join = "for t in threading.enumerate():\n  if '(work)' in t.name: t.join()"
    assert [(await threads.run(code)).status for code in (join, "'now'")] == ["ok", "ok"]
    assert "ZeroDivisionError" in json.dumps(await notebook(threads))


async def test_output_during_a_later_cell_comes_with_that(threads: Handle) -> None:
    """Ours: ipykernel 6 takes it for the earlier cell's, 7 for that of the one that runs; the model sees it at once."""
    await threads.run("later('t', lambda: print('from the thread'))")
    reply = await threads.run("open('t.go', 'w').close(); until('t.done'); print('own')")
    lines = [line for line in reply.output.splitlines() if line not in (LATE, OF_THIS_CELL)]
    assert lines == ["from the thread", "own"]


async def test_waits_for_the_end_of_a_cell_that_is_still_running(threads: Handle) -> None:
    """Ours: a result with status `running` is not the cell's last word, and the output is told once."""
    await after_its_cell(threads, "print('late')")
    running = await threads.run("print('now', flush=True); until('go')", wait=0.3)
    assert running.text.startswith("now\n")
    await threads.call("edit_file", container_path="go", content="")
    assert (await threads.call("wait")).output == f"{LATE}\nlate\n{OF_THIS_CELL}\nnow"


async def test_is_not_lost_with_a_cancelled_call(threads: Handle) -> None:
    """Ours: its result reaches nobody, so the one after it tells."""
    await after_its_cell(threads, "print('late')")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(threads.run, "open('begun', 'w').close()\ntime.sleep(60)")
        await threads.wait_for_file("begun")
        tasks.cancel_scope.cancel()
    assert (await threads.run("'now'")).text == f"{LATE}\nlate\n{OF_THIS_CELL}\n'now'"


async def test_is_not_lost_with_its_kernel(threads: Handle) -> None:
    """DESIGN, loss: the last words of a kernel say why it died."""
    await after_its_cell(threads, "(print('last words'), later('end', lambda: os._exit(5)))")
    await threads.call("edit_file", container_path="end.go", content="")

    async def is_gone() -> bool:
        return "later" not in (await threads.call("list_variables")).text

    await eventually(is_gone)
    reply = await threads.run("'now'")
    assert reply.text.startswith(f"{LATE}\nlast words\n{OF_THIS_CELL}\n'now'\n[Since the last call: ")
    assert "exit code 5" in reply.text


async def test_flood_of_text_is_bounded_and_blocks_nobody(threads: Handle) -> None:
    """Ours: nobody reads it until the next cell; the host keeps head and tail, and the thread comes to its end."""
    await after_its_cell(threads, "[print('x' * 9_999) for _ in range(2_000)]")
    reply = await threads.run("'now'")
    assert reply.text.startswith(f"{LATE}\nxxx")
    assert reply.text.endswith(f"{OF_THIS_CELL}\n'now'")
    assert len(reply.text) < 10_400
    assert reply.result["truncated"]["text_bytes"] > 19_900_000
    kept = "".join((await notebook(threads))[-1]["outputs"][0]["text"])
    assert len(kept) < MAX_TEXT_BYTES + MAX_TAIL_BYTES + 20_000


async def test_flood_of_outputs_is_bounded(threads: Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours: the same for many small ones."""
    monkeypatch.setattr(outputs_module, "MAX_OUTPUTS", 50)
    await after_its_cell(threads, "[display({'text/plain': 'x'}, raw=True) for _ in range(550)]")
    reply = await threads.run("'now'")
    assert reply.result["truncated"]["outputs"] == 500
    assert reply.text.endswith("[500 more outputs dropped: too many or too large]")
