"""What is open and mapped that two processes must not have together: see `obstacles`."""

from __future__ import annotations

import _socket
import os
import re
import select
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from .descriptors import Descriptor, beneath, descriptors, keys
from .usage import read

SHARED = re.compile(r"\S+ .([w-]).s \S+ \S+ \d+ *(.*)")  # a line of /proc/pid/maps, proc(5)
MAX_START = 40  # of such a line, up to the end of its access rights
GPU = ("/dev/nvidia", "/dev/dri/", "/dev/kfd")
HARMLESS_DEVICES = {f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom")}
SQLITE_MAGIC = b"SQLite format 3\0"  # https://www.sqlite.org/fileformat.html, 1.2
TRACKERS = tuple(
    f"{package}.resource_tracker" for package in ("multiprocessing", "joblib.externals.loky.backend", "loky.backend")
)

CLOSE = "close it, and open it again afterwards"
PIPE = "close it (or the multiprocessing.Queue or Pipe that it belongs to), and make a new one afterwards"
CONNECT = "close it, and connect again afterwards"
MAPPED = (
    "copy what you need of it (array.copy()), delete what uses the mapping (del array), and map it again afterwards"
)
KEEP_INSIDE = "close it; a file in the workspace that has a name can stay open"
PROCESS_OF_ITS_OWN = (
    "what is on a GPU cannot be copied; restart the session, and use it in a process of its own (subprocess)"
)
PAIR = "close it (of an event loop: loop.close()), and make a new one afterwards"
DATABASE = "close the connection (connection.close()), and connect again afterwards"


class Found(NamedTuple):
    """An obstacle, and what to do about it; those with the same advice are told in one sentence."""

    thing: str
    advice: str


class Kept(NamedTuple):
    """What is open and mapped, to be told later from what comes."""

    descriptors: frozenset[tuple[int, int]]
    mapped: frozenset[str]

    @classmethod
    def here(cls) -> Kept:
        """Looks."""
        return cls(frozenset(keys()), frozenset(_shared(read("/proc/self/maps"))))


class Openings:
    """What is open and mapped now, and is not the kernel's own."""

    def __init__(self, own: Kept, run_dir: str, roots: tuple[str, str]) -> None:
        """Looks.

        Args:
            own: what was open and mapped before the session did anything.
            run_dir: where the kernel's sockets lie.
            roots: workspace and private folder of the session, where regular files may be open.
        """
        self._run_dir = run_dir
        self._roots = tuple(os.path.realpath(root) for root in roots)
        self._maps = read("/proc/self/maps")
        idle = _idle_arenas()
        known = own.mapped | idle
        self._shared = {name: access for name, access in _shared(self._maps).items() if name not in known}
        self._descriptors = [
            descriptor
            for descriptor in descriptors()
            if descriptor.key not in own.descriptors and descriptor.target not in idle
        ]

    def mapped(self) -> Iterator[Found]:
        """What is mapped so that one side would see what the other writes."""
        for name, access in self._shared.items():
            if self._inside(name):
                yield self._mapped_file(name)
            elif access == "w" and not name.startswith(("/dev/shm/sem.", *GPU)):  # noqa: S108 - semaphores: sem_overview(7)
                yield Found(f"shared memory ({name.removesuffix(' (deleted)') or 'without a name'})", MAPPED)
        for root in self._roots:
            if f" {root}/" in self._maps:
                yield from map(self._mapped_file, self._copied(root))

    def _copied(self, root: str) -> Iterator[str]:
        """Files mapped with MAP_PRIVATE (numpy's mode "c"): who writes the file changes what was not written here."""
        lines = re.findall(rf"^\S+ ..(.)p \S+ \S+ \d+ *({re.escape(root)}/.*)$", self._maps, re.MULTILINE)
        libraries = {name for executable, name in lines if executable == "x"}
        yield from dict.fromkeys(name for _, name in lines if name not in libraries | self._shared.keys())

    def _mapped_file(self, name: str) -> Found:
        return Found(f"the file {self._shown(name)}, which is mapped into memory", MAPPED)

    def files(self) -> Iterator[Found]:
        """Sockets, files and devices."""
        for descriptor in self._descriptors:
            if stat.S_ISSOCK(descriptor.mode):
                if not _is_own_socket(descriptor.number, self._run_dir):
                    yield _socket_found(descriptor.number)
            elif stat.S_ISREG(descriptor.mode):
                if descriptor.target not in self._shared:
                    yield from self._regular(descriptor)
            elif descriptor.target.startswith(GPU):
                yield Found(f"a GPU ({descriptor.target})", PROCESS_OF_ITS_OWN)
            elif stat.S_ISCHR(descriptor.mode) and descriptor.writable and descriptor.target not in HARMLESS_DEVICES:
                yield Found(f"the device {descriptor.target} (descriptor {descriptor.number})", CLOSE)

    def _regular(self, descriptor: Descriptor) -> Iterator[Found]:
        inside = self._inside(descriptor.target)
        shown = f"{self._shown(descriptor.target)} (descriptor {descriptor.number})"
        if not descriptor.links and (inside or descriptor.writable):
            yield Found(f"the file without a name {shown}", KEEP_INSIDE)
        elif descriptor.writable and not inside:
            yield Found(f"the file {shown}, which is open for writing", KEEP_INSIDE)
        elif descriptor.writable and _is_database(descriptor):
            yield Found(f"the SQLite database {shown}", DATABASE)

    def pipes(self, *, to_others: bool) -> Iterator[Found]:
        """Pipes of which both ends are here, and those `to_others` of which the other end is open elsewhere."""
        ends: dict[tuple[int, int], list[Descriptor]] = {}
        cleaners = trackers("_fd")
        for descriptor in self._descriptors:
            if stat.S_ISFIFO(descriptor.mode) and descriptor.number not in cleaners:
                ends.setdefault(descriptor.key, []).append(descriptor)
        for pipe in ends.values():
            numbers = ", ".join(str(end.number) for end in pipe)
            if any(end.readable for end in pipe) and any(end.writable for end in pipe):
                yield Found(f"the pipe with both its ends (descriptors {numbers})", PIPE)
            elif to_others and _has_other_end(pipe[0]):
                yield Found(f"the pipe to another program (descriptors {numbers})", CLOSE)

    def _inside(self, path: str) -> bool:
        return any(beneath(path, root) for root in self._roots)

    def _shown(self, path: str) -> str:
        """A path as the session writes it."""
        path = path.removesuffix(" (deleted)")
        workspace = self._roots[0]
        return path[len(workspace) + 1 :] if beneath(path, workspace) else path


def _shared(maps: str) -> dict[str, str]:
    """What is mapped with MAP_SHARED: names, and whether it may be written ("w"). There are hundreds of other lines."""
    lines = (SHARED.fullmatch(line) for line in maps.split("\n") if "s " in line[:MAX_START])
    return {match[2]: match[1] for match in lines if match}


def _is_database(descriptor: Descriptor) -> bool:
    """SQLite remembers the path of its journal, and locks go with the process: sqlite.org/howtocorrupt.html, 2.6.

    A new database is empty, but nobody else opens files so.
    """
    with suppress(OSError):
        start = os.pread(descriptor.number, len(SQLITE_MAGIC), 0)
        return start == SQLITE_MAGIC or (not start and bool(descriptor.flags & os.O_NOFOLLOW))
    return False


def _has_other_end(end: Descriptor) -> bool:
    """poll(2): POLLHUP and POLLERR tell that nobody has the other end of a pipe any more."""
    poll = select.poll()
    poll.register(end.number, 0)
    return not poll.poll(0)


def _idle_arenas() -> set[str]:
    """Where multiprocessing has had a Value or an Array: it keeps that, and in a child makes a new one."""
    wrapper = vars(sys.modules.get("multiprocessing.heap", object)).get("BufferWrapper")
    heap = getattr(wrapper, "_heap", None)
    found = set()
    for arena in list(getattr(heap, "_arenas", ())):
        with suppress(Exception):  # not a part of its interface
            if not heap._allocated_blocks.get(arena):  # type: ignore[union-attr]  # noqa: SLF001
                found.add(os.readlink(f"/proc/self/fd/{arena.fd}"))
    return found


def trackers(what: str) -> set[int | None]:
    """Process ids (`_pid`) or descriptors (`_fd`) of the processes that clean up after others, for parent and child."""
    loaded = (vars(sys.modules[name]).get("_resource_tracker") for name in TRACKERS if name in sys.modules)
    return {getattr(tracker, what, None) for tracker in loaded}


def _is_own_socket(number: int, run_dir: str) -> bool:
    """Also those that were accepted: they have the name of the listening one."""
    with suppress(OSError), _borrowed(number) as socket:
        name = socket.getsockname()
        return isinstance(name, str) and beneath(name, run_dir)
    return False


def _socket_found(number: int) -> Found:
    with suppress(OSError), _borrowed(number) as socket:
        if socket.getsockopt(_socket.SOL_SOCKET, _socket.SO_ACCEPTCONN):
            return Found(f"the socket that listens on {_address(socket.getsockname())} (descriptor {number})", CONNECT)
        with suppress(OSError):  # is not connected
            if peer := _address(socket.getpeername()):
                return Found(f"the connection to {peer} (descriptor {number})", CONNECT)
            return Found(f"one of a pair of sockets, perhaps of an event loop (descriptor {number})", PAIR)
    return Found(f"the socket of descriptor {number}", CONNECT)


def _address(name: Any) -> str:
    if isinstance(name, tuple) and len(name) >= 2:
        return f"{name[0]}:{name[1]}"
    return str(name)


@contextmanager
def _borrowed(number: int) -> Iterator[_socket.socket]:
    """The socket of a descriptor, which stays open; not with `socket.socket`, which a session may replace."""
    socket = _socket.socket(fileno=number)
    try:
        yield socket
    finally:
        socket.detach()
