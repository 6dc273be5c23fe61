"""Explicit columns of the attention weights, a few at a time: read, written, and the output corrected by what changed.

The weight of a key j is ``exp(scale q.k_j - lse)`` with the log-sum-exp of all keys, so columns of some text tokens
cost queries x tokens, whatever the number of other keys. A changed column changes the output by ``(p_new - p_old)
v_j``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from genkit.control.maps import Maps
from genkit.control.regions import Seen, asking_span, region_flags, text_columns
from genkit.control.rules import ReadMaps, Refine, Replace, Reweight
from genkit.control.shaping import QueryClass


def columns_of(rules: Sequence[Any], seen: Seen) -> tuple[int, ...]:
    """Places of all keys whose weights some rule reads or writes, sorted."""
    layout = seen.site.key_layout
    found: set[int] = set()
    for rule in rules:
        if isinstance(rule, Refine):
            for pair in rule.alignment.pairs():
                found.update(text_columns(layout, pair))
        else:
            found.update(text_columns(layout, None if isinstance(rule, Replace) else rule.tokens))
    return tuple(sorted(found))


def givers_of(rule: Any, seen: Seen) -> dict[int, int]:
    """Row that is written -> row whose maps it takes."""
    return {taker: giver for giver, taker in seen.rows.pairs(rule.of, rule.into, rule.where.conditional)}


#: Least sum of weights that is divided by.
_LEAST = 1e-30


@dataclass
class Columns:
    """Weights (or scores) of some keys for the picture's queries of some rows.

    Args:
        places: places of the keys. rows: numbers of the rows.
        weights: (rows, H, picture queries, keys), wide; as the model made them.
        complete: whether these are all keys of the call.
    """

    places: tuple[int, ...]
    rows: tuple[int, ...]
    weights: torch.Tensor
    complete: bool = False
    written: torch.Tensor = field(init=False)
    # Added to the sum of a query's weights by all rules that write, and by those that leave the sum as it comes.
    added: torch.Tensor | float = field(init=False, default=0.0)
    free: torch.Tensor | float = field(init=False, default=0.0)
    renormalised: bool = field(init=False, default=False)
    touched: set[int] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self.written = self.weights

    @property
    def factor(self) -> torch.Tensor | None:
        """(rows, H, picture queries) of the written weights, so that their sum is what it shall be; None = 1."""
        if not self.renormalised:
            return None
        # The sum of little that is left of all keys, summed up rather than as a difference.
        total = self.written.sum(-1) if self.complete else 1 + torch.as_tensor(self.added)
        return (1 + self.free) / total.clamp(min=_LEAST)

    @classmethod
    def of(
        cls,
        places: tuple[int, ...],
        rows: tuple[int, ...],
        classes: Sequence[Sequence[QueryClass]],
        seen: Seen,
        lse: torch.Tensor | None,
    ) -> Columns:
        """Weights after softmax, or scaled scores when ``lse`` (rows of the batch, H, queries) is None.

        ``classes``: the query classes of every one of ``rows``.
        """
        q, k, site = seen.q, seen.k, seen.site
        scale = q.shape[-1] ** -0.5 if site.scale is None else site.scale
        start, stop = asking_span(site.layout)
        columns = torch.tensor(places, device=q.device)
        found = []
        for row, own in zip(rows, classes, strict=True):
            if lse is None or (len(own) == 1 and own[0].queries is None):
                plain = QueryClass() if lse is None else own[0]
                found.append(plain.scores(q[row : row + 1, start:stop], k[row : row + 1], columns, scale))
                continue
            places_of = [one.places(q.shape[1], q.device) for one in own]
            parts = [
                one.scores(q[row : row + 1].index_select(1, asking), k[row : row + 1], columns, scale)
                for one, asking in zip(own, places_of, strict=True)
            ]
            found.append(torch.cat(parts, 2).index_select(2, torch.argsort(torch.cat(places_of)))[:, :, start:stop])
        scores = torch.cat(found)
        if lse is None:
            return cls(places, rows, scores)
        complete = len(places) == site.key_layout.length
        picked = lse[list(rows)][..., start:stop, None].to(scores.dtype)
        return cls(places, rows, torch.exp(scores - picked), complete)

    def write(self, rule: Any, seen: Seen) -> None:
        """Apply a rule that writes maps."""
        renormalise = seen.site.role == "joint"
        if isinstance(rule, Reweight):
            change, renormalise = self._reweighted(rule, seen), rule.form == "renormalised"
        else:
            renormalise = renormalise if rule.renormalise is None else rule.renormalise
            change = self._taken(rule, seen)
        self.written = self.written + change
        self.touched.update(rule.concerns(seen.rows))
        self.added = self.added + change.sum(-1)
        if renormalise:
            self.renormalised = True
        else:
            self.free = self.free + change.sum(-1)

    def _taken(self, rule: Refine | Replace, seen: Seen) -> torch.Tensor:
        """What a refine or replace changes (rows, H, queries, keys); other rows' maps as the model made them."""
        change = torch.zeros_like(self.written)
        givers = givers_of(rule, seen)
        layout = seen.site.key_layout
        for row in rule.concerns(seen.rows):
            mine, theirs = self.rows.index(row), self.weights[self.rows.index(givers[row])]
            if isinstance(rule, Refine):
                pairs = [text_columns(layout, pair) for pair in rule.alignment.pairs()]
                taken = theirs[..., [self.places.index(source) for source, _ in pairs]]
                target = [self.places.index(place) for _, place in pairs]
            else:
                target = [self.places.index(place) for place in text_columns(layout, None)]
                matrix = rule.matrix.to(theirs)
                taken = theirs[..., target] @ matrix
            if target:
                change[mine][..., target] = rule.blend * (taken - self.written[mine][..., target])
        return change

    def _reweighted(self, rule: Reweight, seen: Seen) -> torch.Tensor:
        change = torch.zeros_like(self.written)
        layout = seen.site.layout
        window = torch.ones(asking_span(layout)[1] - asking_span(layout)[0], dtype=torch.bool)
        if rule.region is not None:
            window = region_flags(rule.region, layout, seen)
        window = window.to(change)[:, None]
        target = [self.places.index(place) for place in text_columns(seen.site.key_layout, rule.tokens)]
        for row in rule.concerns(seen.rows):
            mine = self.rows.index(row)
            now = self.written[mine][..., target]
            added = rule.weight * torch.ones_like(now) if rule.form == "additive" else (rule.weight - 1) * now
            change[mine][..., target] = window * added
        return change

    def correct(self, out: torch.Tensor, seen: Seen) -> torch.Tensor:
        """The output (B, N, H, D) with what was written."""
        if self.written is self.weights:
            return out
        start, stop = asking_span(seen.site.layout)
        rows = torch.tensor(self.rows, device=out.device)
        columns = torch.tensor(self.places, device=out.device)
        values = seen.v.index_select(0, rows).index_select(1, columns).to(self.written.dtype)
        old, factor = out.index_select(0, rows)[:, start:stop].to(self.written.dtype), self.factor
        new = old + torch.einsum("bhnm,bmhd->bnhd", self.written - self.weights, values)
        if factor is not None:
            if self.complete:  # what is left of few weights would be the difference of two large outputs
                touched = torch.tensor([row in self.touched for row in self.rows], device=out.device)
                whole = torch.einsum("bhnm,bmhd->bnhd", self.written, values)
                new = torch.where(touched[:, None, None, None], whole, new)
            new = new * factor.transpose(1, 2)[..., None]
        whole = out.index_select(0, rows)
        whole = torch.cat([whole[:, :start], new.to(out.dtype), whole[:, stop:]], 1)
        return out.index_copy(0, rows, whole)

    def read(self, rule: ReadMaps, seen: Seen, maps: Maps) -> None:
        """Hand the mean over heads of the columns a rule asks for to the maps."""
        found = self.weights
        if not rule.before and self.written is not self.weights:
            found, factor = self.written, self.factor
            if factor is not None:
                found = found * factor[..., None]
        rows = rule.concerns(seen.rows)
        target = [self.places.index(place) for place in text_columns(seen.site.key_layout, rule.tokens)]
        found = found[[self.rows.index(row) for row in rows]][..., target].mean(1)
        found = found if rule.grad else found.detach()
        layout = seen.site.layout
        maps.add(rule.name, layout.grid if layout.has_grid else (layout.length, 1, 1), found)
