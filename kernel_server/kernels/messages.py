"""A kernel's message out of its frames.

Kernels are hostile: what comes out has the types that the protocol says, and of what is in it nothing is believed.
Source: Jupyter messaging 5.4, https://jupyter-client.readthedocs.io/en/stable/messaging.html
"""

from __future__ import annotations

from dataclasses import dataclass
from hmac import compare_digest
from typing import Any

from kernel_server.kernels.outputs import Display, Error
from kernel_server.kernels.zmtp import CUT

# Of one part of a message. While one is parsed nobody else has a turn, also not where a thread does it: Python's parser
# keeps the interpreter. With these the worst took 0.7 s here, most take far less; without, 250 MB of `[],` took 44 s and
# 7 GB of memory.
MAX_PART_BYTES = 48 << 20  # more than is kept of a display, with room for escapes
MAX_VALUES = 300_000  # JSON values that are no text, and as many texts: a chart of 100 000 points has them
MAX_BARE_BYTES = 32 * MAX_VALUES  # of all that is outside of texts; numbers of thousands of digits take long, too
MAX_HEADER_BYTES = 4_096  # ten times what a header has; jupyter_client looks for dates in all of its texts
TOO_MUCH = "What the kernel sent is too large, or has too many parts, to be read."


@dataclass(frozen=True)
class Message:
    """A message as it is routed; `parent` is the msg_id of the request that it belongs to, "" for none.

    Attributes:
        refused: there was more content than is read; it is empty then.
        output: what `output_of` made of the content, where that has been done.
    """

    msg_type: str
    parent: str
    content: dict[str, Any]
    metadata: dict[str, Any]
    refused: bool = False
    output: Display | Error | None = None


def decode(session: Any, frames: list[bytes]) -> Message:
    """Reads frames, JSON only: buffers are left alone.

    Args:
        session: jupyter_client's Session, which checks the signature.

    Raises:
        Exception: they are no message. A kernel can make it any: RecursionError, KeyError, ValueError, …
    """
    _, frames = session.feed_identities(frames)
    if max(map(len, frames[:3])) > MAX_HEADER_BYTES:
        raise ValueError("too much of a signature or header, and no message")
    refused = [part is CUT or _is_too_much(part) for part in frames[1:5]]
    if any(refused):
        frames = _without(session, frames, refused)
    found = session.deserialize(frames)
    msg_type, parent = found["msg_type"], found["parent_header"].get("msg_id") or ""
    content, metadata = found["content"], found["metadata"]
    if not isinstance(msg_type, str) or not isinstance(parent, str):
        raise TypeError("msg_type and msg_id are texts")
    if not isinstance(content, dict) or not isinstance(metadata, dict):
        raise TypeError("content and metadata are objects")
    return Message(msg_type, parent, content, metadata, refused=refused[-1])


def _without(session: Any, frames: list[bytes], refused: list[bool]) -> list[bytes]:
    """The message with empty objects in place of what is refused, which may be metadata and content.

    Nobody can check the signature of what was not kept; all that such a message does is to say that it is missing.
    """
    signature, *parts = frames[:5]
    if any(refused[:2]) or len(parts) < len(refused):
        raise ValueError("too much, and no message")
    if all(part is not CUT for part in parts) and not compare_digest(signature, session.sign(parts)):
        raise ValueError("too much, and no message that is signed")
    parts = [b"{}" if too_much else part for part, too_much in zip(parts, refused, strict=True)]
    return [session.sign(parts), *parts]


def _is_too_much(part: bytes) -> bool:
    if len(part) <= MAX_VALUES:  # each takes a byte
        return False
    bare = outside_of_texts(part) if len(part) <= MAX_PART_BYTES else None
    return bare is None or len(bare) > MAX_BARE_BYTES or sum(map(bare.count, (b",", b"[", b"{"))) > MAX_VALUES


def outside_of_texts(part: bytes) -> bytes | None:
    """JSON without its texts, which hold any number of commas; None if there are too many of them.

    Right up to the first byte that is no JSON, where a parser stops.
    """
    without_escapes = part.replace(rb"\\", b"").replace(rb"\"", b"")
    if without_escapes.count(b'"') > 2 * MAX_VALUES:
        return None
    return b"".join(without_escapes.split(b'"')[::2])
