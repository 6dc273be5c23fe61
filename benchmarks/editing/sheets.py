"""Pictures before, after and as they should be, in rows, for looking at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    from genkit.evaluation.sheet import contact_sheet, save_sheet

    if not outputs:
        return
    trios, titles = [], []
    for number, output in sorted(outputs.items()):
        case = cases[number]
        trios.append(np.stack([_still(each) for each in (case.source, output, case.target)]))
        told = [name for name, values in row.cases.items() if values[number] == 0.0 and name != "right"]
        prompt = getattr(case, "target_prompt", None) or case.prompt
        titles.append(f"{number} {'' if told else 'right '}{prompt}  {' '.join(told)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_sheet(contact_sheet(trios, titles, 3, 3), path)


def _still(pixels: np.ndarray) -> np.ndarray:
    return pixels[len(pixels) // 2] if pixels.ndim == 4 else pixels
