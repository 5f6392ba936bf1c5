"""How much memory the buffers of unix sockets take, for each user: also of sockets that no process has open any more.

Source: sock_diag(7), UDIAG_SHOW_MEMINFO and UDIAG_SHOW_UID; linux/unix_diag.h, linux/sock_diag.h.
"""

from __future__ import annotations

import socket
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
DUMP = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
NLMSG_DONE = 3
SHOW = 0x10 | 0x20 | 0x40  # UDIAG_SHOW_RQLEN, _MEMINFO, _UID
RQLEN, MEMINFO, UID = 4, 5, 7  # UNIX_DIAG_*
WMEM_ALLOC = 2  # SK_MEMINFO_WMEM_ALLOC
MESSAGE_BYTES = 16  # struct unix_diag_msg
ANSWER_BYTES = 64 << 10
HEADER, ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=HH")


def bytes_by_user() -> Mapping[int, int]:
    """Bytes that were sent and not received yet; none where Linux does not tell (CONFIG_UNIX_DIAG)."""
    sent: Counter[int] = Counter()
    waiting: Counter[int] = Counter()
    with suppress(OSError), socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as link:
        request = struct.pack("=BBHIIIII", socket.AF_UNIX, 0, 0, 0xFFFFFFFF, 0, SHOW, 0, 0)
        link.settimeout(1.0)
        link.send(HEADER.pack(HEADER.size + len(request), SOCK_DIAG_BY_FAMILY, DUMP, 1, 0) + request)
        for attributes in _answers(link):
            if UID in attributes and len(attributes[UID]) >= 4:
                (user,) = struct.unpack_from("=I", attributes[UID])
                if len(attributes.get(MEMINFO, b"")) >= 4 * (WMEM_ALLOC + 1):
                    sent[user] += struct.unpack_from("=I", attributes[MEMINFO], 4 * WMEM_ALLOC)[0]
                if len(attributes.get(RQLEN, b"")) >= 4:
                    waiting[user] += struct.unpack_from("=I", attributes[RQLEN])[0]
    # What a socket has sent that is closed by now shows only where it waits.
    return sent | waiting


def _answers(link: socket.socket) -> Iterator[dict[int, bytes]]:
    while True:
        data = link.recv(ANSWER_BYTES)
        position = 0
        while position + HEADER.size <= len(data):
            length, kind, *_ = HEADER.unpack_from(data, position)
            if kind == NLMSG_DONE or kind != SOCK_DIAG_BY_FAMILY or length < HEADER.size:
                return
            yield _attributes(data[position + HEADER.size + MESSAGE_BYTES : position + length])
            position += -(-length // 4) * 4


def _attributes(data: bytes) -> dict[int, bytes]:
    found, position = {}, 0
    while position + ATTRIBUTE.size <= len(data):
        length, kind = ATTRIBUTE.unpack_from(data, position)
        if length < ATTRIBUTE.size:
            break
        found[kind] = data[position + ATTRIBUTE.size : position + length]
        position += -(-length // 4) * 4
    return found
