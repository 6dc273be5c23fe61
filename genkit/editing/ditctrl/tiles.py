"""One denoising step of a long clip: the tiles' answers, pair by pair or all at once, blended into one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from genkit.control import Control
from genkit.control.rows import Rows
from genkit.editing.ditctrl.plan import Blend, Plan, Tile
from genkit.editing.ditctrl.sharing import MASK, Masks, Sharing, rules_of, shared_layers
from genkit.editing.shared.branches import Calls
from genkit.editing.shared.model import Conditions, EditModel

SOURCE, TARGET = "source", "target"


@dataclass(frozen=True, eq=False)
class Texts:
    """What the denoiser is told of every tile, one row a tile.

    Args:
        prompts, negatives: the two halves of guidance.
        words: of every tile the positions of the words of what stays, for masks; empty without masks.
    """

    prompts: Conditions
    negatives: Conditions
    words: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def of(
        cls, model: EditModel, plan: Plan, prompts: Sequence[str], negatives: Sequence[str], slots: int | None,
        words: Sequence[tuple[int, ...]] = (),
    ) -> Texts:  # fmt: skip
        """Texts of a plan's tiles: mixed between two prompts, with the negative one of the nearer.

        Args:
            prompts, negatives: one for each shot. words: of each prompt, likewise.
        """
        unique = list(dict.fromkeys([*prompts, *negatives]))
        made = model.texts(unique, slots)
        shots = made.rows([unique.index(prompt) for prompt in prompts])
        nearest = [tile.nearest for tile in plan.tiles]
        own = tuple(tuple(sorted({p for s, share in enumerate(t.shares) if share for p in words[s]}))
                    for t in plan.tiles) if words else ()  # fmt: skip
        return cls(
            Conditions.stacked([mixed(shots, tile.shares) for tile in plan.tiles]),
            made.rows([unique.index(negatives[shot]) for shot in nearest]),
            own,
        )

    def rows(self, tiles: Sequence[int], guided: bool) -> Conditions:
        """Those of some tiles, unconditional ones first."""
        prompts = self.prompts.rows(tiles)
        return Conditions.stacked([self.negatives.rows(tiles), prompts]) if guided else prompts


def mixed(shots: Conditions, shares: Sequence[float]) -> Conditions:
    """One row: the states of several prompts in shares that sum to 1; a token counts where any of them has one.

    Args:
        shots: one row for each share.
    """
    chosen = [number for number, share in enumerate(shares) if share > 0]
    if len(chosen) == 1:
        return shots.rows(chosen)
    found = {}
    for name, value in shots.tensors.items():
        if value.is_floating_point():
            parts = [shares[number] * value[number : number + 1] for number in chosen]
            found[name] = torch.stack(parts).sum(0)
        else:
            found[name] = torch.stack([value[number : number + 1] for number in chosen]).amax(0)
    return Conditions(found)


class TileCalls(Calls):
    """Answers of a clip by those of its tiles.

    Args:
        model: whose denoiser is called.
        plan: the tiles.
        texts: what it is told of them.
        guidance_scale: of classifier-free guidance, 1 = none; the input of denoisers that take one.
        sharing: which keys and values later tiles read.
        pairs: every tile with the one before it, which is read as the model makes it; otherwise all tiles in one call.
    """

    # Masks are those of the rows with the prompts, also for the other half.
    first_half = True

    def __init__(
        self, model: EditModel, plan: Plan, texts: Texts, guidance_scale: float, sharing: Sharing, pairs: bool
    ):
        embedded = model.embeds_guidance
        count = len(plan.tiles)
        self.pairs = pairs and count > 1
        self.roles = (SOURCE, TARGET) if self.pairs else tuple(f"tile {number}" for number in range(count))
        super().__init__(model, None, dict.fromkeys(self.roles, guidance_scale) if embedded else None)
        self.plan, self.texts, self.sharing = plan, texts, sharing
        self.scale = 1.0 if embedded else guidance_scale
        self.masks = None
        if sharing.form == MASK and sharing.acts and texts.words:
            self.masks = Masks(sharing.threshold, read=tuple(sorted({p for own in texts.words for p in own})))
        layers = shared_layers(model.network(1.0))
        joined = list(zip(self.roles, self.roles[1:], strict=False))
        self.rules = rules_of(joined, sharing, layers, self.masks) if joined else []

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """Within the block tiles share keys and values."""
        if not self.rules:
            yield
            return
        with Control(self.model.pipe, self.rules) as self.control:
            if self.masks is not None:
                self.masks.control = self.control
            try:
                yield
            finally:
                self.control = None

    def __call__(self, latents: torch.Tensor, level: float, step: int, steps: int) -> torch.Tensor:
        """The blended answer (1, C, T, h, w), after guidance.

        Args:
            latents: (1, C, T, h, w) of the whole clip. level: their noise level. step, steps: where the run is.
        """
        blend = Blend(self.plan, latents)
        for numbers in self._groups():
            tiles = [self.plan.tiles[number] for number in numbers]
            for tile, answer in zip(tiles, self._answers(numbers, tiles, latents, level, step, steps), strict=True):
                blend.add(tile, answer[None])
        return blend.result()

    def _groups(self) -> list[list[int]]:
        """Numbers of the tiles of every call."""
        count = len(self.plan.tiles)
        return [[first, first + 1] for first in range(count - 1)] if self.pairs else [list(range(count))]

    def _answers(
        self, numbers: list[int], tiles: list[Tile], latents: torch.Tensor, level: float, step: int, steps: int
    ) -> torch.Tensor:
        """(tiles, C, L, h, w) after guidance."""
        guided = self.scale != 1
        rows = Rows.of(*self.roles, guided=guided)
        batch = torch.cat([latents[:, :, self.plan.window(tile)] for tile in tiles])
        if self.masks is not None:
            self.masks.tokens = dict(zip(self.roles, (self.texts.words[number] for number in numbers), strict=True))
        found = self.answers(
            rows, torch.cat([batch, batch]) if guided else batch, self.texts.rows(numbers, guided), level, step, steps
        )
        if not guided:
            return found
        without, asked = found.chunk(2)
        return without + self.scale * (asked - without)
