"""What toy-video's decoder is trained on once the transformer is finished."""

from __future__ import annotations

import numpy as np

from genkit.families.wan import CODEC
from genkit.training.data.world.clips import ClipSize, draw_apart
from genkit.training.toys.shared.answers import Answer, Answers, Drawn
from genkit.training.toys.video.model import FULL_LENGTHS, OBJECTIVE, ToyVideo, sizes
from genkit.training.toys.video.vae import decode_unclamped
from genkit.world.caption import caption
from genkit.world.render import render_clip
from genkit.world.scene import Scene
from genkit.world.vocabulary import BACKGROUNDS

_COUNT = 3
_TWO, _EASY = 0.35, 0.6
_SIZES = sizes((17, 96, 96, 0.4), (25, 96, 96, 0.25), (25, 128, 128, 0.2), (9, 96, 96, 0.15))


def is_hard(scene: Scene) -> bool:
    """What such an autoencoder finds hard: crosses, what is small, what turns or changes its way."""
    return any(
        actor.shape == "cross" or actor.size == "small" or actor.motion in ("spin", "bounce") for actor in scene.actors
    )


def draw_clips(rng: np.random.Generator) -> Drawn:
    """Clips of one size, every other easy one left out."""
    size: ClipSize = _SIZES[int(rng.choice(len(_SIZES), p=[share for _, share in _SIZES]))][0]
    texts: list[str] = []
    clips, spots = [], []
    while len(texts) < _COUNT:
        scene, tracks = draw_apart(rng, size, _TWO, tuple(BACKGROUNDS))
        if not is_hard(scene) and rng.random() > _EASY:
            continue
        actor, frame = int(rng.integers(len(scene.actors))), int(rng.integers(size.frames))
        texts.append(caption(scene, rng))
        clips.append(render_clip(scene, tracks, size.height, size.width))
        spots.append(np.array([tracks.y[actor, frame], tracks.x[actor, frame]]) + rng.uniform(-12, 12, 2))
    return Drawn(texts, np.stack(clips), np.stack(spots))


def ask(model: ToyVideo, drawn: Drawn, guided: bool) -> Answer:
    """What the transformer answers to."""
    ids, mask = model.read(drawn.asked(guided), next(model.parameters()).device)
    return lambda noisy, level: model(noisy, level, ids, mask, FULL_LENGTHS[0])


ANSWERS = Answers(
    draw=draw_clips,
    ask=ask,
    encode=CODEC.encode,
    raw=CODEC.denormalise,
    decode=decode_unclamped,
    objective=lambda model: OBJECTIVE,
    cell=8,
    side=8,
    shift=3.0,
    guidance=4.0,
)
