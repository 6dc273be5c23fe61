"""Windows on the three axes of a token grid, and all that follows from them: pairs, closed form, tiles, plan, mask."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from genkit.attention.method import Density
from genkit.attention.static import StaticMethod, StaticPlan, executed_share
from genkit.attention.strips import StripChoice, choose_strips, order_of
from genkit.attention.tiles import TileChoice, choose_tiles
from genkit.attention.windows import AxisTable, AxisWindow, axis_table
from genkit.kernels.permutation import TokenOrder
from genkit.kernels.plan.block_plan import BlockPlan
from genkit.kernels.plan.mask_spec import ALL, WINDOW, Rule
from genkit.layout import TokenLayout

Tile = tuple[int, int, int]


@dataclass(frozen=True)
class Disc:
    """Keys nearer than ``radius`` tokens (strictly), measured over some axes (0 time, 1 height, 2 width)."""

    radius: float
    axes: tuple[int, ...]


@dataclass(frozen=True)
class GridWindows:
    """Which grid tokens see each other: on every axis the key lies in the query's window, and within the disc.

    Tokens of the sequence outside the grid (text, reference, keyframes) see everything and are seen by everything.

    Args:
        windows: one per axis (time, height, width), for the lengths of the grid.
        disc: a further limit on the distance, or None.
        tile: box of the grid that one query block covers; None = the best blocks, by counting.
    """

    windows: tuple[AxisWindow, AxisWindow, AxisWindow]
    disc: Disc | None = None
    tile: Tile | None = None

    @property
    def tables(self) -> tuple[AxisTable, AxisTable, AxisTable]:
        """Visible intervals per axis."""
        return tuple(axis_table(window) for window in self.windows)

    @property
    def limited(self) -> list[int]:
        """Axes on which something is hidden."""
        if self.disc is not None:
            return list(self.disc.axes)
        return [axis for axis, table in enumerate(self.tables) if not table.whole]

    def pairs(self, layout: TokenLayout) -> int:
        """Number of visible token pairs of a layout, counted per axis."""
        tables = self.tables
        if self.disc is not None:
            free = math.prod(tables[axis].pairs() for axis in range(3) if axis not in self.disc.axes)
            grid_pairs = free * _disc_pairs([tables[axis].offsets_seen() for axis in self.disc.axes], self.disc.radius)
        else:
            grid_pairs = math.prod(table.pairs() for table in tables)
        others = layout.length - layout.grid_length
        return grid_pairs + 2 * layout.grid_length * others + others**2

    def rule(self, layout: TokenLayout) -> Rule | None:
        """The closed form the operator executes, or None when nothing is hidden."""
        if self.pairs(layout) == layout.length**2:
            return None
        tables, limited = self.tables, self.limited
        start, stop = layout.grid_span
        steps = torch.meshgrid(*(torch.arange(n) for n in layout.grid), indexing="ij")
        columns = {name: torch.zeros(layout.length, len(limited), dtype=torch.int32) for name in ("lo", "hi", "pos")}
        for column, axis in enumerate(limited):
            slot = torch.tensor(tables[axis].slot)[steps[axis].reshape(-1)]
            columns["pos"][start:stop, column] = slot.int()
            columns["lo"][start:stop, column] = torch.tensor(tables[axis].start)[slot].int()
            columns["hi"][start:stop, column] = torch.tensor(tables[axis].end)[slot].int()
        group = torch.ones(layout.length, dtype=torch.int8)
        group[start:stop] = 0
        return Rule(
            q_lo=columns["lo"],
            q_hi=columns["hi"],
            k_pos=columns["pos"],
            q_group=group,
            k_group=group,
            visible=torch.tensor([[WINDOW, ALL], [ALL, ALL]], dtype=torch.int8),
            radius2=None if self.disc is None else math.ceil(self.disc.radius**2),
            q_pos=None if self.disc is None else columns["pos"],
        )

    def tiles(self) -> TileChoice:
        """Query and key tile for the CPU."""
        return choose_tiles(self.tables, self.tile)

    def choice(self, kind: str = "cpu") -> TileChoice | StripChoice:
        """How blocks are cut for a kind of device (``"cpu"``, ``"cuda"``, ...)."""
        return self.tiles() if kind == "cpu" else choose_strips(self.tables, self.tile)

    def orders(self, layout: TokenLayout, kind: str = "cpu") -> tuple[TokenOrder, TokenOrder]:
        """The permutations of queries and keys into blocks for a kind of device."""
        segments = [(segment.name, segment.length) for segment in layout.segments]
        choice = self.choice(kind)
        query, key = (choice.query, choice.block_q), (choice.key, choice.block_k)
        order = order_of(self.tables, *query, segments)
        return order, order if key == query else order_of(self.tables, *key, segments)

    def plan(self, layout: TokenLayout, kind: str = "cpu", key_mask: torch.Tensor | None = None) -> StaticPlan:
        """The plan of a layout; see ``StaticMethod.build_plan``."""
        rule = self.rule(layout)
        if rule is None:
            return StaticPlan(None, Density(1.0, 1.0, dense=True))
        if key_mask is not None:
            rule = rule.hide_keys(key_mask.cpu())
        order, key_order = self.orders(layout, kind)
        plan = BlockPlan.from_rule(rule, order=order, key_order=key_order)
        return StaticPlan(plan, Density(self.pairs(layout) / layout.length**2, executed_share(plan)))

    def mask_rows(self, layout: TokenLayout, queries: torch.Tensor) -> torch.Tensor:
        """Visible keys of some queries (n,) int64, bool (n, N), as the operator's closed form gives them."""
        rule = self.rule(layout)
        if rule is None:
            return torch.ones(len(queries), layout.length, dtype=torch.bool)
        return rule.tile(queries, torch.arange(layout.length))

    def mask(self, layout: TokenLayout) -> torch.Tensor:
        """The visible pairs, bool (N, N), straight from the definition. O(N^2) memory."""
        grid = torch.ones(1, 1, dtype=torch.bool)
        for table in self.tables:
            axis = torch.zeros(table.window.length, table.window.length, dtype=torch.bool)
            for query in range(table.window.length):
                axis[query, table.keys(query)] = True
            grid = torch.kron(grid, axis)
        if self.disc is not None:
            place = torch.cartesian_prod(*(torch.arange(n) for n in layout.grid))[:, list(self.disc.axes)].double()
            grid &= torch.cdist(place, place) ** 2 < self.disc.radius**2 - 1e-9
        full = torch.ones(layout.length, layout.length, dtype=torch.bool)
        start, stop = layout.grid_span
        full[start:stop, start:stop] = grid
        return full

    def details(self) -> str:
        """The windows and tiles in words, for reports and pictures."""
        text = "window " + " x ".join(str(window.size) for window in self.windows)
        for name, plain in (("stride", 1), ("dilation", 1), ("causal", False)):
            values = [getattr(window, name) for window in self.windows]
            if any(value != plain for value in values):
                text += f", {name} " + " x ".join(str(value) for value in values)
        return f"{text};  {self.tiles().words}"


def _disc_pairs(offsets: list[dict[int, int]], radius: float) -> int:
    """Pairs of tokens nearer than ``radius`` from the offsets seen on every axis."""
    sums = {0: 1}
    for seen in offsets:
        grown: dict[int, int] = {}
        for squared, count in sums.items():
            for offset, often in seen.items():
                total = squared + offset * offset
                if total < radius * radius:
                    grown[total] = grown.get(total, 0) + count * often
        sums = grown
    return sum(sums.values())


class WindowMethod(StaticMethod):
    """A method that is windows on the grid: masks, plans and how blocks are cut follow from :meth:`on`."""

    def on(self, grid: tuple[int, int, int]) -> GridWindows:
        """The windows of a concrete grid."""
        raise TypeError(f"{type(self).__name__} defines no on()")

    def arrangement(self, layout: TokenLayout, kind: str = "cpu") -> str:
        """See :meth:`StaticMethod.arrangement`."""
        return self.on(layout.grid).choice(kind).words

    def build_plan(self, layout: TokenLayout, kind: str = "cpu", key_mask: torch.Tensor | None = None) -> StaticPlan:
        """The plan of a layout; see :meth:`StaticMethod.build_plan`."""
        return self.on(layout.grid).plan(layout, kind, key_mask)

    def mask(self, layout: TokenLayout) -> torch.Tensor:
        """The visible pairs, bool (N, N), straight from the definition. O(N^2) memory."""
        return self.on(layout.grid).mask(layout)

    def mask_rows(self, layout: TokenLayout, queries: torch.Tensor) -> torch.Tensor:
        """See :meth:`Method.mask_rows`; O(n N) memory."""
        return self.on(layout.grid).mask_rows(layout, queries)
