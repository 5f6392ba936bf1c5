"""What is imported before the first fork, so that every kernel has it at once and shares its memory.

The image knows which modules a kernel needs beside those that were asked for: when it was built, a kernel was
started, showed a DataFrame and drew a plot, and the names of all modules that it then had were written down.
"""

from __future__ import annotations

import importlib
import inspect
import io
import json
import os
import shutil
import sys
import tempfile
from typing import Any

MODULES_FILE = "/opt/kernel_server/modules.json"
MATPLOTLIB_CACHE = "/opt/kernel_server/matplotlib"
# These look for the running shell when they are imported, so that they belong to the kernel's own process.
NOT_BEFORE_FORK = ("matplotlib_inline",)
# For readers of text who get 10 KB at a time: always with the shape, and folded at 200 columns instead of 80.
PANDAS_OPTIONS = {
    "display.show_dimensions": True,
    "display.width": 200,
    "display.max_columns": 40,
    "display.max_rows": 50,
}
NUMPY_OPTIONS = {"threshold": 500, "linewidth": 120}  # numpy 2.2 and later shows the shape of what it abridges
# After so many, Python has specialized the code (PEP 659), which else each kernel does in copies of its own.
ROUNDS = 8
REHEARSAL = """
import importlib.util
if importlib.util.find_spec("pandas"):
    import pandas
    display(pandas.DataFrame({"a": [1.5, None], "b": ["x", "y"], "c": pandas.to_datetime(["2026-01-01"] * 2)}))
if importlib.util.find_spec("matplotlib"):
    import matplotlib.pyplot
    matplotlib.pyplot.plot([1, 2], label="x")
    matplotlib.pyplot.legend()
    matplotlib.pyplot.show()
1 / 0
"""


def preload(names: list[str]) -> list[str]:
    """Imports what every kernel needs and what the image has of `names`; returns what was imported of `names`."""
    os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    _use_font_cache()
    _import_kernel()
    loaded = [name for name in names if _imported(name)]
    for name in _known_modules():
        # Only parts of what is there already: nobody asked for the other packages.
        if name.partition(".")[0] in sys.modules:
            _imported(name)
    _choose_display_options()
    _forget_early()
    return loaded


def rehearse(path: str) -> None:
    """Starts a kernel, lets it work, and writes the names of its modules to `path`; run while the image is built."""
    os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    _use_font_cache()
    _import_kernel()
    from . import kernel

    def note(app: Any) -> None:
        app.shell.run_cell(REHEARSAL, store_history=False)
        with open(path, "w", encoding="utf-8") as file:
            json.dump([name for name in sys.modules if _worth_importing(name)], file)
        os._exit(0)

    with tempfile.TemporaryDirectory() as folder:
        pid = os.fork()
        if pid == 0:
            try:
                launch = kernel.KernelLaunch("rehearsal", b"key", folder, folder, folder, None, None, {}, {})
                kernel.run(launch, lambda: None, started=note)
            finally:
                os._exit(1)
        if os.waitpid(pid, 0)[1]:
            sys.exit("kernel_host: a kernel could not be started in this image")


def _import_kernel() -> None:
    # No debugger: importing debugpy is most of a kernel's start, and it would listen on a port without a password.
    sys.modules["debugpy"] = None  # type: ignore[assignment]  # makes the import fail, as if it were not installed
    import ipykernel.debugger
    import ipykernel.ipkernel
    import ipykernel.zmqshell  # noqa: F401

    del sys.modules["debugpy"]
    from . import kernel

    kernel.make_app()
    _imported("stack_data")  # IPython does so with its first traceback


def _choose_display_options() -> None:
    """How values are shown; what a session sets later wins. What was not asked for is not imported for this."""
    try:
        if pandas := sys.modules.get("pandas"):
            for name, value in PANDAS_OPTIONS.items():
                pandas.set_option(name, value)
        if numpy := sys.modules.get("numpy"):
            numpy.set_printoptions(**NUMPY_OPTIONS)
    except Exception as error:  # as in `_imported`
        print(f"kernel_host: could not choose how values are shown: {error!r}", file=sys.stderr)


def _forget_early() -> None:
    for name in NOT_BEFORE_FORK:
        for loaded_name in [module for module in sys.modules if module.partition(".")[0] == name]:
            del sys.modules[loaded_name]


def warm_up() -> None:
    """Shows a DataFrame and draws a figure, so that what these keep after their first use is shared as well.

    The same for a traceback: Python looks up the files of all modules once, which is most of the time of a first error.
    """
    try:
        inspect.getmodule(compile("", "no file", "exec"))
        if pandas := sys.modules.get("pandas"):
            from IPython.core.formatters import DisplayFormatter

            formatter: Any = DisplayFormatter()
            for _ in range(ROUNDS):
                formatter.format(pandas.DataFrame({"a": [1.5, None], "b": ["x", "y"]}))
                formatter.format(pandas.DataFrame({"a": range(3), "b": range(3)}))
        if "matplotlib.figure" in sys.modules:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure

            figure = Figure()
            figure.subplots().plot([1, 2])
            canvas: Any = FigureCanvasAgg(figure)
            canvas.print_png(io.BytesIO())
    except Exception as error:  # as in `_imported`
        print(f"kernel_host: could not warm up: {error!r}", file=sys.stderr)
    _forget_early()


def make_shell_ahead() -> None:
    """Makes IPython's shell, which each kernel would make else: a tenth of the time until its first result."""
    from . import kernel
    from .shell import SessionShell

    if kernel.IMAGE_HAS_CONFIG:  # it is read when a kernel starts
        return
    try:
        SessionShell.make_ahead()
    except Exception as error:  # as in `_imported`
        print(f"kernel_host: could not make a shell ahead: {error!r}", file=sys.stderr)
    _forget_early()


def _imported(name: str) -> bool:
    try:
        importlib.import_module(name)
    except Exception as error:  # an image's broken package must not keep every kernel from starting
        if not isinstance(error, ModuleNotFoundError):
            print(f"kernel_host: could not preload {name}: {error!r}", file=sys.stderr)
        return False
    return True


def _known_modules() -> list[str]:
    try:
        with open(MODULES_FILE, encoding="utf-8") as file:
            return [str(name) for name in json.load(file)]
    except FileNotFoundError:  # the local host has no image
        return []


def _worth_importing(name: str) -> bool:
    top = name.partition(".")[0]
    spec = getattr(sys.modules[name], "__spec__", None)
    return spec is not None and top not in (*NOT_BEFORE_FORK, "__main__", "kernel_host") and spec.name == name


def _use_font_cache() -> None:
    """Gives matplotlib the font list that was made with the image; it ignores a folder that it cannot write."""
    if os.path.isdir(MATPLOTLIB_CACHE):
        copy = tempfile.mkdtemp(prefix="kernel-host-")
        shutil.copytree(MATPLOTLIB_CACHE, f"{copy}/matplotlib")
        os.environ["MPLCONFIGDIR"] = f"{copy}/matplotlib"
