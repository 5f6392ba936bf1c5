"""What a session runs to flood the server: its messages past libzmq, on its kernel's own connections, without end."""

from __future__ import annotations

_SETUP = r"""
import os, select, socket, struct, threading
kernel = get_ipython().kernel
session = kernel.session

def connections():
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            opened = socket.socket(fileno=os.dup(int(name)))
            opened.getpeername()
            if opened.getsockname():
                found.append(opened)
        except OSError:
            pass
    return found

def wire(parts):
    last = len(parts) - 1
    return b"".join(struct.pack(">BQ", 2 | (number < last), len(part)) + part for number, part in enumerate(parts))

def message(msg_type, content, **more):
    header = session.msg_header(msg_type) | more
    parts = [session.pack(header), session.pack(kernel.get_parent()["header"]), b"{}", content]
    return wire([b"", b"<IDS|MSG>", session.sign(parts), *parts])

def shown(values):
    return message("display_data", b'{"data":{"application/json":[' + values + b']},"metadata":{}}')

def flood(connection, data):
    while True:
        left = memoryview(data)
        while left:
            try:
                left = left[connection.send(left):]
            except BlockingIOError:
                select.select([], [connection], [])
"""

_FLOOD = """
threads = [threading.Thread(target=flood, args=(opened, data)) for opened in connections()]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""

_MESSAGES = {
    "texts": r"""shown(b",".join([b'"' + b"\\n" * 75 + b'"'] * 299_000))""",
    "values": """shown(b",".join([b"1"] * 299_000))""",
    "objects": """shown(b",".join(b'{"a%d":"%s"}' % (number, b"x" * 100) for number in range(149_000)))""",
    "wide text": """message("stream", b'{"text":"' + b"x" * 47_000_000 + "😀".encode() + b'"}')""",
    "too many values": """shown(b",".join([b"[]"] * 15_000_000))""",
    "tracebacks": r"""message("error", b'{"traceback":[' + b",".join([b'"' + b"\\n" * 75 + b'"'] * 299_000) + b"]}")""",
    "dates in headers": """message("status", b"{}", more=["2026-01-01T00:00:00.000000Z"] * 200_000)""",
    "pages": r"""message("execute_reply", b'{"payload":[' + b",".join([b'{"source":"page"}'] * 99_000) + b"]}")""",
    "questions": """message("input_request", b'{"prompt":"' + b"x" * 47_000_000 + b'"}')""",
    "pings": r"""(b"\x04\x07\x04PING\x00\x00") * 1_000_000""",
    "small ones": """message("stream", b'{"text":"x"}') * 10_000""",
    "parts": """wire([b""] * 1_000_000)""",
}
KINDS = tuple(_MESSAGES)


def flooding(kind: str) -> str:
    """A cell that floods on all channels of its kernel for as long as it lives."""
    return f"{_SETUP}\ndata = {_MESSAGES[kind]}\n{_FLOOD}"
