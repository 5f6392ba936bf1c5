"""What running a cell gives: plain data."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass, field
from typing import Literal

from kernel_server.hosts.base import Death, Exceeded, HostDescription
from kernel_server.kernels.changes import Changes
from kernel_server.kernels.outputs import Error, Outputs, Stream
from kernel_server.text import counted, human_size, strip_ansi

# In the end of what they print, programs say why they have failed.
PRINTED_OUTPUTS, PRINTED_CHARACTERS = 8, 4_000

TRY_AGAIN = "[Errno 11]"  # EAGAIN: a limit of processes only where one was being started
# The line of a frame at which it stands, as IPython shows it; and the calls that fail in this way, such as os.fork(),
# os.forkpty(), and those of subprocess and multiprocessing.
_RAISING = re.compile(r"^-+> *\d+ (.*)", re.MULTILINE)
_LITERAL = re.compile(r"'[^']*'|\"[^\"]*\"")
_FORK = re.compile(r"\b_?(fork|fork1|forkpty|fork_exec|posix_spawnp?)\(")

Status = Literal["ok", "error", "running", "interrupted", "timeout", "died"]


@dataclass(frozen=True)
class Cell:
    """Code to run.

    Attributes:
        code: what the kernel executes.
        source: what the notebook shows; "" is the code itself.
        timeout: seconds until it is interrupted; 0 is never.
        interactive: somebody is there to answer `input()`.
    """

    code: str
    source: str = ""
    timeout: float = 0.0
    interactive: bool = False


@dataclass
class CellResult:
    """How a cell went.

    Attributes:
        generation: number of the session's kernel that ran it, from 1; a new number means new, empty variables.
        seconds: wall time from sending it to its end.
        notes: what the model has to know beside the outputs, each a sentence or two.
        queued_seconds: how long it waited for its turn before that.
        late: what earlier cells put out after their end, such as by a thread.
        changes: what it did to variables and files.
    """

    session_id: str
    status: Status
    outputs: Outputs
    execution_count: int
    generation: int
    seconds: float
    notes: list[str] = field(default_factory=list)
    queued_seconds: float = 0.0
    late: Outputs = field(default_factory=Outputs)
    changes: Changes = field(default_factory=Changes)


def explain_death(death: Death | None, exiting: bool, memory: str) -> str:
    """Why a kernel is gone, as a sentence.

    Args:
        death: what the kernel host reported, or None if it was silent.
        exiting: the code had called `exit()`.
        memory: the container's memory limit as a person writes it, "" for none.
    """
    if exiting:
        return "The code called exit() or quit(), which ends the kernel."
    if death is None:
        return "The kernel ended."
    if death.exceeded is not None:
        return _explain_limit(death.exceeded)
    if death.cut_off:
        return "The kernel was killed because it had closed its connections to the server: no result came any more."
    if death.out_of_memory:
        limit = f" ({memory}, PY_EXEC_MEMORY)" if memory else ""
        return f"The kernel was killed because the container's memory limit{limit} was reached."
    if death.signal == signal.SIGBUS:
        return (
            "The kernel was killed by SIGBUS: memory that it had mapped from a file was not there. The file was cut, or "
            "there was no room for it, such as in /dev/shm, which all sessions share."
        )
    if death.signal is not None:
        return f"The kernel was killed by {_signal_name(death.signal)}."
    return f"The kernel's process ended with exit code {death.exit_code} (os._exit, or native code that gave up)."


def _explain_limit(exceeded: Exceeded) -> str:
    used, limit = human_size(exceeded.used), human_size(exceeded.limit)
    if exceeded.unit == "files":
        used, limit = counted(exceeded.used, "file"), f"{exceeded.limit:,}"
    if exceeded.what == "workspace":
        what = "there were" if exceeded.unit == "files" else "the session's files took"
        of = " in the session" if exceeded.unit == "files" else " of disk"
        return (
            f"The kernel was killed because {what} {used}{of}; {limit} are allowed "
            "(PY_EXEC_WORKSPACE_SIZE). Remove files that are no longer needed before you write more."
        )
    if exceeded.what == "memory":
        return (
            f"The kernel was killed because the session held {used} of memory, and the container's limit of {limit} "
            "(PY_EXEC_MEMORY) was near. Its files in /tmp and /dev/shm are gone."
        )
    return (
        f"The kernel was killed because the session's files in {exceeded.what} took {used} of the {limit} that all "
        "sessions share there. Its files in /tmp and /dev/shm are gone; large files belong into the workspace."
    )


def explain_error(outputs: Outputs, description: HostDescription) -> list[str]:
    """Which limit of the session an exception comes from, or what a program printed last, if it is one."""
    error = outputs.error
    said = f"{error.ename}: {error.evalue}" if error else ""
    printed = "".join(
        item.text[-PRINTED_CHARACTERS:] for item in outputs.items[-PRINTED_OUTPUTS:] if isinstance(item, Stream)
    )
    for what, hints in ((said, description.hints), (printed, description.printed_hints)):
        for sign, hint in hints.items():
            if hint and sign in what and not (sign == TRY_AGAIN and error and not _forked(error)):
                return [hint]
    return []


def _forked(error: Error) -> bool:
    """Whether the line that raised it starts a process: sockets, pipes and locks say EAGAIN, too."""
    frames = [strip_ansi(frame) for frame in error.traceback if _RAISING.search(strip_ansi(frame))]
    return bool(frames) and any(_FORK.search(_LITERAL.sub("", line)) for line in _RAISING.findall(frames[-1]))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def explain_loss(generation: int, remedy: str) -> str:
    """What a death means for the session that has kernel `generation` now.

    Args:
        remedy: how to have them back; "" is to run cells again.
    """
    return (
        "All variables, imports and background processes of this session are gone; the files in its workspace and "
        f"its notebook are kept. A fresh kernel is ready (generation {generation}): "
        + (remedy or "run the cells you need again.")
    )
