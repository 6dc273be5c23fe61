"""Contact sheets: a few frames of each clip in a row, with its prompt above; written with a palette."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from genkit.media.atomic import Files

_TEXT, _PAPER, _GAP, _BAND = (40, 40, 48), (252, 252, 250), 6, 18


def contact_sheet(clips: Sequence[np.ndarray], titles: Sequence[str], columns: int = 2, frames: int = 5) -> np.ndarray:
    """Lay clips out for looking at.

    Args:
        clips: uint8 arrays (F, H, W, 3), equal in height and width.
        titles: one line per clip; cut where the row ends.
        columns: clips side by side.
        frames: frames shown of each clip, evenly spaced, first and last included.

    Returns:
        uint8 (height, width, 3).
    """
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=12)
    height, width = clips[0].shape[1:3]
    cell = (frames * (width + 2) + _GAP, height + _BAND + _GAP)
    rows = -(-len(clips) // columns)
    page = Image.new("RGB", (columns * cell[0] + _GAP, rows * cell[1] + _GAP), _PAPER)
    draw = ImageDraw.Draw(page)
    for number, (clip, title) in enumerate(zip(clips, titles, strict=True)):
        left, top = _GAP + number % columns * cell[0], _GAP + number // columns * cell[1]
        while title and draw.textlength(title, font=font) > cell[0] - _GAP:
            title = title[:-2] + "…" if not title.endswith("…") else title[:-3] + "…"
        draw.text((left, top), title, fill=_TEXT, font=font)
        chosen = np.unique(np.linspace(0, len(clip) - 1, frames).round().astype(int))
        for place, frame in enumerate(chosen):
            page.paste(Image.fromarray(clip[frame]), (left + place * (width + 2), top + _BAND))
    return np.asarray(page)


def save_sheet(page: np.ndarray, path: Path) -> None:
    """Write a page (height, width, 3) uint8 as PNG, whole or not at all. A palette of 255 colours takes a sixth of the
    space, which the package needs for weights."""
    from PIL import Image

    small = Image.fromarray(page).quantize(255, Image.Quantize.MAXCOVERAGE, 2, dither=Image.Dither.NONE)
    with Files() as files:
        small.save(files.new(path), format="PNG", optimize=True)
