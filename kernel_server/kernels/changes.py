"""What a cell changed, as the kernel reports it in the metadata of its `execute_reply` (container/README.md).

Kernels are hostile: what is not of this form is not there.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

MAX_LISTED = 50
MAX_PATH = 1_000  # characters
MAX_TEXT = 200_000  # characters of an expression's value
KEY = "kernel_server"

Count = Annotated[int, Field(ge=0, lt=1 << 53)]
Kind = Literal["created", "changed", "removed"]


def _few(value: object) -> object:
    """Each key that is none would be an error with a text of its own."""
    if isinstance(value, dict) and len(value) > len(get_args(Kind)):
        raise ValueError("more kinds than there are")
    return value


More = Annotated[dict[Kind, Count], BeforeValidator(_few)]


class _Reported(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)


class Variable(_Reported):
    """A variable of the session.

    Attributes:
        type: name of its class; "" for one that is gone.
        shape: of an array or frame its shape, of a text or container its length.
        dtype: of an array's elements.
        value: of a number, as Python shows it; only where variables are listed.
    """

    name: Annotated[str, Field(max_length=200)]
    type: Annotated[str, Field(max_length=200)] = ""
    shape: Annotated[list[Count], Field(max_length=64)] | None = None
    dtype: Annotated[str, Field(max_length=200)] = ""
    value: Annotated[str, Field(max_length=200)] = ""


class File(_Reported):
    """A file of the workspace; `path` is relative to it, `size` is in bytes."""

    path: Annotated[str, Field(max_length=MAX_PATH)]
    size: Count | None = None


class VariableChanges(_Reported):
    """At most MAX_LISTED of each kind; how many more there are is in `more`."""

    created: Annotated[list[Variable], Field(max_length=MAX_LISTED)] = []
    changed: Annotated[list[Variable], Field(max_length=MAX_LISTED)] = []
    removed: Annotated[list[Variable], Field(max_length=MAX_LISTED)] = []
    more: More = {}


class FileChanges(_Reported):
    """As VariableChanges."""

    created: Annotated[list[File], Field(max_length=MAX_LISTED)] = []
    changed: Annotated[list[File], Field(max_length=MAX_LISTED)] = []
    removed: Annotated[list[File], Field(max_length=MAX_LISTED)] = []
    more: More = {}


class Changes(_Reported):
    """What a cell did to the session's variables and to the files in its workspace."""

    variables: VariableChanges = VariableChanges()
    files: FileChanges = FileChanges()


def changes_of(metadata: Any) -> Changes:
    """The changes in the metadata of a reply."""
    try:
        return Changes.model_validate(metadata.get(KEY, {}))
    except (AttributeError, ValidationError):
        return Changes()


class Look(_Reported):
    """The content of a `list_variables_reply`.

    Attributes:
        variables: the session's own, unless an expression was asked for; `more` counts those that are left out.
        text: the expression's value.
        error: why there is no value.
    """

    variables: Annotated[list[Variable], Field(max_length=1000)] = []
    more: Count = 0
    text: Annotated[str, Field(max_length=MAX_TEXT)] = ""
    error: Annotated[str, Field(max_length=MAX_TEXT)] = ""


def look_of(content: dict[str, Any]) -> Look:
    """The reply to a look at the variables."""
    try:
        return Look.model_validate(content)
    except ValidationError:
        return Look(error="The kernel's answer cannot be read.")
