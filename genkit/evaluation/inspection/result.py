"""What was seen of a run's attention, as numbers: by site, step and head, and summed up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class MethodLook:
    """A method at a site and step, against dense attention on the sampled queries.

    Args:
        recall: per head, the share of dense attention's mass on pairs that the method reads; None for methods that
            read no pairs of tokens (agents, states). Means of several keys do not count as reading them.
        error: relative error of the output, |method - dense| / |dense|, all heads together. head_error: of each head.
        computed, executed: density of the call, see :class:`genkit.attention.method.Density`; None when unknown.
    """

    recall: np.ndarray | None
    error: float
    head_error: np.ndarray
    computed: float | None
    executed: float | None


@dataclass(frozen=True)
class StepLook:
    """The attention of a site at a sampling step. Shares are of the softmax's mass, means over the sampled queries.

    Args:
        step: from 0; None outside of a loop.
        queries: how many were looked at (entries of the batch and prompts together).
        temporal: (H, T) mass by distance in frames. spatial: (H, S) by distance within the frame in whole tokens
            (Euclidean, rounded), whatever the frame. Each sums to the mass on grid tokens.
        outside: segment (``text``) -> (H,) mass on its tokens.
        keys: share of the mass (0.9, 0.95) -> (H,) the smallest share of visible keys that holds it.
        methods: method -> what it makes of it.
    """

    step: int | None
    queries: int
    temporal: np.ndarray
    spatial: np.ndarray
    outside: dict[str, np.ndarray]
    keys: dict[float, np.ndarray]
    methods: dict[str, MethodLook] = field(default_factory=dict)


@dataclass(frozen=True)
class SiteLook:
    """One attention layer.

    Args:
        name, role, layer, heads: as in :class:`genkit.attention.site.Site`.
        grid: tokens along time, height and width. tokens: of the whole sequence.
        steps: in order.
        both: (T, S) mass by distance in frames and within the frame, mean over heads and steps.
        operations: of one dense call, as :class:`genkit.patching.AttentionCost` counts them.
        even_temporal, even_spatial: mass by distance if every grid token weighed the same, for these queries.
    """

    name: str
    role: str
    layer: int
    heads: int
    grid: tuple[int, int, int]
    tokens: int
    operations: float
    steps: tuple[StepLook, ...]
    both: np.ndarray
    even_temporal: np.ndarray
    even_spatial: np.ndarray


@dataclass(frozen=True)
class AttentionLook:
    """What :class:`genkit.evaluation.inspection.Look` saw.

    Args:
        sites: in the model's order.
        queries: sampled per call, at most.
        left_out: method -> layers it could not serve, with the reason.
    """

    sites: tuple[SiteLook, ...]
    queries: int
    left_out: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that were compared, in order."""
        return tuple(dict.fromkeys(name for site in self.sites for each in site.steps for name in each.methods))

    def recall(self, method: str) -> float | None:
        """Share of dense attention's mass that a method reads, the mean over sites, steps and heads; None: unknown."""
        found = [each.methods[method].recall for site in self.sites for each in site.steps if method in each.methods]
        known = [float(values.mean()) for values in found if values is not None]
        return float(np.mean(known)) if known else None

    def error(self, method: str) -> float | None:
        """Relative error of a method's output, the mean over sites and steps."""
        found = [each.methods[method].error for site in self.sites for each in site.steps if method in each.methods]
        return float(np.mean(found)) if found else None

    def density(self, method: str) -> tuple[float | None, float | None]:
        """Computed and executed density of a method, the mean over sites and steps."""
        found = [each.methods[method] for site in self.sites for each in site.steps if method in each.methods]
        return _mean([each.computed for each in found]), _mean([each.executed for each in found])

    def rows(self) -> list[dict[str, Any]]:
        """One line a site, means over its steps and heads, for tables."""
        return [self._row(site) for site in self.sites]

    def _row(self, site: SiteLook) -> dict[str, Any]:
        row: dict[str, Any] = {
            "layer": site.name,
            "own frame": _over(site.steps, lambda each: each.temporal[:, 0].mean()),
            "elsewhere in the clip": _over(site.steps, lambda each: each.temporal[:, 1:].sum(1).mean()),
            **{
                name: _over(site.steps, lambda each, name=name: each.outside[name].mean())
                for name in site.steps[0].outside
            },
            **{
                f"keys for {share:.0%}": _over(site.steps, lambda each, share=share: each.keys[share].mean())
                for share in site.steps[0].keys
            },
        }
        for method in self.methods:
            seen = [each.methods[method] for each in site.steps if method in each.methods]
            kept = [float(each.recall.mean()) for each in seen if each.recall is not None]
            of = "" if len(self.methods) == 1 else f" by {method}"
            row[f"mass kept{of}"] = float(np.mean(kept)) if kept else None
            row[f"error{of}"] = float(np.mean([each.error for each in seen])) if seen else None
        return row

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON."""
        return {
            "queries": self.queries,
            "methods": {
                name: {
                    "recall": self.recall(name),
                    "error": self.error(name),
                    "density": dict(zip(("computed", "executed"), self.density(name), strict=True)),
                    "left_out": self.left_out.get(name, {}),
                }
                for name in dict.fromkeys([*self.methods, *self.left_out])
            },
            "sites": [_site(site) for site in self.sites],
        }


def _over(steps: Sequence[StepLook], value: Any) -> float:
    return float(np.mean([value(each) for each in steps]))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def _plain(values: np.ndarray) -> list:
    """Numbers with six digits: nobody reads more of a sample."""
    return np.vectorize(lambda value: float(f"{value:.6g}"), otypes=[float])(values).tolist() if values.size else []


def _site(site: SiteLook) -> dict[str, Any]:
    return {
        "name": site.name,
        "role": site.role,
        "layer": site.layer,
        "heads": site.heads,
        "grid": list(site.grid),
        "tokens": site.tokens,
        "mass by frames and tokens apart": _plain(site.both),
        "even by frames apart": _plain(site.even_temporal),
        "even by tokens apart": _plain(site.even_spatial),
        "steps": [
            {
                "step": each.step,
                "queries": each.queries,
                "mass by frames apart": _plain(each.temporal.mean(0)),
                "mass by tokens apart": _plain(each.spatial.mean(0)),
                "mass outside the grid": {name: _plain(values) for name, values in each.outside.items()},
                "mass in the own frame": _plain(each.temporal[:, 0]),
                "share of keys that holds": {f"{share:g}": _plain(values) for share, values in each.keys.items()},
                "methods": {name: _method(found) for name, found in each.methods.items()},
            }
            for each in site.steps
        ],
    }


def _method(found: MethodLook) -> dict[str, Any]:
    return {
        "recall": None if found.recall is None else _plain(found.recall),
        "error": found.error,
        "error of heads": _plain(found.head_error),
        "density": {"computed": found.computed, "executed": found.executed},
    }
