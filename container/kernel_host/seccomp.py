"""The system calls that a session cannot make: a filter on top of the engine's own, for good, also for all it starts.

Most of them need a capability, which no session has, or are refused by Docker's profile; here they are refused whatever
the engine does. The rest has been the way out of containers more often than anybody's tool (io_uring, user namespaces), or
holds memory that no limit of a process sees (memfd_create, System V).

Sources: seccomp(2), linux/filter.h, linux/seccomp.h; facts of Docker's profile: moby, profiles/seccomp.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import socket
import struct
import sys
from dataclasses import dataclass, field

# Numbers on x86_64 and aarch64 (asm/unistd_64.h, asm-generic/unistd.h); None where there is no such call.
# Programs take "not implemented" as a reason to do without it; the others are refused.
ABSENT: dict[str, tuple[int | None, int | None]] = {
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "userfaultfd": (323, 282),
    "clone3": (435, 435),  # its flags lie in memory, where no filter sees them; the C library then uses clone
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "vmsplice": (278, 75),  # one page in a pipe keeps all the 2 MB that Linux has given out at once
}
# As on file systems which have none: those of files on tmpfs take memory, and inodes, that no look at files sees.
UNSUPPORTED: dict[str, tuple[int | None, int | None]] = {
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
}
REFUSED: dict[str, tuple[int | None, int | None]] = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "perf_event_open": (298, 241),
    "bpf": (321, 280),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "chroot": (161, 51),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    "syslog": (103, 116),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "vhangup": (153, 58),
    "lookup_dcookie": (212, 18),
    "nfsservctl": (180, 42),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "uselib": (134, None),
    "ustat": (136, None),
    "sysfs": (139, None),
    "_sysctl": (156, None),
}
TABLES = ((ABSENT, errno.ENOSYS), (REFUSED, errno.EPERM), (UNSUPPORTED, errno.EOPNOTSUPP))
CLONE_FILES, CLONE_THREAD, CLOSE_RANGE_UNSHARE = 0x400, 0x10000, 2  # clone(2), close_range(2)
NAMESPACES = 0x7E020000  # clone(2): CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
# ioctl_tty(2): to type into the terminal of somebody else, and line disciplines, which Linux loads drivers for.
TIOCSTI, TIOCLINUX, TIOCSETD = 0x5412, 0x541C, 0x5423
MSG_OOB = 1  # of unix sockets, too: hardly any program, and some holes in Linux
RLIMIT_RTTIME = 15  # tells the processes of a family apart: `identity.set_mark`
LOCAL_FAMILIES = (socket.AF_UNIX, socket.AF_NETLINK)
INTERNET_FAMILIES = (socket.AF_INET, socket.AF_INET6)
SOCK_TYPE_MASK = 0xF
STREAM, DATAGRAM = 1, 2
INTERNET_PROTOCOLS = (0, 6, 17)  # whatever fits, TCP, UDP; not MPTCP (262), SCTP and others
NETLINK_ROUTE = 0  # by which programs ask for addresses and routes

_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH of linux/audit.h
_CALLS = {
    "socket": (41, 198),
    "socketpair": (53, 199),
    "clone": (56, 220),
    "close_range": (436, 436),
    "ioctl": (16, 29),
    "setrlimit": (160, 164),
    "prlimit64": (302, 261),
    "sendto": (44, 206),
    "sendmsg": (46, 211),
    "sendmmsg": (307, 269),
}
_X32 = 0x40000000  # calls of the x32 ABI have numbers from here

# Instructions: linux/bpf_common.h.
_LOAD, _AND, _EQUAL, _ABOVE, _AT_LEAST, _ANY_BIT, _JUMP, _RETURN = 0x20, 0x54, 0x15, 0x25, 0x35, 0x45, 0x05, 0x06
_NUMBER, _ARCH = 0, 4  # offsets in struct seccomp_data
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_IGNORED = 0  # in place of an error: the call has succeeded
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2


def _argument(position: int) -> int:
    """Offset of the lower half of an argument: both machines are little-endian."""
    return 16 + 8 * position


def is_possible() -> bool:
    """Whether the filter is known for this machine, and Linux takes it."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        return os.uname().machine in _MACHINES and sys.byteorder == "little" and "\nSeccomp:" in file.read()


@dataclass
class _Program:
    """A filter in the making."""

    code: list[tuple[int, int, int, int]] = field(default_factory=list)

    def add(self, operation: int, value: int, if_true: int = 0, if_false: int = 0) -> None:
        self.code.append((operation, if_true, if_false, value))

    def refuse(self, error: int) -> None:
        self.add(_RETURN, _ERRNO | error)

    def refuse_if(self, operation: int, value: int, error: int) -> None:
        self.add(operation, value, 0, 1)
        self.refuse(error)

    def refuse_unless_in(self, values: tuple[int, ...], error: int) -> None:
        for left, value in zip(range(len(values), 0, -1), values, strict=True):
            self.add(_EQUAL, value, left)
        self.refuse(error)

    def allow(self) -> None:
        self.add(_RETURN, _ALLOW)

    def of_call(self, number: int, body: _Program) -> None:
        """What is done where it is this call, or family; the body ends in a return."""
        self.add(_EQUAL, number, 0, len(body.code))
        self.code += body.code

    def packed(self) -> bytes:
        return b"".join(struct.pack("=HBBI", *instruction) for instruction in self.code)


@functools.cache
def program(machine: str, network: str) -> bytes:
    """The filter for a machine, as an array of struct sock_filter.

    Args:
        network: `none`: no internet sockets; `tcp`: those of TCP only; `full`: those of UDP, too.
    """
    column, arch = _MACHINES[machine]
    made = _Program()
    made.add(_LOAD, _ARCH)
    made.add(_EQUAL, arch, 1)
    made.refuse(errno.ENOSYS)  # calls of 32-bit programs have other numbers
    made.add(_LOAD, _NUMBER)
    if machine == "x86_64":
        made.refuse_if(_AT_LEAST, _X32, errno.ENOSYS)
    for calls, error in TABLES:
        for numbers in calls.values():
            if (number := numbers[column]) is not None:
                made.refuse_if(_EQUAL, number, error)
    for name, body in {
        "socket": _sockets(network),
        "socketpair": _sockets(network),
        "clone": _new_tasks(),
        "close_range": _own_descriptors(),
        "ioctl": _typing(),
        "setrlimit": _fixed_limit(),
        "prlimit64": _fixed_limit_of_any(),
        "sendto": _urgent(3),
        "sendmsg": _urgent(2),
        "sendmmsg": _urgent(3),
    }.items():
        made.of_call(_CALLS[name][column], body)
    made.allow()
    return made.packed()


def _sockets(network: str) -> _Program:
    made = _Program()
    made.add(_LOAD, _argument(0))
    if network == "none":  # what connect(2) would say: the error tells what is the matter
        for family in INTERNET_FAMILIES:
            made.refuse_if(_EQUAL, family, errno.ENETUNREACH)
    made.refuse_unless_in((*LOCAL_FAMILIES, *INTERNET_FAMILIES), errno.EAFNOSUPPORT)
    made.add(_EQUAL, socket.AF_UNIX, 0, 1)
    made.allow()
    routes = _Program()
    routes.add(_LOAD, _argument(2))
    routes.refuse_unless_in((NETLINK_ROUTE,), errno.EPROTONOSUPPORT)
    routes.allow()
    made.of_call(socket.AF_NETLINK, routes)
    made.add(_LOAD, _argument(2))
    made.refuse_unless_in(INTERNET_PROTOCOLS, errno.EPROTONOSUPPORT)
    made.add(_LOAD, _argument(1))
    made.add(_AND, SOCK_TYPE_MASK)
    made.refuse_unless_in((STREAM, DATAGRAM) if network == "full" else (STREAM,), errno.EPERM)
    made.allow()
    return made


def _new_tasks() -> _Program:
    """No namespaces; no threads with descriptors of their own, which do not show in their process's: proc(5)."""
    made = _Program()
    made.add(_LOAD, _argument(0))
    made.refuse_if(_ANY_BIT, NAMESPACES, errno.EPERM)
    made.add(_AND, CLONE_THREAD | CLONE_FILES)
    made.refuse_if(_EQUAL, CLONE_THREAD, errno.EPERM)
    made.allow()
    return made


def _own_descriptors() -> _Program:
    """Nor may a thread get them later: that flag is as unknown as before Linux 5.9."""
    made = _Program()
    made.add(_LOAD, _argument(2))
    made.refuse_if(_ANY_BIT, CLOSE_RANGE_UNSHARE, errno.EINVAL)
    made.allow()
    return made


def _typing() -> _Program:
    made = _Program()
    made.add(_LOAD, _argument(1))
    for request in (TIOCSTI, TIOCLINUX, TIOCSETD):
        made.refuse_if(_EQUAL, request, errno.EPERM)
    made.allow()
    return made


def _fixed_limit() -> _Program:
    """setrlimit(2): to set that limit does nothing, and no harm, since it is one of real-time scheduling."""
    made = _Program()
    made.add(_LOAD, _argument(0))
    made.refuse_if(_EQUAL, RLIMIT_RTTIME, _IGNORED)
    made.allow()
    return made


def _fixed_limit_of_any() -> _Program:
    """prlimit(2), which is also what the C library makes of setrlimit; who asks for the limit that was before is refused."""
    setting = _Program()
    for half in (0, 4):
        setting.add(_LOAD, _argument(3) + half)  # where the limit that was before would be written to
        setting.refuse_if(_ABOVE, 0, errno.EPERM)
    setting.refuse(_IGNORED)
    limit = _Program()
    for half in (0, 4):
        limit.add(_LOAD, _argument(2) + half)  # where the new limit is; 0 to look only
        limit.add(_EQUAL, 0, len(setting.code))
        limit.code += setting.code
    limit.allow()
    made = _Program()
    made.add(_LOAD, _argument(1))
    made.of_call(RLIMIT_RTTIME, limit)
    made.allow()
    return made


def _urgent(flags: int) -> _Program:
    made = _Program()
    made.add(_LOAD, _argument(flags))
    made.refuse_if(_ANY_BIT, MSG_OOB, errno.EOPNOTSUPP)
    made.allow()
    return made


class _SockFprog(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def install(network: str) -> None:
    """Filters the calls of this thread and of all that it starts, for good. It must have no_new_privs.

    Raises:
        OSError: Linux does not take it.
    """
    code = program(os.uname().machine, network)
    buffer = ctypes.create_string_buffer(code, len(code))
    fprog = _SockFprog(len(code) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(fprog), 0, 0):
        raise OSError(ctypes.get_errno(), "the filter of system calls was not taken")
