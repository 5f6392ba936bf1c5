"""Every tool through a stdio client, a real engine and a real container: the main job from a client's side."""

from __future__ import annotations

import base64
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from mcp import Client, StdioServerParameters

from tests.clients.wire import ROOT, SCRIPTS, containers_of, server_environment, wire_server
from tests.driving import Reply

pytestmark = [pytest.mark.anyio, pytest.mark.docker]

PLOT = """\
import matplotlib.pyplot as plt
print("before")
df.plot()
plt.savefig("plots/plot.png")
"""


async def test_every_tool_through_a_stdio_client(tmp_path: Path) -> None:
    """Issue 2: a test drives every tool; together they are the job that the product is for."""
    folder_in, folder_out = tmp_path / "in", tmp_path / "out"
    (folder_in / "data").mkdir(parents=True)
    folder_out.mkdir()
    (folder_in / "data" / "größe 1.csv").write_text("x,y\n1,2\n3,4\n", encoding="utf-8")
    parameters = StdioServerParameters(
        command=sys.executable,
        args=[str(ROOT / "server.py"), "--WORKDIR_IN", str(folder_in), "--WORKDIR_OUT", str(folder_out)],
        env=server_environment(tmp_path),
        cwd=tmp_path,
    )
    used: set[str] = set()
    async with Client(parameters, read_timeout_seconds=120) as client:

        async def call(tool: str, **arguments: object) -> Reply:
            used.add(tool)
            return Reply(await client.call_tool(tool, arguments))

        started = await call("init")
        assert started.raw.meta is not None
        session_id = started.raw.meta["kernel_server/session"]["session_id"]
        assert started.text.splitlines()[0] == f"session_id: {session_id}"
        assert "network: none" in started.text

        copied = await call("cp_in", local_path="data", session_id=session_id)
        assert copied.text == "Copied 1 file, 12 bytes, to 'data' in the workspace."

        code = "import os\nimport pandas as pd\nos.mkdir('plots')\ndf = pd.read_csv('data/größe 1.csv')\ndf"
        frame = await call("run_code", code=code, session_id=session_id)
        assert frame.output.split() == ["x", "y", "0", "1", "2", "1", "3", "4", "[2", "rows", "x", "2", "columns]"]

        assert "df DataFrame (2, 2)" in (await call("list_variables", session_id=session_id)).text
        assert "data/größe 1.csv" in (await call("list_files", session_id=session_id)).text
        assert session_id in (await call("list_sessions")).text
        assert (await call("read_output", session_id=session_id, pattern="3  4")).text == "3: 1  3  4"

        plot = await call("run_code", code=PLOT, session_id=session_id)
        assert plot.status == "ok"
        assert plot.kinds == ["text", "image", "text"]
        assert "new plots/plot.png" in plot.text
        assert base64.b64decode(plot.images[0].data).startswith(b"\x89PNG")

        script = "import sys\nresult = [int(a) ** 2 for a in sys.argv[1:]]\nprint(__name__, result)\n"
        written = await call("edit_file", container_path="src/square.py", content=script, session_id=session_id)
        assert not written.is_error, written.text
        await call("edit_file", container_path="src/square.py", content="** 3", old="** 2", session_id=session_id)
        ran = await call("run_file", path="src/square.py", args=["2", "3"], session_id=session_id)
        assert ran.output == "__main__ [8, 27]"
        kept = await call("run_code", code="result", session_id=session_id)
        assert kept.text == "[8, 27]"

        out = await call("cp_out", container_path="plots", local_path="results/", session_id=session_id)
        assert not out.is_error, out.text
        assert (folder_out / "results" / "plots" / "plot.png").read_bytes().startswith(b"\x89PNG")

        packages = await call("list_packages", session_id=session_id)
        assert packages.raw.structured_content is not None
        assert {"numpy", "pandas", "ipykernel"} <= set(packages.raw.structured_content["packages"])

        present = await call("install_packages", packages=["numpy"], session_id=session_id)
        assert present.text == f"already there: numpy=={packages.raw.structured_content['packages']['numpy']}"

        exported = await call("export_notebook", session_id=session_id, local_path="job.ipynb")
        assert exported.text.startswith("Wrote a notebook of 4 cells")
        notebook = nbformat.read(folder_out / "job.ipynb", as_version=4)
        nbformat.validate(notebook)
        assert [cell.source for cell in notebook.cells][1] == PLOT
        assert [output.output_type for output in notebook.cells[1].outputs] == ["stream", "display_data"]

        sleeping = "print('asleep')\nimport time; time.sleep(100)"
        assert (await call("run_code", code=sleeping, session_id=session_id, wait=1)).status == "running"
        assert "Interrupted after" in (await call("interrupt", session_id=session_id)).text
        woken = await call("wait", session_id=session_id)
        assert (woken.status, woken.text.splitlines()[0]) == ("interrupted", "asleep")

        assert (await call("checkpoint", session_id=session_id)).text.startswith("checkpoint: c1\n")
        await call("run_code", code="df.drop(df.index, inplace=True)", session_id=session_id)
        assert (await call("rollback", session_id=session_id)).text.startswith(
            f"session_id: {session_id}\ncheckpoint: c1\n"
        )
        branched = await call("branch_session", session_id=session_id)
        branch = branched.text.splitlines()[0].removeprefix("session_id: ")
        assert (await call("run_code", code="len(df)", session_id=branch)).text == "2"

        assert not (await call("close_session", session_id=session_id)).is_error
        closed = await call("run_code", code="1", session_id=session_id)
        assert closed.is_error
        assert "was closed by close_session" in closed.text
        assert "Call init for a new session" in closed.text

        assert not (await call("reset")).is_error
        assert (await call("run_code", code="'df' in globals()")).text == "False"
        assert used == {tool.name for tool in (await client.list_tools()).tools}


async def test_concurrent_first_calls_start_one_container(tmp_path: Path) -> None:
    """DESIGN, processes: nothing runs before the first call that needs it, and then exactly one container."""
    async with wire_server([str(SCRIPTS / "kernel-server"), "serve"], tmp_path, PY_EXEC_PRELOAD="none") as server:
        await server.initialize()
        await server.request("tools/list")
        assert containers_of(server.process.pid) == []
        numbers = [await server.send("tools/call", {"name": "init", "arguments": {}}) for _ in range(4)]
        seen = set()
        for number in numbers:
            answer = await server.answer(number)
            seen.add(answer["result"]["_meta"]["kernel_server/session"]["session_id"])
        assert len(seen) == len(numbers)
        assert len(containers_of(server.process.pid)) == 1


def test_demo_plays_without_a_terminal(tmp_path: Path) -> None:
    """`make demo` in CI: exit code 0, no escape sequences, and the plot and the notebook are there."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "demo" / "main_job.py")],
        cwd=tmp_path,
        env={**server_environment(tmp_path), "COLUMNS": "100"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\x1b" not in done.stdout
    assert "Done: 10 calls" in done.stdout
    assert (ROOT / "demo-output" / "ice_cream.png").read_bytes().startswith(b"\x89PNG")
    nbformat.validate(nbformat.read(ROOT / "demo-output" / "ice_cream.ipynb", as_version=4))


def test_demo_that_fails_shows_what_the_server_said(tmp_path: Path) -> None:
    """Ours: exit code 1 and the end of the server's stderr."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "demo" / "main_job.py")],
        cwd=tmp_path,
        env={**server_environment(tmp_path), "PY_EXEC_TIMEOUT": "soon"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert "the server's stderr" in done.stdout
    assert "PY_EXEC_TIMEOUT='soon': needs seconds" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
