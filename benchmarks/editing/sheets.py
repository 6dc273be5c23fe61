"""Pictures before, after and as they should be, in rows, for looking at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.editing.store import Row


def before_after_truth(cases: Sequence[Any], outputs: Mapping[int, np.ndarray], row: Row, path: Path) -> None:
    """A sheet with three pictures per case: source, output, truth; of clips the middle frames.

    Args:
        cases: with ``source``, ``target`` and prompts.
        outputs: number of the case -> output.
        row: says which are right.
        path: PNG to write; nothing is written without outputs.
    """
    _sheet(outputs, row, path, lambda case, output: (case.source, output, case.target), cases)


def with_style(cases: Sequence[Any], outputs: Mapping[int, np.ndarray], row: Row, path: Path) -> None:
    """A sheet with four pictures per case: content, style, output, truth; see :func:`before_after_truth`."""
    _sheet(outputs, row, path, lambda case, output: (case.content, case.style, output, case.target), cases)


def _sheet(
    outputs: Mapping[int, np.ndarray],
    row: Row,
    path: Path,
    shown: Callable[[Any, np.ndarray], Sequence[np.ndarray]],
    cases: Sequence[Any],
) -> None:
    from genkit.evaluation.sheet import contact_sheet, save_sheet

    if not outputs:
        return
    groups, titles = [], []
    for number, output in sorted(outputs.items()):
        case = cases[number]
        groups.append(np.stack([_still(each) for each in shown(case, output)]))
        told = [name for name, values in row.cases.items() if values[number] == 0.0 and name != "right"]
        prompt = getattr(case, "target_prompt", None) or case.prompt
        titles.append(f"{number} {'' if told else 'right '}{prompt}  {' '.join(told)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_sheet(contact_sheet(groups, titles, 3, len(groups[0])), path)


def _still(pixels: np.ndarray) -> np.ndarray:
    return pixels[len(pixels) // 2] if pixels.ndim == 4 else pixels
