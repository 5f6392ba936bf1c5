"""A look at the session's variables while a cell is running: `list_variables_request` on the control channel.

It runs in a thread of its own. On the control channel's thread an expression that does not end would hold up
interrupts, and a subshell (JEP 91) would become the parent of what the running cell's threads print.
"""

from __future__ import annotations

import ast
import ctypes
import inspect
import io
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, ClassVar

from .text import sendable
from .variables import Variables, describe

LOOK_SECONDS = 5.0
MAX_LISTED = 200
MAX_TEXT = 100_000  # characters
MAX_LOOKS = 4  # at a time; those that do not end stay
SHOWN = (bool, int, float, complex)  # a text may be a password

Answer = Callable[[dict[str, Any]], None]

_printed: ContextVar[io.StringIO | None] = ContextVar("printed", default=None)


def capture(text: str) -> bool:
    """Takes what the expression of a look prints; False if nobody looks in this thread."""
    printed = _printed.get()
    if printed is not None and printed.tell() <= MAX_TEXT:
        printed.write(text)
    return printed is not None


class Look:
    """One look, answered exactly once: with what was found, or when LOOK_SECONDS have passed."""

    _running: ClassVar[set[threading.Thread]] = set()

    def __init__(self, shell: Any, variables: Variables, expression: str, answer: Answer) -> None:
        self._shell = shell
        self._variables = variables
        self._expression = expression
        self._answer = answer
        self._thread = threading.Thread(target=self._work, name="list_variables", daemon=True)
        self._lock = threading.Lock()
        self._answered = False

    def start(self) -> None:
        """Begins to look."""
        self._running.intersection_update({thread for thread in self._running if thread.is_alive()})
        if self._expression and len(self._running) >= MAX_LOOKS:
            self._send({"error": f"{MAX_LOOKS} earlier expressions are still being evaluated."})
            return
        try:
            self._thread.start()
        except RuntimeError as error:
            self._send({"error": f"The session has too many threads: {error}."})
        else:
            self._running.add(self._thread)

    def give_up(self) -> None:
        """Answers that it takes too long, and stops it if it is Python code that runs there."""
        if self._send({"error": f"It did not end within {LOOK_SECONDS:g} s."}) and self._thread.ident:
            # Of all exceptions this is the one that nobody catches, and that ends a thread without a word.
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread.ident), ctypes.py_object(SystemExit))

    def _work(self) -> None:
        try:
            content = self._evaluate() if self._expression else self._list()
        except SyntaxError as error:
            content = {"error": f"SyntaxError: {_text(error.msg)}; peek takes one expression."}
        except BaseException as error:  # the session's code may raise anything
            content = {"error": f"{type(error).__name__}: {_text(error)}"}
        self._send(content)

    def _send(self, content: dict[str, Any]) -> bool:
        with self._lock:
            first, self._answered = not self._answered, True
        if first:
            self._answer(content)
        return first

    def _evaluate(self) -> dict[str, Any]:
        tree = ast.parse(self._expression.strip(), "<peek>", "eval")
        printed = io.StringIO()
        _printed.set(printed)
        value = eval(compile(tree, "<peek>", "eval"), self._shell.user_global_ns, self._shell.user_ns)  # noqa: S307
        shown = "" if value is None and printed.tell() else self._show(value)
        return {"text": _text(printed.getvalue() + shown)}

    def _show(self, value: Any) -> str:
        # What is around the formatter shows errors of `__repr__` as output of the running cell.
        formatter = self._shell.display_formatter.formatters["text/plain"]
        return str(inspect.unwrap(type(formatter).__call__)(formatter, value))

    def _list(self) -> dict[str, Any]:
        variables = list(self._variables.own())
        listed = []
        for name, value in variables[:MAX_LISTED]:
            shown = {"value": repr(value)[:60]} if type(value) in SHOWN and not _is_huge(value) else {}
            listed.append({"name": _text(name)[:100], **describe(value), **shown})
        return {"variables": listed, "more": max(0, len(variables) - MAX_LISTED)}


def _is_huge(value: Any) -> bool:
    return type(value) is int and value.bit_length() > 256


def _text(value: object) -> str:
    text = sendable(str(value))
    if len(text) <= MAX_TEXT:
        return text
    half = MAX_TEXT // 2
    return f"{text[:half]}\n… {len(text) - 2 * half} characters left out …\n{text[-half:]}"
