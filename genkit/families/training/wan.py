"""Wan from text and from a picture: 2.1, the two experts of 2.2 A14B, and 2.2 5B with its timesteps per token."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from genkit.errors import UnsupportedError
from genkit.families.lookup import unwrap
from genkit.families.training.base import VIDEO, Call, Media, Tensors, Training
from genkit.families.training.parts import (
    as_picture,
    dtype_of,
    encode_first,
    encode_states,
    encode_video,
    later_frames,
    need_channels,
    sampled_shift,
    tokens_of,
    told_frame,
    with_first,
)

if TYPE_CHECKING:
    import torch

#: Flow shifts of the published A14B models.
_EXPERTS_SHIFT, _IMAGE_EXPERTS_SHIFT = 12.0, 5.0


def denoisers(pipeline: Any) -> dict[str, Any]:
    """The denoisers a pipeline has, by component."""
    found = {name: getattr(pipeline, name, None) for name in ("transformer", "transformer_2")}
    return {name: model for name, model in found.items() if model is not None}


def experts(pipeline: Any) -> dict[str, tuple[float, float]]:
    """Noise levels that each denoiser sees: the second one those below the pipeline's boundary."""
    boundary = pipeline.config.get("boundary_ratio")
    ranges = {"transformer": (boundary, 1.0), "transformer_2": (0.0, boundary)}
    return {} if boundary is None else {name: ranges[name] for name in denoisers(pipeline)}


def patch_of(model: Any) -> tuple[int, ...]:
    """Latent frames, rows and columns of a token."""
    return tuple(model.config.patch_size)


def fixed_shift(pipeline: Any, usual_of_experts: float) -> float:
    """The published models' own for two experts, else the scheduler's, which differs by the size a model is for."""
    return usual_of_experts if experts(pipeline) else sampled_shift(pipeline, 0)


def _encode(pipeline: Any, media: Media, generator: torch.Generator | None) -> Tensors:
    return encode_video(pipeline, media.pixels, generator)


def _arguments(call: Call) -> dict[str, Any]:
    noisy, timestep = call.noisy[VIDEO], call.timestep
    if call.pipeline.config.get("expand_timesteps"):
        timestep = timestep[:, None].expand(-1, tokens_of(tuple(noisy.shape[1:]), patch_of(unwrap(call.model))))
    return {
        "hidden_states": noisy.to(dtype_of(call)),
        "timestep": timestep,
        "encoder_hidden_states": call.text["states"].to(dtype_of(call)),
        "return_dict": False,
    }


def _answers(output: Any, call: Call) -> Tensors:
    return {VIDEO: output[0]}


def _shift(pipeline: Any, shapes: Mapping[str, tuple[int, ...]]) -> float:
    return fixed_shift(pipeline, _EXPERTS_SHIFT)


def _text_to_video(pipeline: Any, sound: str | None) -> Training:
    for model in denoisers(pipeline).values():
        need_channels(pipeline, model, model.config.out_channels)
    return Training(
        streams=(VIDEO,),
        encode=_encode,
        text=encode_states,
        arguments=_arguments,
        answers=_answers,
        slots=512,
        shift=_shift,
        experts=experts,
    )


def _encode_told(pipeline: Any, media: Media, generator: torch.Generator | None) -> Tensors:
    """Latents, and the told frames: where they are (one channel for every frame behind a latent one) and their
    latents, the frames between them grey; what the picture encoder sees of them, for models that have one."""
    import torch

    found = encode_video(pipeline, media.pixels, generator)
    first, last = told_frame(media, "first_frame"), None
    if _needs_last(pipeline) or "last_frame" in media.given:
        last = told_frame(media, "last_frame")
    grey = torch.zeros_like(media.pixels)
    grey[:, :1] = first
    known = torch.zeros(pipeline.vae_scale_factor_temporal, *found[VIDEO].shape[1:], device=found[VIDEO].device)
    known[:, 0] = 1
    if last is not None:
        grey[:, -1:] = last
        known[-1, -1] = 1
    condition = encode_video(pipeline, grey, None)[VIDEO]
    found["condition"] = torch.cat([known, condition])
    if _sees_pictures(pipeline):
        pictures = [as_picture(frame) for frame in (first, last) if frame is not None]
        with torch.no_grad():
            found["picture"] = pipeline.encode_image(pictures, pipeline._execution_device).float()
    return found


def _text(pipeline: Any, captions: Sequence[str], slots: int) -> list[Tensors]:
    """As from text alone; this class reads captions with ftfy and does not say so where it is missing."""
    if not hasattr(sys.modules[type(pipeline).encode_prompt.__module__], "ftfy"):
        raise UnsupportedError(f"{type(pipeline).__name__} cleans captions with ftfy, which is missing: install ftfy")
    return encode_states(pipeline, captions, slots)


def _sees_pictures(pipeline: Any) -> bool:
    return any(model.config.get("image_dim") is not None for model in denoisers(pipeline).values())


def _needs_last(pipeline: Any) -> bool:
    """Whether the picture encoder's states of two frames are told apart: models of first and last frames."""
    return any(model.config.get("pos_embed_seq_len") is not None for model in denoisers(pipeline).values())


def _told_arguments(call: Call) -> dict[str, Any]:
    import torch

    dtype = dtype_of(call)
    found = {
        **_arguments(call),
        "hidden_states": torch.cat([call.noisy[VIDEO], call.media["condition"]], 1).to(dtype),
    }
    if "picture" in call.media:
        found["encoder_hidden_states_image"] = call.media["picture"].flatten(0, 1).to(dtype)
    return found


def _first_arguments(call: Call) -> dict[str, Any]:
    """The first latent frame is clean, and its tokens are told so."""
    found = _arguments(call)
    latents, timestep = with_first(call, found["timestep"].shape[1])
    return {**found, "hidden_states": latents.to(dtype_of(call)), "timestep": timestep}


def _image_shift(pipeline: Any, shapes: Mapping[str, tuple[int, ...]]) -> float:
    return fixed_shift(pipeline, _IMAGE_EXPERTS_SHIFT)


def _image_to_video(pipeline: Any, sound: str | None) -> Training:
    first_only = bool(pipeline.config.get("expand_timesteps"))
    for model in denoisers(pipeline).values():
        latents = model.config.out_channels
        beside = 0 if first_only else latents + pipeline.vae.config.scale_factor_temporal  # the picture, and a mask
        need_channels(pipeline, model, latents + beside)
    both = _needs_last(pipeline) or not (first_only or _sees_pictures(pipeline))
    return Training(
        streams=(VIDEO,),
        encode=encode_first if first_only else _encode_told,
        text=_text,
        arguments=_first_arguments if first_only else _told_arguments,
        answers=_answers,
        slots=512,
        shift=_image_shift,
        weights=later_frames if first_only else None,
        takes=("first_frame", "last_frame") if both else ("first_frame",),
        experts=experts,
        variant=f"{'first' if first_only else 'told'} {_sees_pictures(pipeline)} {_needs_last(pipeline)}",
    )


PIPELINES = {"WanPipeline": _text_to_video, "WanImageToVideoPipeline": _image_to_video}
