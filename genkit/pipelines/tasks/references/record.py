"""Pictures as references of a pipeline for videos or pictures: encode them and record them on a patch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from genkit.attention.reference.store import References
from genkit.errors import UnsupportedError, UsageError
from genkit.patching import time_shift

#: Time position of a reference in latent frames: behind the longest clips toy-video was trained on (25 frames are 7).
SHIFT = 8


def normal_latents(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Normalised latents (B, C, T, h, w) of pixels (B, 3, F, H, W) in -1..1: the mode, nothing is drawn.

    For autoencoders that keep ``latents_mean`` and ``latents_std`` in their configuration (Wan's).
    """
    found = _encoded(vae, pixels)
    mean, std = (
        torch.tensor(values, device=found.device).view(1, -1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return (found - mean) / std


def scaled_latents(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Latents (B, C, h, w) of pixels (B, 3, H, W) in -1..1 as a UNet has them: the mode, shifted and scaled."""
    return (_encoded(vae, pixels) - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor


@torch.no_grad()
def _encoded(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    parameter = next(vae.parameters())
    return vae.encode(pixels.to(parameter.device, parameter.dtype)).latent_dist.mode().float()


def text_states(pipeline: Any, texts: list[str], slots: int = 64) -> torch.Tensor:
    """Text states (B, slots, width) of prompts; a Stable Diffusion pipeline has its own number of slots."""
    with torch.no_grad():
        if _has_unet(pipeline):
            return pipeline.encode_prompt(texts, pipeline._execution_device, 1, do_classifier_free_guidance=False)[0]
        return pipeline.encode_prompt(texts, do_classifier_free_guidance=False, max_sequence_length=slots)[0]


def empty_text(pipeline: Any, rows: int, slots: int = 64) -> torch.Tensor:
    """Text states (rows, slots, width) of the empty prompt, which a reference is shown with."""
    return text_states(pipeline, [""], slots).expand(rows, -1, -1)


def record_latents(
    patch: Any,
    pipeline: Any,
    latents: torch.Tensor,
    text: torch.Tensor,
    shift: int = SHIFT,
    strength: float = 1.0,
    name: str = "reference",
) -> int:
    """Record clean latents as the reference of a patch, row for row of the batches that follow.

    The pass has timestep 0, text that does not depend on the prompt, and in a video model positions behind the clip.
    With gradients enabled the trainable weights stay connected.

    Args:
        patch: handle of a patch with ``reference`` on a Wan or Stable Diffusion pipeline.
        pipeline: the patched pipeline.
        latents: (b, C, 1, h, w), of a UNet (b, C, h, w); b = 1 serves every row, else b must divide later batches.
        text: (b, slots, width), see :func:`empty_text`.
        shift: time position in latent frames; a UNet has none.
        strength: factor of the reference's share.
        name: of the reference; recording again under the same name replaces.

    Returns:
        Number of layers recorded.
    """
    timestep = torch.zeros(len(latents), device=latents.device)
    given = {"name": name, "strength": strength, "encoder_hidden_states": text}
    references = References.of(patch.cache)
    if _has_unet(pipeline):
        return references.record(patch, pipeline.unet, sample=latents.to(text.dtype), timestep=timestep.long(), **given)
    model = pipeline.transformer
    with time_shift(model, shift):
        return references.record(patch, model, hidden_states=latents.to(text.dtype), timestep=timestep, **given)


@torch.no_grad()
def record_pictures(
    patch: Any,
    pipeline: Any,
    pictures: np.ndarray,
    shift: int = SHIFT,
    strength: float = 1.0,
    slots: int = 64,
    name: str = "reference",
) -> int:
    """Make pictures the references of a patched pipeline's next calls.

    Args:
        patch: handle of a patch with ``reference``.
        pipeline: the patched pipeline, Wan or Stable Diffusion 1 and 2.
        pictures: uint8 (b, H, W, 3); one for all prompts of a call, or one per prompt.
        shift, strength, name: see :func:`record_latents`.
        slots: text slots, as ``max_sequence_length``; Stable Diffusion has its own.

    Returns:
        Number of layers recorded.

    Raises:
        UsageError: other arrays. UnsupportedError: a pipeline of another family.
    """
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[-1] != 3:
        raise UsageError(f"pictures: got {pictures.dtype} {pictures.shape}, allowed: uint8 (count, height, width, 3)")
    pixels = torch.from_numpy(pictures).movedim(-1, 1).float().div_(127.5).sub_(1.0)
    if _has_unet(pipeline):
        latents, model = scaled_latents(pipeline.vae, pixels), pipeline.unet
    else:
        latents, model = normal_latents(pipeline.vae, pixels[:, :, None]), pipeline.transformer
    text = empty_text(pipeline, len(latents), slots).to(model.dtype)
    return record_latents(patch, pipeline, latents.to(pipeline._execution_device), text, shift, strength, name)


def _has_unet(pipeline: Any) -> bool:
    """Whether a pipeline is of Stable Diffusion's kind; False for Wan, an error for others."""
    name = type(pipeline).__name__
    check_family(name)
    if name.startswith("Wan"):
        return False
    if getattr(pipeline, "unet", None) is None or pipeline.unet.config.addition_embed_type is not None:
        raise _unknown(name)
    return True


def check_family(name: str) -> None:
    """UnsupportedError unless references of a pipeline class are read from pictures, as far as its name tells."""
    if not name.startswith(("Wan", "StableDiffusion")) or name.startswith(("StableDiffusion3", "StableDiffusionXL")):
        raise _unknown(name)


def _unknown(name: str) -> UnsupportedError:
    return UnsupportedError(
        f"references from pictures: got {name}, allowed: Wan and Stable Diffusion 1 and 2; for other families call "
        f"References.of(patch.cache).record with the model's own inputs (docs/methods/reference.md)"
    )
