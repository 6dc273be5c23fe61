"""What records of several families need: the encoders' side, dtypes, and how far a scheduler shifts levels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from genkit.errors import UnsupportedError, UsageError
from genkit.families.facts import PipelineFacts
from genkit.families.lookup import diffusers_class, facts_of, unwrap
from genkit.families.training.base import IMAGE, SPREAD, VIDEO, Call, Media, Tensors

if TYPE_CHECKING:
    import torch

# Flux's tokens and exponents; other families' published schedulers hold their own.
_LINE = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}


def facts(pipeline: Any) -> Any:
    """What the family's record says of the class of a pipeline; a class derived from it counts as that one."""
    found: PipelineFacts | None = facts_of(diffusers_class(pipeline) or "")
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


def told_frame(media: Media, role: str) -> torch.Tensor:
    """A frame (3, 1, H, W) that is told to the model: what was given, else the clip's own first or last one."""
    clip = media.pixels
    if clip.shape[1] < 2:
        raise UsageError("a video that goes on from a picture needs more than one frame; got a picture to train on")
    if role not in media.given:
        return clip[:, :1] if role == "first_frame" else clip[:, -1:]
    given = media.given[role]
    wanted = (clip.shape[0], 1, *clip.shape[2:])
    if tuple(given.shape) != wanted:
        raise UsageError(
            f"{role}: got {tuple(given.shape)} (channels, frames, height, width), allowed: {wanted}, the clip's"
        )
    return given


def as_picture(frame: torch.Tensor) -> Any:
    """A frame (3, 1, H, W) in -1..1 as a PIL picture, for a pipeline's picture encoder."""
    from PIL import Image

    values = ((frame[:, 0].float().cpu() + 1) * 127.5).round().clamp(0, 255)
    return Image.fromarray(values.byte().permute(1, 2, 0).numpy())


def encode_first(pipeline: Any, media: Media, generator: torch.Generator | None) -> Tensors:
    """Latents of a clip, and of the first frame that is told to the model."""
    first = encode_video(pipeline, told_frame(media, "first_frame"), None)[VIDEO]
    return encode_video(pipeline, media.pixels, generator) | {"first": first}


def with_first(call: Call, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy latents whose first frame is the told one, and the timesteps (B, tokens) of their tokens: 0 in it."""
    import torch

    latents = torch.cat([call.media["first"], call.noisy[VIDEO][:, :, 1:]], 2)
    moves = torch.arange(tokens, device=latents.device) >= tokens // latents.shape[2]
    return latents, call.timestep[:, None] * moves


def later_frames(call: Call) -> Tensors:
    """Weights of a video whose first latent frame is given: it counts nothing."""
    import torch

    frames = call.noisy[VIDEO].shape[2]
    return {VIDEO: (torch.arange(frames, device=call.level.device) > 0).float().view(1, 1, -1, 1, 1)}


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
    if model.config.in_channels != expected:
        raise UnsupportedError(foreign_channels(pipeline, model, expected))


def foreign_channels(pipeline: Any, model: Any, expected: int) -> str:
    """Why a denoiser that wants further channels beside the noisy latents cannot be trained."""
    return (
        f"{type(pipeline).__name__} cannot be trained with this denoiser: it takes {model.config.in_channels} "
        f"channels, the latents have {expected}; the others (a mask, a picture) belong to another pipeline class"
    )
