"""Requests about files. Each is done by a forked helper that may do what the session's UID may: see `files`.

The session can neither stop nor kill it: a call would wait for one that is stopped. A helper that follows links, or runs
a program, has the session's walls around it, too: its UID is that of its relatives.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from . import cleaning, edits, files, identity, installs, listing
from .beneath import Refused
from .config import Config
from .loop import Loop, Reply
from .sessions import Session, Sessions
from .walls import Walls


class FileRequests:
    """Answers them."""

    def __init__(self, config: Config, walls: Walls, sessions: Sessions, loop: Loop) -> None:
        self._config = config
        self._walls = walls
        self._sessions = sessions
        self._loop = loop
        self._staged: dict[str, dict[str, Any]] = {}  # requests for staging folders that are there, by path

    def stage(self, request: dict[str, Any], reply: Reply) -> None:
        """Makes a fresh staging folder; `session` "" stands for the shared folder, which belongs to us."""
        owner = self._sessions.find(request).uid if request["session"] else None
        folder = self._staging(request)
        os.mkdir(folder, 0o700)
        self._staged[folder] = request
        if owner is not None:
            os.chown(folder, owner, owner)
        reply({"result": {"path": folder, "uid": owner if owner is not None else os.getuid()}})

    def _staging(self, request: dict[str, Any]) -> str:
        name = str(request["staging"])
        if not name.isalnum():
            raise Refused("a staging name is letters and digits")
        folder = self._config.staging_dir if request["session"] else self._config.shared_staging_dir
        return f"{folder}/{name}"

    def unstage(self, request: dict[str, Any], reply: Reply) -> None:
        """Removes a staging folder with all that is in it."""
        self._staged.pop(self._staging(request), None)
        staging, owner = self._open_staging(request)

        def remove() -> dict[str, Any]:
            os.fchdir(staging)  # for a session's UID there is no path to it: the parent is 0700
            cleaning.empty_folder(".")
            return {}

        def finish(message: dict[str, Any]) -> None:
            with suppress(OSError):
                os.rmdir(self._staging(request))
            reply(message)

        self._loop.help(owner, remove, finish, keep=(staging,), enter=identity.act_for)
        os.close(staging)

    def unstage_all(self) -> None:
        """Removes what transfers have left whose server was killed."""
        for request in list(self._staged.values()):
            with suppress(OSError):
                self.unstage(request, lambda _message: None)

    def _open_staging(self, request: dict[str, Any]) -> tuple[int, int | None]:
        """Opens a staging folder for a helper with its owner's UID (None: ours)."""
        folder = self._staging(request)
        owner = os.stat(folder).st_uid
        if owner == os.getuid():
            return os.open(folder, os.O_DIRECTORY | os.O_RDONLY | os.O_CLOEXEC), None
        os.chown(folder, os.getuid(), -1)  # without CAP_DAC_OVERRIDE root opens only what is its own
        descriptor = os.open(folder, os.O_DIRECTORY | os.O_RDONLY | os.O_CLOEXEC)
        os.fchown(descriptor, owner, -1)
        return descriptor, owner

    def receive(self, request: dict[str, Any], reply: Reply) -> None:
        """Moves what was staged to its place."""
        name, target = str(request["name"]), str(request["path"])
        self._with_folders(request, reply, lambda root, staging: files.receive(root, staging, name, target))

    def send(self, request: dict[str, Any], reply: Reply) -> None:
        """Copies a file or folder into staging."""
        path, name, limit = str(request["path"]), str(request["name"]), int(request["max_bytes"])
        if self._config.workspace_bytes:  # only holes make more of it
            limit = min(limit, self._config.workspace_bytes)
        self._with_folders(request, reply, lambda root, staging: files.send(root, staging, path, name, limit))

    def _with_folders(self, request: dict[str, Any], reply: Reply, body: Callable[[int, int], dict[str, Any]]) -> None:
        with _closed(self._open_staging(request)[0]) as staging:
            self._at_root(request, reply, lambda root: body(root, staging), keep=(staging,))

    def describe(self, request: dict[str, Any], reply: Reply) -> None:
        """Kind and size of a path."""
        self._at_root(request, reply, lambda root: files.describe(root, str(request["path"])))

    def list_files(self, request: dict[str, Any], reply: Reply) -> None:
        """The files beneath a folder."""
        self._at_root(request, reply, lambda root: listing.list_files(root, str(request["path"])))

    def edit(self, request: dict[str, Any], reply: Reply) -> None:
        """The request's text lies in a file of the run folder, so that it never enters this process."""
        with _closed(self._sessions.open_handed(str(request["content_file"]))) as content:

            def body(root: int) -> dict[str, Any]:
                with open(content, "rb") as file:
                    return edits.edit(root, str(request["path"]), file.read())

            self._at_root(request, reply, body, keep=(content,))

    def _at_root(
        self,
        request: dict[str, Any],
        reply: Reply,
        body: Callable[[int], dict[str, Any]],
        keep: tuple[int, ...] = (),
    ) -> None:
        """Runs `body` in a helper, with the open folder beneath which its paths are: workspace or shared."""
        # Sessions cannot write in the shared folder, so that nothing can be planted there: it is ours.
        session = self._sessions.find(request) if request["session"] else None
        shared = self._config.shared_dir

        def work() -> dict[str, Any]:
            flags = os.O_DIRECTORY | os.O_RDONLY | os.O_CLOEXEC
            root = os.open(".", flags, dir_fd=session.home) if session else os.open(shared, flags)
            os.umask(0o022)
            return body(root)

        home = (session.home,) if session else ()
        self._loop.help(session.uid if session else None, work, reply, (*keep, *home), enter=identity.act_for)

    def packages(self, request: dict[str, Any], reply: Reply) -> None:
        """Name and version of what a kernel can import."""
        if not request["session"]:
            self._loop.help(None, lambda: installs.packages(""), reply)
            return
        self._walled(self._sessions.find(request), lambda home: installs.packages(identity.user_site(home)), reply)

    def environment(self, request: dict[str, Any], reply: Reply) -> None:
        """For which Python packages have to be, and what a session has already."""
        self._walled(self._sessions.find(request), lambda home: installs.environment(identity.user_site(home)), reply)

    def _walled(self, session: Session, body: Callable[[str], dict[str, Any]], reply: Reply) -> None:
        """Runs `body` with the path of the workspace in a helper that can reach no more than the session."""

        def work() -> dict[str, Any]:
            os.fchdir(session.home)
            self._raise_walls(session)
            return body(os.getcwd())

        self._loop.help(session.uid, work, reply, keep=(session.home,), enter=identity.act_for)

    def _raise_walls(self, session: Session) -> None:
        """In a helper whose working directory is the workspace."""
        if self._sessions.isolated:
            self._walls.raise_around([".", session.private], self._config.shared_dir)

    def install(self, request: dict[str, Any], reply: Reply) -> None:
        """Installs the wheels that were staged, for a session."""
        session, name = self._sessions.find(request), str(request["name"])
        if not name.isalnum():
            raise Refused("a folder of wheels is named with letters and digits")
        mark = session.mark if self._sessions.isolated else 0

        def begin() -> None:
            """Between what must be done without the session's walls, and what must not."""
            if mark:
                identity.set_mark(mark)
            os.fchdir(session.home)
            self._raise_walls(session)

        with _closed(self._open_staging(request)[0]) as staging:

            def work() -> dict[str, Any]:
                return installs.install(staging, name, session.private, begin, self._config.limits)

            self._loop.help(session.uid, work, reply, keep=(staging, session.home))


@contextmanager
def _closed(descriptor: int) -> Iterator[int]:
    """Closes it in the end, whatever happens: the helper has its own."""
    try:
        yield descriptor
    finally:
        os.close(descriptor)
