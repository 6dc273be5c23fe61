"""The way into a pipeline for adapters: its own loader, or the denoiser's where the pipeline class has none."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_DENOISERS = ("transformer", "unet")


def has_loader(pipeline: Any) -> bool:
    """Whether a pipeline, its class or its outline reads LoRA files itself (Diffusers' loader mixins)."""
    return hasattr(pipeline, "lora_state_dict")


def loadable(pipeline: Any) -> tuple[str, ...]:
    """The parts of a pipeline, of its class or of its outline that take LoRA; empty where none does.

    Without a loader of the pipeline these are denoisers that take adapters themselves, as the class declares them.
    """
    told = getattr(pipeline, "_lora_loadable_modules", None)
    if told is not None:
        return tuple(told)
    kind: Any = pipeline if isinstance(pipeline, type) else type(pipeline)
    try:
        hints = typing.get_type_hints(kind.__init__)
    except (NameError, TypeError):  # names that only a type checker knows
        hints = {name: each.annotation for name, each in inspect.signature(kind.__init__).parameters.items()}
    return tuple(name for name in _DENOISERS if hasattr(hints.get(name), "load_lora_adapter"))


def add_adapter(pipeline: Any, part: str, tensors: Mapping[str, torch.Tensor], name: str) -> None:
    """Put tensors under Diffusers' names into a part of a pipeline without a loader."""
    getattr(pipeline, part).load_lora_adapter(dict(tensors), prefix=part, adapter_name=name)


def adapters_of(pipeline: Any) -> list[str]:
    """Names of the adapters that are in a pipeline, sorted."""
    if has_loader(pipeline):
        found: Any = pipeline.get_list_adapters().values()
    else:
        found = [getattr(getattr(pipeline, part, None), "peft_config", {}) for part in loadable(pipeline)]
    return sorted({name for names in found for name in names})


def activate(pipeline: Any, names: Sequence[str], strengths: Sequence[float]) -> None:
    """These adapters act, with these strengths, and no others."""
    if has_loader(pipeline):
        pipeline.set_adapters(list(names), list(strengths))
        return
    for part in loadable(pipeline):
        own = getattr(getattr(pipeline, part, None), "peft_config", {})
        pairs = [(name, strength) for name, strength in zip(names, strengths, strict=True) if name in own]
        if pairs:
            getattr(pipeline, part).set_adapters([name for name, _ in pairs], [strength for _, strength in pairs])
