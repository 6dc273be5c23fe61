"""Turning queries as a model turns its own, by the tables that reach its attention modules."""

from __future__ import annotations

from typing import Any

import torch

from genkit.attention.frame_lists import turned as turn
from genkit.attention.site import NEIGHBOURS
from genkit.errors import UnsupportedError
from genkit.layout import TEXT, TokenLayout


def turned(x: torch.Tensor, told: Any, pairs: str, layout: TokenLayout, name: str) -> torch.Tensor:
    """The grid's queries after rotation.

    Args:
        x: (B, T*H*W, heads, D) queries of the grid.
        told: what the module was given, see :class:`genkit.attention.site.Rotary`; None turns nothing.
        pairs: how the two channels of a pair lie.
        layout: of the call.
        name: of the layer, for messages.

    Raises:
        UnsupportedError: tables of other tokens, or of another width.
    """
    if told is None:
        return x
    cos, sin = _tables(told, name)
    start, stop = _rows(cos.shape[1], layout, name)
    cos, sin = (_by_pair(table[:, start:stop, None], x.shape[-1], pairs, name) for table in (cos, sin))
    wide = torch.promote_types(x.dtype, cos.dtype)
    return turn(x.to(wide), cos.to(wide), sin.to(wide), pairs).to(x.dtype)


def _tables(told: Any, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines (B | 1, N, D or D / 2)."""
    parts = list(told) if isinstance(told, (tuple, list)) else [told]
    if not all(isinstance(part, torch.Tensor) for part in parts):
        raise UnsupportedError(f"layer {name}: its rotary tables are no tensors")
    if parts[0].is_complex():
        parts = [parts[0].real, parts[0].imag]
    if len(parts) != 2 or parts[0].shape != parts[1].shape or parts[0].ndim not in (2, 3):
        shapes = ", ".join(str(tuple(part.shape)) for part in parts)
        raise UnsupportedError(f"layer {name}: its rotary tables are not cosines and sines of tokens: {shapes}")
    cos, sin = (part if part.ndim == 3 else part[None] for part in parts)
    return cos, sin


def _rows(count: int, layout: TokenLayout, name: str) -> tuple[int, int]:
    """The grid's rows of a table of ``count`` tokens."""
    start, stop = layout.grid_span
    first, last = layout.text_span or (0, 0)
    text = last - first
    before = text if last <= start else 0  # text tokens before the grid
    ways = {
        layout.length: start,
        stop - start: 0,
        layout.length - text: start - before,
        stop: start,  # what follows the grid is not turned
        text + stop - start: before,  # the call reads further keys, of a cache
    }
    for length, found in ways.items():
        if count == length:
            return found, found + stop - start
    parts = " + ".join(f"{part.length} {part.name}" for part in layout.segments)
    raise UnsupportedError(
        f"layer {name}: rotary tables of {count} tokens, the call has {parts}; {TEXT} may be left out"
    )


def _by_pair(table: torch.Tensor, width: int, pairs: str, name: str) -> torch.Tensor:
    """A table with a number for each pair of the queries' channels; many have it once for each channel."""
    if 2 * table.shape[-1] == width:
        return table
    if table.shape[-1] != width:
        raise UnsupportedError(f"layer {name}: rotary tables of width {table.shape[-1]}, queries of width {width}")
    return table[..., ::2] if pairs == NEIGHBOURS else table[..., : width // 2]
