"""`input()` of a running cell: its prompt reaches a person by MCP elicitation.

Up to 2025-11-25 the server asks while the call waits. From 2026-07-28 on the call returns with what it needs, and the
client calls again with the answer; the SDK seals the state that goes with it.
"""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from typing import Any

import anyio
from mcp import MCPError
from mcp.server.mcpserver import Context
from mcp.types import ElicitRequest, ElicitRequestFormParams, ElicitResult, InputRequiredResult
from pydantic import ValidationError

from kernel_server.errors import KernelError, RequestError
from kernel_server.kernels.executions import Input
from kernel_server.sessions.jobs import Job
from kernel_server.sessions.session import PROGRESS_SECONDS, OnProgress, Session
from kernel_server.text import one_line
from kernel_server.tools.services import services

logger = logging.getLogger(__name__)

ANSWER = "answer"  # key of the request and of its response
MAX_PROMPT = 500  # characters
FIRST_MODERN = "2026-07-28"
# The form that a person fills in. Nothing is required: to press Enter is an answer, too.
FORM: dict[str, Any] = {"type": "object", "properties": {"value": {"type": "string", "title": "Answer", "default": ""}}}


def can_ask(ctx: Context) -> bool:
    """Whether the client can put a form before a person."""
    capabilities = ctx.client_capabilities
    elicitation = capabilities.elicitation if capabilities else None
    return elicitation is not None and (elicitation.form is not None or elicitation.url is None)


async def ask(ctx: Context, session: Session, job: Job, on_progress: OnProgress) -> InputRequiredResult | None:
    """Puts the prompt of a job to a person and gives the kernel the answer.

    Returns:
        What the tool has to return where it cannot wait for the answer; `resume` takes the call up again.
    """
    message, number = _message(job.input), job.input.count
    if (ctx.protocol_version or "") >= FIRST_MODERN:
        params = ElicitRequestFormParams(message=message, requested_schema=FORM)
        state = json.dumps({"session_id": session.session_id, "job": job.number, "prompt": number})
        return InputRequiredResult(input_requests={ANSWER: ElicitRequest(params=params)}, request_state=state)
    for answer in await _wait_for_answer(ctx, job, message, on_progress):
        await _answer(session, job, number, answer)
    return None


async def _wait_for_answer(ctx: Context, job: Job, message: str, on_progress: OnProgress) -> list[str | None]:
    """One answer, or none if the cell has ended meanwhile, or another call has been answered."""
    answers: list[str | None] = []
    number = job.input.count
    async with anyio.create_task_group() as tasks:

        async def stop_with_the_prompt() -> None:
            while job.input.prompt is not None and job.input.count == number:
                with anyio.move_on_after(PROGRESS_SECONDS):
                    await job.done.wait()
                await on_progress(job.seconds, "waiting for an answer to input()")
            tasks.cancel_scope.cancel()

        tasks.start_soon(stop_with_the_prompt)
        answers.append(await _elicit(ctx, message))
        tasks.cancel_scope.cancel()
    return answers


async def resume(ctx: Context) -> tuple[Session, Job] | None:
    """The job that this call goes on with, once it has been given the answer that came along.

    Raises:
        RequestError: it does not wait for an answer any more.
    """
    if not ctx.request_state:
        return None
    state = json.loads(ctx.request_state)
    session = await services(ctx).registry.find(state["session_id"])
    job = session.job(state["job"])
    if job is None:
        raise RequestError("The cell that asked for this input has ended, and its result has been returned.")
    response = (ctx.input_responses or {}).get(ANSWER)
    if isinstance(response, ElicitResult):
        await _answer(session, job, state["prompt"], _value(response))
    return session, job


async def _answer(session: Session, job: Job, number: int, value: str | None) -> None:
    """Answers prompt `number` of a job, unless another call has: an old answer is none to the next prompt."""
    if number == job.input.count:
        with suppress(KernelError):  # the cell's result tells of it
            await session.answer(job, value)


def _message(asked: Input) -> str:
    """Says who asks: the prompt was written by whoever wrote the code, and is shown in one line and in quotes."""
    message = "Python code in the sandbox asks for input"
    if prompt := one_line(asked.prompt or "", MAX_PROMPT):
        message += f": {prompt!r}"
    if asked.password:
        message += "\n(The answer goes to the code alone; it is not written to the result, the notebook or a log.)"
    return message


async def _elicit(ctx: Context, message: str) -> str | None:
    try:
        # The SDK's `ctx.elicit` refuses a number, with a traceback in the log that holds what was typed.
        return _value(await ctx.session.elicit_form(message, FORM, related_request_id=ctx.request_id))
    except (MCPError, ValidationError) as error:  # its text may hold what was typed
        logger.warning("the client said that it can ask a person, and cannot: %s", type(error).__name__)
        return None


def _value(response: ElicitResult) -> str | None:
    """What was typed; None if it is no answer. Forms may send a number where digits were typed."""
    if response.action != "accept":
        return None
    value = (response.content or {}).get("value")
    if isinstance(value, list):
        return None
    return "" if value is None else str(value)
