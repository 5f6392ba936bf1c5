"""What a result says to programs: `_meta["kernel_server/result"]`. The README has the schema as a table."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field

from kernel_server.kernels.changes import FileChanges, VariableChanges
from kernel_server.sessions.results import CellResult, Status

RESULT_META = "kernel_server/result"


class Truncated(BaseModel):
    """What of a result is not in its content."""

    text_bytes: Annotated[int, Field(description="bytes of text that were cut out of the middle")] = 0
    images: Annotated[int, Field(description="images that were left out")] = 0
    images_downscaled: Annotated[int, Field(description="images that were made smaller")] = 0
    outputs: Annotated[
        int, Field(description="outputs that were dropped, because there were too many or they were too large")
    ] = 0


class ResultMeta(BaseModel):
    """How a cell went; keys without a value are left out."""

    status: Status = Field(description="`ok`, `error`, `running`, `interrupted`, `timeout` or `died`")
    session_id: str = Field(description="the session; of a one-shot call, one that is gone unless the cell is running")
    execution_count: int = Field(
        description="number of the cell; 0 while it is running, and if it never came to an end"
    )
    generation: int = Field(description="number of the session's kernel; a new one has none of the variables")
    seconds: float = Field(description="how long the cell has run")
    queued_seconds: float = Field(description="how long it waited for its turn before that")
    truncated: Truncated = Field(
        Truncated(), description="what is not in the content: `text_bytes`, `images`, `images_downscaled`, `outputs`"
    )
    variables: VariableChanges = Field(
        VariableChanges(),
        description="what the cell did to them: `created`, `changed`, `removed`: lists of `name`, `type`, `shape`, `dtype`; "
        "`more` counts what is not listed",
    )
    files: FileChanges = Field(
        FileChanges(),
        description="what it did to those of the workspace: `created`, `changed`, `removed`: lists of `path`, `size` in "
        "bytes; `more` as above",
    )


def result_meta(result: CellResult, truncated: Truncated) -> dict[str, Any]:
    """The `_meta` of a result."""
    meta = ResultMeta(
        status=result.status,
        session_id=result.session_id,
        execution_count=result.execution_count,
        generation=result.generation,
        seconds=round(result.seconds, 3),
        queued_seconds=round(result.queued_seconds, 3),
        truncated=truncated,
        variables=result.changes.variables,
        files=result.changes.files,
    )
    return {RESULT_META: meta.model_dump(mode="json", exclude_defaults=True)}
