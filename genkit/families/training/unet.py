"""Stable Diffusion's UNet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from genkit.errors import UnsupportedError
from genkit.families.training.base import IMAGE, Call, Media, Tensors, Training
from genkit.families.training.parts import dtype_of, encode_image, encode_states, need_channels

if TYPE_CHECKING:
    import torch


def _encode(pipeline: Any, media: Media, generator: torch.Generator | None) -> Tensors:
    return encode_image(pipeline, media.pixels, generator)


def _arguments(call: Call) -> dict[str, Any]:
    return {
        "sample": call.noisy[IMAGE].to(dtype_of(call)),
        "timestep": call.timestep,
        "encoder_hidden_states": call.text["states"].to(dtype_of(call)),
        "return_dict": False,
    }


def _answers(output: Any, call: Call) -> Tensors:
    return {IMAGE: output[0]}


def _check(pipeline: Any) -> None:
    need_channels(pipeline, pipeline.unet, pipeline.unet.config.out_channels)
    if pipeline.unet.config.get("time_cond_proj_dim") is not None:
        raise UnsupportedError(
            "this UNet is told a guidance scale (time_cond_proj_dim): it was distilled to few steps, which plain "
            "training undoes; train on the model it was made from"
        )


def _stable_diffusion(pipeline: Any, sound: str | None) -> Training:
    _check(pipeline)
    return Training((IMAGE,), _encode, encode_states, _arguments, _answers, slots=77)


PIPELINES = {"StableDiffusionPipeline": _stable_diffusion}
