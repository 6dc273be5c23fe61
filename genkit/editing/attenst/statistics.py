"""Content-aware AdaIN: the start noise of a picture with part of another one's mean and spread."""

from __future__ import annotations

import torch


def mix_statistics(
    content: torch.Tensor, style: torch.Tensor, share: float = 0.6, *, epsilon: float = 1e-4
) -> torch.Tensor:
    """``content`` moved to statistics between its own and those of ``style``, channel by channel.

    Args:
        content, style: latents (B, C, ...); the two may differ in size behind C.
        share: of the style's mean and standard deviation (alpha_s); the content's is ``1 - share``.
        epsilon: added to the content's deviation, against channels that are constant.

    Source: AttenST, its content-aware adaptive instance normalisation.
    """
    axes, style_axes = tuple(range(2, content.ndim)), tuple(range(2, style.ndim))
    mean, deviation = content.mean(axes, keepdim=True), content.std(axes, keepdim=True)
    other = [
        value.reshape(*value.shape[:2], *[1] * len(axes)) for value in (style.mean(style_axes), style.std(style_axes))
    ]
    to_mean = share * other[0] + (1 - share) * mean
    to_deviation = share * other[1] + (1 - share) * deviation
    return (content - mean) / (deviation + epsilon) * to_deviation + to_mean
