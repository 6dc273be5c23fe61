"""JSON, YAML and TOML with limits on size, depth, items, digits and aliases."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from genkit.errors import ArtifactError, escaped, shortened
from genkit.reading.files import MIB, place, read_text

#: Bytes, levels and lists of a file of data. Only vocabularies of tokenizers come near the bytes.
MOST_BYTES, MOST_DEPTH, MOST_ITEMS = 256 * MIB, 64, 1_000_000
#: Characters up to which levels are counted; in larger texts Python's own limit of about a thousand holds.
_COUNTED = 4 * MIB
#: YAML is read slowly and is written by hand.
MOST_YAML, MOST_ALIASES, MOST_YAML_ITEMS = MIB // 4, 32, 20_000
#: Digits of a number: as many as the largest float has, and fewer than Python takes long for.
MOST_DIGITS = 320
_MARKS = re.compile(r'[\[\]{}"]|\\.', re.DOTALL)


class _Refused(ValueError):
    """Why a text of data is not taken."""


def read_json(path: str | Path, what: str = "", *, most: int = MOST_BYTES, finite: bool = False) -> Any:
    """The value in a JSON file.

    Args:
        path: the file; UTF-8, with or without a byte order mark.
        what: what it is to the user, for messages.
        most: bytes.
        finite: refuse NaN and infinities, which are no JSON but written by many programs.

    Raises:
        ArtifactError: the file cannot be read, is no JSON, or is beyond the limits; one line with the place.
    """
    name = f"{what} {place(path)}" if what else place(path)
    return parse_json(read_text(path, most, what), name, finite=finite)


def parse_json(text: str, name: str, *, finite: bool = False) -> Any:
    """The value of a JSON text; ``name`` is its origin in messages. Raises as :func:`read_json`."""
    try:
        if len(text) <= _COUNTED:
            _check_depth(text)
        return json.loads(
            text,
            parse_int=_whole,
            parse_float=_finite if finite else float,
            parse_constant=_refuse_constant if finite else float,
        )
    except json.JSONDecodeError as error:
        raise ArtifactError(f"{name} is no valid JSON: {error.msg} (line {error.lineno})") from error
    except _Refused as error:
        raise ArtifactError(f"{name} is not read: {error}") from error
    except RecursionError as error:
        raise ArtifactError(f"{name} is not read: it nests too deep") from error


def _check_depth(text: str) -> None:
    depth = parts = 0
    quoted = False
    for found in _MARKS.finditer(text):
        mark = found.group()
        if mark == '"':
            quoted = not quoted
        elif not quoted and mark in "[{":
            depth, parts = depth + 1, parts + 1
            if depth > MOST_DEPTH:
                raise _Refused(f"it nests deeper than {MOST_DEPTH} levels")
            if parts > MOST_ITEMS:
                raise _Refused(f"it has more than {MOST_ITEMS} lists and objects")
        elif not quoted and mark in "]}":
            depth -= 1


def _whole(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise _Refused(f"it holds a number of {len(text)} digits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _Refused("it holds a number beyond what a float holds")
    return value


def _refuse_constant(text: str) -> float:
    raise _Refused(f"it holds {text}, which is no number of JSON")


def read_yaml(path: str | Path, what: str = "") -> Any:
    """The value in a YAML file (JSON is YAML too); None for an empty one. Only plain values are made.

    Raises:
        ArtifactError: the file cannot be read, is no YAML, has a name twice in one mapping, or is beyond the limits;
            one line with the place.
    """
    import yaml

    name = f"{what} {place(path)}" if what else place(path)
    text = read_text(path, MOST_YAML, what)
    try:
        values = yaml.load(text, _loader())  # noqa: S506 - derived from SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        said = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ArtifactError(f"{name} is no valid YAML or JSON{where}: {said}") from error
    except _Refused as error:
        raise ArtifactError(f"{name} is not read: {error}") from error
    except (ValueError, TypeError, RecursionError) as error:  # a date that does not exist, a list as a key
        raise ArtifactError(f"{name} is no valid YAML or JSON: {str(error).splitlines()[0]}") from error
    try:
        _check_items(values, MOST_DEPTH, [MOST_YAML_ITEMS])
    except _Refused as error:
        raise ArtifactError(f"{name} is not read: {error}") from error
    return values


def read_toml(path: str | Path, what: str = "") -> dict[str, Any]:
    """The table in a TOML file. Limits are those of YAML.

    Raises:
        ArtifactError: the file cannot be read, is no TOML, or is beyond the limits; one line with the place.
    """
    import tomllib

    name = f"{what} {place(path)}" if what else place(path)
    text = read_text(path, MOST_YAML, what)
    if re.search(rf"\d{{{MOST_DIGITS}}}", text):
        raise ArtifactError(f"{name} is not read: it holds a number of more than {MOST_DIGITS} digits")
    if re.search(rf"(?<![\w\"'-])(?:[\w\"'-]+\s*\.\s*){{{MOST_DEPTH}}}", text):
        raise ArtifactError(f"{name} is not read: it nests deeper than {MOST_DEPTH} levels")
    try:
        values = tomllib.loads(text)
        _check_items(values, MOST_DEPTH, [MOST_YAML_ITEMS])
    except _Refused as error:
        raise ArtifactError(f"{name} is not read: {error}") from error
    except RecursionError as error:
        raise ArtifactError(f"{name} is not read: it nests too deep") from error
    except ValueError as error:  # of which TOMLDecodeError is one
        raise ArtifactError(f"{name} is no valid TOML: {shortened(escaped(str(error)))}") from error
    return values


def _loader() -> type:
    """SafeLoader with limits; made when it is first needed, since importing yaml takes time."""
    import yaml

    class Loader(yaml.SafeLoader):
        def __init__(self, stream: str) -> None:
            super().__init__(stream)
            self.depth = self.aliases = 0

        def resolve(self, kind: Any, value: Any, implicit: Any) -> str:
            tag = super().resolve(kind, value, implicit)
            if isinstance(value, str) and ":" in value and tag.endswith((":int", ":float")):
                return "tag:yaml.org,2002:str"  # YAML 1.1 counts to base 60: 1:4:0.5 would be 3840.5
            return tag

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                self.aliases += 1
                if self.aliases > MOST_ALIASES:
                    raise _Refused(f"it has more than {MOST_ALIASES} aliases (*name)")
            self.depth += 1
            if self.depth > MOST_DEPTH:
                raise _Refused(f"it nests deeper than {MOST_DEPTH} levels")
            node = super().compose_node(parent, index)
            self.depth -= 1
            if isinstance(node, yaml.MappingNode):
                _check_keys(node)
            if isinstance(node, yaml.ScalarNode) and node.tag.endswith((":int", ":float")):
                if len(node.value) > MOST_DIGITS:
                    raise _Refused(f"it holds a number of {len(node.value)} digits")
            return node

    # YAML 1.2's numbers: without this, 1e-4 and 1.5e3 are texts.
    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)[eE][-+]?[0-9]+$"),
        list("-+.0123456789"),
    )
    return Loader


def _check_keys(node: Any) -> None:
    """Refuse a name that stands twice in one mapping: YAML would take the last one without a word."""
    marks: dict[tuple[str, str], Any] = {}
    for key, _ in node.value:
        if not isinstance(key.value, str) or key.tag.endswith(":merge"):
            continue
        name = (key.tag, key.value)
        if name in marks:
            lines = f"lines {marks[name].line + 1} and {key.start_mark.line + 1}"
            raise _Refused(f"{shortened(escaped(key.value), 80)} stands in it twice ({lines}); leave one out")
        marks[name] = key.start_mark


def _check_items(value: Any, depth: int, left: list[int]) -> None:
    """Refuse values that are small in the file and huge, or endless, when walked: aliases of aliases."""
    left[0] -= 1
    if left[0] < 0:
        raise _Refused(f"it has more than {MOST_YAML_ITEMS} values, aliases counted as often as they stand")
    if isinstance(value, (dict, list, set, tuple)):
        if depth == 0:
            raise _Refused(f"it nests deeper than {MOST_DEPTH} levels, or contains itself")
        for item in value:
            _check_items(item, depth - 1, left)
        for item in value.values() if isinstance(value, dict) else ():
            _check_items(item, depth - 1, left)
