"""Attention of rows whose queries do not all see the same keys: those that do run together, exactly, without masks.

Rules sort the queries of a row into few classes (inside a region, outside of it, ...). Within a class all queries see
the same keys with the same factors, so a class is one dense attention over the keys it sees. No N x N tensor is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log
from typing import Any

import torch

from genkit.attention.cache import PatchCache
from genkit.attention.keep import kept
from genkit.control.regions import Seen, as_tokens, asking_span, region_tokens, text_columns
from genkit.control.rules import Extra, Forbid, Reweight, ScaleKeys
from genkit.errors import UsageError
from genkit.kernels import BlockPlan, block_sparse_attention
from genkit.kernels.plan.bias import LowRank

_HIDDEN = -1e30  # added to the score of a hidden key; finite, so that no row of a block is -inf minus -inf
Part = tuple[torch.Tensor, torch.Tensor | None]


@dataclass
class QueryClass:
    """Queries of some rows that see the same keys.

    Args:
        queries: int64 places of the queries on their device, or None for all.
        keys: int64 places of the keys they see, or None for all.
        hidden: bool (keys,) on the CPU, True = not seen, or None.
        factor: (rows | 1, keys, 1, 1) of the scores, or None.
        bias: (rows | 1, keys) added to the scores, or None.
        extra: further (keys, values, bias): (rows, M, H, D) twice and a number.
    """

    queries: torch.Tensor | None = None
    keys: torch.Tensor | None = None
    hidden: torch.Tensor | None = None
    factor: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    extra: list[tuple[torch.Tensor, torch.Tensor, float]] = field(default_factory=list)

    def places(self, count: int, device: torch.device) -> torch.Tensor:
        """Places of the queries among ``count``."""
        return torch.arange(count, device=device) if self.queries is None else self.queries

    def scores(self, q: torch.Tensor, k: torch.Tensor, columns: torch.Tensor, scale: float) -> torch.Tensor:
        """Scores of this class's queries (rows, n, H, D) and some keys: (rows, H, n, columns), wide."""
        wide = torch.promote_types(q.dtype, torch.float32)
        found = scale * torch.einsum("bnhd,bmhd->bhnm", q.to(wide), k.index_select(1, columns).to(wide))
        if self.factor is not None:
            found = found * self.factor.index_select(1, columns).to(wide)[:, None, None, :, 0, 0]
        if self.bias is not None:
            found = found + self.bias.index_select(1, columns).to(wide)[:, None, None]
        if self.hidden is not None:
            found = found.masked_fill(self.hidden.to(columns.device).index_select(0, columns), float("-inf"))
        return found


def query_classes(
    rules: Sequence[Any], rows: Sequence[int], seen: Seen, key_mask: torch.Tensor | None
) -> list[QueryClass]:
    """The classes of the queries of some rows, which all have the same rules.

    Args:
        rules: rules that shape attention. rows: numbers of the rows in the batch. seen: the call.
        key_mask: bool (B, keys), True = attend; the model's own.
    """
    device = seen.q.device
    own = None
    if key_mask is not None:
        own = torch.where(key_mask[list(rows)], 0.0, _HIDDEN)
    if not rules:
        return [QueryClass(bias=own)]
    flags = [_asking(rule, seen) for rule in rules]
    codes = torch.stack([flag.long() << number for number, flag in enumerate(flags)]).sum(0)
    found = []
    for code in codes.unique().tolist():
        queries = (codes == code).nonzero().flatten()
        here = [rule for number, rule in enumerate(rules) if code >> number & 1]
        built = _build(here, rows, seen, own)
        built.queries = None if len(queries) == len(codes) else queries.to(device)
        found.append(built)
    return found


def _asking(rule: Any, seen: Seen) -> torch.Tensor:
    """bool (queries,): whose attention a rule changes."""
    layout = seen.site.layout
    given = rule.region if isinstance(rule, Reweight) else rule.queries
    flags = as_tokens(given, str(rule)).flags(layout, seen)
    if given is None and isinstance(rule, (Extra, Reweight)):  # the picture reads, the text does not
        start, stop = asking_span(layout)
        flags[:start], flags[stop:] = False, False
    return flags


def _build(rules: Sequence[Any], rows: Sequence[int], seen: Seen, own: torch.Tensor | None) -> QueryClass:
    found, layout = QueryClass(bias=own), seen.site.key_layout
    hidden = torch.zeros(layout.length, dtype=torch.bool)
    for rule in rules:
        if isinstance(rule, Forbid):
            hidden |= as_tokens(rule.keys, "forbid.keys").flags(layout, seen)
        elif isinstance(rule, ScaleKeys):
            factor = _factor(rule, rows, seen)
            found.factor = factor if found.factor is None else found.factor * factor
        elif isinstance(rule, Extra):
            found.extra.append(_extra(rule, rows, seen))
        elif rule.weight == 0:
            hidden[list(text_columns(layout, rule.tokens))] = True
        else:
            wide = torch.promote_types(seen.q.dtype, torch.float32)
            bias = torch.zeros(1, layout.length, dtype=wide, device=seen.q.device)
            bias[0, list(text_columns(layout, rule.tokens))] = log(rule.weight)
            found.bias = bias if found.bias is None else found.bias + bias
    if bool(hidden.any()):
        if bool(hidden.all()) and not found.extra:
            raise UsageError(
                f"layer {seen.site.name}: the rules of the control hide every key from some queries; leave them one"
            )
        found.hidden = hidden
        found.keys = (~hidden).nonzero().flatten().to(seen.q.device)
    return found


def _factor(rule: ScaleKeys, rows: Sequence[int], seen: Seen) -> torch.Tensor:
    layout = seen.site.key_layout
    start, stop = layout.grid_span
    given = rule.factor(seen) if callable(rule.factor) else rule.factor
    given = given.to(seen.k.device, seen.k.dtype)
    concerned = rule.concerns(seen.rows)
    shapes = ((stop - start,), (1, stop - start), (len(concerned), stop - start))
    if tuple(given.shape) not in shapes:
        raise UsageError(
            f"layer {seen.site.name}: a factor per key must be {' or '.join(map(str, shapes))}, got "
            f"{tuple(given.shape)}"
        )
    given = given.reshape(-1, stop - start)
    if len(given) > 1:
        given = given[[concerned.index(row) for row in rows]]
    ones = given.new_ones(len(given), layout.length - stop)
    return torch.cat([given.new_ones(len(given), start), given, ones], 1)[:, :, None, None]


def _extra(rule: Extra, rows: Sequence[int], seen: Seen) -> tuple[torch.Tensor, torch.Tensor, float]:
    bias = log(rule.weight)
    concerned = rule.concerns(seen.rows)
    if callable(rule.of):
        keys, values = rule.of(seen)
        own = [concerned.index(row) for row in rows]
        if keys.shape[0] != len(concerned) or keys.shape[:3] != values.shape[:3]:
            raise UsageError(
                f"layer {seen.site.name}: an extra segment needs keys and values of {len(concerned)} rows, got "
                f"{tuple(keys.shape)} and {tuple(values.shape)}"
            )
        return keys[own].to(seen.k), values[own].to(seen.v), bias
    pairs = {taker: giver for giver, taker in seen.rows.pairs(rule.of, rule.into, rule.where.conditional)}
    givers = [pairs[row] for row in rows]
    layout = seen.site.key_layout
    start, stop = layout.grid_span
    if rule.keys is None:
        places = torch.arange(start, stop)
    else:
        chosen = region_tokens(rule.keys, layout, seen)
        places = start + (chosen.nonzero().flatten() if chosen.dtype == torch.bool else chosen)
    places = places.to(seen.k.device)
    return seen.k[givers].index_select(1, places), seen.v[givers].index_select(1, places), bias


def attend_class(
    one: QueryClass,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float | None,
    lse: bool,
    cache: PatchCache,
) -> Part:
    """Attention of one class.

    Args:
        q: (rows, n, H, D) its queries. k, v: (rows, keys, H, D) all keys of these rows.
        lse: whether the log-sum-exp is wanted.

    Returns:
        (rows, n, H, D), and (rows, H, n) or None.
    """
    bias = one.bias
    if one.factor is not None:
        k = k * one.factor
    if one.keys is not None:
        k, v = k.index_select(1, one.keys), v.index_select(1, one.keys)
        bias = None if bias is None else bias.index_select(1, one.keys)
    if one.extra:
        sizes = [(k.shape[1], 0.0), *((keys.shape[1], added) for keys, _, added in one.extra)]
        k = torch.cat([k, *(keys for keys, _, _ in one.extra)], 1)
        v = torch.cat([v, *(values for _, values, _ in one.extra)], 1)
        if bias is not None or any(added for _, added in sizes):
            wide = torch.promote_types(q.dtype, torch.float32)
            rest = q.new_zeros(1, sizes[0][0], dtype=wide) if bias is None else bias.to(wide)
            added = [rest.new_full((len(rest), count), value) for count, value in sizes[1:]]
            bias = torch.cat([rest, *added], 1)
    if lse:
        return _with_lse(q, k, v, scale, bias, cache)
    mask = None if bias is None else bias.to(q.dtype).clamp(min=torch.finfo(q.dtype).min)[:, None, None]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return out.transpose(1, 2), None


def _with_lse(q, k, v, scale: float | None, bias: torch.Tensor | None, cache: PatchCache) -> Part:
    plan = kept(cache, _dense_plan, q.shape[1], k.shape[1], device=q.device)
    term = None
    if bias is not None:
        wide = torch.promote_types(q.dtype, torch.float32)
        ones = torch.ones(1, q.shape[1], 1, 1, dtype=wide, device=q.device)
        term = LowRank(ones, bias.to(wide)[:, :, None, None])
    return block_sparse_attention(q, k, v, plan, scale=scale, backend=cache.backend, bias=term)


def _dense_plan(queries: int, keys: int) -> BlockPlan:
    return BlockPlan.dense(queries, keys, block_q=256)
