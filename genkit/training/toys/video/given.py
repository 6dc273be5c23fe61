"""Frames that toy-video is given: a first picture, a last one, both, or how the clip begins. They stay clean.

Given latent frames lie in the sequence at noise level 0, and their tokens are told so, as Wan 2.2's 5B model has it for
its first frame (``expand_timesteps`` in Diffusers). The last picture is encoded alone and stands behind the clip: the
clip's own last latent frame holds four frames of motion, which nobody has who brings a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from genkit.errors import UsageError, explain
from genkit.training.data.pool import Sample
from genkit.training.data.world.clips import ClipSize, LatentPool
from genkit.training.toys.shared.swap_gaps import LEVEL, noise_like
from genkit.world.caption import caption
from genkit.world.scene import Scene

FIRST, LAST, BOTH, START = "first", "last", "both", "start"
#: What is given -> share of the training batches; in the others nothing is.
SHARES = {FIRST: 0.12, LAST: 0.05, BOTH: 0.05, START: 0.08}


@dataclass(frozen=True)
class Given:
    """Noisy latents with what is given in them.

    Args:
        latents: (B, C, T', h, w); T' is one more than the clip's T where a last picture is given.
        levels: (B, T') noise levels, 0 for what is given.
        free: (T,) bool, the frames that are to be made; the loss is theirs alone.
    """

    latents: torch.Tensor
    levels: torch.Tensor
    free: torch.Tensor


def draw_kind(frames: int, rng: np.random.Generator) -> str | None:
    """What a batch has given; None = nothing, as in most.

    Args:
        frames: latent frames of the clips; pictures have nothing given.
        rng: of the step.
    """
    value = rng.random()
    if frames < 2:
        return None
    for kind, share in SHARES.items():
        if value < share:
            return kind
        value -= share
    return None


def with_given(
    kind: str,
    clean: torch.Tensor,
    noisy: torch.Tensor,
    sigma: torch.Tensor,
    last: torch.Tensor | None = None,
    begun: int = 1,
) -> Given:
    """Put clean latents in place of noisy ones.

    Args:
        kind: "first", "last", "both" or "start".
        clean, noisy: (B, C, T, h, w) latents of clips, T at least 2.
        sigma: (B,) level of ``noisy``.
        last: (B, C, 1, h, w) last pictures, encoded alone; "last" and "both" need them.
        begun: latent frames that "start" gives, below T.

    Raises:
        UsageError: an unknown kind, no last pictures, or nothing left to make.
    """
    if kind not in SHARES:
        raise UsageError(explain("kind", kind, tuple(SHARES)))
    frames = clean.shape[2]
    front = {FIRST: 1, BOTH: 1, START: begun, LAST: 0}[kind]
    if front >= frames:
        raise UsageError(explain("given latent frames", front, f"fewer than the clip's {frames}"))
    latents = torch.cat([clean[:, :, :front], noisy[:, :, front:]], 2)
    levels = sigma[:, None].repeat(1, frames)
    levels[:, :front] = 0
    if kind in (LAST, BOTH):
        if last is None:
            raise UsageError(f"{kind}: a last picture, encoded alone, is needed")
        latents = torch.cat([latents, last], 2)
        levels = torch.nn.functional.pad(levels, (0, 1))
    free = torch.arange(frames, device=clean.device) >= front
    return Given(latents, levels, free)


def last_pictures(samples: Sequence[Sample]) -> torch.Tensor:
    """(B, C, 1, h, w) float32: the last frames of clips, encoded alone."""
    return torch.stack([sample.extra for sample in samples if sample.extra is not None]).float()


@torch.no_grad()
def given_gains(
    model: Any, pool: LatentPool, size: ClipSize, count: int = 32, level: float = LEVEL
) -> dict[str, float]:
    """What given frames are good for: the loss of the frames that are left without them, less the loss with them.

    Same clips, captions, noise; a model that does not look at what is given gains nothing.

    Args:
        model: a :class:`genkit.training.toys.video.model.ToyVideo`.
        pool: with ``ends``; its randomness decides the clips.
        size: of clips of several latent frames.
        count: clips.
        level: noise level in 0..1.

    Returns:
        Gain by kind and, as ``KIND error``, its standard error.
    """
    samples = pool.encode(size, count)
    device = next(model.parameters()).device
    latents = torch.stack([sample.latents for sample in samples]).to(device).float()
    last = last_pictures(samples).to(device)
    scenes = [sample.scene for sample in samples if isinstance(sample.scene, Scene)]
    ids, mask = model.read([caption(scene) for scene in scenes], device)
    sigma = torch.full((count,), level, device=device)
    noise = noise_like(latents, 0)
    noisy, target = (1 - level) * latents + level * noise, noise - latents
    frames = latents.shape[2]
    without = model(noisy, sigma, ids, mask, 64)
    found: dict[str, float] = {}
    for kind in SHARES:
        given = with_given(kind, latents, noisy, sigma, last, begun=max(1, frames // 2))
        answer = model(given.latents, given.levels, ids, mask, 64)[:, :, :frames]
        wrong, before = ((each - target)[:, :, given.free].square().mean((1, 2, 3, 4)) for each in (answer, without))
        gain = before - wrong
        found |= {kind: float(gain.mean()), f"{kind} error": float(gain.std() / count**0.5)}
    return found
