"""Pictures that the model makes before training and must go on making (prior preservation), as latents in the cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from genkit.families.training.base import SPREAD, Media, Tensors, Training
from genkit.pipelines.model import Model
from genkit.pipelines.resolve import Draft, Request
from genkit.pipelines.session import Session
from genkit.pipelines.settings import GenerateSettings
from genkit.training.data.cache import Cache
from genkit.training.data.folder.buckets import Bucket

#: Counted up when entries would be made otherwise.
_VERSION = 1


@dataclass(frozen=True)
class PriorImages:
    """Encoded pictures with their prompts.

    Args:
        entries: (prompt, what the family's record made of the picture).
        streams: names of its latents.
    """

    entries: tuple[tuple[str, Tensors], ...]
    streams: tuple[str, ...]

    def drawn(self, generator: torch.Generator) -> tuple[str, Tensors]:
        """One of them with its latents drawn from the posterior; without a batch axis."""
        prompt, tensors = self.entries[int(torch.randint(len(self.entries), (), generator=generator))]
        found = {name: value.float() for name, value in tensors.items() if not name.endswith(SPREAD)}
        for stream in self.streams:
            if stream + SPREAD in tensors:
                noise = torch.randn(found[stream].shape, generator=generator)
                found[stream] = found[stream] + tensors[stream + SPREAD].float() * noise
        return prompt, found


def prior_request(settings: Any, model: Model, device: torch.device, size: Bucket) -> Request:
    """How the pictures are made: as ``genkit generate`` makes them with the model's own settings.

    Raises:
        GenkitError: what ``genkit generate`` would refuse of the prompts.
    """
    given = {
        "model": settings.model, "parts_from": settings.parts_from, "prompt": settings.prior_prompts[0],
        "height": size.height, "width": size.width,
        "device": str(device), "dtype": settings.dtype,
    }  # fmt: skip
    draft = Draft(GenerateSettings.from_mappings(("--prior-prompts", given)))
    draft.fill()
    request = draft.close()
    for prompt in settings.prior_prompts:
        request.read(request.settings.replace(prompt=prompt))
    return request


def prior_images(
    settings: Any,
    model: Model,
    pipeline: Any,
    training: Training,
    size: Bucket,
    cache: Path,
    progress: Callable[[int, int, str], None] | None = None,
) -> PriorImages:
    """The pictures of a run; those that the cache does not hold yet are made.

    Args:
        pipeline: with weights, before anything is put on it.
        size: of the pictures.
        progress: called with (done, all, prompt).
    """
    request = prior_request(settings, model, pipeline.device, size)
    session = Session(request, pipeline=pipeline)
    store, base = Cache(cache), model.fingerprint()
    prompts, entries = settings.prior_prompts, []
    for index in range(settings.num_prior_images):
        prompt = prompts[index % len(prompts)]
        asked = request.settings.replace(prompt=prompt, seed=settings.seed + index)
        if progress is not None:
            progress(index, settings.num_prior_images, prompt)
        told = {name: value for name, value in asked.to_dict().items() if name not in ("model", "parts_from", "device")}
        key = {"kind": "prior", "version": _VERSION, "model": base, "settings": told}

        def made(asked: Any = asked) -> Tensors:
            frames = session.run(asked).frames
            pixels = torch.from_numpy(frames).permute(3, 0, 1, 2).float() / 127.5 - 1
            with torch.no_grad():
                return training.encode(pipeline, Media(pixels.to(pipeline.device)), None)

        entries.append((prompt, store.get(key, made)))
    if progress is not None:
        progress(settings.num_prior_images, settings.num_prior_images, "")
    return PriorImages(tuple(entries), training.streams)
