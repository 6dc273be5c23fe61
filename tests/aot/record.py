"""The committed numbers of every kernel of the default list, by the digest of what decides them: a file per target."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

import triton

from tests.aot.digest import Asked, installation, reading
from tests.aot.driver import usage
from tests.aot.loops import Loop, assembly, hot_loops

FOLDER = Path(__file__).parent / "recorded"


class Measured(NamedTuple):
    """What a binary uses: see :class:`tests.aot.driver.Usage` and :class:`tests.aot.loops.Loop`."""

    registers: int
    spilled: int
    shared: int
    loops: list[Loop]


class BadRecord(Exception):
    """A record that cannot be read."""


def measure(asked: Asked) -> Measured:
    """Compile a kernel and read its numbers."""
    compiled = asked.compile()
    return Measured(*usage(compiled), hot_loops(assembly(compiled)))


def made_by() -> dict[str, object]:
    """What the numbers of a record hold for as a whole; another one has them all measured anew."""
    return {
        "triton": triton.__version__,
        "installation": installation()[:16],
        "reading": reading()[:16],
        "loop": list(Loop._fields),
    }


def load(target: str) -> tuple[dict[str, Measured], str]:
    """The numbers of a target by digest, and why there are none if so."""
    path = FOLDER / f"{target}.json"
    again = f"delete it, or write it anew with: python -m tests.aot {target} --again --record"
    if not path.exists():
        return {}, f"no record of {target}: every kernel is compiled"
    try:
        told = json.loads(path.read_text())
        maker, kernels = told["made by"], told["kernels"]
        if maker != made_by():
            other = sorted(key for key in maker.keys() | made_by() if maker.get(key) != made_by().get(key))
            what = f"Triton {maker['triton']}, here {triton.__version__}; other: {', '.join(other)}"
            return {}, f"the record of {target} was made otherwise ({what}): every kernel is compiled"
        return {digest: _measured(entry) for digest, entry in kernels.items()}, ""
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadRecord(f"{path} is no record of kernels ({type(error).__name__}: {error}); {again}") from error


def save(target: str, kernels: dict[str, tuple[str, Measured]]) -> Path:
    """Replace the record of a target by (label, numbers) by digest: a line each, at once or not at all."""
    entries = {digest: _entry(label, numbers) for digest, (label, numbers) in kernels.items()}
    lines = ",\n".join(f"{json.dumps(digest)}: {json.dumps(entry)}" for digest, entry in entries.items())
    path = FOLDER / f"{target}.json"
    path.parent.mkdir(exist_ok=True)
    part = path.with_suffix(".json.part")
    part.write_text(f'{{"made by": {json.dumps(made_by())},\n"kernels": {{\n{lines}\n}}}}\n')
    os.replace(part, path)
    return path


def _entry(label: str, numbers: Measured) -> dict[str, object]:
    return {"kernel": label, **numbers._asdict(), "loops": [list(loop) for loop in numbers.loops]}


def _measured(entry: dict) -> Measured:
    used = {key: entry[key] for key in ("registers", "spilled", "shared")}
    found = [_loop(*fields) for fields in entry["loops"]]
    wrong = [f"{key}: {value!r}" for key, value in used.items() if type(value) is not int or value < 0]
    if wrong:
        raise ValueError(f"{', '.join(wrong)} of {entry.get('kernel')} is no count")
    return Measured(**used, loops=found)


def _loop(*fields: object) -> Loop:
    loop = Loop(*fields)
    counts = [loop.instructions, loop.exponentials, loop.fences, loop.stack, loop.nested, *loop.products.values()]
    if len(fields) != len(Loop._fields) or any(type(count) is not int or count < 0 for count in counts):
        raise ValueError(f"{list(fields)} is no loop")
    return loop
