"""The manner of one picture on the content of another: colours, texture and ground of a style, shape of a content."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from genkit.errors import UsageError
from genkit.world.concepts.reading import masks, read_outline
from genkit.world.edits.judge import MOVED
from genkit.world.picture_caption import picture_caption
from genkit.world.picture_judge import judge_picture
from genkit.world.picture_render import render_picture
from genkit.world.picture_scene import Picture, Placement, draw_picture
from genkit.world.reading import UNCLEAR, read_background

# Directions onto which colours are projected, and quantiles at which the projections are compared.
_DIRECTIONS, _QUANTILES = 32, 64


@dataclass(frozen=True)
class StylePair:
    """A content, a style, and the content drawn in that style.

    Args:
        content, style, target: uint8 (H, W, 3) with one object each. Content and style share neither shape, colour,
            texture nor background; the target has the content's shape, size and place and the style's rest.
        content_prompt, style_prompt, target_prompt: canonical captions.
        after: what the target shows.
        placement: of the content and of the target.
    """

    content: np.ndarray
    style: np.ndarray
    target: np.ndarray
    content_prompt: str
    style_prompt: str
    target_prompt: str
    after: Picture
    placement: Placement


def draw_style_pair(rng: np.random.Generator, height: int = 128, width: int = 128) -> StylePair:
    """Draw a content and a style at random.

    Args:
        rng: source of randomness.
        height, width: of both pictures in pixels.
    """
    while True:
        content, placement = draw_picture(rng, height, width, "any", 1)
        style, elsewhere = draw_picture(rng, height, width, "any", 1)
        one, other = content.actors[0], style.actors[0]
        names = ("colour", "shape", "texture")
        differ = all(getattr(one, name) != getattr(other, name) for name in names)
        if differ and content.background != style.background:
            break
    cast = replace(one, colour=other.colour, texture=other.texture)
    after = replace(content, actors=(cast,), background=style.background)
    return StylePair(
        render_picture(content, placement, height, width),
        render_picture(style, elsewhere, height, width),
        render_picture(after, placement, height, width),
        picture_caption(content),
        picture_caption(style),
        picture_caption(after),
        after,
        placement,
    )


def style_distance(picture: np.ndarray, style: np.ndarray) -> float:
    """How far the manner of one picture is from another's, whatever stands where: 0 for the same.

    The sliced Wasserstein distance between their pixels as points of six numbers: colour and the absolute change of
    every channel to the next pixel across and down, averaged, in units of 0..255.

    Args:
        picture, style: uint8 (H, W, 3), of any two sizes.
    """
    directions = np.random.default_rng(0).normal(size=(6, _DIRECTIONS))
    directions /= np.linalg.norm(directions, axis=0)
    levels = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    one, other = (_quantiles(_points(each) @ directions, levels) for each in (picture, style))
    return float(np.abs(one - other).mean())


def _quantiles(values: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Columns of values (n, k) at levels (m,): (m, k)."""
    return np.sort(values, axis=0)[(levels * len(values)).astype(int)]


def _points(picture: np.ndarray) -> np.ndarray:
    pixels = picture.astype(np.float64)
    change = np.abs(np.diff(pixels, axis=1))[:-1] + np.abs(np.diff(pixels, axis=0))[:, :-1]
    return np.concatenate([pixels[:-1, :-1], change / 2], axis=-1).reshape(-1, 6)


def judge_style(pair: StylePair, output: np.ndarray) -> dict[str, bool | float]:
    """Judge a restyled picture.

    Returns:
        ``content``: one object with the content's outline, whatever its colours, its centre within half its radius.
        ``moved``: share of the way from the content's style distance to 0, 1 for a perfect match. ``background``: is
        the style's. ``right``: content kept and at least half of the way.
    """
    if output.shape != pair.content.shape or output.dtype != np.uint8:
        raise UsageError(f"must be uint8 of shape {pair.content.shape}, got {output.dtype} {output.shape}")
    frame = output.astype(np.float32)
    background, ground = read_background(frame[None], [])
    found = [] if background == UNCLEAR else [mask.filled() for mask in masks(frame, ground)]
    parts = judge_picture(output).actors
    # Two readers of outlines: by overlap, whatever the colours, and by moments, whose colours are the world's.
    outlines = [(read_outline(mask), *mask.centre) for mask in found] if len(found) == 1 else []
    outlines += [(part.shape, part.x, part.y) for part in parts] if len(parts) == 1 else []
    kept = any(_kept(pair, *outline) for outline in outlines)
    before, after = (style_distance(each, pair.style) for each in (pair.content, output))
    moved = 1 - after / before
    return {
        "content": kept,
        "moved": moved,
        "background": background == pair.after.background,
        "right": kept and moved >= 0.5,
    }


def _kept(pair: StylePair, shape: str, x: float, y: float) -> bool:
    """Whether an outline and its centre are the content's."""
    place = pair.placement
    near = np.hypot(x - place.x[0], y - place.y[0]) <= MOVED * place.radius[0]
    return bool(near and shape == pair.after.actors[0].shape)
