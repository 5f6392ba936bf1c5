"""Random sequences of cells, checkpoints, rollbacks, branches and closings, against a plain model of what must be there."""

from __future__ import annotations

import copy
import random
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.driving import Handle, serving
from tests.sessions.test_branching import branches, close

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="local kernels have ipykernel 6 here")

EXAMPLES, STEPS = 12, 14
KINDS = ("set", "append", "delete", "write", "remove", "checkpoint", "rollback", "branch", "close")
MOST_SESSIONS = 5
NAMES = "abc"
LOOK = (
    "print(sorted((name, value) for name, value in globals().items() if name in ('a', 'b', 'c')), "
    "sorted((name, open(name).read()) for name in __import__('os').listdir('.') if name in ('a', 'b', 'c')))"
)


@dataclass
class State:
    """What a session must have; its kernel counts `cells`."""

    variables: dict[str, list[int]] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    cells: int = 0


@dataclass
class Model:
    """A session and what must be in it, and in its checkpoints."""

    handle: Handle
    state: State
    checkpoints: dict[str, State] = field(default_factory=dict)


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(choose=st.randoms(use_true_random=False))
def test_sequences(choose: random.Random) -> None:
    """Issue 7: after each step every session has what the model says, in variables, files and numbers of cells."""
    anyio.run(_sequence, choose)


async def _sequence(choose: random.Random) -> None:
    settings_ = {"PY_EXEC_PRELOAD": "none", "PY_EXEC_CHECKPOINTS": "30", "PY_EXEC_POOL": "0"}
    with tempfile.TemporaryDirectory() as folder:
        async with serving(Path(folder), "local", **settings_) as kit:
            models = [Model(await kit.init(), State())]
            for step in range(STEPS):
                model, kind = choose.choice(models), choose.choice(KINDS)
                await _do(kind, model, models, choose, step)
                for one in models:
                    await _check(one, f"step {step}: {kind}")
            await close(*(model.handle for model in models))


async def _do(kind: str, model: Model, models: list[Model], choose: random.Random, step: int) -> None:
    state, name = model.state, choose.choice(NAMES)
    match kind:
        case "set":
            await _run(model, f"{name} = [{step}]")
            state.variables[name] = [step]
        case "append" if name in state.variables:
            await _run(model, f"{name}.append({step})")
            state.variables[name].append(step)
        case "delete" if name in state.variables:
            await _run(model, f"del {name}")
            del state.variables[name]
        case "write":
            await _run(model, f"_ = open({name!r}, 'a').write('{step} ')")
            state.files[name] = state.files.get(name, "") + f"{step} "
        case "remove" if name in state.files:
            await _run(model, f"import os; os.remove({name!r})")
            del state.files[name]
        case "checkpoint":
            made = await model.handle.call("checkpoint")
            assert not made.is_error, made.text
            model.checkpoints[made.text.split()[1]] = copy.deepcopy(state)
        case "rollback" if model.checkpoints:
            wanted = choose.choice(list(model.checkpoints))
            back = await model.handle.call("rollback", checkpoint=wanted)
            assert not back.is_error, back.text
            model.state = copy.deepcopy(model.checkpoints[wanted])
        case "branch" if len(models) < MOST_SESSIONS:
            wanted = choose.choice(["", *model.checkpoints])
            (branch,) = await branches(model.handle, checkpoint=wanted)
            models.append(Model(branch, copy.deepcopy(model.checkpoints[wanted] if wanted else state)))
        case "close" if len(models) > 1:
            await close(model.handle)
            models.remove(model)


async def _run(model: Model, code: str) -> None:
    reply = await model.handle.run(code)
    assert reply.status == "ok", reply.text
    model.state.cells += 1
    assert reply.result["execution_count"] == model.state.cells


async def _check(model: Model, when: str) -> None:
    found = await model.handle.call("list_variables", peek=LOOK)
    wanted = f"{sorted(model.state.variables.items())} {sorted(model.state.files.items())}"
    assert found.cell_text == wanted, when
