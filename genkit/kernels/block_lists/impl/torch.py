"""Lists in plain torch, by sorting: runs everywhere, waits for nothing; what the Triton form is tested against."""

from __future__ import annotations

import torch
from torch import Tensor

PRIORITY = 90  # in the search of "auto", see genkit.kernels.discovery

_MASS_BITS = 29  # the largest mass of a row has this many bits or one more


def why_not(table: Tensor) -> str | None:
    """Plain torch runs everywhere."""
    return None


def select(
    scores: Tensor, first: Tensor, last: Tensor, columns: Tensor | None, mass: float, floor: int, cap: int, width: int
) -> tuple[Tensor, Tensor]:
    """Counts and lists of the chosen columns; arguments as in the operator."""
    scores = scores.float()
    scores = torch.where(scores.isnan(), torch.inf, scores)
    place = torch.arange(scores.shape[-1], device=scores.device)
    forced = (place >= first[:, None]) & (place < last[:, None])
    forced = (forced if columns is None else forced | columns).expand(scores.shape)
    allowed = forced | (scores != -torch.inf)
    by_score = scores.sort(dim=-1, descending=True, stable=True).indices
    by_force = forced.gather(-1, by_score).sort(dim=-1, descending=True, stable=True).indices
    order = by_score.gather(-1, by_force)
    rank = torch.empty_like(order).scatter_(-1, order, place.expand_as(order))
    mine = forced.sum(-1, keepdim=True)
    wanted = mine if mass < 0 else mine + _wanted(scores, forced, allowed, order, mass)
    budget = torch.maximum(wanted.clamp(min=floor, max=cap), mine)
    return list_mask((rank < budget) & allowed, width)


def _wanted(scores: Tensor, forced: Tensor, allowed: Tensor, order: Tensor, mass: float) -> Tensor:
    """How many blocks that are not forced a row needs to reach its mass."""
    weight = whole_masses(scores, allowed)
    held = (weight * forced).sum(-1, keepdim=True)
    need = (weight.sum(-1, keepdim=True).double() * mass).ceil().long()
    ranked = torch.where(forced, 0, weight).gather(-1, order)
    before = held + ranked.cumsum(-1) - ranked
    return ((before < need) & (ranked > 0)).sum(-1, keepdim=True)


def whole_masses(scores: Tensor, allowed: Tensor) -> Tensor:
    """Masses as whole numbers, int64, which add up to the same in any order. Scaled by a power of two, exactly."""
    scores = torch.where(allowed, scores, 0).clamp(min=0)
    top = scores.amax(-1, keepdim=True)
    exponent = (top.view(torch.int32) >> 23).clamp(min=_MASS_BITS)
    factor = ((2 * 127 + _MASS_BITS - exponent) << 23).view(torch.float32)
    scaled = torch.where(scores < torch.inf, scores * factor, 0).long()
    # where masses are infinite, only these count
    return torch.where(top < torch.inf, scaled, (scores == torch.inf).long())


def list_mask(mask: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Counts and lists of the True columns."""
    rank = mask.cumsum(-1, dtype=torch.int32) - 1
    # what does not belong goes to an extra column, dropped below
    target = torch.where(mask & (rank < width), rank, width).long()
    place = torch.arange(mask.shape[-1], dtype=torch.int32, device=mask.device)
    index = torch.zeros(*mask.shape[:-1], width + 1, dtype=torch.int32, device=mask.device)
    index.scatter_(-1, target, place.expand(mask.shape))
    return mask.sum(-1, dtype=torch.int32).clamp(max=width), index[..., :width].contiguous()


def invert(
    counts: list[Tensor], indices: list[Tensor], columns: int, placed: bool
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Starts, entries and places, by a stable sort of all entries by their column."""
    device = indices[0].device
    used = [torch.arange(x.shape[-1], device=device) < n[..., None] for n, x in zip(counts, indices, strict=True)]
    column = torch.cat([torch.where(u, x, columns) for u, x in zip(used, indices, strict=True)], -1)
    batch, heads, rows, width = column.shape
    column = column.flatten(2).long()
    order = column.sort(dim=-1, stable=True).indices
    total = torch.zeros(batch, heads, columns + 1, dtype=torch.int32, device=device)
    total.scatter_add_(-1, column, torch.ones_like(column, dtype=torch.int32))
    start = torch.nn.functional.pad(total[..., :-1].cumsum(-1, dtype=torch.int32), (1, 0))
    at = torch.arange(rows * width, device=device)
    entry = torch.where(at < start[..., -1:], order // width, 0).to(torch.int32)
    if not placed:
        return start, entry, start.new_empty(0)
    place = torch.empty_like(entry).scatter_(-1, order, at.to(torch.int32).expand_as(order))
    place = torch.where(column < columns, place, 0)
    return start, entry, place.view(batch, heads, rows, width)
