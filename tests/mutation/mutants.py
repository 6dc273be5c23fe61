"""Mutants of a source file: one changed comparison, boolean, arithmetic operation, constant or returned value each."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
ARITHMETIC = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One change: the file, the function it lies in, the line, and what it was and is."""

    path: Path
    function: str
    line: int
    change: str
    tree: ast.Module
    node: ast.AST
    apply: Callable[[ast.AST], object]

    def changed(self) -> ast.Module:
        """The whole file, changed, lines as they were. The node is found again in a copy by its place in the walk."""
        place = next(index for index, other in enumerate(ast.walk(self.tree)) if other is self.node)
        changed = copy.deepcopy(self.tree)
        self.apply(next(other for index, other in enumerate(ast.walk(changed)) if index == place))
        return ast.fix_missing_locations(changed)


def mutants(path: Path) -> Iterator[Mutant]:
    """Every mutant of a file. Code outside functions, messages and annotations are left alone."""
    tree = ast.parse(path.read_text())
    for function, name in _functions(tree):
        for node in _inside(function):
            for change, apply in _changes(node):
                yield Mutant(path, name, getattr(node, "lineno", 0), change, tree, node, apply)


def _functions(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    def walk(node: ast.AST, prefix: str) -> Iterator[tuple[ast.AST, str]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                yield from walk(child, f"{prefix}{child.name}.")
            elif isinstance(child, ast.FunctionDef):
                yield child, f"{prefix}{child.name}"

    yield from walk(tree, "")


def _inside(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """Nodes of a body, without messages of errors, formatted text and annotations."""

    def walk(node: ast.AST) -> Iterator[ast.AST]:
        if isinstance(node, ast.Raise | ast.JoinedStr | ast.Assert):
            return
        yield node
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "decorator_list", "type_params"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from walk(child)

    for statement in function.body:
        yield from walk(statement)


def _changes(node: ast.AST) -> Iterator[tuple[str, object]]:
    """(what changes, function that changes a copy of the node in place)."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in COMPARISONS:
        new = COMPARISONS[type(node.ops[0])]
        yield f"{type(node.ops[0]).__name__} -> {new.__name__}", lambda item: item.ops.__setitem__(0, new())
    elif isinstance(node, ast.BoolOp):
        other = ast.Or if isinstance(node.op, ast.And) else ast.And
        yield f"{type(node.op).__name__} -> {other.__name__}", lambda item: setattr(item, "op", other())
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "not dropped", lambda item: setattr(item, "op", ast.UAdd()) or _as_bool(item)
    elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        new = ARITHMETIC[type(node.op)]
        yield f"{type(node.op).__name__} -> {new.__name__}", lambda item: setattr(item, "op", new())
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield f"{node.value} -> {not node.value}", lambda item: setattr(item, "value", not item.value)
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
        yield f"{node.value} -> {node.value + 1}", lambda item: setattr(item, "value", item.value + 1)
    elif isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
        yield "returns None", lambda item: setattr(item, "value", ast.Constant(None))


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _as_bool(item: ast.UnaryOp) -> None:
    """``not x`` becomes ``not not x``: the truth of x."""
    item.op, item.operand = ast.Not(), ast.UnaryOp(ast.Not(), item.operand)
