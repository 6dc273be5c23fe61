"""Weights that a class keeps in float32 whatever the others' type.

``from_pretrained`` reads them so. Diffusers' readers of single files round them to the type of the others, in the
0.42 releases even those that they say they keep, so that a model from a file would not be that of its folder.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genkit.models.check import read_part_config

if TYPE_CHECKING:
    import torch
    from torch import nn


def kept_names(kind: type, dtype: torch.dtype) -> Callable[[str], bool] | None:
    """Whether a class keeps a tensor in float32, by its name; None where it keeps none of them.

    Args:
        kind: class of Diffusers or transformers.
        dtype: of the other tensors.
    """
    import torch

    kept = getattr(kind, "_keep_in_fp32_modules", None) or ()
    # Transformers keep theirs for float16 alone, Diffusers for every type.
    if kind.__module__.startswith("transformers") and dtype != torch.float16:
        kept = ()
    if not kept or dtype == torch.float32:
        return None
    pattern = re.compile("|".join(rf"(^|\.){re.escape(name)}(\.|$)" for name in kept))
    return lambda name: pattern.search(name) is not None


def restore(network: nn.Module, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> None:
    """Give a network that was read from a file the tensors that its class keeps in float32 as the file has them.

    Args:
        network: with all tensors in ``dtype``.
        tensors: of the file, by the network's own names.
        dtype: of the others.
    """
    import torch

    kept = kept_names(type(network), dtype)
    if kept is None:
        return
    places = [*network.named_parameters(), *network.named_buffers()]
    for name, place in places:
        if kept(name) and place.is_floating_point():
            source = tensors.get(name, place)
            place.data = source.to(place.device, torch.float32, copy=True).reshape(place.shape)


def rules_of(kind: type) -> dict[str, Any] | None:
    """How Diffusers reads single files for a class; None where it does not."""
    import diffusers
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES as KNOWN

    return next((rules for name, rules in KNOWN.items() if issubclass(kind, getattr(diffusers, name))), None)


def by_own_names(folder: Path, part: str, kind: type, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """A file's tensors by the names that Diffusers gives them.

    Args:
        folder: of the model with the part's configuration.
        part: of it.
        kind: class of the part, one that Diffusers reads files for.
        tensors: with or without values.
    """
    rules = rules_of(kind)
    assert rules is not None, f"{kind.__name__} is read from no single file"
    rename: Any = rules["checkpoint_mapping_fn"]
    return rename(config=read_part_config(folder, part), checkpoint=dict(tensors))
