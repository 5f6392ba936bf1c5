"""What a fork between two cells would not carry over, or would have both sides share: to be named and refused.

fork(2) copies the memory and one thread. All other threads are gone in the copy with what they held, and descriptors
and shared memory go on being one thing for both. What can be put right is: idle pools end before (`pools`), files
are opened anew after (`descriptors`). For the rest each sentence says what it is, and what to do about it.
This cannot see what does not show in the process: a lock that C code holds, a file whose name a library remembers.
"""

from __future__ import annotations

import asyncio
import gc
import os
import re
import signal
import sys
import threading
import time
import weakref
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from .look import Look
from .openings import CLOSE, PAIR, PIPE, Found, Kept, Openings, trackers
from .pools import end_idle_collector, is_monitor, native, runs_loop, script_loop
from .text import sendable
from .usage import read, stat_of

IDLE_SECONDS = 0.1  # for workers of asyncio.to_thread to be idle
LOOK_SECONDS = 1.0  # for looks at variables to end
MAX_NAMED = 5  # in a sentence
OUR_THREADS = {"IOPub", "Control", "Shell channel"}  # ipykernel's, which may start them late
OUR_TASKS = {"IPython", "ipykernel", "kernel_host", "tornado", "zmq"}
PARENT, STATE = 1, 0  # fields of `stat_of`

JOIN = "wait until they have ended (thread.join()), or have them end"
EXECUTOR = "shut the pool down (executor.shutdown()) and make a new one afterwards"
PROCESS_POOL = "shut the process pool down (executor.shutdown()) and make a new one afterwards"
POOL = "end the pool (pool.close(); pool.join()) and make a new one afterwards"
QUEUE = "close the queue (queue.close(); queue.join_thread()) and make a new one afterwards"
LOKY = (
    "end joblib's workers, which come back when they are needed: "
    "`from joblib.externals.loky import get_reusable_executor; get_reusable_executor().shutdown(wait=True)`"
)
FORK_SERVER = "end it: `import multiprocessing.forkserver; multiprocessing.forkserver._forkserver._stop()`"
SCRIPTS = "end what `%%bash --bg` started (%killbgscripts), and delete the variables of its --out, --err and --proc"
CHILD = "wait until it has ended (process.join()), or end it (process.terminate(); process.join())"
PROCESS = "wait until it has ended, or end it (process.terminate(); process.wait())"
ADVICE = {  # by the module of a thread's class or function
    "concurrent.futures.process": PROCESS_POOL,
    "concurrent.futures.thread": EXECUTOR,
    "asyncio.unix_events": PROCESS,  # until 3.11, a thread waits for it
    "multiprocessing.pool": POOL,
    "multiprocessing.queues": QUEUE,
    "joblib.externals.loky": LOKY,
    "loky": LOKY,
}
# What goes with another thing, and is not told as long as that is there.
PARTS = {
    **dict.fromkeys((LOKY, POOL, PROCESS_POOL), (QUEUE, PIPE, CHILD)),
    QUEUE: (PIPE,),
    SCRIPTS: (PROCESS, PIPE, PAIR, CLOSE),
}
TASK = "await it, or cancel it (task.cancel())"


@dataclass(frozen=True)
class Own:
    """What belongs to the kernel itself, before the session has done anything.

    Attributes:
        kept: what is open and mapped.
        threads: Python's.
        native: ids of all threads.
        tasks: those of the event loop.
    """

    kept: Kept
    threads: weakref.WeakSet[threading.Thread]
    native: frozenset[int]
    tasks: weakref.WeakSet[asyncio.Task[Any]]

    @classmethod
    def here(cls, loop: asyncio.AbstractEventLoop | None = None) -> Own:
        """Looks; to be called when the first request is about to be served, also in the child of a fork."""
        tasks = asyncio.all_tasks(loop) if loop else ()
        threads = threading.enumerate()
        return cls(Kept.here(), weakref.WeakSet(threads), frozenset(native()), weakref.WeakSet(tasks))


@dataclass(frozen=True)
class _Place:
    own: Own
    run_dir: str
    roots: tuple[str, str]  # workspace and private folder
    loop: asyncio.AbstractEventLoop | None
    children: Collection[int]


def find(
    own: Own,
    run_dir: str,
    workspace: str,
    private: str,
    loop: asyncio.AbstractEventLoop | None,
    children: Collection[int] = (),
) -> list[str]:
    """Names what stands in the way of a fork: one sentence for each, with what to do; none if there is nothing.

    Waits up to LOOK_SECONDS for looks at the variables, and ends IPython's idle thread for `%%bash` and pyzmq's for
    messages without a copy. If something is found, garbage is collected before the second
    look: what nobody can reach any more would be refused for nothing.

    Args:
        own: what belongs to the kernel.
        run_dir: where its sockets lie.
        workspace: in this folder and in `private` regular files may be open: see `descriptors.reopen`.
        loop: the event loop of the main thread, whose tasks are looked at.
        children: process ids of the kernel's own children.
    """
    place = _Place(own, run_dir, (workspace, private), loop, children)
    end_idle_collector()
    if not _look(place):
        return []
    gc.collect()
    return _sentences(_look(place))


def _look(place: _Place) -> list[Found]:
    _await_looks()
    children = list(_children(place))
    found = [*_threads(place), *children, *_tasks(place), *_timers()]  # the first may end some
    openings = Openings(place.own.kept, place.run_dir, place.roots)
    found += [*openings.mapped(), *openings.files(), *openings.pipes(to_others=not children)]
    parts = {part for one in found for part in PARTS.get(one.advice, ())}
    return [one for one in found if one.advice not in parts]


def _await_looks() -> None:
    until = time.monotonic() + LOOK_SECONDS
    for thread in list(Look._running):  # noqa: SLF001 - of this package
        thread.join(max(0.0, until - time.monotonic()))


def _threads(place: _Place) -> Iterator[Found]:
    scripts = script_loop()
    frames = sys._current_frames()  # noqa: SLF001 - also of threads that `threading` does not know
    listed = threading.enumerate()
    ours = {*place.own.threads, *_idle_default_threads(place.loop), threading.current_thread(), threading.main_thread()}
    for thread in listed:
        # Until 3.12, those stay listed that were not started by `threading`.
        has_ended = isinstance(thread, threading._DummyThread) and thread.ident not in frames  # noqa: SLF001
        if thread not in ours and thread.name not in OUR_THREADS and not is_monitor(thread) and not has_ended:
            yield Found("IPython's thread for scripts", SCRIPTS) if runs_loop(thread, scripts) else _thread(thread)
    for ident in frames.keys() - {thread.ident for thread in listed}:
        frame = frames[ident]
        while frame.f_back:
            frame = frame.f_back
        yield Found(f"a thread without a name (function {frame.f_code.co_name})", JOIN)


def _thread(thread: threading.Thread) -> Found:
    if thread in Look._running:  # noqa: SLF001 - of this package
        return Found("a look at the variables that goes on", "wait until it is over, and try again")
    target = vars(thread).get("_target")
    does = getattr(target, "func", target) or type(thread)
    module = str(getattr(does, "__module__", ""))
    advice = next((advice for prefix, advice in ADVICE.items() if _within(module, prefix)), JOIN)
    return Found(f"the thread {thread.name!r} (function {_name(does)})", advice)


def _idle_default_threads(loop: Any) -> Collection[threading.Thread]:
    """The workers of asyncio.to_thread, if none works: the copy has a new event loop, which starts its own."""
    executor = getattr(loop, "_default_executor", None)
    if isinstance(executor, ThreadPoolExecutor):
        threads = executor._threads  # noqa: SLF001 - see above
        waiting: Any = executor._idle_semaphore  # noqa: SLF001
        until = time.monotonic() + IDLE_SECONDS
        while executor._work_queue.empty():  # noqa: SLF001
            if waiting._value >= len(threads):  # noqa: SLF001
                return set(threads)
            if time.monotonic() > until:
                break
            time.sleep(0.001)  # one says so only after its result is there
    return ()


def _children(place: _Place) -> Iterator[Found]:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return  # there are none
    names = dict(_multiprocessing_names())
    server = vars(sys.modules.get("multiprocessing.forkserver", object)).get("_forkserver")
    for pid in _living_children():
        if pid in place.children or pid in trackers("_pid"):
            continue
        command = _command(pid)
        advice = CHILD if pid in names else PROCESS
        if pid == getattr(server, "_forkserver_pid", None):
            command, advice = "multiprocessing's fork server", FORK_SERVER
        elif re.search(r"\bloky\b", command):
            advice = LOKY
        elif "PoolWorker" in names.get(pid, ""):
            advice = POOL
        yield Found(f"process {pid} ({names.get(pid, command)})", advice)


def _living_children() -> Iterator[int]:
    me = str(os.getpid())
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError):  # has ended
                fields = stat_of(int(name))
                if fields[PARENT] == me and fields[STATE] not in "ZX":
                    yield int(name)


def _multiprocessing_names() -> Iterator[tuple[int, str]]:
    """A forked child has the command of the kernel, which says nothing."""
    for process in list(vars(sys.modules.get("multiprocessing.process", object)).get("_children", ())):
        with suppress(Exception):  # of any class
            yield process._popen.pid, str(process.name)  # noqa: SLF001 - `pid` asks who the parent is


def _command(pid: int) -> str:
    words = ""
    with suppress(OSError):
        words = read(f"/proc/{pid}/cmdline").replace("\0", " ").strip()
    return words if len(words) <= 100 else f"{words[:100]}…"


def _tasks(place: _Place) -> Iterator[Found]:
    if place.loop is None:
        return
    current = asyncio.current_task(place.loop)
    for task in asyncio.all_tasks(place.loop):
        coroutine: Any = task.get_coro()
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
        module = str(frame.f_globals.get("__name__", "")) if frame else ""
        if task is not current and task not in place.own.tasks and module.partition(".")[0] not in OUR_TASKS:
            yield Found(f"the asyncio task {task.get_name()!r} ({_name(coroutine)})", TASK)


def _timers() -> Iterator[Found]:
    """setitimer(2): a forked child does not get its signals."""
    for name in ("ITIMER_REAL", "ITIMER_VIRTUAL", "ITIMER_PROF"):
        if any(signal.getitimer(getattr(signal, name))):
            yield Found("a timer that sends a signal", f"stop it (signal.setitimer(signal.{name}, 0))")


def _sentences(found: list[Found]) -> list[str]:
    """One sentence for all that has the same advice."""
    things: dict[str, list[str]] = {}
    for thing, advice in found:
        things.setdefault(advice, []).append(thing)
    return [_sentence(list(dict.fromkeys(named)), advice) for advice, named in things.items()]


def _sentence(things: list[str], advice: str) -> str:
    more = f", and {len(things) - MAX_NAMED} more" if len(things) > MAX_NAMED else ""
    listed = ", ".join(things[:MAX_NAMED]) + more
    return sendable(f"{listed[:1].upper()}{listed[1:]}: {advice}.")


def _name(function: Any) -> str:
    with suppress(Exception):  # an object of any class
        return str(function.__qualname__)[:60]
    return type(function).__name__


def _within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")
