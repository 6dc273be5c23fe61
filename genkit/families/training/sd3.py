"""Stable Diffusion 3 and 3.5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from genkit.families.training.base import IMAGE, Call, Media, Tensors, Training
from genkit.families.training.parts import dtype_of, encode_image, need_channels, rows, sampled_shift, tokens_of

if TYPE_CHECKING:
    import torch


def _encode(pipeline: Any, media: Media, generator: torch.Generator | None) -> Tensors:
    return encode_image(pipeline, media.pixels, generator)


def _text(pipeline: Any, captions: Sequence[str], slots: int) -> list[Tensors]:
    import torch

    with torch.no_grad():
        states, _, pooled, _ = pipeline.encode_prompt(
            list(captions), None, None, do_classifier_free_guidance=False, max_sequence_length=slots
        )
    return rows({"states": states, "pooled": pooled})


def _arguments(call: Call) -> dict[str, Any]:
    dtype = dtype_of(call)
    return {
        "hidden_states": call.noisy[IMAGE].to(dtype),
        "timestep": call.timestep,
        "encoder_hidden_states": call.text["states"].to(dtype),
        "pooled_projections": call.text["pooled"].to(dtype),
        "return_dict": False,
    }


def _answers(output: Any, call: Call) -> Tensors:
    return {IMAGE: output[0]}


def _shift(pipeline: Any, shapes: Mapping[str, tuple[int, ...]]) -> float:
    patch = pipeline.transformer.config.patch_size
    return sampled_shift(pipeline, tokens_of(shapes[IMAGE], (patch, patch)))


def _text_to_image(pipeline: Any, sound: str | None) -> Training:
    need_channels(pipeline, pipeline.transformer, pipeline.transformer.config.out_channels)
    return Training((IMAGE,), _encode, _text, _arguments, _answers, slots=256, shift=_shift)


PIPELINES = {"StableDiffusion3Pipeline": _text_to_image}
