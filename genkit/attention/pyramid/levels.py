"""How coarsely every block of keys is read: 1 = token by token, p = means of p tokens, 0 = not at all."""

from __future__ import annotations

import torch

#: Tokens that a mean stands for, level by level.
FACTORS = (1, 2, 4, 8)
#: Share of a row that is read token by token in any case, as in the published code.
LEAST = 0.06
_TOUCH = 1e-6


@torch.no_grad()
def levels_by_threshold(scores: torch.Tensor, thresholds: tuple[float, ...], crossing: bool = True) -> torch.Tensor:
    """Levels by running mass: blocks in descending order take level h until their masses add up to its threshold.

    Args:
        scores: (..., M) non-negative importances of a row.
        thresholds: of the levels, ascending shares of the row's mass.
        crossing: the block that crosses a threshold belongs to the finer level, and at least 6 % of a row, and one
            block, are read token by token (the published code); else the paper's formula, where a block's own mass
            counts against it and a row may be empty.

    Returns:
        (..., M) int32 with the factors of :data:`FACTORS`, or 0.
    """
    shares = scores.double() / scores.double().sum(-1, keepdim=True).clamp(min=1e-300)
    ranked, order = shares.sort(dim=-1, descending=True, stable=True)
    running = ranked.cumsum(-1)
    place = torch.arange(scores.shape[-1], device=scores.device)
    levels = torch.zeros_like(order, dtype=torch.int32)
    for number in range(len(thresholds) - 1, -1, -1):
        if crossing:
            end = (running <= thresholds[number] + _TOUCH).sum(-1, keepdim=True) + 1
            if number == 0:
                end = end.clamp(min=int(LEAST * scores.shape[-1]) + 1)
            inside = place < end
        else:
            inside = running <= thresholds[number]
        levels = torch.where(inside, FACTORS[number], levels)
    return torch.zeros_like(levels).scatter_(-1, order, levels)


@torch.no_grad()
def levels_by_share(scores: torch.Tensor, shares: tuple[float, ...]) -> torch.Tensor:
    """Levels by rank: the best blocks of a row up to each share of its blocks; at least one is read token by token.

    Args:
        scores: (..., M).
        shares: of the row's blocks that each level takes, adding up to at most 1.
    """
    count = scores.shape[-1]
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    ranked = torch.zeros(count, dtype=torch.int32, device=scores.device)
    total, begin = 0.0, 0
    for number, share in enumerate(shares):
        total += share
        end = max(int(count * total + _TOUCH), 1 if number == 0 else begin)
        ranked[begin:end] = FACTORS[number]
        begin = max(begin, end)
    return torch.zeros_like(order, dtype=torch.int32).scatter_(-1, order, ranked.expand_as(order))


@torch.no_grad()
def similarity_cap(k: torch.Tensor, block: int, thresholds: tuple[float, ...]) -> torch.Tensor:
    """The largest factor that every key block bears: its tokens are alike over that reach.

    Args:
        k: (B, N, H, D). block: tokens per block.
        thresholds: least mean cosine of tokens 1, 3 and 7 apart (the ends of a pair, of four, of eight) for factors 2,
            4 and 8. Any factor that passes counts, whatever smaller ones do.

    Returns:
        (B, H, M) int32.
    """
    batch, count, heads, width = k.shape
    blocks = -(-count // block)
    unit = torch.nn.functional.normalize(k.float(), dim=-1)
    padded = torch.cat([unit, unit[:, -1:].expand(-1, blocks * block - count, -1, -1)], 1)
    cap = torch.ones(batch, heads, blocks, dtype=torch.int32, device=k.device)
    for factor, least in zip(FACTORS[1:], thresholds, strict=True):
        ends = padded.reshape(batch, blocks, block // factor, factor, heads, width)
        alike = (ends[:, :, :, 0] * ends[:, :, :, -1]).sum(-1).mean(2).transpose(1, 2)
        cap = torch.where(alike > least, factor, cap)
    return cap
