"""Tools that run code."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Annotated

from mcp.server.mcpserver import Context
from mcp.types import CallToolResult, ToolAnnotations
from pydantic import Field

from kernel_server.errors import FileError, RequestError
from kernel_server.files.paths import SHARED, container_path
from kernel_server.sessions.results import Cell, CellResult
from kernel_server.sessions.session import Session
from kernel_server.tools.boundary import KernelMCPServer
from kernel_server.tools.render import render
from kernel_server.tools.services import reporting, services

SessionId = Annotated[
    str,
    Field(description="The id that init returned. Empty: a new session for this call alone; nothing of it stays."),
]
MakeCell = Callable[[Session], Cell]
Timeout = Annotated[
    float,
    Field(ge=0, description="Seconds after which the code is interrupted; 0: the server's default, normally 300."),
]


async def run_code(
    code: Annotated[str, Field(description="Python source of one or many lines, as in a notebook cell.")],
    ctx: Context,
    session_id: SessionId = "",
    timeout: Timeout = 0,
) -> CallToolResult:
    """Run Python code as a cell of the session's IPython kernel.

    Variables, imports and functions stay for the next call with the same session_id. What comes back, in order:
    printed text, the value of the last expression, images (matplotlib figures come as PNG, no plt.show() needed),
    and the traceback if the code raises. IPython syntax works: !ls, %timeit, await at top level.
    The working directory is the session's workspace. init says whether there is a network; nobody answers input().
    Long text is cut in the middle: print less, or write a file and read parts of it.
    If the code fails, the session goes on: fix the code and run it again. If the kernel itself dies (exit(), memory,
    a crash), the text says why, what is lost, and that a fresh kernel is ready.
    """
    if not code.strip():
        raise RequestError("run_code: code is empty; give Python code to run.")
    _check_encodable(code, "code")
    cell = Cell(code, timeout=timeout or services(ctx).timeout)
    return render(await _run(ctx, session_id, lambda _: cell), services(ctx).output_bytes)


async def run_file(
    path: Annotated[str, Field(description="The script: relative to the workspace, such as analysis.py.")],
    ctx: Context,
    session_id: SessionId = "",
    args: Annotated[list[str], Field(description="What the script finds in sys.argv[1:].")] = [],  # noqa: B006 - never changed
    timeout: Timeout = 0,
) -> CallToolResult:
    """Run a Python script of the workspace as __main__ in the session's kernel, like IPython's %run.

    The script does not see the session's variables; its own global variables are in the session afterwards. The
    result looks like that of run_code. Bring the script in first, with edit_file or cp_in.
    """
    for argument in (path, *args):
        _check_encodable(argument, "path or args")

    def make_cell(session: Session) -> Cell:
        wanted = container_path(path, "path", session.workspace)
        absolute = f"{SHARED if wanted.shared else session.workspace}/{wanted.relative}"
        line = shlex.join(["-G", "--", absolute, *args])
        return Cell(
            # Called as a function: %run itself would expand `$name` and `{name}` in file names and arguments.
            f"get_ipython().find_line_magic('run')({line!r})",
            source=f"%run {shlex.join([path, *args])}",
            timeout=timeout or services(ctx).timeout,
        )

    registry = services(ctx).registry
    if session_id:
        await _check_script(ctx, registry.get(session_id), path)
    return render(await _run(ctx, session_id, make_cell), services(ctx).output_bytes)


async def _check_script(ctx: Context, session: Session, path: str) -> None:
    wanted = container_path(path, "path", session.workspace)
    host = await services(ctx).registry.host()
    async with session.in_use():
        kind, _ = await host.describe("" if wanted.shared else session.session_id, wanted.relative)
    if kind != "file":
        raise FileError(f"path {path!r} is a folder; give a script in it.")


async def _run(ctx: Context, session_id: str, make_cell: MakeCell) -> CellResult:
    registry = services(ctx).registry
    if session_id:
        session = registry.get(session_id)
        return await session.run_cell(make_cell(session))
    async with registry.one_shot(reporting(ctx)) as session:
        return await session.run_cell(make_cell(session))


def _check_encodable(text: str, argument: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"{argument} holds a lone surrogate at character {error.start}, which is not valid text; write it as an escape."
        ) from None


def register(server: KernelMCPServer) -> None:
    """Adds the tools of this module."""
    annotations = ToolAnnotations(read_only_hint=False, destructive_hint=True, open_world_hint=False)
    server.tool(title="Run code", annotations=annotations)(run_code)
    server.tool(title="Run a file", annotations=annotations)(run_file)
