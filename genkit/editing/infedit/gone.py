"""Things that go: where words of the source prompt act in the input and the two prompts disagree. Only there it
changes, and what acts elsewhere in the picture does not act there."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch

from genkit.control import Reweight, Rule, Where
from genkit.editing.infedit.sampler import SOURCE, TARGET
from genkit.editing.shared.blend import from_least, level_of, map_grid, on_latents, read_in
from genkit.editing.shared.branches import Branch, Branches
from genkit.editing.shared.model import EditModel
from genkit.editing.shared.prompts import aligned, positions

#: Threshold where nobody says. On 24 pictures of each toy model the mask then has all of the thing but 4 % at most, and
#: beyond its rim nothing (in 21 of toy-image's and all of toy-dit's) up to a third of its area.
USUAL = 0.25
#: Where the thing surely is, so that what acts around it can be told from what acts elsewhere.
_SURELY = 0.6
#: Signal by noise where answers are compared: with less of it the picture no longer says where its things are.
_COMPARED = 0.54
#: Draws of noise that are averaged; with one the difference has holes.
_DRAWS = 2
#: A word acts elsewhere if, around what goes, it acts less than this share of where it acts most (the mean of the upper
#: 5 %). Things that stay had 0.02 to 0.29 there, the colour of the background 0.30 to 0.68.
_ELSEWHERE, _MOST = 0.3, 0.05
#: How far around, in rims.
_AROUND = 5


@dataclass(frozen=True, eq=False)
class Gone:
    """What goes, from the first step to the result: outside the result is the input.

    Words tell where the thing is, but act a little on what is like it, too; the difference of the answers to the two
    prompts outlines it, but also what is drawn anew. The geometric mean of both is high on the thing alone. In the
    hole the prompt's things would be drawn a second time, so words of them do not act there. Which those are, the
    picture tells: what acts around the thing goes on where it was, what acts elsewhere does not; nor does a place
    belong to the thing where that acts more.

    Args:
        mask: bool (1, 1, [T,] h, w), where it is and its rim.
        rules: of the target's attention.
        source: (1, ...) latents of the input.
    """

    mask: torch.Tensor
    rules: tuple[Rule, ...]
    source: torch.Tensor

    @classmethod
    def of(
        cls, model: EditModel, pipe: Any, source: torch.Tensor, prompts: tuple[str, str], words: tuple[str, ...],
        stay: tuple[str, ...], threshold: float, slots: int | None,
    ) -> Gone:  # fmt: skip
        """Look it up in the input.

        Args:
            model, pipe: see :class:`EditModel`.
            source: (1, ...) latents of the input.
            prompts: of source and target.
            words: of the source prompt, for what goes.
            stay: words of the target that surely do not act where something goes.
            threshold: of the geometric mean of both maps, 0..1.
            slots: text tokens, where they can be chosen.

        Cost: five rows of the denoiser.

        Raises:
            UsageError: a word that a prompt does not have.
        """
        tokens, maps = read_in(model, source, prompts[0], (prompts[0],), slots)

        def acting(chosen: Collection[int]) -> torch.Tensor:
            return from_least(maps[..., [tokens.index(token) for token in chosen]], source)

        going = positions(pipe, prompts[0], words, slots)
        here = acting(going)
        found = (here * disagreement(model, source, prompts, slots)).sqrt()
        found, rim = found / found.amax().clamp(min=1e-12), _rim(model, source)
        surely = _grown(found > _SURELY, rim)
        around = _grown(surely, (_AROUND - 1) * rim) & ~surely
        partners = _partners(pipe, prompts, slots)
        named = positions(pipe, prompts[0], stay, slots) if stay else ()
        elsewhere = [
            token for number, token in enumerate(tokens)
            if token in named or (token in partners and token not in going
            and _acts_elsewhere(on_latents(maps[..., [number]], source, smooth=True), surely, around))
        ]  # fmt: skip
        mask = found > threshold
        if elsewhere:
            mask &= here > acting(elsewhere)
        mask = _grown(mask, rim)
        blind = {*(partners[token] for token in elsewhere if token in partners)}
        blind |= {*positions(pipe, prompts[1], stay, slots)} if stay else set()
        rules: tuple[Rule, ...] = ()
        if blind:
            where, region = Where(conditional=True), mask[0, 0].float()
            rules = (Reweight(tokens=tuple(sorted(blind)), weight=0.0, region=region, into=TARGET, where=where),)
        return cls(mask, rules, source)

    def blended(self, latents: torch.Tensor) -> torch.Tensor:
        """Clean latents of the target, as in the input wherever nothing goes."""
        return torch.where(self.mask, latents, self.source)


def disagreement(
    model: EditModel, source: torch.Tensor, prompts: tuple[str, str], slots: int | None = None
) -> torch.Tensor:
    """How far the denoiser's answers to two prompts are apart in a picture or clip: (1, 1, [T,] h, w), largest 1.

    The idea of DiffEdit (Couairon et al., 2022). The noise is the same in every call. Cost: four rows.
    """
    rows = Branches(model, {SOURCE: Branch(prompts[0]), TARGET: Branch(prompts[1])}, slots=slots)
    level, generator = level_of(model, _COMPARED), torch.Generator().manual_seed(0)
    total = torch.zeros_like(source[:, :1])
    with rows.under(()):
        for _ in range(_DRAWS):
            noisy = model.noised(source, model.draw(source, generator), level)
            answers = rows({SOURCE: noisy, TARGET: noisy}, level, 0, 1)
            seen = {role: model.clean(noisy, answer, level) for role, answer in answers.items()}
            total += (seen[SOURCE] - seen[TARGET]).square().sum(1, keepdim=True)
    return total.sqrt() / total.sqrt().amax().clamp(min=1e-12)


def _partners(pipe: Any, prompts: tuple[str, str], slots: int | None) -> dict[int, int]:
    """Token of the source prompt's words -> the one of the target's words that is the same."""
    if not prompts[1].strip():
        return {}
    own = set(positions(pipe, prompts[1], (prompts[1],), slots))
    pairs = aligned(pipe, *prompts, slots=slots).pairs()
    return {partner: token for partner, token in pairs if token in own}


def _acts_elsewhere(found: torch.Tensor, surely: torch.Tensor, around: torch.Tensor) -> bool:
    """Whether a word with this map acts elsewhere than around what goes; all (1, 1, [T,] h, w)."""
    rest = found[~surely]
    if not bool(around.any()):
        return False
    most = rest.topk(max(1, round(_MOST * len(rest)))).values.mean()
    return bool(found[around].mean() < _ELSEWHERE * most)


def _rim(model: EditModel, source: torch.Tensor) -> int:
    """Half a token of the maps in latents: edges are somewhere within a token."""
    grid = map_grid(model, source)
    return 1 if grid is None else max(1, source.shape[-2] // grid[0] // 2)


def _grown(mask: torch.Tensor, wide: int) -> torch.Tensor:
    """A mask (1, 1, [T,] h, w) and ``wide`` latents around it, in space."""
    flat = mask.float().flatten(0, -3)[:, None]
    return (torch.nn.functional.max_pool2d(flat, 2 * wide + 1, 1, wide) > 0.5)[:, 0].view(mask.shape)
