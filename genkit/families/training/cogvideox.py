"""CogVideoX from text and from a picture: frames before channels, rotary positions as an input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from genkit.families.lookup import unwrap
from genkit.families.training.base import VIDEO, Call, Media, Tensors, Training
from genkit.families.training.parts import dtype_of, encode_states, encode_video, need_channels, told_frame

if TYPE_CHECKING:
    import torch


def _even(pipeline: Any, latents: torch.Tensor) -> torch.Tensor:
    """Latents (C, T, h, w) of 1.5, whose tokens hold several frames: the first one is repeated until they fit."""
    import torch

    step = pipeline.transformer.config.patch_size_t or 1
    missing = -latents.shape[1] % step
    return torch.cat([latents[:, :1]] * missing + [latents], 1)


def _encode(pipeline: Any, media: Media, generator: torch.Generator | None) -> Tensors:
    found = encode_video(pipeline, media.pixels, generator)
    return {name: _even(pipeline, value) for name, value in found.items()}


def _arguments(call: Call) -> dict[str, Any]:
    pipeline, model = call.pipeline, unwrap(call.model)
    latents = call.noisy[VIDEO].transpose(1, 2).to(dtype_of(call))
    _, frames, _, height, width = latents.shape
    positions = None
    if model.config.use_rotary_positional_embeddings:
        scale = pipeline.vae_scale_factor_spatial
        positions = pipeline._prepare_rotary_positional_embeddings(
            height * scale, width * scale, frames, latents.device
        )
    return {
        "hidden_states": latents,
        "encoder_hidden_states": call.text["states"].to(dtype_of(call)),
        "timestep": call.timestep,
        "image_rotary_emb": positions,
        "return_dict": False,
    }


def _answers(output: Any, call: Call) -> Tensors:
    return {VIDEO: output[0].transpose(1, 2)}


def _encode_told(pipeline: Any, media: Media, generator: torch.Generator | None) -> Tensors:
    """The picture's latents in the first frame of channels that are zero after it."""
    import torch

    found = _encode(pipeline, media, generator)
    latents = encode_video(pipeline, told_frame(media, "first_frame"), None)[VIDEO]
    if pipeline.vae.config.invert_scale_latents:
        # The models were trained with the factor of the first frame upside down.
        latents = latents / pipeline.vae.config.scaling_factor**2
    after = torch.zeros_like(found[VIDEO][:, 1:])
    return found | {"condition": torch.cat([latents, after], 1)}


def _told_arguments(call: Call) -> dict[str, Any]:
    import torch

    found = _arguments(call)
    told = call.media["condition"].transpose(1, 2).to(dtype_of(call))
    found["hidden_states"] = torch.cat([found["hidden_states"], told], 2)
    if unwrap(call.model).config.ofs_embed_dim is not None:
        found["ofs"] = found["hidden_states"].new_full((1,), 2.0)
    return found


def _variant(pipeline: Any) -> str:
    return f"frames in {pipeline.transformer.config.patch_size_t or 1}"


def _text_to_video(pipeline: Any, sound: str | None) -> Training:
    need_channels(pipeline, pipeline.transformer, pipeline.transformer.config.out_channels)
    return Training((VIDEO,), _encode, encode_states, _arguments, _answers, slots=226, variant=_variant(pipeline))


def _image_to_video(pipeline: Any, sound: str | None) -> Training:
    need_channels(pipeline, pipeline.transformer, 2 * pipeline.transformer.config.out_channels)
    return Training(
        (VIDEO,), _encode_told, encode_states, _told_arguments, _answers, slots=226, takes=("first_frame",),
        conditions=("condition",), condition_dropout=0.05,  # as Diffusers' own script for this model
    )  # fmt: skip


PIPELINES = {"CogVideoXPipeline": _text_to_video, "CogVideoXImageToVideoPipeline": _image_to_video}
