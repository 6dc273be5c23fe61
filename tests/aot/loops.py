"""The loops of a compiled kernel that do its matrix products, and what one step of each costs, read off its assembly.

An instruction of a warp is issued once for all its lanes, so ``instructions * warps`` per score is the issue slots a
score takes; on NVIDIA hardware one of four schedulers issues one per cycle. The audit's measure, instructions of a step
of 128x64 scores with 8 warps, is the same number: 8 warps * 1,024 of 8,192 scores.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import NamedTuple

import triton

_LABEL = re.compile(r"^\s*(\.L\w+):")
_NVIDIA = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*)")
_AMD = re.compile(r"^\s+([a-z]\w+)(.*)")
_PRODUCT = re.compile(r"[HI]GMMA|[HI]MMA|UTC\w*MMA|v_mfma")
_EXPONENTIAL = re.compile(r"MUFU\.EX2|v_exp_f32")
_LEAVES = ("EXIT", "s_endpgm")


class Line(NamedTuple):
    """One instruction: its name and the rest of its text."""

    name: str
    rest: str


class Loop(NamedTuple):
    """One innermost loop with matrix products and exponentials, in the order of the kernel's source.

    ``nested``: instructions of loops inside it, which a step may walk several times. ``exponentials``: exp2 per thread.
    ``products``: matrix instructions by name. ``in_flight``: at the wait that lets fewest through, how many groups of
    asynchronous copies (NVIDIA) or single loads (AMD) may still be under way, None when nothing is copied
    asynchronously; ``bulk`` that the copies are TMA's, which wait on barriers in memory. ``fences``: memory barriers;
    ``stack``: instructions that reach for spilled registers.
    """

    instructions: int
    exponentials: int
    products: dict[str, int]
    in_flight: int | None
    bulk: bool
    fences: int
    stack: int
    nested: int = 0

    def slots(self, warps: int, scores: int, trips: int = 1) -> float:
        """Instructions times warps per 1,024 scores, for a step of ``scores`` of them that walks the loops inside it
        ``trips`` times."""
        return (self.instructions + (trips - 1) * self.nested) * warps * 1024 / scores

    def exponentials_per_score(self, threads: int, scores: int) -> float:
        """1 when nothing is computed twice; the forward pass needs one more per row and step."""
        return self.exponentials * threads / scores

    @property
    def waits(self) -> str:
        """``in_flight`` as tables show it."""
        return "TMA" if self.bulk else "-" if self.in_flight is None else str(self.in_flight)


def assembly(compiled) -> str:
    """The instructions of a compiled kernel as text."""
    if "cubin" not in compiled.asm:
        return compiled.asm["amdgcn"]
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    with NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        return subprocess.run([tool, "-c", file.name], capture_output=True, text=True, check=True).stdout


def hot_loops(text: str) -> list[Loop]:
    """The innermost loops with matrix products and exponentials of a kernel's assembly."""
    lines, labels = _parse(text)
    loops = sorted(set(_spans(lines, labels)))
    spans = [span for span in loops if _does_products(lines[slice(*span)])]
    inner = [s for s in spans if not any(_inside(t, s) for t in spans)]
    return [_describe(lines, span, [s for s in loops if _inside(s, span)]) for span in inner]


def _inside(span: tuple[int, int], other: tuple[int, int]) -> bool:
    return span != other and other[0] <= span[0] and span[1] <= other[1]


def _parse(text: str) -> tuple[list[Line], dict[str, int]]:
    nvidia = "/*0000*/" in text
    pattern = _NVIDIA if nvidia else _AMD
    lines: list[Line] = []
    labels: dict[str, int] = {}
    for raw in text.splitlines():
        if found := _LABEL.match(raw):
            labels[found[1]] = len(lines)
        elif found := pattern.match(raw):
            lines.append(Line(found[1], found[2]))
    return lines, labels


def _spans(lines: list[Line], labels: dict[str, int]) -> Iterator[tuple[int, int]]:
    """First and past-the-last instruction of every backward branch."""
    for at, line in enumerate(lines):
        if line.name.startswith(("BRA", "s_cbranch", "s_branch")):
            target = re.search(r"\.L\w+", line.rest)
            if target and labels.get(target[0], at + 1) <= at:
                yield labels[target[0]], at + 1


def _does_products(body: list[Line]) -> bool:
    """Whether it is a loop that multiplies and weighs. One that leaves the kernel is a retry placed behind the kernel's
    end."""
    does = all(any(pattern.match(line.name) for line in body) for pattern in (_PRODUCT, _EXPONENTIAL))
    return does and not any(line.name in _LEAVES for line in body)


def _describe(lines: list[Line], span: tuple[int, int], nested: list[tuple[int, int]]) -> Loop:
    body = lines[slice(*span)]
    names = Counter(line.name for line in body)

    def count(pattern: str) -> int:
        return sum(number for name, number in names.items() if re.match(pattern, name))

    copies = count("LDGSTS") or count("(global|buffer)_load")
    waits = [int(found, 0) for line in body for found in _outstanding(line)]
    return Loop(
        len(body),
        count(_EXPONENTIAL.pattern),
        {name: number for name, number in sorted(names.items()) if _PRODUCT.match(name)},
        min(waits) if copies and waits else None,
        bool(count("UTMALDG")),
        count("MEMBAR"),
        count("LDL|STL|scratch_"),
        len(set().union(*(range(*inner) for inner in nested))),
    )


def _outstanding(line: Line) -> list[str]:
    if line.name == "DEPBAR.LE":
        return re.findall(r"SB0, (0x[0-9a-f]+)", line.rest)
    return re.findall(r"vmcnt\((\d+)\)", line.rest) if line.name == "s_waitcnt" else []
