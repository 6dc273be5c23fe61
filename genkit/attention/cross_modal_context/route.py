"""Who listens to whom: routes of samples by task, what a patch remembers of them, and the guidance that uses them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from genkit.attention.cache import PatchCache
from genkit.errors import UsageError, explain

BOTH, PARTNER, CONTEXT = "both", "partner", "context"
ROUTES = (BOTH, PARTNER, CONTEXT)
TO_VIDEO, TO_AUDIO = "audio_to_video", "video_to_audio"


@dataclass(frozen=True)
class Task:
    """How one sample is trained or run.

    Args:
        to_video, to_audio: what the queries of a direction read: ``"both"`` (partner and context tokens), ``"partner"``
            (the other modality alone, the untrained model) or ``"context"`` (context tokens alone).
        detach_audio, detach_video: stop gradients through the source of a direction that is given, not made.
        noise: whether (video, audio) are noised. loss: whether (video, audio) count in the loss.
    """

    to_video: str = BOTH
    to_audio: str = BOTH
    detach_audio: bool = False
    detach_video: bool = False
    noise: tuple[bool, bool] = (True, True)
    loss: tuple[bool, bool] = (True, True)


TASKS = {
    "t2av": Task(),
    "i2av": Task(),
    "t2v": Task(CONTEXT, CONTEXT, noise=(True, False), loss=(True, False)),
    "i2v": Task(CONTEXT, CONTEXT, noise=(True, False), loss=(True, False)),
    "t2a": Task(CONTEXT, CONTEXT, noise=(False, True), loss=(False, True)),
    "a2v": Task(BOTH, CONTEXT, detach_audio=True, noise=(True, False), loss=(True, False)),
    "v2a": Task(CONTEXT, BOTH, detach_video=True, noise=(False, True), loss=(False, True)),
    "context": Task(CONTEXT, CONTEXT),
    "partner": Task(PARTNER, PARTNER),
}
# Shares of tasks as a survey reports them; they sum to 1.10 there and are brought to 1.
PROBABILITIES = {"t2v": 0.1, "t2a": 0.1, "t2av": 0.6, "a2v": 0.15, "v2a": 0.15}


def draw_tasks(
    count: int,
    generator: torch.Generator | None = None,
    probabilities: dict[str, float] | None = None,
    context: float = 0.1,
) -> tuple[str, ...]:
    """Random tasks for a batch.

    Args:
        probabilities: task -> weight, brought to sum 1. context: share of the t2av samples that read context tokens
            alone in both directions, which gives guidance its unconditional side.
    """
    shares = PROBABILITIES if probabilities is None else probabilities
    for name in shares:
        if name not in TASKS:
            raise UsageError(explain("task", name, list(TASKS)))
    names = list(shares)
    weights = torch.tensor([float(shares[name]) for name in names])
    if not (weights >= 0).all() or not weights.sum() > 0:
        raise UsageError(explain("probabilities", shares, "weights >= 0, not all zero"))
    chosen = torch.multinomial(weights, count, replacement=True, generator=generator).tolist()
    alone = (torch.rand(count, generator=generator) < context).tolist()
    return tuple(
        "context" if only and names[pick] == "t2av" else names[pick] for pick, only in zip(chosen, alone, strict=True)
    )


class ContextRoute:
    """The routes of one patch: ``ContextRoute.of(patch.cache)``.

    What :meth:`set` says holds from the next denoiser call on. Every call freezes it, so that activation checkpointing
    recomputes with the routes of its forward; run backward before the next forward then.
    """

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ("t2av",)
        self.tasks: tuple[Task, ...] = (Task(),)
        self._next = self.names

    @staticmethod
    def of(cache: PatchCache) -> ContextRoute:
        """The routes that belong to a patch."""
        return cache.get("context route", ContextRoute)

    def set(self, tasks: str | Sequence[str]) -> None:
        """One task for all samples, or one per sample; a batch may hold several halves of guidance."""
        names = (tasks,) if isinstance(tasks, str) else tuple(tasks)
        for name in names or (None,):
            if name not in TASKS:
                raise UsageError(explain("task", name, list(TASKS)))
        self._next = names

    def freeze(self, context_only: bool, clean: dict[str, list[bool]]) -> None:
        """Begin a denoiser call. ``clean``: "audio" and "video" -> per row, whether it came without noise."""
        self.names = ("context",) if context_only else self._next
        tasks = [TASKS[name] for name in self.names]
        audio, video = clean.get("audio"), clean.get("video")
        rows = len(audio or video or ())
        if rows and not context_only:
            given = zip(audio or [False] * rows, video or [False] * rows, strict=True)
            tasks = [_without_gradient(tasks[row % len(tasks)], *pair) for row, pair in enumerate(given)]
        self.tasks = tuple(tasks)

    def rows(self, batch: int) -> tuple[Task, ...]:
        """The task of every row of a batch."""
        if batch % len(self.tasks):
            raise UsageError(
                f"{len(self.tasks)} tasks cannot serve a batch of {batch} rows: give one, or a divisor of the batch"
            )
        return self.tasks * (batch // len(self.tasks))

    def reads(self, role: str, batch: int) -> tuple[str, ...]:
        """What every row reads in a direction."""
        return tuple(task.to_video if role == TO_VIDEO else task.to_audio for task in self.rows(batch))

    def detached(self, role: str, batch: int) -> tuple[bool, ...]:
        """Whether every row's source in a direction passes no gradient."""
        return tuple(task.detach_audio if role == TO_VIDEO else task.detach_video for task in self.rows(batch))


def _without_gradient(task: Task, audio: bool, video: bool) -> Task:
    return Task(
        task.to_video, task.to_audio, task.detach_audio or audio, task.detach_video or video, task.noise, task.loss
    )


def stop_gradient(x: torch.Tensor, rows: Sequence[bool]) -> torch.Tensor:
    """x (B, ...) with the same values, whose chosen rows pass exactly no gradient."""
    if not any(rows):
        return x
    keep = ~torch.tensor(rows, device=x.device).view(-1, *[1] * (x.dim() - 1))
    return torch.where(keep, x, x.detach())


def context_guidance(
    full: torch.Tensor, no_text: torch.Tensor, no_partner: torch.Tensor, text_scale: float, context_scale: float
) -> torch.Tensor:
    """Guidance of one modality in x0 space: ``x + (s_txt - 1)(x - x_txt0) + (s_ctx - 1)(x - x_ctx0)``.

    Args:
        full: text, partner and context tokens. no_text: negative prompt. no_partner: context tokens instead of the
            partner, in both directions. The formula is our choice; the paper's was not readable.
    """
    return full + (text_scale - 1) * (full - no_text) + (context_scale - 1) * (full - no_partner)


def joint_guidance(full: torch.Tensor, nothing: torch.Tensor, scale: float) -> torch.Tensor:
    """One unconditional side for both: negative prompt and context tokens only; ``x + (s - 1)(x - x_j0)``."""
    return full + (scale - 1) * (full - nothing)


def rescaled(guided: torch.Tensor, full: torch.Tensor, share: float = 0.7) -> torch.Tensor:
    """Bring the spread of a guided prediction (B, ...) back towards that of the conditional one, as LTX-2 does."""
    axes = tuple(range(1, guided.dim()))
    factor = full.std(axes, keepdim=True) / guided.std(axes, keepdim=True)
    return share * guided * factor + (1 - share) * guided
