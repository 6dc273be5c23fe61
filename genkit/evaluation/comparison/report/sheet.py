"""The contact sheet: a row a variant, a few frames of every prompt shown, with its numbers beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from genkit.evaluation.comparison.numbers import METRICS
from genkit.evaluation.comparison.results import Comparison, Row, cell

PAPER, INK, SOFT, LINE = (250, 250, 247), (28, 29, 26), (100, 102, 95), (221, 220, 212)
SIDE, LABEL, GAP, HEAD, FRAMES, PROMPTS = 112, 230, 6, 46, 4, 3


def sheet(comparison: Comparison, pictures: Mapping[str, Sequence[tuple[str, np.ndarray]]]) -> Any:
    """The sheet as a PIL picture.

    Args:
        comparison: whose rows are shown.
        pictures: prompt and frames (T, H, W, 3) of the outputs shown, by variant.
    """
    from PIL import Image, ImageDraw, ImageFont

    prompts = next(iter(pictures.values()), [])[:PROMPTS]
    each = min(FRAMES, max((len(frames) for _, frames in prompts), default=1))
    group = each * (SIDE + 2) + GAP
    width = LABEL + max(len(prompts), 1) * group + 2 * GAP
    height = HEAD + len(comparison.rows) * (SIDE + GAP) + GAP
    page = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(page)
    large, small = ImageFont.load_default(15), ImageFont.load_default(12)
    for number, (prompt, _) in enumerate(prompts):
        pen.text((LABEL + number * group, 16), _cut(pen, prompt or "(empty prompt)", group - 12, small), SOFT, small)
    for index, row in enumerate(comparison.rows):
        top = HEAD + index * (SIDE + GAP)
        pen.line((GAP, top - GAP // 2, width - GAP, top - GAP // 2), LINE)
        pen.text((GAP + 4, top + 6), _cut(pen, row.name, LABEL - 16, large), INK, large)
        for line, text in enumerate(_words(comparison, row)):
            pen.text((GAP + 4, top + 28 + 16 * line), _cut(pen, text, LABEL - 16, small), SOFT, small)
        for number, (_, frames) in enumerate(pictures.get(row.name, [])[:PROMPTS]):
            chosen = np.unique(np.linspace(0, len(frames) - 1, each).round().astype(int))
            for slot, frame in enumerate(chosen):
                picture = Image.fromarray(frames[frame])
                picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
                page.paste(picture, (LABEL + number * group + slot * (SIDE + 2), top))
    return page


def _words(comparison: Comparison, row: Row) -> list[str]:
    found = row.summary(comparison.baseline)
    lines = [f"{cell(found.get('seconds'), 2)} s"] if "seconds" in found else []
    if "speedup" in found:
        lines[0] += f"  ({found['speedup'].mean:.2f}x)"
    lines += [f"{METRICS[name].title} {cell(found[name], METRICS[name].digits)}" for name in ("psnr", "ssim", "judged")
              if name in found]  # fmt: skip
    lines += [", ".join(f"{count} {name}" for name, count in row.bands().items())] if row.bands() else []
    return [*lines[:4], *(["failed"] if row.failed else [])]


def _cut(pen: Any, text: str, width: float, font: Any) -> str:
    """A text that fits into a width."""
    if pen.textlength(text, font=font) <= width:
        return text
    while text and pen.textlength(text + "…", font=font) > width:
        text = text[:-1]
    return text + "…"
