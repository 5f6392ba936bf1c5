"""Attacks from inside a session, by Python code as an agent could run it. Each must fail; a control shows that the
probe itself works: what is refused towards another session succeeds towards the own one.

Sources: facts/security.md section 3 (H1 to H7), DESIGN.md "ZMQ over unix sockets", "Files", "Resource walls".
"""

from __future__ import annotations

import ast
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import anyio
import pytest

from tests.driving import Handle, Kit, eventually, stopwatch

pytestmark = [pytest.mark.anyio, pytest.mark.docker]

SECRET = "the-secret-of-the-other-session"  # noqa: S105 - nobody's

# Runs in the attacker: `attempt(f)` is True if f succeeds; what the kernel refuses raises OSError.
PRELUDE = f"""
import ctypes, os, signal, socket, struct, subprocess, sys
SECRET = {SECRET!r}
def attempt(function):
    try:
        return function() is not False
    except (OSError, subprocess.SubprocessError):
        return False
def read(path):
    with open(path, 'rb') as file:
        return file.read(1 << 16)
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    result = getattr(libc, name)(*arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result
"""


@dataclass(frozen=True)
class Target:
    """Two sessions: one attacks, the other has a file, a variable and a process to be attacked."""

    attacker: Handle
    victim: Handle
    pid: int
    uid: int

    async def attempt(self, code: str, **names: Any) -> bool:
        """Whether an expression of the attacker succeeds."""
        for name, value in names.items():
            code = code.replace(f"<{name}>", str(value))
        return bool(ast.literal_eval(await self.attacker.value(f"attempt(lambda: {code})")))


@pytest.fixture
async def target(docker_kit: Kit) -> AsyncIterator[Target]:
    async with docker_kit.session() as attacker, docker_kit.session() as victim:
        await attacker.run(PRELUDE + "open('own', 'w').write('own')")
        code = f"import os, ctypes; os.environ['S'] = secret = {SECRET!r}; _ = open('file', 'w').write(secret); os.getpid(), os.getuid()"
        pid, uid = ast.literal_eval(await victim.value(code))
        yield Target(attacker, victim, pid, uid)
        assert await victim.value("secret, open('file').read()") == repr((SECRET, SECRET)), "the victim is unharmed"


OTHER_SESSION = {
    "list its workspace": "os.listdir('<folder>')",
    "read its file": "read('<folder>/own')",
    "write into its workspace": "open('<folder>/planted', 'w')",
    "remove its file": "os.unlink('<folder>/own')",
    "change its mode": "os.chmod('<folder>', 0o777)",
    "enter it": "os.chdir('<folder>')",
    "link to its file": "os.link('<folder>/own', 'stolen')",
    "environ": "read('/proc/<pid>/environ')",
    "memory": "read('/proc/<pid>/mem') or True",
    "memory map": "read('/proc/<pid>/maps')",
    "descriptors": "os.listdir('/proc/<pid>/fd')",
    "working directory": "os.listdir('/proc/<pid>/cwd')",
    "root": "os.listdir('/proc/<pid>/root')",
    "kill": "os.kill(<pid>, 0) or True",
    "stop": "os.kill(<pid>, signal.SIGCONT) or True",
    "priority": "os.setpriority(os.PRIO_PROCESS, <pid>, 19) or True",
    "limits": "__import__('resource').prlimit(<pid>, __import__('resource').RLIMIT_NOFILE)",
    "score": "open('/proc/<pid>/oom_score_adj', 'w').write('1000')",
    "read memory": "call('process_vm_readv', <pid>, None, 0, None, 0, 0) >= 0",
    "pidfd": "signal.pidfd_send_signal(os.pidfd_open(<pid>), 0) or True",
}
# Refused towards oneself, too: to read memory at address 0, or none at all, and to write in /proc.
WITHOUT_CONTROL = {"memory", "read memory", "score"}


@pytest.mark.parametrize("probe", OTHER_SESSION)
@pytest.mark.one_container
async def test_another_session_is_out_of_reach(target: Target, probe: str) -> None:
    """H2: A cannot list, read, signal, ptrace or read memory, environ or descriptors of B."""
    code = OTHER_SESSION[probe].replace("/own'", "/file'")
    assert not await target.attempt(code, folder=target.victim.workspace, pid=target.pid)
    if probe not in WITHOUT_CONTROL:
        own = await target.attacker.value("os.getpid()")
        assert await target.attempt(OTHER_SESSION[probe], folder=target.attacker.workspace, pid=own), "the control"


@pytest.mark.one_container
async def test_another_session_cannot_be_traced(target: Target) -> None:
    """H2, H10: PTRACE_SEIZE (0x4206) towards the other session is refused."""
    assert not await target.attempt("call('ptrace', 0x4206, <pid>, 0, 0) == 0", pid=target.pid)


async def test_everything_of_a_session_is_found_by_nobody(target: Target) -> None:
    """H2: parents without listing, so that a name must be known, and then 0700."""
    for folder in ("/workspace/sessions", "/workspace/private", "/workspace/.staging", "/run/kernel_server"):
        assert not await target.attempt("os.listdir('<folder>')", folder=folder), folder
    assert await target.attempt("os.listdir('/workspace/shared') is not None"), "the control"


async def test_staging_and_run_folder_are_closed(target: Target) -> None:
    """DESIGN, files: sessions cannot pass staging's 0700 parent; a session cannot reach sockets, its own included."""
    for code in (
        "os.chdir('/workspace/.staging')",
        "open('/workspace/.staging/x', 'w')",
        "os.rename('/workspace/.staging', '/workspace/x')",
        "os.symlink('/etc', '/workspace/x')",
        "os.mkdir('/workspace/sessions/x')",
        "os.mkdir('/workspace/private/x')",
        "open('/run/kernel_server/x', 'w')",
        "socket.socket(socket.AF_UNIX).connect('/run/kernel_server/control')",
        "socket.socket(socket.AF_UNIX).connect('/run/kernel_server/0/s-1')",
        "os.stat('/run/kernel_server/control')",
        "os.kill(1, 0) or True",
        "read('/proc/1/environ')",
    ):
        assert not await target.attempt(code), code
    assert await target.attempt("os.mkdir('x') is None"), "the control"


async def test_no_control_socket_is_inherited(target: Target) -> None:
    """DESIGN, processes: a forked kernel keeps no descriptor of kernel_host: none that listens, no other session's."""
    found = ast.literal_eval(
        await target.attacker.value(
            "[os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd') if os.path.lexists(f'/proc/self/fd/{n}')]"
        )
    )
    assert not [path for path in found if path.startswith(("/workspace/.staging", "/run")) or "control" in path]
    code = (
        "[line.split()[-1] for line in open('/proc/net/unix').read().splitlines()[1:] "
        "if line.split()[6] in {os.readlink(f'/proc/self/fd/{n}')[8:-1] for n in os.listdir('/proc/self/fd') "
        "if os.path.lexists(f'/proc/self/fd/{n}') and os.readlink(f'/proc/self/fd/{n}').startswith('socket:')} "
        "and 'kernel_server' in line]"
    )
    sockets = ast.literal_eval(await target.attacker.value(code))
    assert all(path.rpartition("/")[2].startswith("s-") for path in sockets), sockets
    assert len({path.rpartition("/")[0] for path in sockets}) <= 1, "its own sockets only"


async def test_configuration_of_the_kernel_host_is_not_inherited(target: Target) -> None:
    """Ours: the key of a kernel is made after the fork; the configuration is taken out of the environment."""
    assert await target.attacker.value("[name for name in os.environ if 'KERNEL_HOST' in name]") == "[]"


async def test_network_is_none(target: Target) -> None:
    """DESIGN: network none: no interface but lo, no address to reach; the control is a socket on lo."""
    assert await target.attacker.value("sorted(os.listdir('/sys/class/net'))") == "['lo']"
    for address in (("1.1.1.1", 53), ("169.254.169.254", 80), ("172.17.0.1", 80), ("8.8.8.8", 443)):
        assert not await target.attempt("socket.create_connection(<address>, timeout=2)", address=address), address
    assert not await target.attempt("socket.getaddrinfo('example.com', 80)")
    assert not await target.attempt("socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('8.8.8.8', 53))")
    assert await target.attempt("socket.socketpair()"), "the control"


async def test_no_process_has_a_privilege(target: Target) -> None:
    """H5: capabilities all zero, no-new-privileges, in the kernel and in what it starts; seccomp filters."""
    for shown in (
        "read('/proc/self/status').decode()",
        "subprocess.run(['cat', '/proc/self/status'], capture_output=True, text=True).stdout",
    ):
        status = dict(
            line.split(":\t", 1)
            for line in (await target.attacker.value(f"print({shown})")).splitlines()
            if ":\t" in line
        )
        for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
            assert int(status[name], 16) == 0, name
        assert status["NoNewPrivs"] == "1"
        assert status["Seccomp"] == "2"
        assert len(set(status["Uid"].split())) == 1
        assert int(status["Uid"].split()[0]) >= 20_000
        assert status["Groups"].strip() == ""


async def test_privileges_cannot_be_gained(target: Target) -> None:
    """H5: no way back to root, no namespace, no mount, no device, no setuid program that works."""
    for code in (
        "os.setuid(0) or True",
        "os.setresuid(0, 0, 0) or True",
        "os.setgroups([0]) or True",
        "os.chroot('.') or True",
        "call('mount', b'none', b'/tmp', b'tmpfs', 0, None) == 0",
        "call('unshare', 0x10000000) == 0",
        "call('unshare', 0x00020000) == 0",
        "call('sethostname', b'x', 1) == 0",
        "os.mknod('device', 0o600 | 0o060000, os.makedev(8, 0)) or True",
        "os.chown('own', 0, 0) or True",
        "read('/etc/shadow')",
        "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
        "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
        "open('/proc/sys/kernel/core_pattern', 'w').write('x')",
        "open('/proc/sysrq-trigger', 'w').write('x')",
        "os.listdir('/proc/1/root')",
        "open('/dev/kmsg', 'rb')",
        "open('/dev/mem', 'rb')",
    ):
        assert not await target.attempt(code), code


async def test_system_is_read_only(target: Target) -> None:
    """H7: the only places to write are the workspace, the private folder, /tmp, /dev/shm and the like."""
    code = (
        "import tempfile\nwritable = []\n"
        "for folder, names, _ in os.walk('/'):\n"
        "    names[:] = [name for name in names if os.path.join(folder, name) not in ('/proc', '/sys')]\n"
        "    try: tempfile.TemporaryFile(dir=folder).close(); writable.append(folder)\n"
        "    except OSError: pass\n"
        "    if writable and writable[-1] == folder: names.clear()\n"
        "sorted(writable)"
    )
    writable = set(ast.literal_eval(await target.attacker.value(code)))
    assert writable >= {"/tmp"}, "the control"
    assert writable <= {"/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue", "/run/lock", target.attacker.workspace}


async def test_files_in_tmp_are_private_and_sticky(target: Target) -> None:
    """H2, H7: temporary files of the standard library are in a folder that others cannot enter; /tmp is sticky."""
    folder = ast.literal_eval(await target.victim.value("import tempfile; tempfile.mkdtemp()"))
    assert not await target.attempt("os.listdir('<folder>')", folder=folder)
    await target.victim.run("_ = open('/tmp/known', 'w').write('x'); os.chmod('/tmp/known', 0o600)")
    assert not await target.attempt("read('/tmp/known')")
    assert not await target.attempt("os.unlink('/tmp/known') or True")
    assert not await target.attempt("os.rename('/tmp/known', '/tmp/mine') or True")


async def test_planted_links_do_not_lead_the_server_astray(target: Target) -> None:
    """H1: the archive API works as root and follows links; copying both ways as the session's UID does not."""
    kit = target.attacker.kit
    (kit.input / "f").write_text("planted")
    victim = target.victim.workspace
    await target.attacker.run(
        f"os.symlink('{victim}/file', 'file'); os.symlink('{victim}', 'folder'); os.symlink('/etc/passwd', 'passwd'); "
        f"os.symlink('/etc', 'etc'); os.mkdir('d'); os.symlink('{victim}', 'd/deep'); os.symlink('/', 'root')"
    )
    for path in ("file", "folder", "folder/file", "passwd", "etc/passwd", "d/deep/file", "root/etc/passwd"):
        out = await target.attacker.call("cp_out", container_path=path, local_path="stolen")
        assert out.is_error, path
        assert "link" in out.text, path
    for path in ("folder/file", "folder/", "etc/x", "d/deep/x", "root/tmp/x", "root/workspace/.staging/x"):
        into = await target.attacker.call("cp_in", local_path="f", container_path=path)
        assert into.is_error, path
        edited = await target.attacker.call("edit_file", container_path=path.rstrip("/") + "/x", content="planted")
        assert edited.is_error, path
    whole = await target.attacker.call("cp_out", container_path="d", local_path="d")
    assert "d/deep (a symbolic link)" in whole.text
    assert [path.name for path in kit.output.rglob("*")] == ["d"]
    replaced = await target.attacker.call("cp_in", local_path="f", container_path="file")
    assert not replaced.is_error or "link" in replaced.text


async def test_fork_bomb_is_bounded_and_others_go_on(target: Target) -> None:
    """H5: RLIMIT_NPROC stops it; another session answers; afterwards the session can be closed and all of it is gone."""
    bomb = (
        "import time\ncount = 0\ntry:\n"
        "    while True:\n"
        "        if os.fork() == 0:\n"
        "            while True: time.sleep(60)\n"
        "        count += 1\n"
        "except BlockingIOError: pass\n"
        "count"
    )
    count = int(await target.attacker.value(bomb))
    assert 50 <= count <= 256
    with stopwatch() as seconds:
        assert await target.victim.value("sum(range(10))") == "45"
        async with target.attacker.kit.session() as fresh:
            assert await fresh.value("1") == "1"
        assert seconds() < 5
    uid = await target.attacker.value("os.getuid()")
    await target.attacker.call("close_session")
    alive = (
        "len([n for n in os.listdir('/proc') if n.isdigit() and os.path.exists(f'/proc/{n}') "
        f"and os.stat(f'/proc/{{n}}').st_uid == {uid}])"
    )

    async def all_gone() -> bool:
        return (await target.victim.run(alive)).text == "0"

    await eventually(all_gone)


async def test_busy_session_leaves_time_for_others(target: Target) -> None:
    """H5: a session that burns every CPU; the other one answers all the same."""
    burn = "import multiprocessing, time\nopen('begun', 'w').close()\ndef f(_):\n  while True: pass\nmultiprocessing.Pool(8).map(f, range(8))"
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(target.attacker.run, burn)
        await target.attacker.wait_for_file("begun")
        with stopwatch() as seconds:
            assert await target.victim.value("1 + 1") == "2"
            assert seconds() < 5
        tasks.cancel_scope.cancel()
