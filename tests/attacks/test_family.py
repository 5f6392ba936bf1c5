"""What a branch can do to those it is related to, and others to it: sessions of a family share a UID, and Landlock is
between them. Each attempt that must fail is made by the parent towards itself, too, where it must work.

What is not promised is here as well, as known gaps: so that SECURITY.md is right about it.
"""

from __future__ import annotations

import ast
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from kernel_host import landlock

from tests.attacks.test_isolation import PRELUDE
from tests.driving import Handle, Kit
from tests.sessions.test_branching import branches, close

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.docker,
    pytest.mark.skipif(landlock.abi() < landlock.SCOPES_ABI, reason="this Linux has no Landlock for signals"),
]

MAKE = """
import tempfile
_ = open('file', 'w').write(SECRET)
_ = open(os.path.join(tempfile.gettempdir(), 'scratch'), 'w').write(SECRET)
"""
CONTENT = "(open('file').read(), read(os.path.join(tempfile.gettempdir(), 'scratch')).decode()) == (SECRET, SECRET)"


@dataclass(frozen=True)
class Member:
    """A session, and where it can be attacked."""

    handle: Handle
    private: str
    pid: int

    @classmethod
    async def of(cls, handle: Handle) -> Member:
        """Fills it with what it must still have at the end."""
        await handle.run(MAKE)
        private, pid = ast.literal_eval(await handle.value("tempfile.gettempdir(), os.getpid()"))
        return cls(handle, private, pid)

    async def can(self, code: str, target: Member) -> bool:
        """Whether an expression of this session succeeds towards another one."""
        names = {"folder": target.handle.workspace, "private": target.private, "pid": target.pid}
        for name, value in names.items():
            code = code.replace(f"<{name}>", str(value))
        return bool(ast.literal_eval(await self.handle.value(f"attempt(lambda: {code})")))

    async def is_unharmed(self) -> bool:
        """Its process, its variables and its files are what they were."""
        return await self.handle.value(f"os.getpid() == {self.pid} and {CONTENT}") == "True"


@dataclass(frozen=True)
class Family:
    """A session, two branches of it, and a session that has nothing to do with them."""

    parent: Member
    elder: Member
    younger: Member
    stranger: Member


@pytest.fixture
async def family(docker_kit: Kit) -> AsyncIterator[Family]:
    async with docker_kit.session() as parent, docker_kit.session() as stranger:
        await parent.run(PRELUDE)
        await stranger.run(PRELUDE)
        (elder,) = await branches(parent)
        (younger,) = await branches(parent)
        members = [await Member.of(one) for one in (parent, elder, younger, stranger)]
        yield Family(*members)
        for member in members:
            assert await member.is_unharmed()
        await close(elder, younger)


# What an own session can, and does no harm to.
CONTENTS = {
    "read its file": "read('<folder>/file')",
    "write into its workspace": "open('<folder>/planted', 'w')",
    "append to its file": "open('<folder>/file', 'a')",
    "make a folder": "os.makedirs('<folder>/made', exist_ok=True) is None",
    "rename its file": "(os.rename('<folder>/file', '<folder>/moved'), os.rename('<folder>/moved', '<folder>/file')) and True",
    "link in it": "os.symlink('/', '<folder>/link' + os.urandom(4).hex()) or True",
    "make a program": "os.mkfifo('<folder>/fifo' + os.urandom(4).hex()) or True",
    "read its temporary file": "read('<private>/scratch')",
    "write a temporary file": "open('<private>/planted', 'w')",
    "read its checkpoints": "read('<private>/../checkpoints/state.json')",
}
PROCESS = {
    "environ": "read('/proc/<pid>/environ')",
    "memory": "open('/proc/<pid>/mem', 'rb')",
    "memory map": "read('/proc/<pid>/maps')",
    "working directory": "os.listdir('/proc/<pid>/cwd')",
    "root": "os.listdir('/proc/<pid>/root')",
    "look whether it can be killed": "os.kill(<pid>, 0) or True",
    "go on": "os.kill(<pid>, signal.SIGCONT) or True",
    "its process group": "os.killpg(os.getpgid(<pid>), signal.SIGCONT) or True",
    "pidfd": "signal.pidfd_send_signal(os.pidfd_open(<pid>), 0) or True",
}
REFUSED = {**CONTENTS, **PROCESS}


async def successes(attacker: Member, target: Member, probes: dict[str, str]) -> list[str]:
    """What the attacker can do."""
    return [name for name, code in probes.items() if await attacker.can(code, target)]


async def test_branch_cannot_reach_its_parent(family: Family) -> None:
    """Issue 7, the same walls: files, private folder, checkpoints, memory, signals."""
    assert not (await family.parent.handle.call("checkpoint")).is_error
    assert await successes(family.elder, family.parent, REFUSED) == []
    assert await successes(family.younger, family.parent, REFUSED) == []
    assert await successes(family.parent, family.parent, REFUSED) == list(REFUSED), "the control"


async def test_branch_cannot_reach_one_that_was_made_before_it(family: Family) -> None:
    """Issue 7: what was branched before is not among the folders that a branch has."""
    assert not (await family.elder.handle.call("checkpoint")).is_error
    assert await successes(family.younger, family.elder, REFUSED) == []
    assert await successes(family.elder, family.elder, REFUSED) == list(REFUSED), "the control"


async def test_processes_of_a_younger_branch_are_out_of_reach(family: Family) -> None:
    """Issue 7: neither of two branches is within the other's domain (landlock(7))."""
    assert await successes(family.elder, family.younger, PROCESS) == []
    assert await successes(family.younger, family.younger, PROCESS) == list(PROCESS), "the control"


STRANGE = {
    **REFUSED,
    "list its workspace": "os.listdir('<folder>')",
    "list its temporary files": "os.listdir('<private>')",
    "change its mode": "os.chmod('<folder>', 0o700) is None",
    "descriptors": "os.listdir('/proc/<pid>/fd')",
    "priority": "os.setpriority(os.PRIO_PROCESS, <pid>, os.getpriority(os.PRIO_PROCESS, 0)) is None",
    "limits": "__import__('resource').prlimit(<pid>, __import__('resource').RLIMIT_NOFILE)",
}


@pytest.mark.one_container
async def test_other_sessions_cannot_reach_a_branch(family: Family) -> None:
    """Issue 7, H2: a branch is as closed to the sessions of others as any session is, and they to it."""
    for member in (family.elder, family.stranger):
        assert not (await member.handle.call("checkpoint")).is_error
    assert await successes(family.stranger, family.elder, STRANGE) == []
    assert await successes(family.elder, family.stranger, STRANGE) == []
    assert await successes(family.elder, family.elder, STRANGE) == list(STRANGE), "the control"


async def test_sockets_of_kernels_are_closed_to_a_family(family: Family) -> None:
    """DESIGN, ZMQ over unix sockets: a session cannot reach sockets, its own included; those of branches are numbered from above."""
    probes = {
        f"{what} {number}": code
        for number in (0, 1, 2, 3, 996, 997, 998, 999)
        for what, code in (
            ("list", f"os.listdir('/run/kernel_server/{number}')"),
            ("connect", f"socket.socket(socket.AF_UNIX).connect('/run/kernel_server/{number}/s-1') is None"),
        )
    }
    for member in (family.parent, family.elder, family.stranger):
        assert await successes(member, family.younger, probes) == []
    assert await family.elder.can("socket.socketpair()", family.elder), "the control"


INTO_THE_PARENT = """
import shutil
shutil.rmtree('.local', ignore_errors=True)
os.symlink('<folder>/.local', '.local')
"""


async def test_helpers_of_a_branch_have_its_walls(family: Family) -> None:
    """Finding 12: uv unpacked into the parent's workspace, since what runs it has the UID of both. The control: the parent's own."""
    await family.parent.handle.value("os.makedirs('.local', exist_ok=True)")
    link = INTO_THE_PARENT.replace("<folder>", family.parent.handle.workspace)
    await family.elder.handle.value(link)
    reply = await family.elder.handle.call("install_packages", packages=["six"])
    assert reply.is_error, reply.text
    assert await family.parent.handle.value("os.listdir('.local')") == "[]"
    assert not (await family.parent.handle.call("install_packages", packages=["six"])).is_error
    assert await family.parent.handle.value("os.path.isdir('.local/lib')") == "True", "the control"
    await family.elder.handle.value("os.unlink('.local')")


GAPS = {
    "names in its workspace": "os.listdir('<folder>')",
    "a mode that it has anyway": "os.chmod('<folder>', 0o700) is None",
    "priority": "os.setpriority(os.PRIO_PROCESS, <pid>, os.getpriority(os.PRIO_PROCESS, 0)) is None",
}


async def test_what_landlock_does_not_see(family: Family) -> None:
    """A known gap: Landlock restricts neither chmod(2) nor setpriority(2), and `/` may be listed, for one UID."""
    assert await successes(family.elder, family.parent, GAPS) == list(GAPS)


async def test_parent_reaches_its_branches(family: Family) -> None:
    """A known gap, told in SECURITY.md: what a process may reach can only become less."""
    for branch in (family.elder, family.younger):
        assert await family.parent.can(CONTENTS["read its file"], branch)


async def test_elder_branch_reaches_files_of_a_younger_one(family: Family) -> None:
    """A known gap: it may need the folders for branches of its own, until another has taken them."""
    assert await family.elder.can(CONTENTS["read its file"], family.younger)
    assert not await family.younger.can(CONTENTS["read its file"], family.elder)
