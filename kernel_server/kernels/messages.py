"""A kernel's message out of its frames.

Kernels are hostile: what comes out has the types that the protocol says, and of what is in it nothing is believed.
Source: Jupyter messaging 5.4, https://jupyter-client.readthedocs.io/en/stable/messaging.html
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Message:
    """A message as it is routed; `parent` is the msg_id of the request that it belongs to, "" for none."""

    msg_type: str
    parent: str
    content: dict[str, Any]
    metadata: dict[str, Any]


def decode(session: Any, frames: list[bytes]) -> Message:
    """Reads frames, JSON only: buffers are left alone.

    Args:
        session: jupyter_client's Session, which checks the signature.

    Raises:
        Exception: they are no message. A kernel can make it any: RecursionError, KeyError, ValueError, …
    """
    _, frames = session.feed_identities(frames)
    found = session.deserialize(frames)
    msg_type, parent = found["msg_type"], found["parent_header"].get("msg_id") or ""
    content, metadata = found["content"], found["metadata"]
    if not isinstance(msg_type, str) or not isinstance(parent, str):
        raise TypeError("msg_type and msg_id are texts")
    if not isinstance(content, dict) or not isinstance(metadata, dict):
        raise TypeError("content and metadata are objects")
    return Message(msg_type, parent, content, metadata)
