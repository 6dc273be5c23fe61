"""Pictures that the model makes before training and must go on making (prior preservation), as latents in the cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from genkit.families.training.base import Training
from genkit.pipelines.model import Model
from genkit.pipelines.resolve import Draft, Request
from genkit.pipelines.settings import GenerateSettings
from genkit.training.data.cache import Cache
from genkit.training.data.folder.buckets import Bucket
from genkit.training.lora.made import MadeSamples, make_samples


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
) -> MadeSamples:
    """The pictures of a run; those that the cache does not hold yet are made.

    Args:
        pipeline: with weights, before anything is put on it.
        size: of the pictures.
        progress: called with (done, all, prompt).
    """
    request = prior_request(settings, model, pipeline.device, size)
    request = replace(request, settings=request.settings.replace(seed=settings.seed))
    prompts = [
        settings.prior_prompts[index % len(settings.prior_prompts)] for index in range(settings.num_prior_images)
    ]
    return make_samples(request, prompts, pipeline, training, Cache(cache), "prior", progress=progress)
