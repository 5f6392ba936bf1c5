"""Somebody who works in one session after another while servers are killed, and knows what must be left of each cell."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

from benchmarks.kills_cells import (
    EVIDENCE,
    TAG,
    Cell,
    judge,
    judge_record,
    make,
    number_of,
    reading,
    state_of,
)
from benchmarks.kills_servers import Gone, Place, Servers, until_answered
from benchmarks.soak_user import Wrong, has, same
from kernel_server.text import counted
from kernel_server.transcripts.folder import JournalFolder
from tests.driving import Reply

NOTHING = "Nothing is running in session"
TOLD_AGAIN = "you may have had this result before"
RESET = "was closed by reset"
HASTE_SECONDS = 4.0  # an idle session may be gone so long before the client's own clock says that its time is over
WAIT_SHARE = 0.7  # of the cells in flight at a kill that somebody waits for; otherwise the next cell comes at once
EXPORTED_SHARE = 0.25
CLOSED = (
    "is closed",
    "was closed by close_session",
    "this server never made it",
    "it is not in its container any more",
)


class Lost(Exception):
    """The session is gone, and the server has said why."""


class User:
    """A session, and a plain model of it.

    Attributes:
        begun: when `init` returned (monotonic seconds).
        used: when it was last known to be there.
        cells: all that were sent.
        noted: numbers of cells that are known to have finished, in order.
        in_flight: how many calls were in flight at a kill.
    """

    def __init__(self, servers: Servers, name: str, rng: random.Random, folder: Path, ttl: float) -> None:
        self.name = name
        self.session_id = ""
        self.used = 0.0
        self.cells: dict[int, Cell] = {}
        self.noted: list[int] = []
        self.in_flight = 0
        self._servers = servers
        self._place = Place(servers)
        self._random = rng
        self._folder = folder
        self._ttl = ttl
        self._generation = 1
        self._present: list[int] = []  # those that have finished in the present kernel
        self._open: list[Cell] = []  # those of which it is not known whether they have run, in order
        self._is_begun = False

    # -- a session's life ------------------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Gets a session; one that was in flight at a kill is left to expire."""
        reply, _ = await until_answered(self._init)
        while reply.is_error and RESET in reply.text:  # of somebody else, just now
            reply, _ = await until_answered(self._init)
        if reply.is_error or reply.raw.meta is None:
            raise Wrong(f"init: {reply.text}")
        self.session_id = reply.raw.meta["kernel_server/session"]["session_id"]
        self.used = time.monotonic()

    async def _init(self) -> Reply:
        return await self._servers.call(await self._servers.any(), "init")

    async def step(self, kind: str) -> None:
        """Does something in the session.

        Raises:
            Lost: it is gone.
            Wrong: something is not as it must be.
        """
        if not self._is_begun:
            kind = "begin"
        elif kind == "death" and self._open:
            kind = "prints"
        match kind:
            case "files":
                await self._files()
            case "look":
                await self._look()
            case "one-shot":
                await self._one_shot()
            case _:
                await self._run(make(kind, self._next, self._random))

    @property
    def _next(self) -> int:
        return len(self.cells) + 1

    async def leave(self, journals: JournalFolder) -> None:
        """Looks whether all is there, ends the session, and looks again."""
        while True:
            await self.step("prints")
            await self._settle()
            if self._is_begun and not self._open:
                break
        evidence = await self._read_evidence()
        same("the cells that have finished, by their file", evidence, self.noted)
        self.verify(journals)
        count = len(list(journals.journal(self.session_id).cells()))
        if self._random.random() < EXPORTED_SHARE:
            reply = await self._again("export_notebook", local_path=f"{self.name}.ipynb")
            has("export_notebook", reply.text, f"Wrote a notebook of {counted(count, 'cell')} ")
        await self._close()
        self.verify(journals)

    async def _close(self) -> None:
        reply, killed = await until_answered(lambda: self._place.call("close_session", session_id=self.session_id))
        self.in_flight += killed
        if not any(words in reply.text for words in CLOSED[: 4 if killed else 1]):
            if "Call init" in reply.text:  # a reset, which its caller explains
                raise Lost(f"close_session: {reply.text}")
            raise Wrong(f"close_session after {killed} kills: {reply.text}")

    async def _read_evidence(self) -> list[int]:
        name = f"{self.name}.txt"
        await self._again("cp_out", container_path=EVIDENCE, local_path=name)
        return [int(line) for line in (self._folder / "out" / name).read_text().splitlines()]

    # -- calls -----------------------------------------------------------------------------------------------------

    async def _again(self, tool: str, **arguments: Any) -> Reply:
        """A call that may be made again after a kill."""
        reply, killed = await until_answered(lambda: self._place.call(tool, session_id=self.session_id, **arguments))
        self.in_flight += killed
        return self._checked(tool, reply)

    def _checked(self, tool: str, reply: Reply) -> Reply:
        if reply.is_error:
            if "Call init" in reply.text:
                raise Lost(f"{tool}: {reply.text}")
            raise Wrong(f"{tool}: {reply.text}")
        self.used = time.monotonic()
        return reply

    async def _run(self, cell: Cell) -> None:
        """Runs a cell to its end; where a kill comes between, it is found out later what became of it."""
        cell.generation = self._generation
        self.cells[cell.number] = cell
        self._open.append(cell)
        wait = 0.3 if cell.kind == "long" and self._random.random() < 0.5 else 30
        try:
            reply = await self._place.call("run_code", code=cell.code, session_id=self.session_id, wait=wait)
            while self._take(reply, cell):
                reply = await self._place.call("wait", session_id=self.session_id, wait=5)
        except Gone:
            self.in_flight += 1
            if cell.kind in ("begin", "death") or self._random.random() < WAIT_SHARE:
                await self._settle()

    async def _settle(self) -> None:
        """Waits for what is running, and for results that nobody has had."""
        while True:
            reply, killed = await until_answered(lambda: self._place.call("wait", session_id=self.session_id, wait=5))
            self.in_flight += killed
            if reply.is_error and NOTHING in reply.text:
                break
            self._take(reply)
        # What was in flight has not run: the last cell that a kernel was given is always told. Only of a death it is
        # not known.
        self._open = [cell for cell in self._open if cell.ending == "died"]

    def _take(self, reply: Reply, wanted: Cell | None = None) -> bool:
        """Looks at a result; whether there is more to wait for."""
        self._checked("run_code", reply)
        same("session_id", reply.result["session_id"], self.session_id)
        if reply.status == "running":
            return True
        cell = self._cell_of(reply)
        if cell.told and TOLD_AGAIN not in reply.text:
            raise Wrong(f"{cell.kind} {cell.number} is told twice: {reply.text[:300]!r}")
        self._find_generation(cell, int(reply.result["generation"]))
        judge(cell, reply)
        if not cell.homeless and (reply.status != "died" or number_of(reply.text)):
            self._learn(cell, *state_of(reply.text))
        elif cell in self._open:
            self._open.remove(cell)
            self.noted += [cell.number] if reply.status == "died" else []
        cell.told = reply.text
        if reply.status == "died" and cell.generation == self._generation:
            has("a death", reply.text, f"(generation {self._generation + 1})")
            self._die()
        return wanted is not None and cell is not wanted

    def _cell_of(self, reply: Reply) -> Cell:
        number = number_of(reply.text)
        if number is None and reply.status == "died":  # what it had printed was lost with its process
            number = next((cell.number for cell in self._open if cell.ending == "died"), None)
        if number is None and self._open:  # a NameError comes before the first line
            number = self._open[-1].number
        cell = self.cells.get(number or 0)
        if cell is None:
            raise Wrong(f"a result of no cell: {reply.text[:300]!r}")
        return cell

    def _find_generation(self, cell: Cell, generation: int) -> None:
        if generation == cell.generation + 1 and any(before.ending == "died" for before in self._open):
            cell.generation, cell.homeless = generation, cell.kind != "begin"
            self._die()
        same(f"generation of {cell.kind} {cell.number}", generation, cell.generation)

    def _die(self) -> None:
        """The present kernel is gone."""
        self._generation += 1
        self._present = []
        self._is_begun = False
        deaths = [place for place, cell in enumerate(self._open) if cell.ending == "died"]
        if deaths:
            death = self._open[deaths[0]]
            if death.number not in self.noted:
                self.noted.append(death.number)
            self._open = self._open[deaths[0] + 1 :]

    def _learn(self, cell: Cell, found: list[int], total: int) -> None:
        """What a cell has found in its kernel tells which of those before it have run."""
        if cell.kind == "begin" and cell in self._open:
            self._is_begun = True
        if cell.generation < self._generation:
            return  # of a kernel that is gone
        before = self._present[: self._present.index(cell.number)] if cell.number in self._present else self._present
        unknown = [other.number for other in self._open[: self._open.index(cell)]] if cell in self._open else []
        ran = [number for number in unknown if number in found]
        same(f"what {cell.kind} {cell.number} finds", (found, total), ([*before, *ran], sum(found)))
        if cell in self._open:
            self._present = [*found, cell.number]
            self.noted += [*ran, cell.number]
            self._open = self._open[self._open.index(cell) + 1 :]

    # -- what one does ---------------------------------------------------------------------------------------------

    async def _files(self) -> None:
        number = self._next
        name, data = f"{self.name}-{number}.bin", self._random.randbytes(self._random.randint(1, 200_000))
        (self._folder / "in" / name).write_bytes(data)
        await self._again("cp_in", local_path=name, container_path="data.bin")
        await self._run(reading(number, "data.bin", data))
        await self._again("cp_out", container_path="data.bin", local_path=name)
        same("what came out", (self._folder / "out" / name).read_bytes(), data)
        for folder in ("in", "out"):
            (self._folder / folder / name).unlink()

    async def _look(self) -> None:
        """At the variables from outside, when it is known what they must be."""
        if not self._open:
            peeked = await self._again("list_variables", peek="total, done")
            same("a peek", peeked.cell_text, repr((sum(self._present), self._present)))

    async def _one_shot(self) -> None:
        number = self._random.randint(0, 1_000_000)

        async def call() -> Reply:
            return await self._servers.call(await self._servers.any(), "run_code", code=f"print({number})")

        reply, _ = await until_answered(call)
        same("output of a one-shot call", reply.text, str(number))

    # -- the journal -----------------------------------------------------------------------------------------------

    def verify(self, journals: JournalFolder) -> None:
        """Raises Wrong unless the journal has each finished cell once, in order, as it was told."""
        records = list(journals.journal(self.session_id).cells())
        numbers = [self._number_of(record) for record in records]
        same("the journal's cells", numbers, sorted(set(numbers)))
        needed = {number for number in self.noted if self.cells[number].ending != "died"}
        needed |= {cell.number for cell in self.cells.values() if cell.told}
        if missing := needed - set(numbers):
            raise Wrong(f"the journal has not {sorted(missing)} of {sorted(needed)}")
        same("message ids in the journal", len({record["msg_id"] for record in records}), len(records))
        for number, record in zip(numbers, records, strict=True):
            self._verify_record(self.cells[number], record)
        self._verify_losses(records)

    def _number_of(self, record: dict[str, Any]) -> int:
        found = TAG.search(record["source"])
        if found is None or int(found[1]) not in self.cells:
            raise Wrong(f"the journal has a cell of nobody: {record['source']!r:.200}")
        return int(found[1])

    def _verify_record(self, cell: Cell, record: dict[str, Any]) -> None:
        if cell.number not in self.noted and not cell.told and cell.ending != "died":
            # Nobody knows of it: it came to a fresh kernel, or its session was lost before anybody could ask.
            if cell in self._open:
                return
            same(f"status of {cell.kind} {cell.number}, of which nobody knows", record["status"], "error")
            cell.homeless, cell.generation = True, int(record["generation"])
        judge_record(cell, record)

    def _verify_losses(self, records: list[dict[str, Any]]) -> None:
        """Of each kernel's end, somebody must have been told."""
        notes = " ".join(note for record in records for note in record["notes"])
        for generation in {record["generation"] for record in records}:
            if generation > 1:
                has("the journal's notes", notes, f"(generation {generation})")

    # -- whether it may be gone ------------------------------------------------------------------------------------

    def explains(self, lost: Lost, reset_until: float) -> str:
        """Why the session may be gone; "" if it may not.

        Args:
            reset_until: up to when a reset may have been going on.
        """
        if reset_until >= self.used:
            return "reset"
        if time.monotonic() - self.used > self._ttl - HASTE_SECONDS:
            return "expired"
        return ""
