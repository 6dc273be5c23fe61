"""What a stream remembers of frames that left its window: sums of constant size, and the trained layer that reads them.

For every layer and head, over all ``n`` absorbed tokens:

``km = mean relu(k)``, ``kv = mean rope(k) v^T``, ``y = (rope(q) kv) / (relu(q) . km + eps)``, and the layer's output
gets ``y W + b``, with W (D, D) and b shared by the heads of a layer. W and b are zero at the start: nothing changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from genkit.attention.weights import PatchWeights
from genkit.errors import ArtifactError, UnsupportedError
from genkit.patching.targets import find_denoisers
from genkit.reading.files import place
from genkit.streaming.cache import Rotary, rotate

#: Added to the denominator, and the least share of a head's mean denominator that one is taken as.
EPS, LEAST = 1e-6, 1e-3
#: Under which name the weights stand in a file.
_METHOD = "stream"


@dataclass
class _Sums:
    """Of one layer: ``km`` (B, H, D) and ``kv`` (B, H, D, D), means over ``count`` tokens."""

    km: torch.Tensor
    kv: torch.Tensor
    count: int


@dataclass
class Memory:
    """The sums of all layers for one row of prompts (a branch), in float32. Its size does not depend on how much was
    absorbed."""

    layers: dict[str, _Sums] = field(default_factory=dict)

    @torch.no_grad()
    def absorb(self, name: str, k: torch.Tensor, v: torch.Tensor, rotary: Rotary) -> None:
        """Take in the tokens of a layer, (B, N, H, D) each, keys before rotation."""
        sums, new = self.layers.get(name), k.shape[1]
        exact = torch.promote_types(k.dtype, torch.float32)
        k, v = k.to(exact), v.to(exact)
        km, kv = k.relu().sum(1), torch.einsum("bnhd,bnhe->bhde", rotate(k, rotary), v)
        if sums is not None:
            km, kv, new = km + sums.count * sums.km, kv + sums.count * sums.kv, new + sums.count
        self.layers[name] = _Sums(km / new, kv / new, new)

    def read(self, name: str, q: torch.Tensor, turned: torch.Tensor) -> torch.Tensor | None:
        """``y`` (B, N, H, D) of a layer's queries, before and after rotation; None while nothing was absorbed."""
        sums = self.layers.get(name)
        return None if sums is None else linear(q.to(sums.km), turned.to(sums.km), sums.km, sums.kv)

    @property
    def bytes(self) -> int:
        """Memory of all sums."""
        parts = [part for sums in self.layers.values() for part in (sums.km, sums.kv)]
        return sum(part.numel() * part.element_size() for part in parts)


def linear(q: torch.Tensor, turned: torch.Tensor, km: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
    """``(turned kv) / (relu(q) . km + eps)`` for (B, N, H, D) queries, (B, H, D) and (B, H, D, D) sums.

    Where all of a query is negative the denominator is eps alone: it is at least a thousandth of its mean over the
    head's queries.
    """
    below = torch.einsum("bnhd,bhd->bnh", q.relu(), km) + EPS
    below = torch.maximum(below, LEAST * below.abs().mean(1, keepdim=True))
    return torch.einsum("bnhd,bhde->bnhe", turned, kv) / below.unsqueeze(-1)


class _Reader(nn.Module):
    """W and b of a layer."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim, dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        return y @ self.weight.to(y) + self.bias.to(y)


class TemporalState(nn.Module):
    """The trained weights of a stream's state, a layer each.

    Args:
        layers: path of the self-attention -> size of its heads.

    Source: Hybrid Forcing, arXiv 2604.10103.
    """

    def __init__(self, layers: Mapping[str, int]):
        super().__init__()
        self.weights = PatchWeights()
        for path, dim in layers.items():
            self.weights.put(_METHOD, path, _Reader(dim), {})

    @classmethod
    def of(cls, model: Any, file: str | Path | None = None) -> TemporalState:
        """That of a denoiser: zero, or read from a file.

        Raises:
            UnsupportedError: a model that does not tell the size of its heads.
            ArtifactError: a file that is not there, is damaged or is of another model.
        """
        (denoiser,) = find_denoisers(model)
        size = model.config.get("attention_head_dim")
        paths = [site.path for site in denoiser.sites if site.role == "self"]
        if not isinstance(size, int) or not paths:
            raise UnsupportedError(
                f"{type(model).__name__}: a stream's state needs self-attention of heads of one size"
            )
        found = cls(dict.fromkeys(paths, size))
        if file is not None:
            check_state(file)
            found.weights.load(file, _METHOD)
        return found.to(next(model.parameters()).device)

    def read(self, memory: Memory, name: str, q: torch.Tensor, turned: torch.Tensor) -> torch.Tensor | None:
        """What a layer's output gets, (B, N, H, D); None while nothing was absorbed."""
        y = memory.read(name, q, turned)
        return None if y is None else self.weights.at(_METHOD, name)(y)

    def save(self, path: str | Path) -> Path:
        """Write the weights into a safetensors file."""
        return self.weights.save(path)


def check_state(path: str | Path) -> None:
    """ArtifactError unless a file holds the weights of a stream's state, as far as its header tells."""
    if _METHOD not in PatchWeights.settings_of(path):
        raise ArtifactError(
            f"{place(path)} holds weights of attention methods, none of a stream's state; allowed: the "
            "state.safetensors of genkit train distill --stream-args state=new"
        )
