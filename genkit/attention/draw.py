"""A picture of what a method lets every token see: the map of all pairs, and a few queries on the grid."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from genkit.attention.method import Density, Method
from genkit.attention.views import View, view_of
from genkit.errors import UsageError
from genkit.layout import GRID, TokenLayout

PAPER, INK, SOFT, LINE = (255, 255, 255), (30, 41, 59), (100, 116, 139), (203, 213, 225)
HIDDEN, SEEN, TEXT_SEEN, QUERY = (237, 241, 246), (37, 99, 235), (13, 148, 136), (249, 115, 22)
MARGIN, MAP, GAP, MOST_FRAMES, MOST_ROWS = 40, 720, 56, 8, 2048
PANEL, SPACE, HEAD, CAPTION, EDGE = (1120, 200), 14, 60, 26, 3


@dataclass(frozen=True)
class _Query:
    """A token to look at and its words for the picture."""

    index: int
    place: tuple[int, int, int]
    words: str


def draw(
    method: Method,
    layout: TokenLayout,
    path: str | Path | None = None,
    *,
    seed: int = 0,
    layer: int = 0,
) -> tuple[Image.Image, Density | None]:
    """Draw what a method lets tokens read on a layout.

    Left, the map of all pairs (queries down, keys across, in sequence order; darker = more of the cell is read).
    Right, for a few queries, the frames of the grid with the keys it reads in blue and the query in orange. A legend
    tells the colours. Methods that decide by the data are drawn with random queries and keys, and the picture says so.

    Args:
        method: a method for self or joint attention.
        layout: must have a grid.
        path: where to write the PNG; None writes nothing.
        seed: of the random queries and keys. layer: whose attention is drawn, where layers differ.

    Returns:
        The picture and the method's densities on this layout (on the CPU).

    Raises:
        UsageError: a layout without a grid, or too large a one. UnsupportedError: the method cannot serve this layout.
    """
    if not layout.has_grid:
        raise UsageError(f"a picture needs a token grid, this layout has {layout.length} tokens without one")
    view = view_of(method, layout, seed, layer)
    panels = [_frames_panel(view, layout, query) for query in _queries(layout)]
    right = max(panel.width for panel in panels)
    stack = sum(panel.height for panel in panels) + 28 * (len(panels) - 1)
    top, body = 206, max(MAP + 56, stack)
    picture = Image.new("RGB", (2 * MARGIN + MAP + 30 + GAP + right, top + body + MARGIN), PAPER)
    pen = ImageDraw.Draw(picture)
    _title(pen, method, layout, view)
    _legend(picture, view, layout)
    _map_panel(picture, view, layout, (MARGIN + 30, top + 24))
    y = top
    for panel in panels:
        picture.paste(panel, (MARGIN + 30 + MAP + GAP, y))
        y += panel.height + 28
    if path is not None:
        picture.save(path, format="PNG", optimize=True)
    return picture, view.density


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _title(pen: ImageDraw.ImageDraw, method: Method, layout: TokenLayout, view: View) -> None:
    t, h, w = layout.grid
    density = view.density
    pen.text((MARGIN, 30), method.describe(), INK, _font(30))
    parts = [f"grid {t} x {h} x {w} = {layout.grid_length:,} tokens"]
    parts += [f"{part.length} {part.name}" for part in layout.segments if part.name != GRID]
    if density is not None and view.weights:
        parts.append(f"{density.computed:.1%} of dense work")
    elif density is not None:
        parts.append(f"{density.computed:.1%} of pairs computed")
        parts.append("runs dense" if density.dense else f"{density.executed:.1%} executed, padding included")
    pen.text((MARGIN, 74), "   |   ".join(parts), SOFT, _font(19))
    pen.text((MARGIN, 102), method.details(layout), SOFT, _font(16))
    pen.text((MARGIN, 126), view.note, SOFT, _font(16))


def _legend(picture: Image.Image, view: View, layout: TokenLayout) -> None:
    """One line: what every colour means."""
    pen, x, y = ImageDraw.Draw(picture), MARGIN, 160
    seen = (
        "weight of a grid token (square root), darker = larger"
        if view.weights
        else "grid tokens seen, darker = a larger share"
    )
    entries = [(QUERY, "the query"), (SEEN, seen), (HIDDEN, "not seen" if not view.weights else "weight near zero")]
    if len(layout.segments) > 1:
        entries.insert(2, (TEXT_SEEN, "pairs with " + ", ".join(p.name for p in layout.segments if p.name != GRID)))
    for colour, words in entries:
        if colour in (SEEN, TEXT_SEEN):  # from the lightest to the full colour, as in the map
            ramp = _blend(np.linspace(0.02, 1, 48)[None].repeat(18, 0), colour, view.weights)
            picture.paste(Image.fromarray(ramp), (x, y))
            width = 48
        else:
            pen.rectangle((x, y, x + 18, y + 17), fill=colour, outline=LINE)
            width = 19
        pen.text((x + width + 8, y), words, INK, _font(16))
        x += width + 8 + round(pen.textlength(words, _font(16))) + 32


def _queries(layout: TokenLayout) -> list[_Query]:
    """The centre of the middle frame, a corner of the first and a point near the edge of the last one."""
    t, h, w = layout.grid
    places = {
        (t // 2, h // 2, w // 2): "centre",
        (0, 0, 0): "first corner",
        (t - 1, h - 1 - h // 4, w - 1): "right edge, last frame" if t > 1 else "right edge",
    }
    start = layout.grid_span[0]
    return [_Query(start + (a * h + b) * w + c, (a, b, c), words) for (a, b, c), words in places.items()]


def pair_map(view: View, layout: TokenLayout, cells: int) -> np.ndarray:
    """Mean of what is seen in each of (m, m) cells, m at most ``cells``; long sequences are sampled by query."""
    tokens = layout.length
    cells = min(cells, tokens)
    edges = np.linspace(0, tokens, cells + 1).round().astype(np.int64)
    each = max(1, MOST_ROWS * 2 // cells)
    shares = np.zeros((cells, cells))
    widths = np.diff(edges)
    for row in range(cells):
        size = edges[row + 1] - edges[row]
        chosen = np.arange(edges[row], edges[row + 1])
        if size > each:
            chosen = chosen[np.linspace(0, size - 1, each).round().astype(np.int64)]
        rows = view.rows(torch.from_numpy(chosen)).mean(0).numpy()
        shares[row] = np.add.reduceat(rows, edges[:-1]) / widths
    return shares


def _blend(share: np.ndarray, colour: tuple[int, int, int] = SEEN, weights: bool = False) -> np.ndarray:
    """Colours (..., 3) uint8 from shares in [0, 1]; the little that is visible stays visible. Weights, of which none is
    0, are shown by their square root."""
    strength = (np.sqrt(share) if weights else np.where(share > 0, 0.15 + 0.85 * share, 0.0))[..., None]
    low, high = np.array(HIDDEN, dtype=float), np.array(colour, dtype=float)
    return (low + strength * (high - low)).round().astype(np.uint8)


def _map_panel(picture: Image.Image, view: View, layout: TokenLayout, corner: tuple[int, int]) -> None:
    x, y = corner
    shares = pair_map(view, layout, MAP)
    cells = (np.arange(len(shares)) + 0.5) * layout.length / len(shares)
    outside = (cells < layout.grid_span[0]) | (cells >= layout.grid_span[1])
    blue, green = (_blend(shares, colour, view.weights) for colour in (SEEN, TEXT_SEEN))
    colours = np.where((outside[:, None] | outside[None, :])[..., None], green, blue)
    picture.paste(Image.fromarray(colours).resize((MAP, MAP), Image.Resampling.NEAREST), corner)
    pen = ImageDraw.Draw(picture)
    scale = MAP / layout.length
    for start, stop, label, major in _spans(layout):
        for edge in (start, stop):
            at = round(edge * scale)
            if major:
                pen.line((x + at, y, x + at, y + MAP), PAPER, 2)
                pen.line((x, y + at, x + MAP, y + at), PAPER, 2)
            else:
                pen.line((x + at, y - 6, x + at, y), SOFT, 1)
                pen.line((x - 6, y + at, x, y + at), SOFT, 1)
        if label:
            middle = (start + stop) / 2 * scale
            pen.text((x + middle, y - 8), label, SOFT, _font(13), anchor="mb")
            pen.text((x - 9, y + middle), label, SOFT, _font(13), anchor="rm")
    pen.rectangle((x, y, x + MAP, y + MAP), outline=LINE)
    note = "all pairs: queries down, keys across"
    note += "; numbers are frames" if layout.grid[0] > 1 else ""
    pen.text((x, y + MAP + 12), note, SOFT, _font(15))


def _spans(layout: TokenLayout) -> list[tuple[int, int, str, bool]]:
    """Token spans to mark on the map: (start, stop, label, whether it is a segment rather than a frame)."""
    found = []
    start, _ = layout.grid_span
    frames, tokens = layout.grid[0], layout.frame_tokens
    every = max(1, -(-frames // 16))
    for frame in range(frames):
        label = str(frame) if frame % every == 0 and frames > 1 else ""
        found.append((start + frame * tokens, start + (frame + 1) * tokens, label, False))
    for segment in layout.segments:
        if segment.name != GRID and segment.length:
            found.append((*layout.span(segment.name), segment.name, True))
    return found


def _shown_frames(frames: int, own: int) -> list[int]:
    """At most :data:`MOST_FRAMES` frames, evenly spread, the query's own among them."""
    if frames <= MOST_FRAMES:
        return list(range(frames))
    spread = np.linspace(0, frames - 1, MOST_FRAMES).round().astype(int).tolist()
    nearest = min(range(MOST_FRAMES), key=lambda slot: abs(spread[slot] - own))
    spread[nearest] = own
    return sorted(set(spread))


def _arrangement(shown: int, h: int, w: int) -> tuple[int, int]:
    """Frames per row and pixels per token that make the frames as large as the panel allows."""
    best = (1, 0.0)
    for columns in range(1, shown + 1):
        rows = -(-shown // columns)
        cell = min(22, (PANEL[1] - (rows - 1) * CAPTION) / (rows * h), (PANEL[0] - columns * SPACE) / (columns * w))
        if cell > best[1]:
            best = columns, cell
    return best[0], max(2, int(best[1]))


def _frames_panel(view: View, layout: TokenLayout, query: _Query) -> Image.Image:
    """One query: what it sees, in words, and its frames."""
    row = view.rows(torch.tensor([query.index]))[0].numpy()
    start, stop = layout.grid_span
    t, h, w = layout.grid
    seen = row[start:stop].reshape(t, h, w)
    shown = _shown_frames(t, query.place[0])
    columns, cell = _arrangement(len(shown), h, w)
    rows = -(-len(shown) // columns)
    place = f"frame {query.place[0]}, " if t > 1 else ""
    words = f"query at {place}row {query.place[1]}, column {query.place[2]}  ({query.words})"
    counts = f"sees {_count(seen)} of {seen.size:,} grid tokens"
    for part in layout.segments:
        if part.name != GRID and part.length:
            low, high = layout.span(part.name)
            counts += f", {_count(row[low:high])} of {part.length} {part.name}"
    if view.weights:
        counts = f"{view.reads}; {_effective(row):,.0f} of {row.size:,} tokens carry the weight"
    elif view.note:
        counts += " (mean over heads)"
    panel = Image.new("RGB", (max(columns * (w * cell + SPACE), 640), HEAD + rows * (h * cell + CAPTION)), PAPER)
    pen = ImageDraw.Draw(panel)
    pen.text((EDGE, 0), words, INK, _font(19))
    pen.text((EDGE, 28), counts, SOFT, _font(16))
    for slot, frame in enumerate(shown):
        x, y = EDGE + slot % columns * (w * cell + SPACE), HEAD + slot // columns * (h * cell + CAPTION)
        tile = Image.fromarray(_blend(seen[frame], weights=view.weights))
        panel.paste(tile.resize((w * cell, h * cell), Image.Resampling.NEAREST), (x, y))
        _lattice(pen, (x, y), (h, w), cell)
        if frame == query.place[0]:
            pen.rectangle((x - 2, y - 2, x + w * cell + 1, y + h * cell + 1), outline=QUERY, width=2)
            _mark(pen, (x + (query.place[2] + 0.5) * cell, y + (query.place[1] + 0.5) * cell), cell)
        if t > 1:
            pen.text((x + w * cell / 2, y + h * cell + 5), f"frame {frame}", SOFT, _font(13), anchor="mt")
    return panel


def _count(seen: np.ndarray) -> str:
    """How many are seen, with one digit when heads differ."""
    total = float(seen.sum())
    return f"{total:,.0f}" if total == round(total) else f"{total:,.1f}"


def _effective(weights: np.ndarray) -> float:
    """Number of equal weights with the same spread: (sum w)^2 / sum w^2."""
    return float(weights.sum() ** 2 / (weights**2).sum())


def _mark(pen: ImageDraw.ImageDraw, centre: tuple[float, float], cell: int) -> None:
    """The query's cell in orange; small cells get a ring around them so that they can be found."""
    x, y = centre
    half = max(cell / 2, 1.5)
    pen.rectangle((x - half, y - half, x + half - 1, y + half - 1), fill=QUERY)
    if cell < 8:
        pen.ellipse((x - 8, y - 8, x + 7, y + 7), outline=QUERY, width=2)


def _lattice(pen: ImageDraw.ImageDraw, corner: tuple[int, int], cells: tuple[int, int], size: int) -> None:
    """Thin lines between cells, where cells are large enough to carry them."""
    if size < 6:
        return
    x, y = corner
    for row in range(1, cells[0]):
        pen.line((x, y + row * size, x + cells[1] * size - 1, y + row * size), PAPER)
    for column in range(1, cells[1]):
        pen.line((x + column * size, y, x + column * size, y + cells[0] * size - 1), PAPER)
