"""Motif-Video from text and from a picture: one set of weights, told by further channels whether there is a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from genkit.errors import UnsupportedError, UsageError
from genkit.families.lookup import unwrap
from genkit.families.training.base import VIDEO, Call, Media, Tensors, Training
from genkit.families.training.parts import (
    dtype_of,
    encode_video,
    need_channels,
    rows,
    sampled_shift,
    tokens_of,
    told_frame,
)

if TYPE_CHECKING:
    import torch

#: Above it hardly anything but noise is trained: half of all levels lie above 0.99.
_HIGHEST_SHIFT = 100.0


def _encode(pipeline: Any, media: Media, generator: torch.Generator | None) -> Tensors:
    return encode_video(pipeline, media.pixels, generator)


def _text(pipeline: Any, captions: Sequence[str], slots: int) -> list[Tensors]:
    import torch

    with torch.no_grad():
        states, _, mask, _ = pipeline.encode_prompt(list(captions), max_sequence_length=slots)
    return rows({"states": states, "mask": mask})


def _arguments(call: Call) -> dict[str, Any]:
    """Behind the noisy latents: the told frame's latents, then a channel that is 1 where a frame is told."""
    import torch

    dtype = dtype_of(call)
    latents = call.noisy[VIDEO].to(dtype)
    told, where = torch.zeros_like(latents), torch.zeros_like(latents[:, :1])
    if "first" in call.media:
        told[:, :, :1], where[:, :, 0] = call.media["first"].to(dtype), 1.0
    found = {
        "hidden_states": torch.cat([latents, told, where], 1),
        "timestep": call.timestep,
        "encoder_hidden_states": call.text["states"].to(dtype),
        "encoder_attention_mask": call.text["mask"].bool(),
        "return_dict": False,
    }
    if "picture" in call.media:
        found["image_embeds"] = call.media["picture"].to(dtype)
    return found


def _answers(output: Any, call: Call) -> Tensors:
    return {VIDEO: output[0]}


def _patch(model: Any) -> tuple[int, int, int]:
    config = unwrap(model).config
    return config.patch_size_t, config.patch_size, config.patch_size


def _shift(pipeline: Any, shapes: Mapping[str, tuple[int, ...]]) -> float:
    """The scheduler's own. The line of Flux's schedulers, made for 256 to 4096 tokens, means nothing for a clip's."""
    tokens = tokens_of(shapes[VIDEO], _patch(pipeline.transformer))
    shift = sampled_shift(pipeline, tokens)
    if shift > _HIGHEST_SHIFT:
        raise UsageError(
            f"flow_shift: the scheduler of this model shifts noise levels of {tokens} tokens by {shift:.3g} (dynamic "
            f"shifting), allowed: up to {_HIGHEST_SHIFT:g}, above which hardly anything but noise is trained; give "
            "--flow-shift (the authors sample text-to-video at 15)"
        )
    return shift


def _text_to_video(pipeline: Any, sound: str | None) -> Training:
    model = pipeline.transformer
    need_channels(pipeline, model, 2 * model.config.out_channels + 1)
    return Training((VIDEO,), _encode, _text, _arguments, _answers, slots=512, shift=_shift)


def _encode_told(pipeline: Any, media: Media, generator: torch.Generator | None) -> Tensors:
    """Latents, those of the told frame, and what the text encoder's vision tower sees of it."""
    import torch

    frame = told_frame(media, "first_frame")
    found = encode_video(pipeline, media.pixels, generator)
    found["first"] = encode_video(pipeline, frame, None)[VIDEO]
    with torch.no_grad():
        seen = pipeline._get_image_embeds(
            image_encoder=pipeline.text_encoder.vision_tower,
            feature_extractor=pipeline.feature_extractor,
            image=((frame[None, :, 0] + 1) / 2).clamp(0, 1),
            device=pipeline._execution_device,
        )
    return found | {"picture": seen[0].float()}


def _image_to_video(pipeline: Any, sound: str | None) -> Training:
    model = pipeline.transformer
    need_channels(pipeline, model, 2 * model.config.out_channels + 1)
    if model.config.image_embed_dim is None:
        raise UnsupportedError(
            f"{type(pipeline).__name__} cannot be trained with this denoiser: it has no layers for what the vision "
            "tower sees (image_embed_dim is null in its config.json); take MotifVideoPipeline"
        )
    return Training(
        (VIDEO,), _encode_told, _text, _arguments, _answers, slots=512, shift=_shift, takes=("first_frame",),
        variant="told",
    )  # fmt: skip


PIPELINES = {"MotifVideoPipeline": _text_to_video, "MotifVideoImage2VideoPipeline": _image_to_video}
