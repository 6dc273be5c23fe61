"""Maps that rules read: averaged over layers while the model runs, and over calls; nothing else is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from genkit.errors import UsageError, explain

if TYPE_CHECKING:
    import torch

Grid = tuple[int, int, int]


@dataclass
class _Sum:
    """A running mean: a sum and how many it has taken in."""

    total: torch.Tensor
    count: int = 1

    def add(self, value: torch.Tensor) -> None:
        self.total = self.total + value
        self.count += 1

    @property
    def mean(self) -> torch.Tensor:
        return self.total / self.count


class Maps:
    """The maps of a control.

    ``latest(name)`` is the mean over heads and layers of the latest denoiser call that read the name, ``mean(name)``
    the mean over all calls since ``clear()``. Shapes: (rows, T, H, W, tokens), rows in the order of the
    batch; of sound (rows, tokens of sound, 1, 1, tokens).
    """

    def __init__(self) -> None:
        self._call = 0
        self._now: dict[str, tuple[int, dict[Grid, _Sum]]] = {}
        self._past: dict[str, dict[Grid, _Sum]] = {}

    def new_call(self) -> None:
        """Another denoiser call begins."""
        self._call += 1

    def add(self, name: str, grid: Grid, value: torch.Tensor) -> None:
        """One layer's map (rows, T*H*W, tokens)."""
        value = value.unflatten(1, grid)
        call, now = self._now.get(name, (-1, {}))
        if call != self._call:
            self._fold(name)
            now = {}
            self._now[name] = (self._call, now)
        if grid in now:
            now[grid].add(value)
        else:
            now[grid] = _Sum(value)

    def _fold(self, name: str) -> None:
        """Take the latest call into the mean over calls; without its graph."""
        past = self._past.setdefault(name, {})
        for grid, found in self._now.get(name, (0, {}))[1].items():
            value = found.mean.detach()
            if grid in past and past[grid].total.shape == value.shape:
                past[grid].add(value)
            else:
                past[grid] = _Sum(value)

    @property
    def names(self) -> tuple[str, ...]:
        """Names that were read."""
        return tuple(self._now)

    def latest(self, name: str, grid: Grid | tuple[int, int] | None = None) -> torch.Tensor:
        """The latest call's map. ``grid``: which token grid, (H, W) or (T, H, W), when layers of several were read."""
        return _of_grid(self._at(name), grid, name).mean

    def mean(self, name: str, grid: Grid | tuple[int, int] | None = None) -> torch.Tensor:
        """The mean over all calls, the latest included; see :meth:`latest`."""
        now = _of_grid(self._at(name), grid, name).mean.detach()
        past = self._past.get(name, {})
        if not past:
            return now
        before = past.get(_key(grid)) if grid is not None else next(iter(past.values()))
        if before is None or before.total.shape != now.shape:
            return now
        return (before.total + now) / (before.count + 1)

    def timeline(self, name: str, grid: Grid | None = None) -> torch.Tensor:
        """When words act in a clip: the latest call's map as (rows, T), mean over the picture and the tokens
        (MotionCLR's grounding: peaks tell when and how often)."""
        return self.latest(name, grid).mean((2, 3, 4))

    def clear(self) -> None:
        """Forget everything: a new run begins."""
        self._now.clear()
        self._past.clear()

    def _at(self, name: str) -> dict[Grid, _Sum]:
        if name not in self._now:
            raise UsageError(
                explain(
                    "map", name, list(self._now) or "nothing was read yet", "no call reached a layer it is read from"
                )
            )
        return self._now[name][1]


def _key(grid: Grid | tuple[int, int]) -> Grid:
    return (1, *grid) if len(grid) == 2 else grid  # type: ignore[return-value]


def _of_grid(found: dict[Grid, _Sum], grid: Grid | tuple[int, int] | None, name: str) -> _Sum:
    if grid is None:
        if len(found) > 1:
            raise UsageError(explain(f"grid of map {name}", grid, [str(each) for each in found], "say which"))
        return next(iter(found.values()))
    if _key(grid) not in found:
        raise UsageError(explain(f"grid of map {name}", grid, [str(each) for each in found]))
    return found[_key(grid)]
