"""One picture of all samples of a run: a row for every step, a column for every prompt."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from genkit.errors import ArtifactError
from genkit.media import read_image, resized
from genkit.reading import parse_json
from genkit.reading.files import place

SHEET, ROW = "sheet.png", "row.png"
#: Frames of a clip in its column, and the height in pixels up to which a frame is shown.
FRAMES, HEIGHT = 4, 192
#: Rows of a sheet; of more steps some are left out, evenly.
MOST_ROWS = 64
_GAP, _INNER, _LABEL, _LINE, _LINES, _FONT = 8, 2, 76, 15, 3, 12
_PAPER, _INK = (252, 252, 250), (40, 40, 48)
_STEP = re.compile(r"step-(\d{1,15})")


def strip_of(frames: np.ndarray) -> np.ndarray:
    """A few frames of a clip (T, H, W, 3) uint8 side by side, evenly spaced, the first and last among them."""
    chosen = frames[np.unique(np.linspace(0, len(frames) - 1, FRAMES).round().astype(int))]
    height, width = chosen.shape[1:3]
    if height > HEIGHT:
        chosen = resized(chosen, HEIGHT, max(1, round(width * HEIGHT / height)))
    return _beside(list(chosen), _INNER)


def row_of(strips: Sequence[np.ndarray]) -> np.ndarray:
    """The samples of a step side by side; all of one size."""
    return _beside(strips, _GAP)


def _beside(parts: Sequence[np.ndarray], gap: int) -> np.ndarray:
    between = np.broadcast_to(np.uint8(_PAPER), (parts[0].shape[0], gap, 3))
    pieces = [piece for part in parts for piece in (between, part)]
    return np.concatenate(pieces[1:], axis=1)


def sheet_of(folder: Path, titles: Sequence[str], new: Mapping[int, np.ndarray]) -> np.ndarray:
    """The sheet of a run.

    Args:
        folder: of its samples, where every step has left its row.
        titles: of the columns; rows of other columns are left out.
        new: step -> row that is not on disk yet.

    Returns:
        uint8 (height, width, 3).
    """
    rows = {**_rows(folder, titles, next(iter(new.values())).shape), **new}
    steps = sorted(rows)
    if len(steps) > MOST_ROWS:
        steps = [steps[index] for index in np.linspace(0, len(steps) - 1, MOST_ROWS).round().astype(int)]
    return _page([rows[step] for step in steps], [f"step {step}" for step in steps], titles)


def _rows(folder: Path, titles: Sequence[str], shape: tuple[int, ...]) -> dict[int, np.ndarray]:
    """Step -> its row as it lies on disk; one that cannot be read was changed by others and is no row."""
    found = {}
    for path in folder.glob(f"step-*/{ROW}"):
        number = _STEP.fullmatch(path.parent.name)
        try:
            picture = read_image(path, 1)
            told = parse_json(picture.comment or "{}", place(path))
        except ArtifactError:
            continue
        fits = isinstance(told, dict) and told.get("columns") == list(titles) and picture.frames[0].shape == shape
        if number is not None and fits:
            found[int(number[1])] = picture.frames[0]
    return found


def _page(rows: Sequence[np.ndarray], labels: Sequence[str], titles: Sequence[str]) -> np.ndarray:
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=_FONT)
    height, width = rows[0].shape[:2]
    top = _GAP + _LINES * _LINE + _GAP
    page = Image.new("RGB", (_LABEL + width + _GAP, top + len(rows) * (height + _GAP)), _PAPER)
    draw = ImageDraw.Draw(page)
    column = (width + _GAP) / len(titles)
    for number, title in enumerate(titles):
        for index, line in enumerate(_wrapped(title, column - _GAP, lambda text: draw.textlength(text, font=font))):
            draw.text((_LABEL + number * column, _GAP + index * _LINE), line, fill=_INK, font=font)
    for number, (row, label) in enumerate(zip(rows, labels, strict=True)):
        y = top + number * (height + _GAP)
        draw.text((_GAP, y), label, fill=_INK, font=font)
        page.paste(Image.fromarray(row), (_LABEL, y))
    return np.asarray(page)


def _wrapped(title: str, width: float, length) -> list[str]:
    """A title in lines of a width in pixels; what does not go into :data:`_LINES` of them is cut."""
    lines: list[str] = []
    rest = " ".join(title.split())
    while rest and len(lines) < _LINES:
        count = len(rest)
        while count > 1 and length(rest[:count]) > width:
            count -= 1
        cut = rest.rfind(" ", 0, count + 1) if count < len(rest) else -1
        count = cut if cut > 0 else count
        lines.append(rest[:count])
        rest = rest[count:].lstrip()
    if rest:
        lines[-1] = lines[-1][:-1] + "…"
    return lines
