"""Training the small autoencoders of the shipped models, for clips and for pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from genkit.training.data.pixels import as_tensor
from genkit.training.engine.loop import process_rank


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean absolute and squared error, and the absolute error of horizontal and vertical differences (sharp edges)."""
    loss = F.l1_loss(output, target) + F.mse_loss(output, target)
    for axis in (-2, -1):
        loss = loss + F.l1_loss(output.diff(dim=axis), target.diff(dim=axis))
    return loss


class Autoencoder(nn.Module):
    """An autoencoder as one module with a forward pass, which distributed training needs.

    Args:
        vae: an autoencoder of Diffusers.
        decode: called with (vae, latents), gives pixels without a final clamp.
        frozen: keep the encoder (and so the latents that a denoiser learns) as it is and train the decoder alone.
    """

    def __init__(self, vae: Any, decode: Callable[[nn.Module, torch.Tensor], torch.Tensor], frozen: bool = False):
        super().__init__()
        self.vae = vae
        self.decode = decode
        self.frozen = frozen
        if frozen:
            # LTX-2's class has no ``quant_conv``.
            for part in (vae.encoder, getattr(vae, "quant_conv", None)):
                if part is not None:
                    part.requires_grad_(False)

    def forward(self, target: torch.Tensor, noise: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Reconstruction of (B, 3, ..., H, W) and the KL divergence per latent number (zero when frozen).

        ``noise`` is jitter given to the latents, in units of their mean spread.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            posterior = self.vae.encode(target).latent_dist
            latents = posterior.mode() if self.frozen else posterior.sample()
        jittered = latents + noise * latents.detach().std() * torch.randn_like(latents)
        divergence = target.new_zeros(()) if self.frozen else posterior.kl().mean() / latents[0].numel()
        return self.decode(self.vae, jittered), divergence


def autoencoder_loss(
    seed: int,
    draw: Callable[[np.random.Generator, int], np.ndarray],
    kl: float = 5e-6,
    noise: float = 0.04,
    vary: bool = False,
):
    """The loss function handed to the training loop, for an :class:`Autoencoder`.

    Args:
        seed: of the pictures.
        draw: called with (rng, step), gives uint8 pixels (B, ..., H, W, 3).
        kl: weight of the KL term, per latent number.
        noise: jitter given to the latents, so that the decoder forgives small errors of the diffusion model.
        vary: draw the jitter between zero and ``noise`` for every step.
    """

    def loss_at(module: nn.Module, step: int, progress: float):
        rng = np.random.default_rng((seed, step, process_rank()))
        target = as_tensor(draw(rng, step)).to(next(module.parameters()).device)
        output, divergence = module(target, noise * float(rng.random()) if vary else noise)
        error = F.mse_loss(output.detach().clamp(-1, 1), target).item()
        loss = reconstruction_loss(output, target) + kl * divergence * min(1.0, step / 300)
        return loss, {"psnr": -10 * np.log10(error / 4), "kl": divergence.item()}

    return loss_at
