"""What a data set gives a task: a batch of encoded samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch


@dataclass
class Batch:
    """Encoded samples of one size.

    Args:
        latents: stream -> (B, ...) clean normalised latents, float32.
        media: what else the family's record made of the media, name -> (B, ...).
        text: what it made of the captions, name -> (B, ...).
        masks: stream -> (B, 1, ...) weights of the loss, 0 to 1, that broadcast to its latents; a stream without one
            counts everywhere. A sample's may be 0 throughout (no sound): it then counts nothing in that stream.
        fps: frames per second of the clips.
        names: files the samples are of, for messages.
    """

    latents: dict[str, torch.Tensor]
    media: dict[str, torch.Tensor] = field(default_factory=dict)
    text: dict[str, torch.Tensor] = field(default_factory=dict)
    masks: dict[str, torch.Tensor] = field(default_factory=dict)
    fps: float | None = None
    names: tuple[str, ...] = ()


class Samples(Protocol):
    """Something that batches come from: a user's files, or the toy world."""

    @property
    def per_epoch(self) -> int:
        """Batches in an epoch, over all processes."""

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides what the batches hold: contents, captions, cuts, sizes, order. A run goes on from
        a checkpoint with the same one only."""

    def count(self, number: int) -> int:
        """Samples of one process in the batch of a number, known without reading it; the same for every process."""

    def batch(self, number: int, rank: int = 0) -> Batch:
        """The batch of a number counted over all epochs, for one process: a function of its arguments alone, caption
        dropout included, so that a resumed run sees what an unbroken one would."""

    def held_out(self) -> Mapping[str, Batch]:
        """Samples that are never trained on, by name of their bucket; empty without."""
