"""Does a model listen to word order? The loss with two objects' words exchanged, less the loss with the right caption.

Same clip, same noise, same level; only who is what differs. A model that hears a bag of words has a gap of zero, long
before samples can be judged: a minute of one core instead of an hour. At level 0.85 it is decided what becomes what.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from genkit.training.data.pool import Pool, Sample
from genkit.training.engine.curriculum import Size
from genkit.world.caption import caption
from genkit.world.picture_caption import picture_caption
from genkit.world.picture_scene import OPPOSITES, Picture
from genkit.world.scene import Scene

LEVEL = 0.85
#: Attributes whose exchange changes a caption but not its words.
CLIP_KINDS = ("shape", "motion")
PICTURE_KINDS = ("shape", "texture", "relation")

#: Errors (B,) of a batch: called with (samples, texts, noise level, seed of the noise).
ErrorOf = Callable[[list[Sample], list[str], float, int], torch.Tensor]


def swapped_pictures(picture: Picture) -> dict[str, Picture]:
    """The picture with one thing exchanged between its first two objects, by kind; kinds that change nothing are left
    out."""
    first, second, *rest = picture.actors
    found = {}
    for name in ("shape", "texture"):
        one, other = getattr(first, name), getattr(second, name)
        if one != other:
            pair = (replace(first, **{name: other}), replace(second, **{name: one}))
            found[name] = replace(picture, actors=(*pair, *rest))
    if picture.relations:
        (one, relation, other), *more = picture.relations
        found["relation"] = replace(picture, relations=((one, OPPOSITES[relation], other), *more))
    return found


def swapped_scenes(scene: Scene) -> dict[str, Scene]:
    """The scene with one thing exchanged between its two actors, by kind."""
    first, second = scene.actors
    found = {}
    for name in CLIP_KINDS:
        one, other = getattr(first, name), getattr(second, name)
        circles_spin = "circle" in (first.shape, second.shape) and "spin" in (first.motion, second.motion)
        if one != other and not circles_spin:
            found[name] = replace(scene, actors=(replace(first, **{name: other}), replace(second, **{name: one})))
    return found


def captions_of(sample: Sample) -> tuple[str, dict[str, str]]:
    """The right caption of a sample with two objects, and the exchanged ones by kind."""
    if isinstance(sample.scene, Picture):
        return picture_caption(sample.scene), {k: picture_caption(v) for k, v in swapped_pictures(sample.scene).items()}
    return caption(sample.scene), {kind: caption(scene) for kind, scene in swapped_scenes(sample.scene).items()}


@torch.no_grad()
def swap_gaps(
    pool: Pool,
    size: Size,
    error_of: ErrorOf,
    kinds: Sequence[str],
    count: int = 64,
    level: float = LEVEL,
    batch: int = 8,
    seed: int = 0,
) -> dict[str, float]:
    """Mean gaps in loss by kind of exchange.

    Args:
        pool: draws samples with two objects.
        size: of the samples; it must hold two objects.
        error_of: the model's errors.
        kinds: which exchanges to try.
        count: samples; those whose two objects are alike in a kind do not count for it.
        level: noise level in 0..1.
        batch: samples at a time.
        seed: of the noise. The pool's own randomness decides the samples.

    Returns:
        Gap by kind and, as ``KIND error``, its standard error.
    """
    gaps: dict[str, list[float]] = {kind: [] for kind in kinds}
    for start in range(0, count, batch):
        samples = pool.encode(size, min(batch, count - start))
        told = [captions_of(sample) for sample in samples]
        right = error_of(samples, [text for text, _ in told], level, seed + start)
        for kind in kinds:
            asked = [index for index, (_, others) in enumerate(told) if kind in others]
            if not asked:
                continue
            texts = [others.get(kind, text) for text, others in told]
            gap = error_of(samples, texts, level, seed + start) - right
            gaps[kind] += gap[asked].tolist()
    found = {kind: float(np.mean(values)) for kind, values in gaps.items() if values}
    spread = {f"{kind} error": float(np.std(values) / np.sqrt(len(values))) for kind, values in gaps.items() if values}
    return found | spread


def noise_like(latents: torch.Tensor, seed: int) -> torch.Tensor:
    """The same noise for the same seed, whatever the captions."""
    return torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed)).to(latents.device)


def picture_errors(model) -> ErrorOf:
    """Errors of a model of :mod:`genkit.training.toys.shared.picture_task`."""

    def error_of(samples: list[Sample], texts: list[str], level: float, seed: int) -> torch.Tensor:
        device = next(model.parameters()).device
        latents = torch.stack([sample.latents for sample in samples]).to(device).float()
        levels = torch.full((len(samples),), level, device=device)
        noisy, target = model.objective.noised(latents, noise_like(latents, seed), levels)
        guess = model(noisy, levels, *model.read(texts, device))
        return (guess.float() - target).square().mean((1, 2, 3))

    return error_of


def clip_errors(model, slots: int = 64) -> ErrorOf:
    """Errors of :class:`genkit.training.toys.video.model.ToyVideo` with ``slots`` text slots."""

    def error_of(samples: list[Sample], texts: list[str], level: float, seed: int) -> torch.Tensor:
        device = next(model.parameters()).device
        latents = torch.stack([sample.latents for sample in samples]).to(device).float()
        noise = noise_like(latents, seed)
        batch = model.tokenizer(texts, padding=True, return_tensors="pt")
        ids = torch.nn.functional.pad(batch.input_ids, (0, 1)).to(device)
        mask = torch.nn.functional.pad(batch.attention_mask, (0, 1)).to(device)
        levels = torch.full((len(samples),), level, device=device)
        velocity = model((1 - level) * latents + level * noise, levels, ids, mask, slots)
        return (velocity.float() - (noise - latents)).square().mean((1, 2, 3, 4))

    return error_of


def av_errors(model) -> ErrorOf:
    """Errors of the video half of :class:`genkit.training.toys.av.model.ToyAv`; both halves have the level."""

    def error_of(samples: list, texts: list[str], level: float, seed: int) -> torch.Tensor:
        device = next(model.parameters()).device
        latents = torch.stack([sample.latents for sample in samples]).to(device).float()
        sound = torch.stack([sample.sound for sample in samples]).to(device).float()
        noise, sound_noise = noise_like(latents, seed), noise_like(sound, seed + 1)
        levels = torch.full((len(samples),), level, device=device)
        velocity, _ = model(
            (1 - level) * latents + level * noise,
            (1 - level) * sound + level * sound_noise,
            levels,
            levels,
            *model.read(texts, device),
        )
        return (velocity.float() - (noise - latents)).square().mean((1, 2, 3, 4))

    return error_of
