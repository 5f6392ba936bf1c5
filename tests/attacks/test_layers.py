"""Which layers there are is told; `strict` does not do without one (issue 6)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.driving import containers_of_this_process, kernel_host_given, serving

pytestmark = [pytest.mark.anyio, pytest.mark.docker]

SETTINGS = {"PY_EXEC_POOL": "0", "PY_EXEC_PRELOAD": "none"}
STRICT = {**SETTINGS, "PY_EXEC_ISOLATION": "strict"}
# A stack of what people use: each must work behind all walls.
STACK = """
import sqlite3, subprocess, multiprocessing, concurrent.futures, asyncio, tempfile, threading, mmap, ctypes, shutil
import numpy, pandas, scipy.stats, sklearn.ensemble, matplotlib.pyplot, seaborn, plotly.express
database = sqlite3.connect('x.db'); database.execute('create table t (a)'); database.execute('insert into t values (1)')
database.commit(); database.execute('pragma journal_mode=wal'); database.execute('insert into t values (2)'); database.commit()
assert subprocess.run('ls | wc -l', shell=True, capture_output=True, text=True).stdout.strip() >= '1'
with multiprocessing.Pool(2) as pool: assert pool.map(abs, [-1, -2]) == [1, 2]
context = multiprocessing.get_context('spawn')
assert multiprocessing.Manager().list([1])[0] == 1
with concurrent.futures.ProcessPoolExecutor(2) as executor: assert list(executor.map(abs, [-3])) == [3]
from multiprocessing.shared_memory import SharedMemory
block = SharedMemory(create=True, size=4096); block.close(); block.unlink()
async def program(): return await (await asyncio.create_subprocess_exec('echo', 'hi', stdout=-1)).communicate()
assert (await program())[0] == b'hi\\n'
async def echo(reader, writer): writer.write(await reader.readline()); await writer.drain(); writer.close()
server = await asyncio.start_unix_server(echo, tempfile.mktemp())
reader, writer = await asyncio.open_unix_connection(server.sockets[0].getsockname())
writer.write(b'hello\\n'); assert await reader.readline() == b'hello\\n'; writer.close(); server.close()
frame = pandas.DataFrame({'a': range(100), 'b': numpy.random.rand(100)})
frame.to_csv('x.csv'); assert pandas.read_csv('x.csv').shape == (100, 3); frame.to_pickle('x.pkl'); frame.to_sql('f', database)
forest = sklearn.ensemble.RandomForestClassifier(n_jobs=2).fit(frame[['b']], frame.a > 50)
from joblib import Parallel, delayed
assert Parallel(n_jobs=2)(delayed(abs)(-i) for i in range(4)) == [0, 1, 2, 3]
assert scipy.stats.norm.cdf(0) == 0.5
sorted_axes = seaborn.lineplot(frame, x='a', y='b'); matplotlib.pyplot.savefig('x.png'); matplotlib.pyplot.close()
assert plotly.express.line(frame, x='a', y='b').to_json()
numpy.memmap('x.map', dtype='f8', mode='w+', shape=10)[:] = 1
shutil.move('x.csv', tempfile.gettempdir()); shutil.copytree('.', tempfile.mkdtemp() + '/copy')
import pty, os
pid, terminal = pty.fork()
if pid == 0: os.execvp('echo', ['echo', 'terminal'])
assert b'terminal' in os.read(terminal, 100)
os.mkfifo('fifo'); os.link('x.db', 'hard'); os.symlink('x.db', 'soft'); os.truncate('x.png', 1)
assert os.path.exists('/proc/self/maps') and os.sched_getaffinity(0) and os.cpu_count() and os.getloadavg()
'all works'
"""


async def test_data_stack_works_behind_all_walls(docker_engine: None, tmp_path: Path) -> None:
    """Issue 6: without breaking the data stack; `strict` is the control that all layers are on."""
    async with serving(tmp_path, "docker", **STRICT) as kit, kit.session() as session:
        assert (await session.run(STACK)).output.endswith("'all works'")
        status = await session.value("print(open('/proc/self/status').read())")
        assert "Seccomp:\t2" in status
        assert "NoNewPrivs:\t1" in status


@pytest.mark.parametrize("missing", ["seccomp", "landlock"])
async def test_strict_starts_nothing_where_a_layer_is_missing(
    docker_engine: None, tmp_path: Path, missing: str
) -> None:
    """Issue 6: `strict` refuses and says what is missing; `standard` says it in each init."""
    walls = [name for name in ("seccomp", "landlock") if name != missing]
    before = containers_of_this_process()
    sign = {"seccomp": "the filter of system calls", "landlock": "Landlock"}[missing]
    with kernel_host_given({"walls": walls}):
        async with serving(tmp_path / "strict", "docker", **STRICT) as kit:
            refused = await kit.call("init")
            assert refused.is_error
            assert sign in refused.text
            assert "PY_EXEC_ISOLATION=standard" in refused.text
            assert containers_of_this_process() == before
        async with serving(tmp_path / "standard", "docker", **SETTINGS) as kit:
            said = (await kit.call("init")).text
            assert f"MISSING on this machine: {sign}" in said


async def test_unknown_runtime_is_an_error_that_names_it(docker_engine: None, tmp_path: Path) -> None:
    """Issue 6: PY_EXEC_RUNTIME is passed on; the engine's own default by its name is the control."""
    async with serving(tmp_path / "unknown", "docker", PY_EXEC_RUNTIME="no-such-runtime", **SETTINGS) as kit:
        refused = await kit.call("init")
        assert refused.is_error
        assert "no-such-runtime" in refused.text
    async with serving(tmp_path / "known", "docker", PY_EXEC_RUNTIME="runc", **SETTINGS) as kit:
        said = (await kit.call("init")).text
        assert "of the runtime runc" in said


async def test_bridge_gives_a_network_and_says_so(docker_engine: None, tmp_path: Path) -> None:
    """Issue 6: for those who want it. An address is shown and TCP works with it; nothing beyond this machine is asked."""
    code = (
        "import socket\nprobe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); probe.connect(('192.0.2.1', 9))\n"
        "listener = socket.create_server((probe.getsockname()[0], 0))\n"
        "socket.create_connection(listener.getsockname(), timeout=5).close(); 'connected'"
    )
    async with serving(tmp_path, "docker", PY_EXEC_NETWORK="bridge", **SETTINGS) as kit, kit.session() as session:
        assert "network: bridge" in (await kit.call("init")).text
        assert (await session.run(code)).output == "'connected'"
        failed = await session.run("raise ConnectionError('refused')")
        assert "no network" not in failed.text


async def test_errors_of_a_session_without_network_say_that_it_has_none(docker_session: Any) -> None:
    """Issue 6: with an error that tells the model so instead of a DNS riddle; programs that print it, too."""
    for code in (
        "import urllib.request; urllib.request.urlopen('https://example.org')",
        "import socket; socket.create_connection(('192.0.2.1', 80))",
        "import socket; socket.getaddrinfo('example.org', 80)",
        "import sys; print('fatal: Could not resolve host: example.org', file=sys.stderr)",
        "!echo 'Temporary failure in name resolution' >&2; exit 1",
    ):
        assert "Sessions have no network" in (await docker_session.run(code)).text, code
    assert "no network" not in (await docker_session.run("print('Could not resolve it'); 1")).text
