"""The loss of words from one picture: what is denoised inside their parts, the prior, and where the words look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from genkit.control import Rows
from genkit.errors import UsageError, shown
from genkit.families.training.base import IMAGE, Call, Tensors, Words
from genkit.training.data.batch import Batch
from genkit.training.lora.made import MadeSamples
from genkit.training.lora.task import LoraTask
from genkit.training.lora.words.masks import attention_losses, masks_of, min_max, similarity
from genkit.training.lora.words.reading import PICTURE, PRIOR, Reading
from genkit.training.lora.words.settings import UNIFORM
from genkit.training.lora.words.subjects import Subjects
from genkit.training.lora.words.table import WordTable

#: Noise levels below which the first masks are looked for, in how many calls, and shares of the threshold to try.
FIRST_LEVELS, CALLS, EASIER = 0.3, 8, (1.0, 0.5, 0.25)
#: How much of the earlier attention losses the shares of reweighted sampling remember.
MEMORY = 0.9
#: What generators are for, beside those of :mod:`genkit.training.lora.task`.
_PICTURE, _CHOICE, _PRIOR, _FIRST = 0, 10, 11, 12


@dataclass(frozen=True)
class WordOptions:
    """How words are learned; see :class:`genkit.training.lora.words.settings.WordSettings`."""

    sampling: str = UNIFORM
    attention_weight: float = 1.0
    threshold: float = 0.1
    update_steps: int = 20
    ssim: float = 0.8
    prior_weight: float = 1.0


@dataclass(frozen=True)
class Taught:
    """What a task on words has beside a LoRA.

    Args:
        words: the family's record.
        subjects: of the picture.
        places: where their words are, for every order of them.
        table: the words' embeddings.
        options: how they are learned.
        size: (H, W) of the masks, half of the latents'.
        slots: text tokens.
        prior: pictures that the model must go on making; None without.
    """

    words: Words
    subjects: Subjects
    places: Mapping[tuple[int, ...], tuple[int, ...]]
    table: WordTable
    options: WordOptions
    size: tuple[int, int]
    slots: int
    prior: MadeSamples | None = None


class WordTask(LoraTask):
    """A frozen denoiser with a LoRA, and new words of one picture.

    Masks, and what reweighted sampling remembers, are buffers: checkpoints hold them, so a resumed run goes on with the
    same bits.

    Args:
        given: arguments of :class:`genkit.training.lora.task.LoraTask`.
        taught: the rest.
    """

    masks: torch.Tensor
    losses: torch.Tensor

    def __init__(self, *given: Any, taught: Taught):
        super().__init__(*given)
        self.taught, self.table = taught, taught.table
        count = len(taught.subjects.phrases)
        self.register_buffer("masks", torch.zeros(count + 1, *taught.size))
        self.register_buffer("losses", torch.zeros(count))
        self._reading: Reading | None = None

    def forward(self, batch: Batch, number: int, rank: int = 0) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss of the one picture and, with a prior, of one of its pictures; see :meth:`LoraTask.forward`."""
        taught, options = self.taught, self.taught.options
        if not self.masks.any():
            self.find_masks(batch)
        renew = number % options.update_steps == 0
        order = self.chosen(number, renew)
        whole = self._joined(batch, order, number)
        rows = len(next(iter(whole.latents.values())))
        generators = [self.generator(_PICTURE, number, place) for place in range(rows)]
        level = torch.cat([self.levels(batch).draw(1, generator) for generator in generators])
        reading = self.reading(whole)
        with self._dropout(number, rank), reading.on(_rows(rows)):
            errors = self.errors(whole, level, generators)[IMAGE]
            maps = reading.maps(taught.places[order])
            if renew:
                self._renewed(reading, maps, order)
        return self._combined(errors, level, order, maps)

    def chosen(self, number: int, everything: bool = False) -> tuple[int, ...]:
        """The subjects that the prompt of a micro-batch names, in order; ``everything``: all of them."""
        seed = self.generator(_CHOICE, number, 0).initial_seed()
        rng = np.random.default_rng(seed)
        subjects = self.taught.subjects
        if everything:
            return tuple(int(index) for index in rng.permutation(len(subjects.phrases)))
        return subjects.drawn(self.taught.options.sampling, self.losses.tolist(), rng)

    def reading(self, batch: Batch) -> Reading:
        """The reader of the denoiser's attention; made at the first call, whose shapes tell the grids."""
        if self._reading is None:
            latents = batch.latents[IMAGE]
            level = torch.full((len(latents),), 0.5, device=latents.device)
            timestep = self.objective.timesteps(level)
            call = Call(
                self.pipeline, self.network, {IMAGE: latents}, level, timestep, batch.media, batch.text, guidance=1.0
            )
            places = sorted({place for own in self.taught.places.values() for place in own})
            arguments = self.training_record.arguments(call)
            side = min(latents.shape[-2:])
            self._reading = Reading(self.network, self.taught.words, places, arguments, side, self.taught.size)
        return self._reading

    @torch.no_grad()
    def find_masks(self, batch: Batch) -> None:
        """The first masks: from the mean of the maps of several calls at low noise, whose prompt has all words.

        One call, as in the paper, may see little more than outlines. Where a word gets no part, smaller thresholds are
        tried.

        Raises:
            UsageError: at no threshold does every word have a part of its own.
        """
        taught = self.taught
        order, limit = taught.subjects.everything, taught.options.threshold
        single = replace(batch, text=self._text([taught.subjects.prompt(order)]), masks={})
        reading, seen = self.reading(single), []
        for place in range(CALLS):
            generator = self.generator(_FIRST, 0, place)
            level = FIRST_LEVELS * torch.rand(1, generator=generator)
            with reading.on(_rows(1)):
                self.errors(single, level, [generator])
                seen.append(reading.refined(reading.maps(taught.places[order])))
        maps = min_max(torch.stack(seen).mean(0))
        for share in EASIER:
            found = masks_of(maps, share * limit)
            if found is not None:
                self.masks.copy_(found)
                return
        pairs = zip(taught.subjects.words, taught.subjects.starts, strict=True)
        starts = ", ".join(f"{shown(word)} begins as {start}" for word, start in pairs)
        raise UsageError(
            f"--learn-words: the model's attention gives not every word a part of the picture ({starts}); begin with "
            f"words that tell the subjects apart, or lower --attention-threshold {limit:g}"
        )

    @torch.no_grad()
    def _renewed(self, reading: Reading, maps: torch.Tensor, order: Sequence[int]) -> None:
        """Take new masks where they are whole and like the old ones; maps are in the prompt's order."""
        options = self.taught.options
        sorted_maps = maps[[*np.argsort(order).tolist(), len(order)]]
        found = masks_of(reading.refined(sorted_maps), options.threshold)
        if found is None:
            return
        found = found.to(self.masks)
        if bool((similarity(found[:-1], self.masks[:-1]) >= options.ssim).all()):
            self.masks.copy_(found)

    def _joined(self, batch: Batch, order: tuple[int, ...], number: int) -> Batch:
        """The picture's row and, behind it, one of the prior."""
        taught = self.taught
        prompts, latents, media = [taught.subjects.prompt(order)], dict(batch.latents), dict(batch.media)
        mask = self._inside(order, latents[IMAGE])
        if taught.prior is not None:
            prompt, tensors = taught.prior.drawn(self.generator(_PRIOR, number, 0))
            prompts.append(prompt)
            for row in (latents, media):
                row.update({name: torch.cat([value, _like(tensors, name, value)]) for name, value in row.items()})
            mask = torch.cat([mask, torch.ones_like(mask)])
        return replace(batch, latents=latents, media=media, text=self._text(prompts), masks={IMAGE: mask})

    def _inside(self, order: Sequence[int], latents: torch.Tensor) -> torch.Tensor:
        """(1, 1, h, w) where the subjects of a prompt are, at the latents' size."""
        union = self.masks[list(order)].amax(0)[None, None]
        found = functional.interpolate(union, latents.shape[-2:], mode="bicubic", align_corners=False)
        return found.to(latents)

    def _text(self, prompts: list[str]) -> Tensors:
        """What the denoiser is told of prompts, with gradients to the words' embeddings."""
        made = self.taught.words.encode(self.pipeline, prompts, self.taught.slots)
        return {name: value.to(self.device) for name, value in made.items()}

    def _error(self, answer: torch.Tensor, target: torch.Tensor, *weights: torch.Tensor | None) -> torch.Tensor:
        """(B,) the mean over all of a picture, of answer and target that are multiplied by the mask: a small part
        counts less than a large one, as in the paper."""
        mask, *rest = weights
        if mask is None:
            return super()._error(answer, target, *rest)
        return super()._error(mask * answer, mask * target, *rest)

    def _combined(
        self, errors: torch.Tensor, level: torch.Tensor, order: tuple[int, ...], maps: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """The weighted sum of the three losses, and what the log tells of them."""
        taught, options = self.taught, self.taught.options
        background = len(taught.subjects.phrases)
        targets = self.masks[[*order, background]]
        apart = attention_losses(maps, targets)
        if not taught.words.start:
            apart = apart[:-1]
        self._remember(order, apart)
        weight = self._weight(level).to(errors)
        loss = weight[0] * errors[0] + options.attention_weight * apart.mean().to(errors)
        told = errors.detach().tolist()
        figures = {"loss picture": told[0], "loss attention": float(apart.detach().mean())}
        if taught.prior is not None:
            loss = loss + options.prior_weight * weight[1] * errors[1]
            figures["loss prior"] = told[1]
        shares = self.masks.flatten(1).mean(1)
        figures |= {f"part {word}": float(share) for word, share in zip(taught.subjects.words, shares, strict=False)}
        return loss + self._all_of_them(loss), figures

    @torch.no_grad()
    def _remember(self, order: Sequence[int], apart: torch.Tensor) -> None:
        """Running attention losses of the words in a prompt."""
        for index, value in zip(order, apart.detach().to(self.losses), strict=False):
            before = self.losses[index]
            self.losses[index] = value if before == 0 else MEMORY * before + (1 - MEMORY) * value


def _rows(count: int) -> Rows:
    return Rows.of(*(PICTURE, PRIOR)[:count], guided=False)


def _like(tensors: Tensors, name: str, value: torch.Tensor) -> torch.Tensor:
    """A prior's tensor as a row beside the picture's."""
    return tensors[name][None].to(value)
