"""The routers of a layer: which heads a token uses, with which weights, and the loss that keeps heads in use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from genkit.attention.site import Place, base_layer
from genkit.attention.weights import like
from genkit.errors import UnsupportedError


@dataclass(frozen=True)
class Routed:
    """What a router decided.

    Args:
        weights: (..., E), those of dropped heads are 0; a row sums to the number kept.
        gates: (..., E) softmax over all heads. chosen: (..., E) bool.
    """

    weights: torch.Tensor
    gates: torch.Tensor
    chosen: torch.Tensor

    def balance(self) -> torch.Tensor:
        """``E^2 mean_e(mean gate_e * mean chosen_e)``: least, the number kept, when all heads are used alike. Its
        gradient goes through the gates."""
        heads = self.gates.shape[-1]
        gate, chosen = (x.flatten(0, -2).mean(0) for x in (self.gates, self.chosen.to(self.gates.dtype)))
        return heads**2 * (gate * chosen).mean()


def route(logits: torch.Tensor, keep: int, block: torch.Tensor | None = None) -> Routed:
    """The ``keep`` heads with the largest gates, renormalised to sum to ``keep``; of equal ones the lower.

    Args:
        logits: (B, N, E). keep: from 1 to E.
        block: (N,) int64: tokens of a block choose together, by the mean of their gates; None = every token alone.
    """
    gates = logits.softmax(-1)
    ranked = gates.detach()
    if block is not None:
        count = int(block.max()) + 1
        sizes = torch.bincount(block, minlength=count).to(gates.dtype)[:, None]
        means = ranked.new_zeros(len(ranked), count, ranked.shape[-1]).index_add_(1, block, ranked) / sizes
        ranked = means[:, block]
    best = ranked.sort(dim=-1, descending=True, stable=True).indices[..., :keep]
    chosen = torch.zeros_like(gates, dtype=torch.bool).scatter(-1, best, True)
    kept = gates * chosen
    return Routed(keep * kept / kept.sum(-1, keepdim=True), gates, chosen)


class Routers(nn.Module):
    """Trainable routers of a layer; zero at first, where every kept head has the weight 1.

    ``routed`` (E, C), ``shared`` (S, C), ``both`` (2, C): linear maps of a token's values, C channels of all heads;
    ``both`` weighs the two kinds, where there are both.
    """

    def __init__(self, place: Place, shared: int):
        super().__init__()
        source = base_layer(place.projections.v)
        if source is None or not hasattr(source, "out_features"):
            raise UnsupportedError(
                f"layer {place.name}: mixture_of_heads reads its sizes from the projection "
                f"{place.projections.names[2]}, which {type(place.module).__name__} lacks"
            )
        for name, rows in (
            ("routed", place.heads - shared),
            ("shared", shared),
            ("both", 2 if 0 < shared < place.heads else 0),
        ):
            if rows:
                setattr(self, name, nn.Parameter(torch.zeros(rows, source.out_features, **like(source))))

    def forward(
        self, v: torch.Tensor, keep: int, block: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, Routed | None]:
        """Weights and choice of all heads for tokens with the values v (B, N, Hk, D): (B, N, H), bool (B, N, H), and
        the decision about the routed ones; None where all heads are shared. Shared heads come first."""
        x = v.flatten(2)
        parts: list[torch.Tensor] = []
        chosen: list[torch.Tensor] = []
        decision = None
        have: Any = self._parameters
        both = 2 * self._logits(x, "both").softmax(-1) if "both" in have else x.new_ones(2)
        if "shared" in have:
            gates = self._logits(x, "shared").softmax(-1)
            parts.append(both[..., :1] * gates * gates.shape[-1])
            chosen.append(torch.ones_like(gates, dtype=torch.bool))
        if "routed" in have:
            decision = route(self._logits(x, "routed"), keep, block)
            parts.append(both[..., 1:] * decision.weights)
            chosen.append(decision.chosen)
        return torch.cat(parts, -1), torch.cat(chosen, -1), decision

    def _logits(self, x: torch.Tensor, name: str) -> torch.Tensor:
        table: torch.Tensor = getattr(self, name)
        wide = torch.promote_types(x.dtype, table.dtype)
        return x.to(wide) @ table.to(x.device, wide).T
