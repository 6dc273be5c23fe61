"""The rules of a run with consistent subjects: isolation, reposition and mixing of texts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from genkit.control import Extra, Forbid, Mix, Rule, Seen, Tokens, Where
from genkit.editing.ir_diffusion.masks import on_grid
from genkit.editing.ir_diffusion.reposition import dropped, reposition

_PRIME = 1_000_003
#: Share of the steps after which subjects are where the rehearsal has them. Masks tell where they are in its finished
#: picture, and in the first steps, where places are decided, control draws them elsewhere. On three tuning sets of two
#: subjects on toy-image (24 subjects) 4 look as described from the first step on, 21 from a fifth of the steps on, 24
#: with this share; half of the steps are too late for some textures (15 of 16).
SETTLED = 0.35


@dataclass(frozen=True)
class Strengths:
    """How the parts of the method act.

    Args:
        isolation: tokens of two subjects do not read each other.
        reposition: a subject's tokens read its reference.
        first_layer: share of the self- or joint attention layers before which nothing is repositioned.
        start: share of the steps before which nothing acts on a subject; None = :data:`SETTLED` where its place was
            found, 0 where a box sets it.
        dropout: share of a subject's tokens that do not read the reference, drawn anew in every step.
        bonus: added to the scores of the reference.
        text: share of a subject's own prompt in what its tokens read of the texts.
    """

    isolation: bool = True
    reposition: bool = True
    first_layer: float = 36 / 70
    start: float | None = None
    dropout: float = 0.5
    bonus: float = 0.0
    text: float = 0.9

    def begins(self, boxed: bool) -> float:
        """Share of the steps before which nothing acts on a subject."""
        if self.start is not None:
            return self.start
        return 0.0 if boxed else SETTLED


def rules_of_scene(
    scene: str,
    references: Mapping[str, torch.Tensor],
    places: Mapping[str, torch.Tensor],
    words: Mapping[str, tuple[int, ...]],
    strengths: Strengths,
    layers: Mapping[str, int],
    seed: int,
    boxed: Collection[str] = (),
) -> list[Rule]:
    """What a scene's row does.

    Args:
        scene: its role.
        references: role of a subject -> bool (H, W), where it is in its own picture.
        places: role of a subject -> bool (H, W), where it is in the scene, disjoint.
        words: role of a subject -> positions of its words in the scene's text; empty where it is not named.
        strengths: of the parts.
        layers: kind of attention -> how many layers of it the model has.
        seed: of the dropout.
        boxed: roles of the subjects that a box brings to their place.
    """
    present = {role: mask for role, mask in places.items() if bool(mask.any())}
    found: list[Rule] = []
    if strengths.isolation and len(present) > 1:
        for role, mask in present.items():
            others = torch.stack([other for name, other in present.items() if name != role]).any(0)
            theirs = tuple(token for name in present if name != role for token in words.get(name, ()))
            own, start = set(words.get(role, ())), strengths.begins(role in boxed)
            where = Where(start=start)
            found.append(Forbid(queries=_Covered(mask), keys=_Covered(others), into=scene, where=where))
            if "joint" in layers and set(theirs) - own:
                keys, where = Tokens(text=tuple(sorted(set(theirs) - own))), Where(roles="joint", start=start)
                found.append(Forbid(queries=_Covered(mask), keys=keys, into=scene, where=where))
    for number, (role, mask) in enumerate(present.items()):
        reference, start = references[role], strengths.begins(role in boxed)
        if strengths.reposition and bool(reference.any()):
            for kind, count in layers.items():
                if kind not in ("self", "joint"):
                    continue
                where = Where(roles=kind, layers=f"{round(strengths.first_layer * count)}:", start=start)
                moved = _Moved(reference, mask, strengths.dropout, seed * _PRIME + number)
                weight = float(torch.tensor(strengths.bonus).exp())
                found.append(
                    Extra(of=role, into=scene, queries=moved.asking, keys=moved.read, weight=weight, where=where)
                )
        if strengths.text:
            where = Where(start=start)
            found.append(Mix(of=role, into=scene, share=strengths.text, queries=_Covered(mask), where=where))
    return found


class _Covered:
    """A mask as the tokens it covers on a call's grid."""

    def __init__(self, mask: torch.Tensor):
        self.mask = mask
        self._found: dict[tuple[int, int], torch.Tensor] = {}

    def __call__(self, seen: Seen) -> torch.Tensor:
        grid = seen.site.layout.grid[1:]
        if grid not in self._found:
            self._found[grid] = on_grid(self.mask, grid)
        return self._found[grid]


class _Moved:
    """A reference's subject, brought to its place in the scene, on every grid."""

    def __init__(self, reference: torch.Tensor, place: torch.Tensor, dropout: float, seed: int):
        self.reference, self.place = _Covered(reference), _Covered(place)
        self.dropout, self.seed = dropout, seed
        self._picked: dict[tuple[int, int], torch.Tensor] = {}
        self._drawn: dict[tuple[int, int], tuple[int | None, torch.Tensor]] = {}

    def read(self, seen: Seen) -> torch.Tensor:
        """Numbers of the reference's tokens that are read."""
        grid = seen.site.layout.grid[1:]
        if grid not in self._picked:
            self._picked[grid], _ = reposition(self.reference(seen).view(grid), self.place(seen).view(grid))
        return self._picked[grid]

    def asking(self, seen: Seen) -> torch.Tensor:
        """The scene's tokens that read them: drawn once a step and grid."""
        grid = seen.site.layout.grid[1:]
        if len(self.read(seen)) == 0:
            return torch.zeros_like(self.place(seen))
        step, found = self._drawn.get(grid, (-1, None))
        if found is None or step != seen.step:
            generator = torch.Generator().manual_seed((self.seed + _PRIME * (seen.step or 0)) % 2**62)
            found = dropped(self.place(seen), self.dropout, generator)
            self._drawn[grid] = (seen.step, found)
        return found
