"""Boxes and masks for reference attention: coverage on a token grid, blending, the reweighted loss, guidance, costs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from genkit.errors import UsageError, explain

Box = tuple[float, float, float, float]


def box_mask(boxes: Sequence[Box | None], height: int, width: int) -> torch.Tensor:
    """How much of every cell a box covers, frame by frame.

    Args:
        boxes: per frame (left, top, right, bottom) as shares of the picture from 0 to 1, or None for a frame without.
        height, width: cells of the mask; any resolution, it is averaged down to the layers' grids later.

    Returns:
        (frames, height, width) float32 from 0 to 1; 1 inside.
    """
    frames = []
    for box in boxes:
        left, top, right, bottom = (0.0, 0.0, 0.0, 0.0) if box is None else box
        if not (0 <= left <= right <= 1 and 0 <= top <= bottom <= 1):
            raise UsageError(explain("box", box, "(left, top, right, bottom) with 0 <= left <= right <= 1, same down"))
        frames.append(_covered(top, bottom, height)[:, None] * _covered(left, right, width)[None])
    return torch.stack(frames)


def _covered(low: float, high: float, cells: int) -> torch.Tensor:
    edges = torch.arange(cells + 1, dtype=torch.float64)
    inside = torch.minimum(edges[1:], torch.tensor(high * cells)) - torch.maximum(edges[:-1], torch.tensor(low * cells))
    return inside.clamp(0, 1).float()


def grid_mask(mask: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
    """A mask averaged over the area of every token: (T', H', W') or (B, T', H', W') -> (B, T*H*W) float32.

    Over time: as many frames as the grid are taken as they are; ``1 + n (T - 1)`` frames (causal video codecs) leave
    the first alone and average n each; a multiple of T averages equally; one frame serves all. Area averages of a
    binary mask are shares: a token that is half inside gets 0.5.

    Raises:
        UsageError: a shape or a number of frames that fits none of these.
    """
    if mask.dim() not in (3, 4):
        raise UsageError(explain("mask", tuple(mask.shape), "(frames, height, width), with or without a batch before"))
    mask = (mask[None] if mask.dim() == 3 else mask).float()
    mask = _over_time(mask, grid[0])
    batch, frames = mask.shape[:2]
    pooled = torch.nn.functional.adaptive_avg_pool2d(mask.flatten(0, 1)[:, None], grid[1:])
    return pooled.reshape(batch, frames * grid[1] * grid[2])


def _over_time(mask: torch.Tensor, frames: int) -> torch.Tensor:
    given = mask.shape[1]
    if given == frames:
        return mask
    if given == 1:
        return mask.expand(-1, frames, -1, -1)
    if frames > 1 and (given - 1) % (frames - 1) == 0 and given > frames:
        rest = mask[:, 1:].unflatten(1, (frames - 1, -1)).mean(2)
        return torch.cat([mask[:, :1], rest], 1)
    if given % frames == 0:
        return mask.unflatten(1, (frames, -1)).mean(2)
    allowed = f"1, {frames}, a multiple of {frames}, or 1 + a multiple of {frames - 1}"
    raise UsageError(explain("frames of the mask", given, f"{allowed} for a grid of {frames} frames"))


def blended_mask(mask: torch.Tensor, outside: float) -> torch.Tensor:
    """``M + outside * (1 - M)``: full weight inside, ``outside`` elsewhere (0.75 published; 1 = no mask)."""
    return mask + outside * (1 - mask)


def reweighted_loss(
    prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor, inside: float = 2.0
) -> torch.Tensor:
    """Mean over all elements of ``(inside * M + (1 - M)) * (prediction - target)^2`` (DreamVideo-2).

    Args:
        prediction, target: of one shape, for instance latents (B, C, T, H, W) or tokens (B, N, C).
        mask: broadcastable to it, 1 inside the boxes.
        inside: weight inside; 2 published, 1 = the plain mean squared error. Not divided by the sum of weights.
    """
    if prediction.shape != target.shape:
        raise UsageError(f"loss: prediction {tuple(prediction.shape)} and target {tuple(target.shape)} must agree")
    try:
        torch.broadcast_shapes(mask.shape, prediction.shape)
    except RuntimeError as error:
        raise UsageError(
            f"loss: a mask of {tuple(mask.shape)} cannot be broadcast to {tuple(prediction.shape)}"
        ) from error
    weight = inside * mask + (1 - mask)
    return (weight * (prediction - target).square()).mean()


def reference_guidance(
    negative: torch.Tensor, condition: torch.Tensor, full: torch.Tensor, text_scale: float, scale: float = 1.5
) -> torch.Tensor:
    """Guidance over text and reference from three denoiser calls: ``e0 + s_c (e_c - e0) + s_t (e_tc - e_c)``.

    Args:
        negative: e0, negative prompt without the reference (call inside ``References.paused()``).
        condition: e_c, negative prompt with the reference. full: e_tc, positive prompt with the reference.
        text_scale: s_t, the model's guidance scale. scale: s_c, 1.5 is our choice; no paper states one.
    """
    return negative + scale * (condition - negative) + text_scale * (full - condition)


def direction_density(text: int, image: int, reference: int, cached: bool = False) -> float:
    """Share of the scores of full joint attention that is computed when the reference does not read text and image.

    ``cached``: keys and values of the reference are made once, so its own rows are not computed in a step.
    """
    total = text + image + reference
    if cached:
        return (text + image) / total
    return 1 - reference * (text + image) / total**2


def store_bytes(tokens: int, width: int, layers: int, itemsize: int = 2) -> int:
    """Memory of the stored keys and values of one reference: 287.5 MB for a frame of Wan 1.3B at 480 x 832 in bf16."""
    return 2 * tokens * width * layers * itemsize
