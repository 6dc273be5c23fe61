"""Samples in memory and a tiny pipeline with a LoRA task, for the tests of training."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

import genkit
from genkit.families.lookup import facts_of
from genkit.families.training.lookup import training_of
from genkit.training.data.batch import Batch
from genkit.training.lora.adapter import Adapter, AdapterConfig
from genkit.training.lora.task import LoraTask, LossOptions


class MemorySamples:
    """Random latents and texts, batches of ``sizes`` samples in turn."""

    def __init__(self, sizes: tuple[int, ...] = (2,), shape: tuple[int, ...] = (4, 2, 4, 4), processes: int = 1):
        self.sizes, self.shape, self.processes = sizes, shape, processes

    @property
    def per_epoch(self) -> int:
        return len(self.sizes)

    @property
    def digest(self) -> str:
        return hashlib.sha256(repr((self.sizes, self.shape)).encode()).hexdigest()

    def count(self, number: int) -> int:
        return self.sizes[number % len(self.sizes)]

    def batch(self, number: int, rank: int = 0) -> Batch:
        index, count = number % len(self.sizes), self.count(number)
        generator = torch.Generator().manual_seed(index)
        whole = count * self.processes
        latents = torch.randn(whole, *self.shape, generator=generator)
        states = torch.randn(whole, 5, 32, generator=generator)
        mine = slice(rank * count, (rank + 1) * count)
        return Batch({"video": latents[mine]}, {}, {"states": states[mine]}, fps=8.0)

    def held_out(self) -> Mapping[str, Batch]:
        return {"all": self.batch(0)}


def load(folder: Any) -> Any:
    """A pipeline in float32 on the CPU with its parts frozen."""
    pipeline = genkit.load(str(folder), "float32", "cpu")
    for part in (pipeline.transformer, pipeline.vae, pipeline.text_encoder):
        part.requires_grad_(False).eval()
    return pipeline


def task_of(pipeline: Any, config: AdapterConfig | None = None, seed: int = 0, **options: Any) -> LoraTask:
    """A LoRA task on the pipeline's transformer; the adapter's start follows from a seed."""
    default = facts_of(type(pipeline).__name__).lora_targets
    adapter = Adapter(pipeline.transformer, config or AdapterConfig(rank=2), default)
    return LoraTask(pipeline, training_of(pipeline), adapter, LossOptions(**options), seed)
