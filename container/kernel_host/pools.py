"""Threads of libraries around a fork: those that end before and come back, and those that do not survive.

A child has only the thread that forked. A library that counts on its pool waits there for ever, for work that nobody does.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import sys
import threading
import time
from collections.abc import Collection
from contextlib import suppress
from typing import Any

from .usage import read

ENDING_SECONDS = 0.1  # for threads that were told to end, before they are called survivors
OMP_PAUSE_HARD = 2  # OpenMP 5.0, omp_pause_resource_t: ends a pool's threads, which come back by themselves
OPENMP = re.compile(r" (/[^\n]*/lib(?:gomp|omp|iomp5)[-.][^/\n]*)$", re.MULTILINE)

# Names of threads that libraries start beside Python: a prefix, as the kernel keeps 15 characters. None needs no care:
# jemalloc starts its own again (jemalloc_postfork_child), and polars' cleaner only removes files.
THREAD_NAMES: dict[str, str | None] = {
    "ZMQbg/": None,
    "jemalloc_bg_thd": None,
    "polars-ooc": None,
    "polars-": "polars' thread pool (rayon)",
    "tokio-": "a pool of tokio",
    "async-executor": "a pool of async-executor",
    "pt_": "PyTorch's threads",
    "cuda": "a CUDA context",
    "grpc": "gRPC",
}
# Modules with threads that have no name, and do not survive.
POOLS = {
    "polars": "polars (rayon)",
    "torch": "PyTorch",
    "tensorflow": "TensorFlow",
    "jax": "JAX",
    "onnxruntime": "ONNX Runtime",
    "duckdb": "DuckDB",
    "datafusion": "DataFusion",
    "deltalake": "delta-rs (tokio)",
    "connectorx": "ConnectorX",
    "tokenizers": "tokenizers (rayon)",
    "numba": "numba",
    "cv2": "OpenCV",
    "tbb": "oneTBB",
    "dnnl": "oneDNN",
    "ray": "Ray",
    "grpc": "gRPC",
}
# These start their pools again in a forked process: Arrow's AtFork (cpp/src/arrow/util/atfork_internal.h, since 12),
# and numexpr by its process id (module.cpp, gs.pid).
FORK_AWARE = {"pyarrow", "numexpr"}
NATIVE = "these threads do not survive in a copy of the process, and what needs them would wait for ever. Restart the \
session without that library, or run what needs it in a process of its own (subprocess)"


def quieten(own: Collection[int] = ()) -> list[str]:
    """Ends idle threads that come back by themselves, right before the fork: those of OpenMP, and tqdm's monitor.

    Args:
        own: ids of the kernel's own threads; where there are no others, there is nothing to end.

    Returns:
        The OpenMP libraries that cannot do that: paths.
    """
    for thread in threading.enumerate():
        if is_monitor(thread):
            with suppress(Exception):  # tqdm's code, or what looks like it
                thread.exit()  # type: ignore[attr-defined]  # of TMonitor
    maps = read("/proc/self/maps") if set(native()) - set(own) else ""
    return [path for path in sorted(set(OPENMP.findall(maps)) if "omp" in maps else ()) if not _pause(path)]


def end_idle_collector() -> None:
    """Ends pyzmq's thread for messages that were sent without a copy, if none is on its way: it starts again with the next."""
    collector = vars(sys.modules.get("zmq.utils.garbage", object)).get("gc")
    with suppress(Exception):  # not a part of its interface
        if collector is not None and collector.is_alive() and not collector.refs:
            collector.stop()


def _pause(path: str) -> bool:
    try:
        return not ctypes.CDLL(path, os.RTLD_NOLOAD).omp_pause_resource_all(OMP_PAUSE_HARD)
    except (OSError, AttributeError):  # the file was removed, or is older than OpenMP 5.0
        return False


def native_threads(own: Collection[int], unpaused: Collection[str] = ()) -> list[str]:
    """Names threads of libraries that a fork does not carry over; for the parent, right after it.

    Not before: OpenBLAS ends its threads in a handler of the fork, and starts them again when it needs them.
    Idle threads of a library that is aware of forks are no obstacle. They have no name, so that it can only be they if
    there is no other that has such threads.

    Args:
        own: ids of the kernel's own threads: `Own.native`.
        unpaused: the answer of `quieten`.
    """
    pools = sorted({*(name for module, name in POOLS.items() if module in sys.modules), *(["OpenMP"] * bool(unpaused))})
    aware = bool(FORK_AWARE & sys.modules.keys()) and not pools
    until = time.monotonic() + ENDING_SECONDS
    while (names := _survivors(own, aware=aware)) and time.monotonic() < until:
        time.sleep(0.002)
    if not names:
        return []
    libraries = sorted({library for name in names if (library := _library(name))})
    whose = libraries or [f"probably of {' or '.join(pools)}"] * bool(pools) or [f"named {sorted(set(names))}"]
    return [f"{len(names)} native threads ({', '.join(whose)}): {NATIVE}."]


def script_loop() -> Any:
    """The event loop that IPython runs `%%bash` and the like on, in a thread that stays; None if there is none.

    It is ended here if nothing needs it: no program in the background, no variable that reads its output. IPython makes
    another one when it needs it.
    """
    shell_class = vars(sys.modules.get("IPython.core.interactiveshell", object)).get("InteractiveShell")
    if shell_class is None or not shell_class.initialized():
        return None
    shell = shell_class.instance()
    with suppress(Exception):  # as in IPython 8 and 9; another one may have it elsewhere
        magics = shell.magics_manager.registry["ScriptMagics"]
        loop = magics.event_loop
        needed = magics.bg_processes or any(type(value).__name__ == "_AsyncIOProxy" for value in shell.user_ns.values())
        if loop is None or needed:
            return loop
        magics.event_loop = None
        _stop(loop)
    return None


def _stop(loop: asyncio.AbstractEventLoop) -> None:
    runs = [thread for thread in threading.enumerate() if runs_loop(thread, loop)]
    loop.call_soon_threadsafe(loop.stop)
    for thread in runs:
        thread.join(ENDING_SECONDS)
    if not loop.is_running():
        loop.close()


def runs_loop(thread: threading.Thread, loop: object) -> bool:
    """Whether a thread is there for an event loop."""
    return loop is not None and getattr(vars(thread).get("_target"), "__self__", None) is loop


def is_monitor(thread: threading.Thread) -> bool:
    """Whether it is tqdm's, which `quieten` ends."""
    return type(thread).__name__ == "TMonitor" and type(thread).__module__.startswith("tqdm")


def _survivors(own: Collection[int], *, aware: bool) -> list[str]:
    """Names of the threads that are neither Python's nor ours nor known to need no care; `aware`, if they have one."""
    threads = [thread for thread in threading.enumerate() if not isinstance(thread, threading._DummyThread)]  # noqa: SLF001
    known = {thread.native_id for thread in threads}
    names = native()
    unnamed = {names.get(os.getpid())} | {names[known_id] for known_id in known & names.keys() if known_id}
    left = {
        thread: name
        for thread, name in names.items()
        if thread not in known and thread not in own and _library(name) is not None
    }
    if aware:
        left = {thread: name for thread, name in left.items() if name not in unnamed}
    return sorted(left.values())


def _library(name: str) -> str | None:
    """Whose thread it is by its name: empty if that does not tell, None if it needs no care."""
    return next((library for prefix, library in THREAD_NAMES.items() if name.startswith(prefix)), "")


def native() -> dict[int, str]:
    """The names of this process's threads by their ids; one that was given no name has that of who started it."""
    found = {}
    for thread in os.listdir("/proc/self/task"):
        with suppress(OSError):  # has ended
            found[int(thread)] = read(f"/proc/self/task/{thread}/comm").strip()
    return found
