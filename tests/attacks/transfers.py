"""What races with the planter: kernel_host's own helpers, the server's own side, and a control that is naive."""

from __future__ import annotations

import io
import json
import os
import secrets
import shutil
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from kernel_host import edits, files, identity, listing
from kernel_host.beneath import Refused

from kernel_server.errors import FileError
from kernel_server.files.transfer import open_to_send, receive
from tests.attacks.arena import LETTERS, MAX_BYTES, ONLY_THERE, SECRETS, SESSION_UID, Arena, asked, is_foreign
from tests.attacks.planting import make_own

READ_BYTES = 1 << 20
REFUSALS = (Refused, FileError)


class Transfers:
    """All that kernel_host does with a session's files, in turn."""

    def __init__(self, place: Arena, pattern: str) -> None:
        self._root = os.open(place.session, os.O_DIRECTORY | os.O_RDONLY)
        self._staging = os.open(place.staging, os.O_DIRECTORY | os.O_RDONLY)
        self._folder, self._file = pattern, asked(pattern)
        self.kinds: list[Callable[[], None]] = [
            self.send_file,
            self.receive_file,
            self.send_folder,
            self.describe,
            self.edit,
            self.send_file,
            self.replace,
            self.receive_folder,
            self.list_files,
        ]

    def begin(self) -> None:
        """Becomes the session's user, who has no path to staging."""
        os.fchdir(self._staging)
        identity.become(SESSION_UID)

    def send_file(self) -> None:
        self._send(self._file)

    def send_folder(self) -> None:
        self._send(self._folder)

    def _send(self, path: str) -> None:
        try:
            files.send(self._root, self._staging, path, "item", MAX_BYTES)
            self._check_staged()
        finally:
            _remove("item")

    def _check_staged(self) -> None:
        paths = [Path("item"), *Path("item").rglob("*")]
        strange = [path for path in paths if not path.is_file() and not path.is_dir()]
        strange += [path for path in paths if path.is_symlink() or path.name == ONLY_THERE]
        strange += [path for path in paths if path.is_file() and is_foreign(path)]
        assert not strange, f"came out: {strange}"

    def receive_file(self) -> None:
        self._receive(lambda name: Path(name).write_bytes(b"new"), self._file)

    def receive_folder(self) -> None:
        self._receive(lambda name: make_own(name, 2), self._folder)

    def _receive(self, make: Callable[[str], object], target: str) -> None:
        name = secrets.token_hex(4)
        make(name)
        try:
            files.receive(self._root, self._staging, name, target)
        finally:
            _remove(name)

    def describe(self) -> None:
        self._check_told(files.describe(self._root, self._file))

    def list_files(self) -> None:
        self._check_told(listing.list_files(self._root, self._folder))

    def _check_told(self, told: dict[str, Any]) -> None:
        text = json.dumps(told)
        assert ONLY_THERE not in text, f"was told: {text}"
        if not self._folder.endswith("hard_link"):  # its size is that of a name in the session's folder
            assert f'"size": {len(SECRETS)}' not in text, f"was told: {text}"

    def edit(self) -> None:
        self._edit("new now")

    def replace(self) -> None:
        self._edit("one", "now")

    def _edit(self, content: str, old: str = "") -> None:
        edits.edit(self._root, self._file, json.dumps({"content": content, "old": old}).encode())


def _remove(name: str) -> None:
    with suppress(FileNotFoundError):
        shutil.rmtree(name) if os.path.isdir(name) else os.unlink(name)


class Naive:
    """The control: looks whether a path is what it seems, and then opens it; both ways, as root."""

    def __init__(self, place: Arena, pattern: str) -> None:
        self._path = f"{place.session}/{asked(pattern)}"
        self.kinds: list[Callable[[], None]] = [self.send, self.receive]

    def begin(self) -> None:
        """Stays root."""

    def send(self) -> None:
        self._look()
        with open(self._path, "rb") as file:
            data = file.read(READ_BYTES)
        assert not data.translate(None, LETTERS), "foreign bytes came out"
        assert len(data) < READ_BYTES, "bytes without end"

    def receive(self) -> None:
        self._look()
        with open(self._path, "r+b") as file:
            if file.read(1).translate(None, LETTERS):  # it would be written over, and more so in SYSTEM_FILE
                raise AssertionError("would write outside")

    def _look(self) -> None:
        if os.path.realpath(self._path) != self._path or not os.path.isfile(self._path):
            raise Refused("a link, or no file")


class OnHost:
    """The server's side: here the folder is WORKDIR_IN and WORKDIR_OUT, and another program of the same user swaps."""

    def __init__(self, place: Arena, pattern: str) -> None:
        self._root = os.open(place.session, os.O_DIRECTORY | os.O_RDONLY)
        self._folder, self._file = pattern, asked(pattern)
        self.kinds: list[Callable[[], None]] = [self.in_file, self.out_file, self.in_folder, self.out_folder]

    def begin(self) -> None:
        """Becomes the user, with a /proc/self of its own, as a server has it."""
        identity.become(SESSION_UID)
        identity.make_dumpable()

    def in_file(self) -> None:
        self._send(self._file)

    def in_folder(self) -> None:
        self._send(self._folder)

    def _send(self, path: str) -> None:
        with open_to_send(self._root, path) as sending:
            if os.fstat(sending.descriptor).st_size > MAX_BYTES:
                raise FileError("sparse: it would only take time")
            stream = b"".join(sending.tar(0))
        with tarfile.open(fileobj=io.BytesIO(stream)) as archive:
            for member in archive:
                assert member.isfile() or member.isdir(), f"went in: {member}"
                file = archive.extractfile(member)
                assert not file or not file.read().translate(None, LETTERS), f"foreign bytes went in: {member}"

    def out_file(self) -> None:
        self._receive({"item": b"new"}, self._file)

    def out_folder(self) -> None:
        self._receive({"item": None, "item/d": None, "item/d/x": b"new", "item/x": b"new"}, self._folder)

    def _receive(self, tree: dict[str, bytes | None], path: str) -> None:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for name, content in tree.items():
                info = tarfile.TarInfo(name)
                info.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
                info.size, info.mode = len(content or b""), 0o644
                archive.addfile(info, io.BytesIO(content or b""))
        contents = [content for content in tree.values() if content is not None]
        chunks = iter([stream.getvalue()])
        receive(chunks, self._root, path, name="x", files=len(contents), size=sum(map(len, contents)))
