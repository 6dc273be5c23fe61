"""Latents as a denoiser has them, from and to what an autoencoder gives and takes. Torch is loaded when it is used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Change = Callable[[Any, "torch.Tensor"], "torch.Tensor"]


@dataclass(frozen=True)
class Codec:
    """How a family normalises latents. All shapes are the autoencoder's: (B, C, h, w), of videos (B, C, T, h, w).

    Args:
        normalise: (autoencoder, its float32 latents) -> what the denoiser is trained to make.
        denormalise: the way back.
        axes: order of the axes as the denoiser takes them: "BCHW", "BCTHW", "BTCHW", "BTHWC"; "packed" when a pipeline
            packs them into tokens (B, N, C).
    """

    normalise: Change
    denormalise: Change
    axes: str

    def encode(self, vae: Any, pixels: torch.Tensor) -> torch.Tensor:
        """Normalised float32 latents of pixels (B, 3, H, W) or (B, 3, F, H, W) in -1..1: the mode, nothing is drawn."""
        return self.moments(vae, pixels)[0]

    def moments(self, vae: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Mode and standard deviation of the latents of pixels, both normalised and float32; the latter is None for an
        autoencoder that gives no normal distribution. ``mode + deviation * noise`` draws from the posterior."""
        import torch

        with torch.no_grad():
            encoded = vae.encode(pixels.to(device_of(vae), next(vae.parameters()).dtype))
            mode = self.normalise(vae, _mode(encoded).float())
            deviation = getattr(getattr(encoded, "latent_dist", None), "std", None)
            if deviation is None:
                return mode, None
            # Normalising is a factor and a shift: what it makes of a deviation is what it makes of a step.
            zero = self.normalise(vae, torch.zeros_like(deviation, dtype=torch.float32))
            return mode, self.normalise(vae, deviation.float()) - zero

    def decode(self, vae: Any, latents: torch.Tensor) -> torch.Tensor:
        """Pixels of normalised latents, in the autoencoder's own dtype."""
        import torch

        with torch.no_grad():
            found = self.denormalise(vae, latents.to(device_of(vae)).float())
            return vae.decode(found.to(next(vae.parameters()).dtype), return_dict=False)[0]


def device_of(vae: Any) -> torch.device:
    """Where an autoencoder computes: where its parameters are, or where an offloading hook brings them when called."""
    hooks = (getattr(module, "_hf_hook", None) for module in vae.modules())
    told = next((hook.execution_device for hook in hooks if getattr(hook, "execution_device", None) is not None), None)
    if told is None:
        return next(vae.parameters()).device
    import torch

    return torch.device(told)


def _mode(encoded: Any) -> torch.Tensor:
    return encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents


def scaled(axes: str) -> Codec:
    """Latents shifted by ``shift_factor`` (where there is one) and multiplied by ``scaling_factor``."""
    return Codec(
        lambda vae, z: (z - _shift(vae)) * vae.config.scaling_factor,
        lambda vae, x: x / vae.config.scaling_factor + _shift(vae),
        axes,
    )


def _shift(vae: Any) -> float:
    return getattr(vae.config, "shift_factor", None) or 0.0


def standardised(axes: str) -> Codec:
    """Latents with the mean and standard deviation per channel that the configuration (or a buffer) holds."""

    def normalise(vae: Any, z: torch.Tensor) -> torch.Tensor:
        mean, std = _moments(vae, z)
        return (z - mean) * _factor(vae) / std

    def denormalise(vae: Any, x: torch.Tensor) -> torch.Tensor:
        mean, std = _moments(vae, x)
        return x * std / _factor(vae) + mean

    return Codec(normalise, denormalise, axes)


def _moments(vae: Any, like: torch.Tensor) -> list[torch.Tensor]:
    """Mean and standard deviation with one axis for channels; the identity for an autoencoder that keeps none."""
    import torch

    found = []
    for name, neutral in (("latents_mean", 0.0), ("latents_std", 1.0)):
        values = getattr(vae.config, name, None)
        if values is None:
            values = getattr(vae, name, None)
        if values is None:
            values = [neutral] * like.shape[1]
        values = torch.as_tensor(values, dtype=like.dtype, device=like.device)
        found.append(values.view(1, -1, *[1] * (like.dim() - 2)))
    return found


def _factor(vae: Any) -> float:
    """The scaling factor of autoencoders that multiply standardised latents by one; 1 for the others."""
    return getattr(vae.config, "scaling_factor", None) or 1.0
