"""Trainable weights of a patch: a module beside the model, saved in its own safetensors file.

They are never part of the model: its state dict, its ``save_pretrained`` and its LoRA files stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from genkit.attention.cache import PatchCache
from genkit.errors import ArtifactError, UsageError, shown
from genkit.media.atomic import Files
from genkit.models.check import check_safetensors
from genkit.models.tensors import write_tensors
from genkit.reading import parse_json
from genkit.reading.files import place
from genkit.schema import read

#: Settings that tell where a patch has its weights from, and nothing of how it attends.
_OF_A_PATCH = ("weights", "untrained")
#: Types of numbers that weights are stored in, as headers of safetensors files name them.
KINDS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
FORMAT, VERSION = "genkit-attention-weights", "1"


class PatchWeights(nn.Module):
    """The weights of the methods of one patch, a module per attention layer that has some.

    ``parameters()`` goes to an optimiser, :meth:`save` and :meth:`load` keep them in a file. Parameter names are
    ``method/path/of/the/layer.name``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict()
        self.made_with: dict[str, dict[str, Any]] = {}

    @staticmethod
    def of(cache: PatchCache) -> PatchWeights:
        """The weights that belong to a patch; without any they are an empty module."""
        return cache.get("weights", PatchWeights)

    def put(self, method: str, site: str, module: nn.Module, settings: Mapping[str, Any]) -> None:
        """Add the weights of a method at a layer; ``settings`` go into the file to tell how they were made."""
        key = _key(method, site)
        if key in self.layers:
            raise UsageError(f"layer {site} already has weights of {method}: put the method on a layer once per patch")
        self.layers[key] = module
        self.made_with[method] = {name: value for name, value in settings.items() if name not in _OF_A_PATCH}

    def at(self, method: str, site: str) -> nn.Module:
        """The weights of a method at a layer; KeyError without."""
        return self.layers[_key(method, site)]

    def has(self, method: str, site: str) -> bool:
        """Whether a method has weights at a layer."""
        return _key(method, site) in self.layers

    def __contains__(self, site: str) -> bool:
        """Whether any method has weights at a layer."""
        tail = "/" + site.replace(".", "/")
        return any(key.endswith(tail) and key.count("/") == tail.count("/") for key in self.layers)

    def count(self) -> int:
        """Number of trainable numbers."""
        return sum(parameter.numel() for parameter in self.parameters())

    def save(self, path: str | Path, dtype: torch.dtype | None = None, method: str | None = None) -> Path:
        """Write weights into a safetensors file; it appears whole or not at all.

        Args:
            path: the file. dtype: what they are stored as; None = as they are. method: whose weights; None = all.

        Raises:
            UsageError: there are no weights, or the name does not end in ``.safetensors``. ArtifactError: not written.
        """
        path = Path(path)
        if path.suffix != ".safetensors":
            raise UsageError(f"weights file: got {str(path)!r}, allowed: a name that ends in .safetensors")
        begin = "" if method is None else f"{method}/"
        named = {name: value for name, value in self.named_weights().items() if name.startswith(begin)}
        tensors = {name: _plain(value).to(dtype or value.dtype) for name, value in named.items()}
        if not tensors:
            raise UsageError("the patch has no trainable weights to save; its methods run without training")
        made_with = {name: made for name, made in self.made_with.items() if method in (None, name)}
        facts = {"format": FORMAT, "version": VERSION, "methods": json.dumps(made_with, sort_keys=True)}
        with Files() as files:
            write_tensors(files.new(path), tensors, facts)
        return path

    @staticmethod
    def settings_of(path: str | Path) -> dict[str, dict[str, Any]]:
        """Method name -> the settings that a weights file was made with.

        Raises:
            ArtifactError: a missing, truncated or foreign file, or one with tensors that are no weights of these
                methods.
        """
        name = f"{place(path)}, methods"
        header = check_safetensors(Path(path))
        facts = header.pop("__metadata__", {})
        _check_facts(Path(path), facts)
        stored = parse_json(facts.get("methods", "{}"), name, finite=True)
        made = read(dict[str, dict[str, Any]], stored, name, ArtifactError)
        for tensor, told in header.items():
            if tensor.partition("/")[0] not in made or "/" not in tensor:
                raise ArtifactError(
                    f"{place(path)} holds {shown(tensor)}, which is of no method that it names; allowed: names that "
                    f"begin with {', '.join(f'{method}/' for method in made) or 'nothing'}; save the weights anew"
                )
            check_kind(path, tensor, told.dtype)
        return made

    def named_weights(self) -> dict[str, nn.Parameter]:
        """Name in the file -> parameter."""
        return {name.removeprefix("layers."): value for name, value in self.named_parameters()}

    def load(self, path: str | Path, method: str | None = None, fixed: Sequence[str] = ()) -> None:
        """Read weights from a file made by :meth:`save`, of one method or of all of them.

        Args:
            fixed: settings of ``method`` that must be those of training, although the sizes do not tell.

        Raises:
            ArtifactError: a missing, truncated or foreign file, one with NaN or infinite numbers, or one made for
            other layers, sizes or settings. Nothing is changed then.
        """
        from safetensors.torch import load_file

        path = Path(path)
        made = self.settings_of(path)
        told = self._differences(made, method)
        for name in fixed:
            here, there = self.made_with[method or ""][name], made.get(method or "", {}).get(name)
            if here != there:
                raise ArtifactError(
                    f"{path} does not fit this patch: {method}.{name} was {there} in training, here it is {here}; use "
                    "the settings it was trained with"
                )
        begin = "" if method is None else f"{method}/"
        held = load_file(path)
        for name, value in held.items():
            check_finite(path, name, value)
        stored = {name: value for name, value in held.items() if name.startswith(begin)}
        wanted = {name: value for name, value in self.named_weights().items() if name.startswith(begin)}
        remedy = f"Patch the same model with the same method, settings and layers as in training{told}"
        check_fit(str(path), _shapes(stored), _shapes(wanted), remedy)
        with torch.no_grad():
            for name, parameter in wanted.items():
                parameter.copy_(stored[name])

    def _differences(self, told: Mapping[str, Mapping[str, Any]], method: str | None) -> str:
        """How the settings that a file tells differ from the patch's, as words for an error; "" when they do not."""
        found = []
        for name in (method,) if method else self.made_with:
            here, there = self.made_with.get(name, {}), told.get(name, {})
            found += [
                f"{name}.{key} was {there[key]}, here it is {json.loads(json.dumps(value))}"
                for key, value in here.items()
                if key in there and there[key] != json.loads(json.dumps(value))
            ]
        return f" (in training {'; '.join(found)})" if found else ""


def _check_facts(path: Path, facts: Mapping[str, str]) -> None:
    """ArtifactError unless what a weights file tells about itself is that of one which this genkit reads."""
    if facts.get("format") != FORMAT:
        raise ArtifactError(
            f"{place(path)} holds no weights of genkit attention methods, allowed: a file of `genkit train weights` or "
            "patch.weights.save(); LoRA files are loaded by --lora, or the pipeline's load_lora_weights"
        )
    if facts.get("version") != VERSION:
        raise ArtifactError(f"{path} has format version {facts.get('version')!r}, this genkit reads {VERSION!r}")


def check_kind(path: str | Path, name: str, kind: str) -> None:
    """ArtifactError unless a tensor of a weights file holds floating-point numbers: others would be cut off.

    Args:
        kind: its type as the file's header names it.
    """
    if kind not in KINDS:
        raise ArtifactError(f"{place(path)}: {shown(name)} is {shown(kind)}, allowed: {', '.join(KINDS)}")


def check_finite(path: str | Path, name: str, value: torch.Tensor) -> None:
    """ArtifactError for a tensor of a weights file with NaN or infinite numbers."""
    value = value if value.dtype.itemsize > 1 else value.float()  # 8 bits have no isfinite
    if not bool(value.isfinite().all()):
        raise ArtifactError(
            f"{place(path)}: {shown(name)} holds NaN or infinite weights, allowed: finite numbers; it was trained "
            "until it broke, or is damaged"
        )


def like(module: nn.Module) -> dict[str, Any]:
    """Device and dtype for new weights beside a module: its device, float32, or float64 for a float64 model."""
    parameter = next(iter(module.parameters()))
    wide = torch.float64 if parameter.dtype == torch.float64 else torch.float32
    return {"device": parameter.device, "dtype": wide}


def draw(shape: tuple[int, ...], std: float, seed: int, device: torch.device, dtype: torch.dtype) -> nn.Parameter:
    """A normal parameter from its own generator: making a patch never moves the global random numbers."""
    generator = torch.Generator().manual_seed(seed)
    return nn.Parameter((torch.randn(shape, generator=generator, dtype=torch.float64) * std).to(device, dtype))


def _key(method: str, site: str) -> str:
    return f"{method}/{site.replace('.', '/')}"


def _plain(value: torch.Tensor) -> torch.Tensor:
    return value.detach().to("cpu").contiguous().clone()


def _shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tensors.items()}


def check_fit(
    file: str, stored: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], remedy: str
) -> None:
    """ArtifactError unless a weights file has the names and shapes that a patch has a place for.

    Args:
        file: for messages. remedy: what to do about it, one sentence without its full stop.
    """
    missing, foreign = sorted(set(wanted) - set(stored)), sorted(set(stored) - set(wanted))
    if missing or foreign:
        parts = [f"lacks {missing[0]} and {len(missing) - 1} more"] if missing else []
        parts += [f"has {foreign[0]} and {len(foreign) - 1} more that this patch has no place for"] if foreign else []
        raise ArtifactError(f"{file} does not fit this patch: it {'; it '.join(parts)}. {remedy}")
    for name, shape in wanted.items():
        if stored[name] != shape:
            raise ArtifactError(
                f"{file} does not fit this patch: {name} is {stored[name]} in the file, {shape} here. {remedy}"
            )
