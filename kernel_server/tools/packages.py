"""The tool that installs packages in a session which has no network."""

from __future__ import annotations

import inspect
import re
from typing import Annotated

from mcp.server.mcpserver import Context
from mcp.types import CallToolResult, ToolAnnotations
from pydantic import Field

from kernel_server.errors import RequestError
from kernel_server.hosts.base import HostDescription
from kernel_server.kernels.outputs import Stream
from kernel_server.packages.requirements import Allowed
from kernel_server.sessions.installs import Install, Installed
from kernel_server.sessions.results import CellResult
from kernel_server.sessions.session import OnProgress
from kernel_server.text import one_line
from kernel_server.tools.boundary import KernelMCPServer
from kernel_server.tools.services import services, text_result

MAX_LISTED_CHARACTERS = 500
MAX_LINE = 1_000  # characters
INSTEAD_OF_PIP = (
    "Without a network pip finds nothing. Call the tool install_packages: it fetches packages from outside."
)
MISSING = "install_packages fetches packages that are missing."
FAILED = "[exit status "  # as SessionShell of kernel_host says it of a command
_PIP = re.compile(r"\bpip3?\b.{0,20}\binstall\b")


async def install_packages(
    packages: Annotated[
        list[str], Field(description="One package in each entry, such as 'six', 'pandas<3' or 'requests[socks]>=2.32'.")
    ],
    ctx: Context,
    session_id: Annotated[
        str, Field(description="The id that init returned; packages are installed in that session.")
    ] = "",
) -> CallToolResult:
    """Install Python packages from the package index in a session, also where sessions have no network.

    Wheels are fetched outside and unpacked in the session, with what they need; what is there and fits is kept. Works
    while code is running; import them right afterwards, in the same kernel. Returns a line for each package that was
    installed or was there already. list_packages names what there is: try to import before you install.
    Packages stay until the session ends. There are only wheels: nothing is built. If no wheel fits, the error says which
    versions there are: ask for another one. If it takes long, the text says to call again with the same packages.
    """
    if not session_id:
        raise RequestError(
            "install_packages needs a session_id: packages are installed in a session and go with it. Call init, and pass "
            "the id that it returns here and to run_code."
        )
    session = await services(ctx).registry.find(session_id)
    outcome = await services(ctx).installer.install(session, packages, services(ctx).wait, _reporting(ctx))
    return text_result(_text(outcome))


def _reporting(ctx: Context) -> OnProgress:
    async def report(seconds: float, stage: str) -> None:
        await ctx.report_progress(seconds, None, stage)

    return report


def _text(outcome: Installed | Install) -> str:
    if isinstance(outcome, Install):
        return (
            f"[Not done after {outcome.seconds:.0f} s: {outcome.stage}. Call install_packages with exactly the same packages "
            "to go on waiting.]"
        )
    plan = outcome.plan
    lines = [f"installed {name}=={version}{_instead(plan.replaced.get(name))}" for name, version in plan.wanted.items()]
    lines += [f"already there: {name}=={version}" for name, version in plan.present.items()]
    lines += [f"[{note}]" for note in outcome.notes]
    return "\n".join(one_line(line, MAX_LINE) for line in lines)


def _instead(version: str | None) -> str:
    return f" (instead of {version})" if version else ""


def hints(code: str, result: CellResult, host: HostDescription, allowed: Allowed) -> list[str]:
    """That there is this tool, where a cell has missed a package or has called pip in vain."""
    if allowed.nothing:
        return []
    if _PIP.search(code) and host.network.startswith("none"):
        said = "".join(output.text for output in result.outputs.items if isinstance(output, Stream))
        return [INSTEAD_OF_PIP] if result.status == "error" or FAILED in said else []
    error = result.outputs.error
    return [MISSING] if error is not None and error.ename == "ModuleNotFoundError" else []


def register(server: KernelMCPServer, allowed: Allowed) -> None:
    """Adds the tool of this module, unless nothing may be installed: a tool that only refuses is better not seen."""
    if allowed.nothing:
        return
    description = inspect.cleandoc(install_packages.__doc__ or "")
    if allowed.names is not None:
        description += (
            f"\nOnly these can be installed, with what they need: {one_line(allowed.listed, MAX_LISTED_CHARACTERS)}."
        )
    annotations = ToolAnnotations(read_only_hint=False, destructive_hint=False, open_world_hint=True)
    server.tool(title="Install packages", description=description, annotations=annotations)(install_packages)
