"""Dense attention plus a bias of distance; blocks of keys that the bias puts out of reach are skipped."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from math import ceil, prod
from typing import ClassVar, Literal

import torch

from genkit.attention.biased.reach import Box, boxes_of, within_reach
from genkit.attention.biases import Grid, spec_of
from genkit.attention.cache import PatchCache
from genkit.attention.method import Density, check_int, is_number
from genkit.attention.registry import register
from genkit.attention.site import Site
from genkit.attention.static import StaticMethod, StaticPlan, executed_share
from genkit.errors import UsageError, explain
from genkit.kernels.permutation import TokenOrder
from genkit.kernels.plan.block_plan import BlockPlan
from genkit.kernels.plan.mask_spec import Rule
from genkit.layout import GRID, TokenLayout

_CUTOFF = 8.0  # the weight of a dropped key is below 3.4e-4 of that of a key without bias


@register("biased")
@dataclass(frozen=True)
class Biased(StaticMethod):
    """Dense attention plus a bias of distance on the grid; blocks of keys that the bias puts out of reach are skipped.

    ``softmax(q k^T / sqrt(d) + bias) v``. The bias never becomes a tensor of all pairs. Text and other extra tokens
    are exempt: nothing is added to their scores and none of them is skipped. Every other method that takes ``bias``
    adds it to the pairs it sees; here the bias alone decides what is seen.

    Args:
        bias: terms joined by ``+``: ``distance``, ``alibi``, ``frames``, ``table``, ``svd``; see
            :mod:`genkit.attention.biases`.
        cutoff: blocks whose largest bias lies more than so many logits below zero are skipped; a skipped key's weight
            is at most e^-cutoff of a key's without bias, for equal scores. ``"auto"``: 8 for a fixed bias, none for a
            learned one, whose reach changes. None = every block is visited.
        block: most tokens per block; blocks are boxes of the grid.

    Source: FlashBias: Fast Computation of Attention with Bias, arXiv 2505.12044; ALiBi, arXiv 2108.12409. Skipping,
    and biases of places on a grid in diffusion models, are this project's.
    """

    bias: str | None = field(
        default="distance:t=25%:h=25%:w=25%",
        kw_only=True,
        metadata={"help": "added to scores: distance, alibi, frames, table, ... with +"},
    )
    cutoff: float | Literal["auto"] | None = field(
        default="auto", metadata={"help": "blocks with a bias below minus this are skipped; auto: 8"}
    )
    block: int = field(default=64, metadata={"help": "most tokens per block"})

    roles: ClassVar[tuple[str, ...]] = ("self", "joint")
    trainable: ClassVar[bool] = True
    by_head: ClassVar[bool] = True
    source: ClassVar[str] = "FlashBias, arXiv 2505.12044; ALiBi, arXiv 2108.12409"

    def __post_init__(self):
        super().__post_init__()
        if self.bias is None:
            raise UsageError("biased needs a bias, for instance bias='alibi:t=1'; without one it is dense attention")
        check_int("biased", "block", self.block, 8, 4096)
        cutoff = self.cutoff
        number = is_number(cutoff)
        if cutoff not in ("auto", None) and not (number and cutoff > 0):
            raise UsageError(explain("biased.cutoff", cutoff, "'auto', none or a number > 0"))
        if number and self.learns:
            raise UsageError(
                f"biased.cutoff: got {cutoff!r}, and the bias {self.bias} is learned, so nobody knows beforehand what "
                f"it puts out of reach; leave cutoff out"
            )

    @property
    def reach(self) -> float | None:
        """The cutoff that applies, in logits; None = nothing is skipped."""
        if self.cutoff != "auto":
            return self.cutoff
        return None if self.learns else _CUTOFF

    def recommended(self, steps: int, layers: int) -> dict[str, str]:
        """The first fifth of the steps: there the arrangement is decided, for which a prior of distance helps at sizes
        that a model does not know. A bias that was trained has no schedule: it applies as in training."""
        return {} if self.learns or steps < 2 else {"steps": f":{max(1, round(0.2 * steps))}"}

    def box(self, grid: Grid) -> Box:
        """The box of one block on a grid."""
        return _reach_of(self.bias, grid, 1, self.block, self.reach)[0]

    def arrangement(self, layout: TokenLayout, kind: str = "cpu") -> str:
        """See :meth:`StaticMethod.arrangement`."""
        return f"boxes of {'x'.join(map(str, self.box(layout.grid)))} tokens"

    def details(self, layout: TokenLayout) -> str:
        """See :meth:`Method.details`."""
        reach = "nothing is skipped" if self.reach is None else f"skips blocks below -{self.reach:g} logits"
        return f"{reach};  {self.arrangement(layout)}"

    def build_plan(
        self, layout: TokenLayout, kind: str = "cpu", key_mask: torch.Tensor | None = None, heads: int = 1
    ) -> StaticPlan:
        """The plan of a layout for ``heads`` heads; see :meth:`StaticMethod.build_plan`."""
        box, near = _reach_of(self.bias, layout.grid, heads, self.block, self.reach)
        if bool(near.all()):
            return StaticPlan(None, Density(1.0, 1.0, dense=True))
        pieces = [(segment.name, segment.length) for segment in layout.segments]
        order = TokenOrder.from_grid(layout.grid, box, pieces)
        size = prod(box)
        inside = torch.cat(
            [torch.full((near.shape[1] if name == GRID else ceil(n / size),), name == GRID) for name, n in pieces]
        )
        seen = torch.ones(near.shape[0], len(inside), len(inside), dtype=torch.bool)
        at = inside.nonzero()[:, 0]
        seen[:, at[:, None], at] = near
        rule = None if key_mask is None else Rule.everything(layout.length, layout.length).hide_keys(key_mask.cpu())
        plan = BlockPlan.from_dense_blocks(
            seen[None], layout.length, layout.length, block_q=size, block_k=size, rule=rule, order=order
        )
        return StaticPlan(plan, Density(self._wanted_share(layout, box, near), executed_share(plan)))

    def _wanted_share(self, layout: TokenLayout, box: Box, near: torch.Tensor) -> float:
        """Share of the token pairs in kept blocks, mean over heads."""
        sizes = torch.bincount(_box_of_token(layout.grid, box)).double()
        grid_pairs = float((near.double() @ sizes @ sizes).mean())
        others = layout.length - layout.grid_length
        return (grid_pairs + 2 * layout.grid_length * others + others**2) / layout.length**2

    def shares(self, layout: TokenLayout, queries: torch.Tensor, heads: int) -> torch.Tensor:
        """See :meth:`Method.shares`."""
        return self._rows(layout, queries, heads).double().mean(0)

    def mask_rows(self, layout: TokenLayout, queries: torch.Tensor) -> torch.Tensor:
        """See :meth:`Method.mask_rows`: what the head with the gentlest slopes sees; O(n N) memory."""
        return self._rows(layout, queries, 1)[0]

    def pair_rows(
        self, q: torch.Tensor, k: torch.Tensor, site: Site, cache: PatchCache, queries: torch.Tensor
    ) -> torch.Tensor:
        """See :meth:`Method.pair_rows`: every head its own."""
        rows = self._rows(site.layout, queries.cpu(), site.all_heads or q.shape[2])
        here = rows if rows.shape[0] == 1 else rows[site.first_head : site.first_head + q.shape[2]]
        return here[None].to(q.device)

    def mask(self, layout: TokenLayout) -> torch.Tensor:
        """The pairs that are visible to heads of any kind, bool (N, N). O(N^2) memory."""
        return self.mask_rows(layout, torch.arange(layout.length))

    def _rows(self, layout: TokenLayout, queries: torch.Tensor, heads: int) -> torch.Tensor:
        """(heads|1, n, N) bool: the keys that some queries see."""
        box, near = _reach_of(self.bias, layout.grid, heads, self.block, self.reach)
        start, stop = layout.grid_span
        rows = torch.ones(near.shape[0], len(queries), layout.length, dtype=torch.bool)
        inside = (queries >= start) & (queries < stop)
        number = _box_of_token(layout.grid, box)
        rows[:, inside, start:stop] = near[:, number[queries[inside] - start]][:, :, number]
        return rows


@lru_cache(maxsize=64)
def _reach_of(bias: str, grid: Grid, heads: int, block: int, cutoff: float | None) -> tuple[Box, torch.Tensor]:
    """The box that visits the fewest pairs, and bool (heads|1, M, M) of what is within reach. Not to be written to.

    The box is chosen for the head with the gentlest slopes, whatever the number of heads.
    """
    boxes = boxes_of(grid, block)
    if cutoff is None:
        box = boxes[-1]
        count = prod(ceil(n / side) for n, side in zip(grid, box, strict=True))
        return box, torch.ones(1, count, count, dtype=torch.bool)
    spec = spec_of(bias)
    gentle = spec.tables(grid, 1)
    box = min(boxes, key=lambda box: (int(within_reach(gentle, grid, box, cutoff).sum()) * prod(box) ** 2, -prod(box)))
    return box, within_reach(spec.tables(grid, heads), grid, box, cutoff)


@lru_cache(maxsize=64)
def _box_of_token(grid: Grid, box: Box) -> torch.Tensor:
    """(T*H*W,) int64 number of every token's box, as :meth:`TokenOrder.from_grid` counts them."""
    number = torch.zeros((), dtype=torch.int64)
    for n, side in zip(grid, box, strict=True):
        number = number[..., None] * ceil(n / side) + torch.arange(n) // side
    return number.flatten()
