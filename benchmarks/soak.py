"""`make soak`: many sessions at once that come and go for a quarter of an hour; every reply is checked, nothing may grow."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

from benchmarks.soak_report import Record, print_report, verdicts
from benchmarks.soak_samples import Observer, Sample
from benchmarks.soak_user import STEPS, TTL_SECONDS, User
from tests.clients.wire import ROOT, server_environment
from tests.driving import Reply, eventually

LOG = ROOT / "build" / "log" / "soak.log"  # the server's stderr
CALL_SECONDS = 120.0
WARM_UP_SECONDS = 60.0
SAMPLE_SECONDS = 10.0
THINK_SECONDS = 3.0  # at most, between two steps; with the longest pause after it, still well below the TTL
STEPS_OF_A_SESSION = (10, 50)
CLOSED_SHARE = 0.15  # of the sessions; all others are left to expire
EXPORTED_SHARE = 0.25
GONE_SECONDS = 10.0  # after a session's end its folder and processes must be gone
REST_SECONDS = 60.0
REST_CHECK_SECONDS = 2.0
END_SECONDS = 20.0
MAX_ERRORS = 25  # then there is no point in going on


class Soak:
    """Users who take one session after another, and an observer."""

    def __init__(
        self, client: Client, observer: Observer, folders: tuple[Path, Path], sessions: int, seed: str
    ) -> None:
        self.record = Record()
        self._client = client
        self._observer = observer
        self._folders = folders
        self._sessions = sessions
        self._seed = seed
        self._until = 0.0
        self._alone = 0
        self._ended: dict[str, float] = {}  # session ids, and when they ended
        self._tasks: TaskGroup | None = None

    # -- users -----------------------------------------------------------------------------------------------------

    async def run(self, seconds: float) -> None:
        """Keeps all places taken for so long, and returns when every session has ended."""
        self._until = time.monotonic() + seconds
        async with anyio.create_task_group() as self._tasks:
            for _ in range(self._sessions):
                self._tasks.start_soon(self._take_a_place)

    async def _take_a_place(self) -> None:
        while time.monotonic() < self._until and len(self.record.errors) < MAX_ERRORS:
            self.record.begun += 1
            user = User(self._call, f"user{self.record.begun}", self._seed, *self._folders)
            if not await self._noted("init", user, user.begin):
                await anyio.sleep(THINK_SECONDS)
            elif await self._work(user):
                await self._leave(user)

    async def _work(self, user: User) -> bool:
        kinds, weights = list(STEPS), [weight for _, weight in STEPS.values()]
        for _ in range(user.random.randint(*STEPS_OF_A_SESSION)):
            if time.monotonic() > self._until:
                break
            await anyio.sleep(user.random.uniform(0, THINK_SECONDS))
            kind = user.random.choices(kinds, weights)[0]
            done = await self._noted(kind, user, partial(STEPS[kind][0], user))
            if not (done and await self._noted("check", user, user.check)):
                return False
        return True

    async def _leave(self, user: User) -> None:
        """Most sessions are left alone; somebody watches whether they expire, while the place is taken again."""
        assert self._tasks is not None
        if user.random.random() < CLOSED_SHARE or self._alone >= self._sessions // 3:
            await self._end(user, "closed", user.close)
        else:
            self._alone += 1
            self._tasks.start_soon(self._expire, user)

    async def _expire(self, user: User) -> None:
        await self._end(user, "expired", lambda: user.expire(self._is_there))
        self._alone -= 1

    async def _end(self, user: User, how: str, ending: Callable[[], Awaitable[None]]) -> None:
        if await self._noted(how, user, ending):
            self.record.ended[how] += 1
            self._ended |= dict.fromkeys((user.session_id, *user.ended), time.monotonic())
            if user.random.random() < EXPORTED_SHARE:
                await self._noted("export_notebook", user, user.export)

    async def _is_there(self, session_id: str) -> bool:
        """Found out without using the session."""
        listed = await self._client.list_resources()
        return any(session_id in str(resource.uri) for resource in listed.resources)

    async def _noted(self, kind: str, user: User, action: Callable[[], Awaitable[None]]) -> bool:
        begun = time.monotonic()
        user.did.append(kind)
        try:
            await action()
        except Exception as error:  # whatever it is, it is counted and shown, and the soak goes on
            did = ", ".join(user.did[-5:])
            self._wrong(f"{user.name} ({user.session_id}) in {did}: {_explain(error)}")
            return False
        self.record.seconds[kind].append(time.monotonic() - begun)
        return True

    def _wrong(self, what: str) -> None:
        self.record.errors.append(what)
        print(f"ERROR {what}", file=sys.stderr)

    async def _call(self, tool: str, **arguments: Any) -> Reply:
        self.record.calls += 1
        with anyio.fail_after(CALL_SECONDS):
            return Reply(await self._client.call_tool(tool, arguments))

    # -- observer --------------------------------------------------------------------------------------------------

    async def look(self) -> Sample:
        """A sample of now."""
        return await anyio.to_thread.run_sync(self._observer.look, time.monotonic())

    async def observe(self, seconds: float) -> None:
        """Takes samples for so long."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and len(self.record.errors) < MAX_ERRORS:
            try:
                sample = await self.look()
            except Exception as error:  # such as no container any more; what there is by then is reported
                self._wrong(f"observer: {_explain(error)}")
            else:
                self._judge(sample, self.record.samples[-1:])
                self.record.samples.append(sample)
                print("  ".join(f"{name} {value:.5g}" for name, value in sample.figures.items()), file=sys.stderr)
            await anyio.sleep(SAMPLE_SECONDS)

    def _judge(self, sample: Sample, before: list[Sample]) -> None:
        strays = self.record.strays
        gone = {session_id for session_id, at in self._ended.items() if at < sample.at - GONE_SECONDS}
        strays["folders"] += sorted(sample.folders & gone)
        if before:  # one that is seen once may have been on its way
            strays["processes"] += [f"pid {pid} of uid {uid}" for pid, uid in sample.strays & before[0].strays]

    async def rest(self, wanted: Sample | None = None) -> Sample:
        """A sample of when everything has settled: twice the same, or as `wanted`."""
        latest = await self.look()
        with anyio.move_on_after(REST_SECONDS):
            before = wanted
            while before is None or before.differs(latest):
                before = wanted or latest
                await anyio.sleep(REST_CHECK_SECONDS)
                latest = await self.look()
        return latest


async def main(minutes: float, sessions: int, seed: str) -> int:
    """Soaks a server of its own and prints what came of it; returns the exit code."""
    try:
        record, before, after = await _soak(minutes, sessions, seed)
    except Exception as error:  # such as no container or no server any more; errors before that have been shown
        print(f"FAIL  the soak broke off: {_explain(error)}; the server's stderr is in {LOG}")
        return 1
    found = verdicts(record, before, after)
    print_report(record, before, after, found)
    return 0 if all(verdict.passed for verdict in found) else 1


async def _soak(minutes: float, sessions: int, seed: str) -> tuple[Record, Sample, Sample]:
    """What happened, and the server at rest after the warm-up and at the end."""
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        folders = folder / "in", folder / "out"
        for path in folders:
            path.mkdir()
        async with _client(folder, *folders, sessions) as client:
            observer = Observer(_only_child(), folder / "state")
            soak = Soak(client, observer, folders, sessions, seed)
            await soak.run(WARM_UP_SECONDS)
            before = await soak.rest()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(soak.run, minutes * 60)
                tasks.start_soon(soak.observe, minutes * 60)
            after = await soak.rest(before)
        soak.record.left = await _left(observer)
        observer.close()
    soak.record.said = LOG.read_text(errors="replace").strip()
    return soak.record, before, after


@asynccontextmanager
async def _client(folder: Path, folder_in: Path, folder_out: Path, sessions: int) -> AsyncIterator[Client]:
    """A client as users have it, of a server that it has started, with its container running."""
    settings = {"PY_EXEC_SESSION_TTL": f"{TTL_SECONDS:g}", "PY_EXEC_SESSION_MAX": str(sessions + sessions // 2)}
    parameters = StdioServerParameters(
        command=sys.executable,
        args=[str(ROOT / "server.py"), "--WORKDIR_IN", str(folder_in), "--WORKDIR_OUT", str(folder_out)],
        env=server_environment(folder, PY_EXEC_LOG_LEVEL="WARNING", **settings),
        cwd=folder,
    )
    LOG.parent.mkdir(parents=True, exist_ok=True)
    with LOG.open("w") as errlog:
        async with Client(stdio_client(parameters, errlog)) as client:
            await client.call_tool("run_code", {"code": "1+1"})
            yield client


def _only_child() -> int:
    """The server's process: proc(5), children."""
    return int(Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii"))


async def _left(observer: Observer) -> list[str]:
    """What is still there some time after the server's standard input was closed."""

    def left() -> list[str]:
        paths = [path for path in (Path(f"/proc/{observer.pid}"), observer.run_dir.parent) if path.exists()]
        return [*map(str, paths), *(container.name for container in observer.containers())]

    with suppress(TimeoutError):
        await eventually(lambda: not left(), END_SECONDS)
    return left()


def _explain(error: BaseException) -> str:
    inner = getattr(error, "exceptions", ())  # of a group
    return "; ".join(map(_explain, inner)) or f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=15.0, help="of the soak, after a minute of warm-up")
    parser.add_argument("--sessions", type=int, default=32, help="at a time; those that wait for their end come on top")
    parser.add_argument("--seed", default="soak", help="of what the sessions do")
    given = parser.parse_args()
    sys.exit(anyio.run(main, given.minutes, given.sessions, given.seed))
