"""JSON, YAML and TOML are parsed in ``genkit.reading`` alone, which bounds them; told from the source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from genkit.errors import ArtifactError

PACKAGE = Path(__file__).parents[2] / "genkit"
PARSERS = {"json", "yaml", "tomllib"}
READS = {"load", "loads", "load_all", "safe_load", "safe_load_all", "full_load", "unsafe_load", "JSONDecoder"}
#: (file, what is parsed) -> why it needs no limits.
ALLOWED = {
    ("training/data/folder/encoded.py", "backend.to_str()"): "made in memory by a tokenizer that is loaded already",
    ("models/tensors.py", "stream.read(length)"): "the head of a file that was written just now",
    ("demo/engine/training.py", "line"): "progress that a process of our own writes, line by line",
    ("attention/weights.py", "json.dumps(value)"): "own settings, as a file would give them back",
    ("evaluation/tuning/store.py", "json.dumps(about)"): "what a run is, as a file would give it back",
    ("evaluation/tuning/report.py", "json.dumps(measured)"): "own numbers, as a file would give them back",
}


def _parsed(source: str) -> list[str]:
    """What a source hands to a parser of JSON, YAML or TOML; the parser's name where it is only mentioned."""
    tree = ast.parse(source)
    modules = {
        alias.asname or alias.name: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name in PARSERS
    }
    names = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module in PARSERS
        for alias in node.names
        if alias.name in READS
    }

    def parser(node: ast.AST) -> bool:
        if isinstance(node, ast.Attribute):
            return node.attr in READS and isinstance(node.value, ast.Name) and node.value.id in modules
        return isinstance(node, ast.Name) and node.id in names

    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and parser(node.func)]
    called = {id(node.func) for node in calls}
    found = [ast.unparse(node.args[0]) if node.args else ast.unparse(node) for node in calls]
    return found + [ast.unparse(node) for node in ast.walk(tree) if parser(node) and id(node) not in called]


def test_only_the_room_for_reading_parses():
    found = {
        (str(path.relative_to(PACKAGE)), given)
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).parts[0] != "reading"
        for given in _parsed(path.read_text())
    }
    assert found == set(ALLOWED), "read files with genkit.reading, or say here why a text needs no limits"


@pytest.mark.parametrize(
    "source, given",
    [
        ("import json\njson.loads(path.read_text())", ["path.read_text()"]),
        ("def f():\n    import json as j\n    return j.load(stream)", ["stream"]),
        ("from json import loads as read\nread(text)", ["text"]),
        ("import yaml\nyaml.safe_load(text)", ["text"]),
        ("import tomllib\ntomllib.load(stream)", ["stream"]),
        ("import json\nlist(map(json.loads, lines))", ["json.loads"]),
        ("import json\njson.dumps(1)\nweights.load(path)", []),
    ],
)
def test_a_parser_is_seen_under_any_name(source, given):
    assert _parsed(source) == given


DEEP = "[" * 100 + "]" * 100


def _tuned_tiles(path):
    from genkit.kernels.block_sparse import tuning

    path.write_text(DEEP)
    tuning.load(path)


def _last_log(path):
    from genkit.training.engine.stages import _last_line

    path.write_text('{"step": 1}\n')
    assert _last_line(path) == {"step": 1}
    path.write_text("")
    assert _last_line(path) is None
    path.write_text('{"step": 1}\n' + DEEP + "\n")
    _last_line(path)


def _part_config(path):
    from genkit.training.toys.shared.assemble import _forget_paths

    path.write_text(DEEP)
    _forget_paths(path.parent)


@pytest.mark.parametrize("read", [_tuned_tiles, _last_log, _part_config])
def test_files_are_read_within_limits(tmp_path, read):
    with pytest.raises(ArtifactError, match="nests deeper than 64 levels"):
        read(tmp_path / "file.json")
