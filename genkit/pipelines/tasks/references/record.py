"""Pictures as references of a pipeline for videos or pictures: encode them and record them on a patch."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

from genkit.attention.reference.store import References
from genkit.errors import UnsupportedError, UsageError
from genkit.families.facts import PipelineFacts
from genkit.families.lookup import able, can, facts_of, family_of
from genkit.patching import time_shift

#: Name of this task in the records of families.
TASK = "reference_pictures"
#: Time position of a reference in latent frames: behind the longest clips toy-video was trained on (25 frames are 7).
SHIFT = 8


@torch.no_grad()
def text_states(pipeline: Any, texts: list[str], slots: int = 64) -> torch.Tensor:
    """Text states (B, slots, width) of prompts; a Stable Diffusion pipeline has its own number of slots."""
    return _facts(pipeline).text.states(pipeline, texts, slots)


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
    facts, model = _facts(pipeline), _denoiser(pipeline)
    family = family_of(model)
    timestep = torch.zeros(len(latents), device=latents.device)
    if facts.objective.timestep == "index":
        timestep = timestep.long()
    given = {
        "name": name,
        "strength": strength,
        "timestep": timestep,
        facts.text.arguments[0]: text,
        family.sample: latents.to(text.dtype),
    }
    with time_shift(model, shift) if family.time_positions else nullcontext():
        return References.of(patch.cache).record(patch, model, **given)


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
    facts, model = _facts(pipeline), _denoiser(pipeline)
    if family_of(model).video:
        pixels = pixels[:, :, None]
    latents = facts.codec.encode(pipeline.vae, pixels)
    text = empty_text(pipeline, len(latents), slots).to(model.dtype)
    return record_latents(patch, pipeline, latents.to(pipeline._execution_device), text, shift, strength, name)


def _denoiser(pipeline: Any) -> Any:
    """The model that a pipeline with one kind of denoiser calls."""
    return pipeline.transformer if getattr(pipeline, "unet", None) is None else pipeline.unet


def _facts(pipeline: Any) -> PipelineFacts:
    """What is known of a pipeline that takes references from pictures; an error for others."""
    name = type(pipeline).__name__
    check_family(name)
    if getattr(_denoiser(pipeline).config, "addition_embed_type", None) is not None:
        raise _unknown(name)
    return facts_of(name)


def check_family(name: str) -> None:
    """UnsupportedError unless references of a pipeline class are read from pictures, as far as its name tells."""
    if not can(TASK, name):
        raise _unknown(name)


def _unknown(name: str) -> UnsupportedError:
    return UnsupportedError(
        f"references from pictures: got {name}, allowed: {', '.join(able(TASK))} without added conditions; for other "
        f"families call References.of(patch.cache).record with the model's own inputs (docs/methods/reference.md)"
    )
