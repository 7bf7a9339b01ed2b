"""The public names are those in `__all__`, and the tree of errors is the one that is drawn."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import outlast
from outlast import _errors


def test_every_public_name_is_there_and_no_other():
    """`__all__`, `dir()`, what type checkers see, and what can be got are the same names."""
    assert sorted(outlast.__all__) == outlast.__all__
    assert dir(outlast) == outlast.__all__
    assert typed_names() == set(outlast.__all__)
    for name in outlast.__all__:
        assert getattr(outlast, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error():
    """As for any module."""
    with pytest.raises(AttributeError, match="Rum"):
        outlast.Rum


def test_the_drawn_tree_of_errors_is_the_real_one():
    """Each class at its place, with its exit code where the drawing names one."""
    drawn = drawn_tree(_errors.__doc__)
    real = {
        name: value.__mro__[1].__name__
        for name, value in vars(_errors).items()
        if isinstance(value, type) and value.__module__ == _errors.__name__
    }
    assert {name: parent for name, (parent, _) in drawn.items()} == real
    for name, (_, code) in drawn.items():
        if code is not None:
            made = getattr(_errors, name)("x")
            assert code == (made.code if isinstance(made, SystemExit) else made.exit_code), name


def test_every_error_is_public():
    """What can be raised can be caught by name."""
    errors = {n for n, v in vars(_errors).items() if isinstance(v, type) and issubclass(v, BaseException)}
    assert errors <= set(outlast.__all__)


def test_exits_carry_their_message():
    """str() is for people, the code for the supervisor."""
    for exit_, code in [(outlast.Preempted("why"), 75), (outlast.Superseded("why"), 76)]:
        assert (str(exit_), exit_.code) == ("why", code)
        assert not isinstance(exit_, Exception)


def typed_names() -> set[str]:
    """The names under `if TYPE_CHECKING` of the package."""
    tree = ast.parse(Path(outlast.__file__).read_text())
    (block,) = [n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    return {alias.name for node in block.body for alias in node.names}


def drawn_tree(text: str) -> dict[str, tuple[str, int | None]]:
    """Name -> (parent, exit code) as drawn with box characters, four columns a level."""
    stack: list[str] = []
    tree = {}
    for line in text.splitlines():
        match = re.match(r"^([│├└─ ]*)([A-Z]\w+)(?:\s{2,}.*)?$", line)
        if match is None:
            continue
        depth = len(match.group(1)) // 4
        stack[depth:] = [match.group(2)]
        code = re.search(r"exit (\d+)", line)
        parent = stack[depth - 1] if depth else "Exception"
        tree[match.group(2)] = (parent, int(code.group(1)) if code else None)
    tree.pop("SystemExit")
    return tree
