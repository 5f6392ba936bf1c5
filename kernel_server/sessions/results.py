"""What running a cell gives: plain data."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from typing import Literal

from kernel_server.hosts.base import Death
from kernel_server.kernels.outputs import Outputs

Status = Literal["ok", "error", "running", "interrupted", "timeout", "died"]


@dataclass(frozen=True)
class Cell:
    """Code to run.

    Attributes:
        code: what the kernel executes.
        source: what the notebook shows; "" is the code itself.
        timeout: seconds until it is interrupted; 0 is never.
    """

    code: str
    source: str = ""
    timeout: float = 0.0


@dataclass
class CellResult:
    """How a cell went.

    Attributes:
        generation: number of the session's kernel that ran it, from 1; a new number means new, empty variables.
        seconds: wall time from sending it to its end.
        notes: what the model has to know beside the outputs, each a sentence or two.
    """

    session_id: str
    status: Status
    outputs: Outputs
    execution_count: int
    generation: int
    seconds: float
    notes: list[str] = field(default_factory=list)


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
    if death.out_of_memory:
        limit = f" ({memory}, PY_EXEC_MEMORY)" if memory else ""
        return f"The kernel was killed because the container's memory limit{limit} was reached."
    if death.signal is not None:
        return f"The kernel was killed by {_signal_name(death.signal)}."
    return f"The kernel's process ended with exit code {death.exit_code} (os._exit, or native code that gave up)."


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def explain_loss(generation: int) -> str:
    """What a death means for the session that has kernel `generation` now."""
    return (
        "All variables, imports and background processes of this session are gone; the files in its workspace and "
        f"its notebook are kept. A fresh kernel is ready (generation {generation}): run the cells you need again."
    )
