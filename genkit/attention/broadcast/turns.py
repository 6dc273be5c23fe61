"""What a layer gave in earlier steps of a run, call by call."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from genkit.attention.site import Site


@dataclass
class _Kept:
    """An output and the step it was computed at."""

    step: int
    output: torch.Tensor


@dataclass
class Turns:
    """The outputs that a layer keeps in one branch of guidance.

    A pipeline that does not tell its branches calls a layer several times a step, always in the same order: the n-th
    call of a step is compared with the n-th call of earlier ones, so that branches are never mixed.

    Attributes: ``run``, ``step``, ``turn``: of the latest call. ``calls``, ``computed``: how many came, and of how many
    the attention was computed. ``fresh``: whether the latest one was.
    """

    run: int = -1
    step: int = -1
    turn: int = 0
    calls: int = 0
    computed: int = 0
    fresh: bool = True
    _kept: dict[int, _Kept] = field(default_factory=dict)

    def begin(self, site: Site) -> None:
        """A call comes. Another run, or a step before the latest one, forgets what was kept."""
        assert site.step is not None
        if site.run != self.run or site.step < self.step:
            self._kept.clear()
            self.turn = 0
        else:
            self.turn = self.turn + 1 if site.step == self.step else 0
        self.run, self.step = site.run, site.step

    def found(self, like: torch.Tensor, width: int, every: int) -> torch.Tensor | None:
        """The output that still serves, (B, Nq, H, width) as ``like`` (B, Nq, H, D); None when it is too old."""
        kept = self._kept.get(self.turn)
        if kept is None or self.step - kept.step >= every:
            return None
        out = kept.output
        same = out.shape == (*like.shape[:3], width) and out.dtype == like.dtype and out.device == like.device
        return out if same else None

    def keep(self, output: torch.Tensor) -> None:
        """Store what this call gave."""
        self._kept[self.turn] = _Kept(self.step, output)

    def count(self, fresh: bool) -> None:
        """Note whether this call was computed."""
        self.calls += 1
        self.computed += fresh
        self.fresh = fresh
