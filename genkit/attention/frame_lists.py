"""Attention of every frame over a list of frames, which may differ by head, at the frames' own positions or others.

Post-rotation queries and keys can be turned on: rotations compose, so a key of frame j that shall stand at position n
is turned by n - j positions along time. Nothing else of it changes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from genkit.attention.dynamic import outside
from genkit.attention.site import NEIGHBOURS, Site

Angles = Callable[[int, torch.device], tuple[torch.Tensor, torch.Tensor]]


def no_angles(owner: str, site: Site) -> str | None:
    """Why frames of a real site cannot be given other positions; None where they can."""
    if site.name == "example" or site.angles is not None:
        return None
    return (
        f"{owner}.positions='reindexed' needs rotary positions that follow from the latents' shape; this model tells "
        f"them otherwise, or has none: use positions=model"
    )


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, pairs: str = NEIGHBOURS) -> torch.Tensor:
    """Pairs of channels of (..., D) turned by angles whose cosines and sines (..., D / 2) broadcast.

    ``pairs`` says how the two channels of a pair lie: :data:`NEIGHBOURS` or :data:`HALVES`.
    """
    apart = (-1, 2) if pairs == NEIGHBOURS else (2, -1)
    axis = -1 if pairs == NEIGHBOURS else -2
    real, imaginary = x.unflatten(-1, apart).unbind(axis)
    return torch.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], axis).flatten(-2).to(x.dtype)


def moves(tables: tuple[torch.Tensor, torch.Tensor], old: torch.Tensor, new: torch.Tensor):
    """Cosines and sines (..., D / 2) of the turn from positions ``old`` to ``new``, int64 of one shape."""
    cos, sin = tables
    return cos[new] * cos[old] + sin[new] * sin[old], sin[new] * cos[old] - cos[new] * sin[old]


def attend_frames(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site, lists: torch.Tensor, reindexed: bool
) -> torch.Tensor:
    """Every frame's tokens attend to the tokens of its list and to all tokens outside the grid, in one softmax.

    Args:
        q, k, v: (B, N, H, D) the sequence of the site; keys with as many heads.
        lists: int64 (B | 1, H | 1, f, n), ascending frames of every query frame, its own among them.
        reindexed: the frames of a list stand at positions 0 to n - 1 in their order (LongHeads), the query where its
            own frame is; needs ``site.angles``.

    Returns:
        (B, f s, H, D) of the grid's tokens.
    """
    (start, stop), (f, h, w) = site.layout.grid_span, site.layout.grid
    grid = [x[:, start:stop].transpose(1, 2).unflatten(2, (f, h * w)) for x in (q, k, v)]  # (B, H, f, s, D)
    batch, heads, _, tokens, _ = grid[0].shape
    others = [x.transpose(1, 2) for x in (outside(k, site), outside(v, site))]
    lists = lists.expand(batch, heads, -1, -1)
    tables = site.angles(f, q.device) if reindexed and site.angles is not None else None
    number = torch.arange(lists.shape[-1], device=q.device)
    found = []
    for frame in range(f):
        index = lists[:, :, frame]
        asking = grid[0][:, :, frame]
        keys, values = (_picked(x, index) for x in grid[1:])
        if tables is not None:
            cos, sin = moves(tables, index, number.expand_as(index))
            keys = turned(keys, cos[..., None, :], sin[..., None, :])
            own = (index == frame).int().argmax(-1, keepdim=True)
            asking = turned(asking, *moves(tables, torch.full_like(own, frame), own))
        keys, values = (torch.cat([x.flatten(2, 3), more], 2) for x, more in zip((keys, values), others, strict=True))
        found.append(_softmax(asking, keys, values, site, len(number) * tokens))
    return torch.stack(found, 2).flatten(2, 3).transpose(1, 2)


def _picked(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Frames ``index`` (B, H, n) of (B, H, f, s, D)."""
    return x.gather(2, index[..., None, None].expand(*index.shape, *x.shape[-2:]))


def _softmax(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site, grid_keys: int) -> torch.Tensor:
    """Plain attention of (B, H, n, D); hidden keys are those outside the grid, which come last."""
    mask = None
    if site.key_mask is not None:
        hidden = torch.cat([site.key_mask.new_ones(q.shape[0], grid_keys), outside(site.key_mask, site)], 1)
        mask = torch.where(hidden, 0.0, float("-inf")).to(q.dtype)[:, None, None]
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=site.scale)
