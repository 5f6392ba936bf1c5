"""What earlier servers with the same settings have left: found, and gone on with."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress

import anyio

from kernel_server.errors import EngineError, KernelError, KernelServerError
from kernel_server.hosts.base import Death, KeptHost, KernelHost, KernelHosts, SessionRecord
from kernel_server.sessions.fleet import Fleet

logger = logging.getLogger(__name__)

GoOn = Callable[[KernelHost, SessionRecord, "Death | int"], None]
"""Takes a session that is there, and what became of its kernel: how it ended, or its process id."""
GiveUp = Callable[[str, str], None]
"""Takes the id of a session that is lost, and why, as a sentence."""


UNREADABLE = "its record is of another version of kernel-server, or damaged."


class Takeover:
    """Brings the hosts of earlier servers into the fleet.

    Attributes:
        complete: set when what there was at the start has been looked through.
    """

    def __init__(self, hosts: KernelHosts, fleet: Fleet, go_on: GoOn, give_up: GiveUp) -> None:
        self.complete = anyio.Event()
        self._hosts = hosts
        self._fleet = fleet
        self._go_on = go_on
        self._give_up = give_up
        self._one_at_a_time = anyio.Lock()
        self._closed = False

    async def run(self) -> None:
        """Goes on with all that has been left by now."""
        try:
            async with self._one_at_a_time, anyio.create_task_group() as tasks:
                for kept in self._hosts.kept():
                    tasks.start_soon(self._try_to_take_over, kept)
        except OSError as error:
            logger.warning("what earlier servers have left cannot be seen: %s", error)
        finally:
            self.complete.set()

    async def look_for(self, session_id: str) -> None:
        """The same where a session of that id is somewhere: its server may have ended since this one has begun."""
        if self._hosts.whereabouts(session_id):
            await self.run()

    def close(self) -> None:
        """The server ends: what is on its way is left to the next one."""
        self._closed = True

    async def _try_to_take_over(self, kept: KeptHost) -> None:
        try:
            await self._take_over(kept)
        except Exception:  # what another version has left must not end this server
            logger.exception("%s could not be taken over", kept.name)
            for record in kept.sessions:
                self._give_up(record.session_id, UNREADABLE)

    async def _take_over(self, kept: KeptHost) -> None:
        try:
            host = await self._fleet.take_over(kept)
            kernels = await host.kernels()
        except KernelServerError as error:
            logger.warning("%s could not be taken over: %s", kept.name, error)
            for record in kept.sessions:
                if not self._hosts.whereabouts(record.session_id):  # nor has another server been faster
                    self._give_up(record.session_id, str(error))
            return
        if self._closed:
            return
        host.own()
        self._fleet.enter(host)  # until all of its sessions have
        for record in kept.sessions:
            if record.session_id not in kernels:
                self._give_up(record.session_id, "it is not in its container any more.")
            elif self._resume(host, record, kernels[record.session_id]):
                del kernels[record.session_id]
        try:
            await host.hold(sessions=bool(kept.sessions))
        except (KernelError, EngineError) as error:
            logger.info("%s will not wait for a later server: %s", kept.name, error)
        self._fleet.open(host)
        for session_id in kernels:  # spare ones, or not quite begun, or about to be cleared already
            if self._hosts.whereabouts(session_id):  # there is a record of it
                logger.warning("session %s cannot be resumed: its record cannot be read", session_id)
                self._give_up(session_id, UNREADABLE)
            with suppress(KernelError, EngineError):
                await host.clear(session_id)
        self._fleet.leave(host)

    def _resume(self, host: KernelHost, record: SessionRecord, found: Death | int) -> bool:
        """Whether the session goes on here."""
        try:
            self._go_on(host, record, found)
        except Exception as error:  # whatever it is that another version wrote
            logger.warning("session %s cannot be resumed from its record: %r", record.session_id, error)
            return False
        self._fleet.enter(host)
        return True
