"""`make kills`: servers are killed at random moments of a busy life; no finished cell may be lost, and nothing may be left."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread

from benchmarks.kills_report import Leftovers, Record, print_report, verdicts
from benchmarks.kills_servers import Gone, Server, Servers
from benchmarks.kills_user import Lost, User
from kernel_server.transcripts.folder import JournalFolder
from tests.clients.wire import ROOT, server_environment
from tests.driving import eventually

LOG = ROOT / "build" / "log" / "kills.log"  # the servers' stderr
BUGS = ("Traceback", "internal error", "Task exception", "never retrieved", "RuntimeWarning")
LEASE_SECONDS = 10.0  # how long a container without sessions goes on
SLACK_SECONDS = 10.0
SWEEP_SECONDS = 20.0
RESET_SECONDS = 5.0  # after a kill in the middle of it, the engine goes on removing
CALL_PATIENCE_SECONDS = 8.0
ERRORS_SHOWN = 25  # then there is no point in going on
# A moment is so many seconds after it has begun, at most: a start, the first answer, or a call of that tool.
STARTING, ANSWERING, LIVING = "start", "take-over", "life"
MOMENTS: dict[str, tuple[float, float]] = {  # and how often it is chosen beside the others
    STARTING: (1.2, 3),
    ANSWERING: (0.5, 3),
    LIVING: (4.0, 4),
    "run_code": (0.5, 4),
    "wait": (0.3, 1),
    "init": (1.0, 2),
    "close_session": (0.2, 2),
    "reset": (2.5, 2),
    "cp_in": (0.15, 1),
    "cp_out": (0.15, 1),
}
STEPS = {"prints": 6, "long": 3, "picture": 2, "error": 2, "death": 1, "files": 2, "look": 1, "one-shot": 0.5}
STEPS_OF_A_SESSION = (4, 25)
THINK_SECONDS = 0.5
PAUSE_SECONDS = 3.0  # at most, until the next server is started
AT_ONCE_SHARE = 0.5  # of the servers that are started without a pause
SECOND_SHARE = 0.25  # of the starts that are two


@dataclass(frozen=True)
class Plan:
    """What to do: so many kills, users, sessions in a container (0: all), seconds of TTL; `pace` shortens all pauses.

    When all kills are done, work goes on until at least `cells` have finished.
    """

    kills: int
    users: int = 4
    per_container: int = 0
    ttl: float = 25.0
    seed: str = "kills"
    pace: float = 1.0
    cells: int = 0


class Run:
    """Users, and somebody who kills their servers."""

    def __init__(self, plan: Plan, servers: Servers, folder: Path, leftovers: Leftovers) -> None:
        self.record = Record()
        self._plan = plan
        self._servers = servers
        self._folder = folder
        self._leftovers = leftovers
        self._journals = JournalFolder(folder / "state" / "journals")
        self._random = random.Random(plan.seed)  # noqa: S311 - to be repeated
        self._all_killed = False
        self._wish = ""  # a tool that somebody has to call now
        self._called = anyio.Event()
        self._reset_until = 0.0
        servers.on_call = self._on_call

    async def run(self) -> None:
        """All kills; returns when every session has ended."""
        begun = time.monotonic()
        await self._servers.start()
        async with anyio.create_task_group() as tasks:
            for number in range(self._plan.users):
                tasks.start_soon(self._use, number)
            await self._kill_all()
            self._all_killed = True
        self.record.seconds = time.monotonic() - begun

    @property
    def _over(self) -> bool:
        return self._all_killed and self.record.cells["finished"] >= self._plan.cells

    # -- kills -----------------------------------------------------------------------------------------------------

    async def _kill_all(self) -> None:
        moments, weights = list(MOMENTS), [weight for _, weight in MOMENTS.values()]
        while self.record.kills.total() < self._plan.kills and len(self.record.errors) < ERRORS_SHOWN:
            moment = self._random.choices(moments, weights)[0]
            await self._reach(moment)
            victims = self._servers.alive
            if len(victims) > 1 and self._random.random() < 0.5:
                victims = [self._random.choice(victims)]
            for victim in victims:
                self._kill(victim, moment)
            await anyio.to_thread.run_sync(self._leftovers.look, [server.pid for server in self._servers.all])
            await self._start()

    async def _reach(self, moment: str) -> None:
        """Returns when it is time."""
        newest = self._servers.alive[-1]
        seconds = self._random.uniform(0, MOMENTS[moment][0])
        if moment == STARTING:
            await anyio.sleep(max(0.0, newest.begun + seconds - time.monotonic()))
            return
        await eventually(lambda: newest.ready.is_set() or not newest.alive, 30)
        if moment == LIVING:
            seconds *= self._plan.pace
        elif moment != ANSWERING:
            self._wish, self._called = moment, anyio.Event()
            with anyio.move_on_after(CALL_PATIENCE_SECONDS):
                await self._called.wait()
            self._wish = ""
        await anyio.sleep(seconds)

    def _on_call(self, tool: str, _server: Server) -> None:
        if tool == self._wish:
            self._called.set()

    def _kill(self, victim: Server, moment: str) -> None:
        if not victim.alive:  # it has ended by itself
            self.record.errors.append(victim.wrong)
            return
        self.record.kills[moment] += 1
        with LOG.open("a") as log:
            log.write(f"{time.strftime('%H:%M:%S')} KILL of {victim.pid}: {moment}, in flight: {victim.in_flight}\n")
        self.record.caught.update(victim.in_flight or ["nothing"])
        victim.kill()

    async def _start(self) -> None:
        """The next server, or two of them, where none or one is left."""
        alive = len(self._servers.alive)
        if not alive and self._random.random() > AT_ONCE_SHARE:
            await anyio.sleep(self._random.uniform(0, PAUSE_SECONDS * self._plan.pace))
        wanted = 2 if self._random.random() < SECOND_SHARE else 1
        for _ in range(wanted - alive):
            await self._servers.start()

    # -- users -----------------------------------------------------------------------------------------------------

    async def _use(self, number: int) -> None:
        """One session after another."""
        count = 0
        while not self._over and len(self.record.errors) < ERRORS_SHOWN:
            count += 1
            name = f"user{number}-{count}"
            rng = random.Random(f"{self._plan.seed} {name}")  # noqa: S311
            user = User(self._servers, name, rng, self._folder, self._plan.ttl)
            try:
                self.record.ended[await self._live(user, rng)] += 1
            except Lost as lost:
                why = user.explains(lost, self._reset_until)
                self.record.ended[f"lost ({why})"] += 1
                if not why:
                    self._wrong(user, lost)
                self._verify(user)
            except Exception as error:  # whatever it is, it is counted and shown
                self._wrong(user, error)
                await anyio.sleep(1)
            self.record.cells["sent"] += len(user.cells)
            self.record.cells["finished"] += len(user.noted)
            self.record.cells["calls in flight at a kill"] += user.in_flight

    def _verify(self, user: User) -> None:
        try:
            user.verify(self._journals)
        except Exception as error:
            self._wrong(user, error)

    async def _live(self, user: User, rng: random.Random) -> str:
        await user.begin()
        kinds, weights = list(STEPS), list(STEPS.values())
        for _ in range(rng.randint(*STEPS_OF_A_SESSION)):
            if self._over or self._wish in ("init", "close_session"):
                break
            await anyio.sleep(rng.uniform(0, THINK_SECONDS) * self._plan.pace)
            if self._wish == "reset":
                await self._reset()
            kind = {"cp_in": "files", "cp_out": "files", "wait": "long"}.get(self._wish)
            await user.step(kind or rng.choices(kinds, weights)[0])
        await user.leave(self._journals)
        return "closed"

    async def _reset(self) -> None:
        self._wish_is_done()
        self._reset_until = float("inf")
        try:
            reply = await self._servers.call(await self._servers.any(), "reset")
            if reply.is_error:
                raise AssertionError(f"reset: {reply.text}")
        except Gone:
            pass
        finally:
            self._reset_until = time.monotonic() + RESET_SECONDS

    def _wish_is_done(self) -> None:
        self._wish = ""
        self._called.set()

    def _wrong(self, user: User, error: Exception) -> None:
        what = f"{user.name} ({user.session_id}): {type(error).__name__}: {error}"
        self.record.errors.append(what)
        print(f"ERROR {what}", file=sys.stderr)

    # -- afterwards ------------------------------------------------------------------------------------------------

    async def end(self) -> None:
        """Kills the last servers, waits for the grace time, has one more server sweep, and looks what is left."""
        for server in self._servers.alive:
            server.kill()
        begun = time.monotonic()
        pids = [server.pid for server in self._servers.all]
        with suppress(TimeoutError):
            await eventually(lambda: not self._leftovers.look(pids), self._plan.ttl + LEASE_SECONDS + SLACK_SECONDS)
        self.record.grace = time.monotonic() - begun
        # A younger run folder may belong to a server that is just starting.
        await anyio.sleep(max(0.0, begun + LEASE_SECONDS + 1 - time.monotonic()))
        last = await self._servers.start(PY_EXEC_ON_EXIT="remove", PY_EXEC_POOL="0")
        user = User(self._servers, "last", self._random, self._folder, self._plan.ttl)
        try:
            await user.begin()
            await user.leave(self._journals)  # copies a file out, too
        except Exception as error:
            self._wrong(user, error)
        await last.end()
        pids.append(last.pid)
        with suppress(TimeoutError):
            await eventually(lambda: not any(self._leftovers.left(pids).values()), SWEEP_SECONDS)
        self.record.left = self._leftovers.left(pids)
        self.record.errors += [server.wrong for server in self._servers.all if server.wrong]


@asynccontextmanager
async def _folders() -> AsyncIterator[tuple[Path, Path]]:
    """Of this run: for files and state, and for run folders, whose path must be short."""
    folder, run_folders = Path(tempfile.mkdtemp(prefix="kills-")), Path(tempfile.mkdtemp(prefix="kk", dir="/tmp"))
    try:
        for name in ("in", "out"):
            (folder / name).mkdir()
        yield folder, run_folders
    finally:
        for path in (folder, run_folders):
            shutil.rmtree(path, ignore_errors=True)


def _environment(plan: Plan, folder: Path, run_folders: Path) -> dict[str, str]:
    settings = {
        "WORKDIR_IN": str(folder / "in"),
        "WORKDIR_OUT": str(folder / "out"),
        "PY_EXEC_ON_EXIT": "keep",
        "PY_EXEC_PRELOAD": "none",
        "PY_EXEC_POOL": "1",
        "PY_EXEC_SESSION_MAX": "24",
        "PY_EXEC_SESSION_TTL": f"{plan.ttl:g}",
        "PY_EXEC_SESSIONS_PER_CONTAINER": str(plan.per_container),
        "PY_EXEC_LOG_LEVEL": "INFO",
        "XDG_RUNTIME_DIR": str(run_folders),
        "TMPDIR": str(run_folders),
    }
    engine = Path(os.environ.get("XDG_RUNTIME_DIR", "/nowhere")) / "docker.sock"
    if engine.exists() and "DOCKER_HOST" not in os.environ:
        settings["DOCKER_HOST"] = f"unix://{engine}"
    return server_environment(folder, **settings)


async def kills(plan: Plan) -> Record:
    """Carries out a plan."""
    LOG.parent.mkdir(parents=True, exist_ok=True)
    async with _folders() as (folder, run_folders):
        LOG.unlink(missing_ok=True)
        with LOG.open("ab") as log:
            async with anyio.create_task_group() as tasks:
                rng = random.Random(plan.seed)  # noqa: S311
                servers = Servers(tasks, folder, log, _environment(plan, folder, run_folders), rng)
                run = Run(plan, servers, folder, Leftovers(folder, run_folders))
                await run.run()
                await run.end()
                tasks.cancel_scope.cancel()
    lines = LOG.read_text(errors="replace").splitlines()
    run.record.said = [line for line in lines if any(sign in line for sign in BUGS)]
    return run.record


async def main(plan: Plan) -> int:
    """Carries out a plan and prints what came of it; returns the exit code."""
    record = await kills(plan)
    found = verdicts(record)
    print_report(record, found)
    return 0 if all(verdict.passed for verdict in found) else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--users", type=int, default=4, help="each has one session after another")
    parser.add_argument("--sessions-per-container", type=int, default=0, help="0 is all of them")
    parser.add_argument("--seed", default="kills", help="of what is done, and when; the machine has its own moods")
    given = parser.parse_args()
    sys.exit(anyio.run(main, Plan(given.kills, given.users, given.sessions_per_container, seed=given.seed)))
