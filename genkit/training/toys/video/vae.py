"""Training the small video autoencoder of the shipped models on the toy world."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from genkit.training.data.pixels import as_tensor
from genkit.training.toys.shared.autoencoder import Autoencoder, autoencoder_loss
from genkit.world.render import render_clip
from genkit.world.scene import draw_scene, lay_out
from genkit.world.vocabulary import BACKGROUNDS

# 8x8 pixels and 4 frames per latent position: 2x2 by moving pixels to channels, 4x4x4 by two learned halvings.
VIDEO_VAE = {
    "base_dim": 24,
    "decoder_base_dim": 32,
    "z_dim": 12,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "attn_scales": [],
    "temperal_downsample": [True, True],
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 8,
}


def build_video_vae(config: dict | None = None) -> nn.Module:
    """An ``AutoencoderKLWan`` whose residual branches start at zero, which saves hundreds of training steps."""
    from diffusers import AutoencoderKLWan

    config = dict(VIDEO_VAE, **(config or {}))
    model = AutoencoderKLWan(latents_mean=[0.0] * config["z_dim"], latents_std=[1.0] * config["z_dim"], **config)
    for child in model.modules():
        if type(child).__name__ == "WanResidualBlock":
            nn.init.zeros_(child.conv2.weight)
            nn.init.zeros_(child.conv2.bias)
        elif type(child).__name__ == "WanAttentionBlock":
            nn.init.zeros_(child.proj.weight)
            nn.init.zeros_(child.proj.bias)
    return model


def decode_unclamped(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Decode (B, z, t, h, w) to (B, 3, 4t-3, 8h, 8w) without the final clamp, whose gradient is zero outside -1..1."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

    vae.clear_cache()
    hidden = vae.post_quant_conv(latents)
    chunks = []
    for index in range(latents.shape[2]):
        vae._conv_idx = [0]
        chunk = vae.decoder(
            hidden[:, :, index : index + 1], feat_cache=vae._feat_map, feat_idx=vae._conv_idx, first_chunk=index == 0
        )
        chunks.append(chunk)
    vae.clear_cache()
    return unpatchify(torch.cat(chunks, 2), patch_size=vae.config.patch_size)


def draw_clips(
    rng: np.random.Generator, count: int, frames: int, size: int, two_share: float, crop: int | None = None
) -> np.ndarray:
    """Render ``count`` random training clips.

    Args:
        rng: source of randomness.
        count, frames, size: clips, frames per clip, pixels per side.
        two_share: share of scenes with two objects.
        crop: cut each clip to this many pixels per side around an object, where the edges are.

    Returns:
        uint8 (count, frames, side, side, 3) with side ``crop`` or ``size``.
    """
    clips = []
    for _ in range(count):
        scene = draw_scene(rng, moving=frames > 1, two_share=two_share, backgrounds=tuple(BACKGROUNDS))
        tracks = lay_out(scene, frames, size, size, rng)
        clip = render_clip(scene, tracks, size, size)
        if crop:
            actor, frame = rng.integers(len(scene.actors)), rng.integers(frames)
            centre = np.array([tracks.y[actor, frame], tracks.x[actor, frame]]) + rng.uniform(-12, 12, 2)
            top, left = np.clip(np.round(centre - crop / 2), 0, size - crop).astype(int)
            clip = clip[:, top : top + crop, left : left + crop]
        clips.append(clip)
    return np.stack(clips)


class VideoVae(Autoencoder):
    """A video autoencoder in training; see :class:`genkit.training.toys.shared.autoencoder.Autoencoder`."""

    def __init__(self, vae: Any, frozen: bool = False):
        super().__init__(vae, decode_unclamped, frozen)


def vae_loss(seed: int, batch: int = 4, size: int = 96, crop: int = 48, **options):
    """The loss function handed to the training loop, for a :class:`VideoVae`.

    Args:
        seed: of the clips.
        batch: clips per step.
        size: pixels per side of the canvas.
        crop: pixels per side of the cut around an object that is trained on.
        options: ``kl``, ``noise``, ``vary`` of :func:`genkit.training.toys.shared.autoencoder.autoencoder_loss`.
    """

    def draw(rng: np.random.Generator, step: int) -> np.ndarray:
        return draw_clips(rng, batch, 5 if step % 4 == 3 else 9, size, two_share=0.5, crop=crop)

    return autoencoder_loss(seed, draw, **options)


@torch.no_grad()
def measure_latents(vae: Any, seed: int = 7, batches: int = 16) -> tuple[list[float], list[float]]:
    """Mean and spread of every latent channel over random clips, for ``latents_mean`` and ``latents_std``."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(batches):
        mode = vae.encode(as_tensor(draw_clips(rng, 4, 9, 96, 0.3))).latent_dist.mode()
        rows.append(mode.transpose(0, 1).flatten(1))
    values = torch.cat(rows, 1)
    return values.mean(1).tolist(), values.std(1).tolist()
