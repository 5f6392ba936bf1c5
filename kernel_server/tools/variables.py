"""The tool that looks inside a session, also while its code is running."""

from __future__ import annotations

from typing import Annotated

from mcp.server.mcpserver import Context
from mcp.types import CallToolResult, ToolAnnotations
from pydantic import Field

from kernel_server.kernels.changes import Look, Variable
from kernel_server.sessions.session import Session
from kernel_server.text import clean, counted, cut_middle, one_line, settle
from kernel_server.tools.boundary import KernelMCPServer
from kernel_server.tools.code import check_encodable
from kernel_server.tools.notes import session_result
from kernel_server.tools.services import services
from kernel_server.tools.summary import describe_variable


async def list_variables(
    session_id: Annotated[str, Field(description="The id that init returned.")],
    ctx: Context,
    peek: Annotated[
        str, Field(description="One Python expression, such as len(rows) or df.head(); empty: all variables.")
    ] = "",
) -> CallToolResult:
    """List a session's variables with type and shape, or look at the value of one expression.

    Works while code is running, and says what is running and for how long: for the state of a long loop, or to see
    why it takes so long. An expression gets 5 seconds, and should only read. Imported names are not listed.
    """
    check_encodable(peek, "peek")
    session = await services(ctx).registry.find(session_id)
    look = await session.look(peek)
    text = _text(look) if peek or look.error else _table(look)
    notes = [_running(session), f"and {look.more} more" if look.more else ""]
    return session_result(cut_middle(text, services(ctx).output_bytes, "look at a part of it"), notes)


def _running(session: Session) -> str:
    job = session.running_job
    if job is None:
        return "nothing is running"
    waiting = f", {counted(session.waiting_jobs, 'more cell')} waiting" if session.waiting_jobs else ""
    return f"running for {job.seconds:.1f} s: {job.title!r}{waiting}"


def _text(look: Look) -> str:
    return f"[{clean(settle(look.error))}]" if look.error else clean(settle(look.text)).rstrip("\n")


def _table(look: Look) -> str:
    return "\n".join(map(_line, look.variables)) or "(no variables)"


def _line(variable: Variable) -> str:
    value = f" = {one_line(variable.value, 60)}" if variable.value else ""
    return describe_variable(variable) + value


def register(server: KernelMCPServer) -> None:
    """Adds the tool of this module."""
    annotations = ToolAnnotations(read_only_hint=False, destructive_hint=False, open_world_hint=False)
    server.tool(title="List variables", annotations=annotations)(list_variables)
