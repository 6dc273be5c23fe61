"""Spreading a value per picture token along self-attention, from kept queries and keys, without a map."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch

from genkit.control.method import KeptPair
from genkit.errors import UsageError, explain


def propagate(
    pairs: Sequence[KeptPair], vector: torch.Tensor, rounds: int, keep: float, grid: tuple[int, ...] | None
) -> torch.Tensor:
    """``rounds`` times ``C <- keep C + (1 - keep) S C``; see :meth:`genkit.control.Control.propagate`."""
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 0:
        raise UsageError(explain("rounds", rounds, "a whole number >= 0"))
    if not 0 <= keep <= 1:
        raise UsageError(explain("keep", keep, "a share from 0 to 1"))
    chosen = _of_grid(pairs, grid)
    value, shape = _as_tokens(vector, chosen[0]), vector.shape
    for _ in range(rounds):
        spread = sum(_spread(pair, value) for pair in chosen) / len(chosen)
        value = keep * value + (1 - keep) * spread
    return value.reshape(shape)


def _of_grid(pairs: Sequence[KeptPair], grid: tuple[int, ...] | None) -> list[KeptPair]:
    grids = list(dict.fromkeys(pair.grid for pair in pairs))
    wanted = grids[0] if grid is None else (1, *grid) if len(grid) == 2 else grid
    if (grid is None and len(grids) > 1) or wanted not in grids:
        raise UsageError(explain("grid", grid, [str(each) for each in grids], "say which of the kept grids"))
    return [pair for pair in pairs if pair.grid == wanted]


def _as_tokens(vector: torch.Tensor, pair: KeptPair) -> torch.Tensor:
    """(rows, tokens, channels), wide, on the device of the pair."""
    rows, tokens = pair.q.shape[:2]
    if len(vector) != rows or vector[0].numel() % tokens:
        raise UsageError(
            f"propagate: a vector for {rows} rows of {'x'.join(map(str, pair.grid))} tokens is wanted, got "
            f"{tuple(vector.shape)}"
        )
    if vector.dim() >= 4 and tuple(vector.shape[1:4]) != pair.grid and prod(vector.shape[1:]) != tokens:
        raise UsageError(f"propagate: {tuple(vector.shape)} is not laid out as {pair.grid}")
    wide = torch.promote_types(vector.dtype, torch.float32)
    return vector.to(pair.q.device, wide).reshape(rows, tokens, -1)


def _spread(pair: KeptPair, value: torch.Tensor) -> torch.Tensor:
    """S C of one layer, mean over heads: attention with the value in place of V."""
    q, k = (x.to(value.dtype).transpose(1, 2) for x in (pair.q, pair.k))
    values = value[:, None].expand(-1, q.shape[1], -1, -1)
    return torch.nn.functional.scaled_dot_product_attention(q, k, values, scale=pair.scale).mean(1)
