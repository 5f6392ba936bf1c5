"""The tree of errors: each can be raised again as a fresh one, and the docstring shows them all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kernel_server import errors
from kernel_server.errors import KernelError, KernelServerError, SessionClosed
from kernel_server.sessions.jobs import Job
from kernel_server.sessions.results import Cell
from tests.sessions.test_branches_given_up import registry_of

ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "ConfigurationError": (["one", "two"],),
    "EngineUnavailable": ("finding", "remedy"),
    "IsolationIncomplete": (["layer"],),
    "SessionError": ("0" * 32, "message"),
    "SessionUnknown": ("0" * 32,),
    "SessionClosed": ("0" * 32, "reset"),
    "SessionLeft": ("0" * 32, 600.0),
    "SessionNotKept": ("0" * 32, "why."),
    "SessionExpired": ("0" * 32, 600.0),
    "JournalRemoved": ("0" * 32, "today", "why"),
    "SessionLimit": (3, [("0" * 32, 5.0)]),
}


def tree(kind: type[KernelServerError]) -> list[type[KernelServerError]]:
    return [kind, *(one for below in kind.__subclasses__() for one in tree(below) if one.__module__ == errors.__name__)]


@pytest.mark.parametrize("kind", tree(KernelServerError), ids=lambda kind: kind.__name__)
def test_error_can_be_raised_again_as_a_fresh_one(kind: type[KernelServerError]) -> None:
    """Ours: one exception object that is raised from many calls holds the frames of them all."""
    error = kind(*ARGUMENTS.get(kind.__name__, ("message",)))
    try:
        raise error
    except KernelServerError as raised:
        fresh = raised.again()
    assert type(fresh) is kind
    assert (str(fresh), fresh.args, vars(fresh)) == (str(error), error.args, vars(error))
    assert fresh is not error
    assert fresh.__traceback__ is None
    assert error.__traceback__ is not None, "the control"


def test_docstring_shows_the_whole_tree() -> None:
    """Ours: with what is below what."""
    shown: dict[str, int] = {}
    for line in (errors.__doc__ or "").splitlines():
        name = line.lstrip(" │├└─").split(" ")[0]
        if name and hasattr(errors, name):
            shown[name] = (len(line) - len(line.lstrip(" │├└─"))) // 4 - 1
    expected = {kind.__name__: len(kind.__mro__) - len(KernelServerError.__mro__) for kind in tree(KernelServerError)}
    assert shown == expected


@pytest.mark.anyio
async def test_outcome_that_failed_is_a_fresh_error_for_each_who_asks() -> None:
    """Ours: see above."""
    job = Job(Cell("1"), 1, failure=KernelError("why"))
    raised = []
    for _ in range(2):
        with pytest.raises(KernelError, match="why") as caught:
            job.outcome("0" * 32, 1)
        raised.append(caught.value)
    assert raised[0] is not raised[1]
    assert isinstance(SessionClosed("0" * 32, "reset").again(), SessionClosed)


@pytest.mark.anyio
async def test_session_that_has_ended_gives_each_call_an_error_of_its_own(tmp_path: Path) -> None:
    """Ours: tracebacks of calls grew and mixed, and all they had to do with stayed in memory."""
    async with registry_of(tmp_path) as registry:
        session = await registry.open()
        await registry.close(session.session_id)
        raised = []
        for _ in range(3):
            with pytest.raises(SessionClosed, match="close_session") as caught:
                session.submit(Cell("1"))
            raised.append((caught.value, len(caught.traceback)))
        assert len({id(error) for error, _ in raised}) == 3
        assert len({depth for _, depth in raised}) == 1
