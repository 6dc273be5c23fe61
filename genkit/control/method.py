"""The method a control puts into the gate: it applies the rules that are active at a call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch

from genkit.attention.cache import PatchCache
from genkit.attention.method import Density, Method
from genkit.attention.site import ROLES, Site
from genkit.control.columns import Columns, columns_of, givers_of
from genkit.control.maps import Maps
from genkit.control.regions import Seen, as_tokens
from genkit.control.rows import Rows
from genkit.control.rules import (
    Extra,
    Forbid,
    KeepPairs,
    Mix,
    ReadMaps,
    Refine,
    Replace,
    Reweight,
    Rule,
    ScaleKeys,
    Take,
)
from genkit.control.shaping import QueryClass, attend_class, query_classes
from genkit.errors import UsageError, counted

RowRule = Callable[[int, "str | None"], Rows]


@dataclass
class ControlState:
    """What changes from call to call.

    Args:
        rows: rows of the next call, or a rule from (rows of the call, announced branch) to them, or None.
        step, steps: when; None = as the gate counts.
    """

    rows: Rows | RowRule | None = None
    step: int | None = None
    steps: int | None = None
    maps: Maps = field(default_factory=Maps)
    pairs: dict[str, list[KeptPair]] = field(default_factory=dict)
    applied: set[int] = field(default_factory=set)  # ids of the rules that were active in some call
    stale: bool = False  # whether kept pairs are those of an earlier call

    def rows_of(self, batch: int, site: Site) -> Rows:
        """Who the rows of a call are."""
        if self.rows is None:
            raise UsageError(
                f"layer {site.name}: nothing tells who the {counted(batch, 'row')} of this call are: call "
                f"control.begin(rows=Rows.of(...)) before the denoiser"
            )
        rows = self.rows if isinstance(self.rows, Rows) else self.rows(batch, site.branch)
        if len(rows) != batch:
            raise UsageError(
                f"layer {site.name}: the call has {counted(batch, 'row')}, control.begin told of {len(rows)} "
                f"({', '.join(rows.roles)}); tell the rows of every call"
            )
        return rows


@dataclass(frozen=True, eq=False)
class KeptPair:
    """Queries and keys of the picture's tokens of one layer: (rows, N, H, D) each, the scale and the grid."""

    q: torch.Tensor
    k: torch.Tensor
    scale: float | None
    grid: tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class ControlMethod(Method):
    """Attention under the rules of a :class:`genkit.control.Control`; made by it."""

    rules: tuple[Rule, ...] = ()
    state: ControlState = field(default_factory=ControlState, repr=False)

    name: ClassVar[str] = "control"
    roles: ClassVar[tuple[str, ...]] = ROLES
    needs_grid: ClassVar[bool] = False
    exact: ClassVar[bool] = True
    trainable: ClassVar[bool] = True
    declines: ClassVar[str] = "no rule changes this call"

    @property
    def hides_grid(self) -> bool:
        """See :attr:`Method.hides_grid`."""
        return True

    def settings(self) -> dict[str, Any]:
        """See :meth:`Method.settings`: the rules in words."""
        return {"rules": [str(rule) for rule in self.rules]}

    def describe(self) -> str:
        """See :meth:`Method.describe`."""
        return f"control({'; '.join(dict.fromkeys(map(str, self.rules)))})"

    def observe(self, given: Mapping[str, Any], cache: PatchCache) -> None:
        """A denoiser call begins."""
        self.state.maps.new_call()
        self.state.stale = True

    def remarks(self, cache: PatchCache) -> list[str]:
        """Rules that never applied."""
        idle = [str(rule) for rule in self.rules if id(rule) not in self.state.applied]
        return [f"control: never applied so far: {'; '.join(dict.fromkeys(idle))}"] if idle else []

    def density(self, site: Site, cache: PatchCache) -> Density | None:
        """Dense, unless rules hide or add pairs, which depends on regions that may change from call to call."""
        return None if any(isinstance(rule, (Extra, Forbid)) for rule in self.rules) else Density(1.0, 1.0, dense=True)

    def active(self, site: Site) -> list[Rule]:
        """Rules that apply at a layer and step."""
        state = self.state
        step = site.step if state.step is None else state.step
        steps = site.steps if state.steps is None else state.steps
        found = []
        for rule in self.rules:
            where = rule.where
            if not where.at_layer(site.name, site.role, site.layer, site.layers, rule.usual):
                continue
            if rule.needs_text and site.key_layout.text_span is None:
                continue
            if where.at_call(site) and where.at_step(step, steps):
                found.append(rule)
        return found

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site, cache: PatchCache
    ) -> torch.Tensor | None:
        """See :meth:`Method.attend`; declines where no rule changes anything: the model's own attention runs."""
        rules = self.active(site)
        if not rules:
            return None
        state = self.state
        rows = state.rows_of(q.shape[0], site)
        rules = [rule for rule in rules if rule.concerns(rows)]
        state.applied.update(map(id, rules))
        if k.shape[2] != q.shape[2]:
            repeat = q.shape[2] // k.shape[2]
            k, v = k.repeat_interleave(repeat, dim=2), v.repeat_interleave(repeat, dim=2)
        takes = [rule for rule in rules if isinstance(rule, Take)]
        q, k, v = taken(takes, q, k, v, rows, site)
        mask = taken_mask(takes, rows, site)
        site = site if mask is site.key_mask else replace(site, key_mask=mask)
        step = site.step if state.step is None else state.step
        seen = Seen(site, q, k, v, rows, step, site.steps if state.steps is None else state.steps)
        self._keep(rules, seen)
        return _Run(rules, seen, cache, state.maps).attend()

    def _keep(self, rules: Sequence[Rule], seen: Seen) -> None:
        if self.state.stale:
            self.state.pairs.clear()
            self.state.stale = False
        start, stop = seen.site.layout.grid_span
        for rule in rules:
            if isinstance(rule, KeepPairs):
                own = list(rule.concerns(seen.rows))
                pair = KeptPair(
                    seen.q[own, start:stop].detach(),
                    seen.k[own, start:stop].detach(),
                    seen.site.scale,
                    seen.site.layout.grid,
                )
                self.state.pairs.setdefault(rule.name, []).append(pair)


def taken(
    rules: Sequence[Take], q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rows: Rows, site: Site
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values after all takes of a call; (B, N, H, D) in and out, the inputs stay as they are."""
    given = {"q": q, "k": k, "v": v}
    new = dict(given)
    for rule in rules:
        for giver, taker in rows.pairs(rule.of, rule.into, rule.where.conditional):
            for letter in rule.what:
                span = _span(rule, letter, site)
                theirs = given[letter][giver, span]
                if rule.blend != 1:
                    theirs = rule.blend * theirs + (1 - rule.blend) * new[letter][taker, span]
                new[letter] = _with_row(new[letter], taker, span, theirs)
            if rule.temperature != 1:
                span = _span(rule, "q", site)
                new["q"] = _with_row(new["q"], taker, span, rule.temperature * new["q"][taker, span])
    return new["q"], new["k"], new["v"]


def taken_mask(rules: Sequence[Take], rows: Rows, site: Site) -> torch.Tensor | None:
    """The key mask (B, keys) after all takes: keys of text that are taken bring their padding with them."""
    mask = site.key_mask
    if mask is None:
        return None
    found = mask
    for rule in rules:
        if "k" not in rule.what or rule.tokens != "all" or not rule.blend:
            continue
        for giver, taker in rows.pairs(rule.of, rule.into, rule.where.conditional):
            theirs = mask[giver] if rule.blend == 1 else mask[giver] & found[taker]
            found = found.clone()
            found[taker] = theirs
    return found


def mixed(rule: Mix, out: torch.Tensor, seen: Seen) -> torch.Tensor:
    """The output (B, N, H, D) with what a mix adds; a copy."""
    queries = as_tokens(rule.queries, "mix.queries").flags(seen.site.layout, seen).nonzero().flatten().to(out.device)
    out = out.clone()
    for giver, taker in seen.rows.pairs(rule.of, rule.into, rule.where.conditional):
        q, k, v = (x[None].transpose(1, 2) for x in (seen.q[taker, queries], seen.k[giver], seen.v[giver]))
        mask = None if seen.site.key_mask is None else seen.site.key_mask[giver][None, None, None].to(out.device)
        theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, scale=seen.site.scale)
        theirs = theirs.transpose(1, 2)[0].to(out)
        out[taker, queries] = rule.share * theirs + (1 - rule.share) * out[taker, queries]
    return out


def _span(rule: Take, letter: str, site: Site) -> slice:
    layout = site.layout if letter == "q" else site.key_layout
    if rule.tokens == "all" or not layout.has_grid:
        return slice(0, layout.length)
    return slice(*layout.grid_span)


def _with_row(x: torch.Tensor, row: int, span: slice, value: torch.Tensor) -> torch.Tensor:
    """A copy with one row's tokens set; differentiable."""
    x = x.clone()
    x[row, span] = value
    return x


class _Run:
    """One attention call under its active rules."""

    def __init__(self, rules: Sequence[Rule], seen: Seen, cache: PatchCache, maps: Maps):
        self.rules, self.seen, self.cache, self.maps = rules, seen, cache, maps
        # A weight is a bias on scores, unless maps are written in the same call, which would wipe that out.
        biased = not any(isinstance(rule, (Refine, Replace)) for rule in rules)
        self.shaping = [
            rule
            for rule in rules
            if isinstance(rule, (Extra, Forbid, ScaleKeys))
            or (isinstance(rule, Reweight) and rule.form == "renormalised" and biased)
        ]
        self.writing = [
            rule for rule in rules if isinstance(rule, (Refine, Replace, Reweight)) and rule not in self.shaping
        ]
        self.reading = [rule for rule in rules if isinstance(rule, ReadMaps)]
        self.concerned = {id(rule): rule.concerns(seen.rows) for rule in rules}
        self._classes: dict[tuple[int, ...], list[QueryClass]] = {}

    def attend(self) -> torch.Tensor | None:
        """The output, or None when rules only read what the model's own attention does."""
        self._read_logits()
        weights = [rule for rule in self.reading if rule.kind == "weights"]
        explicit = [*self.writing, *weights]
        wanted = self._rows_with_columns(explicit)
        mixing = [rule for rule in self.rules if isinstance(rule, Mix)]
        changes = bool(self.shaping or self.writing or mixing) or any(isinstance(rule, Take) for rule in self.rules)
        if not changes and not explicit:
            return None
        out, lse = self._attention(wanted, wanted if not changes else range(len(self.seen.rows)))
        if explicit:
            places = columns_of(explicit, self.seen)
            classes = [self._classes_of(row) for row in wanted]
            columns = Columns.of(places, tuple(wanted), classes, self.seen, lse)
            for rule in self.writing:
                columns.write(rule, self.seen)
            for reading in weights:
                columns.read(reading, self.seen, self.maps)
            out = columns.correct(out, self.seen)
        for mix in mixing:
            out = mixed(mix, out, self.seen)
        return out if changes else None

    def _read_logits(self) -> None:
        for rule in self.reading:
            if rule.kind == "logits":
                rows = self.concerned[id(rule)]
                columns = Columns.of(columns_of([rule], self.seen), rows, [()] * len(rows), self.seen, None)
                columns.read(rule, self.seen, self.maps)

    def _rows_with_columns(self, explicit: Sequence[Rule]) -> list[int]:
        """Rows whose explicit weights are needed."""
        found: set[int] = set()
        for rule in explicit:
            found.update(self.concerned[id(rule)])
            if isinstance(rule, (Refine, Replace)):
                found.update(givers_of(rule, self.seen).values())
        return sorted(found)

    def _classes_of(self, row: int) -> list[QueryClass]:
        """The query classes of one row of the batch."""
        if (row,) not in self._classes:
            rules = [rule for rule in self.shaping if row in self.concerned[id(rule)]]
            self._classes[(row,)] = query_classes(rules, (row,), self.seen, self.seen.site.key_mask)
        return self._classes[(row,)]

    def _attention(self, wanted: Sequence[int], rows: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attention of some rows of the batch, the others left empty; with the log-sum-exp where it is wanted."""
        groups: dict[tuple[Any, ...], list[int]] = {}
        for row in rows:
            own = tuple(number for number, rule in enumerate(self.shaping) if row in self.concerned[id(rule)])
            groups.setdefault((own, row in wanted), []).append(row)
        outs: list[torch.Tensor] = []
        lses: dict[int, torch.Tensor] = {}
        for (own, with_lse), members in groups.items():
            rules = [self.shaping[number] for number in own]
            out, lse = self._group(rules, members, with_lse)
            outs.append(out)
            if lse is not None:
                lses |= {row: lse[number] for number, row in enumerate(members)}
        order = [row for members in groups.values() for row in members]
        out = torch.cat(outs) if len(outs) > 1 else outs[0]
        if order != list(range(len(self.seen.rows))):
            places = torch.tensor(order, device=out.device)
            out = out.new_zeros(len(self.seen.rows), *out.shape[1:]).index_copy(0, places, out)
        if not lses:
            return out, None
        empty = next(iter(lses.values())).new_zeros(next(iter(lses.values())).shape)
        return out, torch.stack([lses.get(row, empty) for row in range(len(self.seen.rows))])

    def _group(self, rules: Sequence[Rule], members: list[int], lse: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attention of rows with the same rules."""
        seen = self.seen
        q, k, v = seen.q, seen.k, seen.v
        if members != list(range(len(seen.rows))):
            places = torch.tensor(members, device=q.device)
            q, k, v = (x.index_select(0, places) for x in (q, k, v))
        classes = query_classes(rules, members, seen, seen.site.key_mask)
        parts = [
            attend_class(
                one,
                q if one.queries is None else q.index_select(1, one.queries),
                k,
                v,
                seen.site.scale,
                lse,
                self.cache,
            )
            for one in classes
        ]
        if len(parts) == 1:
            return parts[0]
        order = torch.argsort(torch.cat([one.places(q.shape[1], q.device) for one in classes]))
        out = torch.cat([part for part, _ in parts], 1).index_select(1, order)
        found = [part for _, part in parts if part is not None]
        return out, torch.cat(found, 2).index_select(2, order) if lse else None
