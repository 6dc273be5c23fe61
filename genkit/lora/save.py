"""Writing LoRA files that every reader takes the same way."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genkit.errors import ArtifactError, UnsupportedError, UsageError, explain, shown
from genkit.lora.facts import Facts, adapter_metadata, metadata_of
from genkit.lora.files import NAMED
from genkit.lora.keys import short
from genkit.lora.pair import Pair
from genkit.media.atomic import Files
from genkit.models.tensors import write_tensors

if TYPE_CHECKING:
    import torch

#: Components as Diffusers' pipelines name them.
_COMPONENT = re.compile(r"transformer(_2)?|unet|prior|text_encoder(_[234])?|connectors")
_MODULE = re.compile(r"\w+(\.\w+)*")
#: What a file calls the second of two experts; stock Diffusers is told by ``load_into_transformer_2=True``.
_SECOND, _FIRST = "transformer_2", "transformer"


def save_lora(path: str | Path, weights: Mapping[str, Mapping[str, Any]], facts: Facts) -> Path:
    """Write a LoRA as stock Diffusers loads it, with ``pipeline.load_lora_weights(folder)`` and without genkit.

    Names are ``component.module.lora_A.weight`` and ``lora_B.weight``. Alpha is multiplied into B, and the
    ``lora_adapter_metadata`` in the file says that alpha is the rank: the scale is right for readers of the metadata
    and for those that ignore it. Equal arguments give equal bytes.

    Args:
        path: a folder, for ``pytorch_lora_weights.safetensors`` in it, or a file that ends in ``.safetensors``. It
            appears whole or not at all; an earlier one is replaced.
        weights: component ("transformer", "unet", "text_encoder", ...) -> dotted path of a module -> (A, B, alpha) or
            a :class:`genkit.lora.pair.Pair`. A is (rank, in), B (out, rank), of convolutions (rank, in, kh, kw) and
            (out, rank, 1, 1). The change of the weight is B A times alpha / rank; alpha None is the rank. The second
            expert of a model is a file of its own: ``{"transformer_2": ...}`` alone, written under the names of the
            first as Diffusers wants it (``load_into_transformer_2=True``).
        facts: what the file says about itself.

    Returns:
        The file.

    Raises:
        UsageError: no such component, nothing to save, two experts in one file, a name that is none.
        ArtifactError: values that are not finite, halves that do not fit each other, or no space left.
        UnsupportedError: LoKr, which stock Diffusers does not load for these models.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        path = path / NAMED
    pairs = _checked(weights)
    folded = {key: pair.folded() for key, pair in pairs.items()}
    if _SECOND in weights:
        facts = facts.replace(component=_SECOND)
        folded = {(_FIRST if part == _SECOND else part, module): pair for (part, module), pair in folded.items()}
    if any(pair.magnitude is not None for pair in folded.values()):
        facts = facts.replace(adapter="dora")
    write_lora(path, peft_tensors(folded), metadata_of(facts, adapter_metadata(folded)))
    return path


def peft_tensors(pairs: Mapping[tuple[str, str], Pair]) -> dict[str, torch.Tensor]:
    """Tensors by name, in peft's form with the component before; alphas must be multiplied in."""
    found = {}
    for (part, module), pair in pairs.items():
        found[f"{part}.{module}.lora_A.weight"], found[f"{part}.{module}.lora_B.weight"] = pair.down, pair.up
        if pair.bias is not None:
            found[f"{part}.{module}.lora_B.bias"] = pair.bias
        if pair.magnitude is not None:
            found[f"{part}.{module}.lora_magnitude_vector"] = pair.magnitude
    return found


def write_lora(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write a file that appears whole or not at all; ArtifactError when it cannot be written."""
    with Files() as files:
        write_tensors(files.new(path), tensors, metadata)


def _checked(weights: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str], Pair]:
    """Every module as a pair, in the order of names."""
    found = {}
    for part in sorted(weights):
        if not _COMPONENT.fullmatch(part):
            raise UsageError(explain("component of a LoRA", part, "transformer, unet, text_encoder, ..."))
        for module in sorted(weights[part]):
            if not _MODULE.fullmatch(module):
                raise UsageError(explain("module of a LoRA", module, "names of layers joined by dots"))
            found[part, module] = _pair(part, module, weights[part][module])
    if not found:
        raise UsageError("there is nothing to save: no module has a LoRA")
    if {_FIRST, _SECOND} <= set(weights):
        raise UsageError(
            f"{_FIRST} and {_SECOND} in one file: stock Diffusers loads a file into one of them; save a file for each"
        )
    return found


def _pair(part: str, module: str, given: Any) -> Pair:
    name = short(f"{part}.{module}")
    if isinstance(given, Pair):
        pair = given
    elif isinstance(given, Mapping) and any("lokr" in str(key) for key in given):
        raise UnsupportedError(
            f"{name} is LoKr, which stock Diffusers loads for Flux.2 and Z-Image alone; give it as the LoRA that is "
            "equal to it, see genkit.lora.lokr.pair_of_lokr"
        )
    elif isinstance(given, tuple) and len(given) == 3:
        pair = Pair(down=given[0], up=given[1], alpha=None if given[2] is None else float(given[2]))
    else:
        raise UsageError(f"{name}: got {shown(type(given))}, allowed: (A, B, alpha) or a Pair")
    if pair.down is None or pair.up is None or min(pair.down.ndim, pair.up.ndim) < 2:
        raise ArtifactError(f"{name} has not two halves of at least two axes")
    if pair.down.shape[0] != pair.up.shape[1] or not pair.rank:
        raise ArtifactError(f"{name}: the halves have shapes {tuple(pair.down.shape)} and {tuple(pair.up.shape)}")
    if pair.alpha is not None and not math.isfinite(pair.alpha):
        raise ArtifactError(f"{name}: alpha is {pair.alpha}")
    pair.check_finite(name)
    return pair
