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
from genkit.lora.match import EXPERTS, matched
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


def apply_loras(pipeline: Any, loras: Sequence[Lora | str], partial: bool = False) -> list[str]:
    """Load LoRA files into a pipeline under the names ``lora0``, ``lora1``, ... with their strengths.

    Args:
        pipeline: a loaded Diffusers pipeline.
        loras: in order.
        partial: load what fits of a file that fits in part, instead of refusing it.

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
    told: list[str] = []
    names, strengths = [], []
    for index, given in enumerate(loras):
        lora = parse_lora(given) if isinstance(given, str) else given
        _load(pipeline, lora, f"lora{index}", partial, told)
        names.append(f"lora{index}")
        strengths.append(lora.strength)
    pipeline.set_adapters(names, strengths)
    return told


def match_loras(outline: Any, loras: Sequence[Lora], partial: bool = False) -> list[str]:
    """Match LoRA files with a model whose weights are not read; nothing is loaded into it.

    Args:
        outline: the model's parts without values, see :attr:`genkit.pipelines.model.Model.lora_outline`.
        loras, partial: as for :func:`apply_loras`, which returns and raises the same.
    """
    told: list[str] = []
    for lora in loras:
        matched(outline, lora, partial, told)
    return told


def _load(pipeline: Any, lora: Lora, name: str, partial: bool, told: list[str]) -> None:
    for part, used, same in matched(pipeline, lora, partial, told):
        if same:
            given: Any = str(lora.path.parent)
            more = {"weight_name": lora.path.name, "local_files_only": True}
        else:
            given, more = as_diffusers(used), {}
        if part == EXPERTS[1]:
            more["load_into_transformer_2"] = True
        try:
            pipeline.load_lora_weights(given, adapter_name=name, **more)
        except (ValueError, RuntimeError, KeyError, OSError, NotImplementedError, TypeError, IndexError) as error:
            raise ArtifactError(f"{place(lora.path)} does not fit {type(pipeline).__name__}: {said(error)}") from error
        _check_loaded(pipeline, lora, name, used)


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
