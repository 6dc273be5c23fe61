"""Scores by name: how much every query block wants every key block, before a budget decides how many it gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from genkit.attention.grid_blocks import GridBlocks
from genkit.errors import UsageError
from genkit.kernels.scores.estimate import antidiagonal_scores, pooled_scores, sampled_scores
from genkit.kernels.scores.proxy import proxy_scores
from genkit.kernels.scores.rows import offset_scores, row_mass, vertical_scores
from genkit.kernels.scores.tree import tree_scores

if TYPE_CHECKING:
    from genkit.attention.block_select.method import BlockSelect

Score = Callable[[torch.Tensor, torch.Tensor, GridBlocks, "BlockSelect", "int", "float | None"], torch.Tensor]


@dataclass(frozen=True)
class Selector:
    """A way to score.

    Args:
        score: called with (q, k, blocks, settings, blocks wanted per row, scale); q, k (B, N, H, D) in the order of the
            blocks. Gives (B, H, M, M) float32, larger means keep, rows sum to 1 (``tree``: raw products).
        cost: what it costs, in words.
        uses: settings that only it reads.
        masses: whether scores are masses, which top-p needs.
        alone: whether a head's scores follow from that head alone.
    """

    score: Score
    cost: str
    uses: tuple[str, ...] = ()
    masses: bool = True
    alone: bool = True


def _pooled(q, k, blocks, settings, wanted, scale):
    return pooled_scores(q, k, blocks.block, blocks.block, scale=scale)


def _sampled(q, k, blocks, settings, wanted, scale):
    count = min(settings.samples, blocks.block)
    return sampled_scores(
        q, k, blocks.block, blocks.block, samples_q=count, samples_k=count,
        reduction=settings.reduction, seed=settings.seed, scale=scale,
    )  # fmt: skip


def _antidiagonal(q, k, blocks, settings, wanted, scale):
    mass = antidiagonal_scores(q, k, blocks.block, settings.stride, pairing=settings.pairing, scale=scale)
    return mass / mass.sum(-1, keepdim=True).clamp(min=torch.finfo(mass.dtype).tiny)


def _proxy(q, k, blocks, settings, wanted, scale):
    groups = min(settings.groups, q.shape[2])
    return proxy_scores(q, k, blocks.block, blocks.block, groups=groups, agreement=settings.agreement, scale=scale)


def _tree(q, k, blocks, settings, wanted, scale):
    return tree_scores(
        q, k, blocks.block, blocks.block, wanted, fan_out=settings.fan_out, slack=settings.slack, scale=scale
    )


def _rows(q, k, blocks, settings, scale):
    rows = min(settings.rows, blocks.block)
    return row_mass(q, k, blocks.block, blocks.block, rows=rows, seed=settings.seed, scale=scale)


def _offset(q, k, blocks, settings, wanted, scale):
    return offset_scores(_rows(q, k, blocks, settings, scale), blocks.apart)


def _vertical(q, k, blocks, settings, wanted, scale):
    return vertical_scores(_rows(q, k, blocks, settings, scale))


def _keys(q, k, blocks, settings, wanted, scale):
    raise UsageError("block_select: score=keys chooses single keys by their values; it has no scores of blocks")


SELECTORS: dict[str, Selector] = {
    "pooled": Selector(_pooled, "1 / (2 block^2) of dense attention"),
    "sampled": Selector(_sampled, "samples^2 / (2 block^2)", ("samples", "reduction", "seed")),
    "antidiagonal": Selector(_antidiagonal, "1 / (2 stride)", ("stride", "pairing")),
    "proxy": Selector(_proxy, "groups / (2 heads)", ("groups", "agreement"), alone=False),
    "tree": Selector(_tree, "kept blocks times the logarithm of all", ("fan_out", "slack"), masses=False),
    "offset": Selector(_offset, "rows / (2 block)", ("rows", "seed")),
    "vertical": Selector(_vertical, "rows / (2 block)", ("rows", "seed")),
    "kmeans": Selector(_pooled, "iterations * clusters / N, twice", ("clusters", "iterations")),
    "keys": Selector(_keys, "heads / (2 N), and sorting N keys per head", ("untrained",), masses=False, alone=False),
}
