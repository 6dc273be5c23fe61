"""What a run's settings come to on this machine and for this model: device, precision, denoiser, attention.

The settings are those of ``genkit train lora`` or of ``genkit train distill``.
"""

from __future__ import annotations

import os
from typing import Any

import torch

from genkit.errors import UnsupportedError, UsageError, explain
from genkit.pipelines.attention import Attention
from genkit.pipelines.load import resolve_device
from genkit.pipelines.model import Model
from genkit.training.lora.attention import check_trainable

#: Denoisers as pipelines name them, the one that is trained when nobody says first.
DENOISERS = ("transformer", "unet", "transformer_2")
_AUTOCAST = {torch.bfloat16: "bf16", torch.float16: "fp16"}


def attention_of(settings: Any, model: Model, device: torch.device, dtype: torch.dtype) -> Attention | None:
    """What is patched in, checked as far as it goes without weights."""
    attention = Attention.of(settings, model.folder)
    if attention is None:
        return None
    check_trainable(attention)
    attention.check_recipe(model)
    attention = attention.settled(model, None)
    attention.check(model, None, True, (device, dtype))
    return attention


def device_of(settings: Any) -> torch.device:
    """Where this process computes."""
    from accelerate import PartialState

    here = PartialState(cpu=not torch.accelerator.is_available()).device
    wanted = resolve_device(settings.device)
    if settings.device != "auto" and wanted.type != here.type:
        raise UnsupportedError(
            f"--device {settings.device}: accelerate trains on {here.type} on this machine; "
            "ACCELERATE_USE_CPU=1 in the environment makes it take the CPU"
        )
    if here.type == "cpu" and settings.offload != "none":
        raise UnsupportedError(f"--offload {settings.offload} needs a GPU, and the device is the CPU; leave it out")
    return here


def component_of(model: Model, wanted: str | None) -> str:
    """The part that is trained."""
    there = [name for name in DENOISERS if name in model.parts]
    if wanted is not None and wanted not in there:
        raise UsageError(explain("--component", wanted, there))
    if not there:
        raise UnsupportedError(
            f"{model.class_name} has no denoiser that genkit can train: none of {', '.join(DENOISERS)}"
        )
    return wanted or there[0]


def precision_of(settings: Any, dtype: torch.dtype, device: torch.device) -> str:
    """Type of the products: what was asked for, else the launcher's, else that of the frozen weights."""
    launcher = os.environ.get("ACCELERATE_MIXED_PRECISION")
    found = settings.mixed_precision or launcher or _AUTOCAST.get(dtype, "no")
    if found == "fp16" and device.type == "cpu":
        where = "--mixed-precision" if settings.mixed_precision else "the launcher's mixed precision"
        raise UnsupportedError(f"{where} fp16 needs a GPU, and the device is the CPU; allowed here: no, bf16")
    return found
