"""What toy-image and toy-dit are trained and looked at by: the loss of a step, and judged samples.

A model of this task offers ``read(texts, device)``, an ``objective``, ``forward(noisy, level,
*tokens)``, ``sample(texts, noise, steps, guidance)`` and an ``alignment`` read-out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from genkit.evaluation.toy_picture import ATTRIBUTES
from genkit.families.training.objectives import denoising_loss, draw_levels
from genkit.training.data.pool import Sample
from genkit.training.data.world.pictures import STAGES, PicturePool, PictureSize
from genkit.training.engine.curriculum import Stage, batch_for, draw_size
from genkit.training.engine.loop import process_rank
from genkit.training.toys.shared.picture_vae import decode_picture
from genkit.training.toys.video.probe import shares, sheet
from genkit.world.picture_caption import picture_caption
from genkit.world.picture_judge import judge_picture, score_picture
from genkit.world.picture_scene import draw_picture

_EMPTY = 0.1


def picture_loss(
    pool: PicturePool,
    model: nn.Module,
    seed: int,
    tokens: int = 3600,
    shift: float = 2.0,
    stages: tuple[Stage, ...] = STAGES,
    align: float = 0.5,
):
    """The loss function handed to the training loop.

    Args:
        pool: where samples come from.
        model: the unwrapped module, for its tokenizers and its diffusion.
        seed: of captions, sizes and noise.
        tokens: tokens per step; the batch is as large as they allow.
        shift: of the noise levels.
        stages: canvases over the budget.
        align: weight of the alignment loss at the start; falls linearly to zero at 80% of the budget.
    """

    def loss_at(wrapped: nn.Module, step: int, progress: float):
        # All processes of a distributed run draw the same size, and everything else for themselves.
        shared, rng = np.random.default_rng((seed, step)), np.random.default_rng((seed, step, process_rank()))
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        size = draw_size(stages, progress, shared)
        count = batch_for(size, tokens)
        samples = pool.draw(size, count)
        device = next(wrapped.parameters()).device
        latents = torch.stack([sample.latents for sample in samples]).to(device).float()
        texts = ["" if rng.random() < _EMPTY else picture_caption(sample.scene, rng) for sample in samples]
        level = draw_levels(count, shift, generator).to(device)
        noise = torch.randn(latents.shape, generator=generator).to(device)
        noisy, target = model.objective.noised(latents, noise, level)
        guess = wrapped(noisy, level, *model.read(texts, device), *_extra(samples, device))
        loss, error = denoising_loss(guess, target, level, low_weight=0.5)
        # Computed even at weight zero: in a distributed run every parameter must take part in every step.
        aligned = model.alignment.loss(torch.stack([sample.features for sample in samples]).to(device))
        figures = {"velocity": error.mean().item(), "align": aligned.item()}
        return loss + align * max(0.0, 1 - progress / 0.8) * aligned, figures

    return loss_at


def _extra(samples: list[Sample], device) -> tuple[torch.Tensor, ...]:
    if samples[0].extra is None:
        return ()
    return (torch.stack([sample.extra for sample in samples]).to(device).float(),)


@torch.no_grad()
def decode_pictures(vae: Any, latents: torch.Tensor) -> np.ndarray:
    """uint8 pictures (B, H, W, 3) of latents (B, 4, h, w)."""
    pixels = decode_picture(vae, latents)
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


@torch.no_grad()
def picture_probe(
    model: nn.Module,
    pool: PicturePool,
    folder: Path,
    step: int,
    size: PictureSize,
    count: int = 16,
    seed: int = 11,
    steps: int = 16,
    guidance: float = 4.0,
) -> dict[str, float]:
    """Sample ``count`` training pictures, write ``sheet-STEP.png`` and return the judge's accuracies.

    A model for inpainting paints the whole canvas anew, from an empty picture.
    """
    import imageio.v3 as iio

    device = next(model.parameters()).device
    rng = np.random.default_rng(seed)
    pictures = [draw_picture(rng, size.height, size.width)[0] for _ in range(count)]
    shape = (count, 4, size.height // 4, size.width // 4)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)
    extra = None
    if pool.inpaint:
        gray = torch.zeros(count, 3, size.height, size.width, device=next(pool.vae.parameters()).device)
        kept = pool.vae.encode(gray).latent_dist.mode().to(device)
        extra = torch.cat([torch.ones_like(kept[:, :1]), kept], 1)
    texts = [picture_caption(picture) for picture in pictures]
    images = decode_pictures(pool.vae, model.sample(texts, noise, steps, guidance, extra))
    iio.imwrite(folder / f"sheet-{step:06d}.png", sheet(images[:, None], columns=8))
    results = [score_picture(picture, judge_picture(image)) for picture, image in zip(pictures, images, strict=True)]
    return shares(results, ATTRIBUTES)
