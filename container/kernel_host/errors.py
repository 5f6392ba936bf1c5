"""What ipykernel's shell says of errors, where a reader would be misled."""

from __future__ import annotations

import builtins
import inspect
import os
import traceback
import warnings
from typing import Any

from ipykernel.zmqshell import ZMQInteractiveShell
from IPython.core.compilerop import CachingCompiler
from IPython.core.error import UsageError

from .identity import reserved_files

MAX_CHAIN = 1_000  # exceptions raised while others were handled


class CellCompiler(CachingCompiler):
    """IPython's own compiler of cells.

    ipykernel's names cells after files that do not exist. IPython then shows wrong lines of an exception that was handled
    (it takes those files for empty ones), and warnings and threads do not tell the number of the cell.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reset_compiler_flags()  # else an open bracket is told as "incomplete input"

    def cache(self, *args: Any, **kwargs: Any) -> str:
        """Keeps the source of a cell; returns the name of its code."""
        name = super().cache(*args, **kwargs)
        # For a traceback, the module of each frame is looked up. For files that are none this goes through all modules,
        # which took five seconds for a RecursionError.
        vars(inspect)["modulesbyfile"][os.path.abspath(name)] = "__main__"
        return name


class ErrorShell(ZMQInteractiveShell):
    """Errors of every kind come as one `error` message."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "compiler_class": CellCompiler})
        warnings.filterwarnings("ignore", "To exit: use", module="IPython")  # nobody has a keyboard here
        warnings.filterwarnings("ignore", "IProgress not found", module="tqdm")  # nor widgets

    def showtraceback(self, exc_tuple: Any = None, *args: Any, **kwargs: Any) -> None:
        """Sends exception groups too, which IPython prints on stderr."""
        try:
            kind, value, _ = self._get_exc_info(exc_tuple)
        except ValueError:
            kind, value = None, None
        with reserved_files():  # the lines of source in it are read from files
            if _holds_group(value):
                self._showtraceback(kind, value, traceback.format_exception(value))
            else:
                super().showtraceback(exc_tuple, *args, **kwargs)

    def show_usage_error(self, exc: BaseException) -> None:
        """Sends what is wrong with a magic; IPython prints it, and it would come a second time with the reply."""
        self._showtraceback(UsageError, exc, [f"UsageError: {exc}"])


def _holds_group(value: BaseException | None) -> bool:
    """Whether the exception, or one that was handled when it was raised, is a group; Python 3.10 has none."""
    group = getattr(builtins, "BaseExceptionGroup", ())
    for _ in range(MAX_CHAIN):
        if value is None or isinstance(value, group):
            break
        value = value.__context__
    return isinstance(value, group)
