"""Imports go down, never up; leaves import no room; a light `import genkit`. Read from the source, not from a run."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "genkit"
FLOORS = [
    {"errors", "layout", "plugins", "reading", "schema"},
    {"kernels"},
    {"attention"},
    {"families"},
    {"patching"},
    {"lora"},
    {"control"},
    {"editing", "streaming"},
    {"pipelines"},
    {"training", "evaluation"},
    {"demo"},
    {"cli", "__main__"},
]
LEAVES = {"world", "media", "models"}
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def _files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def _room(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def _imports(path: Path) -> set[str]:
    """Every genkit module a file imports anywhere, also inside functions and for types."""
    return _imported(ast.parse(path.read_text()), path)


def _imported(tree: ast.Module, path: Path) -> set[str]:
    found = set()
    here = ["genkit", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*here[: len(here) - node.level + 1], *filter(None, [base])])
            found |= {f"{base}.{alias.name}" for alias in node.names} | {base}
    return {name for name in found if name.split(".")[0] == "genkit"}


def _rooms(path: Path) -> set[str]:
    rooms = {name.split(".")[1] for name in _imports(path) if "." in name}
    return rooms & (set(FLOOR) | LEAVES)


def test_every_room_has_a_floor():
    rooms = {_room(path) for path in _files()}
    assert rooms - set(FLOOR) - LEAVES == set()


@pytest.mark.parametrize("path", _files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    room = _room(path)
    for other in _rooms(path) - {room}:
        if room in LEAVES:
            assert other in FLOORS[0], f"{room} is a leaf, but {path.name} imports genkit.{other}"
        elif other not in LEAVES:
            assert FLOOR[other] <= FLOOR[room], f"{room} is below {other}, but {path.name} imports it"


def test_no_kernel_implementation_imports_another():
    """Backends know the shared files of their operator and the floor's, no other implementation of any operator but
    that whose variant they are, by name (``flex_tma`` of ``flex``)."""
    for path in (PACKAGE / "kernels").glob("*/impl/**/*.py"):
        operator, _, own = path.relative_to(PACKAGE / "kernels").with_suffix("").parts[:3]
        if own == "__init__":
            continue
        for name in _imports(path):
            parts = name.split(".")
            if parts[:2] == ["genkit", "kernels"] and "impl" in parts:
                place = parts.index("impl")
                other = (*parts[place + 1 :], own)[0]
                assert parts[2:place] == [operator] and f"{own}_".startswith(f"{other}_"), f"{path} imports {name}"


def test_no_family_imports_a_sibling():
    """Families of models know the shared files, not each other."""
    from genkit.families.lookup import SHARED

    for path in (PACKAGE / "families").glob("*.py"):
        if path.stem not in (*SHARED, "__init__"):
            others = {name.split(".")[2] for name in _imports(path) if name.startswith("genkit.families.")}
            assert others <= set(SHARED), f"{path.name} imports {others - set(SHARED)}"


def _sideways(room: Path) -> set[str]:
    """Imports of a method's folder from outside of it: by a sibling method or by the shared modules beside them."""
    methods = {folder.parent.name for folder in room.glob("*/__init__.py")}
    found = set()
    for path in room.rglob("*.py"):
        inside = path.relative_to(room).parts
        own = inside[0] if len(inside) > 1 else None
        for name in _imports(path):
            last = name.split(".")
            if last[:2] == ["genkit", "attention"] and len(last) > 2 and last[2] in methods - {own}:
                found.add(f"{'/'.join(inside)} imports {name}")
    return found


def test_no_method_imports_a_sibling_and_shared_mathematics_imports_no_method():
    assert _sideways(PACKAGE / "attention") == set()


def test_a_method_that_imports_a_sibling_is_seen(tmp_path, monkeypatch):
    room = tmp_path / "genkit" / "attention"
    sources = {
        "one": "def f():\n    from genkit.attention.two import Two\n",
        "two": "from genkit.attention.static import StaticMethod\nfrom . import mask\n",
        "three": "from genkit.attention import two\n",
        "four": "from ..three.method import x\n",
    }
    for name, source in sources.items():
        (room / name).mkdir(parents=True)
        (room / name / "__init__.py").write_text("")
        (room / name / "method.py").write_text(source)
    (room / "static.py").write_text("import genkit.attention.one\n")
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path / "genkit")
    assert {found.split(" imports ")[0] for found in _sideways(room)} == {
        "one/method.py", "three/method.py", "four/method.py", "static.py"
    }  # fmt: skip


def _modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = ("genkit", *path.relative_to(PACKAGE).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _runtime_imports(path: Path, modules: set[str]) -> Iterator[str]:
    """Imports of a file at any level, without those that only a type checker reads. ``from package import module`` is
    an import of the module: that its package is entered first makes no circle."""
    tree = ast.parse(path.read_text())
    typed = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    for node in typed:
        node.body = [ast.Pass()]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            base = _imported(ast.Module([ast.ImportFrom(node.module, [], node.level)], []), path)
            for alias in node.names:
                wanted = {f"{name}.{alias.name}" for name in base}
                yield from wanted & modules or base
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def _circles(modules: dict[str, Path]) -> set[frozenset[str]]:
    """Groups of modules that import each other, directly or by way of others (Tarjan)."""
    arrows = {
        name: set(_runtime_imports(path, set(modules))) & (set(modules) - {name}) for name, path in modules.items()
    }
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found = set()

    def visit(name: str) -> None:
        number[name] = lowest[name] = len(number)
        stack.append(name)
        for other in sorted(arrows[name]):
            if other not in number:
                visit(other)
            if other in stack:
                lowest[name] = min(lowest[name], lowest[other])
        if lowest[name] == number[name]:
            at = stack.index(name)
            if len(stack) - at > 1:
                found.add(frozenset(stack[at:]))
            del stack[at:]

    for name in sorted(arrows):
        if name not in number:
            visit(name)
    return found


def test_no_circle_of_imports():
    """Neither at the top of files nor inside functions."""
    assert _circles(_modules()) == set()


def test_a_circle_is_seen_through_functions_and_packages(tmp_path, monkeypatch):
    sources = {
        "__init__": "", "one": "def f():\n    from genkit.two import x\n", "two": "from genkit import three\n",
        "three": "from . import one\n", "five": "import genkit.four\n",
        "four": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import genkit.five\n",
    }  # fmt: skip
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path / "genkit")
    (tmp_path / "genkit").mkdir()
    for name, source in sources.items():
        (tmp_path / "genkit" / f"{name}.py").write_text(source)
    assert _circles(_modules()) == {frozenset({"genkit.one", "genkit.two", "genkit.three"})}


def test_every_room_is_in_the_picture():
    """``docs/img/rooms.svg`` shows the rooms there are."""
    drawn = (PACKAGE.parent / "docs" / "img" / "rooms.svg").read_text()
    rooms = {_room(path) for path in _files()} - {"__main__"}
    assert [room for room in sorted(rooms) if f">{room}<" not in drawn] == []


def test_contributors_are_told_every_room_and_its_floor():
    """The table in ``CONTRIBUTING.md`` and the sentence below it say what this file says."""
    told = (PACKAGE.parent / "CONTRIBUTING.md").read_text()
    found = re.findall(r"^\| (\w+) \| `genkit/(\w+)(?:\.py)?` \|", told, re.MULTILINE)
    rows = {room: floor for floor, room in found}
    rooms = {room: str(floor + 1) for room, floor in FLOOR.items()}
    folders = {path.relative_to(PACKAGE).parts[0] for path in PACKAGE.glob("*/**/*") if path.suffix in (".py", ".yaml")}
    assert rows == rooms | dict.fromkeys(LEAVES, "leaf") | dict.fromkeys(folders - set(FLOOR) - LEAVES, "data")
    assert len(found) == len(rows)
    floors, leaves = re.search(r"never up:(.+?)\.\s+(.+?) are leaves", told, re.DOTALL).groups()
    assert [set(re.findall(r"`(\w+)`", floor)) for floor in floors.split("→")] == FLOORS
    assert set(re.findall(r"`(\w+)`", leaves)) == LEAVES


def test_the_source_is_read_rightly(tmp_path, monkeypatch):
    """The reader of imports sees function-level, relative and typed imports."""
    source = (
        "from __future__ import annotations\ndef f():\n    from genkit.cli import main\n    import genkit.training\n"
    )
    file = tmp_path / "genkit" / "kernels" / "deep" / "x.py"
    file.parent.mkdir(parents=True)
    file.write_text(source + "from ..other import y\nfrom . import z\nfrom genkit import media\n")
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path / "genkit")
    assert _rooms(file) == {"cli", "kernels", "media", "training"}


HEAVY = ("torch", "diffusers", "transformers", "triton", "gradio", "accelerate", "peft", "numpy", "imageio", "av")


def test_import_genkit_is_light():
    code = f"import sys, genkit; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_listing_methods_needs_no_heavy_library():
    code = (
        "import sys, genkit; genkit.families(); genkit.Schedule(steps='1:');"
        "print([name for name in ('diffusers', 'transformers', 'triton', 'gradio') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_everything_offered_exists():
    """In a fresh interpreter: what dir(genkit) lists can be had, before and after it is loaded."""
    code = "import genkit\nfor name in dir(genkit):\n    getattr(genkit, name)\nprint(*dir(genkit))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    offered = set(done.stdout.split())
    assert rooms - FLOORS[0] <= offered
    assert {"Radial", "patch", "families"} <= offered and not {"Any", "importlib", "re"} & offered


def test_a_folder_called_genkit_does_not_hide_the_package(tmp_path):
    """The parent of a clone as working directory: the clone's folder is no package."""
    (tmp_path / "genkit" / "genkit").mkdir(parents=True)
    code = "import genkit; print(genkit.__file__, genkit.load.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.split() == [str(PACKAGE / "__init__.py"), "load"], done.stderr


def test_public_names():
    import genkit
    from genkit.attention.registry import names

    for name in ("families", *genkit._EXPORTS):
        assert getattr(genkit, name) is not None and name in dir(genkit)
    for method in names():
        class_name = "".join(part.capitalize() for part in method.split("_"))
        assert getattr(genkit, class_name).name == method
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        genkit.nothing  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        genkit.Nothing  # noqa: B018


def test_names_of_test_files_are_unique():
    """Pytest imports test files by their name alone: the second of two stops the collection of the whole suite."""
    seen: dict[str, Path] = {}
    for path in sorted(Path(__file__).parent.rglob("test_*.py")):
        assert path.name not in seen, f"{path} and {seen[path.name]} have one name; rename one"
        seen[path.name] = path
