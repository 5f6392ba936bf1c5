"""Which paths are accepted: pure functions, no file is touched."""

from __future__ import annotations

from dataclasses import dataclass

from kernel_server.errors import FileError
from kernel_server.text import clean, has_controls

MAX_NAME_BYTES = 255
MAX_PATH_BYTES = 4095  # PATH_MAX with its NUL, limits.h of Linux; requests to kernel_host have a limit, too
MAX_SHOWN = 80  # characters
SHARED = "/workspace/shared"


@dataclass(frozen=True)
class ContainerPath:
    """A path inside the container.

    Attributes:
        shared: it lies in the shared folder, not in the session's workspace.
        relative: beneath that folder; "" is the folder itself.
        folder_meant: it was written with a slash at its end.
    """

    shared: bool
    relative: str
    folder_meant: bool = False

    @property
    def name(self) -> str:
        """The last part."""
        return self.relative.rpartition("/")[2]


def check_parts(path: str, argument: str) -> list[str]:
    """The parts of a path, without empty ones and `.`.

    Raises:
        FileError: it is empty, holds NUL, `..` or lone surrogates, or it or a name in it is too long.
    """
    if not path.strip():
        raise FileError(f"{argument} is empty; give the path of a file or folder.")
    if "\x00" in path:
        raise FileError(f"{argument} holds a NUL character: {clean(path)!r}.")
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        raise FileError(f"{argument} holds a lone surrogate, which no file name can: {clean(path)!r}.") from None
    if size > MAX_PATH_BYTES:
        raise FileError(f"{argument} is longer than {MAX_PATH_BYTES} bytes: {path[:40]!r}…")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise FileError(f"{argument} {path!r} holds '..'; give a path that stays inside.")
    for part in parts:
        if len(part.encode()) > MAX_NAME_BYTES:
            raise FileError(f"{argument}: a name is longer than {MAX_NAME_BYTES} bytes: {part[:40]!r}…")
    return parts


def local_relative(path: str, argument: str, variable: str) -> str:
    """A path beneath WORKDIR_IN or WORKDIR_OUT (`variable`), normalized; "." is the folder itself.

    Raises:
        FileError: it is absolute or not acceptable otherwise. Nothing is written under a name with control characters,
            which the user's shell and terminal would trip over.
    """
    if variable == "WORKDIR_OUT" and has_controls(path):
        raise FileError(f"{argument} {path[:MAX_SHOWN]!r} holds control characters; give a local_path without.")
    if path.startswith(("/", "~")):
        raise FileError(f"{argument} {path!r} must be relative to {variable}: leave out the folder in front.")
    return "/".join(check_parts(path, argument)) or "."


def container_path(path: str, argument: str, workspace: str) -> ContainerPath:
    """A path of a session: relative to its workspace, or absolute in the workspace or the shared folder.

    Args:
        workspace: the session's folder; "" without a session: then only the shared folder is left.

    Raises:
        FileError: it is somewhere else, or not acceptable otherwise.
    """
    parts = check_parts(path, argument)
    folder_meant = path.endswith("/")
    if not path.startswith("/"):
        if not workspace:
            raise FileError(f"{argument} {path!r} needs a session_id; without one, only {SHARED} can be used.")
        return ContainerPath(False, "/".join(parts), folder_meant)
    for shared, folder in ((False, workspace), (True, SHARED)):
        root = [part for part in folder.split("/") if part]
        if root and parts[: len(root)] == root:
            return ContainerPath(shared, "/".join(parts[len(root) :]), folder_meant)
    where = f"{workspace} or {SHARED}" if workspace else SHARED
    raise FileError(f"{argument} {path!r} is outside the workspace; use a relative path, or one in {where}.")
