"""The loss of kind ``self-forcing``: streams of the student's own, as likely as the teacher's clips (Self-Forcing).

The student rolls out chunk by chunk from noise, over the cache that its own chunks fill. In every micro-batch one of
its steps is drawn, the same for all chunks: there a chunk ends, with the clean latents that the step's answer stands
for, and through that step alone a gradient flows. Steps before it, clean passes and what the state takes in are without
one. The last clip of the roll-out, as long as the teacher's, is matched as in kind ``tdm``: fake scores learn to
denoise it at any level, and the student moves along the difference to what the guided teacher makes of it.

A clip that does not begin the stream has a first latent frame that stands for several frames; a clip's stands for one.
Its last frame is decoded and encoded as a picture in its place, and no gradient flows there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from genkit.errors import UnsupportedError
from genkit.families.training.base import Tensors
from genkit.families.training.objectives import shifted
from genkit.families.training.parts import facts
from genkit.training.distill.chunked import Rollout
from genkit.training.distill.grid import Grid, strides
from genkit.training.distill.student import Parts, Teaching
from genkit.training.distill.tdm import HIGHEST, LOWEST, TdmOptions, TdmTask, noised_again
from genkit.training.lora.adapter import Adapter

_EXIT, _FRESH, _LEVEL, _AGAIN = 40, 41, 42, 43
#: Latent frames before a clip that are decoded with its first one, so that the decoder knows what came before.
_BEFORE = 2


@dataclass(frozen=True)
class ForcingOptions:
    """How a student is forced.

    Args:
        longest: chunks of the longest roll-out; every one is drawn from those of a clip up to these.
        shift: of the levels at which clips are matched.
        reflow: weight of the distance to the teacher's clip from the same noise.
    """

    longest: int
    shift: float = 1.0
    reflow: float = 0.0


@dataclass(frozen=True)
class _Rolled:
    """A roll-out: clean latents (B, C, T, h, w) of all chunks, the step where they end, the noise they began with."""

    made: torch.Tensor
    exit: int
    noise: torch.Tensor


class ForcingTask(TdmTask):
    """A student that makes streams, and the fake scores of their clips.

    Args:
        parts, teaching, grid, fake, options: see :class:`TdmTask`.
        rollout: the student over its cache.
        forcing: how.
    """

    def __init__(
        self, parts: Parts, teaching: Teaching, grid: Grid, fake: Adapter, options: TdmOptions, rollout: Rollout,
        forcing: ForcingOptions,
    ):  # fmt: skip
        super().__init__(parts, teaching, grid, fake, options)
        self.rollout, self.state, self.forcing = rollout, rollout.state, forcing
        self._long = strides(teaching.objective, grid.levels)
        self._last: _Rolled | None = None

    def roll(
        self, text: Tensors, noise: Callable[[int, int], torch.Tensor], exit: int, count: int, graph: int | None = None
    ) -> list[torch.Tensor]:
        """The clean latents (B, C, T, h, w) of every chunk of a roll-out.

        Args:
            text: of the prompts.
            noise: (chunk, step) -> fresh noise before that step.
            exit: step of the student where every chunk ends.
            count: chunks.
            graph: first chunk whose last step keeps a graph; None for none.
        """
        objective, levels, found = self.teaching.objective, self.grid.levels, []

        def answer(noisy: torch.Tensor, level: torch.Tensor | float) -> torch.Tensor:
            return self._answer(self.network, noisy, level, text, self._told_guidance())

        first = noise(0, 0)
        with self.rollout.video(first) as video:
            for chunk in range(count):
                noisy = noise(chunk, 0) if chunk else first
                video.begin(self.rollout.tokens(noisy))
                for step in range(exit + 1):
                    level = torch.full((len(noisy),), levels[step], device=noisy.device)
                    last = step == exit
                    with torch.set_grad_enabled(last and graph is not None and chunk >= graph):
                        told = video.ask(answer, noisy, level).float()
                        clean = objective.clean(noisy, told, level)
                    if last:
                        break
                    if self.rollout.chunked.renoise:
                        signal, spread = objective.parts(torch.full_like(level, levels[step + 1]), clean)
                        noisy = signal * clean + spread * noise(chunk, step + 1)
                    else:
                        noisy = self._long[step].go(noisy, told)
                found.append(clean)
                if chunk + 1 < count:
                    video.keep(answer, clean.detach())
        return found

    def _roll(self, found: int, part: int, rank: int, text: Tensors) -> list[torch.Tensor]:
        """Nothing is kept for a round: every update has a roll-out of its own."""
        return []

    def _rolled_out(self, step: int, part: int, rank: int, text: Tensors, train: bool) -> _Rolled:
        """The roll-out of an update."""
        chunked, draw = self.rollout.chunked, self._generator(_EXIT, step, part)
        exit = int(torch.randint(self.grid.steps, (), generator=draw))
        count = int(torch.randint(chunked.chunks, self.forcing.longest + 1, (), generator=draw))
        begun: dict[int, torch.Tensor] = {}

        def noise(chunk: int, at: int) -> torch.Tensor:
            found = self._chunk_noise(step, part, rank, chunk, at)
            if at == 0:
                begun[chunk] = found
            return found

        made = self.roll(text, noise, exit, count, count - chunked.chunks if train else None)
        return _Rolled(torch.cat(made, 2), exit, torch.cat([begun[chunk] for chunk in range(count)], 2))

    def _chunk_noise(self, step: int, part: int, rank: int, chunk: int, at: int) -> torch.Tensor:
        channels, _, *plane = self.teaching.shape
        shape = (channels, self.rollout.chunked.window.chunk, *plane)
        draws = (self._generator(_FRESH, step, part, place, chunk, at) for place in self.places(rank))
        return torch.stack([torch.randn(shape, generator=each) for each in draws]).to(self.device)

    def _matched(
        self, step: int, part: int, rank: int, text: Tensors, rolled: list[torch.Tensor], train: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The last clip of a roll-out, noised again, and its level (B,)."""
        self._last = found = self._rolled_out(step, part, rank, text, train)
        clean = self._clip(found.made)
        with torch.no_grad():
            draws = [
                torch.rand((), generator=self._generator(_LEVEL, step, part, place)) for place in self.places(rank)
            ]
            level = shifted(torch.stack(draws), self.forcing.shift).clamp(LOWEST, HIGHEST).to(clean.device)
            again = noised_again(
                clean, self._noise(_AGAIN, step, rank, part), self.teaching.objective, torch.zeros_like(level), level
            )
        return clean, again, level

    def _clip(self, made: torch.Tensor) -> torch.Tensor:
        """The last latents of a stream as those of a clip."""
        start = made.shape[2] - self.rollout.chunked.frames
        if start == 0:
            return made
        with torch.no_grad():
            codec, vae = facts(self.pipeline).codec, self.pipeline.vae
            if codec is None:
                raise UnsupportedError(f"{type(self.pipeline).__name__}: nobody tells how its latents are normalised")
            pixels = codec.decode(vae, made[:, :, max(0, start - _BEFORE) : start + 1].detach())
            first = codec.encode(vae, pixels[:, :, -1:]).to(made)
        return torch.cat([first, made[:, :, start + 1 :]], 2)

    def _student_loss(
        self, step: int, part: int, rank: int, text: Tensors, rolled: list[torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, float]]:
        loss, figures = super()._student_loss(step, part, rank, text, rolled)
        found, self._last = self._last, None
        assert found is not None, "the clip was rolled out"
        whole = found.made.shape[2] == self.rollout.chunked.frames
        if self.forcing.reflow and found.exit == 0 and whole:
            wanted = found.noise
            for each in range(self.grid.steps):
                wanted = self._teach(wanted, text, each)
            beside = (found.made - wanted).square().mean()
            figures["loss reflow"] = float(beside.detach())
            loss = loss + self.forcing.reflow * beside
        return loss, figures


def options_of(settings: Any, chunks: int, shift: float) -> ForcingOptions:
    """What settings ask for; ``chunks`` are those of a clip."""
    return ForcingOptions(settings.chunks or chunks, shift, settings.reflow_weight)
