"""What a run would do, as plain values: files, sizes, steps, what is trained, attention, memory, arithmetic."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from genkit.attention.method import Density
from genkit.training.lora.estimate import Estimate, Memory
from genkit.training.lora.joint import JOINT_TASKS
from genkit.training.lora.plan import LoraPlan
from genkit.training.lora.route import Route
from genkit.training.lora.words.subjects import Subjects

_NUMBER = re.compile(r"(?<![^.])\d+(?=\.)")


def described(plan: LoraPlan, estimate: Estimate | None) -> dict[str, Any]:
    """A plan and what it needs, ready for JSON.

    Args:
        plan: of the run.
        estimate: from :meth:`LoraPlan.estimate`; None where it cannot be made.
    """
    settings, summary = plan.settings, plan.summary()
    return {
        "model": plan.model.name,
        "pipeline": plan.model.class_name,
        "component": plan.component,
        "device": str(plan.device),
        "dtype": str(plan.dtype).removeprefix("torch."),
        "products": {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}[plan.precision],
        "files": len({cut.item.path for cut in (*plan.data.cuts, *plan.data.held_out)}),
        "samples": len(plan.data.cuts),
        "held_out": len(plan.data.held_out),
        "captions": len({cut.item.caption for cut in plan.data.every}),
        "caption_tokens": None if summary.captions is None else summary.captions.longest,
        "new_words": plan.new_words,
        "cache": str(summary.cache),
        "buckets": plan.buckets(),
        "batches_per_epoch": plan.batches.per_epoch,
        "begins_at": None if plan.begins is None else str(plan.begins),
        "steps": plan.loop.steps,
        "minutes": settings.minutes,
        "epochs": None if plan.epochs is None else round(plan.epochs, 2),
        "tasks": {name: {"share": share, "says": JOINT_TASKS[name].says} for name, share in plan.tasks.items()},
        "words": None if plan.subjects is None else words_of(plan, plan.subjects),
        "trained": grouped(plan.targets),
        "trainable_parameters": plan.trainable,
        "attention_parameters": plan.attention_parameters,
        "route": route_of(plan),
        "attention": attention_of(plan, estimate),
        "largest_size": str(plan.largest),
        "memory": None if estimate is None else memory_of(estimate.memory),
        "activations": None
        if estimate is None
        else {"with gradient checkpointing": estimate.saved, "without": estimate.plain},
        "flops_per_step": None if estimate is None else estimate.flops * settings.gradient_accumulation_steps,
        "notes": plan.notes(),
    }


def route_of(plan: LoraPlan) -> dict[str, Any] | None:
    """The blocks that a share of the tokens skips in training, and the share."""
    if plan.settings.route is None:
        return None
    return {"blocks": list(plan.routed), "of": plan.blocks, "share": Route.parse(plan.settings.route).ratio}


def grouped(paths: tuple[str, ...]) -> dict[str, int]:
    """Layers by their path with ``*`` for the numbers of blocks, and how many there are of each."""
    return dict(Counter(_NUMBER.sub("*", path) for path in paths))


def words_of(plan: LoraPlan, subjects: Subjects) -> dict[str, Any]:
    """The words that are learned, with what they begin with, and the prompts of the steps."""
    settings = plan.settings
    return {
        "learned": dict(zip(subjects.words, subjects.starts, strict=True)),
        "encoder": next(iter(plan.words.values())),
        "parameters": plan.word_parameters,
        "prompts": [subjects.prompt(order) for order in subjects.orders],
        "sampling": settings.word_sampling,
        "prior_images": settings.num_prior_images if settings.prior_weight else 0,
    }


def memory_of(memory: Memory) -> dict[str, float]:
    """Bytes by part, and the most in both phases."""
    parts = ("weights", "encoders", "adapter", "activations", "encoding", "overhead")
    return {**{name: getattr(memory, name) for name in parts}, "caching": memory.caching, "training": memory.training}


def attention_of(plan: LoraPlan, estimate: Estimate | None) -> dict[str, Any] | None:
    """The attention in the loop, and the share of pairs that its calls pay for at the largest size."""
    if plan.attention is None:
        return None
    densities = {} if estimate is None else estimate.densities
    found = [density for density in densities.values() if density is not None]
    return {
        "methods": [part.method.describe() for part in plan.attention.parts],
        "schedule": plan.attention.text,
        "adds": all(part.method.adds for part in plan.attention.parts),
        "computed": mean(found, "computed"),
        "executed": mean(found, "executed"),
    }


def mean(densities: list[Density], name: str) -> float | None:
    """The mean share; None when none is known."""
    return sum(getattr(each, name) for each in densities) / len(densities) if densities else None
