"""Many sessions: started at once, working at once, and what each of them costs."""

from __future__ import annotations

import asyncio
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import Comparison, compare, in_turn
from benchmarks.spine import IMPORTS, PYTHON, Server, bare_client, connected, stock_kernel, stop_stock_kernels

INITS = 32
LOOPS = 8
LOOP_SECONDS = 5.0
ONE_SHOT_PAUSE_SECONDS = 0.6  # until a spare session stands ready again: calls of an agent are further apart


async def server_start(server: Server) -> list[Comparison]:
    """From the start of a server to its first answer and to its first result, against a container of its image."""
    initialized: list[float] = []

    async def ours() -> None:
        begun = time.perf_counter()
        async with connected() as client:
            initialized.append(time.perf_counter() - begun)
            await client.call("run_code", code="1+1")

    async def docker_run() -> None:
        command = ["docker", "run", "--rm", "--network", "none", server.container.image.id]
        process = await asyncio.create_subprocess_exec(
            *command, PYTHON, "-c", f"{IMPORTS}; print(1+1)", stdout=asyncio.subprocess.DEVNULL
        )
        await process.wait()

    first, theirs = (seconds * 1e3 for seconds in await in_turn(7, ours, docker_run))
    answered = statistics.median(initialized) * 1e3
    return [
        compare("server start to its first answer / docker run", answered, theirs, "ms", limit=900),
        compare("server start to its first result / docker run", first, theirs, "ms", limit=2500),
    ]


async def one_shot(server: Server) -> list[Comparison]:
    """A call without a session, against a new interpreter by `docker exec`."""

    async def ours() -> None:
        await server.call("run_code", code="1+1")

    async def docker_exec() -> None:
        command = ["docker", "exec", server.container.id, PYTHON, "-c", "print(1+1)"]
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
        await process.wait()

    async def pause() -> None:
        await asyncio.sleep(ONE_SHOT_PAUSE_SECONDS)

    mine, _, theirs, _ = await in_turn(20, ours, pause, docker_exec, pause)
    return [compare("one-shot 1+1 / docker exec python -c", mine * 1e3, theirs * 1e3, "ms", faster=5)]


async def many_inits(server: Server) -> list[Comparison]:
    """All ready, each having answered a first cell, against one fresh ipykernel."""

    async def ready() -> str:
        session_id = await server.init()
        await server.call("run_code", code="1+1", session_id=session_id)
        return session_id

    start = time.perf_counter()
    sessions = await asyncio.gather(*(ready() for _ in range(INITS)))
    ours = time.perf_counter() - start
    for session_id in sessions:
        await server.call("close_session", session_id=session_id)
    start = time.perf_counter()
    await stock_kernel(server, "many")
    theirs = time.perf_counter() - start
    await stop_stock_kernels(server)
    what = f"{INITS} sessions at once, all ready / one fresh ipykernel"
    return [compare(what, ours * 1e3, theirs * 1e3, "ms", at_most=3)]


async def many_loops(server: Server) -> list[Comparison]:
    """Calls a second of sessions that run 1+1 in loops at the same time, against bare clients on the same kernels."""
    sessions = [await server.init() for _ in range(LOOPS)]
    clients = [await bare_client(server, session_id) for session_id in sessions]

    async def through_mcp(number: int) -> None:
        await server.call("run_code", code="1+1", session_id=sessions[number])

    async def bare(number: int) -> None:
        await clients[number].execute_interactive("1+1", output_hook=lambda _: None, timeout=10)

    rounds = [(await _calls_a_second(through_mcp), await _calls_a_second(bare)) for _ in range(3)]
    ours, theirs = (sorted(values)[1] for values in zip(*rounds, strict=True))
    for client in clients:
        client.stop_channels()
    for session_id in sessions:
        await server.call("close_session", session_id=session_id)
    what = f"{LOOPS} sessions at once: calls a second / bare jupyter_client"
    return [compare(what, ours, theirs, "calls/s", at_least=0.8)]


async def _calls_a_second(action: Any) -> float:
    end = time.perf_counter() + LOOP_SECONDS

    async def loop(number: int) -> int:
        done = 0
        while time.perf_counter() < end:
            await action(number)
            done += 1
        return done

    return sum(await asyncio.gather(*(loop(number) for number in range(LOOPS)))) / LOOP_SECONDS


async def private_memory(server: Server) -> list[Comparison]:
    """Memory that an idle session has for itself alone, with the data stack imported, against a stock kernel's."""
    session_id = await server.init()
    said = await server.call("run_code", code=f"{IMPORTS}\nimport os; os.getpid()", session_id=session_id)
    await stock_kernel(server, "private", IMPORTS)
    ours, theirs = await asyncio.to_thread(_private_bytes, server, said.content[0].text)
    await stop_stock_kernels(server)
    await server.call("close_session", session_id=session_id)
    return [compare("private memory of an idle session / fresh ipykernel", ours / 1e6, theirs / 1e6, "MB", at_most=0.2)]


def _private_bytes(server: Server, pid_inside: str) -> tuple[float, float]:
    """Of our kernel and of the stock one: proc(5), smaps_rollup, as the host sees them."""
    ours, theirs = 0, 0
    for pid, command in server.container.top(ps_args="-o pid,args")["Processes"]:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
        private = sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Private_"))
        if "ipykernel_launcher" in command:
            theirs = max(theirs, private)
        elif f"\t{pid_inside}\n" in Path(f"/proc/{pid}/status").read_text(encoding="ascii").partition("NSpid:")[2][:40]:
            ours = private
    return ours, theirs
