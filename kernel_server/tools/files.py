"""Tools that move files between WORKDIR_IN, workspaces and WORKDIR_OUT."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Annotated, Any

import anyio.to_thread
from mcp.server.mcpserver import Context
from mcp.types import CallToolResult, ToolAnnotations
from pydantic import Field

from kernel_server.errors import FileError, RequestError
from kernel_server.files import paths
from kernel_server.files.beneath import opened_folder
from kernel_server.files.paths import MAX_PATH_BYTES, SHARED, ContainerPath, local_relative
from kernel_server.files.rules import LeftOut
from kernel_server.files.transfer import Sending, free_bytes, open_to_send, receive, write_pieces
from kernel_server.sessions.session import Session
from kernel_server.text import counted, human_size, one_line, quoted
from kernel_server.tools.boundary import KernelMCPServer
from kernel_server.tools.services import find_host, in_use, services, text_result
from kernel_server.transcripts.notebook import notebook_pieces

SessionId = Annotated[str, Field(description="The id that init returned. Empty: only /workspace/shared can be used.")]
MAX_SKIPPED_SHOWN = 10


async def cp_in(
    local_path: Annotated[str, Field(description="File or folder to copy, relative to WORKDIR_IN; '.' is all of it.")],
    ctx: Context,
    container_path: Annotated[
        str, Field(description="Where to, relative to the workspace. Empty: the same name there.")
    ] = "",
    session_id: SessionId = "",
) -> CallToolResult:
    """Copy a file or folder from the user's input folder (WORKDIR_IN on the host) into the session's workspace.

    A file of the same name is replaced; a folder of the same name gets the new files beside those it has. With
    container_path /workspace/shared/NAME every session can read it, and no session_id is needed.
    """
    relative = local_relative(local_path, "local_path", "WORKDIR_IN")
    host, session = await find_host(ctx, session_id)
    with opened_folder(services(ctx).input_folder, "WORKDIR_IN") as folder, open_to_send(folder, relative) as sending:
        target = _target(container_path or sending.name, "container_path", session)
        path = f"{target.relative}/" if target.folder_meant and target.relative else target.relative
        async with in_use(session, changes=True):
            at = await host.put(_owner(target, session), path, sending.tar, sending.name)
        return text_result(
            f"Copied {_amount(sending)} to {_shown(target.shared, at)}.{_left_out(sending.skipped, len(sending.skipped))}"
        )


async def cp_out(
    container_path: Annotated[
        str, Field(description="File or folder to copy, relative to the workspace; '.' is all of it.")
    ],
    ctx: Context,
    local_path: Annotated[
        str, Field(description="Where to, relative to WORKDIR_OUT. Empty: the same name there.")
    ] = "",
    session_id: SessionId = "",
) -> CallToolResult:
    """Copy a file or folder from the session's workspace to the user's output folder (WORKDIR_OUT on the host).

    This is how the user gets what you made. It arrives whole or not at all. A file of the same name is replaced; a
    folder of the same name gets the new files beside those it has. Names that begin with a dot are left out.
    """
    host, session = await find_host(ctx, session_id)
    source = _target(container_path, "container_path", session)
    name = source.name or "workspace"
    to = local_path or name
    relative = local_relative(to, "local_path", "WORKDIR_OUT") + ("/" if to.endswith("/") else "")
    rules, left_out = services(ctx).rules, LeftOut()
    rules.check_path(relative, "local_path")  # before much is copied in vain
    with opened_folder(services(ctx).output_folder, "WORKDIR_OUT") as folder:
        async with (
            in_use(session),
            host.take(_owner(source, session), source.relative, free_bytes(folder)) as (staged, chunks),
        ):
            write = partial(receive, chunks, folder, relative, name=name, files=staged.files, size=staged.size)
            write = partial(write, rules=rules, left_out=left_out)
            at = await anyio.to_thread.run_sync(write)
    files, size = staged.files - left_out.files, staged.size - left_out.size
    what = human_size(size) if staged.kind == "file" else _folder_amount(files, size)
    return text_result(
        f"Copied {what} to {at!r} in WORKDIR_OUT ({services(ctx).output_folder})."
        f"{_left_out(staged.skipped, staged.skipped_count)}{_not_written(left_out)}"
    )


async def edit_file(
    container_path: Annotated[str, Field(description="Text file, relative to the workspace, such as analysis.py.")],
    content: Annotated[str, Field(description="The new text: of the whole file, or only of the passage `old`.")],
    ctx: Context,
    session_id: Annotated[str, Field(description="The id that init returned.")] = "",
    old: Annotated[
        str, Field(description="Passage to replace; must occur exactly once. Empty: write the whole file.")
    ] = "",
) -> CallToolResult:
    """Write a UTF-8 text file in the session's workspace, or replace one passage of it.

    Without `old`, the file is written anew, with the folders on its way. With `old`, only that passage changes: give
    enough of the text around it that it occurs exactly once. Nothing changes on an error. run_file runs a script.
    """
    for name, text in (("content", content), ("old", old)):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RequestError(
                f"{name} holds a lone surrogate at character {error.start}; it cannot be UTF-8."
            ) from None
    host, session = await find_host(ctx, session_id)
    target = _target(container_path, "container_path", session)
    if not target.relative or target.folder_meant:
        raise FileError(f"container_path {container_path!r} is a folder; give the name of a text file.")
    async with in_use(session, changes=True):
        created = await host.edit(_owner(target, session), target.relative, content, old)
    did = "Replaced the passage in" if old else "Created" if created else "Overwrote"
    return text_result(f"{did} {_shown(target.shared, target.relative)} ({human_size(len(content.encode()))} written).")


async def export_notebook(
    session_id: Annotated[str, Field(description="The id that init returned; also of a session that has ended.")],
    ctx: Context,
    local_path: Annotated[
        str, Field(description="Where to, relative to WORKDIR_OUT, such as analysis.ipynb. Empty: session-<id>.ipynb.")
    ] = "",
) -> CallToolResult:
    """Write all that ran in a session as a Jupyter notebook (.ipynb) to the user's output folder (WORKDIR_OUT).

    It holds every cell in order with its outputs and images, also those that were cut in results. An existing
    notebook of that name is replaced.
    """
    registry = services(ctx).registry
    journal = await registry.find_journal(session_id)
    path = local_path or f"session-{session_id[:8]}.ipynb"
    relative = local_relative(path, "local_path", "WORKDIR_OUT") + ("/" if path.endswith("/") else "")
    python, rules = registry.python, services(ctx).rules
    rules.check_path(relative, "local_path")

    count = 0

    def cells() -> Iterator[dict[str, Any]]:
        nonlocal count
        for record in journal.cells():
            count += 1
            yield record

    def write() -> tuple[str, str]:
        with opened_folder(services(ctx).output_folder, "WORKDIR_OUT") as folder:
            pieces = notebook_pieces(cells(), session_id, python)
            at = write_pieces(folder, relative, pieces, f"session-{session_id[:8]}.ipynb", rules)
        news = registry.journals.take_news()
        return at, f"\n[{news}]" if news else ""

    at, news = await anyio.to_thread.run_sync(write, limiter=registry.readers)
    return text_result(
        f"Wrote a notebook of {counted(count, 'cell')} to {at!r} in WORKDIR_OUT ({services(ctx).output_folder}).{news}"
    )


def _target(path: str, argument: str, session: Session | None) -> ContainerPath:
    return paths.container_path(path, argument, session.workspace if session else "")


def _owner(path: ContainerPath, session: Session | None) -> str:
    """The session whose UID does the work; "" for the shared folder, which belongs to the kernel host."""
    return "" if path.shared or session is None else session.session_id


def _shown(shared: bool, relative: str) -> str:
    return one_line(f"{SHARED}/{relative}", MAX_PATH_BYTES) if shared else repr(relative) + " in the workspace"


def _amount(sending: Sending) -> str:
    if not sending.is_folder:
        return human_size(sending.size)
    return _folder_amount(sending.files, sending.size)


def _folder_amount(files: int, size: int) -> str:
    return f"{counted(files, 'file')}, {human_size(size)},"


def _left_out(skipped: list[str], count: int) -> str:
    if not skipped:
        return ""
    return f" Left out, since only files and folders with printable names are copied: {_some(map(quoted, skipped), count)}."


def _not_written(left_out: LeftOut) -> str:
    if not left_out.count:
        return ""
    return f" Not written, since such names configure programs (PY_EXEC_OUT_FILES): {_some(left_out.names, left_out.count)}."


def _some(names: Iterable[str], count: int) -> str:
    shown = ", ".join(islice(names, MAX_SKIPPED_SHOWN))
    return f"{shown} and {count - MAX_SKIPPED_SHOWN} more" if count > MAX_SKIPPED_SHOWN else shown


def register(server: KernelMCPServer) -> None:
    """Adds the tools of this module."""
    writing = ToolAnnotations(read_only_hint=False, destructive_hint=True, open_world_hint=False)
    server.tool(title="Copy in", annotations=writing)(cp_in)
    server.tool(title="Copy out", annotations=writing)(cp_out)
    server.tool(title="Edit a file", annotations=writing)(edit_file)
    server.tool(title="Export the notebook", annotations=writing)(export_notebook)
