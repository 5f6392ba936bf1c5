"""What an attacker tries from inside a session, each as one Python expression that is true, or does not fail, if it works.

Each has a control: a place where the wall that must stop it is not there, and where the same expression works.
Themes: SandboxEval (arXiv 2504.00018): information, files, network, dangerous operations; facts of H1 to H10.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kernel_host import seccomp

Control = Literal["root", "open"]
"""Where it works: for root with every capability and without filters in the very container of the session, or in a
container that is privileged, has a network and a system that can be written, with the engine's socket and the server's folder."""


@dataclass(frozen=True)
class Probe:
    """One attempt. `<folder>`, `<pid>`, `<uid>` and `<private>` are the other session's, `<host>` is kernel_host's process id,
    `<state>` a folder of the server on the host."""

    theme: str
    name: str
    code: str
    control: Control = "root"


OTHER_SESSION = {
    "list its workspace": "os.listdir('<folder>')",
    "read its file": "read('<folder>/file')",
    "write into its workspace": "open('<folder>/planted', 'w')",
    "overwrite its file": "open('<folder>/file', 'r+b')",
    "change its mode": "os.chmod('<folder>', 0o700) or True",
    "enter it": "os.chdir('<folder>') or os.chdir('/') or True",
    "link to its file": "os.link('<folder>/file', '<folder>/linked') or True",
    "rename its file": "os.rename('<folder>/file', '<folder>/x') or os.rename('<folder>/x', '<folder>/file') or True",
    "its private folder": "os.listdir('<private>')",
    "its temporary files": "os.listdir('<private>/tmp') is not None",
    "its environment": "read('/proc/<pid>/environ')",
    "its memory map": "read('/proc/<pid>/maps')",
    "its memory": "open('/proc/<pid>/mem', 'rb')",
    "its descriptors": "os.listdir('/proc/<pid>/fd')",
    "its working directory": "os.listdir('/proc/<pid>/cwd/')",
    "its root": "os.listdir('/proc/<pid>/root/')",
    "its program": "os.readlink('/proc/<pid>/exe')",
    "its system call": "read('/proc/<pid>/syscall')",
    "its stack": "read('/proc/<pid>/stack') is not None",
    "its input and output": "read('/proc/<pid>/io')",
    "its memory by the page": "read('/proc/<pid>/smaps')",
    "its name of a thread": "open('/proc/<pid>/comm', 'w').write('x')",
    "its OOM score": "open('/proc/<pid>/oom_score_adj', 'w').write('1000')",
    "forget its pages": "open('/proc/<pid>/clear_refs', 'w').write('1')",
    "a file in /tmp": "read('/tmp/known')",
    "remove a file in /tmp": "open('/tmp/known', 'r+b')",
    "a file in shared memory": "read('/dev/shm/known')",
    "an abstract socket": r"connect('\0known')",
    "a socket in /tmp": "connect('/tmp/known.socket')",
}
SIGNALS = {
    "to the other kernel": "os.kill(<pid>, 0) or True",
    "to its process group": "os.killpg(<pid>, 0) or True",
    "to continue": "os.kill(<pid>, signal.SIGCONT) or True",
    "by pidfd": "signal.pidfd_send_signal(os.pidfd_open(<pid>), 0) or True",
    "to a thread": "call('syscall', 234, <pid>, <pid>, 0) == 0",
    "to init": "os.kill(1, 0) or True",
    "to kernel_host": "os.kill(<host>, 0) or True",
    "to all of kernel_host's group": "os.killpg(os.getpgid(<host>), 0) or True",
    "priority of the other kernel": "os.setpriority(os.PRIO_PROCESS, <pid>, 19) or True",
    "processors of the other kernel": "os.sched_setaffinity(<pid>, os.sched_getaffinity(0)) or True",
    "scheduling of the other kernel": "os.sched_setscheduler(<pid>, os.SCHED_BATCH, os.sched_param(0)) or True",
    "trace the other kernel": "call('ptrace', 0x4206, <pid>, 0, 0) == 0",
    "read the other's memory": "read_memory(<pid>)",
}
KERNEL_HOST = {
    "environment": "read('/proc/<host>/environ') is not None",
    "descriptors": "os.listdir('/proc/<host>/fd')",
    "memory": "open('/proc/<host>/mem', 'rb')",
    "memory map": "read('/proc/<host>/maps')",
    "working directory": "os.listdir('/proc/<host>/cwd/')",
    "environment of init": "read('/proc/1/environ') is not None",
    "root of init": "os.listdir('/proc/1/root/')",
    "trace": "call('ptrace', 0x4206, <host>, 0, 0) == 0",
    "its run folder": "os.listdir('/run/kernel_server')",
    "its control socket": "connect('/run/kernel_server/control')",
    "its control socket by another way": "connect('/proc/<host>/root/run/kernel_server/control')",
    "the place of its control socket": "os.stat('/run/kernel_server/control')",
    "a file beside it": "open('/run/kernel_server/x', 'w')",
    "the staging folder": "os.listdir('/workspace/.staging') is not None",
    "a file in staging": "open('/workspace/.staging/x', 'w')",
    "all sessions": "os.listdir('/workspace/sessions')",
    "all private folders": "os.listdir('/workspace/private')",
    "a session's sockets": "[os.listdir('/run/kernel_server/' + name) for name in os.listdir('/run/kernel_server') if name.isdigit()]",
    "a folder among sessions": "os.mkdir('/workspace/sessions/x') or os.rmdir('/workspace/sessions/x') or True",
    "a folder among private ones": "os.mkdir('/workspace/private/x') or os.rmdir('/workspace/private/x') or True",
    "a folder beside them": "os.mkdir('/workspace/x') or os.rmdir('/workspace/x') or True",
    "a link beside them": "os.symlink('/etc', '/workspace/y') or os.unlink('/workspace/y') or True",
    "write for all sessions": "open('/workspace/shared/x', 'w')",
    "OOM score below its own": "open('/proc/self/oom_score_adj', 'w').write('-999')",
}
PRIVILEGES = {
    "become root": "os.setuid(0) or True",
    "become root for files": "setfsuid(0)",
    "group of root": "os.setgid(0) or True",
    "groups": "os.setgroups([0]) or True",
    "another user": "os.setresuid(<uid>, <uid>, <uid>) or True",
    "give a file away": "os.chown(mine(), 0, 0) or True",
    "a set-user-ID file of root": "os.chown(mine(), 0, 0) or os.chmod(mine(), 0o4755) or True",
    "higher priority": "os.nice(-5) is not None",
    "real-time priority": "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)) or True",
    "core files": "raise_limit(resource.RLIMIT_CORE)",
    "capabilities": "any(int(line.split()[1], 16) for line in read('/proc/self/status').decode().splitlines() if line.startswith('CapEff'))",
    "password hashes": "read('/etc/shadow')",
    "home of root": "os.listdir('/root')",
}
OPEN_PRIVILEGES = {
    "limits of the other kernel": "resource.prlimit(<pid>, resource.RLIMIT_NOFILE)",
    "more processes": "raise_limit(resource.RLIMIT_NPROC)",
    "more open files": "raise_limit(resource.RLIMIT_NOFILE)",
    "a block device": "os.mknod(scratch('block'), 0o600 | 0o060000, os.makedev(8, 0)) or True",
    "a character device": "os.mknod(scratch('mem'), 0o600 | 0o020000, os.makedev(1, 1)) or True",
    "mount": "call('mount', b'none', b'/mnt', b'tmpfs', 0, None) == 0",
    "mount a folder over another": "call('mount', b'/tmp', b'/mnt', None, 4096, None) == 0",
    "user namespace": "spawned(lambda: call('unshare', 0x10000000))",
    "mount namespace": "spawned(lambda: call('unshare', 0x00020000))",
    "network namespace": "spawned(lambda: call('unshare', 0x40000000))",
    "process with namespaces of its own": "cloned(0x10000000)",
    "name of the host": "call('sethostname', socket.gethostname().encode(), len(socket.gethostname())) == 0",
    "another root": "spawned(lambda: os.chroot('/tmp'))",
    "set-user-ID programs": "[path for folder in ('/bin', '/usr/bin', '/sbin', '/usr/sbin') for path in glob.glob(folder + '/*') if os.stat(path).st_mode & 0o4000] and without_no_new_privs()",
    "new privileges by a program": "without_no_new_privs()",
    "core pattern": "open('/proc/sys/kernel/core_pattern', 'r+')",
    "kernel settings": "open('/proc/sys/vm/overcommit_memory', 'r+')",
    "network settings": "open('/proc/sys/net/ipv4/ip_forward', 'r+')",
    "magic keys": "open('/proc/sysrq-trigger', 'w')",
    "kernel memory": "open('/proc/kcore', 'rb').read(4)",
    "keys of the kernel": "open('/proc/keys').read()",
    "timers of the kernel": "open('/proc/timer_list').read(10)",
    "addresses of the kernel": "any(int(line.split()[0], 16) for line in open('/proc/kallsyms').read(4096).splitlines()[:5])",
    "log of the kernel": "open('/dev/kmsg', 'rb')",
    "physical memory": "open('/dev/mem', 'rb')",
    "ports of the processor": "open('/dev/port', 'rb')",
    "devices of the machine": "[open(path, 'rb') for path in glob.glob('/dev/vd?') + glob.glob('/dev/sd?') + glob.glob('/dev/nvme?n?') + glob.glob('/dev/loop-control')][0]",
    "file systems in user space": "open('/dev/fuse', 'rb')",
    "network devices": "open('/dev/net/tun', 'rb')",
    "device settings": "[open(path, 'r+') for path in glob.glob('/sys/kernel/mm/transparent_hugepage/enabled')][0]",
    "uevents": "[open(path, 'w') for path in glob.glob('/sys/class/*/*/uevent')[:1]][0]",
}
FILES = {
    name: f"write_into('{name}')"
    for name in (
        *("/", "/etc", "/usr", "/usr/bin", "/usr/lib", "/var", "/var/tmp", "/var/lib", "/opt", "/root", "/home", "/boot", "/srv"),
        *("/mnt", "/media", "/run", "/opt/kernel_server", "/opt/kernel_server/kernel_host", "/opt/kernel_server/venv/bin", "/dev"),
    )
}  # fmt: skip
MORE_FILES = {
    "the list of users": "open('/etc/passwd', 'r+')",
    "the interpreter": "os.utime(os.path.realpath(sys.executable)) or True",
    "kernel_host's program": "open('/opt/kernel_server/kernel_host/server.py', 'r+')",
    "modules of all sessions": "open(os.__file__, 'r+')",
    "authorities": "open('/etc/ssl/certs/ca-certificates.crt', 'r+') if os.path.exists('/etc/ssl/certs/ca-certificates.crt') else open('/etc/hosts', 'r+')",
    "names of hosts": "open('/etc/hosts', 'r+')",
}
NETWORK = {
    "an interface": "[name for name in os.listdir('/sys/class/net') if name != 'lo']",
    "an address": "own_address()",
    "a route": "len(read('/proc/net/route').splitlines()) > 1",
    "a TCP server": "socket.create_server((own_address(), 0))",
    "a TCP connection": "connected(own_address())",
    "a datagram": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', (own_address(), 9))",
    "a raw packet": "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
    "any packet": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "a name server": "re.search(r'(?m)^nameserver (?!127)', read('/etc/resolv.conf').decode()) and own_address()",
}
LOOPBACK = {
    "a TCP server": "socket.create_server(('127.0.0.1', 0))",
    "IPv6": "socket.socket(socket.AF_INET6)",
    "a TCP connection": "connected('127.0.0.1')",
    "a UDP server": "bound(socket.SOCK_DGRAM)",
    "a datagram": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))",
}
SOCKETS = {
    "AF_VSOCK": "socket.socket(40, 1, 0)",
    "AF_ALG": "socket.socket(38, 5, 0)",
    "AF_PACKET": "socket.socket(17, 2, 0)",
    "AF_KEY": "socket.socket(15, 3, 2)",
    "AF_XDP": "socket.socket(44, 3, 0)",
    "AF_TIPC": "socket.socket(30, 1, 0)",
    "AF_CAN": "socket.socket(29, 3, 1)",
    "AF_BLUETOOTH": "socket.socket(31, 3, 1)",
    "AF_RDS": "socket.socket(21, 5, 0)",
    "AF_PPPOX": "socket.socket(24, 1, 0)",
    "AF_QIPCRTR": "socket.socket(42, 2, 0)",
    "AF_AX25": "socket.socket(3, 5, 0)",
    "MPTCP": "socket.socket(2, 1, 262)",
    "SCTP": "socket.socket(2, 1, 132)",
    "UDP-Lite": "socket.socket(2, 2, 136)",
    "ICMP": "socket.socket(2, 2, 1)",
    "netlink of audit": "socket.socket(16, 3, 9)",
    "netlink of netfilter": "socket.socket(16, 3, 12)",
    "netlink of devices": "socket.socket(16, 3, 15)",
    "netlink of sockets": "socket.socket(16, 3, 4)",
    "generic netlink": "socket.socket(16, 3, 16)",
    "netlink of transformations": "socket.socket(16, 3, 6)",
    "netlink of connectors": "socket.socket(16, 3, 11)",
    "netlink of file locks": "socket.socket(16, 3, 20)",
}
ENGINE = {
    "socket of the engine": "connect('/var/run/docker.sock')",
    "the same by its other name": "connect('/run/docker.sock')",
    "a folder of the server": "os.listdir('<state>')",
    "a file of the server": "read('<state>/secret')",
    "write into a folder of the server": "open('<state>/planted', 'w')",
    "mounts of the host": "[line for line in read('/proc/self/mountinfo').decode().splitlines() if '<state>' in line]",
}
THEMES: dict[str, tuple[dict[str, str], Control]] = {
    "other session": (OTHER_SESSION, "root"),
    "signals": (SIGNALS, "root"),
    "kernel_host": (KERNEL_HOST, "root"),
    "privileges": (PRIVILEGES, "root"),
    "more privileges": (OPEN_PRIVILEGES, "open"),
    "files": (FILES, "open"),
    "more files": (MORE_FILES, "open"),
    "network": (NETWORK, "open"),
    "loopback": (LOOPBACK, "root"),
    "sockets": (SOCKETS, "open"),
    "engine": (ENGINE, "open"),
}
MACHINE = 0  # column of x86_64 in the tables of `seccomp`


def _calls() -> list[Probe]:
    """Each filtered system call, with arguments that nothing can be done with: the filter's answer is seen, or another one."""
    return [
        Probe("system calls", name, f"reached({numbers[MACHINE]})", "open")
        for calls in (seccomp.ABSENT, seccomp.REFUSED)
        for name, numbers in calls.items()
        if numbers[MACHINE] is not None
    ]


PROBES = [
    *(
        Probe(theme, name, code, control)
        for theme, (probes, control) in THEMES.items()
        for name, code in probes.items()
    ),
    *_calls(),
]

# Runs each probe of its standard input in a process of its own; prints what came of it as JSON: "" where it worked.
RUNNER = r"""
import ctypes, errno, glob, json, os, re, resource, signal, socket, stat, struct, sys, tempfile
libc = ctypes.CDLL(None, use_errno=True)
def read(path):
    with open(path, 'rb') as file:
        return file.read(1 << 16)
def call(name, *arguments):
    result = getattr(libc, name)(*arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result
def connect(path):
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(2)
    return connection.connect(path) or True
def connected(address):
    listener = socket.create_server((address, 0))
    return socket.create_connection(listener.getsockname(), timeout=2)
def bound(kind):
    made = socket.socket(socket.AF_INET, kind)
    return made.bind(('127.0.0.1', 0)) or True
def own_address():
    for line in read('/proc/net/fib_trie').decode().split('\n'):
        found = re.search(r'\|-- (\d+\.\d+\.\d+\.\d+)', line)
        if found and not found[1].startswith(('127.', '0.')) and not found[1].endswith(('.0', '.255')):
            return found[1]
    raise OSError('no address')
def read_memory(pid):
    start = int(read(f'/proc/{pid}/maps').split(b'-')[0], 16)
    class Vector(ctypes.Structure):
        _fields_ = [('base', ctypes.c_void_p), ('length', ctypes.c_size_t)]
    mine = ctypes.create_string_buffer(8)
    vectors = Vector(ctypes.addressof(mine), 8), Vector(start, 8)
    return call('process_vm_readv', pid, ctypes.byref(vectors[0]), 1, ctypes.byref(vectors[1]), 1, 0) == 8
def setfsuid(uid):
    libc.setfsuid(uid)
    return libc.setfsuid(uid) == uid
def raise_limit(which):
    soft, hard = resource.getrlimit(which)
    if hard == resource.RLIM_INFINITY:
        return True
    return resource.setrlimit(which, (soft, hard + 1)) or True
def scratch(name):
    return os.path.join(tempfile.mkdtemp(), name)
def mine():
    open('/tmp/' + str(os.getuid()), 'w').close()
    return '/tmp/' + str(os.getuid())
def write_into(folder):
    with tempfile.TemporaryFile(dir=folder):
        return True
def without_no_new_privs():
    return libc.prctl(39, 0, 0, 0, 0) == 0
def cloned(flags):
    pid = call('syscall', 56, flags | signal.SIGCHLD, None, None, None, None)
    if pid == 0:
        os._exit(0)
    return os.waitpid(pid, 0)[0] == pid
def spawned(function):
    function()
    return True
def reached(number):
    '''Whether a system call gets past every filter: with such arguments it must fail in another way, or do nothing.'''
    libc.syscall.restype = ctypes.c_long
    bad = ctypes.c_ulong(0xFFFFFFFFFFFFF000)
    if libc.syscall(ctypes.c_long(number), *[bad] * 6) >= 0:
        return True
    return ctypes.get_errno() not in (errno.EPERM, errno.ENOSYS)
def attempt(code):
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        signal.alarm(5)
        try:
            result = eval(code)
            said = f'{result!r}' if result is None or result is False or result in ('', b'', []) else ''
        except BaseException as error:
            said = repr(error)[:200] or 'failed'
        os.write(writer, said.encode() or b'\0')
        os._exit(0)
    os.close(writer)
    with open(reader, 'rb') as file:
        said = file.read().decode()
    os.waitpid(pid, 0)
    return '' if said == '\0' else said or 'ended'
print(json.dumps([attempt(code) for code in json.load(sys.stdin)]))
"""
