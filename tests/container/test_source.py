"""What the source of a cell says of variables."""

from __future__ import annotations

import ast

import pytest
from kernel_host.source import MAX_NODES, Source


def look(code: str) -> Source:
    """What a cell's source says."""
    source = Source()
    source.visit(ast.parse(code))
    return source


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("a[0] = 1", "a"),
        ("a.b.c[0].d = 1", "a"),
        ("a += 1", "a"),
        ("a[0], (b.x, *c[1:]) = 1, (2, 3)", "a b c"),
        ("del a[0], b.x, c", "a b"),
        ("a.x: int = 1", "a"),
        ("for a[0] in b: pass", "a"),
        ("with b as a.x: pass", "a"),
        ("if False:\n  try: a[0] = 1\n  except E: b[0] = 1\n  finally: c[0] = 1", "a b c"),
        ("df.sort_values('x', inplace=True)", "df"),
        ("a = 1; b: int = 2; c = a[0]; a.x; del c", ""),
        ("f(a)[0] = 1; g().x = 2", ""),
        ("def f():\n  a[0] = 1\nclass C:\n  a[0] = 1\nlambda: a.append(1)", ""),
    ],
)
def test_names_of_which_a_part_is_set(code: str, names: str) -> None:
    """Ours: also in a branch that was not taken; where a mark is exact, it is right."""
    assert look(code).assigned - {""} == set(names.split())


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("a.append(1)", "a"),
        ("a.b.add_edge(1, 2)", "a"),
        ("_ = a.fit(x).score(x)", "a"),
        ("[row.update(x=1) for row in rows]", "row"),
        ("print(a.pop())", "a"),
        ("ax.set_title('x')", "ax"),
        ("a.mean(); a.get('x'); a.copy(); a.settle()", ""),
    ],
)
def test_names_of_which_a_changing_method_is_called(code: str, names: str) -> None:
    """Ours: for objects that cannot be looked into."""
    assert look(code).called - {""} == set(names.split())


def test_imported_names() -> None:
    """Ours: they are no variables, unless the cell gives them another value."""
    source = look(
        "import a, b.c as d; from e import f, g as h\nfrom i import *\ntry: from j import k\nexcept E: k = None"
    )
    assert source.imported == {"a", "d", "f", "h"}
    assert source.star_modules == {"i"}


def test_huge_and_deep_cells_are_looked_at_in_part() -> None:
    """IPython drops a transformer that raises, and a cell should not take longer because of this."""
    assert look("a[0] = 1\n" * MAX_NODES).assigned == {"a"}
    deep = ast.parse("x")
    for _ in range(5000):
        deep = ast.Module([ast.Expr(ast.Starred(deep, ast.Load()))], [])  # type: ignore[arg-type]  # no real program
    source = Source()
    assert source.visit(deep) is deep
    source.visit(None)  # type: ignore[arg-type]  # another transformer may return anything
