"""What records of several families need: the encoders' side, dtypes, and how far a scheduler shifts levels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from genkit.errors import UnsupportedError, UsageError
from genkit.families.facts import PipelineFacts
from genkit.families.lookup import diffusers_class, facts_of, unwrap
from genkit.families.training.base import IMAGE, SPREAD, VIDEO, Call, Tensors

if TYPE_CHECKING:
    import torch

# Flux's tokens and exponents; other families' published schedulers hold their own.
_LINE = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}


def facts(pipeline: Any) -> PipelineFacts:
    """What the family's record says of the class of a pipeline."""
    found = facts_of(diffusers_class(pipeline) or "")
    assert found is not None, "records of training belong to known families"
    return found


def encode_image(pipeline: Any, pixels: torch.Tensor, generator: torch.Generator | None) -> Tensors:
    """Normalised latents (C, h, w) of one picture (3, 1, H, W), see :func:`drawn`."""
    need_picture(pipeline, pixels)
    return drawn(IMAGE, *facts(pipeline).codec.moments(pipeline.vae, pixels[None, :, 0]), generator)


def need_picture(pipeline: Any, pixels: torch.Tensor) -> None:
    """Refuse a clip where the model makes pictures."""
    if pixels.shape[1] != 1:
        raise UsageError(f"{type(pipeline).__name__} is trained on pictures; got a clip of {pixels.shape[1]} frames")


def encode_video(pipeline: Any, pixels: torch.Tensor, generator: torch.Generator | None) -> Tensors:
    """Normalised latents (C, T, h, w) of a clip (3, F, H, W), see :func:`drawn`."""
    return drawn(VIDEO, *facts(pipeline).codec.moments(pipeline.vae, pixels[None]), generator)


def drawn(stream: str, mode: torch.Tensor, spread: torch.Tensor | None, generator: torch.Generator | None) -> Tensors:
    """The one sample of a batch under its stream's name: drawn with a generator, else the mode and the deviation."""
    import torch

    if spread is None:
        return {stream: mode[0]}
    if generator is None:
        return {stream: mode[0], stream + SPREAD: spread[0]}
    noise = torch.randn(mode.shape, generator=generator, device=generator.device).to(mode)
    return {stream: (mode + spread * noise)[0]}


def encode_states(pipeline: Any, captions: Sequence[str], slots: int) -> list[Tensors]:
    """States (slots, width) of captions for families that need nothing else of them."""
    import torch

    with torch.no_grad():
        return rows({"states": facts(pipeline).text.states(pipeline, list(captions), slots)})


def rows(batch: Mapping[str, torch.Tensor]) -> list[Tensors]:
    """Tensors of a batch, taken apart into its samples."""
    count = len(next(iter(batch.values())))
    return [{name: value[index] for name, value in batch.items()} for index in range(count)]


def dtype_of(call: Call) -> torch.dtype:
    """What the denoiser computes in, as its pipeline asks it."""
    return unwrap(call.model).dtype


def sampled_shift(pipeline: Any, tokens: int) -> float:
    """The flow shift at which the pipeline's own scheduler samples a clip or picture of ``tokens`` tokens; 1 for one
    that does not shift."""
    config = pipeline.scheduler.config
    if config.get("use_dynamic_shifting"):
        low, high, first, last = (config.get(name, usual) for name, usual in _LINE.items())
        told = first + (last - first) * (tokens - low) / (high - low)
        return math.exp(told) if config.get("time_shift_type", "exponential") == "exponential" else told
    return float(config.get("flow_shift") or config.get("shift") or 1.0)


def tokens_of(shape: tuple[int, ...], patch: tuple[int, ...]) -> int:
    """Tokens that latents (C, ...) become with patches of this size."""
    return math.prod(size // step for size, step in zip(shape[1:], patch, strict=True))


def need_channels(pipeline: Any, model: Any, expected: int) -> None:
    """Refuse a denoiser that wants further channels beside the noisy latents, which its pipeline does not give."""
    given = model.config.in_channels
    if given != expected:
        raise UnsupportedError(
            f"{type(pipeline).__name__} cannot be trained with this denoiser: it takes {given} channels, the latents "
            f"have {expected}; the others (a mask, a picture) belong to another pipeline class"
        )
