"""Qwen-Image: two by two latents a token; the text keeps no padding that every caption of a batch has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from genkit.families.lookup import unwrap
from genkit.families.training.base import IMAGE, VIDEO, Call, Media, Tensors, Training
from genkit.families.training.parts import (
    dtype_of,
    encode_video,
    need_channels,
    need_picture,
    rows,
    sampled_shift,
    tokens_of,
)

if TYPE_CHECKING:
    import torch


def _encode(pipeline: Any, media: Media, generator: torch.Generator | None) -> Tensors:
    """The autoencoder is one of clips; a picture is its first frame."""
    need_picture(pipeline, media.pixels)
    found = encode_video(pipeline, media.pixels, generator)
    return {name.replace(VIDEO, IMAGE): value[:, 0] for name, value in found.items()}


def _text(pipeline: Any, captions: Sequence[str], slots: int) -> list[Tensors]:
    """States (slots, width), zero after the text, and their mask."""
    import torch

    with torch.no_grad():
        states, mask = pipeline.encode_prompt(list(captions), max_sequence_length=slots)
    if mask is None:
        mask = torch.ones(states.shape[:2], dtype=torch.long, device=states.device)
    missing = slots - states.shape[1]
    return rows({"states": _lengthened(states, missing), "mask": _lengthened(mask[..., None], missing)[..., 0]})


def _lengthened(values: torch.Tensor, missing: int) -> torch.Tensor:
    import torch

    return torch.nn.functional.pad(values, (0, 0, 0, missing))


def _arguments(call: Call) -> dict[str, Any]:
    import torch

    dtype = dtype_of(call)
    count, channels, height, width = call.noisy[IMAGE].shape
    mask = call.text["mask"]
    longest = int(mask.sum(1).max())
    mask = mask[:, :longest]
    tokens = type(call.pipeline)._pack_latents(call.noisy[IMAGE].to(dtype), count, channels, height, width)
    guidance = None
    if unwrap(call.model).config.guidance_embeds:
        guidance = torch.as_tensor(call.guidance, dtype=torch.float32, device=tokens.device).expand(count)
    return {
        "hidden_states": tokens,
        # Rounded before the division, as in sampling: a thousandfold level has other neighbours in bfloat16.
        "timestep": (1000 * call.level).to(dtype) / 1000,
        "guidance": guidance,
        "encoder_hidden_states": call.text["states"][:, :longest].to(dtype),
        "encoder_hidden_states_mask": None if bool(mask.all()) else mask,
        "img_shapes": [[(1, height // 2, width // 2)]] * count,
        "return_dict": False,
    }


def _answers(output: Any, call: Call) -> Tensors:
    height, width = call.noisy[IMAGE].shape[2:]
    # With one pixel per latent the pipeline's function takes sizes in latents.
    return {IMAGE: type(call.pipeline)._unpack_latents(output[0], height, width, 1)[:, :, 0]}


def _shift(pipeline: Any, shapes: Mapping[str, tuple[int, ...]]) -> float:
    return sampled_shift(pipeline, tokens_of(shapes[IMAGE], (2, 2)))


def _text_to_image(pipeline: Any, sound: str | None) -> Training:
    model = pipeline.transformer
    need_channels(pipeline, model, 4 * model.config.out_channels)
    return Training((IMAGE,), _encode, _text, _arguments, _answers, slots=512, shift=_shift)


PIPELINES = {"QwenImagePipeline": _text_to_image}
_READS = "its text encoder reads the picture beside the caption, and captions are encoded without pictures here"
REFUSED = {"QwenImageEditPipeline": _READS, "QwenImageEditPlusPipeline": _READS}
