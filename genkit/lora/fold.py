"""LoRAs folded into the weights of a model: a new folder that needs neither genkit nor peft."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from genkit.errors import ArtifactError, UnsupportedError, UsageError
from genkit.lora.contents import Contents
from genkit.lora.keys import short
from genkit.lora.pair import Pair
from genkit.lora.weights import PartWeights, weights_of
from genkit.media.atomic import Files
from genkit.models.registry import CHECKSUMS, write_checksums
from genkit.models.tensors import write_tensors
from genkit.reading.files import place

if TYPE_CHECKING:
    import torch

Changes = dict[str, list[tuple[Pair, float]]]


def fold(files: Sequence[tuple[Contents, float, str | None]], folder: Path, output: Path) -> dict[str, int]:
    """Write a copy of a pipeline folder whose weights have LoRAs added.

    Sums are made in float32 and rounded once to the type of the weights: a bfloat16 model keeps 8 bits of the sum.

    Args:
        files: LoRAs with their strengths and the part each goes to, where the user says one.
        folder: the pipeline.
        output: the new folder; it appears whole or not at all.

    Returns:
        Part -> number of weights changed.

    Raises:
        UsageError: the output exists, or lies in the model or around it.
        ArtifactError: a layer that the model does not have or that has another size, or no space left.
        UnsupportedError: weights that are quantised.
    """
    _check_places(folder, output)
    parts = weights_of(folder)
    changes: dict[str, Changes] = {}
    biases: dict[str, Changes] = {}
    for contents, strength, part in files:
        if contents.facts is not None and contents.facts.words:
            raise UnsupportedError(
                f"{place(contents.path)} brings words of its own ({', '.join(contents.facts.words)}), which a model's "
                "weights have no place for; load it as a LoRA instead"
            )
        for target, module, pair in _placed(contents, part, parts):
            key = _key(contents, parts[target], module, pair, "weight")
            changes.setdefault(target, {}).setdefault(key, []).append((pair, strength))
            if pair.bias is not None:
                key = _key(contents, parts[target], module, pair, "bias")
                biases.setdefault(target, {}).setdefault(key, []).append((pair, strength))
    with Files() as pending:
        made = pending.new(output)
        _copy(folder, made, [path for part in changes for path in dict.fromkeys(parts[part].files.values())])
        for part, own in changes.items():
            _write(parts[part], own, biases.get(part, {}), folder, made)
        if (folder / CHECKSUMS).is_file():
            write_checksums(made)
    return {part: len(own) for part, own in changes.items()}


def _check_places(folder: Path, output: Path) -> None:
    here, there = folder.resolve(), output.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise UsageError(f"--output {place(output)} is the model's folder, in it or around it; choose another place")
    if output.exists():
        raise UsageError(f"--output {place(output)} exists; a model is written into a new folder")


def _placed(contents: Contents, part: str | None, parts: dict[str, PartWeights]):
    """Where every pair of a file goes: (part, module, pair with a scale of one)."""
    component = part or (contents.facts.component if contents.facts is not None else None)
    for (own, module), pair in contents.folded.items():
        denoiser = own in ("transformer", "transformer_2")
        target = component if component and denoiser else own
        if target not in parts:
            raise ArtifactError(
                f"{place(contents.path)} changes {target}, which the model does not have; it has {', '.join(parts)}"
            )
        if denoiser and component is None and own == "transformer" and "transformer_2" in parts:
            raise UsageError(
                f"{place(contents.path)}: the model has two experts; add :transformer or :transformer_2 to the file's "
                "name, or name it twice"
            )
        yield target, module, pair


def _key(contents: Contents, weights: PartWeights, module: str, pair: Pair, field: str) -> str:
    """The tensor that a pair changes."""
    key = weights.key_of(module, field)
    name = f"{place(contents.path)}: {short(f'{weights.name}.{module}')}"
    if key is None:
        raise ArtifactError(f"{name} has no {field} in {place(weights.folder)}; it was made for another model")
    shape = weights.shapes[key]
    wanted = (pair.up.shape[0], *pair.down.shape[1:]) if field == "weight" else (pair.up.shape[0],)
    if shape != wanted:
        raise ArtifactError(f"{name} changes a {field} of {wanted}, the model has {shape}; it is of another model")
    return key


def _copy(folder: Path, made: Path, without: list[Path]) -> None:
    """Everything but the files that are written anew."""
    left_out = {path.resolve() for path in without} | {(folder / CHECKSUMS).resolve()}
    for path in sorted(folder.rglob("*")):
        target = made / path.relative_to(folder)
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        elif path.resolve() not in left_out:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def _write(weights: PartWeights, changes: Changes, biases: Changes, folder: Path, made: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file

    for path, keys in weights.by_file():
        tensors = load_file(path)
        with safe_open(path, "pt") as stream:
            texts = stream.metadata() or {}
        for key in keys:
            for pair, strength in changes.get(key, ()):
                tensors[key] = changed(tensors[key], pair, strength, key)
            for pair, strength in biases.get(key, ()):
                tensors[key] = (tensors[key].float() + strength * pair.bias.float()).to(tensors[key].dtype)
        target = made / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(target, tensors, texts)


def changed(weight: torch.Tensor, pair: Pair, strength: float, key: str) -> torch.Tensor:
    """A weight with a change of scale one added; DoRA brings its rows to their lengths afterwards.

    Args:
        weight: (out, in, ...), of any precision; the sum is made in float32 or wider.
        pair: the change, :meth:`~genkit.lora.pair.Pair.folded`, on any device.
        strength: its factor.
        key: name of the weight, for messages.

    Raises:
        UnsupportedError: quantised weights.
        ArtifactError: a sum that is not finite.
    """
    import torch

    if weight.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        raise UnsupportedError(f"{short(key)} is {weight.dtype}: LoRAs are folded into weights that are not quantised")
    wide = torch.promote_types(weight.dtype, torch.float32)
    up, down = (half.flatten(1).to(weight.device, wide) for half in (pair.up, pair.down))
    found = weight.to(wide) + strength * (up @ down).view(weight.shape)
    if pair.magnitude is not None:
        rows = found.flatten(1)
        lengths = pair.magnitude.to(weight.device, wide).flatten() / rows.norm(dim=1)
        found = (rows * lengths[:, None]).view(weight.shape)
    if not bool(found.isfinite().all()):
        raise ArtifactError(f"{short(key)} is not finite after the LoRA was added; the strength is too large")
    return found.to(weight.dtype)
