"""A look at a model in training: a few clips by a plain Euler sampler, judged, and put on one sheet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from genkit.families.training.objectives import shifted
from genkit.training.data.world.clips import ClipSize
from genkit.world.caption import caption
from genkit.world.judge import judge_clip, score
from genkit.world.scene import Scene, draw_scene


@torch.no_grad()
def sample_latents(
    model: nn.Module,
    captions: list[str],
    size: ClipSize,
    seed: int,
    steps: int = 16,
    guidance: float = 4.0,
    shift: float = 4.0,
) -> torch.Tensor:
    """Normalised latents (B, C, T, H, W) for captions, by Euler steps over shifted noise levels with guidance."""
    device = next(model.parameters()).device
    channels = model.transformer.config.in_channels
    shape = (len(captions), channels, 1 + (size.frames - 1) // 4, size.height // 8, size.width // 8)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)
    batch = model.tokenizer([*captions, *[""] * len(captions)], padding=True, return_tensors="pt")
    ids = torch.nn.functional.pad(batch.input_ids, (0, 1)).to(device)
    mask = torch.nn.functional.pad(batch.attention_mask, (0, 1)).to(device)
    levels = shifted(torch.linspace(1, 0, steps + 1), shift).tolist()
    for level, following in zip(levels[:-1], levels[1:], strict=True):
        sigma = torch.full((len(ids),), level, device=device)
        velocity = model(latents.repeat(2, 1, 1, 1, 1), sigma, ids, mask, 64)
        asked, free = velocity.chunk(2)
        latents = latents + (following - level) * (free + guidance * (asked - free))
    return latents


@torch.no_grad()
def decode(vae: Any, latents: torch.Tensor) -> np.ndarray:
    """uint8 clips (B, F, H, W, 3) of normalised latents."""
    shape = (1, -1, 1, 1, 1)
    mean = torch.tensor(vae.config.latents_mean, device=latents.device).view(shape)
    std = torch.tensor(vae.config.latents_std, device=latents.device).view(shape)
    pixels = vae.decode(latents * std + mean).sample
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 4, 1).cpu().numpy()


def sheet(clips: np.ndarray, columns: int = 2, every: int = 4) -> np.ndarray:
    """Every fourth frame of each clip side by side, clips below each other in columns; uint8 (H, W, 3)."""
    strips = [np.concatenate(list(clip[::every]), axis=1) for clip in clips]
    strips = [np.pad(strip, ((1, 1), (1, 1), (0, 0)), constant_values=255) for strip in strips]
    rows = [strips[i : i + columns] for i in range(0, len(strips), columns)]
    rows[-1] += [np.zeros_like(strips[0])] * (columns - len(rows[-1]))
    return np.concatenate([np.concatenate(row, axis=1) for row in rows], axis=0)


def accuracy(scenes: list[Scene], clips: np.ndarray) -> dict[str, float]:
    """Share of clips whose attribute is right, by the judge."""
    names = ("background", "colour", "shape", "size", "motion", "all")
    return shares([score(scene, judge_clip(clip)) for scene, clip in zip(scenes, clips, strict=True)], names)


def shares(results: list[dict[str, bool]], names: tuple[str, ...]) -> dict[str, float]:
    """Share of right answers per attribute, over the results that have it."""
    rows = {name: [result[name] for result in results if name in result] for name in names}
    return {name: float(np.mean(values)) for name, values in rows.items() if values}


def probe(model: nn.Module, vae: Any, folder: Path, step: int, size: ClipSize, count: int = 16, seed: int = 11) -> dict:
    """Sample ``count`` one-object training scenes, write ``sheet-STEP.png`` and return the judge's accuracies."""
    import imageio.v3 as iio

    rng = np.random.default_rng(seed)
    scenes = [draw_scene(rng, actors=1) for _ in range(count)]
    clips = decode(vae, sample_latents(model, [caption(scene) for scene in scenes], size, seed))
    iio.imwrite(folder / f"sheet-{step:06d}.png", sheet(clips))
    return accuracy(scenes, clips)
