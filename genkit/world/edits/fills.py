"""Repainting a part of a picture: a mask, a prompt, and where the object that it names must appear."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from genkit.errors import UsageError, explain
from genkit.world.caption import actor_phrase, article
from genkit.world.edits.regions import covers
from genkit.world.picture_caption import TEXTURE_WORDS, picture_caption
from genkit.world.picture_judge import judge_picture
from genkit.world.picture_render import render_picture
from genkit.world.picture_scene import GAP, Picture, PictureActor, Placement, draw_picture, has_room
from genkit.world.reading import dilate
from genkit.world.render import SHAPE_EXTENTS
from genkit.world.scene import pick
from genkit.world.vocabulary import BACKGROUNDS, COLOURS, SHAPES

#: An empty place is filled, or an object there becomes another one.
FILL, SWAP = "fill", "swap"
FILL_KINDS: tuple[str, ...] = (FILL, SWAP)
# Pixels from the object's box to the border of the mask.
_MARGIN = (4.0, 9.0)


@dataclass(frozen=True)
class Fill:
    """One part to be repainted, and one right answer.

    Args:
        kind: of :data:`FILL_KINDS`.
        source: uint8 (H, W, 3).
        target: the same with the object in the mask.
        mask: bool (H, W), True where it is repainted.
        prompt: names the object that must appear, and the background, but nothing that stands outside the mask.
        whole_prompt: caption of the target with everything on it.
        phrase: words of both prompts that name the object, colour and shape.
        actor: what must appear; its size follows from the mask and is not judged.
        after: what the target shows.
    """

    kind: str
    source: np.ndarray
    target: np.ndarray
    mask: np.ndarray
    prompt: str
    whole_prompt: str
    phrase: str
    actor: PictureActor
    after: Picture


def draw_fill(
    kind: str,
    rng: np.random.Generator,
    height: int = 128,
    width: int = 128,
    split: str = "any",
    actors: int | None = None,
) -> Fill:
    """Draw a part to be repainted: a box or an ellipse around the place of one object.

    Args:
        kind: of :data:`FILL_KINDS`.
        rng: source of randomness.
        height, width: of the canvas in pixels.
        split: of the target, as in :func:`genkit.world.picture_scene.picture_split`.
        actors: objects of the target, 1 or 2; by default two in half of the pictures.
    """
    if kind not in FILL_KINDS:
        raise UsageError(explain("kind of repainting", kind, FILL_KINDS))
    if actors not in (None, 1, 2):
        raise UsageError(explain("actors of a repainted picture", actors, (1, 2)))
    while True:
        after, placement = draw_picture(rng, height, width, split, actors or int(rng.integers(1, 3)))
        last = len(after.actors) - 1
        before = None if kind == FILL else _other(after, rng)
        if before is not None and not has_room(before, placement, height, width):
            continue
        mask = _mask(after, placement, height, width, rng)
        if before is not None and (covers(before, placement.tracks, last, height, width)[0] > 0)[~mask].any():
            continue
        return _fill(kind, before, after, placement, mask)


def _other(after: Picture, rng: np.random.Generator) -> Picture:
    """The same picture with another object, in colour and shape, where the last one is."""
    old = after.actors[-1]
    taken = {actor.colour for actor in after.actors} | {after.background}
    colour = pick(rng, [name for name in COLOURS if name not in taken])
    new = replace(old, colour=colour, shape=pick(rng, [name for name in SHAPES if name != old.shape]))
    return replace(after, actors=(*after.actors[:-1], new))


def _mask(picture: Picture, placement: Placement, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A box around the last object, cut back from the others by half the gap between two."""
    last = len(picture.actors) - 1
    left, right, top, bottom = np.array(SHAPE_EXTENTS[picture.actors[last].shape]) * placement.radius[last]
    margin = rng.uniform(*_MARGIN, 4)
    x, y = np.arange(width)[None, :] + 0.5 - placement.x[last], np.arange(height)[:, None] + 0.5 - placement.y[last]
    mask = (x > -left - margin[0]) & (x < right + margin[1]) & (y > -top - margin[2]) & (y < bottom + margin[3])
    for other in range(last):
        mask &= ~dilate(covers(picture, placement.tracks, other, height, width) > 0, int(GAP / 2))[0]
    return mask


def _fill(kind: str, before: Picture | None, after: Picture, placement: Placement, mask: np.ndarray) -> Fill:
    height, width = mask.shape
    target = render_picture(after, placement, height, width)
    if before is None:
        source = target.copy()
        source[mask] = BACKGROUNDS[after.background]
    else:
        source = render_picture(before, placement, height, width)
    actor = after.actors[-1]
    words = actor_phrase(actor, texture=TEXTURE_WORDS[actor.texture][0])
    prompt = f"{words} on {article(after.background)} {after.background} background"
    phrase = f"{actor.colour} {actor.shape}"
    return Fill(kind, source, target, mask, prompt, picture_caption(after), phrase, actor, after)


def judge_fill(fill: Fill, output: np.ndarray) -> dict[str, bool]:
    """Judge a repainted picture.

    Returns:
        ``appears``: an object with the asked colour, shape and texture has its centre inside the mask and is the only
        one there. ``outside``: every pixel outside the mask is the source's, bit for bit. ``count``: nothing else came
        or went. ``right``: all of them. ``colour``, ``shape`` and ``texture`` of the largest object in the mask.
    """
    if output.shape != fill.source.shape or output.dtype != np.uint8:
        raise UsageError(f"must be uint8 of shape {fill.source.shape}, got {output.dtype} {output.shape}")
    verdict = judge_picture(output)
    height, width = fill.mask.shape
    within = [part for part in verdict.actors if fill.mask[min(int(part.y), height - 1), min(int(part.x), width - 1)]]
    found = {
        name: bool(within) and getattr(within[0], name) == getattr(fill.actor, name)
        for name in ("colour", "shape", "texture")
    }
    appears = len(within) == 1 and all(found.values())
    count = len(verdict.actors) == len(fill.after.actors)
    outside = bool(np.array_equal(output[~fill.mask], fill.source[~fill.mask]))
    return {"appears": appears, "outside": outside, "count": count, "right": appears and outside and count, **found}
