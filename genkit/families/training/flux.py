"""Flux and Flux Kontext: two by two latents a token, guidance as an input, a reference after the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from genkit.families.grids import with_values
from genkit.families.lookup import unwrap
from genkit.families.training.base import IMAGE, Call, Media, Tensors, Training, Words
from genkit.families.training.parts import dtype_of, encode_image, need_channels, rows, sampled_shift, tokens_of

if TYPE_CHECKING:
    import torch


def _encode(pipeline: Any, media: Media, generator: torch.Generator | None) -> Tensors:
    return encode_image(pipeline, media.pixels, generator)


def _read(pipeline: Any, captions: Sequence[str], slots: int) -> Tensors:
    states, pooled, _ = pipeline.encode_prompt(list(captions), None, max_sequence_length=slots)
    return {"states": states, "pooled": pooled}


def _text(pipeline: Any, captions: Sequence[str], slots: int) -> list[Tensors]:
    import torch

    with torch.no_grad():
        return rows(_read(pipeline, captions, slots))


#: T5's states are what the picture reads, so the words are its; CLIP's summary knows them by their letters alone.
_WORDS = Words(
    part="text_encoder_2",
    encode=_read,
    targets=r"transformer_blocks\.\d+\.attn\.add_[kv]_proj",
    role="joint",
    start=False,
)


def _packed(call: Call, latents: torch.Tensor) -> torch.Tensor:
    """Tokens (B, h w / 4, 4 C)."""
    count, channels, height, width = latents.shape
    return type(call.pipeline)._pack_latents(latents.to(dtype_of(call)), count, channels, height, width)


def _places(call: Call, *pictures: torch.Tensor) -> torch.Tensor:
    """Positions (N, 3) of the tokens of pictures; the first coordinate numbers them."""
    import torch

    kind, dtype = type(call.pipeline), dtype_of(call)

    def make(device: Any) -> torch.Tensor:
        found = []
        for number, latents in enumerate(pictures):
            height, width = latents.shape[2:]
            places = kind._prepare_latent_image_ids(len(latents), height // 2, width // 2, device, dtype)
            places[..., 0] = number
            found.append(places)
        return torch.cat(found)

    return with_values(make, pictures[0].device)


def _arguments(call: Call) -> dict[str, Any]:
    import torch

    dtype = dtype_of(call)
    tokens = _packed(call, call.noisy[IMAGE])
    states = call.text["states"].to(dtype)
    guidance = None
    if unwrap(call.model).config.guidance_embeds:
        given = torch.as_tensor(call.guidance, dtype=torch.float32, device=tokens.device)
        guidance = given.expand(len(tokens))
    return {
        "hidden_states": tokens,
        # Rounded before the division, as in sampling: a thousandfold level has other neighbours in bfloat16.
        "timestep": (1000 * call.level).to(dtype) / 1000,
        "guidance": guidance,
        "pooled_projections": call.text["pooled"].to(dtype),
        "encoder_hidden_states": states,
        "txt_ids": torch.zeros(states.shape[1], 3, dtype=dtype, device=states.device),
        "img_ids": _places(call, call.noisy[IMAGE]),
        "return_dict": False,
    }


def _answers(output: Any, call: Call) -> Tensors:
    height, width = call.noisy[IMAGE].shape[2:]
    # With one pixel per latent the pipeline's function takes sizes in latents.
    return {IMAGE: type(call.pipeline)._unpack_latents(output[0], height, width, 1)}


def _shift(pipeline: Any, shapes: Mapping[str, tuple[int, ...]]) -> float:
    return sampled_shift(pipeline, tokens_of(shapes[IMAGE], (2, 2)))


def _text_to_image(pipeline: Any, sound: str | None) -> Training:
    model = pipeline.transformer
    need_channels(pipeline, model, model.config.out_channels or model.config.in_channels)
    return Training((IMAGE,), _encode, _text, _arguments, _answers, slots=512, shift=_shift, words=_WORDS)


def _encode_edit(pipeline: Any, media: Media, generator: torch.Generator | None) -> Tensors:
    found = _encode(pipeline, media, generator)
    return found | {"reference": encode_image(pipeline, media.given["control"], None)[IMAGE]}


def _edit_arguments(call: Call) -> dict[str, Any]:
    """The reference's tokens come after the picture's; the first coordinate of their positions is 1."""
    import torch

    found, reference = _arguments(call), call.media["reference"]
    return {
        **found,
        "hidden_states": torch.cat([found["hidden_states"], _packed(call, reference)], 1),
        "img_ids": _places(call, call.noisy[IMAGE], reference),
    }


def _edit_answers(output: Any, call: Call) -> Tensors:
    height, width = call.noisy[IMAGE].shape[2:]
    return _answers((output[0][:, : height * width // 4],), call)


def _edit(pipeline: Any, sound: str | None) -> Training:
    model = pipeline.transformer
    need_channels(pipeline, model, model.config.out_channels or model.config.in_channels)
    return Training(
        (IMAGE,), _encode_edit, _text, _edit_arguments, _edit_answers, slots=512, shift=_shift, needs=("control",)
    )


def _beside(pipeline: Any, known: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The known part's latents, and the mask at its full size: the pixels behind a latent are channels."""
    import torch

    return torch.cat([known, torch.nn.functional.pixel_unshuffle(mask, pipeline.vae_scale_factor)], 1)


def _fill_arguments(call: Call) -> dict[str, Any]:
    """Mask and known part are packed like the picture and follow it in the channels of every token."""
    import torch

    found = _arguments(call)
    beside = _packed(call, call.media["beside"])
    return {**found, "hidden_states": torch.cat([found["hidden_states"], beside], 2)}


def _fill(pipeline: Any, sound: str | None) -> Training:
    model = pipeline.transformer
    latents = model.config.out_channels
    side = 2 ** (len(pipeline.vae.config.block_out_channels) - 1)  # pixels of a latent; from what needs no weights
    need_channels(pipeline, model, 2 * latents + 4 * side**2)
    return Training(
        (IMAGE,), _encode, _text, _fill_arguments, _answers, slots=512, shift=_shift, beside=_beside, guidance=30.0
    )


PIPELINES = {"FluxPipeline": _text_to_image, "FluxKontextPipeline": _edit}
#: Called to inpaint, not trained.
INPAINTING = {"FluxFillPipeline": _fill}

_PACKED = (
    "its denoiser reads {} packed into the channels of every token, which genkit does not make{}; take FluxPipeline or "
    "FluxInpaintPipeline with FLUX.1-dev or -schnell"
)
REFUSED = {
    "FluxFillPipeline": _PACKED.format("a mask and a masked picture", " but for genkit inpaint"),
    "FluxControlPipeline": _PACKED.format("a control picture", ""),
    "FluxControlImg2ImgPipeline": _PACKED.format("a control picture", ""),
    "FluxControlInpaintPipeline": _PACKED.format("a control picture, and a mask and a masked picture", ""),
}
