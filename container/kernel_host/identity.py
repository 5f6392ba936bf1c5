"""Who a process is: the kernel host (root with four capabilities), the server's user, or a session.

Nothing here is used by the `process_group` isolation, where every process is the server's user.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress

# The inode of the initial PID namespace is fixed: include/linux/proc_ns.h, PROC_PID_INIT_INO.
INITIAL_PID_NAMESPACE = 0xEFFFFFFC
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 1, 4, 36  # prctl(2)
KILL_DEADLINE_SECONDS = 3.0
RESERVED_FILES = 64
# For the OOM killer: proc(5), oom_score_adj; the rest of the container has less. What a kernel has started goes before it.
# Decoys go before kernels that use less than a tenth of the memory.
GOES_BEFORE_US, DECOY, FIRST_TO_GO = "800", "900", "1000"
NICE = 5  # of sessions: 60 busy processes must not keep the kernel host from seeing what they do
DEPUTY = 65_534  # nobody: it has no other process

LIMITS = {
    "nproc": resource.RLIMIT_NPROC,
    "nofile": resource.RLIMIT_NOFILE,
    "fsize": resource.RLIMIT_FSIZE,
    "data": resource.RLIMIT_DATA,
}


def in_own_pid_namespace() -> bool:
    """True if PID 1 is our container's init, so that kill(-1) can only reach the container."""
    return os.stat("/proc/self/ns/pid").st_ino != INITIAL_PID_NAMESPACE and os.getppid() == 1


def effective_capabilities() -> str:
    """CapEff of this process, hexadecimal: capabilities(7)."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        return next(line.split()[1] for line in file if line.startswith("CapEff"))


@contextmanager
def acting_as(uid: int) -> Iterator[None]:
    """File access as `uid` for a while; the saved UID stays 0, so that root comes back."""
    os.setresuid(uid, uid, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


@contextmanager
def seeing_as(uid: int) -> Iterator[None]:
    """Sees files, those in /proc too, as `uid` for a while; to its processes this one is still root's: setfsuid(2)."""
    libc = ctypes.CDLL(None)
    group, user = libc.setfsgid(uid), libc.setfsuid(uid)  # as they were
    try:
        yield
    finally:
        libc.setfsuid(user)
        libc.setfsgid(group)


def become(uid: int) -> None:
    """Gives up every privilege for good: no root, no groups, no capability; cannot be undone."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def yield_to_host() -> None:
    """Lets the kernel host, on which every session hangs, have the processor first and memory to the last."""
    os.nice(NICE)
    with suppress(OSError):
        _offer("self", GOES_BEFORE_US)


def offer(pid: int, uid: int) -> None:
    """Has the OOM killer take a process before kernels, whose variables are gone with them."""
    with suppress(OSError):  # it has ended
        try:
            with seeing_as(uid):
                _offer(str(pid), FIRST_TO_GO)
        except PermissionError:  # it is not dumpable: PR_SET_DUMPABLE(2const)
            _offer(str(pid), FIRST_TO_GO)


def be_decoy(pid: int) -> None:
    """Has the OOM killer take one of our own processes before us: see `decoys`.

    Raises:
        OSError: it has ended.
    """
    _offer(str(pid), DECOY)


def _offer(pid: str, score: str) -> None:
    with open(f"/proc/{pid}/oom_score_adj", "w", encoding="ascii") as file:
        file.write(score)


def act_for(uid: int) -> None:
    """May do what `uid` may, for good; but its processes cannot signal, stop or trace this one."""
    os.setgroups([])
    os.setresgid(DEPUTY, uid, DEPUTY)
    os.setresuid(DEPUTY, uid, DEPUTY)


def set_limits(limits: dict[str, int]) -> None:
    """Sets soft and hard limits of this process and all that it starts; no core files."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for name, value in limits.items():
        _, hard = resource.getrlimit(LIMITS[name])
        reserve = RESERVED_FILES if name == "nofile" else 0
        most = value + reserve if hard == resource.RLIM_INFINITY else min(value + reserve, hard)
        resource.setrlimit(LIMITS[name], (most - reserve, most))


def set_mark(mark: int) -> None:
    """Marks this process and all that it starts, so that sessions of one UID can be told apart.

    The mark is a limit, which everything inherits and nobody can raise again; that of real-time CPU time, which no
    session can use. Nor can a session lower it, where system calls are filtered: `seccomp`.
    """
    resource.setrlimit(resource.RLIMIT_RTTIME, (mark, mark))


def mark_other(pid: int, mark: int) -> None:
    """The same for another process of this UID, which has a higher mark: prlimit(2).

    Raises:
        OSError: it has ended.
    """
    resource.prlimit(pid, resource.RLIMIT_RTTIME, (mark, mark))


def mark_of(pid: int) -> int:
    """The mark of a process, 0 for none; proc(5), limits.

    Raises:
        OSError: it has ended.
    """
    with open(f"/proc/{pid}/limits", encoding="ascii") as file:
        hard = next((line.split()[-2] for line in file if line.startswith("Max realtime timeout")), "")
    return int(hard) if hard.isdigit() else 0


@contextmanager
def reserved_files() -> Iterator[None]:
    """Lets this process open a few more files than its limit: an error that says "too many" is to be shown, too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def user_site(home: str) -> str:
    """Where `pip install --user` puts packages for that home: sysconfig's scheme posix_user."""
    return f"{home}/.local/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"


def add_user_site(folder: str) -> None:
    """What a session has installed comes before what the image has: else nothing of that could be replaced."""
    first = next((place for place, path in enumerate(sys.path) if path.endswith("-packages")), len(sys.path))
    sys.path.insert(first, folder)


def make_dumpable() -> None:
    """Makes /proc/self and debuggers work as in any process (a change of UID takes that away: proc(5))."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)


def adopt_orphans() -> None:
    """Makes this process the parent of all below it that have lost theirs: it learns how they end."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def die_with_parent() -> None:
    """SIGKILLs this process when its parent ends; in a container the end of PID 1's child does that."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def kill_all_of_this_uid() -> None:
    """SIGKILLs every process of the calling process's UID but itself, until none is left.

    Only a helper that has become a session's UID may call it: kill(2) with pid -1 then reaches that UID's
    processes in this PID namespace and nothing else.

    Raises:
        PermissionError: this process is root, or not in a PID namespace of its own.
        TimeoutError: processes are left after KILL_DEADLINE_SECONDS.
    """
    _check_own_namespace()
    deadline = time.monotonic() + KILL_DEADLINE_SECONDS
    while True:
        with suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        # kill(2) says 0 also when it reached nobody, so look; dead ones wait for their parent to reap them.
        if not _living_processes(os.getuid()):
            return
        if time.monotonic() > deadline:
            raise TimeoutError("some processes of the session could not be killed")
        time.sleep(0.002)


def _check_own_namespace() -> None:
    if 0 in os.getresuid() or os.stat("/proc/self/ns/pid").st_ino == INITIAL_PID_NAMESPACE:
        raise PermissionError("kill(-1) refused: not a session's UID in a PID namespace of our own")


def kill_all_but(marks: Collection[int], spared: Collection[int], lock: int) -> None:
    """SIGKILLs every process of the calling process's UID but those with one of the marks, and those that are spared.

    They are stopped first, so that none can start another one meanwhile. What has no mark at all is a helper of ours.

    Args:
        lock: a file for all who may do this at a time: they would stop each other.

    Raises:
        TimeoutError: processes are left after KILL_DEADLINE_SECONDS.
    """
    left_alone = {0, *marks}

    def is_left_alone(pid: int) -> bool:
        return pid in spared or _mark_of(pid) in left_alone

    deadline = time.monotonic() + KILL_DEADLINE_SECONDS
    stopped: set[int] = set()
    while time.monotonic() < deadline:
        newest = _newest_process()
        living = [pid for pid in _living_processes(os.getuid()) if not is_left_alone(pid)]
        if not living:
            if _newest_process() == newest or not _kill_at_a_standstill(is_left_alone, lock):
                return
            continue
        fresh = [pid for pid in living if pid not in stopped]
        for pid in fresh or living:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP if fresh else signal.SIGKILL)
        stopped.update(fresh)
        if not fresh:
            time.sleep(0.002)
    raise TimeoutError("some processes of the session could not be killed")


def _kill_at_a_standstill(is_left_alone: Callable[[int], bool], lock: int) -> bool:
    """Whether any had to be: a process that ends as soon as it has started the next one is rarely there when it is looked at.

    So all of the UID stand still for some milliseconds, those that are left alone, too.
    """
    _check_own_namespace()
    fcntl.lockf(lock, fcntl.LOCK_EX)
    try:
        standing = {pid for pid in _living_processes(os.getuid()) if _is_stopped(pid)}
        with suppress(ProcessLookupError):
            os.kill(-1, signal.SIGSTOP)  # in one go, as no look is
        found = False
        for pid in _living_processes(os.getuid()):
            if is_left_alone(pid):
                number = 0 if pid in standing else signal.SIGCONT
            else:
                found, number = True, signal.SIGKILL
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        return found
    finally:
        fcntl.lockf(lock, fcntl.LOCK_UN)


def _is_stopped(pid: int) -> bool:
    with suppress(OSError), open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        return file.read().rpartition(")")[2].split()[0] == "T"
    return False


def _newest_process() -> str:
    """The number that was given last: proc(5), loadavg."""
    with open("/proc/loadavg", encoding="ascii") as file:
        return file.read().split()[-1]


def _mark_of(pid: int) -> int:
    try:
        return mark_of(pid)
    except OSError:  # it has ended
        return 0


def _living_processes(uid: int) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            # A session names its processes as it likes: only "\\n" ends a line.
            with open(f"/proc/{name}/status", encoding="utf-8", errors="replace", newline="\n") as file:
                status = dict(line.split(":", 1) for line in file if ":" in line)
        except (FileNotFoundError, ProcessLookupError):
            continue
        real, _, saved, _ = status["Uid"].split()
        if str(uid) in (real, saved) and _is_alive(name, status):
            found.append(int(name))
    return found


def _is_alive(pid: str, status: dict[str, str]) -> bool:
    """Whether it runs: its first thread may have ended before the others."""
    if status["State"].split()[0] not in "ZX":
        return True
    if int(status.get("Threads", "0")) < 2:
        return False
    with suppress(OSError):  # it has ended
        for task in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError), open(f"/proc/{pid}/task/{task}/stat", encoding="utf-8", errors="replace") as file:
                if file.read().rpartition(")")[2].split()[0] not in "ZX":
                    return True
    return False
