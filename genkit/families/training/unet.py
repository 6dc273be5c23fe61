"""The UNets of Stable Diffusion and Stable Diffusion XL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from genkit.families.training.base import IMAGE, Call, Media, Tensors, Training, Words
from genkit.families.training.parts import dtype_of, encode_image, encode_states, facts, foreign_channels, rows

if TYPE_CHECKING:
    import torch


def _encode(pipeline: Any, media: Media, generator: torch.Generator | None) -> Tensors:
    return encode_image(pipeline, media.pixels, generator)


def _arguments(call: Call) -> dict[str, Any]:
    import torch

    sample = call.noisy[IMAGE].to(dtype_of(call))
    if "beside" in call.media:
        sample = torch.cat([sample, call.media["beside"].to(sample)], 1)
    return {
        "sample": sample,
        "timestep": call.timestep,
        "encoder_hidden_states": call.text["states"].to(dtype_of(call)),
        "return_dict": False,
    }


def _answers(output: Any, call: Call) -> Tensors:
    return {IMAGE: output[0]}


def _beside(pipeline: Any, known: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mask, 1 for every latent that holds an unknown pixel, and the known part's latents."""
    import torch

    return torch.cat([torch.nn.functional.adaptive_max_pool2d(mask, known.shape[-2:]), known], 1)


def _inpaints(pipeline: Any) -> bool:
    """Whether the UNet has the channels of mask and masked picture."""
    latents = getattr(getattr(pipeline.vae, "config", None), "latent_channels", None)
    return latents is not None and pipeline.unet.config.in_channels == 2 * latents + 1


def _untrainable(pipeline: Any) -> str:
    config = pipeline.unet.config
    if config.in_channels != config.out_channels:
        return foreign_channels(pipeline, pipeline.unet, config.out_channels)
    if config.get("time_cond_proj_dim") is not None:
        return (
            "this UNet is told a guidance scale (time_cond_proj_dim): it was distilled to few steps, which plain "
            "training undoes; train on the model it was made from"
        )
    return ""


def _states(pipeline: Any, captions: Sequence[str], slots: int) -> Tensors:
    return {"states": facts(pipeline).text.states(pipeline, list(captions), slots)}


_WORDS = Words(
    part="text_encoder",
    encode=_states,
    targets=r".+\.attentions\.\d+\.transformer_blocks\.\d+\.attn2\.to_[kv]",
    role="cross",
    start=True,
)


def _stable_diffusion(pipeline: Any, sound: str | None) -> Training:
    return Training(
        (IMAGE,),
        _encode,
        encode_states,
        _arguments,
        _answers,
        slots=77,
        slots_chosen=False,
        words=_WORDS,
        beside=_beside if _inpaints(pipeline) else None,
        untrainable=_untrainable(pipeline),
    )


def _encode_xl(pipeline: Any, media: Media, generator: torch.Generator | None) -> Tensors:
    """Latents, and where they come from: height and width of the file, place of the cut, height and width of it."""
    import torch

    size = tuple(media.pixels.shape[2:])
    told = torch.tensor([*(media.original or size), *media.crop, *size], dtype=torch.float32)
    return encode_image(pipeline, media.pixels, generator) | {"time_ids": told}


def _told_xl(height: int, width: int) -> Tensors:
    """A whole file of this size."""
    import torch

    return {"time_ids": torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32)}


def _text_xl(pipeline: Any, captions: Sequence[str], slots: int) -> list[Tensors]:
    """States and summary; zeros for an empty caption where the pipeline has them in place of a missing negative
    prompt."""
    import torch

    with torch.no_grad():
        states, _, pooled, _ = pipeline.encode_prompt(list(captions), do_classifier_free_guidance=False)
    if pipeline.config.get("force_zeros_for_empty_prompt"):
        empty = torch.tensor([not caption for caption in captions], device=states.device)
        states, pooled = states.masked_fill(empty[:, None, None], 0.0), pooled.masked_fill(empty[:, None], 0.0)
    return rows({"states": states, "pooled": pooled})


def _arguments_xl(call: Call) -> dict[str, Any]:
    told = {"text_embeds": call.text["pooled"], "time_ids": call.media["time_ids"]}
    dtype = dtype_of(call)
    return {**_arguments(call), "added_cond_kwargs": {name: value.to(dtype) for name, value in told.items()}}


def _stable_diffusion_xl(pipeline: Any, sound: str | None) -> Training:
    variant = "zeros for an empty caption" if pipeline.config.get("force_zeros_for_empty_prompt") else ""
    return Training(
        (IMAGE,),
        _encode_xl,
        _text_xl,
        _arguments_xl,
        _answers,
        slots=77,
        slots_chosen=False,
        variant=variant,
        told=_told_xl,
        beside=_beside if _inpaints(pipeline) else None,
        untrainable=_untrainable(pipeline),
    )


PIPELINES = {"StableDiffusionPipeline": _stable_diffusion, "StableDiffusionXLPipeline": _stable_diffusion_xl}
#: Of the same denoiser as the class that is named: for calling it, not for training.
ALIKE = {"LatentConsistencyModelPipeline": "StableDiffusionPipeline"}
