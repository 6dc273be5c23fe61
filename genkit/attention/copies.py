"""A grid that stands several times in a sequence (:attr:`TokenLayout.copies`): one pattern for all pairs of its copies.

Token i of the sequence is at place g(i) of the grid, whichever copy it belongs to. What a method says of two places
then holds for all their tokens: i sees j where g(i) sees g(j), so that the share of visible pairs is the pattern's own.
The decoder of Motif-Video is such a sequence: the video as it came, and as encoded so far.

A static plan is made for one grid and repeated (:func:`repeated`): blocks, lists and rule, executed by the operator in
one call. A choice by queries and keys is made for every pair of copies apart, in one batch; see
:func:`genkit.attention.dynamic.attend_grid`.
"""

from __future__ import annotations

import dataclasses

import torch

from genkit.attention.cache import PatchCache
from genkit.attention.method import Method
from genkit.attention.site import Site
from genkit.errors import UnsupportedError
from genkit.kernels.permutation import TokenOrder
from genkit.kernels.plan.block_plan import BlockPlan
from genkit.kernels.plan.mask_spec import ABSENT, Rule
from genkit.layout import GRID, TokenLayout


def site_for(method: Method, site: Site) -> Site:
    """The site as a method gets it: to one without :attr:`Method.every_grid` copies are segments like any other."""
    if method.every_grid or not (site.layout.copies or site.key_layout.copies):
        return site
    return dataclasses.replace(site, layout=site.layout.without_copies(), key_layout=site.key_layout.without_copies())


def places(layout: TokenLayout) -> torch.Tensor:
    """(N,) int64: the token of ``layout.once()`` that every token of the sequence is, or is a copy of."""
    once = layout.once()
    found = []
    for part in layout.segments:
        start, stop = once.span(GRID if part.name in layout.copies else part.name) or (0, 0)
        found.append(torch.arange(start, stop))
    return torch.cat(found)


def instances(layout: TokenLayout) -> torch.Tensor:
    """(C, N1) int64: where the N1 tokens of ``layout.once()`` are in the sequence, with each of its C grids."""
    once = layout.once()
    where = torch.cat([torch.arange(*(layout.span(part.name) or (0, 0))) for part in once.segments])
    start, stop = once.grid_span
    found = where.repeat(len(layout.grid_spans), 1)
    for row, span in zip(found, layout.grid_spans, strict=True):
        row[start:stop] = torch.arange(*span)
    return found


def visible(method: Method, layout: TokenLayout) -> torch.Tensor:
    """The visible pairs of a sequence, bool (N, N), from the definition: :meth:`Method.mask` of the places. O(N^2)
    memory: for pictures and tests."""
    if not (layout.copies and method.every_grid):
        return method.mask(layout.without_copies())
    single = places(layout)
    return method.mask(layout.once())[single][:, single]


# ---- plans that the layout alone decides -----------------------------------------------------------------------------


def repeated(base: BlockPlan, layout: TokenLayout, key_mask: torch.Tensor | None = None) -> BlockPlan:
    """The plan of a sequence with copies from that of ``layout.once()`` without hidden keys.

    Args:
        key_mask: bool (B, N), True = attend, of the whole sequence.

    Cost: one state for every pair of blocks of the whole sequence; no token pairs.
    """
    if base.pooled or base.tiles is not None or {base.n_q, base.n_k} != {layout.once().length}:
        raise UnsupportedError("a plan with means or further keys, or masks without a closed form, cannot be repeated")
    sizes = [(base.order, base.n_q, base.block_q), (base.key_order, base.n_k, base.block_k)]
    single, length = places(layout), layout.length
    (order, rows, slot_q), (key_order, columns, slot_k) = (_repeated(*side, layout, single) for side in sizes)
    seen = (base.states() != ABSENT)[:, :, rows][:, :, :, columns]
    rule = None if base.rule is None else base.rule.take(slot_q, slot_k)
    if key_mask is not None:
        rule = (Rule.everything(length, length) if rule is None else rule).hide_keys(key_mask.cpu())
    return BlockPlan.from_dense_blocks(seen, length, length, rule=rule, order=order, key_order=key_order)


def _repeated(
    order: TokenOrder | None, length: int, block: int, layout: TokenLayout, single: torch.Tensor
) -> tuple[TokenOrder, torch.Tensor, torch.Tensor]:
    """The order of all tokens in blocks; of the single sequence, the block that each is like, and each token's slot."""
    if order is None:
        order = TokenOrder.from_permutation(torch.arange(length), block)
    start, stop = layout.once().grid_span
    slots = order.gather.view(-1, order.block)
    inside = (slots >= start) & (slots < stop)
    whole = inside.any(1)
    if bool((whole[:, None] & ~inside & (slots >= 0)).any()):
        raise UnsupportedError("a plan whose blocks hold tokens of the grid and others cannot be repeated")
    blocks, source = [], []
    for number, where in enumerate(instances(layout)):
        for at in range(len(slots)) if number == 0 else whole.nonzero()[:, 0].tolist():
            blocks.append(where[slots[at, : order.valid[at]]])
            source.append(at)
    return TokenOrder.from_blocks(blocks, order.block), torch.tensor(source), order.inverse[single]


def share_of_pairs(share: float, layout: TokenLayout) -> float:
    """The share of visible pairs of a sequence from that of ``layout.once()``; tokens outside the grids see all."""
    once, grid = layout.once(), layout.grid_length
    others = once.length - grid
    pairs = share * once.length**2 - 2 * grid * others - others**2
    count = len(layout.grid_spans)
    return (count**2 * pairs + 2 * count * grid * others + others**2) / layout.length**2


# ---- what was read ---------------------------------------------------------------------------------------------------


def read_rows(
    method: Method,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    site: Site,
    cache: PatchCache,
    queries: torch.Tensor,
) -> torch.Tensor:
    """:meth:`Method.read_rows` on any layout: with copies of the grid, asked for every pair of them."""
    layout = site.layout
    if not layout.copies:
        return method.read_rows(q, k, v, site, cache, queries)
    once = layout.once()
    single = dataclasses.replace(site, layout=once, key_layout=once, key_mask=None)
    of_token, where = (table.to(q.device) for table in (places(layout), instances(layout)))
    found = torch.ones(1, 1, len(queries), layout.length, dtype=torch.bool, device=q.device)
    for asking, rows in zip(layout.grid_spans, where, strict=True):
        mine = ((queries >= asking[0]) & (queries < asking[1])).nonzero()[:, 0]
        if not len(mine):
            continue
        for (start, stop), columns in zip(layout.grid_spans, where, strict=True):
            read = method.read_rows(q[:, rows], k[:, columns], v[:, columns], single, cache, of_token[queries[mine]])
            if read.shape[:2] != found.shape[:2]:
                found = found.expand(read.shape[0], read.shape[1], -1, -1).clone()
            found[:, :, mine, start:stop] = read[..., slice(*once.grid_span)]
    return found
