"""HunyuanVideo from text: guidance as an input, a thousandfold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from genkit.families.lookup import unwrap
from genkit.families.training.base import VIDEO, Call, Media, Tensors, Training
from genkit.families.training.parts import dtype_of, encode_video, need_channels, rows, sampled_shift

if TYPE_CHECKING:
    import torch


def _encode(pipeline: Any, media: Media, generator: torch.Generator | None) -> Tensors:
    return encode_video(pipeline, media.pixels, generator)


def _text(pipeline: Any, captions: Sequence[str], slots: int) -> list[Tensors]:
    import torch

    with torch.no_grad():
        states, pooled, mask = pipeline.encode_prompt(list(captions), max_sequence_length=slots)
    return rows({"states": states, "pooled": pooled, "mask": mask})


def _arguments(call: Call) -> dict[str, Any]:
    import torch

    dtype = dtype_of(call)
    latents = call.noisy[VIDEO].to(dtype)
    guidance = None
    if unwrap(call.model).config.guidance_embeds:
        guidance = torch.as_tensor(call.guidance, dtype=dtype, device=latents.device).expand(len(latents)) * 1000.0
    return {
        "hidden_states": latents,
        # In sampling the latents have the model's precision after the first step, and timesteps have the latents'.
        "timestep": call.timestep.to(dtype),
        "encoder_hidden_states": call.text["states"].to(dtype),
        "encoder_attention_mask": call.text["mask"].to(dtype),
        "pooled_projections": call.text["pooled"].to(dtype),
        "guidance": guidance,
        "return_dict": False,
    }


def _answers(output: Any, call: Call) -> Tensors:
    return {VIDEO: output[0]}


def _shift(pipeline: Any, shapes: Mapping[str, tuple[int, ...]]) -> float:
    return sampled_shift(pipeline, 0)


def _text_to_video(pipeline: Any, sound: str | None) -> Training:
    need_channels(pipeline, pipeline.transformer, pipeline.transformer.config.out_channels)
    return Training((VIDEO,), _encode, _text, _arguments, _answers, slots=256, shift=_shift)


PIPELINES = {"HunyuanVideoPipeline": _text_to_video}
REFUSED = {
    "HunyuanVideoImageToVideoPipeline": "its text encoder reads the picture beside the caption, and captions are "
    "encoded without pictures here"
}
