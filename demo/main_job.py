"""`make demo`: the main job through the real server, over stdio, with a real MCP client.

Plays what an agent would do with sixty days of an ice cream kiosk (the numbers are invented), shows each call with its
result, and leaves the plot and the notebook in `demo-output/`.
"""

from __future__ import annotations

import base64
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO

import anyio
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.types import CallToolResult, ImageContent, TextContent
from rich import box
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.rule import Rule
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
INPUT = ROOT / "demo"
OUTPUT = ROOT / "demo-output"
MAX_WIDTH = 100
MAX_LINES = 14
MAX_COLUMN = 36  # texts of shorter lines, such as names of packages, are shown in columns
STDERR_LINES = 25
CALL_SECONDS = 1800.0  # the first call may build the image

LOAD = """\
import pandas as pd

df = pd.read_csv("ice_cream.csv", parse_dates=["date"])
df["weekend"] = df["date"].dt.day_of_week >= 5
df.describe().loc[["mean", "min", "max"]].drop(columns="date").round(1)
"""

PLOT = """\
import matplotlib.pyplot as plt
import numpy as np

plt.rcParams |= {"axes.spines.top": False, "axes.spines.right": False}
weekday, weekend, warm = "#86b8b1", "#e8a87c", "#c8553d"
fig, (left, right) = plt.subplots(
    1, 2, figsize=(10.5, 4.2), width_ratios=[3, 2], layout="constrained"
)

left.bar(df["date"], df["cones"], color=np.where(df["weekend"], weekend, weekday))
left.set_title("Cones sold a day", loc="left")
left.set_ylim(0, 540)
left.set_xticks(df["date"][::10], df["date"][::10].dt.strftime("%-d %b"))
heat = left.twinx()
heat.plot(df["date"], df["temperature_c"].rolling(5, center=True).mean(), color=warm)
heat.set_ylim(0, 30)
heat.set_ylabel("°C, mean of five days", color=warm)
heat.tick_params(axis="y", colors=warm)

for name, colour in ("weekday", weekday), ("weekend", weekend):
    group = df[df["weekend"] == (name == "weekend")].sort_values("temperature_c")
    x, y = group["temperature_c"], group["cones"]
    slope, start = np.polyfit(x, y, 1)
    right.scatter(x, y, s=36, color=colour, edgecolor="white", lw=0.6)
    label = f"{name}: {slope:.0f} more cones per °C"
    right.plot(x, start + slope * x, color=colour, lw=2, label=label)
right.set_title("The warmer, the more", loc="left")
right.set_xlabel("°C")
right.set_ylim(0, 540)
right.legend(frameon=False, loc="upper left")

fig.savefig("ice_cream.png", dpi=160)
"""

SCRIPT = '''\
"""How many cones tomorrow? Usage: forecast.py TEMPERATURE..."""
import sys
import numpy as np
import pandas as pd

days = pd.read_csv("ice_cream.csv", parse_dates=["date"])
weekend = days["date"].dt.day_of_week >= 5
x = np.column_stack([np.ones(len(days)), days["temperature_c"], weekend])
weights, *_ = np.linalg.lstsq(x, days["cones"], rcond=None)

print("       weekday  weekend")
for temperature in map(float, sys.argv[1:]):
    forecast = [weights @ [1, temperature, day] for day in (0, 1)]
    print(f"{temperature:.0f} °C  {forecast[0]:7.0f}  {forecast[1]:7.0f}")
'''


class DemoError(Exception):
    """A call did not give what the demo needs; the message is for a person."""


class Waiting:
    """The live line: what is going on, and for how long."""

    def __init__(self, line: str) -> None:
        self.line = line
        self._started = time.monotonic()

    def __rich__(self) -> Text:
        seconds = time.monotonic() - self._started
        return Text.assemble(self.line, (f"  {seconds:.0f} s" if seconds >= 1 else "", "dim"), no_wrap=True)


class Screen:
    """What the person sees: a live line while a call runs, then a panel with the call and its result."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._waiting = Waiting("")
        self.calls = 0
        self.files: list[Path] = []

    @contextmanager
    def working(self, line: str) -> Iterator[None]:
        """Shows that something is going on, for the length of the block."""
        self._waiting = Waiting(line)
        with self._console.status(self._waiting):
            yield

    def progress(self, line: str) -> None:
        """A line of the server while it works; where there is no terminal, each is printed once."""
        if not self._console.is_terminal and line != self._waiting.line:
            self._console.print(f"  … {line}", style="dim")
        self._waiting.line = line

    def show_call(self, tool: str, arguments: dict[str, Any], result: CallToolResult, seconds: float) -> None:
        """The panel of one call."""
        self.calls += 1
        parts: list[RenderableType] = [*_arguments(arguments), Rule(style="dim")] if arguments else []
        for block in result.content:
            if isinstance(block, TextContent):
                parts.append(_shortened(block.text))
            elif isinstance(block, ImageContent):
                parts.append(self._save_image(block))
        self._console.print(
            Panel(
                Group(*parts),
                title=f"[bold cyan]{self.calls}[/]  [bold]{tool}[/]",
                title_align="left",
                subtitle=f"[dim]{seconds:.2f} s[/]",
                subtitle_align="right",
                border_style="red" if result.is_error else "cyan",
                box=box.ROUNDED,
                padding=(0, 1),
            )
        )

    def _save_image(self, block: ImageContent) -> Text:
        data = base64.b64decode(block.data)
        path = OUTPUT / f"result-of-call-{self.calls}.{block.mime_type.rpartition('/')[2]}"
        path.write_bytes(data)
        self.files.append(path)
        return Text.assemble(
            ("▣ ", "magenta"), f"{block.mime_type}, {_size(data)}, saved as ", (_shown(path), "magenta")
        )

    def show_end(self, seconds: float) -> None:
        """What is left for the person."""
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        for path in self.files:
            table.add_row(f"[bold magenta]{_shown(path)}[/]", _size(path.read_bytes()))
        self._console.print(f"\n[bold green]Done[/]: {self.calls} calls in {seconds:.1f} s. Look at:")
        self._console.print(table)


class Demo:
    """Calls tools and shows them."""

    def __init__(self, client: Client, screen: Screen) -> None:
        self._client = client
        self._screen = screen
        self.session_id = ""

    async def call(self, tool: str, **arguments: Any) -> CallToolResult:
        """Calls a tool in the demo's session.

        Raises:
            DemoError: the tool reports an error, or the code failed.
        """

        async def on_progress(progress: float, total: float | None, message: str | None) -> None:
            if message:
                self._screen.progress(message)

        started = time.monotonic()
        session = {"session_id": self.session_id} if self.session_id else {}
        with self._screen.working(f"{tool} …"):
            with anyio.fail_after(CALL_SECONDS):
                result = await self._client.call_tool(tool, arguments | session, progress_callback=on_progress)
        self._screen.show_call(tool, arguments, result, time.monotonic() - started)
        status = (result.meta or {}).get("kernel_server/result", {}).get("status", "ok")
        if result.is_error or status != "ok":
            raise DemoError(f"{tool} failed ({'tool error' if result.is_error else status})")
        return result


async def play(demo: Demo, screen: Screen) -> None:
    """The main job, as an agent would do it."""
    started = await demo.call("init")
    assert started.meta is not None
    demo.session_id = started.meta["kernel_server/session"]["session_id"]
    await demo.call("cp_in", local_path="ice_cream.csv")
    await demo.call("run_code", code=LOAD)
    await demo.call("run_code", code=PLOT)
    await demo.call("edit_file", container_path="forecast.py", content=SCRIPT)
    await demo.call("run_file", path="forecast.py", args=["18", "24", "30"])
    await demo.call("cp_out", container_path="ice_cream.png")
    await demo.call("list_packages")
    await demo.call("export_notebook", local_path="ice_cream.ipynb")
    await demo.call("close_session")
    for name in ("ice_cream.png", "ice_cream.ipynb"):
        if not (OUTPUT / name).is_file():
            raise DemoError(f"{name} is not in {_shown(OUTPUT)}")
        screen.files.append(OUTPUT / name)


async def run(console: Console, stderr: TextIO) -> None:
    """Starts the server, plays, stops the server."""
    OUTPUT.mkdir(exist_ok=True)
    screen = Screen(console)
    parameters = StdioServerParameters(
        command=sys.executable,
        args=[str(ROOT / "server.py"), "--WORKDIR_IN", str(INPUT), "--WORKDIR_OUT", str(OUTPUT)],
        env={**os.environ, "PY_EXEC_ON_EXIT": "remove"},
        cwd=ROOT,
    )
    command = f"python server.py --WORKDIR_IN {_shown(INPUT)} --WORKDIR_OUT {_shown(OUTPUT)}"
    console.print(f"[bold]kernel-server[/], through an MCP client over stdio: [dim]{command}[/]\n")
    started = time.monotonic()
    async with AsyncExitStack() as stack:
        with screen.working("Starting the server …"):
            client = await stack.enter_async_context(Client(stdio_client(parameters, errlog=stderr)))
        await play(Demo(client, screen), screen)
        with screen.working("Stopping the server …"):
            await stack.aclose()
    screen.show_end(time.monotonic() - started)


def _arguments(arguments: dict[str, Any]) -> list[RenderableType]:
    """Short ones as `name value`, code highlighted."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    code: list[RenderableType] = []
    for name, value in arguments.items():
        if isinstance(value, str) and "\n" in value:
            # The colours of the terminal itself, on its own background.
            code.append(
                Syntax(value.rstrip("\n"), "python", theme="ansi_dark", background_color="default", word_wrap=True)
            )
        else:
            table.add_row(f"[dim]{name}[/]", Text(value if isinstance(value, str) else " ".join(value)))
    return [table, *code] if table.row_count else code


def _shortened(text: str) -> RenderableType:
    lines = text.split("\n")
    if len(lines) <= MAX_LINES:
        return Text(text)
    if max(map(len, lines)) < MAX_COLUMN:
        shown = lines[: 3 * MAX_LINES]
        rest = f"… {len(lines) - len(shown)} more" if len(lines) > len(shown) else ""
        return Group(Columns([Text(line) for line in shown], column_first=True, padding=(0, 2)), Text(rest))
    return Text("\n".join([*lines[:MAX_LINES], f"… {len(lines) - MAX_LINES} more lines"]))


def _shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _size(data: bytes) -> str:
    size = f"{len(data) / 1000:.0f} kB"
    if data.startswith(b"\x89PNG"):  # width and height are the first two fields of the IHDR chunk
        width, height = (int.from_bytes(data[start : start + 4], "big") for start in (16, 20))
        return f"{width} x {height} px, {size}"
    return size


def main() -> int:
    """Returns the exit code: 1 when something failed."""
    console = Console(highlight=False)
    console.width = min(console.width, MAX_WIDTH)
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as stderr:
        try:
            anyio.run(run, console, stderr)
            return 0
        except KeyboardInterrupt:
            return 130
        except Exception as error:  # whatever it is, a person wants to see what the server said
            console.print(f"\n[bold red]The demo failed[/]: {_reason(error)}")
            stderr.seek(0)
            tail = stderr.read().splitlines()[-STDERR_LINES:]
            console.print(Panel(Text("\n".join(tail) or "(nothing)"), title="the server's stderr", border_style="red"))
            return 1


def _reason(error: BaseException) -> str:
    """The cause inside of task groups' wrappers."""
    inner: tuple[BaseException, ...] = getattr(error, "exceptions", ())
    return _reason(inner[0]) if inner else str(error) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
