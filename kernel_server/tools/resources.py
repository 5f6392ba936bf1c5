"""The same as resources, for clients that read those: a session's notebook, whole outputs, files of its workspace.

Tools alone give all of it too: many clients know nothing else.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from urllib.parse import unquote

import anyio.to_thread
from mcp.server import MCPServer
from mcp.server.lowlevel.helper_types import ReadResourceContents
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.resources import ResourceSecurity
from mcp.types import Resource

from kernel_server.errors import FileError, RequestError, SessionError
from kernel_server.files.contents import BYTES_TYPE, mime_type, read_item, text_or_bytes
from kernel_server.files.paths import check_parts
from kernel_server.hosts.base import KernelHost
from kernel_server.sessions.registry import Registry
from kernel_server.text import cut_middle, human_size, one_line
from kernel_server.tools.recorded import cell_text
from kernel_server.tools.services import Services, services
from kernel_server.transcripts.notebook import make_notebook

NOTEBOOK_URI = "kernel://sessions/{session_id}/notebook.ipynb"
OUTPUT_URI = "kernel://sessions/{session_id}/outputs/{execution_count}"
FILE_URI = "kernel://sessions/{session_id}/files/{+path}"
NOTEBOOK_TYPE = "application/x-ipynb+json"
VARYING_TYPE = BYTES_TYPE  # until the file is there

MAX_BYTES = 8_000_000  # a resource is one line on the wire, and stands in the memory of both ends
MAX_OUTPUT_BYTES = 1_000_000
MAX_DIGITS = 16  # of an execution_count, which is below 2**53


async def notebook(session_id: str, ctx: Context) -> str:
    """All that ran in a session, as a Jupyter notebook. Also of a session that has ended, for a week or so."""
    registry = services(ctx).registry
    async with _used(registry, session_id):
        journal = await registry.find_journal(session_id)
        python = registry.python

        def make() -> str:
            return make_notebook(journal.cells(), session_id, python, MAX_BYTES)

        try:
            return await anyio.to_thread.run_sync(make, limiter=registry.readers)
        except OverflowError:
            raise FileError(
                f"The notebook has more than {human_size(MAX_BYTES)}, which is what a resource may have. "
                "export_notebook writes it to WORKDIR_OUT."
            ) from None


async def output(session_id: str, execution_count: str, ctx: Context) -> str:
    """All text that a cell put out: outputs/3 is that of In[3], outputs/0 that of the last cell.

    Of more than 1 MB, head and tail; read_output pages through all of it. Also of a session that has ended, for a week or so.
    """
    if not (execution_count.isascii() and execution_count.isdigit() and len(execution_count) <= MAX_DIGITS):
        raise RequestError(f"{execution_count[:40]!r} is no number of a cell: use 3 for In[3], 0 for the last cell.")
    number = int(execution_count)
    registry = services(ctx).registry
    async with _used(registry, session_id):
        text = await cell_text(registry, session_id, number)
    rest = f"read_output(session_id={session_id!r}, execution_count={number}) pages through it"
    return await anyio.to_thread.run_sync(cut_middle, text, MAX_OUTPUT_BYTES, rest)


async def file(session_id: str, path: str, ctx: Context) -> str | bytes:
    """A file of a session's workspace, such as files/plots/a.png: text if it is UTF-8, else bytes.

    Up to 8 MB; cp_out copies larger ones, and folders. In its path, write ? as %3F, # as %23 and % as %25.
    """
    if path.startswith("/"):
        raise FileError(f"{path!r} must be relative to the workspace: leave out the folder in front.")
    relative = "/".join(check_parts(path, "path"))
    registry = services(ctx).registry
    session = await registry.find(session_id)
    async with session.in_use():
        await _check_file(session.host, session_id, relative)
        async with session.host.take(session_id, relative, MAX_BYTES) as (staged, chunks):
            if staged.kind != "file" or staged.size > MAX_BYTES:
                raise FileError(f"{path} has changed while it was read. Try again.")
            data = await anyio.to_thread.run_sync(read_item, chunks, staged.size)
    return text_or_bytes(data)


async def _check_file(host: KernelHost, session_id: str, relative: str) -> None:
    """Says beforehand what cannot be read; `take` holds to it, whatever the session does meanwhile."""
    kind, size = await host.describe(session_id, relative)
    if kind != "file":
        raise FileError(f"{relative or 'It'} is a folder; cp_out copies folders, and run_code can list it.")
    if size > MAX_BYTES:
        raise FileError(
            f"{relative} has {human_size(size)}; a resource may have {human_size(MAX_BYTES)}. "
            "cp_out copies it to WORKDIR_OUT."
        )


@asynccontextmanager
async def _used(registry: Registry, session_id: str) -> AsyncIterator[None]:
    """Counts as use of the session, if it is still there: journals outlive sessions."""
    async with AsyncExitStack() as stack:
        with suppress(SessionError):
            await stack.enter_async_context((await registry.find(session_id)).in_use())
        yield


def live_notebooks(registry: Registry) -> list[Resource]:
    """The notebooks of the sessions that there are now; nothing is started or asked for it."""
    return [
        Resource(
            uri=NOTEBOOK_URI.format(session_id=session.session_id),
            name=f"{session.session_id}.ipynb",
            title=f"Notebook of session {session.session_id[:8]}…",
            mime_type=NOTEBOOK_TYPE,
        )
        for session in registry.sessions
    ]


def with_type(contents: ReadResourceContents, uri: str) -> ReadResourceContents:
    """A file's contents with the type of this one; a template has one for all."""
    if contents.mime_type != VARYING_TYPE:
        return contents
    return replace(contents, mime_type=mime_type(unquote(uri), contents.content))


def explain_unknown(uri: str) -> str:
    """What to say of a URI that is none of ours."""
    known = f"{NOTEBOOK_URI}, {OUTPUT_URI} and {FILE_URI}"
    return f"There is no resource {one_line(uri)!r}. There are {known}; init returns a session_id."


def register(server: MCPServer[Services]) -> None:
    """Adds the templates of this module."""
    # The SDK's rules for paths are those of every system: they would refuse `a:b`. check_parts has ours.
    ours = ResourceSecurity(exempt_params={"path"})
    server.resource(NOTEBOOK_URI, title="Notebook", mime_type=NOTEBOOK_TYPE)(notebook)
    server.resource(OUTPUT_URI, title="Whole output of a cell", mime_type="text/plain")(output)
    server.resource(FILE_URI, title="File of the workspace", mime_type=VARYING_TYPE, security=ours)(file)
