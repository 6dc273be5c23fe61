"""The files of the room that catches attention calls import each other in one direction, whatever kind of import."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import genkit

PACKAGE = Path(genkit.__file__).parent


def _graph(folder: Path) -> dict[str, set[str]]:
    """File -> files of the same folder it imports, also inside functions and for types; ``__init__`` stands aside."""
    names = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    graph = {}
    for name in names:
        room = f"genkit.{folder.name}"
        found = set()
        for node in ast.walk(ast.parse((folder / f"{name}.py").read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == room:
                found |= {alias.name if alias.name in names else "__init__" for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(room + "."):
                found.add(node.module.split(".")[2])
            elif isinstance(node, ast.Import):
                own = [alias.name.split(".") for alias in node.names if alias.name.startswith(room)]
                found |= {parts[2] if len(parts) > 2 else "__init__" for parts in own}
        graph[name] = found
    return graph


def _circle(graph: dict[str, set[str]]) -> list[str]:
    """A path of imports that ends where it began, or nothing."""
    clear: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in clear:
            return []
        for other in sorted(graph.get(name, ())):
            found = visit(other, [*path, name])
            if found:
                return found
        clear.add(name)
        return []

    return next(filter(None, (visit(name, []) for name in sorted(graph))), [])


@pytest.mark.parametrize("room", ["patching", "families"])
def test_no_circle_of_imports(room):
    graph = _graph(PACKAGE / room)
    assert not _circle(graph)
    assert not any("__init__" in others for others in graph.values()), "files import files, not their room"


def test_circles_are_found():
    assert _circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert _circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
