"""Initial noise that repeats along time (FreeNoise): for clips longer than a model was trained on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from genkit.errors import UnsupportedError, UsageError, explain
from genkit.families.lookup import facts_of

if TYPE_CHECKING:
    import torch

INDEPENDENT, SHUFFLED, REPEATED = "independent", "shuffled", "repeated"
NOISES = (INDEPENDENT, SHUFFLED, REPEATED)


def frame_order(frames: int, window: int, kind: str, seed: int = 0) -> torch.Tensor:
    """Which frame's noise every frame takes, (frames,) int64.

    The first ``window`` frames have noise of their own. Every later window takes it again: in the same order
    (``"repeated"``), or in an order of its own (``"shuffled"``), so that no frame is the same as one of its period.

    Args:
        frames: latent frames of the clip.
        window: latent frames that the model was trained on.
        kind: one of :data:`NOISES`. seed: of the orders.
    """
    import torch

    if kind not in NOISES:
        raise UsageError(explain("noise", kind, NOISES))
    if kind == INDEPENDENT or frames <= window:
        return torch.arange(frames)
    draw = torch.Generator().manual_seed(seed)
    parts = [torch.arange(window)]
    while sum(map(len, parts)) < frames:
        parts.append(torch.arange(window) if kind == REPEATED else torch.randperm(window, generator=draw))
    return torch.cat(parts)[:frames]


def time_axis(class_name: str) -> tuple[int, int]:
    """Which axis of a pipeline's initial noise is time, and how many it has.

    Raises:
        UnsupportedError: the record of the family does not tell, or its noise is packed into tokens.
    """
    facts = facts_of(class_name)
    axes = facts.codec.axes if facts is not None and facts.codec is not None else ""
    if "T" not in axes:
        raise UnsupportedError(
            f"{class_name}: noise cannot be shared along time, since its family's record does not tell which axis of "
            f"its initial noise that is"
        )
    return axes.index("T"), len(axes)


@contextmanager
def shared_noise(pipeline: Any, window: int, kind: str = SHUFFLED, seed: int = 0) -> Iterator[None]:
    """Calls of a pipeline within the block begin with noise that later windows of frames share with the first.

    Args:
        pipeline: a text-to-video pipeline of a family whose record tells the axes of its latents.
        window, kind, seed: see :func:`frame_order`.

    Raises:
        UnsupportedError: a pipeline whose initial noise has no axis of frames that is known.

    Source: FreeNoise: Tuning-Free Longer Video Diffusion via Noise Rescheduling, arXiv 2310.15169. The windows are the
    model's, one after the other.
    """
    name = type(pipeline).__name__
    dim, axes = time_axis(name)
    if not hasattr(pipeline, "prepare_latents"):
        raise UnsupportedError(f"{name} has no prepare_latents, so its initial noise cannot be shared along time")
    prepare = pipeline.prepare_latents

    def prepared(*args: Any, **more: Any) -> Any:
        found = prepare(*args, **more)
        several = isinstance(found, tuple)
        noise = found[0] if several else found
        if noise.ndim != axes:
            raise UnsupportedError(
                f"{name}: its initial noise {tuple(noise.shape)} has not {axes} axes as in its record"
            )
        order = frame_order(noise.shape[dim], window, kind, seed).to(noise.device)
        noise = noise.index_select(dim, order)
        return (noise, *found[1:]) if several else noise

    pipeline.prepare_latents = prepared
    try:
        yield
    finally:
        del pipeline.prepare_latents
