"""Samples that a model makes before it is trained, as latents in a cache: what it must keep, or learn from itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from genkit.families.training.base import SPREAD, Media, Tensors, Training
from genkit.pipelines.resolve import Request
from genkit.pipelines.session import Session
from genkit.training.data.cache import Cache

#: Counted up when entries would be made otherwise.
_VERSION = 1


@dataclass(frozen=True)
class MadeSamples:
    """Encoded samples with their prompts.

    Args:
        entries: (prompt, what the family's record made of the sample).
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


def make_samples(
    request: Request,
    prompts: Sequence[str],
    pipeline: Any,
    training: Training,
    store: Cache,
    kind: str,
    fps: float | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> MadeSamples:
    """A sample of every prompt; those that the cache does not hold yet are made, each with the next seed.

    Args:
        request: how they are made: as ``genkit generate`` makes them.
        prompts: one for each sample.
        pipeline: with weights, before anything is put on it.
        store: where they are kept.
        kind: what they are for, a part of their keys.
        fps: frames per second of clips.
        progress: called with (done, all, prompt).
    """
    session, entries = Session(request, pipeline=pipeline), []
    for index, prompt in enumerate(prompts):
        asked = request.settings.replace(prompt=prompt, seed=request.settings.seed + index)
        if progress is not None:
            progress(index, len(prompts), prompt)
        told = {name: value for name, value in asked.to_dict().items() if name not in ("model", "parts_from", "device")}
        key = {"kind": kind, "version": _VERSION, "model": request.model.fingerprint(), "settings": told}

        def made(asked: Any = asked) -> Tensors:
            frames = session.run(asked).frames
            pixels = torch.from_numpy(frames).permute(3, 0, 1, 2).float() / 127.5 - 1
            media = Media(pixels.to(pipeline.device), fps, original=(pixels.shape[2], pixels.shape[3]))
            with torch.no_grad():
                return training.encode(pipeline, media, None)

        entries.append((prompt, store.get(key, made)))
    if progress is not None:
        progress(len(prompts), len(prompts), "")
    return MadeSamples(tuple(entries), training.streams)
