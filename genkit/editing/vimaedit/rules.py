"""The rules of a run: the source's maps in the target for a while, and what is read for grounding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from genkit.control import Control, KeepPairs, ReadMaps, Refine, Rule, Take, Where
from genkit.control.alignment import Alignment

SOURCE, TARGET = "source", "target"
Grid = tuple[int, int]


def injection(alignment: Alignment, steps: int, tokens: int, *, keep: float, words: float, images: float) -> list[Rule]:
    """The source's attention in the target, in the conditional half only.

    Args:
        alignment: of the prompts' tokens.
        steps: of the run.
        tokens: layers of more picture tokens keep their own self-attention.
        keep: share of the steps in which self-attention maps are the source's.
        words: in which maps of shared words are.
        images: in which maps of image prompts are; 0 without an adapter.
    """
    early, refined, seen = (round(share * steps) for share in (keep, words, images))
    found: list[Rule] = []
    if early:
        where = Where(steps=f"0:{early}", max_tokens=tokens, conditional=True)
        found.append(Take("qk", SOURCE, TARGET, where=where))
    if refined:
        where = Where(steps=f"0:{refined}", conditional=True)
        found.append(Refine(of=SOURCE, into=TARGET, alignment=alignment, where=where))
    if seen:
        where = Where(roles="cross", keys="image", steps=f"0:{seen}", max_tokens=tokens, conditional=True)
        found.append(Take("qk", SOURCE, TARGET, where=where))
    return found


@dataclass(frozen=True)
class Reader:
    """Maps of words, spread along self-attention: read after every call, with the rules in force that change them.

    Args:
        tokens: of every row that is read, positions of its words; a row without words is not read.
        cross, pairs: (H, W) tokens of the layers whose cross- and self-attention is read; None = all, of models with
            one grid.
        rounds, keep: of the spreading.
    """

    tokens: Mapping[str, tuple[int, ...]]
    cross: Grid | None
    pairs: Grid | None
    rounds: int
    keep: float

    def rules(self) -> list[Rule]:
        """What is read."""
        found: list[Rule] = []
        for role, tokens in self.tokens.items():
            cross, pairs = (Where(grids=grid and (grid,), conditional=True) for grid in (self.cross, self.pairs))
            found.append(ReadMaps(name=role, of=role, tokens=tokens, where=cross))
            found.append(KeepPairs(name=role, of=role, where=pairs))
        return found

    def maps(self, control: Control) -> torch.Tensor:
        """(rows, h, w) on the grid of ``pairs``, of the latest call."""
        found = []
        for role in self.tokens:
            value = control.maps.latest(role, self.cross).sum(-1)  # (1, T, H, W)
            if self.pairs is not None and tuple(value.shape[-2:]) != self.pairs:
                value = torch.nn.functional.interpolate(value.float(), self.pairs, mode="nearest")
            found.append(control.propagate(role, value, rounds=self.rounds, keep=self.keep, grid=self.pairs)[0, 0])
        return torch.stack(found)
