"""The last frame of a clip, made to be the picture that was given.

A picture is one frame, and the last latent frame of a clip holds four: what stands behind the clip (see
:mod:`genkit.pipelines.tasks.inputs.given_frames`) leads it there, and it ends mostly a frame's way before. So in a few
steps what the model takes for the clean clip is decoded, the given picture is put in its last frame's place, and what
that changes in the latents is kept. From the noise that is left the model makes the frames before fit.

Pulling the clean estimate of a step to what is known is how inverse problems are solved with diffusion models
(Song et al., "Solving Inverse Problems with Latent Diffusion Models via Hard Data Consistency", ICLR 2024,
arXiv:2307.08123); here the known part is a frame, and putting it in place needs no optimisation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch

from genkit.families.wan import CODEC

#: Noise levels of the first two such steps; the third is the last step. Higher ones change nothing, for the way to the
#: last frame is still made anew.
LEVELS = (0.55, 0.35)
#: Latent frames that are decoded: the last one, and what a causal autoencoder's last frames hang on most.
TAIL = 3


@contextmanager
def held(pipe: Any, picture: torch.Tensor | None) -> Iterator[None]:
    """Within the block a sampler's steps lead to clips that end with a picture.

    Args:
        pipe: a Wan pipeline; its scheduler samples a flow, in which x = (1 - s) clean + s noise at level s.
        picture: (P, 3, H, W) in -1..1, one for all clips or one for every prompt; None does nothing.

    A sampler whose last step does not end at the clean clip is led there; see :mod:`genkit.pipelines.clean_end`, which
    does so for samplers by name.

    Cost: three times, decoding and encoding 9 frames twice.
    """
    if picture is None:
        yield
        return
    scheduler = pipe.scheduler
    inner, own = scheduler.step, vars(scheduler).get("step")
    numbers = count()  # some samplers visit a timestep twice, or round timesteps: neither tells the step

    def step(model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        levels, number = scheduler.sigmas[: len(scheduler.timesteps)], next(numbers)
        if number not in moments(levels.tolist()):
            return inner(model_output, timestep, sample, *args, **kwargs)
        level = levels[number].to(sample)
        clean = ending(pipe.vae, sample - level * model_output, picture)
        answer = inner(((sample - clean) / level).to(model_output.dtype), timestep, sample, *args, **kwargs)
        if number + 1 < len(levels) or not scheduler.sigmas[-1] > 0:
            return answer
        if isinstance(answer, tuple):
            return (clean.to(answer[0].dtype), *answer[1:])
        answer.prev_sample = clean.to(answer.prev_sample.dtype)
        return answer

    scheduler.step = step
    try:
        yield
    finally:
        if own is None:
            del scheduler.step
        else:
            scheduler.step = own


def moments(levels: Sequence[float]) -> set[int]:
    """Numbers of the steps that put the picture in place: the first at or below each of ``LEVELS``, and the last.

    Args:
        levels: noise levels of all steps, falling.
    """
    found = {len(levels) - 1}
    for bar in LEVELS:
        number = next((number for number, level in enumerate(levels) if level <= bar), None)
        if number is not None:
            # Heun's sampler asks twice at a level, and its first answer only corrects the step before.
            while number + 1 < len(levels) and levels[number + 1] == levels[number]:
                number += 1
            found.add(number)
    return found


def ending(vae: Any, clean: torch.Tensor, picture: torch.Tensor) -> torch.Tensor:
    """Latents of a clip whose last frame is a picture.

    Args:
        vae: a causal autoencoder of Wan's.
        clean: (B, C, T, h, w) normalised latents, without noise.
        picture: (P, 3, H, W) in -1..1; B is a multiple of P.

    Returns:
        The latents with another last frame. What the autoencoder loses by itself is left out of the change.
    """
    pixels = CODEC.decode(vae, clean[:, :, -TAIL:]).float().clamp(-1, 1)
    put = pixels.clone()
    put[:, :, -1] = picture.to(pixels).repeat_interleave(len(pixels) // len(picture), 0)
    change = (CODEC.encode(vae, put) - CODEC.encode(vae, pixels))[:, :, -1:]
    return torch.cat([clean[:, :, :-1], clean[:, :, -1:] + change.to(clean)], 2)
