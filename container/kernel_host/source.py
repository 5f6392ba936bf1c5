"""What the source of a cell says of variables, where their values do not tell: what it sets in place, what it imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import suppress

MAX_NODES = 10_000  # of a cell's syntax tree; larger cells are looked at in part
# First words of methods that change what they are called on, such as add_edge, set_title, fit_transform.
MUTATORS = {
    *("add", "append", "appendleft", "clear", "discard", "extend", "extendleft", "fill", "fit", "insert", "partial"),
    *("pop", "popitem", "popleft", "push", "put", "remove", "reverse", "set", "setdefault", "sort", "update"),
}
NOT_NOW = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)  # what is inside runs later, or elsewhere


class Source:
    """An AST transformer that changes nothing: IPython shows it the tree of each cell, also of `%%time`.

    Attributes:
        assigned: variables of which a part is set or deleted.
        called: variables of which a method with one of the names in MUTATORS is called.
        imported: names that are imported, and not assigned as well.
        star_modules: modules of which all names are imported.
    """

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """A cell is about to run."""
        self.assigned: set[str] = set()
        self.called: set[str] = set()
        self.imported: set[str] = set()
        self.star_modules: set[str] = set()
        self._stored: set[str] = set()

    def visit(self, tree: ast.AST) -> ast.AST:
        """Notes what a cell does; IPython would drop a transformer that raises."""
        with suppress(Exception):
            for node in _nodes(tree):
                self._note(node)
            self.imported -= self._stored
        return tree

    def _note(self, node: ast.AST) -> None:
        match node:
            case ast.Name(id=name, ctx=ast.Store()):
                self._stored.add(name)
            case ast.Subscript(ctx=ast.Store() | ast.Del()) | ast.Attribute(ctx=ast.Store() | ast.Del()):
                self.assigned.add(_root(node))
            case ast.AugAssign(target=target):
                self.assigned.add(_root(target))
            case ast.Call(func=ast.Attribute(attr=method, value=value), keywords=keywords):
                if any(keyword.arg == "inplace" for keyword in keywords):
                    self.assigned.add(_root(value))
                elif method.partition("_")[0] in MUTATORS:
                    self.called.add(_root(value))
            case ast.ImportFrom(module=module, names=[ast.alias(name="*")]):
                self.star_modules.add(module or "")
            case ast.ImportFrom(names=names) | ast.Import(names=names):
                self.imported.update(alias.asname or alias.name for alias in names)


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """What of a cell runs when it runs."""
    waiting = [tree]
    for _ in range(MAX_NODES):
        if not waiting:
            return
        node = waiting.pop()
        if not isinstance(node, NOT_NOW):
            yield node
            waiting.extend(ast.iter_child_nodes(node))


def _root(target: ast.AST) -> str:
    """The variable in which something is set; "" if it is none."""
    while isinstance(target, (ast.Subscript, ast.Attribute)):
        target = target.value
    return target.id if isinstance(target, ast.Name) else ""
