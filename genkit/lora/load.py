"""Loading LoRA files into a pipeline, whole or, when asked, in part.

Diffusers drops what does not fit without an error. Here every module of a file is matched with the pipeline first: with
its outline before weights are read, and with the pipeline itself when the file is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from genkit.errors import ArtifactError, UnsupportedError
from genkit.lora.files import Lora, parse_lora
from genkit.lora.keys import said, short
from genkit.lora.match import EXPERTS, Matched, match
from genkit.lora.pair import Pair
from genkit.lora.save import peft_tensors
from genkit.reading.files import place

if TYPE_CHECKING:
    import torch


def check_lora(pipeline_class: type) -> None:
    """Refuse a pipeline class that takes no LoRA, and a machine without peft; UnsupportedError."""
    if not hasattr(pipeline_class, "load_lora_weights"):
        raise UnsupportedError(f"{pipeline_class.__name__} takes no LoRA")
    if find_spec("peft") is None:
        raise UnsupportedError("--lora needs the package peft; pip install peft")


def apply_loras(
    pipeline: Any, loras: Sequence[Lora | str], partial: bool = False, matches: Sequence[Matched] = ()
) -> list[str]:
    """Load LoRA files into a pipeline under the names ``lora0``, ``lora1``, ... with their strengths.

    Args:
        pipeline: a loaded Diffusers pipeline.
        loras: in order.
        partial: load what fits of a file that fits in part, instead of refusing it.
        matches: what :func:`match_loras` found for the same files and model, which are then not read again.

    Returns:
        What the user should know, one line each: files that were used in part, or for both experts.

    Raises:
        UnsupportedError: the pipeline takes no LoRA, or peft is not installed.
        UsageError: the pipeline has no such part.
        ArtifactError: a file that does not fit the model.
    """
    if not loras:
        return []
    check_lora(type(pipeline))
    if not matches:
        found = (parse_lora(given) if isinstance(given, str) else given for given in loras)
        matches = [match(pipeline, lora, partial) for lora in found]
    told = []
    for index, each in enumerate(matches):
        _load(pipeline, each, f"lora{index}")
        told += each.told
    pipeline.set_adapters([f"lora{index}" for index in range(len(matches))], [each.lora.strength for each in matches])
    return told


def match_loras(outline: Any, loras: Sequence[Lora], partial: bool = False) -> list[Matched]:
    """Match LoRA files with a model whose weights are not read; nothing is loaded into it.

    Args:
        outline: the model's parts without values, see :attr:`genkit.pipelines.model.Model.lora_outline`.
        loras, partial: as for :func:`apply_loras`, which raises the same.
    """
    return [match(outline, lora, partial) for lora in loras]


def _load(pipeline: Any, found: Matched, name: str) -> None:
    path = found.lora.path
    for group in found.groups:
        if group.same:
            given: Any = str(path.parent)
            more = {"weight_name": path.name, "local_files_only": True}
        else:
            given, more = as_diffusers(group.pairs), {}
        if group.part == EXPERTS[1]:
            more["load_into_transformer_2"] = True
        try:
            pipeline.load_lora_weights(given, adapter_name=name, **more)
        except (ValueError, RuntimeError, KeyError, OSError, NotImplementedError, TypeError, IndexError) as error:
            raise ArtifactError(f"{place(path)} does not fit {type(pipeline).__name__}: {said(error)}") from error
        _check_loaded(pipeline, found.lora, name, group.pairs)


def as_diffusers(pairs: Mapping[tuple[str, str], Pair]) -> dict[str, torch.Tensor]:
    """Pairs under Diffusers' names, their scale multiplied into the upper half."""
    return peft_tensors(
        {(EXPERTS[0] if part == EXPERTS[1] else part, module): pair.folded() for (part, module), pair in pairs.items()}
    )


def _check_loaded(pipeline: Any, lora: Lora, name: str, used: Mapping[tuple[str, str], Pair]) -> None:
    """Every used module carries the adapter, with values."""
    for part, module in used:
        layer = getattr(pipeline, part).get_submodule(module)
        down = getattr(layer, "lora_A", {})
        if name not in down:
            raise ArtifactError(
                f"{place(lora.path)}: Diffusers left out {short(f'{part}.{module}')}; it does not fit this model"
            )
        empty = [key for key, value in layer.named_parameters() if f".{name}." in f".{key}." and value.is_meta]
        if empty:
            raise ArtifactError(f"{place(lora.path)} has no values for {empty[0]} of {short(f'{part}.{module}')}")
