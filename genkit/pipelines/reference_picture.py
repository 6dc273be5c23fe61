"""Pictures as references of a text-to-video pipeline: encode them and record them on a patch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from genkit.attention.reference_store import References
from genkit.errors import UsageError
from genkit.patching import time_shift

#: Time position of a reference in latent frames: behind the longest clips toy-video was trained on (25 frames are 7).
SHIFT = 8


def normal_latents(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Normalised latents (B, C, T, h, w) of pixels (B, 3, F, H, W) in -1..1: the mode, nothing is drawn.

    For autoencoders that keep ``latents_mean`` and ``latents_std`` in their configuration (Wan's).
    """
    parameter = next(vae.parameters())
    with torch.no_grad():
        found = vae.encode(pixels.to(parameter.device, parameter.dtype)).latent_dist.mode().float()
    mean, std = (
        torch.tensor(values, device=found.device).view(1, -1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return (found - mean) / std


def empty_text(pipeline: Any, rows: int, slots: int = 64) -> torch.Tensor:
    """Text states (rows, slots, width) of the empty prompt, which a reference is shown with."""
    with torch.no_grad():
        states = pipeline.encode_prompt([""], do_classifier_free_guidance=False, max_sequence_length=slots)[0]
    return states.expand(rows, -1, -1)


def record_latents(
    patch: Any, pipeline: Any, latents: torch.Tensor, text: torch.Tensor, shift: int = SHIFT, strength: float = 1.0
) -> int:
    """Record clean latents as the reference of a patch, row for row of the batches that follow.

    The pass has timestep 0, text that does not depend on the prompt, and positions behind the clip. With gradients
    enabled the trainable weights stay connected.

    Args:
        patch: handle of a patch with ``reference`` on a Wan pipeline.
        pipeline: the patched pipeline.
        latents: (b, C, 1, h, w); b = 1 serves every row, else b must divide later batches.
        text: (b, slots, width), see :func:`empty_text`.
        shift: time position in latent frames.
        strength: factor of the reference's share.

    Returns:
        Number of layers recorded.
    """
    model = pipeline.transformer
    with time_shift(model, shift):
        return References.of(patch.cache).record(
            patch,
            model,
            strength=strength,
            hidden_states=latents.to(text.dtype),
            timestep=torch.zeros(len(latents), device=latents.device),
            encoder_hidden_states=text,
        )


@torch.no_grad()
def record_pictures(
    patch: Any, pipeline: Any, pictures: np.ndarray, shift: int = SHIFT, strength: float = 1.0, slots: int = 64
) -> int:
    """Make pictures the references of a patched Wan pipeline's next calls.

    Args:
        patch: handle of a patch with ``reference``.
        pipeline: the patched pipeline.
        pictures: uint8 (b, H, W, 3); one for all prompts of a call, or one per prompt.
        shift, strength: see :func:`record_latents`.
        slots: text slots, as ``max_sequence_length``.

    Returns:
        Number of layers recorded.

    Raises:
        UsageError: other arrays.
    """
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[-1] != 3:
        raise UsageError(f"pictures: got {pictures.dtype} {pictures.shape}, allowed: uint8 (count, height, width, 3)")
    pixels = torch.from_numpy(pictures).movedim(-1, 1)[:, :, None].float().div_(127.5).sub_(1.0)
    latents = normal_latents(pipeline.vae, pixels).to(pipeline._execution_device)
    text = empty_text(pipeline, len(latents), slots).to(pipeline.transformer.dtype)
    return record_latents(patch, pipeline, latents, text, shift, strength)
