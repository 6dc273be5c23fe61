"""LTX-Video from text and from a picture: packed latents, their places told by rate and size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from genkit.families.training.base import VIDEO, Call, Media, Tensors, Training
from genkit.families.training.parts import (
    dtype_of,
    encode_first,
    encode_video,
    facts,
    later_frames,
    rows,
    sampled_shift,
    tokens_of,
    with_first,
)

if TYPE_CHECKING:
    import torch


def patch(pipeline: Any) -> tuple[int, int, int]:
    """Latent frames, rows and columns of a token, of LTX-Video and LTX-2."""
    side = pipeline.transformer_spatial_patch_size
    return pipeline.transformer_temporal_patch_size, side, side


def grid_of(call: Call) -> tuple[int, int, int]:
    """Tokens of a clip along time, height and width."""
    frames, height, width = call.noisy[VIDEO].shape[2:]
    t, h, w = patch(call.pipeline)
    return frames // t, height // h, width // w


def _encode(pipeline: Any, media: Media, generator: torch.Generator | None) -> Tensors:
    return encode_video(pipeline, media.pixels, generator)


def _text(pipeline: Any, captions: Sequence[str], slots: int) -> list[Tensors]:
    import torch

    with torch.no_grad():
        states, mask, _, _ = pipeline.encode_prompt(
            list(captions), do_classifier_free_guidance=False, max_sequence_length=slots
        )
    return rows({"states": states, "mask": mask})


def _arguments(call: Call) -> dict[str, Any]:
    pipeline, dtype = call.pipeline, dtype_of(call)
    time, side, _ = patch(pipeline)
    grid = grid_of(call)
    fps = call.fps or float(facts(pipeline).fps)
    pixels = pipeline.vae_spatial_compression_ratio
    return {
        "hidden_states": pipeline._pack_latents(call.noisy[VIDEO].to(dtype), side, time),
        "encoder_hidden_states": call.text["states"].to(dtype),
        "timestep": call.timestep,
        "encoder_attention_mask": call.text["mask"],
        "num_frames": grid[0],
        "height": grid[1],
        "width": grid[2],
        "rope_interpolation_scale": (pipeline.vae_temporal_compression_ratio / fps, pixels, pixels),
        "return_dict": False,
    }


def _answers(output: Any, call: Call) -> Tensors:
    time, side, _ = patch(call.pipeline)
    return {VIDEO: call.pipeline._unpack_latents(output[0], *grid_of(call), side, time)}


def _shift(pipeline: Any, shapes: Mapping[str, tuple[int, ...]]) -> float:
    return sampled_shift(pipeline, tokens_of(shapes[VIDEO], patch(pipeline)))


def _first_arguments(call: Call) -> dict[str, Any]:
    """The first latent frame is clean, and its tokens are told so."""
    time, side, _ = patch(call.pipeline)
    latents, timestep = with_first(call, math.prod(grid_of(call)))
    tokens = call.pipeline._pack_latents(latents.to(dtype_of(call)), side, time)
    return {**_arguments(call), "hidden_states": tokens, "timestep": timestep}


def _text_to_video(pipeline: Any, sound: str | None) -> Training:
    return Training((VIDEO,), _encode, _text, _arguments, _answers, slots=128, shift=_shift)


def _image_to_video(pipeline: Any, sound: str | None) -> Training:
    return Training(
        streams=(VIDEO,),
        encode=encode_first,
        text=_text,
        arguments=_first_arguments,
        answers=_answers,
        slots=128,
        shift=_shift,
        weights=later_frames,
        takes=("first_frame",),
    )


PIPELINES = {"LTXPipeline": _text_to_video, "LTXImageToVideoPipeline": _image_to_video}
