"""What stands in the way of a fork between two cells, and what a fork has to leave working; in real processes."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from kernel_host import obstacles

CONTAINER = Path(obstacles.__file__).parents[1]
SECONDS = 60

PRELUDE = """
import asyncio, json, os, sys, threading, time, warnings
sys.path.insert(0, {container!r})
warnings.simplefilter("ignore")  # of forks beside threads, and of what is closed by the collector
from kernel_host.descriptors import reopen
from kernel_host.obstacles import Own, find
from kernel_host.pools import native_threads, quieten
run, workspace, private, outside = (os.path.join({folder!r}, name) for name in ("run", "workspace", "private", "outside"))
os.chdir(workspace)
loop = asyncio.new_event_loop()
def turn(seconds=0): loop.run_until_complete(asyncio.sleep(seconds))
def look(): return find(own, run, workspace, private, loop)
def until(condition):
    end = time.monotonic() + 10
    while not condition(): assert time.monotonic() < end; time.sleep(0.001)
def tell(*answer): print(json.dumps(answer), flush=True)
turn()
"""

FORK = """
def forked(work, pause=True, seconds=20):
    import signal
    work()
    found = look()
    unpaused = quieten() if pause else ['libgomp.so']  # as of a library that cannot
    pid = os.fork()
    if pid == 0:
        signal.alarm(seconds)
        work()
        os._exit(0)
    survivors = native_threads(own.native, unpaused)
    status = os.waitpid(pid, 0)[1]
    work()
    tell(found, survivors, status)
    os._exit(0)  # Python 3.13.0 crashes at its end where tqdm has a bar, also without a fork
own = Own.here(loop)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folders of a session, and one that is not its own."""
    for name in ("run", "workspace", "private", "outside"):
        (tmp_path / name).mkdir()
    (tmp_path / "workspace" / "data").write_bytes(b"0123456789" * 1000)
    (tmp_path / "outside" / "data").write_bytes(b"0123456789" * 1000)
    return tmp_path


def run(folder: Path, code: str) -> Any:
    """What the code tells, in a process of its own."""
    prelude = PRELUDE.format(container=str(CONTAINER), folder=str(folder))
    script = folder / "script.py"
    script.write_text(prelude + textwrap.dedent(code), encoding="utf-8")
    environment = {**os.environ, "MPLBACKEND": "agg", "PYTHONWARNINGS": "ignore", "OPENBLAS_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=SECONDS, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def needs(*modules: str) -> pytest.MarkDecorator:
    """Only where these are installed."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


class Obstacle(NamedTuple):
    """How to put it into the way, what the only sentence has to say, and how to do what it says."""

    make: str
    says: tuple[str, ...]
    undo: str


SHELL = """
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config
    shell = InteractiveShell.instance(config=Config(HistoryManager={"enabled": False}))
    """
THREAD = """
    stop = threading.Event()
    def waits(): stop.wait(50)
    """
OBSTACLES = {
    "thread": Obstacle(
        THREAD + "thread = threading.Thread(target=waits, name='mine'); thread.start()",
        ("'mine'", "function waits", "thread.join()"),
        "stop.set(); thread.join()",
    ),
    "thread without a name": Obstacle(
        THREAD + "import _thread; began = len(sys._current_frames()); _thread.start_new_thread(waits, ())\n"
        "    until(lambda: len(sys._current_frames()) > began)",
        ("thread without a name", "waits"),
        "stop.set(); until(lambda: len(sys._current_frames()) == began)",
    ),
    "timer": Obstacle(
        "timer = threading.Timer(50, print); timer.start()", ("(function Timer)",), "timer.cancel(); timer.join()"
    ),
    "thread pool": Obstacle(
        "from concurrent.futures import ThreadPoolExecutor\npool = ThreadPoolExecutor(2); list(pool.map(abs, [1, 2]))",
        ("ThreadPoolExecutor-0_0", "executor.shutdown()"),
        "pool.shutdown()",
    ),
    "threads of asyncio that work": Obstacle(
        THREAD + "future = loop.run_in_executor(None, waits)",
        ("asyncio_0", "executor.shutdown()"),
        "stop.set(); loop.run_until_complete(future)",
    ),
    "look at the variables": Obstacle(
        THREAD
        + """
    from kernel_host.look import Look
    class Shell: user_global_ns = user_ns = {'waits': waits}
    answers = []
    look_at = Look(Shell, None, 'waits()', answers.append); look_at.start()""",
        ("look at the variables", "wait until it is over"),
        "stop.set(); look_at._thread.join()",
    ),
    "program": Obstacle(
        "import subprocess; program = subprocess.Popen(['sleep', '50'], stdout=subprocess.PIPE)",
        ("sleep 50", "process.terminate()"),
        "program.terminate(); program.wait()",
    ),
    "program of another's": Obstacle(
        "import subprocess\n"
        "program = subprocess.Popen(['sh', '-c', 'sleep 50 & echo $!'], stdout=subprocess.PIPE)\n"
        "pid = int(program.stdout.readline()); program.wait()",
        ("pipe to another program", "close it"),
        "program.stdout.close(); os.kill(pid, 9)",
    ),
    "multiprocessing process": Obstacle(
        "import multiprocessing\nprocess = multiprocessing.get_context('fork').Process(target=time.sleep, args=(50,), name='worker')\n"
        "process.start()",
        ("(worker)", "process.terminate()"),
        "process.terminate(); process.join()",
    ),
    "multiprocessing pool": Obstacle(
        "import multiprocessing; pool = multiprocessing.get_context('fork').Pool(2); pool.map(abs, [1])",
        ("_handle_workers", "ForkPoolWorker-1", "pool.close(); pool.join()"),
        "pool.close(); pool.join(); del pool",
    ),
    "process pool": Obstacle(
        "from concurrent.futures import ProcessPoolExecutor\nimport multiprocessing\n"
        "pool = ProcessPoolExecutor(2, multiprocessing.get_context('fork')); list(pool.map(abs, [1, 2]))",
        ("process pool", "executor.shutdown()"),
        "pool.shutdown(); del pool",
    ),
    "fork server": Obstacle(
        "import multiprocessing.forkserver as forkserver; forkserver.ensure_running()",
        ("fork server", "_forkserver._stop()"),
        "forkserver._forkserver._stop()",
    ),
    "multiprocessing queue": Obstacle(
        "import multiprocessing; queue = multiprocessing.get_context('fork').Queue(); queue.put(1); queue.get()",
        ("QueueFeederThread", "queue.join_thread()"),
        "queue.close(); queue.join_thread(); del queue",
    ),
    "task": Obstacle(
        "async def polls(): await asyncio.sleep(50)\ntask = loop.create_task(polls(), name='poll'); turn()",
        ("'poll'", "polls", "task.cancel()"),
        "task.cancel(); turn()",
    ),
    "timer that signals": Obstacle(
        "import signal; signal.setitimer(signal.ITIMER_REAL, 50)",
        ("signal.setitimer(signal.ITIMER_REAL, 0)",),
        "signal.setitimer(signal.ITIMER_REAL, 0)",
    ),
    "server": Obstacle(
        "import socket; server = socket.create_server(('127.0.0.1', 0))",
        ("listens on 127.0.0.1:", "close it"),
        "server.close()",
    ),
    "connection": Obstacle(
        "import socket; server = socket.create_server(('127.0.0.1', 0)); port = server.getsockname()[1]\n"
        "client = socket.create_connection(('127.0.0.1', port)); peer = server.accept()[0]; server.close()",
        ("connection to 127.0.0.1:", "connect again"),
        "client.close(); peer.close()",
    ),
    "event loop": Obstacle("other = asyncio.new_event_loop()", ("perhaps of an event loop",), "other.close()"),
    "script in the background": Obstacle(
        SHELL
        + """
    shell.run_cell("%%bash --bg --out text\\nsleep 50")
    until(lambda: shell.magics_manager.registry["ScriptMagics"].bg_processes)
    """,
        ("IPython's thread", "%killbgscripts"),
        "shell.run_cell('%killbgscripts'); del shell.user_ns['text']",
    ),
    "pipe": Obstacle("ends = os.pipe()", ("pipe with both its ends",), "[os.close(end) for end in ends]"),
    "multiprocessing pipe": Obstacle(
        "import multiprocessing; ends = multiprocessing.Pipe(duplex=False)",
        ("pipe with both its ends", "multiprocessing.Queue or Pipe"),
        "[end.close() for end in ends]",
    ),
    "file elsewhere": Obstacle(
        "file = open(outside + '/log', 'a')", ("outside/log", "open for writing"), "file.close()"
    ),
    "file in /dev/shm": Obstacle(
        "import tempfile; file = tempfile.NamedTemporaryFile(dir='/dev/shm')", ("/dev/shm/tmp",), "file.close()"
    ),
    "temporary file": Obstacle(
        "import tempfile; file = tempfile.TemporaryFile(dir=private)", ("without a name",), "file.close()"
    ),
    "file that was removed": Obstacle(
        "file = open('data'); os.unlink('data')", ("without a name data",), "file.close()"
    ),
    "terminal": Obstacle("import pty; ends = pty.openpty()", ("/dev/pts/",), "[os.close(end) for end in ends]"),
    "database": Obstacle(
        "import sqlite3; database = sqlite3.connect('data.db'); database.execute('create table a (b)')",
        ("SQLite database data.db", "connection.close()"),
        "database.close()",
    ),
    "database that is still empty": Obstacle(
        "import sqlite3; database = sqlite3.connect('data.db'); database.execute('select 1').fetchall()\n"
        "database.execute('begin immediate')",
        ("SQLite database data.db", "connection.close()"),
        "database.close()",
    ),
    "array in a file of the workspace": Obstacle(
        "import numpy; array = numpy.memmap('data', mode='r+')", ("file data", "array.copy()"), "del array"
    ),
    "array that is only read": Obstacle(
        "import numpy; array = numpy.memmap('data', mode='r')", ("file data", "array.copy()"), "del array"
    ),
    "array that is not written": Obstacle(
        "import numpy; array = numpy.memmap('data', mode='c')", ("file data", "array.copy()"), "del array"
    ),
    "shared memory": Obstacle(
        "from multiprocessing.shared_memory import SharedMemory; memory = SharedMemory(create=True, size=5000)",
        ("Shared memory (/dev/shm/psm_", "copy"),
        "memory.close(); memory.unlink()",
    ),
    "shared memory without a file": Obstacle(
        "import mmap; memory = mmap.mmap(-1, 5000)", ("Shared memory (/dev/zero)",), "memory.close()"
    ),
    "shared value": Obstacle(
        "import multiprocessing; value = multiprocessing.Value('i', 5)", ("Shared memory",), "del value"
    ),
    "memfd": Obstacle("number = os.memfd_create('mine')", ("/memfd:mine", "without a name"), "os.close(number)"),
}


@pytest.mark.parametrize("obstacle", OBSTACLES.values(), ids=OBSTACLES)
def test_an_obstacle_is_named_until_what_it_says_is_done(folder: Path, obstacle: Obstacle) -> None:
    """Ours: one sentence, about nothing else; what it advises removes it."""
    make, undo = (textwrap.dedent(part) if part.startswith("\n") else part for part in (obstacle.make, obstacle.undo))
    before, during, after = run(
        folder, f"own = Own.here(loop)\nbefore = look()\n{make}\nduring = look()\n{undo}\ntell(before, during, look())"
    )
    assert before == []
    assert len(during) == 1, during
    assert all(part in during[0] for part in obstacle.says), during
    assert after == []


HARMLESS = {
    "nothing": "",
    "files of the session": "files = [open('data'), open('new', 'w'), open(private + '/new', 'a+'), os.open('.', 0)]",
    "file elsewhere that is only read": "file = open(outside + '/data')",
    "thread that ends": "thread = threading.Thread(target=int); thread.start(); thread.join()",
    "program that has ended": "import subprocess; program = subprocess.Popen(['true'], stdout=subprocess.PIPE)\n"
    "os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOWAIT)",
    "asyncio.to_thread": "loop.run_until_complete(asyncio.to_thread(int)); loop.run_until_complete(asyncio.to_thread(int))",
    "lock of multiprocessing": "import multiprocessing; lock = multiprocessing.get_context('spawn').Lock()",
    "shared value that is gone": "import multiprocessing; value = multiprocessing.Value('i', 5); del value",
    "look that ends": """
        from kernel_host.look import Look
        class Shell: user_global_ns = user_ns = {"sleep": time.sleep}
        look_at = Look(Shell, None, "sleep(0.2)", print); look_at.start()
        """,
    "thread of ipykernel": "threading.Thread(target=threading.Event().wait, name='Shell channel', daemon=True).start()",
    "standard output": "number = os.dup(1)",
    "what nobody can reach": """
        class Loop: pass
        made = Loop(); made.itself = made; made.loop = asyncio.new_event_loop(); made.file = open(outside + "/log", "w")
        made.pipe = __import__("multiprocessing").Pipe(duplex=False); del made
        """,
    "%%bash": SHELL
    + """
    for _ in range(2): shell.run_cell("%%bash\\necho x >out"); assert os.path.exists("out"), look(); assert look() == [], look(); os.remove("out")
        """,
    "memory that others share": "import mmap; memory = mmap.mmap(-1, 5000, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)",
}


@pytest.mark.parametrize("code", HARMLESS.values(), ids=HARMLESS)
def test_what_does_no_harm_is_no_obstacle(folder: Path, code: str) -> None:
    """Ours: nobody is told to close what a fork can live with."""
    (found,) = run(folder, f"own = Own.here(loop)\n{textwrap.dedent(code)}\ntell(look())")
    assert found == []


def test_what_belongs_to_the_kernel_is_no_obstacle(folder: Path) -> None:
    """zmq opens descriptors when clients connect: accepted sockets have the name of the one that listens."""
    code = """
    import zmq, socket
    context = zmq.Context()
    server = context.socket(zmq.ROUTER); server.bind("ipc://" + run + "/s-1")
    ours = [open(outside + "/log", "w"), os.pipe(), socket.socketpair()]
    thread = threading.Thread(target=threading.Event().wait, daemon=True); thread.start()
    task = loop.create_task(asyncio.sleep(50)); turn()
    own = Own.here(loop)
    program = {client!r}
    import subprocess
    client = subprocess.Popen([sys.executable, "-c", program, run + "/s-1"])
    server.recv_multipart()
    before = find(own, run, workspace, private, loop, children=[client.pid])
    elsewhere = find(own, outside, workspace, private, loop, children=[client.pid])
    tell(before, elsewhere, native_threads(own.native)); client.kill()
    """
    client = "import sys, time, zmq; s = zmq.Context().socket(zmq.DEALER); s.connect('ipc://' + sys.argv[1]); s.send(b'1'); time.sleep(50)"
    before, elsewhere, native = run(folder, textwrap.dedent(code).replace("{client!r}", repr(client)))
    assert before == native == []
    assert len(elsewhere) == 1
    assert "socket" in elsewhere[0].lower()


def test_many_of_a_kind_are_one_sentence(folder: Path) -> None:
    """Ours: as long as a reader can take it."""
    code = "own = Own.here(loop); ends = [os.pipe() for _ in range(30)]; tell(look())"
    ((sentence,),) = run(folder, code)
    assert sentence.endswith(
        "and 25 more: close it (or the multiprocessing.Queue or Pipe that it belongs to), and make a new one afterwards."
    )


# -- libraries ---------------------------------------------------------------------------------------------------------

WORK = {
    "numpy": "import numpy\ndef work(): a = numpy.random.rand(1200, 1200); (a @ a).sum(); numpy.linalg.svd(a[:300])",
    "pandas": "import pandas\ndef work(): pandas.DataFrame({'a': range(10**5), 'b': ['x', 'y'] * 50_000}).groupby('b').a.agg(['sum', 'median'])",
    "matplotlib": "import io, matplotlib.pyplot as plt\nfigure = plt.figure()\n"
    "def work(): figure.gca().plot([1, 2], label='a'); plt.legend(); figure.savefig(io.BytesIO())",
    "sqlite3": "import sqlite3\ndatabase = sqlite3.connect(':memory:'); database.execute('create table a (b)')\n"
    "def work(): database.execute('insert into a values (1)'); database.commit(); assert database.execute('select sum(b) from a').fetchone()[0]",
    "sklearn": "import numpy\nfrom sklearn.cluster import KMeans\nfrom sklearn.ensemble import HistGradientBoostingClassifier\n"
    "X = numpy.random.rand(20_000, 20); y = (X[:, 0] > 0.5).astype(int)\n"
    "def work(): HistGradientBoostingClassifier(max_iter=20).fit(X, y), KMeans(4, n_init=2).fit(X), numpy.linalg.svd(X[:500])",
    "pyarrow": "import pandas, pyarrow, pyarrow.compute, pyarrow.dataset, pyarrow.parquet\n"
    "table = pyarrow.table({f'c{n}': list(range(100_000)) for n in range(8)})\n"
    "def work():\n"
    "    path = f'{private}/{os.getpid()}.parquet'; pyarrow.parquet.write_table(table, path)\n"
    "    back = pyarrow.parquet.read_table(path); assert back == table\n"
    "    back.group_by('c1').aggregate([('c2', 'sum')]); back.to_pandas(); pyarrow.compute.sort_indices(back['c3'])\n"
    "    pyarrow.dataset.dataset(path).to_table(filter=pyarrow.dataset.field('c1') > 5)",
    "numexpr": "import numexpr, numpy\nnumbers = numpy.random.rand(10**6)\nnumexpr.set_num_threads(2)\n"
    "def work(): numexpr.evaluate('sin(numbers) * 2 + numbers')",
    "polars that was only imported": "import polars\ndef work(): pass",
    "tqdm": "import tqdm\nbar = tqdm.tqdm(total=9, mininterval=0)\ndef work(): tqdm.tqdm(total=9); bar.update(); assert bar.monitor.report()",
}


def _module(name: str) -> str:
    return name.split(maxsplit=1)[0]


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs(_module(name))) for name in WORK])
def test_a_library_works_on_both_sides_of_a_fork(folder: Path, name: str) -> None:
    """What has an idle pool ends it, or starts it again; whoever says that something survives has to show it."""
    found, survivors, status = run(folder, f"{FORK}\n{WORK[name]}\nforked(work)")
    assert found == survivors == []
    assert status == 0


@needs("sklearn")
def test_openmp_that_was_not_paused_is_named(folder: Path) -> None:
    """The control of `quieten`: without it the child would wait for ever."""
    found, survivors, status = run(folder, f"{FORK}\n{WORK['sklearn']}\nforked(work, pause=False, seconds=5)")
    assert found == []
    assert len(survivors) == 1
    assert status == 14  # its alarm


@needs("duckdb")
def test_duckdb_is_refused(folder: Path) -> None:
    """A connection works in the child, and brings it down when it is closed."""
    duckdb = """
    import duckdb
    connection = duckdb.connect(); me = os.getpid()
    def work():
        connection.execute("select sum(n) from range(10000000) t(n)").fetchall()
        if os.getpid() != me: connection.execute("set threads = 2"); connection.close()
    """
    found, survivors, status = run(folder, f"{FORK}\n{textwrap.dedent(duckdb)}\nforked(work, seconds=5)")
    assert found == []
    assert "probably of DuckDB" in survivors[0]
    assert status != 0


@needs("polars")
def test_polars_is_refused(folder: Path) -> None:
    """Its pool is rayon's, which has no way back after a fork: the child hangs."""
    polars = "import polars\ndef work(): polars.DataFrame({'a': list(range(10**5))}).group_by('a').agg(polars.len())"
    found, survivors, status = run(folder, f"{FORK}\n{polars}\nforked(work, seconds=5)")
    assert found == []
    assert "polars' thread pool (rayon)" in survivors[0]
    assert status == 14


@needs("joblib")
def test_workers_of_joblib_are_named_until_they_are_ended(folder: Path) -> None:
    """They stay for five minutes; what is said ends them, and they come back."""
    code = """
    own = Own.here(loop)
    from joblib import Parallel, delayed
    def work(): return Parallel(n_jobs=2)(delayed(abs)(n) for n in range(4))
    work()
    during = look()
    from joblib.externals.loky import get_reusable_executor; get_reusable_executor().shutdown(wait=True)
    after = look()
    tell(during, after, work())
    """
    during, after, answer = run(folder, code)
    assert len(during) == 1, during
    assert "get_reusable_executor().shutdown(wait=True)" in during[0]
    assert after == []
    assert answer == [0, 1, 2, 3]


# -- files in the child ------------------------------------------------------------------------------------------------

BRANCH = """
import fcntl, shutil
from contextlib import suppress
copy = os.path.join(os.path.dirname(workspace), "copy")
def branch(in_child, roots=None, prepare=lambda: shutil.copytree(workspace, copy)):
    reader, writer = os.pipe()
    prepare()
    if os.fork() == 0:
        missing = reopen(roots or {workspace: copy})
        os.write(writer, json.dumps([missing, in_child()]).encode()); os._exit(0)
    os.close(writer)
    return json.loads(os.read(reader, 10**6))
"""


def test_files_of_a_branch_are_its_own(folder: Path) -> None:
    """Ours: the same place in the copy; neither moves the other."""
    code = """
    read, write, both, append = open("data"), open("new", "w"), open("data", "r+b", buffering=0), open("log", "a")
    os.mkdir("sub"); inner = open("sub/inner", "w")
    read.read(3); both.seek(7); write.write("abc"); write.flush(); append.write("one "); append.flush()
    os.set_inheritable(both.fileno(), True)
    def in_child():
        os.lseek(read.fileno(), 5, os.SEEK_SET)
        write.write("child"); append.write("child"); inner.write("child"); both.write(b"x")
        for file in (write, append, inner): file.flush()
        return [os.readlink(f"/proc/self/fd/{file.fileno()}") for file in (read, write, both, append, inner)], [
            os.get_inheritable(file.fileno()) for file in (read, both)], [
            fcntl.fcntl(file.fileno(), fcntl.F_GETFL) & (os.O_ACCMODE | os.O_APPEND | os.O_TRUNC) for file in (read, write, both, append)]
    missing, (paths, inheritable, flags) = branch(in_child)
    places = [os.lseek(file.fileno(), 0, os.SEEK_CUR) for file in (write, both, append)]
    texts = [[open(f"{root}/{name}").read()[:9] for name in ("new", "log", "data", "sub/inner")] for root in (workspace, copy)]
    tell(missing, [os.path.relpath(path, copy) for path in paths], inheritable, flags, places, texts)
    """
    missing, paths, inheritable, flags, places, texts = run(folder, BRANCH + textwrap.dedent(code))
    assert missing == []
    assert paths == ["data", "new", "data", "log", "sub/inner"]
    assert inheritable == [False, True]
    assert flags == [os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND]
    assert places == [3, 7, 4]
    assert texts == [["abc", "one ", "012345678", ""], ["abcchild", "one child", "0123456x8", "child"]]


def test_what_is_missing_is_told_and_reads_nothing(folder: Path) -> None:
    """Ours: a program that goes on with it does not write into another one's file."""
    code = """
    gone, stays = open("gone", "w"), open("data")
    def in_child():
        gone.write("x"); gone.flush()
        return os.readlink(f"/proc/self/fd/{gone.fileno()}"), stays.read(3)
    def prepare(): shutil.copytree(workspace, copy); os.unlink(copy + "/gone")
    tell(*branch(in_child, prepare=prepare), open("gone").read(), copy)
    """
    missing, (target, text), written, copy = run(folder, BRANCH + textwrap.dedent(code))
    assert missing == [f"{copy}/gone"]
    assert (target, text, written) == ("/dev/null", "012", "")


def test_a_rollback_finds_the_file_that_was_put_back(folder: Path) -> None:
    """Ours: by its path; the open one was removed."""
    code = """
    file = open("data")
    os.lseek(file.fileno(), 3, os.SEEK_SET)
    def prepare(): os.unlink("data"); open("data", "w").write("abcdefghi")
    def in_child(): return os.read(file.fileno(), 3).decode()
    tell(*branch(in_child, {workspace: workspace}, prepare))
    """
    assert run(folder, BRANCH + textwrap.dedent(code)) == [[], "def"]


def test_what_is_read_elsewhere_has_its_own_place(folder: Path) -> None:
    """fork(2): the offset of an open file is shared with the child."""
    code = """
    file, removed, folder = open(outside + "/data", "rb", buffering=0), open(outside + "/removed", "w+"), os.open(".", 0)
    removed = open(outside + "/removed", "rb", buffering=0); os.unlink(outside + "/removed")
    file.read(3)
    def in_child(): return file.read(5).decode(), os.readlink(f"/proc/self/fd/{folder}") == copy, removed.read().decode()
    tell(*branch(in_child), file.tell())
    """
    assert run(folder, BRANCH + textwrap.dedent(code)) == [[], ["34567", True, ""], 3]
