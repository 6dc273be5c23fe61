"""Rows of a softmax map for a sample of queries, some at a time, and what is added up of them.

No map of all pairs is ever held: a strip of (rows of the batch x heads x queries x keys) numbers, cut so that it stays
below :data:`MOST`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from genkit.attention.site import Site
from genkit.layout import GRID
from genkit.patching.first_step import sample

#: Numbers of a strip that are held at once (64 MiB of float32).
MOST = 1 << 24
#: Entries of the batch that are looked at: with attention within frames or places there are many.
BATCH = 4
SHARES = (0.9, 0.95)


@dataclass(frozen=True, eq=False)
class Sample:
    """A call with the queries that are looked at.

    Args:
        q, k, v: (B, N, H, D), keys and values with as many heads as queries, at most :data:`BATCH` of the batch.
        site: with the key mask of these entries.
        rows: (n,) int64, queries of the grid, on the device of ``q``.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    site: Site
    rows: torch.Tensor

    @classmethod
    def of(cls, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site, queries: int) -> Sample:
        """At most ``queries`` tokens of the grid, one from each of equal stretches, the same in every call."""
        chosen = sample(len(q), BATCH).to(q.device)
        q, k, v = (x if len(x) == len(chosen) else x.index_select(0, chosen) for x in (q, k, v))
        mask = site.key_mask
        if mask is not None:
            rows = mask.expand(len(chosen), -1) if len(mask) == 1 else mask.index_select(0, chosen.to(mask.device))
            site = site.at(site.step, site.steps, site.branch, rows.to(q.device), site.run, False)
        repeat = q.shape[2] // k.shape[2]
        if repeat > 1:
            k, v = (x.repeat_interleave(repeat, 2) for x in (k, v))
        return cls(q, k, v, site, sample(site.layout.grid_length, queries).to(q.device) + site.layout.grid_span[0])

    @property
    def scale(self) -> float:
        """Of the softmax."""
        return self.q.shape[3] ** -0.5 if self.site.scale is None else self.site.scale

    def pieces(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """Parts of the rows with their softmax (B, H, n, N) float32."""
        batch, tokens, heads, _ = self.q.shape
        each = max(1, MOST // (batch * heads * self.k.shape[1]))
        keys = self.k.float().permute(0, 2, 3, 1)
        for begin in range(0, len(self.rows), each):
            part = slice(begin, min(begin + each, len(self.rows)))
            asked = self.q.index_select(1, self.rows[part]).float().transpose(1, 2)
            scores = asked @ keys * self.scale
            if self.site.key_mask is not None:
                scores.masked_fill_(~self.site.key_mask[:, None, None], -torch.inf)
            yield part, scores.softmax(-1)


@dataclass
class Energy:
    """Where the attention of a site goes, added up over queries.

    Attributes: sums over ``queries`` (entries of the batch x sampled queries): ``temporal`` (H, T) and ``spatial``
    (H, S) shares of the mass by distance, ``both`` (T, S) the mean over heads, ``outside`` segment -> (H,), ``keys``
    share of the mass -> (H,) share of the keys that hold it; ``even_temporal`` (T,) and ``even_spatial`` (S,) as if all
    keys weighed the same. ``S`` counts whole tokens of Euclidean distance within a frame, rounded.
    """

    queries: int = 0
    temporal: torch.Tensor | None = None
    spatial: torch.Tensor | None = None
    both: torch.Tensor | None = None
    even_temporal: torch.Tensor | None = None
    even_spatial: torch.Tensor | None = None
    outside: dict[str, torch.Tensor] = field(default_factory=dict)
    keys: dict[float, torch.Tensor] = field(default_factory=dict)

    def add(self, sampled: Sample, part: slice, weights: torch.Tensor) -> None:
        """Count some rows (B, H, n, N)."""
        layout = sampled.site.layout
        (start, stop), (t, h, w) = layout.grid_span, layout.grid
        batch, heads, count, tokens = weights.shape
        self.queries += batch * count
        grid = weights[..., start:stop].reshape(batch, heads, count, t, h * w)
        apart, beside, most = _distances(sampled.rows[part] - start, (t, h, w))
        by_frame = grid.sum((-1, 0)).double()  # (H, n, T)
        self.temporal = _more(self.temporal, _scatter(by_frame, apart, t))
        by_place = grid.sum((-2, 0)).double()  # (H, n, hw)
        self.spatial = _more(self.spatial, _scatter(by_place, beside, most))
        pairs = (apart[:, :, None] * most + beside[:, None]).flatten(1)
        joint = grid.sum((0, 1)).double().div(heads).flatten(1)  # (n, T * hw)
        self.both = _more(self.both, _scatter(joint[None], pairs, t * most)[0].view(t, most))
        even = (
            torch.full_like(apart, 1 / t, dtype=torch.float64),
            torch.full_like(beside, 1 / (h * w), dtype=torch.float64),
        )
        self.even_temporal = _more(self.even_temporal, batch * _scatter(even[0][None], apart, t)[0])
        self.even_spatial = _more(self.even_spatial, batch * _scatter(even[1][None], beside, most)[0])
        for segment in layout.segments:
            if segment.name != GRID and segment.length:
                low, high = layout.span(segment.name) or (0, 0)
                found = weights[..., low:high].sum((0, 2, 3)).double()
                self.outside[segment.name] = _more(self.outside.get(segment.name), found)
        for share, found in keys_that_hold(weights, sampled.site.key_mask).items():
            self.keys[share] = _more(self.keys.get(share), found.sum((0, 2)))


def _more(total: torch.Tensor | None, found: torch.Tensor) -> torch.Tensor:
    found = found.cpu()
    return found if total is None else total + found


def _distances(places: torch.Tensor, grid: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Frames between queries (n,) of the grid and every frame (n, T), whole tokens between them and every place of a
    frame (n, H*W), and the number of the latter kinds of distance."""
    t, h, w = grid
    device = places.device
    frame, row, column = places // (h * w), places // w % h, places % w
    apart = (frame[:, None] - torch.arange(t, device=device)).abs()
    up = (row[:, None] - torch.arange(h, device=device)).square()
    along = (column[:, None] - torch.arange(w, device=device)).square()
    beside = (up[:, :, None] + along[:, None]).double().sqrt().round().long().flatten(1)
    return apart, beside, round(((h - 1) ** 2 + (w - 1) ** 2) ** 0.5) + 1


def _scatter(values: torch.Tensor, places: torch.Tensor, count: int) -> torch.Tensor:
    """Sums (X, count) of values (X, n, M) by their place (n, M)."""
    out = values.new_zeros(len(values), count)
    return out.index_add_(1, places.flatten(), values.flatten(1))


def keys_that_hold(
    weights: torch.Tensor, key_mask: torch.Tensor | None = None, shares: tuple[float, ...] = SHARES
) -> dict[float, torch.Tensor]:
    """Share of the visible keys that hold some share of the mass: the fewest, largest first.

    Args:
        weights: (B, H, n, N), rows that sum to 1. key_mask: bool (B, N), True = visible.

    Returns:
        share of the mass -> (B, H, n) float64.
    """
    held = weights.sort(-1, descending=True).values.cumsum(-1)
    visible = weights.shape[-1] if key_mask is None else key_mask.sum(-1).clamp(min=1)[:, None, None].double()
    # Rounding may leave the last sums just below a share that all keys hold.
    return {share: ((held < share * (1 - 1e-6)).sum(-1) + 1).double() / visible for share in shares}


@dataclass
class Against:
    """What a method makes of the sampled queries of a site, added up.

    Attributes: ``queries`` (see :class:`Energy`), ``kept`` (H,) the mass on pairs that the method reads, None where it
    reads no pairs of tokens; ``wrong`` and ``whole`` (H,) squared norms of its error and of dense attention;
    ``computed``, ``executed`` and ``calls``: densities of so many calls, None when unknown.
    """

    queries: int = 0
    kept: torch.Tensor | None = None
    wrong: torch.Tensor | None = None
    whole: torch.Tensor | None = None
    computed: float | None = 0.0
    executed: float | None = 0.0
    calls: int = 0

    def add(self, weights: torch.Tensor, dense: torch.Tensor, out: torch.Tensor, read: torch.Tensor | None) -> None:
        """Count some rows.

        Args:
            weights: (B, H, n, N) dense softmax. dense: (B, H, n, D), its output. out: the method's, alike.
            read: bool (B|1, H|1, n, N), None where the method reads no pairs of tokens.
        """
        self.queries += len(weights) * weights.shape[2]
        if read is not None:
            self.kept = _more(self.kept, (weights * read).sum((0, 2, 3)).double())
        self.wrong = _more(self.wrong, (out.float() - dense).square().sum((0, 2, 3)).double())
        self.whole = _more(self.whole, dense.square().sum((0, 2, 3)).double())
