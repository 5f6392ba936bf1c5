"""The one place where our errors become what a model reads, and where arguments are held to their names."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from mcp.server import MCPServer
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel.helper_types import ReadResourceContents
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ResourceError, ResourceNotFoundError, ToolError
from mcp.types import (
    CallToolResult,
    InputRequiredResult,
    ListResourcesResult,
    PaginatedRequestParams,
    ResourceTemplate,
    Tool,
)
from pydantic import AnyUrl, ValidationError

from kernel_server.errors import (
    CheckpointError,
    EngineError,
    KernelError,
    KernelServerError,
    PackageError,
    SessionLimit,
)
from kernel_server.text import cut_middle, harmless, one_line
from kernel_server.tools.resources import VARYING_TYPE, explain_unknown, live_notebooks, with_type
from kernel_server.tools.services import Services
from kernel_server.tools.stdio import serve_stdio

# Errors that have lines: what a session has said of itself in them is one line for each reason, see `text.session_says`.
LISTING = (SessionLimit, EngineError, PackageError, CheckpointError)
MAX_MESSAGE_BYTES = 4_000
MAX_NAME, MAX_NAMED = 80, 5  # characters of a name that nobody knows, and how many of them are told


class KernelMCPServer(MCPServer[Services]):
    """An MCPServer whose tool errors say what is wrong and what to do, and nothing else.

    Attributes:
        on_end_of_input: told when the client is gone, before calls in flight are cancelled.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._arguments: dict[str, list[str]] = {}
        self.on_end_of_input: Callable[[], None] | None = None

    async def run_stdio_async(self) -> None:
        """Serves over stdin and stdout, also clients that send `server/discover` and then `initialize`."""

        def on_end() -> None:
            if self.on_end_of_input is not None:  # it is known once the server is open
                self.on_end_of_input()

        await serve_stdio(self._lowlevel_server, on_end)

    async def list_tools(self) -> list[Tool]:
        """The tools; their schemas say that other arguments are refused.

        Descriptions are docstrings: before Python 3.13 they come with their indentation.
        """
        tools = await super().list_tools()
        for tool in tools:
            tool.input_schema = {**tool.input_schema, "additionalProperties": False}
            tool.description = inspect.cleandoc(tool.description or "")
        return tools

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[Services, Any] | None = None
    ) -> CallToolResult | InputRequiredResult:
        """Calls a tool.

        Raises:
            ToolError: with the message for the model.
        """
        await self._refuse_unknown_arguments(name, arguments)
        try:
            return await super().call_tool(name, arguments, context)
        except ToolError as error:
            cause = error.__cause__
            if isinstance(cause, KernelServerError):
                raise ToolError(_short(_told(cause))) from cause
            if isinstance(cause, ValidationError):
                raise ToolError(_short(_explain(name, cause))) from None
            if isinstance(cause, OSError) and cause.strerror:  # the server has run out of something
                raise ToolError(f"{name} failed on the server: {cause.strerror}. Try again.") from cause
            raise

    async def _handle_list_resources(
        self, ctx: ServerRequestContext[Services], params: PaginatedRequestParams | None
    ) -> ListResourcesResult:
        """What there is to read now: the SDK's own `list_resources` is not told whose request it is."""
        return ListResourcesResult(resources=live_notebooks(ctx.lifespan_context.registry))

    async def list_resource_templates(self) -> list[ResourceTemplate]:
        """The templates; one whose resources differ in type names none."""
        templates = await super().list_resource_templates()
        for template in templates:
            template.description = inspect.cleandoc(template.description or "")
            if template.mime_type == VARYING_TYPE:
                template.mime_type = None
        return templates

    async def read_resource(
        self, uri: AnyUrl | str, context: Context[Services, Any] | None = None
    ) -> Iterable[ReadResourceContents] | InputRequiredResult:
        """Reads a resource.

        Raises:
            ResourceError: with the message for the client; ResourceNotFoundError if another URI would do.
        """
        try:
            contents = await super().read_resource(uri, context)
        except ResourceError as error:
            cause = error.__cause__
            if isinstance(cause, EngineError | KernelError):
                raise ResourceError(_short(_told(cause))) from cause
            if isinstance(cause, KernelServerError):
                raise ResourceNotFoundError(_short(_told(cause))) from cause
            if isinstance(error, ResourceNotFoundError):
                raise ResourceNotFoundError(explain_unknown(str(uri))) from None
            raise
        if isinstance(contents, InputRequiredResult):
            return contents
        return [with_type(item, str(uri)) for item in contents]

    async def _refuse_unknown_arguments(self, name: str, arguments: dict[str, Any]) -> None:
        """The SDK would drop them in silence, so that a misspelled `timeout` were lost."""
        if not self._arguments:  # all tools are registered before the first call
            self._arguments = {tool.name: list(tool.input_schema["properties"]) for tool in await super().list_tools()}
        if name not in self._arguments:
            known = list(self._arguments)
            raise ToolError(f"There is no tool {_quoted(name)}.{_suggest(name, known)} Tools: {', '.join(known)}.")
        accepted = self._arguments[name]
        unknown = [argument for argument in arguments if argument not in accepted]
        if unknown:
            listed = " ".join(f"{_quoted(argument)}.{_suggest(argument, accepted)}" for argument in unknown[:MAX_NAMED])
            takes = f"takes {', '.join(accepted)}" if accepted else "takes no arguments"
            raise ToolError(f"{name}: unknown argument {listed} {name} {takes}. Nothing was done.")


def _told(error: KernelServerError) -> str:
    """Its message: in one line, unless it is one of those that list what the server has found itself.

    Names of files and what a container says may hold ends of lines, after which a session could go on as the server.
    """
    return str(error) if isinstance(error, LISTING) else " ".join(str(error).splitlines())


def _short(message: str) -> str:
    """What names an argument of any length is cut, so that an error is never longer than a result."""
    return cut_middle(harmless(message), MAX_MESSAGE_BYTES, "an argument is too long")


def _quoted(name: str) -> str:
    return one_line(repr(name), MAX_NAME)


def _suggest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word[:MAX_NAME], known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _explain(name: str, error: ValidationError) -> str:
    problems = []
    for problem in error.errors(include_url=False):
        argument = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "missing":
            problems.append(f"{argument} is missing")
        else:
            problems.append(f"{argument}={one_line(repr(problem['input']), 60)}: {problem['msg']}")
    return f"{name}: {'; '.join(problems)}. Nothing was done."
