"""The projection of the linear branch without training: least squares against dense attention, layer by layer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from genkit.attention.cache import PatchCache
from genkit.attention.linear_forms import LinearWeights
from genkit.attention.method import Method
from genkit.attention.site import Place, Site
from genkit.attention.sparse_linear.method import SparseLinear
from genkit.attention.static import dense_attention
from genkit.attention.weights import PatchWeights
from genkit.errors import UsageError

#: Penalties that ``ridge="auto"`` tries, relative to the mean square of the branch's channels.
RIDGES = tuple(10.0**power for power in range(-4, 5))
FOLDS = 4


@dataclass
class Equations:
    """Normal equations per head: sums over tokens of ``y y'`` (H, D + 1, D + 1) and ``y r'`` (H, D + 1, D).

    y has a one appended; ``before`` is the squared norm of r, ``tokens`` how many rows there are."""

    inner: torch.Tensor
    outer: torch.Tensor
    before: float
    tokens: int

    @classmethod
    def of(cls, rest: torch.Tensor, wanted: torch.Tensor) -> Equations:
        """Of what the projection gets and what it should give, (B, N, H, D) both."""
        y, r = rest.double(), wanted.double()
        y = torch.cat([y, torch.ones_like(y[..., :1])], -1)
        inner, outer = (torch.einsum("bnhd,bnhe->hde", y, other) for other in (y, r))
        return cls(inner, outer, float(r.square().sum()), r.shape[0] * r.shape[1])

    def __add__(self, other: Equations) -> Equations:
        return Equations(
            self.inner + other.inner, self.outer + other.outer, self.before + other.before, self.tokens + other.tokens
        )

    def shared(self) -> Equations:
        """With one projection for all heads."""
        return Equations(self.inner.sum(0, keepdim=True), self.outer.sum(0, keepdim=True), self.before, self.tokens)

    def solved(self, ridge: float) -> torch.Tensor:
        """(H, D + 1, D): projection and bias."""
        scale = self.inner[:, :-1, :-1].diagonal(dim1=-2, dim2=-1).mean(-1)
        penalty = torch.diag_embed(scale[:, None] * ridge * torch.ones_like(self.inner[:, :, 0]))
        penalty[:, -1, -1] = scale * 1e-9 + 1e-9 * self.tokens
        return torch.linalg.solve(self.inner + penalty, self.outer)

    def left(self, found: torch.Tensor) -> float:
        """The squared error that a solution leaves."""
        return float(self.before - 2 * (found * self.outer).sum() + (found * (self.inner @ found)).sum())


class Sums:
    """The normal equations of one layer, in folds by sampling run.

    Args:
        own: the layer's weights, which :meth:`solve` writes.
    """

    def __init__(self, own: LinearWeights):
        self.own = own
        self.folds: dict[int, Equations] = {}

    def add(self, rest: torch.Tensor, wanted: torch.Tensor, run: int) -> None:
        """Take in a call of a sampling run."""
        made, fold = Equations.of(rest, wanted), run % FOLDS
        self.folds[fold] = self.folds[fold] + made if fold in self.folds else made

    def solve(self, ridge: float | str) -> float:
        """Write the projection; the share of the squared error that is left, on folds that were left out in turn with
        ``"auto"``, else on what it was fitted to. Where every penalty makes held-out folds worse, it stays zero."""
        shared = self.own.weight.dim() == 2
        folds = [fold.shared() if shared else fold for fold in self.folds.values()]
        whole = _sum(folds)
        left = None
        if ridge == "auto":
            tried = {each: self._held_out(folds, each) for each in RIDGES}
            ridge = min(tried, key=tried.__getitem__)
            left = tried[ridge] / max(whole.before, 1e-300)
        found = whole.solved(float(ridge)) if left is None or left < 1 else torch.zeros_like(whole.outer)
        with torch.no_grad():
            for own, part in ((self.own.weight, found[:, :-1]), (self.own.bias, found[:, -1])):
                own.copy_(part[0] if shared else part)
        return whole.left(found) / max(whole.before, 1e-300) if left is None else min(left, 1.0)

    @staticmethod
    def _held_out(folds: list[Equations], ridge: float) -> float:
        """Squared error on every fold of what the others give."""
        others = [_sum([each for each in folds if each is not fold]) for fold in folds]
        return sum(fold.left(rest.solved(ridge)) for fold, rest in zip(folds, others, strict=True))


def _sum(parts: list[Equations]) -> Equations:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


@dataclass(frozen=True)
class ProjectionFit(Method):
    """Fits the projection of a :class:`SparseLinear` while the model runs dense: patch, run a few prompts, write.

    Every call computes the sparse part, the branch and dense attention, adds to the layer's normal equations and
    returns the dense output, so that the model runs as it always does. Nothing is stored but sums of D x D per head.

    >>> fit = ProjectionFit(SparseLinear(sparse="block_select keep=0.1"))        # doctest: +SKIP
    >>> with genkit.patch(pipe, fit, schedule=genkit.Schedule(branches="cond")): # doctest: +SKIP
    ...     for prompt in prompts: pipe(prompt)
    >>> fit.write("branch.safetensors")                                          # doctest: +SKIP

    Args:
        method: what is fitted, without ``weights``.
        ridge: penalty, relative to the mean square of the branch's channels, or ``"auto"``: per layer the one that
            serves runs best that were left out (four folds), and no branch where none helps them. Needs two runs.

    Cost: dense attention, and 2 D^2 more operations per token and head. Sources: as in :class:`SparseLinear`; fitting
    W by layer-wise matching of the dense output is the first stage of its training.
    """

    method: SparseLinear
    ridge: float | str = "auto"
    layers: dict[str, Sums] = field(default_factory=dict, compare=False, repr=False)
    held: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    name: ClassVar[str] = "projection_fit"
    roles: ClassVar[tuple[str, ...]] = SparseLinear.roles

    def __post_init__(self):
        if self.method.weights is not None:
            raise UsageError("projection_fit: the method has weights already; leave its weights= out")
        if self.ridge == "auto":
            return
        if isinstance(self.ridge, bool) or not isinstance(self.ridge, (int, float)) or not 0 < self.ridge < 1e6:
            raise UsageError(f"projection_fit.ridge: got {self.ridge!r}, allowed: auto, or a number > 0")

    def why_not(self, site: Site) -> str | None:
        """Of the method that is fitted."""
        return self.method.why_not(site)

    def install(self, place: Place, cache: PatchCache) -> Iterable[Any]:
        """Make the weights that are fitted."""
        made = self.method.install(place, cache)
        self.held["weights"] = PatchWeights.of(cache)
        own: Any = PatchWeights.of(cache).at(self.method.name, place.name)
        self.layers[place.name] = Sums(own)
        return made

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site, cache: PatchCache
    ) -> torch.Tensor | None:
        """Dense attention, taken note of."""
        with torch.no_grad():
            dense = dense_attention(q, k, v, site.scale, site.key_mask)
            sums = self.layers[site.name]
            found = self.method.branches(q, k, v, site, cache, sums.own)
            if found is not None:
                start, stop = site.layout.grid_span
                sums.add(found[1], (dense.to(found[1].dtype) - found[0].to(found[1].dtype))[:, start:stop], site.run)
        return dense

    def solve(self) -> dict[str, float]:
        """Compute the projections; per layer the share of the sparse part's squared error that is left, with
        ``ridge="auto"`` on runs that were left out in turn.

        Raises:
            UsageError: nothing was seen, or one run only with ``ridge="auto"``.
        """
        seen = {name: sums for name, sums in self.layers.items() if sums.folds}
        if not seen:
            raise UsageError("projection_fit has seen no call: patch a pipeline with it and run some prompts first")
        if self.ridge == "auto" and any(len(sums.folds) < 2 for sums in seen.values()):
            raise UsageError("projection_fit has seen one sampling run: run two prompts or more, or give ridge=1.0")
        return {name: sums.solve(self.ridge) for name, sums in seen.items()}

    def write(self, path: str | Path) -> Path:
        """:meth:`solve`, and the weights file for ``sparse_linear``'s ``weights=``."""
        self.solve()
        return self.held["weights"].save(path)
