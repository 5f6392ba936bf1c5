"""The walls of kernel_host, each by itself: on this machine, without a container, whose own walls would hide them."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import socket
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kernel_host import landlock, seccomp
from kernel_host.walls import Walls

MACHINES = {"x86_64": 0, "aarch64": 1}
MACHINE = os.uname().machine
ABSTRACT = f"\0kernel-server-{os.getpid()}"
needs_landlock = pytest.mark.skipif(not landlock.abi(), reason="this Linux has no Landlock")


def in_child(body: Callable[[], Any]) -> Any:
    """What `body` returns in a process of its own, which may not gain privileges."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
            os.write(writer, json.dumps(body()).encode())
        except BaseException as error:
            os.write(writer, json.dumps(f"{type(error).__name__}: {error}").encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        said = file.read()
    os.waitpid(pid, 0)
    return json.loads(said)


def error_of(function: Callable[[], Any]) -> int:
    """The number of the error that it raises, or 0."""
    try:
        function()
    except OSError as error:
        return error.errno or -1
    return 0


def call_errors() -> dict[str, int]:
    """What each filtered call answers to arguments with which it can do nothing."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    errors = {}
    for name, numbers in (seccomp.ABSENT | seccomp.REFUSED | seccomp.UNSUPPORTED).items():
        if (number := numbers[MACHINES[MACHINE]]) is not None:
            bad = [ctypes.c_ulong(0xFFFFFFFFFFFFF000)] * 6
            errors[name] = ctypes.get_errno() if libc.syscall(ctypes.c_long(number), *bad) < 0 else 0
    return errors


def test_filter_answers_each_call_as_its_table_says() -> None:
    """H10: each denied call is made, as Firecracker does; without the filter most reach Linux."""

    def filtered() -> dict[str, int]:
        seccomp.install("none")
        return call_errors()

    assert in_child(filtered) == {
        name: error
        for calls, error in seccomp.TABLES
        for name, numbers in calls.items()
        if numbers[MACHINES[MACHINE]] is not None
    }
    control = in_child(call_errors)
    assert len([name for name, error in control.items() if error not in (errno.EPERM, errno.ENOSYS)]) > 15, control


@pytest.mark.parametrize(
    ("network", "tcp", "udp"),
    [("none", errno.ENETUNREACH, errno.ENETUNREACH), ("tcp", 0, errno.EPERM), ("full", 0, 0)],
)
def test_sockets_are_those_of_the_network(network: str, tcp: int, udp: int) -> None:
    """Ours: without a network, the error of socket() itself says so; MPTCP, raw and exotic ones never exist."""

    def errors() -> list[int]:
        seccomp.install(network)
        kinds = [
            (2, 1, 0),
            (2, 2, 0),
            (2, 1, 262),
            (2, 3, 1),
            (10, 1, 0),
            (1, 1, 0),
            (16, 3, 0),
            (16, 3, 6),
            (40, 1, 0),
            (17, 3, 0),
        ]
        return [error_of(lambda kind=kind: socket.socket(*kind)) for kind in kinds]  # type: ignore[misc]

    unreachable, unknown = errno.ENETUNREACH, errno.EPROTONOSUPPORT
    mptcp, raw = (unreachable, unreachable) if network == "none" else (unknown, unknown)
    ipv6 = tcp
    assert in_child(errors) == [tcp, udp, mptcp, raw, ipv6, 0, 0, unknown, errno.EAFNOSUPPORT, errno.EAFNOSUPPORT]


def test_threads_and_processes_start_but_no_namespaces() -> None:
    """Ours: clone3 is absent, so that flags are seen; the C library then uses clone."""

    def tried() -> list[int]:
        seccomp.install("none")
        import subprocess
        import threading

        thread = threading.Thread(target=lambda: None)
        thread.start()
        thread.join()
        subprocess.run(["true"], check=True)
        libc = ctypes.CDLL(None, use_errno=True)
        number = ctypes.c_long((56, 220)[MACHINES[MACHINE]])
        pid = libc.syscall(number, ctypes.c_ulong(0x10000000 | signal.SIGCHLD), None, None, None, None)
        return [pid, ctypes.get_errno()]

    assert in_child(tried) == [-1, errno.EPERM]


def test_threads_share_their_descriptors() -> None:
    """What a thread alone has open shows in /proc nowhere but at itself."""

    def tried() -> list[int]:
        libc = ctypes.CDLL(None, use_errno=True)
        answers = [libc.syscall(ctypes.c_long(436), 900, 901, flag) for flag in (2, 0)]
        return [*answers, ctypes.get_errno()]

    def filtered() -> list[int]:
        seccomp.install("none")
        return tried()

    assert in_child(filtered) == [-1, 0, errno.EINVAL]
    assert in_child(tried)[:2] == [0, 0], "the control"
    for machine, (clone, arch) in {"x86_64": (56, 0xC000003E), "aarch64": (220, 0xC00000B7)}.items():
        code = seccomp.program(machine, "none")
        assert decide(code, clone, arch, 0x10000 | 0x800 | 0x100) == 0x50000 | errno.EPERM
        assert decide(code, clone, arch, 0x10000 | 0x800 | 0x400 | 0x100) == 0x7FFF0000
        assert decide(code, clone, arch, signal.SIGCHLD) == 0x7FFF0000


def decide(code: bytes, number: int, arch: int, *arguments: int) -> int:
    """What a filter says of a call: as Linux runs it (linux/filter.h)."""
    data = struct.pack("=iIQ6Q", number, arch, 0, *arguments, *[0] * (6 - len(arguments)))
    program = list(struct.iter_unpack("=HBBI", code))
    at = accumulator = 0
    while True:
        operation, if_true, if_false, value = program[at]
        at += 1
        match operation:
            case 0x20:
                (accumulator,) = struct.unpack_from("=I", data, value)
            case 0x54:
                accumulator &= value
            case 0x15:
                at += if_true if accumulator == value else if_false
            case 0x35:
                at += if_true if accumulator >= value else if_false
            case 0x45:
                at += if_true if accumulator & value else if_false
            case 0x06:
                return int(value)
            case _:
                raise AssertionError(f"unknown operation {operation:#x}")


@pytest.mark.parametrize("network", ["none", "tcp", "full"])
@pytest.mark.parametrize(("machine", "arch"), [("x86_64", 0xC000003E), ("aarch64", 0xC00000B7)])
def test_filters_of_both_machines_decide_alike(machine: str, arch: int, network: str) -> None:
    """Ours: the filter of the machine that this is not is run by hand."""
    code = seccomp.program(machine, network)
    allowed = 0x7FFF0000
    for calls, error in seccomp.TABLES:
        for name, numbers in calls.items():
            if (number := numbers[MACHINES[machine]]) is not None:
                assert decide(code, number, arch) == 0x50000 | error, name
    open_call, socket_call, ioctl_call = {"x86_64": (257, 41, 16), "aarch64": (56, 198, 29)}[machine]
    assert decide(code, open_call, arch) == allowed
    assert decide(code, socket_call, arch, socket.AF_UNIX, 1, 0) == allowed
    assert decide(code, socket_call, arch, socket.AF_NETLINK, 3, 0) == allowed
    assert decide(code, socket_call, arch, socket.AF_NETLINK, 3, 6) == 0x50000 | errno.EPROTONOSUPPORT
    assert (decide(code, socket_call, arch, socket.AF_INET, 1 | 0o2000000, 6) == allowed) == (network != "none")
    assert (decide(code, socket_call, arch, socket.AF_INET6, 2, 17) == allowed) == (network == "full")
    assert decide(code, ioctl_call, arch, 0, seccomp.TIOCSTI) == 0x50000 | errno.EPERM
    assert decide(code, ioctl_call, arch, 0, 0x5401) == allowed
    assert decide(code, open_call, 0x40000003) == 0x50000 | errno.ENOSYS, "calls of 32-bit programs"


def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    made = (tmp_path / "own", tmp_path / "sockets", tmp_path / "other")
    for folder in made:
        folder.mkdir()
    (made[2] / "file").write_text("other")
    return made


@needs_landlock
def test_files_beyond_its_own_are_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """H4: own folders with all rights, the system to read, nothing else; also for root, to whom no mode means anything."""
    monkeypatch.setattr(landlock, "NOT_SYSTEM", (*landlock.NOT_SYSTEM, "var"))
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder, socket.socket(socket.AF_UNIX) as listener:
        own, shared, other = folders(Path(folder))
        listener.bind(ABSTRACT)
        listener.listen()

        def tried() -> dict[str, int]:
            landlock.restrict([str(own)], str(shared), None)
            return outcome(own, other)

        allowed = dict.fromkeys(("write its own", "make a folder", "read the system", "use a device"), 0)
        denied = dict.fromkeys(("read another's", "write into the system", "make a device"), errno.EACCES)
        scoped = errno.EPERM if landlock.abi() >= landlock.SCOPES_ABI else 0
        foreign = dict.fromkeys(("signal its parent", "abstract socket of its parent"), scoped)
        assert in_child(tried) == {**allowed, **denied, **foreign}
        if os.getuid() == 0:
            (own / "folder").rmdir()
            assert set(in_child(lambda: outcome(own, other)).values()) == {0}, "the control"


def outcome(own: Path, other: Path) -> dict[str, int]:
    return {
        "write its own": error_of(lambda: (own / "file").write_text("x")),
        "make a folder": error_of((own / "folder").mkdir),
        "read the system": error_of(lambda: Path("/etc/passwd").read_text()),
        "use a device": error_of(lambda: Path("/dev/null").write_text("x")),
        "read another's": error_of((other / "file").read_text),
        "write into the system": error_of(lambda: os.close(os.open("/etc/passwd", os.O_RDWR))),
        "make a device": error_of(lambda: os.mknod(own / "null", 0o020600, os.makedev(1, 3))),
        "signal its parent": error_of(lambda: os.kill(os.getppid(), 0)),
        "abstract socket of its parent": error_of(_connect),
    }


def _connect() -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(ABSTRACT)


@needs_landlock
@pytest.mark.skipif(landlock.abi() < landlock.TCP_ABI, reason="this Linux has no Landlock for TCP")
@pytest.mark.parametrize(
    ("ports", "connects", "binds"), [(None, 0, 0), ((), errno.EACCES, errno.EACCES), ("it", 0, errno.EACCES)]
)
def test_tcp_is_that_which_was_allowed(tmp_path: Path, ports: Any, connects: int, binds: int) -> None:
    """H4: no TCP at all, that to one port only, or any; the first case is the control."""
    own, _, _ = folders(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        allowed = (address[1],) if ports == "it" else ports

        def tried() -> list[int]:
            landlock.restrict([str(own)], str(own), allowed)
            return [
                error_of(lambda: socket.create_connection(address, timeout=5).close()),
                error_of(lambda: socket.create_server(("127.0.0.1", 0)).close()),
            ]

        assert in_child(tried) == [connects, binds]


def test_process_with_threads_is_not_taken_for_restricted(tmp_path: Path) -> None:
    """Ours: a thread that runs already would stay free, and all of a process's memory is its own."""

    def tried() -> None:
        import threading

        threading.Thread(target=threading.Event().wait, daemon=True).start()
        Walls(seccomp=False, landlock=1, internet="none", tcp_ports=()).raise_around([str(tmp_path)], "/")

    assert "threads that run already" in in_child(tried)
