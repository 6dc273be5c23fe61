"""Training the small picture autoencoder that toy-image and toy-dit share the recipe of."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from genkit.training.data.pixels import as_tensor
from genkit.training.toys.shared.autoencoder import Autoencoder, autoencoder_loss
from genkit.world.picture_render import render_picture
from genkit.world.picture_scene import draw_picture
from genkit.world.vocabulary import BACKGROUNDS

# 4x4 pixels per latent position and four latent channels, which Diffusers' inpainting pipeline counts on.
PICTURE_VAE = {
    "block_out_channels": (32, 64, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 1,
    "norm_num_groups": 16,
    "latent_channels": 4,
    "mid_block_add_attention": False,
    "scaling_factor": 1.0,
    "shift_factor": 0.0,
    "sample_size": 128,
}


def build_picture_vae() -> nn.Module:
    """An ``AutoencoderKL`` whose residual branches start at zero, which saves hundreds of training steps."""
    from diffusers import AutoencoderKL

    model = AutoencoderKL(**PICTURE_VAE)
    for child in model.modules():
        if type(child).__name__ == "ResnetBlock2D":
            nn.init.zeros_(child.conv2.weight)
            nn.init.zeros_(child.conv2.bias)
    return model


def decode_picture(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Pixels (B, 3, 4h, 4w) of latents (B, 4, h, w)."""
    return vae.decode(latents).sample


class PictureVae(Autoencoder):
    """A picture autoencoder in training; see :class:`genkit.training.toys.shared.autoencoder.Autoencoder`."""

    def __init__(self, vae: Any, frozen: bool = False):
        super().__init__(vae, decode_picture, frozen)


def draw_crops(rng: np.random.Generator, count: int, crop: int) -> np.ndarray:
    """Render ``count`` random training pictures and cut each to ``crop`` pixels per side around one of its objects.

    Returns:
        uint8 (count, crop, crop, 3).
    """
    crops = []
    for _ in range(count):
        side = int(rng.choice((96, 128)))
        picture, placement = draw_picture(rng, side, side, backgrounds=tuple(BACKGROUNDS))
        actor = int(rng.integers(len(picture.actors)))
        centre = np.array([placement.y[actor], placement.x[actor]]) + rng.uniform(-14, 14, 2)
        top, left = np.clip(np.round(centre - crop / 2), 0, side - crop).astype(int)
        crops.append(render_picture(picture, placement, side, side)[top : top + crop, left : left + crop])
    return np.stack(crops)


def picture_vae_loss(seed: int, batch: int = 8, crop: int = 48, **options):
    """The loss function handed to the training loop, for a :class:`PictureVae`.

    Args:
        seed: of the pictures.
        batch: crops per step.
        crop: pixels per side.
        options: ``kl``, ``noise``, ``vary`` of :func:`genkit.training.toys.shared.autoencoder.autoencoder_loss`.
    """
    return autoencoder_loss(seed, lambda rng, step: draw_crops(rng, batch, crop), **options)


@torch.no_grad()
def standardise_latents(vae: Any, seed: int = 7, batches: int = 16) -> None:
    """Fold the mean and spread of every latent channel into the 1x1 convolutions around the latents.

    Afterwards every channel has mean 0 and spread 1 over random pictures, and ``scaling_factor`` 1 is right for all of
    them; pictures come out as before.
    """
    rng = np.random.default_rng(seed)
    modes = [vae.encode(as_tensor(draw_crops(rng, 8, 64))).latent_dist.mode() for _ in range(batches)]
    values = torch.cat(modes).transpose(0, 1).flatten(1)
    mean, std = values.mean(1), values.std(1)
    channels = len(mean)
    before, after = vae.quant_conv, vae.post_quant_conv
    before.weight[:channels] /= std[:, None, None, None]
    before.bias[:channels] = (before.bias[:channels] - mean) / std
    before.bias[channels:] -= 2 * std.log()
    after.bias += after.weight[:, :, 0, 0] @ mean
    after.weight *= std[None, :, None, None]
