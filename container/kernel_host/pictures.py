"""What a cell shows as pictures: those too large for a result get a preview, and are saved in the workspace.

Runs in the session's own process: whatever a picture is made of, the server need not decode it. The message keeps
the original for the notebook; `metadata["kernel_server"]` has the preview, and says where the original is.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from . import previews, static
from .previews import Picture

# As on the server, which has the last word: what clients take in one result.
MAX_CELL_BASE64 = 700_000
LEAST_BASE64 = 4_000  # of a preview, while there is room at all; ten pictures of noise fit
MAX_ORIGINAL_BASE64 = 24 << 20  # in a message; the server would drop what is larger
MAX_CELLS = 8  # whose pictures are counted; threads go on showing after their cell
METADATA_KEY = "kernel_server"
FOLDER = "images"


@dataclass
class CellPictures:
    """The pictures of one cell so far, numbered from 1.

    Attributes:
        used: characters of base64 that each of them takes in the result.
        saved: where their originals are; a later state of the same picture may overwrite them.
    """

    execution_count: int
    count: int = 0
    used: dict[int, int] = field(default_factory=dict)
    saved: dict[int, str] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)

    def number(self, display_id: str, update: bool) -> int:
        """The number of a picture: that of the one which is replaced, or a new one."""
        if update and display_id in self.numbers:
            return self.numbers[display_id]
        self.count += 1
        if display_id:
            self.numbers[display_id] = self.count
        return self.count

    def room(self, number: int) -> int:
        """Characters that nothing but picture `number` uses so far."""
        return MAX_CELL_BASE64 - sum(self.used.values()) + self.used.get(number, 0)

    def clear(self) -> None:
        """The outputs are cleared: their room is free again."""
        self.count = 0
        self.used.clear()
        self.numbers.clear()


class Pictures:
    """Prepares what a session shows.

    Attributes:
        workspace: where they are saved.
        written: originals that were saved since somebody emptied it; their results name them.
    """

    def __init__(self, workspace: str) -> None:
        self.written: set[str] = set()
        self.workspace = workspace
        self._cells: dict[str, CellPictures] = {}
        self._execution_count = 0

    def begin(self, msg_id: str, execution_count: int) -> None:
        """A cell begins."""
        self._execution_count = execution_count
        self._cells[msg_id] = CellPictures(execution_count)
        while len(self._cells) > MAX_CELLS:
            del self._cells[next(iter(self._cells))]

    def clear(self, msg_id: str) -> None:
        """The outputs of a cell are cleared."""
        self._cell(msg_id).clear()

    def prepare(
        self, data: Any, metadata: Any, msg_id: str, display_id: str = "", *, update: bool = False
    ) -> tuple[Any, Any]:
        """The MIME bundle and its metadata as they are to be sent; as they are, if anything goes wrong."""
        try:
            data = static.with_picture(data)
            picture = previews.picture_of(data)
            if picture is None:
                return data, metadata
            cell = self._cell(msg_id)
            return self._prepare(picture, data, metadata or {}, cell, cell.number(display_id, update))
        except Exception:  # what is shown matters more than how; a session's picture may be anything
            return data, metadata

    def _cell(self, msg_id: str) -> CellPictures:
        if msg_id not in self._cells:
            self.begin(msg_id, self._execution_count)
        return self._cells[msg_id]

    def _prepare(
        self, picture: Picture, data: dict[str, Any], metadata: dict[str, Any], cell: CellPictures, number: int
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        room = cell.room(number)
        if picture.sendable and picture.base64_size <= room // 2:
            cell.used[number] = picture.base64_size
            return data, metadata
        # A third of the room: those that follow need some, too.
        preview = previews.smaller(picture, min(room, max(room // 3, LEAST_BASE64)))
        cell.used[number] = preview.base64_size if preview else 0
        original = self._save(picture, cell, number)
        if preview and original and picture.base64_size > MAX_ORIGINAL_BASE64:
            data = {key: value for key, value in data.items() if key not in previews.EXTENSIONS}
            data[preview.mime_type] = preview.base64
        note = {
            "preview": {"mime_type": preview.mime_type, "data": preview.base64} if preview else None,
            "original": original,
            "width": picture.width,
            "height": picture.height,
        }
        return data, {**metadata, METADATA_KEY: note}

    def _save(self, picture: Picture, cell: CellPictures, number: int) -> str:
        """Writes the original; returns its path in the workspace, "" if it could not be written."""
        stem = f"{FOLDER}/cell-{cell.execution_count}-{number}"
        extension = previews.EXTENSIONS[picture.mime_type]
        try:
            os.makedirs(f"{self.workspace}/{FOLDER}", exist_ok=True)
            earlier = cell.saved.get(number, "")
            if earlier.endswith(extension):
                name, mode = earlier, "wb"
            else:
                name, mode = self._free_name(stem, extension), "xb"
            self._write(name, mode, picture.encoded)
        except OSError:
            return ""
        cell.saved[number] = name
        self.written.add(name)
        return name

    def _free_name(self, stem: str, extension: str) -> str:
        name, suffix = f"{stem}.{extension}", 2
        while os.path.lexists(f"{self.workspace}/{name}"):
            name, suffix = f"{stem}_{suffix}.{extension}", suffix + 1
        return name

    def _write(self, name: str, mode: str, content: bytes) -> None:
        path = f"{self.workspace}/{name}"
        try:
            with open(path, mode) as file:
                file.write(content)
        except OSError:
            with suppress(OSError):
                os.unlink(path)  # half a picture is none
            raise
