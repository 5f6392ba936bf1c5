"""Tools that run code."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Annotated

import anyio
import anyio.to_thread
from mcp.server.mcpserver import Context
from mcp.types import CallToolResult, InputRequiredResult, ToolAnnotations
from pydantic import Field

from kernel_server.errors import FileError, RequestError
from kernel_server.files.paths import SHARED, container_path
from kernel_server.sessions.jobs import Job
from kernel_server.sessions.results import Cell, CellResult
from kernel_server.sessions.session import OnProgress, Session
from kernel_server.text import one_line
from kernel_server.tools.asking import ask, can_ask, resume
from kernel_server.tools.boundary import KernelMCPServer
from kernel_server.tools.packages import hints
from kernel_server.tools.render import is_small, render, settled
from kernel_server.tools.services import reporting, services, text_result

MAX_NOTE = 2_000  # characters
SessionId = Annotated[
    str,
    Field(description="The id that init returned. Empty: a new session for this call alone; nothing of it stays."),
]
MakeCell = Callable[[Session], Cell]
Answer = CallToolResult | InputRequiredResult
Timeout = Annotated[
    float,
    Field(ge=0, description="Seconds after which the code is interrupted; 0: the server's default, normally 3600."),
]
Wait = Annotated[
    float,
    Field(
        ge=0, description="Seconds after which the call returns while the code runs on; 0: the server's default, 45."
    ),
]


async def run_code(
    code: Annotated[str, Field(description="Python source of one or many lines, as in a notebook cell.")],
    ctx: Context,
    session_id: SessionId = "",
    timeout: Timeout = 0,
    wait: Wait = 0,
) -> Answer:
    """Run Python code as a cell of the session's IPython kernel.

    Variables, imports and functions stay for the next call with the same session_id. What comes back, in order:
    printed text, the value of the last expression, images (matplotlib figures come as PNG, no plt.show() needed),
    and the traceback if the code raises. IPython syntax works: !ls, %timeit, await at top level.
    A last block, marked [kernel-server], is not printed by the code: it says which variables and files the cell created,
    changed or removed (no need to print to find out), and why a cell was stopped.
    The working directory is the session's workspace. init says whether there is a network.
    Long text is cut in the middle: print less, or write a file and read parts of it.
    If the code fails, the session goes on: fix the code and run it again. If the kernel itself dies (exit(), memory,
    a crash), the text says why, what is lost, and that a fresh kernel is ready.
    Code that takes longer than `wait` seconds runs on: the result then says how to get the rest.
    """
    if not code.strip():
        raise RequestError("run_code: code is empty; give Python code to run.")
    check_encodable(code, "code")
    cell = Cell(code, timeout=timeout or services(ctx).timeout)
    return await _run(ctx, session_id, lambda _: cell, wait)


async def run_file(
    path: Annotated[str, Field(description="The script: relative to the workspace, such as analysis.py.")],
    ctx: Context,
    session_id: SessionId = "",
    args: Annotated[list[str], Field(description="What the script finds in sys.argv[1:].")] = [],  # noqa: B006 - never changed
    timeout: Timeout = 0,
    wait: Wait = 0,
) -> Answer:
    """Run a Python script of the workspace as __main__ in the session's kernel, like IPython's %run.

    The script does not see the session's variables; its own global variables are in the session afterwards. The
    result looks like that of run_code. Bring the script in first, with edit_file or cp_in.
    """
    for argument in (path, *args):
        check_encodable(argument, "path or args")

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
        await _check_script(ctx, await registry.find(session_id), path)
    return await _run(ctx, session_id, make_cell, wait)


async def _check_script(ctx: Context, session: Session, path: str) -> None:
    wanted = container_path(path, "path", session.workspace)
    async with session.in_use():
        kind, _ = await session.host.describe("" if wanted.shared else session.session_id, wanted.relative)
    if kind != "file":
        raise FileError(f"path {path!r} is a folder; give a script in it.")


async def wait(
    session_id: Annotated[str, Field(description="The id that init returned.")],
    ctx: Context,
    wait: Annotated[float, Field(ge=0, description="Seconds to wait; 0: the server's default, 45.")] = 0,
) -> Answer:
    """Go on waiting for code that was still running when run_code or run_file returned.

    Returns its whole result when it is done, or what there is after `wait` seconds. Of several cells that are not
    collected yet, the one that was sent first.
    """
    resumed = await resume(ctx)
    if resumed is not None:
        return await _collect(ctx, *resumed, wait)
    session = await services(ctx).registry.find(session_id)
    job = session.oldest_job
    if job is None:
        raise RequestError(
            f"Nothing is running in session {session_id}, and every result has been returned; read_output has the text "
            "of earlier cells."
        )
    return await _collect(ctx, session, job, wait)


async def interrupt(
    session_id: Annotated[str, Field(description="The id that init returned.")], ctx: Context
) -> CallToolResult:
    """Stop the code that is running in a session; its variables stay.

    If it does not react to KeyboardInterrupt within some seconds, its kernel is killed, and the text says what is lost.
    The result comes from the call that waits for the code, or from wait.
    """
    session = await services(ctx).registry.find(session_id)
    job = await session.interrupt()
    if job is None:
        return text_result("Nothing is running in this session.")
    if job.result is None:
        why = one_line(str(job.failure), MAX_NOTE) if job.failure else "Call wait to see what happens."
        return text_result(f"The code did not stop in time. {why}")
    notes = "".join(f"\n[{one_line(note, MAX_NOTE)}]" for note in job.result.notes)
    return text_result(f"Interrupted after {job.result.seconds:.1f} s. Call wait for its output.{notes}")


async def _run(ctx: Context, session_id: str, make_cell: MakeCell, wait: float) -> Answer:
    registry = services(ctx).registry
    resumed = await resume(ctx)
    if resumed is not None:
        session, job = resumed
    else:
        session = await registry.find(session_id) if session_id else await registry.open(reporting(ctx))
    over = True
    try:
        if resumed is None:
            job = session.submit(replace(make_cell(session), interactive=can_ask(ctx)))
        try:
            result = await _collect(ctx, session, job, wait, one_shot=not session_id)
        except anyio.get_cancelled_exc_class():
            if not session_id or not registry.leaves_sessions:
                await session.abandon(job)
            raise
        over = job.done.is_set()
    finally:
        if over and not session_id:
            registry.end_one_shot(session)
    return result


async def _collect(ctx: Context, session: Session, job: Job, wait: float, *, one_shot: bool = False) -> Answer:
    """Waits for a job, and asks a person what it asks for."""
    while True:
        result = await session.collect(job, wait or services(ctx).wait, _reporting(ctx))
        if not job.input.asked.is_set() or not can_ask(ctx):
            told = hints(job.cell.code, result, session.host.description, services(ctx).installer.allowed)
            result = replace(result, notes=[*result.notes, *told])
            return await _rendered(ctx, result, one_shot=one_shot)
        if (needed := await ask(ctx, session, job, _reporting(ctx))) is not None:
            return needed


async def _rendered(ctx: Context, result: CellResult, *, one_shot: bool) -> CallToolResult:
    """In a thread: megabytes of text and hostile pictures of one session must not hold up the others.

    Small results, which are most, need none: all threads may be at work on large ones, for seconds.
    """
    parts = services(ctx)
    small = is_small(result)
    make = partial(
        render, result if small else settled(result), parts.output_bytes, parts.decoder.check, one_shot=one_shot
    )
    if small:
        return make()
    return await anyio.to_thread.run_sync(make, limiter=parts.renderers, abandon_on_cancel=True)


def _reporting(ctx: Context) -> OnProgress:
    async def report(seconds: float, last_line: str) -> None:
        message = f"the code printed: {last_line}" if last_line else f"running for {seconds:.0f} s"
        await ctx.report_progress(seconds, None, message)

    return report


def check_encodable(text: str, argument: str) -> None:
    """Refuses what a kernel cannot take as Python source.

    Raises:
        RequestError: it is such a text.
    """
    if "\0" in text:
        raise RequestError(f"{argument} holds a NUL character, which Python source cannot; write it as \\0.")
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
    server.tool(title="Wait for running code", annotations=ToolAnnotations(read_only_hint=True, open_world_hint=False))(
        wait
    )
    server.tool(title="Interrupt running code", annotations=annotations)(interrupt)
