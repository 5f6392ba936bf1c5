"""What a session may do with files: read the system, write its own folders. On top of users and modes, for good.

It also cannot signal processes of others, nor reach their abstract sockets, nor use TCP where it should not. Linux
enforces what it knows of this: the number of its ABI says how much.

Source: landlock(7), linux/landlock.h.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

TCP_ABI, SCOPES_ABI = 4, 6  # from which on it knows TCP, and signals and abstract sockets

# Rights to files: LANDLOCK_ACCESS_FS_*.
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 4, 1 << 5
MAKE_CHAR, MAKE_DIR, MAKE_REG, MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK, MAKE_SYM = (1 << bit for bit in range(6, 13))
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_KNOWN = {1: MAKE_SYM, 2: REFER, 3: TRUNCATE, 4: TRUNCATE, 5: IOCTL_DEV}  # the newest right that an ABI knows
OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
READ = EXECUTE | READ_FILE | READ_DIR
LOOK = READ_FILE | READ_DIR
USE = LOOK | WRITE_FILE | TRUNCATE | IOCTL_DEV
OWN = (2 * IOCTL_DEV - 1) & ~(MAKE_CHAR | MAKE_BLOCK)
BIND_TCP, CONNECT_TCP = 1, 2
_ALL_SCOPES = 3  # abstract unix sockets, signals

DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts")
# Not for sessions, or with rights of their own.
NOT_SYSTEM = ("proc", "sys", "dev", "run", "tmp", "workspace", "shared")

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # system calls, the same on every architecture
_CREATE_VERSION, _PATH_BENEATH, _NET_PORT = 1, 1, 2

_libc = ctypes.CDLL(None, use_errno=True)


class _Ruleset(ctypes.Structure):
    _fields_ = [("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64)]


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32)]


class _NetPort(ctypes.Structure):
    _fields_ = [("allowed", ctypes.c_uint64), ("port", ctypes.c_uint64)]


def abi() -> int:
    """The ABI that this Linux has; 0 is none."""
    return max(0, int(_libc.syscall(_CREATE, None, ctypes.c_size_t(0), _CREATE_VERSION)))


def restrict(own: Iterable[str], shared: str, ports: tuple[int, ...] | None) -> None:
    """Restricts this thread, which must be the only one of its process, and all that it starts; for good.

    Args:
        own: folders of the session, in which it may do what it likes.
        shared: a folder that it may read.
        ports: of TCP, to which it may connect, without any other TCP; None: all TCP is left as it is.

    Raises:
        OSError: Linux does not take it.
    """
    version = abi()
    if len(os.listdir("/proc/self/task")) > 1:
        raise OSError("threads that run already would not be restricted")
    handled = 2 * _KNOWN.get(version, IOCTL_DEV) - 1
    ruleset = _Ruleset(
        handled,
        BIND_TCP | CONNECT_TCP if ports is not None and version >= TCP_ABI else 0,
        _ALL_SCOPES if version >= SCOPES_ABI else 0,
    )
    sizes = {TCP_ABI: 16, SCOPES_ABI: 24}  # of the structure as that ABI knows it
    size = max((size for since, size in sizes.items() if version >= since), default=8)
    descriptor = _call(_CREATE, ctypes.byref(ruleset), ctypes.c_size_t(size), 0)
    try:
        for path in own:
            with _opened(path) as folder:
                _add(descriptor, folder, OWN & handled)
        for path, rights in _common_rights(shared):
            with suppress(OSError), _opened(path) as folder:  # what is not there, or not for a session, needs no right
                _add(descriptor, folder, rights & handled)
        for port in ports or () if version >= TCP_ABI else ():
            _call(_ADD, descriptor, _NET_PORT, ctypes.byref(_NetPort(CONNECT_TCP, port)), 0)
        _call(_RESTRICT, descriptor, 0)
    finally:
        os.close(descriptor)


def _common_rights(shared: str) -> Iterator[tuple[str, int]]:
    yield "/", READ_DIR  # names, as far as users and modes show them
    for name in os.listdir("/"):
        if name not in NOT_SYSTEM:
            yield f"/{name}", READ
    for name in DEVICES:
        yield f"/dev/{name}", USE
    yield from (("/proc", LOOK), ("/sys", LOOK), (shared, READ))
    yield from (("/tmp", OWN), ("/dev/shm", OWN))  # noqa: S108 - the container's own


@contextmanager
def _opened(path: str) -> Iterator[int]:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _add(ruleset: int, parent: int, rights: int) -> None:
    if not stat.S_ISDIR(os.fstat(parent).st_mode):
        rights &= OF_FILES
    _call(_ADD, ruleset, _PATH_BENEATH, ctypes.byref(_PathBeneath(rights, parent)), 0)


def _call(number: int, *arguments: object) -> int:
    result = int(_libc.syscall(number, *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"Landlock: {os.strerror(code)}")
    return result
