"""The main job against what one would do without this server, on the same engine, container and kernel."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import docker
import zmq
import zmq.asyncio
from jupyter_client.asynchronous.client import AsyncKernelClient
from mcp import Client, StdioServerParameters

from benchmarks.measure import Comparison, compare, in_turn

ROOT = Path(__file__).resolve().parent.parent
PYTHON = "/opt/kernel_server/venv/bin/python"
FIRST_DATAFRAME = "import pandas as pd\npd.DataFrame({'a': range(3), 'b': range(3)})"
IMPORTS = "import numpy, pandas, matplotlib.pyplot"
FIRST_DATAFRAME_ROUNDS = 15
SESSIONS = 8
MEGABYTES = 100
SETTLE_SECONDS = 0.5  # until the engine has cleaned up after the last exec
RUN_DIR = "/run/kernel_server"
CHANNELS = ("shell", "iopub", "stdin", "control", "hb")
KILL_STOCK_KERNELS = """
import os, pathlib
for status in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
    if b"ipykernel_launcher" in status.read_bytes():
        os.kill(int(status.parent.name), 9)
"""

# Runs inside the container, and holds the stock kernels that it starts until its standard input ends.
STOCK_KERNELS = """
import os, subprocess, sys, tempfile
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.connect import write_connection_file
os.environ.update(HOME="/tmp", IPYTHONDIR="/tmp/ipython", MPLCONFIGDIR="/tmp/mpl")
def start(code):
    path, info = write_connection_file(fname=tempfile.mktemp(suffix=".json", dir="/tmp"))
    process = subprocess.Popen([sys.executable, "-m", "ipykernel_launcher", "-f", path],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    client = BlockingKernelClient(connection_file=path)
    client.load_connection_file()
    client.start_channels(hb=False)
    client.execute(code, reply=True, timeout=60)
    return process, client
"""
STOCK_HOLD = (
    STOCK_KERNELS + "held = [start({code!r}) for _ in range({count})]; print('held', flush=True); sys.stdin.read()"
)


class Server:
    """The real server behind a stdio client, and the container it runs."""

    def __init__(self, client: Client, container: Any, workdir: Path) -> None:
        self.client = client
        self.container = container
        self.workdir = workdir

    async def call(self, tool: str, **arguments: Any) -> Any:
        """Calls a tool; its result must not be an error."""
        result = await self.client.call_tool(tool, arguments)
        if result.is_error:
            raise RuntimeError(f"{tool}: {result.content}")
        return result

    async def init(self) -> str:
        """A new session's id."""
        result = await self.call("init")
        return str(result.meta["kernel_server/session"]["session_id"])

    @property
    def run_dir(self) -> Path:
        """The host's side of the folder with the sockets."""
        return Path(self.container.labels["kernel_server.run_dir"])

    @property
    def pid(self) -> int:
        """Of the server's process."""
        return int(self.container.labels["kernel_server.server_pid"])


@asynccontextmanager
async def connected(**settings: str) -> AsyncIterator[Server]:
    """A server that has answered, without a container yet."""
    with tempfile.TemporaryDirectory() as workdir:
        parameters = StdioServerParameters(
            command=sys.executable,
            args=["-m", "kernel_server", "serve", "--WORKDIR", workdir, "--PY_EXEC_LOG_LEVEL", "WARNING"],
            cwd=str(ROOT),
            env={**os.environ, "PY_EXEC_ON_EXIT": "remove", **settings},
        )
        async with Client(parameters) as client:
            yield Server(client, None, Path(workdir))


@asynccontextmanager
async def started_server(**settings: str) -> AsyncIterator[Server]:
    """A server with its container running."""
    engine = docker.from_env()
    before = {container.id for container in engine.containers.list()}
    async with connected(**settings) as server:
        await server.call("close_session", session_id=await server.init())
        found = engine.containers.list(filters={"label": "kernel_server.run_dir"})
        server.container = next(container for container in found if container.id not in before)
        yield server


async def bare_client(server: Server, session_id: str) -> AsyncKernelClient:
    """A client of jupyter_client for the kernel of a session."""
    code = "import json; _ = get_ipython().kernel; print(json.dumps([_.session.key.decode(), _.parent.ip]))"
    secret = await server.call("run_code", session_id=session_id, code=code)
    key, path = json.loads(secret.content[0].text.splitlines()[0])
    socket = server.run_dir / Path(path).relative_to(RUN_DIR)
    client = AsyncKernelClient()
    connection: dict[str, Any] = {f"{channel}_port": number for number, channel in enumerate(CHANNELS, 1)}
    connection.update(transport="ipc", ip=str(socket), key=key.encode())
    client.load_connection_info(cast("Any", connection))
    client.start_channels(hb=False)
    await client.wait_for_ready(timeout=10)
    return client


async def warm_cell(server: Server) -> list[Comparison]:
    """A trivial cell through MCP against the bare protocol on the same kernel, and against `docker exec`."""
    session_id = await server.init()
    client = await bare_client(server, session_id)

    async def through_mcp() -> None:
        await server.call("run_code", code="1+1", session_id=session_id)

    async def bare() -> None:
        await client.execute_interactive("1+1", output_hook=lambda _: None, timeout=10)

    async def docker_exec() -> None:
        command = ["docker", "exec", server.container.id, PYTHON, "-c", "print(1+1)"]
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
        await process.wait()

    for action in (through_mcp, bare, docker_exec):
        await in_turn(5, action)
    ours, theirs = await in_turn(300, through_mcp, bare)
    ours_again, by_exec = await in_turn(20, through_mcp, docker_exec)
    client.stop_channels()
    await server.call("close_session", session_id=session_id)
    return [
        compare("(a) warm 1+1: MCP stdio / bare jupyter_client", ours * 1e3, theirs * 1e3, "ms", at_most=1.7),
        compare("(b) warm 1+1: MCP stdio / docker exec python -c", ours_again * 1e3, by_exec * 1e3, "ms", faster=8),
    ]


async def first_dataframe(server: Server) -> list[Comparison]:
    """From asking for a session to having a DataFrame, against a fresh ipykernel in the same container."""

    async def ours(asked: Server) -> float:
        await asyncio.sleep(SETTLE_SECONDS)  # spare sessions are started meanwhile
        start = time.perf_counter()
        session_id = await asked.init()
        await asked.call("run_code", code=FIRST_DATAFRAME, session_id=session_id)
        seconds = time.perf_counter() - start
        await asked.call("close_session", session_id=session_id)
        return seconds

    async def stock(number: int) -> float:
        await asyncio.sleep(SETTLE_SECONDS)
        start = time.perf_counter()
        await stock_kernel(server, f"bench{number}")
        seconds = time.perf_counter() - start
        await stop_stock_kernels(server)
        return seconds

    async with started_server(PY_EXEC_POOL="0") as cold:
        measured = [
            (await ours(server), await ours(cold), await stock(number)) for number in range(FIRST_DATAFRAME_ROUNDS)
        ]
    warm, empty, theirs = (statistics.median(values) * 1e3 for values in zip(*measured, strict=True))
    what = "init + first DataFrame{} / fresh ipykernel_launcher"
    return [
        compare(what.format(""), warm, theirs, "ms", faster=25),
        compare(what.format(", no spare session"), empty, theirs, "ms", faster=10),
    ]


async def stop_stock_kernels(server: Server) -> None:
    """Ends those that `stock_kernel` started."""
    await asyncio.to_thread(server.container.exec_run, [PYTHON, "-c", KILL_STOCK_KERNELS])


async def stock_kernel(server: Server, name: str, code: str = FIRST_DATAFRAME) -> None:
    """Starts a stock kernel by `docker exec` and has it run a first cell, over sockets in the same run folder.

    Nothing is polled and no time lost: the request is sent at once and waits in the socket until the kernel is up.
    """
    key = os.urandom(16).hex()
    connection: dict[str, Any] = {f"{channel}_port": number for number, channel in enumerate(CHANNELS, 1)}
    connection.update(transport="ipc", key=key, signature_scheme="hmac-sha256", kernel_name="")
    inside = {**connection, "ip": f"{RUN_DIR}/{name}"}
    (server.run_dir / f"{name}.json").write_text(json.dumps(inside))
    context = zmq.asyncio.Context()
    context.setsockopt(zmq.RECONNECT_IVL, 1)  # milliseconds; the sockets appear some time after we connect
    client = AsyncKernelClient(context=context)
    client.load_connection_info(cast("Any", {**connection, "ip": str(server.run_dir / name), "key": key.encode()}))
    client.start_channels(hb=False, iopub=False, stdin=False, control=False)
    client.execute(code)
    command = ["env", "HOME=/tmp", "IPYTHONDIR=/tmp/ipython", PYTHON, "-m", "ipykernel_launcher"]
    await asyncio.to_thread(
        server.container.exec_run, [*command, "-f", f"{RUN_DIR}/{name}.json"], detach=True, user=str(os.getuid())
    )
    await client.get_shell_msg(timeout=60)
    client.stop_channels()
    context.destroy(linger=0)


async def memory(server: Server) -> list[Comparison]:
    """What one more session with the data stack imported costs, against a fresh ipykernel with the same imports."""
    sessions = [await server.init()]
    await server.call("run_code", code=IMPORTS, session_id=sessions[0])
    before = _anonymous_bytes(server)
    for _ in range(SESSIONS):
        sessions.append(await server.init())
        await server.call("run_code", code=IMPORTS, session_id=sessions[-1])
    ours = (_anonymous_bytes(server) - before) / SESSIONS

    before = _anonymous_bytes(server)
    code = STOCK_HOLD.format(code=IMPORTS, count=SESSIONS)
    command = ["docker", "exec", "-i", server.container.id, PYTHON, "-c", code]
    holder = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    await holder.stdout.readline()
    theirs = (_anonymous_bytes(server) - before) / SESSIONS
    holder.stdin.close()
    await holder.wait()
    await stop_stock_kernels(server)
    for session_id in sessions:
        await server.call("close_session", session_id=session_id)
    return [compare("(d) memory per extra session / fresh ipykernel", ours / 1e6, theirs / 1e6, "MB", at_most=0.4)]


def _anonymous_bytes(server: Server) -> int:
    """Anonymous memory of the container: shared pages count once (`rss` of cgroup v1, `anon` of v2)."""
    stats = server.container.stats(stream=False)["memory_stats"]["stats"]
    return int(stats["rss"] if "rss" in stats else stats["anon"])


async def files(server: Server) -> list[Comparison]:
    """A file of 100 MB in and out against `docker cp` with the same container."""
    session_id = await server.init()
    (server.workdir / "big").write_bytes(os.urandom(1 << 20) * MEGABYTES)

    async def run(*command: str) -> None:
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
        if await process.wait():
            raise RuntimeError(" ".join(command))

    async def cp_in() -> None:
        await server.call("cp_in", local_path="big", session_id=session_id)

    async def docker_cp_in() -> None:
        await run("docker", "cp", "-q", str(server.workdir / "big"), f"{server.container.id}:/workspace/shared/big")

    async def cp_out() -> None:
        await server.call("cp_out", container_path="big", local_path="out", session_id=session_id)

    async def docker_cp_out() -> None:
        await run("docker", "cp", "-q", f"{server.container.id}:/workspace/shared/big", str(server.workdir / "theirs"))

    ours_in, theirs_in = await in_turn(7, cp_in, docker_cp_in)
    ours_out, theirs_out = await in_turn(7, cp_out, docker_cp_out)
    await server.call("close_session", session_id=session_id)
    return [
        compare("(e) cp_in of 100 MB / docker cp", ours_in * 1e3, theirs_in * 1e3, "ms", at_most=1.5),
        compare("(e) cp_out of 100 MB / docker cp", ours_out * 1e3, theirs_out * 1e3, "ms", at_most=1.5),
    ]
