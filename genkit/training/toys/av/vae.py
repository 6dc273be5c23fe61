"""Training the two autoencoders of toy-av: clips as toy-video's, and spectrograms of their sound."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from genkit.training.engine.loop import process_rank
from genkit.training.toys.av.pool import draw_spectra
from genkit.training.toys.shared.autoencoder import Autoencoder
from genkit.training.toys.video.vae import measure_latents

# Amplitudes of more than 0.025 sound (the vocoder's gate is 0.03), and weigh that much more than silence.
_AUDIBLE, _WEIGHT = 4 * 0.025 - 1, 40.0


def decode(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """What latents stand for; LTX-2's classes clamp nothing."""
    return vae.decode(latents).sample


class AvVideoVae(Autoencoder):
    """LTX-2's video autoencoder in training; see :class:`genkit.training.toys.shared.autoencoder.Autoencoder`."""

    def __init__(self, vae: Any, frozen: bool = False):
        super().__init__(vae, decode, frozen)


class AudioVae(Autoencoder):
    """LTX-2's audio autoencoder in training."""

    def __init__(self, vae: Any):
        super().__init__(vae, decode)


def spectrum_loss(seed: int, batch: int = 8, kl: float = 5e-6, noise: float = 0.04):
    """The loss function handed to the training loop, for an :class:`AudioVae`.

    Squared errors only, and those of what sounds weigh many times: less than a hundredth of a spectrogram does, and
    with equal weights, or absolute errors, silence alone is nearly as good as the truth.

    Args:
        seed: of the sounds.
        batch: sounds per step.
        kl: weight of the KL term, per latent number.
        noise: jitter given to the latents, in units of their spread.
    """

    def loss_at(module: nn.Module, step: int, progress: float):
        rng = np.random.default_rng((seed, step, process_rank()))
        spectra = draw_spectra(rng, batch, 9 if step % 2 else 17)
        target = spectra.to(next(module.parameters()).device)
        output, divergence = module(target, noise)
        sounds = target > _AUDIBLE
        wrong = (output - target).square()
        loss = (torch.where(sounds, _WEIGHT, 1.0) * wrong).mean() + kl * divergence * min(1.0, step / 300)
        amplitude = (target + 1)[sounds].square().mean().clamp(min=1e-6)
        figures = {"tones": (wrong[sounds].mean() / amplitude).sqrt().item() if sounds.any() else 0.0}
        return loss, figures | {"hiss": wrong[~sounds].mean().sqrt().item(), "kl": divergence.item()}

    return loss_at


@torch.no_grad()
def standardise_clips(vae: Any) -> None:
    """Store mean and spread of every latent channel over random clips in the autoencoder."""
    mean, std = measure_latents(vae)
    vae.latents_mean.copy_(torch.tensor(mean))
    vae.latents_std.copy_(torch.tensor(std))


@torch.no_grad()
def standardise_sounds(vae: Any, seed: int = 7, batches: int = 8) -> None:
    """Store mean and spread of every feature of the audio tokens over random sounds in the autoencoder.

    A feature that hardly varies keeps a spread of a tenth of the mean one, so that its noise is not blown up.
    """
    from diffusers import LTX2Pipeline

    rng = np.random.default_rng(seed)
    modes = [vae.encode(draw_spectra(rng, 8, 17)).latent_dist.mode() for _ in range(batches)]
    tokens = LTX2Pipeline._pack_audio_latents(torch.cat(modes)).flatten(0, 1)
    spread = tokens.std(0)
    vae.latents_mean.copy_(tokens.mean(0))
    vae.latents_std.copy_(spread.clamp(min=0.1 * spread.mean().item()))
