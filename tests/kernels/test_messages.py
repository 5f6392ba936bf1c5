"""Frames that parse, and yet are no message."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jupyter_client.session import DELIM, Session

from kernel_server.kernels.messages import Message, decode

SESSION = Session(key=b"key")
HEADER = {"msg_id": "1", "msg_type": "kernel_info_reply", "version": "5.3"}


def decoded(*parts: Any) -> Message:
    packed = [json.dumps(part).encode() for part in parts]
    return decode(SESSION, [b"identity", DELIM, SESSION.sign(packed), *packed])


def test_message_has_the_parts_of_the_protocol() -> None:
    """Jupyter messaging 5.4, the wire protocol."""
    assert decoded(HEADER, {"msg_id": "0"}, {}, {"a": 1}) == Message("kernel_info_reply", "0", {"a": 1}, {})
    assert decoded(HEADER, {}, {}, {}).parent == ""


@pytest.mark.parametrize(
    "parts",
    [
        (HEADER, {}, {}, []),
        (HEADER, {}, {}, None),
        (HEADER, {}, [], {}),
        (HEADER, {"msg_id": 1}, {}, {}),
        (HEADER, [], {}, {}),
        ({**HEADER, "msg_type": ["x"]}, {}, {}, {}),
    ],
)
def test_part_of_another_type_is_refused(parts: tuple[Any, ...]) -> None:
    """Ours: `null` as an answer was told as a kernel that ended; a list ended the task that goes on with a session."""
    with pytest.raises((TypeError, AttributeError)):
        decoded(*parts)
