"""Time and memory of a few real steps on random latents, before a run: the model's weights are loaded for it."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from genkit.pipelines.load import load
from genkit.training.data.batch import Batch
from genkit.training.engine.memory import checkpoint_gradients
from genkit.training.lora.attention import put_in
from genkit.training.lora.estimate import most_used
from genkit.training.lora.plan import LoraPlan, adapter_on, optimizer_for
from genkit.training.lora.task import LoraTask

_STEPS = 3
_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def measured(plan: LoraPlan) -> dict[str, Any]:
    """Seconds per step at the largest size, after one step that is not counted, and the most memory of the process.

    Args:
        plan: of the run; its data are not encoded, its model is loaded and let go of.

    Returns:
        ``seconds_per_step``, ``memory`` in bytes (of main memory on the CPU, of the accelerator elsewhere), and
        ``seconds`` for all steps of the run; None where minutes are its budget.
    """
    settings, device = plan.settings, plan.device
    batch = _drawn(plan.shapes(), device)
    place, parts_from = plan.model.source
    pipeline = load(place, plan.dtype, device, parts_from=parts_from)
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False).eval()
    network = getattr(pipeline, plan.component)
    adapter = adapter_on(pipeline, plan.component, settings)
    weights = None
    if plan.attention is not None:
        weights = put_in(network, plan.attention, settings.train_attention_weights)[1]
    task = LoraTask(pipeline, plan.training, adapter, plan.options, settings.seed, weights)
    if settings.gradient_checkpointing:
        checkpoint_gradients(network)
        network.train()
    named = [(name, value) for name, value in task.named_parameters() if value.requires_grad]
    optimizer = optimizer_for(settings, named)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    times = []
    for number in range(_STEPS + 1):
        begin = time.perf_counter()
        for part in range(settings.gradient_accumulation_steps):
            kind = _TYPES.get(plan.precision)
            with nullcontext() if kind is None else torch.autocast(device.type, kind):
                loss, _ = task(batch, number * settings.gradient_accumulation_steps + part)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begin)
    seconds = sum(times[1:]) / _STEPS
    steps = plan.loop.steps
    return {
        "seconds_per_step": seconds,
        "memory": most_used(device),
        "seconds": None if steps is None else steps * seconds,
    }


def _drawn(shapes: Batch, device: torch.device) -> Batch:
    """A batch of these shapes: random where numbers are, 1 elsewhere (masks)."""

    def filled(value: torch.Tensor) -> torch.Tensor:
        if value.is_floating_point():
            return torch.randn(value.shape, device=device).to(value.dtype)
        return torch.ones(value.shape, dtype=value.dtype, device=device)

    found: dict[str, Any] = {
        name: {key: filled(value) for key, value in getattr(shapes, name).items()}
        for name in ("latents", "media", "text")
    }
    return replace(shapes, **found)
