"""Somebody who works in a session of the soak, and knows what each reply must be."""

from __future__ import annotations

import random
import time
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio

from tests.driving import Reply, eventually

Call = Callable[..., Awaitable[Reply]]
Step = Callable[["User"], Awaitable[None]]

TTL_SECONDS = 12.0
CHECK_SECONDS = 1.0
EXPIRY_PATIENCE_SECONDS = 60.0  # the server ends one session after another, on a machine that is busy
EXPIRY_HASTE_SECONDS = 0.5  # its clock starts before the last reply has arrived here
LATE_SECONDS = 0.3
BLOCK_NUMBERS = 50 << 17  # 8 bytes each: 50 MB
LARGE_LINES = 1_000  # of 100 bytes


class Wrong(Exception):
    """A reply is not what it must be."""


def same(what: str, got: object, wanted: object) -> None:
    """Raises Wrong unless they are equal."""
    if got != wanted:
        raise Wrong(f"{what}: got {got!r:.400}, wanted {wanted!r:.400}")


def has(what: str, text: str, wanted: str) -> None:
    """Raises Wrong unless `wanted` is in the text."""
    if wanted not in text:
        raise Wrong(f"{what}: no {wanted!r} in {text[:200]!r} … {text[-400:]!r}")


class User:
    """A session, and a plain model of what is in it: who it belongs to, a counter, how many cells have run.

    Attributes:
        did: kinds of steps so far.
        ended: of one-shot sessions, whose folders must go.
    """

    def __init__(self, call: Call, name: str, seed: str, folder_in: Path, folder_out: Path) -> None:
        self.name = name
        self.random = random.Random(f"{seed} {name}")  # noqa: S311 - to be repeated
        self.session_id = ""
        self.did: list[str] = []
        self.ended: list[str] = []
        self._call = call
        self._in, self._out = folder_in, folder_out
        self._counter = 0
        self._cells = 0
        self._generation = 1

    # -- a session's life ------------------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Gets a session."""
        reply = await self._call("init")
        if reply.is_error or reply.raw.meta is None:
            raise Wrong(f"init: {reply.text}")
        self.session_id = reply.raw.meta["kernel_server/session"]["session_id"]
        await self._value(f"counter, owner = 0, {self.name!r}\nopen('owner', 'w').write(owner)", str(len(self.name)))

    async def check(self) -> None:
        """Nothing of the session is lost, and nothing of another one is in it."""
        step = self.random.randint(1, 1_000)
        self._counter += step
        await self._value(f"counter += {step}; owner, counter", repr((self.name, self._counter)))

    async def close(self) -> None:
        """Ends the session by hand."""
        has("close_session", (await self._tool("close_session")).text, "is closed")
        await self._refused("was closed by close_session")

    async def expire(self, is_there: Callable[[str], Awaitable[bool]]) -> None:
        """Leaves the session alone until it has expired: not before its time, and not long after."""
        begun = time.monotonic()
        with anyio.fail_after(TTL_SECONDS + EXPIRY_PATIENCE_SECONDS):
            while True:
                await anyio.sleep(CHECK_SECONDS)
                if not await is_there(self.session_id):
                    break
        if (seconds := time.monotonic() - begun) < TTL_SECONDS - EXPIRY_HASTE_SECONDS:
            raise Wrong(f"the session was gone after {seconds:.1f} s")
        await self._refused(" expired: ")

    async def _refused(self, how: str) -> None:
        reply = await self._call("run_code", code="counter", session_id=self.session_id)
        if not reply.is_error:
            raise Wrong(f"a session that has ended runs code: {reply.text}")
        has("what an ended session says", reply.text, how)

    async def export(self) -> None:
        """The notebook has every cell, also after the session's end."""
        notebook = f"{self.name}.ipynb"
        reply = await self._tool("export_notebook", local_path=notebook)
        has("export_notebook", reply.text, f"Wrote a notebook of {self._cells} cells")
        (self._out / notebook).unlink()

    # -- calls -----------------------------------------------------------------------------------------------------

    async def _tool(self, tool: str, **arguments: Any) -> Reply:
        reply = await self._call(tool, session_id=self.session_id, **arguments)
        if reply.is_error:
            raise Wrong(f"{tool}: {reply.text}")
        return reply

    async def _run(self, code: str, status: str = "ok", tool: str = "run_code", **arguments: Any) -> Reply:
        given = {"code": code} if code else {}
        reply = await self._tool(tool, **given, **arguments)
        if reply.status != status:
            raise Wrong(f"{tool} {code!r:.200} has status {reply.status}, not {status}: {reply.text:.2000}")
        same("session_id", reply.result["session_id"], self.session_id)
        same("generation", reply.result["generation"], self._generation)
        self._cells += status != "running"
        return reply

    async def _value(self, code: str, wanted: str, **arguments: Any) -> None:
        same(f"output of {code!r:.200}", (await self._run(code, **arguments)).output, wanted)

    # -- what one does in a session --------------------------------------------------------------------------------

    async def value(self) -> None:
        await self._value("1+1", "2")

    async def prints(self) -> None:
        count = self.random.randint(1, 50)
        lines = [f"{self.name} {number}" for number in range(count)]
        await self._value(f"for number in range({count}): print(owner, number)", "\n".join(lines))

    async def frame(self) -> None:
        rows = self.random.randint(1_000, 100_000)
        code = "import numpy as np, pandas as pd\nframe = pd.DataFrame({'a': np.arange(%d), 'b': np.arange(%d) %% 7})\n"
        code = code % (rows, rows) + "[int(total) for total in frame.groupby('b')['a'].sum()]"
        await self._value(code, repr([sum(range(rest, rows, 7)) for rest in range(7)]))

    async def plot(self) -> None:
        points = self.random.randint(2, 500)
        code = f"import matplotlib.pyplot as plt\n_ = plt.plot(range({points}))\nplt.title(owner)\nprint('drawn')"
        reply = await self._run(code)
        same("images of a plot", [image.mime_type for image in reply.images], ["image/png"])
        has("a plot's image", reply.images[0].data[:20], "iVBORw0KGgo")
        has("a plot's text", reply.text, "drawn")

    async def error(self) -> None:
        number = self.random.randint(1, 1_000_000)
        reply = await self._run(f"raise LookupError('{number}')", "error")
        has("a traceback", reply.text, f"LookupError: {number}")

    async def large(self) -> None:
        first = self.random.randint(0, 10_000)
        lines = [f"{number} {self.name:x<90}" for number in range(first, first + LARGE_LINES)]
        reply = await self._run(
            f"for number in range({first}, {first + LARGE_LINES}): print(f'{{number}} {{owner:x<90}}')"
        )
        shown = reply.output.splitlines()
        same("first and last line of a large output", [shown[0], shown[-1]], [lines[0], lines[-1]])
        has("a large output", reply.text, "bytes left out")
        middle = LARGE_LINES // 2
        count = reply.result["execution_count"]
        found = await self._tool("read_output", execution_count=count, pattern=f"{first + middle} ")
        same("read_output", found.text, f"{middle + 1}: {lines[middle]}")

    async def wait(self) -> None:
        seconds = self.random.choice((1.5, 3.0))
        await self._run(f"import time\nprint('begun'); time.sleep({seconds}); counter", "running", wait=0.3)
        await self._value("", f"begun\n{self._counter}", tool="wait")

    async def outlast(self) -> None:
        """A running cell is use."""
        await self._run(f"import time\ntime.sleep({TTL_SECONDS + 5}); counter", "running", wait=0.3)
        await anyio.sleep(TTL_SECONDS + 5)
        await self._value("", str(self._counter), tool="wait")

    async def pause(self) -> None:
        """Less than the TTL: nothing may be lost."""
        await anyio.sleep(TTL_SECONDS * self.random.uniform(0.3, 0.6))

    async def interrupt(self) -> None:
        await self._run("import time\nprint('asleep'); time.sleep(600)", "running", wait=0.5)
        has("interrupt", (await self._tool("interrupt")).text, "Interrupted after")
        reply = await self._run("", "interrupted", tool="wait")
        same("output of an interrupted cell", reply.text.splitlines()[0], "asleep")

    async def cancel(self) -> None:
        """The client gives a call up, which interrupts the cell."""

        async def runs() -> bool:
            return (await self._tool("list_variables")).notes[0].startswith("[running for ")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._run, "import time; time.sleep(600)")
            await eventually(runs)
            tasks.cancel_scope.cancel()
        self._cells += 1

    async def files(self) -> None:
        """In, looked at and turned inside, and out."""
        name = f"{self.name}.bin"
        data = self.random.randbytes(self.random.randint(1, 200_000))
        (self._in / name).write_bytes(data)
        has("cp_in", (await self._tool("cp_in", local_path=name, container_path="in.bin")).text, "to 'in.bin'")
        code = "import zlib\ndata = open('in.bin', 'rb').read()\n_ = open('out.bin', 'wb').write(data[::-1])\n"
        await self._value(code + "zlib.crc32(data)", str(zlib.crc32(data)))
        has("list_files", (await self._tool("list_files")).text, "out.bin")
        has("cp_out", (await self._tool("cp_out", container_path="out.bin", local_path=name)).text, name)
        same("what came out", (self._out / name).read_bytes(), data[::-1])
        for folder in (self._in, self._out):
            (folder / name).unlink()

    async def script(self) -> None:
        factor, terms = self.random.randint(2, 99), [self.random.randint(0, 99) for _ in range(3)]
        text = "import sys\nproduct = sum(map(int, sys.argv[1:])) * FACTOR\nprint(__name__, product)\n"
        await self._tool("edit_file", container_path="src/job.py", content=text)
        await self._tool("edit_file", container_path="src/job.py", content=str(factor), old="FACTOR")
        wanted = f"__main__ {sum(terms) * factor}"
        await self._value("", wanted, tool="run_file", path="src/job.py", args=[str(term) for term in terms])

    async def variables(self) -> None:
        has("list_variables", (await self._tool("list_variables")).text, f"counter int = {self._counter}")
        peeked = await self._tool("list_variables", peek="owner, counter")
        same("a peek", (peeked.cell_text, peeked.notes), (str((self.name, self._counter)), ["[nothing is running]"]))

    async def sessions(self) -> None:
        listed = (await self._call("list_sessions")).raw.structured_content
        ids = [session["session_id"] for session in listed["sessions"]] if listed else []
        same("times that list_sessions has the session", ids.count(self.session_id), 1)

    async def memory(self) -> None:
        code = f"import numpy as np\nblock = np.ones({BLOCK_NUMBERS}); total = int(block.sum()); del block; total"
        await self._value(code, str(BLOCK_NUMBERS))

    async def late(self) -> None:
        """What a thread prints after its cell comes once."""
        said = f"{self.name} late {self.random.random()}"
        code = f"import threading\ntimer = threading.Timer({LATE_SECONDS}, print, [{said!r}])\ntimer.start()"
        texts = [(await self._run(code)).text]
        await anyio.sleep(self.random.choice((0.0, 3 * LATE_SECONDS)))
        texts.append((await self._run("timer.join(); del timer; 'joined'")).text)
        same(f"times that {said!r} is in {texts}", "".join(texts).count(said), 1)
        has("the cell after a late output", texts[1], "'joined'")

    async def death(self) -> None:
        """It is told; variables are gone, files stay."""
        code = self.random.randint(1, 99)
        reply = await self._run(f"import os; os._exit({code})", "died")
        has("a death", reply.text, f"exit code {code} ")
        self._generation += 1
        has("a death", reply.text, f"(generation {self._generation})")
        has("a variable after a death", (await self._run("counter", "error")).text, "NameError")
        self._counter = 0
        await self._value("counter, owner = 0, open('owner').read(); owner", repr(self.name))

    async def one_shot(self) -> None:
        number = self.random.randint(0, 1_000_000)
        reply = await self._call("run_code", code=f"print({number}); 'counter' in globals()")
        same("status of a one-shot call", reply.status, "ok")
        same("output of a one-shot call", reply.text, f"{number}\nFalse")
        self.ended.append(reply.result["session_id"])


STEPS: dict[str, tuple[Step, float]] = {
    "1+1": (User.value, 20),
    "prints": (User.prints, 10),
    "pandas": (User.frame, 10),
    "plot": (User.plot, 6),
    "error": (User.error, 6),
    "100 kB of output": (User.large, 4),
    "long, wait": (User.wait, 3),
    "longer than the TTL": (User.outlast, 0.3),
    "pause": (User.pause, 1),
    "interrupt": (User.interrupt, 2),
    "cancelled call": (User.cancel, 1),
    "cp_in, cp_out": (User.files, 5),
    "edit_file, run_file": (User.script, 5),
    "list_variables": (User.variables, 5),
    "list_sessions": (User.sessions, 0.7),
    "50 MB": (User.memory, 3),
    "late output": (User.late, 4),
    "death of the kernel": (User.death, 1.5),
    "one-shot": (User.one_shot, 4),
}
"""What there is to do, and how often it is done beside the others."""
