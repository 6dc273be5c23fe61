"""Training the small video autoencoder of the shipped models on the toy world."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from genkit.training.loop import process_rank
from genkit.world.render import render_clip
from genkit.world.scene import draw_scene, lay_out

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


def decode_unclamped(vae: nn.Module, latents: torch.Tensor) -> torch.Tensor:
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


def as_tensor(clips: np.ndarray) -> torch.Tensor:
    """uint8 (B, F, H, W, 3) to float32 (B, 3, F, H, W) in -1..1."""
    return torch.from_numpy(clips).permute(0, 4, 1, 2, 3).float().div_(127.5).sub_(1.0)


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
        scene = draw_scene(rng, moving=frames > 1, two_share=two_share)
        tracks = lay_out(scene, frames, size, size, rng)
        clip = render_clip(scene, tracks, size, size)
        if crop:
            actor, frame = rng.integers(len(scene.actors)), rng.integers(frames)
            centre = np.array([tracks.y[actor, frame], tracks.x[actor, frame]]) + rng.uniform(-12, 12, 2)
            top, left = np.clip(np.round(centre - crop / 2), 0, size - crop).astype(int)
            clip = clip[:, top : top + crop, left : left + crop]
        clips.append(clip)
    return np.stack(clips)


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean absolute and squared error, and the absolute error of horizontal and vertical differences (sharp edges)."""
    loss = F.l1_loss(output, target) + F.mse_loss(output, target)
    for axis in (3, 4):
        loss = loss + F.l1_loss(output.diff(dim=axis), target.diff(dim=axis))
    return loss


class VideoVae(nn.Module):
    """The autoencoder as one module with a forward pass, which distributed training needs.

    Args:
        vae: an ``AutoencoderKLWan``.
        frozen: keep the encoder (and so the latents that a transformer learns) as it is and train the decoder alone.
    """

    def __init__(self, vae: nn.Module, frozen: bool = False):
        super().__init__()
        self.vae = vae
        self.frozen = frozen
        if frozen:
            vae.encoder.requires_grad_(False)
            vae.quant_conv.requires_grad_(False)

    def forward(self, target: torch.Tensor, noise: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Reconstruction of (B, 3, F, H, W) and the KL divergence per latent number (zero when frozen).

        ``noise`` is jitter given to the latents, in units of their mean spread.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            posterior = self.vae.encode(target).latent_dist
            latents = posterior.mode() if self.frozen else posterior.sample()
        jittered = latents + noise * latents.detach().std() * torch.randn_like(latents)
        divergence = target.new_zeros(()) if self.frozen else posterior.kl().mean() / latents[0].numel()
        return decode_unclamped(self.vae, jittered), divergence


def vae_loss(
    seed: int, batch: int = 4, size: int = 96, crop: int = 48, kl: float = 5e-6, noise: float = 0.04, vary: bool = False
):
    """The loss function handed to the training loop, for a :class:`VideoVae`.

    Args:
        seed: of the clips.
        batch: clips per step.
        size: pixels per side of the canvas.
        crop: pixels per side of the cut around an object that is trained on.
        kl: weight of the KL term, per latent number.
        noise: jitter given to the latents, so that the decoder forgives small errors of the diffusion model.
        vary: draw the jitter between zero and ``noise`` for every step.
    """

    def loss_at(module: nn.Module, step: int, progress: float):
        rng = np.random.default_rng((seed, step, process_rank()))
        frames = 5 if step % 4 == 3 else 9
        clips = draw_clips(rng, batch, frames, size, two_share=0.5, crop=crop)
        target = as_tensor(clips).to(next(module.parameters()).device)
        output, divergence = module(target, noise * float(rng.random()) if vary else noise)
        error = F.mse_loss(output.detach().clamp(-1, 1), target).item()
        loss = reconstruction_loss(output, target) + kl * divergence * min(1.0, step / 300)
        return loss, {"psnr": -10 * np.log10(error / 4), "kl": divergence.item()}

    return loss_at


@torch.no_grad()
def measure_latents(vae: nn.Module, seed: int = 7, batches: int = 16) -> tuple[list[float], list[float]]:
    """Mean and spread of every latent channel over random clips, for ``latents_mean`` and ``latents_std``."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(batches):
        mode = vae.encode(as_tensor(draw_clips(rng, 4, 9, 96, 0.3))).latent_dist.mode()
        rows.append(mode.transpose(0, 1).flatten(1))
    values = torch.cat(rows, 1)
    return values.mean(1).tolist(), values.std(1).tolist()
