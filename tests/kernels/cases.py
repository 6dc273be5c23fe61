"""Seeded random problems: odd lengths, ragged tails, all head sizes, grouped queries, windows, discs, groups."""

from __future__ import annotations

import torch
from oracle import Case, spread, visible

from genkit.kernels import ALL, NONE, WINDOW, BlockPlan, Rule, TokenOrder

DIMS = (40, 64, 80, 96, 128)
DTYPES = (torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Dice:
    """Small integers and choices from one seed."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def between(self, low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def pick(self, options):
        return options[self.between(0, len(options) - 1)]

    def ints(self, low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high + 1, shape, generator=self.generator)

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator)

    def share(self, share: float, *shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=self.generator) < share


def tensors(dice: Dice, n_q: int, n_k: int) -> tuple[torch.Tensor, ...]:
    batch, key_heads, group = dice.between(1, 2), dice.between(1, 2), dice.pick((1, 1, 2, 3))
    width, dtype, size = dice.pick(DIMS), dice.pick(DTYPES), dice.pick((1.0, 4.0, 16.0))
    q = (dice.normal(batch, n_q, key_heads * group, width) * size).to(dtype)
    k, v = (dice.normal(batch, n_k, key_heads, width).to(dtype) for _ in range(2))
    if dice.share(0.3).item():  # what many models hand over: heads outside tokens
        q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    return q, k, v


def make(seed: int) -> Case:
    """The problem of a seed."""
    dice = Dice(seed)
    kind = (blocks, windows, grid)[seed % 3]
    case = kind(dice, seed)
    case.use_lse = bool(dice.share(0.4))
    return case


def blocks(dice: Dice, seed: int) -> Case:
    """Random blocks, static or per batch entry and head, some rows off."""
    n_q, n_k = dice.between(1, 90), dice.between(1, 110)
    block_q, block_k = dice.pick((7, 16, 32, 64)), dice.pick((5, 16, 32))
    q, k, v = tensors(dice, n_q, n_k)
    shape = (dice.pick((1, q.shape[0])), dice.pick((1, q.shape[2])), -(-n_q // block_q), -(-n_k // block_k))
    keep = dice.share(dice.pick((0.2, 0.5, 0.9, 1.0)), *shape)
    off = dice.share(0.1, *shape[:3])
    keep |= (torch.arange(shape[3]) == dice.between(0, shape[3] - 1)) & ~keep.any(-1, keepdim=True)
    mask = spread(keep & ~off[..., None], torch.arange(n_q), torch.arange(n_k), block_q, block_k)
    return Case(
        seed, q, k, v, mask, q.shape[-1] ** -0.5, keep=keep, off=off, sizes=dict(block_q=block_q, block_k=block_k)
    )


def windows(dice: Dice, seed: int) -> Case:
    """Arbitrary tables: windows on one to three axes, discs, groups, hidden keys, optional block restriction."""
    n_q, n_k, axes = dice.between(1, 70), dice.between(1, 90), dice.between(1, 3)
    span = dice.pick((3, 8, 20))
    q_pos, k_pos = dice.ints(0, span, n_q, axes), dice.ints(0, span, n_k, axes)
    if dice.share(0.6).item():  # neighbours in the sequence are neighbours in space, so that whole blocks occur
        q_pos, k_pos = q_pos.sort(0).values, k_pos.sort(0).values
    low = q_pos - dice.ints(0, span, n_q, axes)
    high = low + dice.ints(1, 2 * span, n_q, axes)
    groups = dice.between(1, 3)
    table = dice.ints(0, 2, groups, groups)
    table[:, 0] = dice.pick((ALL, WINDOW))
    if dice.share(0.3).item():
        table[-1] = NONE
    disc = span * span // 2 if dice.share(0.3).item() else None
    rule = Rule(
        low,
        high,
        k_pos,
        dice.ints(0, groups - 1, n_q),
        dice.ints(0, groups - 1, n_k),
        table,
        radius2=disc,
        q_pos=q_pos if disc is not None else None,
    )
    q, k, v = tensors(dice, n_q, n_k)
    if dice.share(0.3).item():
        rule = rule.hide_keys(dice.share(0.8, q.shape[0], n_k))
    sizes = dict(block_q=dice.pick((8, 16, 32)), block_k=dice.pick((4, 16, 32)))
    return Case(seed, q, k, v, visible(rule), dice.pick((0.1, q.shape[-1] ** -0.5)), rule=rule, sizes=sizes)


def grid(dice: Dice, seed: int) -> Case:
    """A grid with text before or after it, box windows with dilation and causal time, tokens in tiles."""
    shape = (dice.between(1, 3), dice.between(1, 6), dice.between(2, 7))
    text, first = dice.pick((0, 0, 3, 11)), dice.share(0.5).item()
    tokens = shape[0] * shape[1] * shape[2]
    place = torch.cartesian_prod(*(torch.arange(n) for n in shape)).view(tokens, 3)
    size = torch.tensor([dice.between(1, n) for n in shape])
    low = (place - size // 2).clamp(min=0)
    low = torch.minimum(low, torch.tensor(shape) - size)
    high = low + size
    if dice.share(0.3).item():  # causal in time: the window ends at the query's own frame
        low[:, 0], high[:, 0] = (place[:, 0] - size[0] + 1).clamp(min=0), place[:, 0] + 1
    blank = torch.zeros(text, 3, dtype=torch.long)
    parts = [[blank, table] if first else [table, blank] for table in (low, high, place)]
    low, high, place = (torch.cat(pair) for pair in parts)
    group = torch.zeros(tokens + text, dtype=torch.long)
    group[:text] = 1 if first else 0
    group[len(group) - text :] = group[len(group) - text :] if first or not text else 1
    rule = Rule(low, high, place, group, group, torch.tensor([[WINDOW, ALL], [ALL, ALL]]))
    segments = [("text", text), ("grid", tokens)] if first else [("grid", tokens), ("text", text)]
    order = key_order = None
    if dice.share(0.7).item():
        tile = tuple(dice.between(1, 3) for _ in range(3))
        order = TokenOrder.from_grid(shape, tile, segments, dilation=dice.pick((1, 1, (1, 2, 2))))
        key_order = order if dice.share(0.6).item() else TokenOrder.from_grid(shape, (1, 2, 3), segments)
    q, k, v = tensors(dice, tokens + text, tokens + text)
    sizes = dict(block_q=dice.pick((8, 32)), block_k=dice.pick((8, 16)), order=order, key_order=key_order)
    return Case(seed, q, k, v, visible(rule), q.shape[-1] ** -0.5, rule=rule, sizes=sizes)


def bit_tiles(case):
    """The plan of the same mask given as a function alone: what it hides inside blocks is kept as bits."""
    batch, heads = case.mask.shape[:2]

    def seen(b, h, i, j):
        return case.mask[b, h, i, j]

    sizes = (case.q.shape[1], case.k.shape[1])
    return BlockPlan.from_mask_mod(seen, *sizes, batch=batch, heads=heads, check=False, **case.sizes)
