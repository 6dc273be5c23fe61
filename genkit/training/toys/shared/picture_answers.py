"""What the decoder of toy-image and toy-dit is trained on once the denoiser is finished."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from genkit.training.toys.shared.answers import Answer, Answers, Drawn
from genkit.training.toys.shared.picture_vae import decode_picture
from genkit.world.picture_caption import picture_caption
from genkit.world.picture_render import render_picture
from genkit.world.picture_scene import draw_picture
from genkit.world.vocabulary import BACKGROUNDS

_COUNT, _SIDE = 8, 128


def draw_pictures(rng: np.random.Generator) -> Drawn:
    """Pictures of one to three objects."""
    drawn = [draw_picture(rng, _SIDE, _SIDE, backgrounds=tuple(BACKGROUNDS)) for _ in range(_COUNT)]
    spots = []
    for picture, placement in drawn:
        actor = int(rng.integers(len(picture.actors)))
        spots.append(np.array([placement.y[actor], placement.x[actor]]) + rng.uniform(-12, 12, 2))
    pixels = np.stack([render_picture(picture, placement, _SIDE, _SIDE) for picture, placement in drawn])
    return Drawn([picture_caption(picture, rng) for picture, _ in drawn], pixels, np.stack(spots))


def ask(model: Any, drawn: Drawn, guided: bool) -> Answer:
    """What a denoiser of pictures answers to."""
    tokens = model.read(drawn.asked(guided), next(model.parameters()).device)
    return lambda noisy, level: model(noisy, level, *tokens)


def picture_answers(shift: float, guidance: float, fresh: float, levels: tuple[float, float] = (0.1, 0.5)) -> Answers:
    """See :class:`genkit.training.toys.shared.answers.Answers`; latents are standardised by the autoencoder's own
    weights."""
    return Answers(
        draw=draw_pictures,
        ask=ask,
        encode=_mode,
        raw=lambda vae, latents: latents,
        decode=decode_picture,
        objective=lambda model: model.objective,
        cell=4,
        side=16,
        shift=shift,
        guidance=guidance,
        fresh=fresh,
        levels=levels,
    )


def _mode(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    return vae.encode(pixels).latent_dist.mode()
