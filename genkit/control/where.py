"""Where and when a rule of a control applies: kinds of attention, layers, token grids, share of the steps, half."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from typing import Any

from genkit.attention.site import Site
from genkit.errors import UsageError, explain
from genkit.patching.parts import as_roles
from genkit.patching.schedule import Schedule, resolve

_EPSILON = 1e-9  # of a step: 0.3 * 10 is 3, not 2.9999999999999996


@dataclass(frozen=True)
class Where:
    """Where and when a rule applies; what is not said is not restricted.

    Args:
        roles: kinds of attention ("self", "cross", "joint", ...), one or several; None = the usual ones of the rule.
        layers: indices among the layers of a kind, as ``genkit.Schedule`` takes them ("25:", "0,3:5").
        names: regular expression searched for in a layer's dotted name ("up_blocks\\\\.1", "mid_block").
        grids: token grids (H, W) or (T, H, W) of the queries; None = all. Layers of UNets differ in them.
        max_tokens, min_tokens: bounds for the grid tokens that ask.
        start, stop: half-open share of the sampling steps: applies where ``start <= step / steps < stop``.
        steps: exact step indices as ``genkit.Schedule`` takes them, besides ``start`` and ``stop``.
        conditional: only this half of guidance; None = both.
        keys: "text" or "image": whose keys a cross-attention call must have (image prompt adapters attend in calls
            of their own); None = both.

    Example:
        >>> early = Where(roles="self", stop=0.6, max_tokens=1024)
        >>> early.at_step(5, 10), early.at_step(6, 10)
        (True, False)
    """

    roles: str | tuple[str, ...] | None = None
    layers: Any = None
    names: str | None = None
    grids: tuple[tuple[int, ...], ...] | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    start: float = 0.0
    stop: float = 1.0
    steps: Any = None
    conditional: bool | None = None
    keys: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "roles", as_roles(self.roles))
        schedule = Schedule(layers=self.layers, steps=self.steps)
        object.__setattr__(self, "layers", schedule.layers)
        object.__setattr__(self, "steps", schedule.steps)
        for name in ("start", "stop"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise UsageError(explain(f"where.{name}", value, "a share of the steps from 0 to 1"))
        if self.conditional not in (None, True, False):
            raise UsageError(explain("where.conditional", self.conditional, "True, False or None"))
        if self.keys not in (None, "text", "image"):
            raise UsageError(explain("where.keys", self.keys, ("text", "image")))
        if self.grids is not None:
            object.__setattr__(self, "grids", tuple(_grid(grid) for grid in self.grids))
        if self.names is not None:
            try:
                re.compile(self.names)
            except re.error as error:
                raise UsageError(f"where.names: {self.names!r} is no regular expression ({error})") from error

    def at_layer(self, name: str, role: str, layer: int, layers: int, usual: tuple[str, ...]) -> bool:
        """Whether a layer can be concerned, before anything runs; ``usual``: the rule's own kinds of attention."""
        if role not in (usual if self.roles is None else self.roles):
            return False
        if self.names is not None and re.search(self.names, name) is None:
            return False
        return layer in resolve("layers", self.layers, layers)

    def at_step(self, step: int | None, steps: int | None) -> bool:
        """Whether a sampling step is concerned.

        Raises:
            UsageError: a share of the steps, and nothing tells the step or how many there are.
        """
        if (self.start, self.stop) != (0, 1):
            if step is None or steps is None:
                raise UsageError(
                    "a rule applies to a share of the steps, but nothing tells the step of this call: call "
                    "control.begin(step=..., steps=...) before it"
                )
            done = step + _EPSILON
            if not (self.start * steps <= done and (self.stop == 1 or done < self.stop * steps)):
                return False
        if self.steps is None:
            return True
        if step is None:
            raise UsageError(
                "a rule names steps, but nothing tells the step of this call: call control.begin(step=...)"
            )
        if steps is None:
            return any(span.start <= step and (span.stop is None or step < span.stop) for span in self.steps)
        return step in resolve("steps", self.steps, steps)

    def at_call(self, site: Site) -> bool:
        """Whether an attention call has the grid and keys that are asked for."""
        tokens = prod(site.layout.grid)
        if self.grids is not None and site.layout.grid not in self.grids:
            return False
        if self.max_tokens is not None and tokens > self.max_tokens:
            return False
        if self.min_tokens is not None and tokens < self.min_tokens:
            return False
        if self.keys is None or site.role not in ("cross", "audio_cross"):
            return True
        return site.key_layout.span(self.keys) is not None


def _grid(grid: Any) -> tuple[int, int, int]:
    sides = tuple(grid) if isinstance(grid, (tuple, list)) else ()
    if len(sides) not in (2, 3) or any(isinstance(side, bool) or not isinstance(side, int) for side in sides):
        raise UsageError(explain("grid of where.grids", grid, "(H, W) or (T, H, W) in tokens"))
    return (1, *sides) if len(sides) == 2 else sides  # type: ignore[return-value]
