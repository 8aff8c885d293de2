"""Every test asserts something on every run: an assertion that only a loop or a condition reaches may never run.

A loop counts if what it goes over cannot be empty: written out in place or as a constant of the file. Where it may be
empty, assert its size first, or go over `each(...)` of it.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

Function = ast.FunctionDef | ast.AsyncFunctionDef
EACH = "each"  # tests.conftest.each fails where there is nothing
WRAPPED = {"zip", "enumerate", "sorted", "list", "tuple", "reversed", "set", "permutations", "pairwise"}
METHODS = {"items", "keys", "values"}


class File:
    """One test file: the functions and constants by which its tests may assert."""

    def __init__(self, tree: ast.Module) -> None:
        self.functions = {n.name: n for n in ast.walk(tree) if isinstance(n, Function)}
        self.constants = {
            target.id: node.value
            for node in tree.body
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(target, ast.Name)
        }
        self.tests = [
            node
            for scope in (tree, *(n for n in tree.body if isinstance(n, ast.ClassDef)))
            for node in scope.body
            if isinstance(node, Function) and node.name.startswith("test")
        ]

    def certain(self, body: Sequence[ast.stmt], seen: frozenset[str] = frozenset()) -> bool:
        """True if running these statements to their end runs an assertion."""
        return any(self._certain(statement, seen) for statement in body)

    def _certain(self, node: ast.stmt, seen: frozenset[str]) -> bool:
        match node:
            case ast.Assert():
                return not self._vacuous(node.test)
            case ast.With() | ast.AsyncWith():
                if any(_name(x.context_expr) in ("raises", "warns", "fails") for x in node.items):
                    return True
                return self.certain(node.body, seen)
            case ast.Try():
                return self.certain([*node.body, *node.finalbody], seen)
            case ast.If():
                return self.certain(node.body, seen) and self.certain(node.orelse, seen)
            case ast.For() | ast.AsyncFor():
                return self.filled(node.iter) and self.certain(node.body, seen)
            case ast.Expr() | ast.Assign() | ast.Return():
                calls = [x for x in ast.walk(node) if isinstance(x, ast.Call)]
                return any(self._asserts(call, seen) for call in calls)
        return False

    def _vacuous(self, node: ast.expr) -> bool:
        """True if an assertion holds where a collection is empty: `all(...)` of one that may be, `not any(...)`."""
        match node:
            case ast.BoolOp(op=ast.And()):
                return all(self._vacuous(x) for x in node.values)
            case ast.UnaryOp(op=ast.Not(), operand=ast.Call() as call) if _name(call) == "any":
                return self._over_what_may_be_empty(call)
            case ast.Call() if _name(node) == "all":
                return self._over_what_may_be_empty(node)
        return False

    def _over_what_may_be_empty(self, call: ast.Call) -> bool:
        match call.args:
            case [ast.GeneratorExp() | ast.ListComp() as found]:
                return any(x.ifs or not self.filled(x.iter) for x in found.generators)
        return False

    def _asserts(self, call: ast.Call, seen: frozenset[str]) -> bool:
        """True if a call asserts: a function of the file that does, or a library's assert_something or fail."""
        name = _name(call)
        if name.startswith("assert") or name == "fail":
            return True
        found = self.functions.get(name)
        return found is not None and name not in seen and self.certain(found.body, seen | {name})

    def filled(self, node: ast.expr) -> bool:
        """True if a collection is seen to have at least one element."""
        match node:
            case ast.List() | ast.Tuple() | ast.Set():
                return any(not isinstance(x, ast.Starred) or self.filled(x.value) for x in node.elts)
            case ast.Dict():
                return any(
                    key is not None or self.filled(value) for key, value in zip(node.keys, node.values)
                )
            case ast.Constant(value=str() | bytes() as text):
                return len(text) > 0
            case ast.Name():
                return node.id in self.constants and self.filled(self.constants[node.id])
            case ast.BinOp(op=ast.Add() | ast.BitOr()):
                return self.filled(node.left) or self.filled(node.right)
            case ast.Call(func=ast.Attribute(value=value, attr=attr)) if attr in METHODS:
                return self.filled(value)
            case ast.Call(func=ast.Name(id="range"), args=[*_, ast.Constant(value=int(stop))]):
                start = node.args[0] if len(node.args) > 1 else ast.Constant(0)
                return isinstance(start, ast.Constant) and isinstance(start.value, int) and start.value < stop
            case ast.Call() if _name(node) == EACH:
                return True
            case ast.Call(func=ast.Name(id="zip"), keywords=[ast.keyword(arg="strict")]):
                return any(self.filled(x) for x in node.args)
            case ast.Call() if _name(node) in WRAPPED and node.args:
                return all(self.filled(x) for x in node.args)
            case ast.Call() if _name(node) == "product":
                return all(self.filled(x) for x in node.args)
            case ast.ListComp(generators=[one]) if not one.ifs:
                return self.filled(one.iter)
        return False


def _name(node: ast.expr) -> str:
    """The last name of a called function: `raises` of pytest.raises(...)."""
    target = node.func if isinstance(node, ast.Call) else node
    return target.attr if isinstance(target, ast.Attribute) else getattr(target, "id", "")


def uncertain(source: str) -> list[str]:
    """The tests of a file that may end without having asserted anything."""
    file = File(ast.parse(source))
    return [test.name for test in file.tests if not file.certain(test.body)]


PATHS = sorted((REPOSITORY / "tests").rglob("test_*.py"))


def test_there_are_test_files() -> None:
    assert len(PATHS) > 150


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_no_test_asserts_only_where_a_loop_or_a_condition_may_never_go(path: Path) -> None:
    assert uncertain(path.read_text(encoding="utf-8")) == []


GOOD = """
CASES = {"a": 1}
def check(x):
    assert x
def test_plain(): assert True
def test_raises():
    with pytest.raises(ValueError): f()
def test_written_out():
    for x in (1, 2): assert x
def test_constant():
    for k, v in sorted(CASES.items()): assert v
def test_range():
    for i in range(3): assert i
def test_helper(): check(1)
def test_both():
    if f(): assert 1
    else: assert 2
def test_each():
    for x in each(found()): assert x
def test_zipped():
    for x, y in zip(each(found()), other(), strict=True): assert x
def test_all(): assert all(x for x in each(found()))
def test_numpy(): np.testing.assert_allclose(a, b)
async def test_inside():
    async with client() as c:
        assert c
"""
BAD = """
KINDS = known()
def check(xs):
    for x in xs: assert x
def test_loop():
    for x in found(): assert x
def test_condition():
    if f(): assert 1
def test_unknown():
    for x in KINDS: assert x
def test_helper(): check([])
def test_empty():
    for x in (): assert x
def test_empty_range():
    for i in range(0): assert i
def test_caught():
    try: f()
    except ValueError: assert 1
def test_nothing(): f()
def test_all(): assert all(x for x in found())
def test_not_any(): assert not any(x for x in found())
def test_filtered(): assert all(x for x in (1, 2) if f(x))
def test_while():
    while f(): assert 1
"""


def test_the_check_itself_finds_what_it_should() -> None:
    assert uncertain(GOOD) == []
    assert uncertain(BAD) == [
        line[4:].split("(")[0] for line in BAD.splitlines() if line.startswith("def test")
    ]
