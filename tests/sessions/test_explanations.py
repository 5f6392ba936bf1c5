"""What a result says of the limit that an error comes from: only where that is the reason."""

from __future__ import annotations

import pytest

from tests.driving import Handle

pytestmark = [pytest.mark.anyio, pytest.mark.docker]


# Each fails with EAGAIN; only those that start a process do so at the limit of processes.
OTHERS = {
    "a socket": "import socket\na, b = socket.socketpair()\na.setblocking(False)\na.recv(1)",
    "a pipe": "import os\nr, w = os.pipe()\nos.set_blocking(r, False)\nos.read(r, 1)",
    "a lock": "import fcntl\none, two = open('lock', 'w'), open('lock', 'w')\nfcntl.flock(one, fcntl.LOCK_EX)\n"
    "fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)",
    "a lock near a fork": "import fcntl, os\none, two = open('lock', 'w'), open('lock', 'w')\n"
    "fcntl.flock(one, fcntl.LOCK_EX)\nos.waitpid(os.fork() or os._exit(0), 0)\nfcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)",
    "an exception made by code": "raise BlockingIOError(11, 'os.fork() failed')",
}
STARTS = {
    "fork": "import os\nos.fork()",
    "subprocess": "import subprocess\nsubprocess.run(['true'])",
    "multiprocessing": "import multiprocessing\nmultiprocessing.get_context('fork').Process(target=print).start()",
    "a terminal": "import pty\npty.fork()",
}
# The limit of kernel_host is 256 for the UID; a lower one of this process alone fails in the same way.
AT_THE_LIMIT = (
    "import resource\nresource.setrlimit(resource.RLIMIT_NPROC, (0, resource.getrlimit(resource.RLIMIT_NPROC)[1]))\n"
)


@pytest.mark.parametrize("code", OTHERS.values(), ids=OTHERS.keys())
async def test_what_is_busy_is_no_limit_of_processes(docker_session: Handle, code: str) -> None:
    """EAGAIN says "try again" of sockets, pipes and locks, too."""
    reply = await docker_session.run(code)
    assert (reply.status, "BlockingIOError" in reply.text) == ("error", True)
    assert "Limit:" not in reply.text


@pytest.mark.parametrize("code", STARTS.values(), ids=STARTS.keys())
async def test_process_that_cannot_be_started_names_the_limit(docker_session: Handle, code: str) -> None:
    """Issue 3: errors at a limit name it."""
    reply = await docker_session.run(AT_THE_LIMIT + code)
    assert (reply.status, "BlockingIOError" in reply.text) == ("error", True), reply.text
    assert "[Limit: A session may have 256 processes and threads at a time.]" in reply.notes
