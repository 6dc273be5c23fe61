"""What a file of weights is, told from the names and shapes in its header: a whole model, its denoiser alone, ..."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genkit.errors import UnsupportedError, UsageError, counted
from genkit.reading.files import place

if TYPE_CHECKING:
    import torch

#: What whole checkpoints put before the names of a part's tensors, by the part.
PREFIXES: dict[str, tuple[str, ...]] = {
    "unet": ("model.diffusion_model.",),
    "transformer": ("model.diffusion_model.",),
    "vae": ("first_stage_model.", "vae."),
    "audio_vae": ("audio_vae.",),
}
DENOISERS = ("unet", "transformer")
#: What says that a file holds more than a denoiser.
BESIDE = ("first_stage_model.", "vae.", "audio_vae.", "cond_stage_model.", "conditioner.", "text_encoders.")
#: Endings of tensors that say how others are scaled, which Diffusers does not read.
_SCALED = ("scaled_fp8", ".scale_weight", ".weight_scale", ".scale_input")
#: Names of files that are no models, what they are, and how they are given.
_OTHERS = (
    (r"(^|.*[._])lora_(down|up|A|B|unet|te\d?)[._].*|.*\.lora\..*", "a LoRA", "give it as --lora"),
    (r"(ip_adapter|image_proj)\..*", "an image prompt adapter", "give it as --ip-adapter"),
    (r"control_model\..*|controlnet_.*", "a ControlNet", "give its Diffusers folder as --controlnet"),
    (r".*motion_modules\..*", "a motion adapter", "take a folder of a model that makes videos"),
    (r"string_to_param\..*|emb_params|clip_[lg]", "an embedding of new words", "take the model it was made for"),
)
#: Beginnings of names of denoisers, Diffusers' and the originals'.
_LAYERS = re.compile(
    r"(transformer_blocks|single_transformer_blocks|double_blocks|single_blocks|joint_blocks|blocks|layers|down_blocks|"
    r"up_blocks|input_blocks|double_stream_blocks|net\.blocks)\..*"
)


def check_kind(path: Path, names: Iterable[str]) -> None:
    """Refuse a file that is no model.

    Raises:
        UsageError: a LoRA, adapter, ControlNet, autoencoder, ...; the message says how it is given.
        UnsupportedError: scaled 8-bit weights.
    """
    names = list(names)
    for pattern, what, do in _OTHERS:
        if any(re.fullmatch(pattern, name) for name in names):
            raise UsageError(f"model {place(path)} is {what}, no model: {do}")
    if not names:
        raise UsageError(f"model {place(path)} holds no weights; get the file again")
    if not holds_denoiser(names):
        raise UsageError(
            f"model {place(path)} holds no denoiser: none of its {counted(len(names), 'tensor')} is named as "
            "one's are, the first "
            f"is {min(names)}; give the file of a whole model"
        )
    check_unscaled(f"model {place(path)}", names)


def check_unscaled(what: str, names: Iterable[str]) -> None:
    """Refuse 8-bit weights with scales beside them, which Diffusers would read as if they had none;
    UnsupportedError."""
    scaled = next((name for name in names if name.endswith(_SCALED)), None)
    if scaled is not None:
        raise UnsupportedError(
            f"{what} has scaled 8-bit weights ({scaled}), which Diffusers does not read; take the bf16 file and "
            "--quantize fp8"
        )


def holds_denoiser(names: Iterable[str]) -> bool:
    """Whether a file has a denoiser, alone or among other parts."""
    return any(name.startswith(PREFIXES["unet"]) or _LAYERS.fullmatch(name) for name in names)


def alone(names: Iterable[str]) -> bool:
    """Whether a file has a denoiser and nothing else."""
    return not any(name.startswith(BESIDE) for name in names)


def without_values(header: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of a header with their shapes and no values: what Diffusers' own functions look at."""
    import torch

    return {
        name: torch.empty(each.shape, device="meta") for name, each in header.items() if name != "__metadata__"
    }  # fmt: skip


def usual_model(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """The model of the hub whose configurations a file's weights have, as far as Diffusers knows its kind.

    Args:
        tensors: from :func:`without_values`.
    """
    from diffusers.loaders.single_file_utils import (
        CHECKPOINT_KEY_NAMES,
        DIFFUSERS_DEFAULT_PIPELINE_PATHS,
        infer_diffusers_model_type,
    )

    try:
        kind = infer_diffusers_model_type(dict(tensors))
    except (LookupError, ValueError, NameError):  # a name it knows, with a shape or companions that it does not
        return None
    if kind == "v1" and CHECKPOINT_KEY_NAMES["v1"] not in tensors:  # its answer to what it does not know
        return None
    return str(DIFFUSERS_DEFAULT_PIPELINE_PATHS[kind]["pretrained_model_name_or_path"])
