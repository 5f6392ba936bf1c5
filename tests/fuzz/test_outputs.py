"""IOPub messages of any type and content, folded and rendered: a result is always one that MCP can carry."""

from __future__ import annotations

import atexit
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mcp.types import CallToolResult, ImageContent, TextContent

from kernel_server.kernels.changes import changes_of
from kernel_server.kernels.outputs import Outputs
from kernel_server.sessions.results import CellResult, Status
from kernel_server.tools.decoding import Decoder
from kernel_server.tools.pictures import MAX_IMAGES_BASE64
from kernel_server.tools.render import recorded_text, render
from kernel_server.transcripts.records import notebook_output
from tests.fuzz.hostile import TRACEBACK_LINES, changes, messages, record

Messages = list[tuple[str, Any]]

DECODER = Decoder()
atexit.register(DECODER.close)
BUDGET = 10_000
OVERHEAD = 5_000  # what is said about what was cut, and the line ends between 4000 outputs
STATUSES: list[Status] = ["ok", "error", "running", "interrupted", "timeout", "died"]


def folded(sent: Messages) -> Outputs:
    outputs = Outputs()
    for msg_type, content in sent:
        outputs.fold(msg_type, content)
    return outputs


def check(reply: CallToolResult) -> None:
    """What MCP and a model can take."""
    CallToolResult.model_validate_json(reply.model_dump_json(by_alias=True))
    texts = [block.text for block in reply.content if isinstance(block, TextContent)]
    assert len("\n".join(texts).encode()) <= BUDGET + OVERHEAD
    assert not any(character in text for text in texts for character in "\0\x1b\x7f")
    images = [block.data for block in reply.content if isinstance(block, ImageContent)]
    assert sum(map(len, images)) <= MAX_IMAGES_BASE64


MANY: Messages = [("stream", {"name": ("stdout", "stderr")[n % 2], "text": f"{n}" * 200}) for n in range(2500)]
FRAMES: Messages = [("error", {"ename": "E", "evalue": "e", "traceback": list(TRACEBACK_LINES) * 500})] * 25


@given(
    st.lists(messages, max_size=12),
    st.lists(messages, max_size=3),
    record(kernel_server=changes),
    st.sampled_from(STATUSES),
)
@example(MANY, MANY, {}, "ok")
@example(FRAMES, [], {}, "error")
def test_whatever_a_cell_puts_out_makes_a_result_within_its_budget(
    sent: Messages, late: Messages, metadata: Any, status: Status
) -> None:
    """Issue 6: bounded decoding. Issue 3: PY_EXEC_OUTPUT_BYTES is the most of one result."""
    outputs = folded(sent)
    result = CellResult("0" * 32, status, outputs, 1, 1, 0.1, late=folded(late), changes=changes_of(metadata))
    check(render(result, BUDGET, DECODER.check))
    check(render(result, BUDGET, DECODER.check, one_shot=True))
    recorded = json.loads(json.dumps([notebook_output(item) for item in outputs.items]))
    recorded_text(recorded).encode()


def test_control_text_of_a_kernel_is_not_fit_to_be_sent() -> None:
    """The same check on what a session put out as it came."""
    raw = CallToolResult(content=[TextContent(type="text", text="\x1b[31m")])
    with pytest.raises(AssertionError):
        check(raw)
    with pytest.raises(ValueError, match="surrogates not allowed"):
        check(CallToolResult(content=[TextContent(type="text", text="x\ud800" * 2)]))
