"""Wan text-to-video: 2.1, the two experts of 2.2 A14B, and 2.2 5B, which is told a timestep per token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from genkit.families.lookup import unwrap
from genkit.families.training.base import VIDEO, Call, Media, Tensors, Training
from genkit.families.training.parts import (
    dtype_of,
    encode_states,
    encode_video,
    need_channels,
    sampled_shift,
    tokens_of,
)

if TYPE_CHECKING:
    import torch

#: Flow shift of the published A14B models.
_EXPERTS_SHIFT = 12.0


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


PIPELINES = {"WanPipeline": _text_to_video}
