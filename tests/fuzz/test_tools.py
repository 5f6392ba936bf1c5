"""Arguments of every tool, after its own schema and against it: each call is answered, and the server goes on."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernel_server.app import create_server
from kernel_server.config import load_settings
from kernel_server.text import encodable
from tests.driving import Kit, Reply, in_own_task, serving
from tests.fuzz.hostile import HUGE, KEYS, nested, scalars, texts
from tests.fuzz.profiles import EXAMPLES
from tests.fuzz.test_paths import paths

pytestmark = pytest.mark.anyio

SECONDS = 15.0  # of a call; one without a session starts a kernel, and a machine may be busy
MAX_ANSWER = 20_000  # bytes of text: PY_EXEC_OUTPUT_BYTES, and what is said around it
CODE = [
    "1",
    "print('x' * 100_000)",
    "1/0",
    "def f(:",
    "%nosuchmagic",
    "x = 1",
    "import sys; sys.stderr.write('e')",
    "'\\ud800'",
]
TOOLS = [
    "init",
    "list_packages",
    "run_code",
    "run_file",
    "list_variables",
    "read_output",
    "wait",
    "interrupt",
    "cp_in",
    "cp_out",
    "edit_file",
    "list_files",
    "list_sessions",
    "checkpoint",
    "rollback",
    "branch_session",
    "export_notebook",
    "close_session",
    "reset",
]


# A client sends no lone surrogates in names, and nothing that is nested beyond its own limit.
names = st.sampled_from(KEYS) | texts.map(encodable)
values: st.SearchStrategy[Any] = st.recursive(
    scalars | st.sampled_from([50, 200]).map(nested),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=8,
)
unknown = st.dictionaries(names, values, max_size=6)


class Marker(logging.Handler):
    """Counts what the SDK logs of a tool that raised what nobody foresaw."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(self.format(record))


def fitting(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values of a property's type."""
    match schema.get("type"):
        case "number" | "integer":
            return st.floats(0, 5) | st.integers(0, 5)
        case "array":
            return st.lists(texts, max_size=3)
    return st.one_of(texts, paths)


@functools.cache
def schemas() -> dict[str, dict[str, Any]]:
    """The properties of each tool's arguments."""
    tools = anyio.run(create_server(load_settings({})).list_tools)
    return {tool.name: tool.input_schema["properties"] for tool in tools}


@functools.cache
def arguments_of(name: str) -> st.SearchStrategy[dict[str, Any]]:
    """Most arguments as the schema wants them, some not, and names that it does not know."""
    fields: dict[str, st.SearchStrategy[Any]] = {}
    for argument, schema in schemas()[name].items():
        if argument in ("code", "peek"):  # nothing that destroys, and nothing that takes long
            fields[argument] = st.sampled_from(CODE) | st.sampled_from(["", " ", "\0", "\ud800", "\x1b"])
        elif argument == "session_id":
            fields[argument] = st.just("SESSION") | st.just("SESSION") | texts
        elif argument == "wait" and name in ("run_code", "run_file", "wait"):
            fields[argument] = st.floats(0.01, 1)
        else:
            fields[argument] = fitting(schema)
    wrong = st.one_of(
        values, st.sampled_from([*HUGE, "x" * 100_000, float("nan"), float("inf"), "1e999", "-0", "true"])
    )
    known = st.fixed_dictionaries(
        {}, optional={argument: st.one_of(field, field, field, wrong) for argument, field in fields.items()}
    )
    full = st.fixed_dictionaries(fields)
    return st.one_of(full, full, known, st.builds(lambda some, more: {**more, **some}, known, unknown))


def check(reply: Reply) -> None:
    """An answer for a model: short, of text that can be sent, without what only a programmer should see."""
    reply.text.encode()
    assert len(reply.text.encode()) <= MAX_ANSWER
    if reply.is_error:
        assert reply.text
        assert "Error executing tool" not in reply.text, "the SDK's words for an error that nobody foresaw"
        assert "Traceback" not in reply.text


calls = st.sampled_from(TOOLS).flatmap(lambda name: st.tuples(st.just(name), st.deferred(lambda: arguments_of(name))))


@pytest.fixture(scope="module")
async def server(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Kit]:
    """One of its own: it is left with sessions of all kinds."""
    async with in_own_task(serving(tmp_path_factory.mktemp("fuzz"), "local")) as kit:
        yield kit


@settings(max_examples=EXAMPLES * 4 // 5, suppress_health_check=list(HealthCheck), deadline=None)
@given(call=calls)
async def test_any_arguments_are_answered_and_the_server_goes_on(server: Kit, call: tuple[str, dict[str, Any]]) -> None:
    """Issue 6, T6: every answer is a result or a typed error within seconds."""
    name, arguments = call
    session = await a_session(server)
    if arguments.get("session_id") == "SESSION":
        arguments = {**arguments, "session_id": session}
    marker, begun = Marker(), time.monotonic()
    logging.getLogger("mcp").addHandler(marker)
    try:
        with anyio.fail_after(SECONDS):
            reply = Reply(await server.client.call_tool(name, arguments))
    finally:
        logging.getLogger("mcp").removeHandler(marker)
    assert time.monotonic() - begun < SECONDS
    assert marker.seen == []
    check(reply)
    if name == "init" and not reply.is_error and reply.raw.meta:
        await server.call("close_session", session_id=reply.raw.meta["kernel_server/session"]["session_id"])
    if name not in ("close_session", "reset"):
        assert (await server.call("run_code", code="print(6 * 7)", session_id=session)).output.endswith("42")


SESSIONS: dict[str, str] = {}


async def a_session(kit: Kit) -> str:
    """One that lives; calls may have closed the last one."""
    last = SESSIONS.get("last", "")
    if not last or (await kit.call("list_variables", session_id=last)).is_error:
        SESSIONS["last"] = (await kit.init()).session_id
    return SESSIONS["last"]


def test_every_tool_is_called() -> None:
    """Ours: a new tool must be in the list; but none that would ask a package index for names that nobody meant."""
    assert set(schemas()) == {*TOOLS, "install_packages"}


def test_check_of_an_answer_can_fail() -> None:
    """The control: what the SDK itself says of an error that nobody foresaw."""
    from mcp.types import CallToolResult, TextContent

    for text in ("Error executing tool run_code", "Traceback (most recent call last):", "x" * (MAX_ANSWER + 1), ""):
        with pytest.raises(AssertionError):
            check(Reply(CallToolResult(content=[TextContent(type="text", text=text)], is_error=True)))
