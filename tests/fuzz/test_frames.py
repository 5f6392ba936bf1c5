"""Frames of a kernel, which signs what it likes: whatever comes is taken or dropped, and the next message arrives."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jupyter_client.session import DELIM, Session

from kernel_server.kernels.changes import Look, look_of
from kernel_server.kernels.connection import KernelConnection
from kernel_server.kernels.executions import Execution, Input
from kernel_server.kernels.messages import MAX_VALUES, TOO_MUCH, decode
from kernel_server.kernels.outputs import Error, Outputs, Stream
from tests.fuzz.hostile import changes, json_values, last_cells, looks, messages, mostly, packed, record, replies, texts

SESSION = Session(key=b"the kernel's own", digest_history_size=0)
CELL, QUESTION = "the cell", "the question"
CHANNELS = ("iopub", "shell", "control", "stdin")

BROKEN = [
    b"",
    b"{",
    b"\xff\xfe{}",
    b'{"msg_type": "\\ud800", "msg_id": "\xed\xa0\x80"}',
    b"[" * 50_000,
    b'{"a":' * 50_000,
    b"1" * 5_000,
    b"NaN",
    b'{"msg_id": 1e999, "msg_type": -Infinity}',
    b"null",
    b'"' + b"\\u0000" * 1000 + b'"',
]
parents = mostly(
    record(msg_id=st.sampled_from([CELL, QUESTION, ""]), version=st.sampled_from(["5.3", "4.1", "1", "x"]))
)
bodies: st.SearchStrategy[tuple[Any, Any]] = st.one_of(
    messages,
    st.tuples(st.just("execute_reply"), replies),
    st.tuples(st.just("input_request"), record(prompt=texts, password=st.booleans())),
    st.tuples(st.sampled_from(["list_variables_reply", "kernel_info_reply"]), looks),
    st.tuples(st.just("replay_reply"), last_cells),
    st.tuples(st.just("status"), record(execution_state=st.sampled_from(["busy", "idle"]))),
    st.tuples(st.just("replay"), record(end=st.booleans())),
    st.tuples(json_values, json_values),
)


def signed(*parts: bytes) -> list[bytes]:
    return [DELIM, SESSION.sign(list(parts)), *parts]


HEADER = b'{"msg_id": "1", "msg_type": "execute_reply", "version": "5.3"}'
ASKED, OF_CELL = packed({"msg_id": QUESTION}), packed({"msg_id": CELL})


@st.composite
def frames(draw: Callable[..., Any]) -> list[bytes]:
    msg_type, content = draw(bodies)
    header = {"msg_id": draw(texts), "msg_type": msg_type, **draw(record(date=texts, version=texts, session=texts))}
    metadata = draw(mostly(record(kernel_server=changes)))
    parts = [packed(part) for part in (draw(mostly(st.just(header))), draw(parents), metadata, content)]
    for index, part in draw(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(BROKEN) | st.binary()), max_size=1)):
        parts[index] = part
    sent = signed(*parts)
    match draw(st.sampled_from(["whole", "whole", "whole", "whole", "short", "buffers", "unsigned", "bytes"])):
        case "short":
            sent = sent[: draw(st.integers(0, 5))]
        case "buffers":
            sent = [b"identity", *sent, *draw(st.lists(st.binary(), max_size=3))]
        case "unsigned":
            sent[1] = draw(st.binary())
        case "bytes":
            sent = draw(st.lists(st.binary(), max_size=8))
    return sent


def legitimate(msg_type: str, parent: str, content: dict[str, Any]) -> list[bytes]:
    message = SESSION.msg(msg_type, content, parent={"msg_id": parent, "version": "5.3"})
    return [b"identity", *SESSION.serialize(message)]


def connected() -> tuple[KernelConnection, Execution, Any]:
    """A connection without sockets on which a cell and a question are under way."""
    from kernel_server.kernels.connection import _Waiting

    connection = KernelConnection(SimpleNamespace(session=SESSION), {}, Outputs())  # type: ignore[arg-type]  # of a client only its session is used
    execution = connection._executions[CELL] = Execution(CELL, input=Input())
    waiting = connection._waiting[QUESTION] = _Waiting()
    return connection, execution, waiting


@given(st.lists(st.tuples(st.sampled_from(CHANNELS), frames()), max_size=4))
@example([("control", signed(HEADER, ASKED, b"{}", content)) for content in (b"[]", b"null")])
@example([("shell", signed(HEADER, OF_CELL, b"[]", b"{}"))])
def test_after_any_frames_a_reply_still_arrives(sent: list[tuple[str, list[bytes]]]) -> None:
    """Issue 6: a bad message is dropped and counted, and the call goes on. A kernel may answer for itself, once."""
    connection, execution, waiting = connected()
    for channel, parts in sent:
        connection.receive(channel, parts)
        assert isinstance(waiting.content, dict) or not waiting.arrived.is_set()
    connection.receive("shell", legitimate("execute_reply", CELL, {"status": "ok", "execution_count": 1}))
    connection.receive("control", legitimate("kernel_info_reply", QUESTION, {"status": "ok"}))
    assert execution.replied.is_set()
    assert execution.reply is not None
    assert waiting.arrived.is_set()
    assert isinstance(waiting.content, dict)
    execution.idle, before = type(execution.idle)(), connection.unreadable
    connection.receive("iopub", legitimate("clear_output", CELL, {}))
    connection.receive("iopub", legitimate("stream", CELL, {"name": "stdout", "text": "still here"}))
    connection.receive("iopub", legitimate("status", CELL, {"execution_state": "idle"}))
    assert execution.idle.is_set()
    assert connection.unreadable == before
    assert execution.outputs.items == [Stream("stdout", "still here")]


@pytest.mark.parametrize("part", [b"", b"[" * 50_000, b"1" * 5_000, b"null", b"\xff"])
def test_decoder_alone_raises(part: bytes) -> None:
    """The same frames without the guard: whoever only awaits replies would end with the first of them."""
    with pytest.raises(Exception):  # noqa: B017 - which one is up to the kernel
        decode(SESSION, signed(part, b"{}", b"{}", b"{}"))


TOO_RICH = b'{"x":[' + b"[]," * MAX_VALUES + b"[]]}"


def test_reply_that_is_too_much_ends_its_cell_and_answers_its_question() -> None:
    """Ours: whoever waits for it would wait for ever."""
    connection, execution, waiting = connected()
    reply, question = (
        packed({"msg_id": "1", "msg_type": "execute_reply", "version": "5.3"}),
        packed({"msg_id": QUESTION}),
    )
    connection.receive("shell", signed(reply, OF_CELL, b"{}", TOO_RICH))
    connection.receive("control", signed(reply, question, b"{}", TOO_RICH))
    assert execution.reply is not None
    assert execution.reply.error == Error("ReplyTooLarge", TOO_MUCH, [])
    assert look_of(waiting.content) == Look(error=TOO_MUCH)
    assert connection.unreadable == 0
