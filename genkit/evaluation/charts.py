"""Plots in the look of genkit's pictures: lines, points and maps of numbers, drawn with Pillow alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from genkit.attention.draw import HIDDEN, INK, LINE, PAPER, SEEN, SOFT

Colour = tuple[int, int, int]
#: From the first to the last of a sequence, such as layers.
FIRST, LAST = (147, 197, 253), (30, 58, 138)
#: Space around a plot: left, top, right, bottom.
ROOM = (62, 62, 14, 46)


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The typeface of all pictures."""
    return ImageFont.load_default(size)


def between(low: Colour, high: Colour, share: float) -> Colour:
    """A colour between two, 0 = the first."""
    mixed = [round(a + (b - a) * min(1.0, max(0.0, share))) for a, b in zip(low, high, strict=True)]
    return cast(Colour, tuple(mixed))


@dataclass(frozen=True)
class Series:
    """A line or points.

    Args:
        x, y: the same number of values; those that are not finite (or not above 0 on a logarithmic axis) are left out.
        colour: of all of it. dots: points without a line between them. wide: a thicker line, larger dots.
        names: written beside points.
    """

    x: Sequence[float]
    y: Sequence[float]
    colour: Colour = SEEN
    dots: bool = False
    wide: bool = False
    names: Sequence[str] = ()


@dataclass(frozen=True)
class Axis:
    """One axis: what it counts, and whether steps on it are factors.

    Args:
        low, high: its ends; None: those of the data with a margin.
    """

    label: str
    log: bool = False
    low: float | None = None
    high: float | None = None


def plot(
    size: tuple[int, int], title: str, note: str, series: Sequence[Series], x: Axis, y: Axis,
    guides: Sequence[tuple[str, float]] = (),
) -> Image.Image:  # fmt: skip
    """Lines and points.

    Args:
        size: of the picture. title, note: above it. guides: names and heights of dashed level lines.
    """
    picture = _sheet(size, title, note)
    pen = ImageDraw.Draw(picture)
    left, top, right, bottom = ROOM[0], ROOM[1], size[0] - ROOM[2], size[1] - ROOM[3]
    levels = [height for _, height in guides]
    at_x = _Scale(x, [value for each in series for value in each.x], left, right)
    at_y = _Scale(y, [*(value for each in series for value in each.y), *levels], bottom, top)
    for value in at_x.ticks():
        pen.line((at_x(value), top, at_x(value), bottom), HIDDEN)
        pen.text((at_x(value), bottom + 6), _short(value), SOFT, font(12), anchor="mt")
    for value in at_y.ticks():
        pen.line((left, at_y(value), right, at_y(value)), HIDDEN)
        pen.text((left - 7, at_y(value)), _short(value), SOFT, font(12), anchor="rm")
    for _, height in guides:
        for start in range(left, right, 10):
            pen.line((start, at_y(height), min(start + 5, right), at_y(height)), SOFT)
    for each in series:
        _series(pen, each, at_x, at_y)
    _names(pen, series, at_x, at_y)
    for name, height in guides:
        where = right - 4, at_y(height) - 4
        pen.rectangle(pen.textbbox(where, name, font(12), anchor="rb"), fill=PAPER)
        pen.text(where, name, SOFT, font(12), anchor="rb")
    pen.line((left, top, left, bottom), LINE)
    pen.line((left, bottom, right, bottom), LINE)
    pen.text(((left + right) / 2, size[1] - 8), x.label, SOFT, font(13), anchor="mb")
    pen.text((left, top - 5), y.label, SOFT, font(13), anchor="lb")
    return picture


def _series(pen: ImageDraw.ImageDraw, each: Series, at_x: _Scale, at_y: _Scale) -> None:
    shown = [(at_x(a), at_y(b)) for a, b in zip(each.x, each.y, strict=True) if at_x.can(a) and at_y.can(b)]
    if each.dots:
        radius = 6 if each.wide else 4
        for a, b in shown:
            pen.ellipse((a - radius, b - radius, a + radius, b + radius), each.colour, PAPER)
    elif len(shown) > 1:
        pen.line(shown, each.colour, 3 if each.wide else 2, joint="curve")
    elif shown:
        a, b = shown[0]
        pen.ellipse((a - 3, b - 3, a + 3, b + 3), each.colour)


def _names(pen: ImageDraw.ImageDraw, series: Sequence[Series], at_x: _Scale, at_y: _Scale) -> None:
    """The names of dots, each where it hides no other dot and no other name, on paper where a line runs below."""
    dots = [
        (at_x(a), at_y(b), 6 if each.wide else 4, each.names[number] if number < len(each.names) else "")
        for each in series
        if each.dots
        for number, (a, b) in enumerate(zip(each.x, each.y, strict=True))
        if at_x.can(a) and at_y.can(b)
    ]
    taken = [(a - radius, b - radius, a + radius, b + radius) for a, b, radius, _ in dots]
    start, stop = sorted((at_x.start, at_x.stop))
    for a, b, radius, name in dots:
        if not name:
            continue
        beside, over = radius + 3, radius + 9
        places = [(a + beside, b, "lm"), (a - beside, b, "rm")]
        places += [(a + side, b + way, anchor) for way in (-over, over) for side, anchor in ((2, "lm"), (-2, "rm"))]
        boxes = [pen.textbbox(place[:2], name, font(12), anchor=place[2]) for place in places]
        free = [
            (place, box) for place, box in zip(places, boxes, strict=True)
            if start <= box[0] and box[2] <= stop and not any(_overlap(box, other) for other in taken)
        ]  # fmt: skip
        inside = [pair for pair in zip(places, boxes, strict=True) if start <= pair[1][0] and pair[1][2] <= stop]
        (x, y, anchor), box = (free or inside or [(places[0], boxes[0])])[0]
        taken.append(box)
        pen.text((x, y), name, INK, font(12), anchor=anchor, stroke_width=2, stroke_fill=PAPER)


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


class _Scale:
    """From values to pixels."""

    def __init__(self, axis: Axis, values: Sequence[float], start: float, stop: float):
        self.axis, self.start, self.stop = axis, start, stop
        good = [value for value in values if np.isfinite(value) and (value > 0 or not axis.log)] or [1.0]
        low, high = min(good), max(good)
        if axis.log:
            low, high = np.log10(low), np.log10(high)
        room = 0.05 * (high - low) or (0.1 if axis.log else 0.05 * abs(high) or 1.0)
        self.low = low - room if axis.low is None else (np.log10(axis.low) if axis.log else axis.low)
        self.high = high + room if axis.high is None else (np.log10(axis.high) if axis.log else axis.high)

    def can(self, value: float) -> bool:
        return bool(np.isfinite(value)) and (value > 0 or not self.axis.log)

    def __call__(self, value: float) -> float:
        inner = np.log10(value) if self.axis.log else value
        return self.start + (inner - self.low) / (self.high - self.low) * (self.stop - self.start)

    def ticks(self) -> list[float]:
        if not self.axis.log:
            step = _step((self.high - self.low) / 5)
            first = int(np.ceil(self.low / step - 1e-9))
            return [n * step for n in range(first, int(np.floor(self.high / step + 1e-9)) + 1)]
        digits = (1, 2, 5) if self.high - self.low < 2.5 else (1,)
        decades = range(int(np.floor(self.low)), int(np.ceil(self.high)) + 1)
        found = [digit * 10.0**decade for decade in decades for digit in digits]
        return [value for value in found if self.low - 1e-9 <= np.log10(value) <= self.high + 1e-9]


def _step(rough: float) -> float:
    size = 10.0 ** np.floor(np.log10(rough)) if rough > 0 else 1.0
    return float(next(size * digit for digit in (1, 2, 5, 10) if size * digit >= rough * 0.999))


def _short(value: float) -> str:
    return f"{value:.4g}"


def heat(
    size: tuple[int, int], title: str, note: str, values: np.ndarray, rows: Sequence[str], columns: Sequence[str],
    axes: tuple[str, str], low: float = 0.0, high: float | None = None, colour: Colour = SEEN, percent: bool = True,
) -> Image.Image:  # fmt: skip
    """A map of numbers: darker = larger, white = unknown; the numbers themselves where cells are large enough.

    Args:
        values: (R, C), NaN = unknown. rows, columns: names. axes: what rows and columns are. low, high: values of the
            lightest and the full colour; None: the largest.
    """
    picture = _sheet(size, title, note)
    pen = ImageDraw.Draw(picture)
    left, top = ROOM[0], ROOM[1]
    wide, tall = size[0] - left - ROOM[2], size[1] - top - ROOM[3]
    count = values.shape
    most = high if high is not None else float(np.nanmax(values)) if np.isfinite(values).any() else 1.0
    edges_x = np.linspace(left, left + wide, count[1] + 1).round().astype(int)
    edges_y = np.linspace(top, top + tall, count[0] + 1).round().astype(int)
    told = wide / count[1] >= 34 and tall / count[0] >= 15
    for row in range(count[0]):
        for column in range(count[1]):
            value = values[row, column]
            if not np.isfinite(value):
                continue
            share = (value - low) / (most - low) if most > low else 1.0
            box = (edges_x[column], edges_y[row], edges_x[column + 1] - 1, edges_y[row + 1] - 1)
            pen.rectangle(box, between(HIDDEN, colour, share))
            if told:
                words = f"{value:.0%}" if percent else f"{value:.2f}"
                centre = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
                pen.text(centre, words, PAPER if share > 0.55 else INK, font(12), anchor="mm")
    for number in _some(count[0], tall / 15):
        pen.text((left - 6, (edges_y[number] + edges_y[number + 1]) / 2), rows[number], SOFT, font(12), anchor="rm")
    for number in _some(count[1], wide / 30):
        middle = (edges_x[number] + edges_x[number + 1]) / 2
        pen.text((middle, top + tall + 5), columns[number], SOFT, font(12), anchor="mt")
    pen.rectangle((left, top, left + wide, top + tall), outline=LINE)
    pen.text((left + wide / 2, size[1] - 8), axes[1], SOFT, font(13), anchor="mb")
    pen.text((left, top - 5), axes[0], SOFT, font(13), anchor="lb")
    if not told:
        words = f"{low:.0%} to {most:.0%}" if percent else f"{low:.2f} to {most:.2f}"
        pen.text((left + wide, top - 5), f"light to dark: {words}", SOFT, font(13), anchor="rb")
    return picture


def _some(count: int, most: float) -> range:
    """Every n-th, so that no more than ``most`` are labelled."""
    return range(0, count, max(1, -(-count // max(1, int(most)))))


def _sheet(size: tuple[int, int], title: str, note: str) -> Image.Image:
    picture = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(picture)
    pen.text((ROOM[0], 0), title, INK, font(17))
    pen.text((ROOM[0], 23), note, SOFT, font(13))
    return picture


def page(title: str, notes: Sequence[str], rows: Sequence[Sequence[Image.Image]], gap: int = 26) -> Image.Image:
    """Plots in rows under a title and some lines, which go on below where they are wider than the plots."""
    margin = 36
    width = max(sum(each.width for each in row) + gap * (len(row) - 1) for row in rows)
    lines = [line for note in notes for line in wrapped(note, width, 16)]
    head = 78 + 24 * len(lines)
    height = sum(max(each.height for each in row) + gap for row in rows)
    picture = Image.new("RGB", (width + 2 * margin, head + height + margin // 2), PAPER)
    pen = ImageDraw.Draw(picture)
    pen.text((margin, 24), title, INK, font(28))
    for number, line in enumerate(lines):
        pen.text((margin, 64 + 24 * number), line, SOFT, font(16))
    y = head
    for row in rows:
        x = margin
        for each in row:
            picture.paste(each, (x, y))
            x += each.width + gap
        y += max(each.height for each in row) + gap
    return picture


def wrapped(text: str, width: float, size: int) -> list[str]:
    """A text in lines that fit a width; a single word that does not is a line of its own."""
    lines: list[str] = []
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font(size).getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
