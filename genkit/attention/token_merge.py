"""Bipartite merging of similar tokens (arXiv 2303.17604): who joins whom, the merged tokens, and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class Merge:
    """Which source tokens go into which destination tokens.

    Args:
        sources: (B, M) int64 source tokens, most similar first. destinations: (n,) int64 destination tokens.
        target: (B, M) int64, place of each source's destination.
        count: how many sources are merged.
    """

    sources: torch.Tensor
    destinations: torch.Tensor
    target: torch.Tensor
    count: int

    @property
    def length(self) -> int:
        """Tokens after merging."""
        return self.sources.shape[1] - self.count + self.destinations.shape[0]

    def with_count(self, count: int) -> Merge:
        """The same lists with another number of merged sources, at most all of them."""
        return Merge(self.sources, self.destinations, self.target, min(count, self.sources.shape[1]))

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, N, H, D) -> (B, length, H, D): unmerged sources, then means over destinations and what joined them."""
        batch = torch.arange(x.shape[0], device=x.device)[:, None]
        moved = x[batch, self.sources[:, : self.count]]
        wide = x[:, self.destinations].to(torch.promote_types(x.dtype, torch.float32))
        target = self.target[:, : self.count]
        index = (batch * wide.shape[1] + target).flatten()
        total = wide.flatten(0, 1).index_add(0, index, moved.to(wide.dtype).flatten(0, 1))
        ones = torch.ones(total.shape[0], dtype=wide.dtype, device=x.device)
        counts = ones.index_add(0, index, ones.new_ones(len(index)))
        means = (total / counts[:, None, None]).view_as(wide).to(x.dtype)
        return torch.cat([x[batch, self.sources[:, self.count :]], means], 1)

    def undo(self, y: torch.Tensor, tokens: int) -> torch.Tensor:
        """y (B, length, H, D) -> (B, tokens, H, D): every merged source gets its destination's row."""
        batch = torch.arange(y.shape[0], device=y.device)[:, None]
        kept = self.sources.shape[1] - self.count
        out = y.new_empty(y.shape[0], tokens, *y.shape[2:])
        merged = y[:, kept:]
        out = out.index_copy(1, self.destinations, merged)
        place = batch * tokens + self.sources
        rows = torch.cat([merged[batch, self.target[:, : self.count]], y[:, :kept]], 1)
        return out.flatten(0, 1).index_copy(0, place.flatten(), rows.flatten(0, 1)).view_as(out)


def destinations(grid: tuple[int, int], cell: tuple[int, int], seed: int | None) -> torch.Tensor:
    """One token per whole cell of the grid (h, w): at random by ``seed``, or the first of the cell. (n,) int64."""
    h, w = grid
    rows, columns = h // cell[0], w // cell[1]
    if seed is None:
        inside = torch.zeros(rows, columns, dtype=torch.int64)
    else:
        draw = torch.Generator().manual_seed(seed)
        inside = torch.randint(cell[0] * cell[1], (rows, columns), generator=draw)
    y = torch.arange(rows)[:, None] * cell[0] + inside // cell[1]
    x = torch.arange(columns)[None] * cell[1] + inside % cell[1]
    return (y * w + x).flatten().sort().values


@torch.no_grad()
def match(features: torch.Tensor, chosen: torch.Tensor, count: int) -> Merge:
    """Merge lists by cosine similarity of features (B, N, C); ``chosen`` (n,) are the destinations."""
    tokens = features.shape[1]
    is_source = torch.ones(tokens, dtype=torch.bool, device=features.device)
    is_source[chosen] = False
    sources = is_source.nonzero().flatten()
    unit = torch.nn.functional.normalize(features.float(), dim=-1)
    best, target = (unit[:, sources] @ unit[:, chosen].transpose(1, 2)).max(-1)
    order = best.argsort(dim=-1, descending=True, stable=True)
    return Merge(sources[order], chosen, target.gather(1, order), min(count, len(sources)))
