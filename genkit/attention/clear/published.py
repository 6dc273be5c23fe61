"""The published files of CLEAR: whole projections of every attention layer, and pooling numbers.

Their names are those of the model's state dict: ``transformer_blocks.0.attn.to_q.weight``, ``...to_out.0.bias``,
``single_transformer_blocks.3.attn.processor.spatial_weight`` (1, 1, 1, p, 1, p, 1).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from genkit.attention.site import Place, base_layer
from genkit.attention.weights import FORMAT, check_finite, check_fit, check_kind
from genkit.errors import ArtifactError, UnsupportedError
from genkit.models.check import check_safetensors
from genkit.reading.files import place as shown

_PARTS = ("to_q", "to_k", "to_v", "to_out.0")
_POOL = "processor.spatial_weight"


def is_published(path: Path) -> bool:
    """Whether a file is none of genkit's own weights; ArtifactError for damage."""
    return (check_safetensors(path).get("__metadata__") or {}).get("format") != FORMAT


class Published:
    """A published file on the layers of a model; :meth:`remove` puts the model's own weights back, bit for bit.

    Args:
        path: the file.
    """

    def __init__(self, path: Path):
        self.path = path
        self._places: dict[str, Place] = {}
        self._before: list[tuple[nn.Module, str, nn.Parameter]] = []

    def add(self, place: Place) -> None:
        """A layer that the file is for."""
        self._places[place.name] = place

    def load(self, down: int, pool_of: Callable[[str], Any]) -> None:
        """Put the projections and, with ``down`` > 1, the pooling numbers in.

        Args:
            down: side of the pooled cells the patch asks for.
            pool_of: name of a layer -> its :class:`~genkit.attention.clear.weights.PoolWeights`.

        Raises:
            ArtifactError: names or shapes that do not fit the patch, or tensors that hold no finite numbers. Nothing
            is changed then.
            UnsupportedError: projections that hold no plain weights (quantised, or not on a device).
        """
        from safetensors import safe_open

        with safe_open(self.path, "pt") as file:
            names = set(file.keys())
            for name in sorted(names):
                check_kind(self.path, name, file.get_slice(name).get_dtype())
            self._compare(file, names, down)
            for name in sorted(names):
                check_finite(self.path, name, file.get_tensor(name))
            for site in self._places:
                for layer, name, key in self._parameters(site):
                    own = getattr(layer, name)
                    value = file.get_tensor(key).to(own.device, own.dtype)
                    self._before.append((layer, name, own))
                    setattr(layer, name, nn.Parameter(value, requires_grad=own.requires_grad))
                if down > 1:
                    weight = pool_of(site).spatial_weight
                    with torch.no_grad():
                        weight.copy_(file.get_tensor(f"{site}.{_POOL}").reshape(down, down))

    def _parameters(self, site: str) -> list[tuple[nn.Module, str, str]]:
        """(layer, name of its parameter, name in the file) of every projection of an attention module."""
        found = []
        for part in _PARTS:
            layer = _child(self._places[site].module, part)
            for name in ("weight", "bias"):
                if layer is not None and getattr(layer, name, None) is not None:
                    found.append((layer, name, f"{site}.{part}.{name}"))
        return found

    def _compare(self, file: Any, names: set[str], down: int) -> None:
        wanted: dict[str, tuple[int, ...]] = {}
        for site in self._places:
            for layer, name, key in self._parameters(site):
                own = getattr(layer, name)
                if not own.is_floating_point() or own.device.type == "meta":
                    raise UnsupportedError(
                        f"clear.weights: {key} of the model is {own.dtype} on {own.device}; whole projections take the "
                        f"place of plain weights only: load the model without quantization and offloading"
                    )
                wanted[key] = tuple(own.shape)
            if down > 1:
                wanted[f"{site}.{_POOL}"] = (1, 1, 1, down, 1, down, 1)
        pools = {name for name in names if name.endswith(_POOL)}
        if pools and down == 1:
            side = file.get_slice(sorted(pools)[0]).get_shape()[3]
            raise ArtifactError(f"{shown(self.path)} was trained with pooled keys; give clear.down={side}")
        check_fit(
            str(shown(self.path)),
            {name: tuple(file.get_slice(name).get_shape()) for name in names},
            wanted,
            "The method must be on all attention layers of the model the file was made for, with the same down",
        )

    def remove(self) -> None:
        """Put the model's own weights back."""
        for layer, name, own in reversed(self._before):
            setattr(layer, name, own)
        self._before.clear()


def _child(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name, None) if not name.isdigit() else _item(module, int(name))
    return None if module is None else base_layer(module)


def _item(module: Any, number: int) -> Any:
    return module[number] if module is not None and len(module) > number else None
