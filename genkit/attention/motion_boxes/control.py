"""What the motion module is told of a track of boxes: coverage of every token, and where the box lies from there."""

from __future__ import annotations

import torch

from genkit.errors import UsageError, explain

#: Boxes kept of every latent frame, evenly spaced in the picture frames it stands for; and cells of a token per axis.
SLOTS, CELLS = 4, 2
#: Numbers per token: coverage of every cell, distance to the box along both axes, and the box's half sides, per slot.
CHANNELS = SLOTS * (CELLS * CELLS + 4)
# Half sides in tokens are divided by this, so that most numbers lie between -1 and 1.
_WIDE = 4.0


def check_boxes(boxes: torch.Tensor) -> torch.Tensor:
    """Boxes (frames, 4) or (B, frames, 4) as shares of the canvas, as float64 (B, frames, 4).

    Raises:
        UsageError: another shape, a number that is none, or a box outside of the canvas or without an area.
    """
    if boxes.dim() not in (2, 3) or boxes.shape[-1] != 4 or not boxes.shape[-2]:
        raise UsageError(explain("boxes", tuple(boxes.shape), "(frames, 4) or (batch, frames, 4)"))
    boxes = (boxes[None] if boxes.dim() == 2 else boxes).double()
    left, top, right, bottom = boxes.unbind(-1)
    right_way = (0 <= left) & (left < right) & (right <= 1) & (0 <= top) & (top < bottom) & (bottom <= 1)
    if not right_way.all():  # comparisons with NaN are False, too
        row, frame = (~right_way).nonzero()[0].tolist()
        allowed = "(left, top, right, bottom) with 0 <= left < right <= 1, same down"
        raise UsageError(explain(f"box of frame {frame}", tuple(boxes[row, frame].tolist()), allowed))
    return boxes


def slots(boxes: torch.Tensor, frames: int) -> torch.Tensor:
    """Boxes (B, F, 4) of picture frames -> (B, T, SLOTS, 4) for ``frames`` = T latent frames.

    ``1 + n (T - 1)`` picture frames: the first latent frame is the first one alone, every other stands for n (causal
    video codecs); else a multiple of T: equally many each; one box serves all.

    Raises:
        UsageError: a number of boxes that fits none of these.
    """
    given = boxes.shape[1]
    if given == 1:
        groups = boxes.expand(-1, frames, -1)[:, :, None]
    elif given > frames > 1 and (given - 1) % (frames - 1) == 0:
        rest = boxes[:, 1:].unflatten(1, (frames - 1, -1))
        first = boxes[:, :1, None].expand(-1, -1, rest.shape[2], -1)
        groups = torch.cat([first, rest], 1)
    elif given % frames == 0:
        groups = boxes.unflatten(1, (frames, -1))
    else:
        allowed = f"1, a multiple of {frames}, or 1 + a multiple of {frames - 1}"
        raise UsageError(explain("frames with boxes", given, f"{allowed} for a grid of {frames} frames"))
    held = groups.shape[2]
    middles = (torch.arange(SLOTS, device=boxes.device) * 2 + 1) * held // (2 * SLOTS)
    return groups[:, :, middles]


def control(boxes: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
    """What a track tells every token of a grid.

    Args:
        boxes: (B, F, 4) as shares of the canvas, from :func:`check_boxes`.
        grid: tokens (T, H, W).

    Returns:
        (B, T, H, W, CHANNELS) float32. The first ``SLOTS * CELLS^2`` are shares of cells that the box covers (1 - c_m
        of DreamVideo-2, averaged over the area); then per slot the distance from the token's middle to the box's,
        in half sides of the box, squashed to -1..1, along x and along y, and half its width and its height.
    """
    count, height, width = grid
    boxes = slots(boxes, count)
    left, top, right, bottom = boxes.unbind(-1)  # (B, T, SLOTS)
    across, down = _covered(left, right, width * CELLS), _covered(top, bottom, height * CELLS)
    cover = (down[..., :, None] * across[..., None, :]).unflatten(-2, (height, CELLS)).unflatten(-1, (width, CELLS))
    cover = cover.permute(0, 1, 3, 5, 2, 4, 6).flatten(4)  # (B, T, H, W, SLOTS * CELLS^2)
    parts = [cover]
    for low, high, cells, axis in ((left, right, width, 3), (top, bottom, height, 2)):
        middles = torch.arange(cells, device=boxes.device, dtype=boxes.dtype) + 0.5
        half = (high - low) * cells / 2
        away = middles[:, None] - ((low + high) * cells / 2)[:, :, None, :]  # (B, T, cells, SLOTS)
        away = torch.tanh(away / (half + 0.5)[:, :, None, :])
        away = away[:, :, None] if axis == 3 else away[:, :, :, None]
        parts += [x.expand(-1, -1, height, width, -1) for x in (away, (half / _WIDE)[:, :, None, None])]
    return torch.cat(parts, -1).float()


def _covered(low: torch.Tensor, high: torch.Tensor, cells: int) -> torch.Tensor:
    """Share of every one of ``cells`` equal parts of 0..1 that lies between ``low`` and ``high``: (..., cells)."""
    edges = torch.arange(cells + 1, device=low.device, dtype=low.dtype)
    low, high = low[..., None] * cells, high[..., None] * cells
    return (torch.minimum(edges[1:], high) - torch.maximum(edges[:-1], low)).clamp(0, 1)
