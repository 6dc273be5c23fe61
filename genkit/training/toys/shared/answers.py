"""A decoder that is trained on what the denoiser answers.

A denoiser errs in ways that no true sample shows: lumps in outlines, colours that guidance has pushed beyond the
palette. So true samples are noised to a level, the finished denoiser takes the noise away again, with guidance or
without, and the decoder learns the true pixels from what comes out. Encoder, latents and denoiser stay as they are:
whatever was trained on them goes on working.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from genkit.families.training.objectives import Objective, shifted
from genkit.training.data.pixels import as_tensor
from genkit.training.engine.loop import process_rank
from genkit.training.toys.shared.autoencoder import Autoencoder, reconstruction_loss

#: Share of samples that stay clean but for a jitter of at most this spread, as the decoder knows them.
CLEAN, JITTER = 0.2, 0.06
#: Share of the samples that are made with guidance.
GUIDED = 0.7
#: Steps of the sampler from noise alone.
STEPS = 12
#: From (noisy latents, levels (B,)) to what the denoiser answers; see :func:`denoised`.
Answer = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Drawn:
    """True samples.

    Args:
        texts: their captions.
        pixels: uint8 (B, H, W, 3), of clips (B, F, H, W, 3).
        spots: (B, 2) rows and columns in pixels that are worth looking at.
        sound: what is heard with them, as the denoiser has it, and noise for it, both (B, ...); None where nothing is.
    """

    texts: Sequence[str]
    pixels: np.ndarray
    spots: np.ndarray
    sound: tuple[torch.Tensor, torch.Tensor] | None = None

    def asked(self, guided: bool) -> list[str]:
        """Their prompts, followed by as many empty ones for guidance."""
        return [*self.texts, *([""] * len(self.texts) if guided else [])]


@dataclass(frozen=True)
class Answers:
    """What differs between models.

    Args:
        draw: true samples, from a source of randomness.
        ask: from (model, samples, guided) to what the denoiser answers for them; guided: for twice the samples, the
            second half with the empty prompt.
        encode: from (autoencoder, pixels in -1..1) to latents as the denoiser has them.
        raw: from (autoencoder, latents) to latents as the decoder takes them.
        decode: from (autoencoder, those) to pixels without a final clamp.
        objective: of the denoiser, read from the model.
        cell: pixels per latent position.
        side: latent positions per side of the cut around a spot that the decoder is trained on.
        shift: of the sampler's levels.
        guidance: how far samples go beyond the empty prompt.
        levels: that samples are noised to, lowest and highest. From higher ones the denoiser puts edges elsewhere than
            the truth has them, and the decoder learns to blur them.
        fresh: share of the noise that is drawn anew in every step of the sampler.
        rescale: how far the spread of guided clean latents is brought back to that of the prompt's own, 0 to 1.
    """

    draw: Callable[[np.random.Generator], Drawn]
    ask: Callable[[Any, Drawn, bool], Answer]
    encode: Callable[[Any, torch.Tensor], torch.Tensor]
    raw: Callable[[Any, torch.Tensor], torch.Tensor]
    decode: Callable[[Any, torch.Tensor], torch.Tensor]
    objective: Callable[[Any], Objective]
    cell: int
    side: int
    shift: float
    guidance: float
    levels: tuple[float, float] = (0.1, 0.5)
    fresh: float = 0.0
    rescale: float = 0.0


class Decoder(Autoencoder):
    """The decoder of an autoencoder as a module with a forward pass; the encoder stays as it is.

    Args:
        vae: an autoencoder of Diffusers; a copy of it is trained.
        decode: see :class:`Answers`.
    """

    def __init__(self, vae: Any, decode: Callable[[Any, torch.Tensor], torch.Tensor]):
        super().__init__(copy.deepcopy(vae).float().requires_grad_(True), decode, frozen=True)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Pixels of latents."""
        return self.decode(self.vae, latents)


@torch.no_grad()
def denoised(
    answer: Answer,
    objective: Objective,
    latents: torch.Tensor,
    level: float,
    generator: torch.Generator,
    shift: float = 1.0,
    guidance: float | None = None,
    fresh: float = 0.0,
    rescale: float = 0.0,
) -> torch.Tensor:
    """Latents that are noised to a level and brought back.

    Args:
        answer: of the denoiser for (noisy latents, levels); with guidance for twice the samples, the second half with
            the empty prompt.
        objective: that it answers.
        latents: (B, ...), clean.
        level: above 0, at most 1.
        generator: of the noise, on the CPU.
        shift: of the levels, as in sampling.
        guidance: how far to go beyond the empty prompt; None = no guidance.
        fresh: share (of the spread) of the noise that is drawn anew in every step.
        rescale: see :class:`Answers`; Lin et al., https://arxiv.org/abs/2305.08891, section 3.4.

    Returns:
        As ``latents``, after at least two steps.
    """

    def noise() -> torch.Tensor:
        return torch.randn(latents.shape, generator=generator).to(latents)

    # Even steps of the levels before they are shifted, as samplers take them.
    flat = level / (shift - (shift - 1) * level)
    levels = shifted(torch.linspace(flat, 0, max(2, round(STEPS * flat)) + 1), shift)
    here = torch.full((len(latents),), level, device=latents.device)
    found, _ = objective.noised(latents, noise(), here)
    for now, then in zip(levels[:-1], levels[1:], strict=True):
        here = now.to(latents).expand(len(latents))
        if guidance is None:
            clean = objective.clean(found, answer(found, here), here)
        else:
            twice, levels_twice = torch.cat([found, found]), torch.cat([here, here])
            asked, free = objective.clean(twice, answer(twice, levels_twice), levels_twice).chunk(2)
            clean = free + guidance * (asked - free)
            clean = clean * (1 - rescale + rescale * _spread(asked) / _spread(clean))
        if then == 0:
            return clean
        signal, spread = objective.parts(here, latents)
        kept = (found - signal * clean) / spread
        signal, spread = objective.parts(then.to(latents).expand(len(latents)), latents)
        found = signal * clean + spread * ((1 - fresh**2) ** 0.5 * kept + fresh * noise())
    return found


def _spread(latents: torch.Tensor) -> torch.Tensor:
    return latents.flatten(1).std(1).view(-1, *[1] * (latents.ndim - 1))


def answers_loss(model: Any, vae: Any, answers: Answers, seed: int):
    """The loss function handed to the training loop, for a :class:`Decoder`.

    Args:
        model: the finished denoiser with its text encoders.
        vae: the frozen autoencoder that encodes.
        answers: what differs between models.
        seed: of the samples.
    """

    def loss_at(module: nn.Module, step: int, progress: float):
        rng = np.random.default_rng((seed, step, process_rank()))
        drawn = answers.draw(rng)
        device = next(module.parameters()).device
        pixels = as_tensor(drawn.pixels).to(device)
        with torch.no_grad():
            latents = answers.encode(vae, pixels).to(device).float()
        latents, band = _answered(model, latents, drawn, answers, rng)
        cuts = [_cut(*each, answers) for each in zip(latents, pixels, drawn.spots, strict=True)]
        taken, target = (torch.stack(list(column)) for column in zip(*cuts, strict=True))
        output = module(answers.raw(vae, taken))
        error = F.mse_loss(output.detach().clamp(-1, 1), target).item()
        return reconstruction_loss(output, target), {f"psnr {band}": -10 * np.log10(error / 4)}

    return loss_at


def _answered(
    model: Any, latents: torch.Tensor, drawn: Drawn, answers: Answers, rng: np.random.Generator
) -> tuple[torch.Tensor, str]:
    """Latents with the denoiser's errors in them, or with a jitter, and which."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    if rng.random() < CLEAN:
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        return latents + JITTER * rng.random() * latents.std() * noise, "clean"
    level = float(rng.uniform(*answers.levels))
    guided = rng.random() < GUIDED
    with torch.no_grad():
        answer = answers.ask(model, drawn, guided)
    found = denoised(
        answer, answers.objective(model), latents, level, generator, answers.shift,
        answers.guidance if guided else None, answers.fresh, answers.rescale,
    )  # fmt: skip
    return found, "low" if level < sum(answers.levels) / 2 else "high"


def _cut(
    latents: torch.Tensor, pixels: torch.Tensor, spot: np.ndarray, answers: Answers
) -> tuple[torch.Tensor, torch.Tensor]:
    """The cut around a spot, of latents and of pixels."""
    side, cell = answers.side, answers.cell
    room = np.array(latents.shape[-2:]) - side
    top, left = np.clip(np.round(spot / cell - side / 2), 0, room).astype(int)
    rows, columns = slice(top, top + side), slice(left, left + side)
    wide = [slice(cell * each.start, cell * each.stop) for each in (rows, columns)]
    return latents[..., rows, columns], pixels[..., wide[0], wide[1]]
