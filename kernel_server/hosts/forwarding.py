"""The proxy's own process: takes HTTP requests and CONNECT at a unix socket, and forwards those to hosts that are named.

The only module that knows h11. All that comes from a session is hostile: heads are bounded in size and time, connecting
is bounded for each name of the list, so that one that does not answer holds up nobody else, and names reach the log as
one line of printable text.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import resource
import socket
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import h11

from kernel_server.hosts.proxy import HOSTS_VARIABLE, PORTS, find_named, is_reachable
from kernel_server.text import one_line

HEAD_SECONDS, HEAD_BYTES = 20.0, 64 << 10
ADDRESS_SECONDS, CONNECT_SECONDS = 3.0, 8.0  # for one address, and for all of it: queue, names, each address
CONNECTING = 32  # to one name of the list at a time; more wait for their turn
RESOLVING = 8  # threads for one name: the resolver cannot be interrupted
ANSWER_SECONDS = 600.0  # for the rest of an answer, when the client has said all, or has gone
MOST_ADDRESSES = 4  # that are tried of a host
MOST_CONNECTIONS = 2_000  # of all sessions; of more, the one that has been idle longest is closed
CHUNK_BYTES = 64 << 10
# What is meant for a proxy, or for one connection: RFC 9110, section 7.6.1.
HOP_BY_HOP = {
    b"connection",
    b"proxy-connection",
    b"keep-alive",
    b"proxy-authorization",
    b"te",
    b"trailer",
    b"upgrade",
    b"host",
}


class Refused(Exception):
    """A request is answered with an error; `str` is for the session, `status` as in HTTP."""

    def __init__(self, status: int, text: str) -> None:
        self.status = status
        super().__init__(text)


@dataclass(eq=False)
class Client:
    """A connection of a session."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    task: asyncio.Task[None] | None = field(default_factory=asyncio.current_task)
    active: float = field(default_factory=time.monotonic)

    def abort(self) -> None:
        """Ends it."""
        if self.task is not None:
            self.task.cancel()


@dataclass(frozen=True)
class Wish:
    """What a client wants: `head` is what the host gets first; of CONNECT, nothing."""

    host: str
    port: int
    head: bytes
    is_tunnel: bool


class Forwarder:
    """Serves all clients."""

    def __init__(self, hosts: Sequence[str], most: int = MOST_CONNECTIONS) -> None:
        self._hosts = hosts
        self._most = most
        self._clients: set[Client] = set()
        self._connecting: dict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(CONNECTING))
        self._resolving: dict[str, anyio.CapacityLimiter] = defaultdict(lambda: anyio.CapacityLimiter(RESOLVING))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client, until it or the host has ended."""
        if len(self._clients) >= self._most:
            idle = min(self._clients, key=lambda client: client.active)
            self._clients.remove(idle)
            idle.abort()
        client = Client(reader, writer)
        self._clients.add(client)
        try:
            await self._serve(client)
        except Refused as refused:
            await _answer(writer, refused)
        except (OSError, EOFError):
            pass  # the client or the host has gone
        except Exception as error:  # one client's, and never the end of the proxy
            say(f"{type(error).__name__}: {error}")
        finally:
            self._clients.discard(client)
            writer.close()

    async def _serve(self, client: Client) -> None:
        try:
            with anyio.fail_after(HEAD_SECONDS):
                wish, rest = await _read_wish(client.reader)
        except TimeoutError as error:
            raise Refused(408, "No request came in time") from error
        reader, writer = await self._connect(wish.host, wish.port)
        try:
            if wish.is_tunnel:
                client.writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            writer.write(wish.head + rest)
            await _pass_on_both(client, reader, writer)
        finally:
            writer.close()

    async def _connect(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        named = find_named(host, port, self._hosts)
        if named is None:
            listed = host if port in PORTS else f"{host}:{port}"
            raise _refused(listed, "is not among the hosts of PY_EXEC_NETWORK")
        try:
            with anyio.fail_after(CONNECT_SECONDS):
                async with self._connecting[named]:
                    return await self._connect_to_any(await self._addresses(named, host, port), port)
        except TimeoutError as error:
            raise Refused(504, f"{host} does not answer") from error

    async def _addresses(self, named: str, host: str, port: int) -> list[str]:
        """Where a host is, as far as its owner may lead there."""
        look = functools.partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        try:
            entries = await anyio.to_thread.run_sync(look, abandon_on_cancel=True, limiter=self._resolving[named])
        except (OSError, UnicodeError) as error:
            raise _refused(host, "cannot be found by the host's name servers") from error
        found = list(dict.fromkeys(str(entry[4][0]) for entry in entries))
        public = [address for address in found if is_reachable(address, host, self._hosts)]
        if not public:
            raise _refused(host, f"leads to {found[0]}, which is not public and not named in PY_EXEC_NETWORK")
        return public[:MOST_ADDRESSES]

    async def _connect_to_any(
        self, addresses: list[str], port: int
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reason = "no answer"
        for address in addresses:
            try:
                with anyio.fail_after(ADDRESS_SECONDS):
                    return await asyncio.open_connection(address, port)
            except OSError as error:  # TimeoutError is one, and says nothing
                reason = error.strerror or reason
        raise Refused(502, f"The host cannot be connected to ({reason})")


async def _read_wish(reader: asyncio.StreamReader) -> tuple[Wish, bytes]:
    """The head of a request, and what has come behind it.

    Raises:
        Refused: it is none for a proxy.
        EOFError: the client has gone.
    """
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
    try:
        while (event := parser.next_event()) is h11.NEED_DATA:
            data = await reader.read(CHUNK_BYTES)
            if not data:
                raise EOFError
            parser.receive_data(data)
        if not isinstance(event, h11.Request):
            raise EOFError  # noqa: TRY004 - the client has ended
        wish = _wish_of(event)
    except (h11.RemoteProtocolError, ValueError) as error:
        raise Refused(400, "This is no request for an HTTP proxy") from error
    return wish, parser.trailing_data[0]


def _wish_of(request: h11.Request) -> Wish:
    target = request.target.decode("ascii")
    if request.method == b"CONNECT":
        host, _, port = target.rpartition(":")
        return Wish(_name(host.strip("[]")), int(port), b"", is_tunnel=True)
    parts = urlsplit(target)
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError(target)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    # RFC 9112, section 3.2.2: a proxy goes by the target, and replaces the Host that came with it.
    netloc = parts.netloc.rpartition("@")[2]
    headers = [(b"Host", netloc.encode()), (b"Connection", b"close")]
    headers += [(name, value) for name, value in request.headers if name not in HOP_BY_HOP]
    lines = [
        b"%s %s HTTP/%s" % (request.method, path.encode(), request.http_version),
        *(b"%s: %s" % header for header in headers),
    ]
    return Wish(_name(parts.hostname), parts.port or 80, b"\r\n".join([*lines, b"", b""]), is_tunnel=False)


def _name(host: str) -> str:
    return host.lower().rstrip(".")


async def _pass_on_both(client: Client, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until the host has said all; what the client says may end before."""
    asking = asyncio.create_task(_pass_on(client, client.reader, writer))
    answering = asyncio.create_task(_pass_on(client, reader, client.writer))
    tasks = {asking, answering}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if answering not in done and asking.exception() is None:
            with anyio.move_on_after(ANSWER_SECONDS):
                await answering
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pass_on(client: Client, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(CHUNK_BYTES):
        client.active = time.monotonic()
        writer.write(data)
        await writer.drain()
    with contextlib.suppress(OSError):
        writer.write_eof()


def _refused(host: str, why: str) -> Refused:
    say(f"refused {host}: {why}")
    return Refused(403, f"{host} {why}")


async def _answer(writer: asyncio.StreamWriter, refused: Refused) -> None:
    said = one_line(str(refused)).encode("ascii", "replace")
    body = b"kernel-server: " + said + b".\n"
    head = b"HTTP/1.1 %d %s\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % (refused.status, said, len(body))
    with contextlib.suppress(OSError):
        writer.write(head + body)
        with anyio.move_on_after(HEAD_SECONDS):
            await writer.drain()


@functools.lru_cache(maxsize=256)  # a session can ask for the same as often as it likes
def say(text: str) -> None:
    """One line of the server's log, whatever a session has named."""
    print(f"kernel-server: proxy: {one_line(text, 300)}", file=sys.stderr, flush=True)


async def main(path: str, hosts: Sequence[str]) -> None:
    """Serves until standard input ends."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * MOST_CONNECTIONS + 500
    open_files = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, hard))
    most = min(MOST_CONNECTIONS, max(1, (open_files - 100) // 2))
    os.umask(0o077)
    await asyncio.start_unix_server(Forwarder(hosts, most).serve, path, limit=CHUNK_BYTES, backlog=100)
    await anyio.to_thread.run_sync(sys.stdin.buffer.read)
    os._exit(0)  # threads may wait for a name server


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], [host for host in os.environ[HOSTS_VARIABLE].split(",") if host]))
