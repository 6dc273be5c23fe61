"""Drawing edits of clips at random: colour or shape of the one object that moves, or the background."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from genkit.errors import UsageError, explain
from genkit.world.caption import caption
from genkit.world.edits.case import BACKGROUND, CLIP_KINDS, COLOUR, RIM, ClipEdit
from genkit.world.edits.regions import covers
from genkit.world.reading import dilate, erode
from genkit.world.render import render_clip
from genkit.world.scene import Scene, draw_scene, lay_out, pick, split_of
from genkit.world.vocabulary import COLOURS, FIRST_BACKGROUNDS, SHAPES

# Shapes by how far they reach from their centre: a path that has room for one has room for those before it.
_BY_REACH = ("circle", "cross", "square", "triangle")


def draw_clip_edit(
    kind: str, rng: np.random.Generator, frames: int = 25, height: int = 128, width: int = 128, split: str = "any"
) -> ClipEdit:
    """Draw an edit of a clip with one object, whose motion stays.

    Args:
        kind: of :data:`genkit.world.edits.CLIP_KINDS`.
        rng: source of randomness.
        frames, height, width: of the clip.
        split: of the target, as in :func:`genkit.world.scene.split_of`; ``any`` for the world's own mix.
    """
    if kind not in CLIP_KINDS:
        raise UsageError(explain("kind of edit of a clip", kind, CLIP_KINDS))
    while True:
        before = draw_scene(rng, "any", actors=1)
        old = before.actors[0]
        if kind == BACKGROUND:
            taken = (old.colour, before.background)
            after = replace(before, background=pick(rng, [name for name in FIRST_BACKGROUNDS if name not in taken]))
        elif kind == COLOUR:
            free = [name for name in COLOURS if name not in (old.colour, before.background)]
            after = replace(before, actors=(replace(old, colour=pick(rng, free)),))
        else:
            # A spinning circle stands still to the eye.
            free = [name for name in SHAPES if name != old.shape and not (old.motion == "spin" and name == "circle")]
            after = replace(before, actors=(replace(old, shape=pick(rng, free)),))
        if split in ("any", split_of(after)):
            return _edit(kind, before, after, rng, (frames, height, width))


def _edit(kind: str, before: Scene, after: Scene, rng: np.random.Generator, size: tuple[int, int, int]) -> ClipEdit:
    frames, height, width = size
    wider = max(before, after, key=lambda scene: _BY_REACH.index(scene.actors[0].shape))
    tracks = lay_out(wider, frames, height, width, rng)
    covered = [covers(scene, tracks, 0, height, width) for scene in (before, after)]
    actor: int | None
    if kind == BACKGROUND:
        stay, actor, phrase = erode(covered[0] > 0.999, 2), None, f"{after.background} background"
    else:
        stay, actor = ~dilate((covered[0] > 0) | (covered[1] > 0), RIM), 0
        phrase = f"{after.actors[0].colour} {after.actors[0].shape}"
    source, target = (render_clip(scene, tracks, height, width) for scene in (before, after))
    return ClipEdit(kind, source, target, caption(before), caption(after), stay, before, after, tracks, actor, phrase)
