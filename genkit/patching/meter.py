"""What the attention of a denoiser costs: seconds, calls and operations of every attention module, patched or not."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch

from genkit.patching.counts import Stopwatch, start_watch

if TYPE_CHECKING:
    from genkit.attention.cache import PatchCache
    from genkit.attention.method import Method
    from genkit.attention.site import Site
    from genkit.patching.assignment import Assignment


@dataclass(frozen=True)
class AttentionCost:
    """What attention took.

    Operations count a multiplication and an addition as two: 4 x rows x heads x queries x keys x head size for the two
    products of softmax attention. Projections, normalisation and the softmax itself are not counted.

    Args:
        seconds: inside attention calls, methods and the model's own together; projections are not among them.
        calls: attention calls.
        dense: operations if every call were dense.
        computed, executed: operations of the pairs that methods want, and of those that the machine pays for; calls
            that no method served count in full. None when the density of a method that ran is unknown.
    """

    seconds: float
    calls: int
    dense: float
    computed: float | None
    executed: float | None

    @property
    def density(self) -> tuple[float | None, float | None]:
        """Computed and executed operations as shares of dense attention's."""
        if self.computed is None or self.executed is None or not self.dense:
            return None, None
        return self.computed / self.dense, self.executed / self.dense


@dataclass
class _Served:
    """Operations, were they dense, of the calls that a method served at one kind of site."""

    method: Method
    cache: PatchCache
    site: Site
    operations: float = 0.0


class Meter:
    """Counts of one attention module.

    Attributes: ``calls``, ``dense`` (operations, see :class:`AttentionCost`), ``time``.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Back to zero."""
        self.calls = 0
        self.dense = 0.0
        self.time = Stopwatch()
        self._served: dict[tuple[Any, ...], _Served] = {}

    @staticmethod
    def begin(q: torch.Tensor) -> object:
        """Begin a call; :meth:`end` takes what this returns."""
        return start_watch(q) if q.is_cuda else perf_counter()

    def end(self, begun: object, q: torch.Tensor, k: torch.Tensor) -> None:
        """A call on (B, N, H, D) queries and keys is done."""
        self.time.stop(begun)
        self.calls += 1
        self.dense += operations(q, k)

    def served(self, assignment: Assignment, site: Site, q: torch.Tensor, k: torch.Tensor) -> None:
        """A method served the call, on the heads of ``site``."""
        key = (id(assignment), site.layout, site.key_layout, site.heads, site.scale, site.finest)
        found = self._served.get(key)
        if found is None:
            plain = site.at(None, None, None)
            found = self._served[key] = _Served(assignment.method, assignment.cache, plain)
        found.operations += operations(q, k) * site.heads / q.shape[2]

    def methods(self) -> list[tuple[Method, Site]]:
        """Methods that served calls, with the kinds of sites they served."""
        return [(each.method, each.site) for each in self._served.values()]

    def saved(self) -> tuple[float, float] | None:
        """Operations that methods left out, of those they want and of those they execute; None when unknown."""
        computed = executed = 0.0
        for each in self._served.values():
            if each.method.adds:
                continue
            density = each.method.density(each.site, each.cache)
            if density is None:
                return None
            computed += each.operations * (1 - density.computed)
            executed += each.operations * (1 - density.executed)
        return computed, executed


def operations(q: torch.Tensor, k: torch.Tensor) -> float:
    """Operations of dense attention of (B, Nq, H, D) queries and (B, Nk, Hk, D) keys."""
    rows, n_q, heads, width = q.shape
    return 4.0 * rows * n_q * k.shape[1] * heads * width
