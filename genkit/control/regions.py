"""Sets of tokens: a region of the picture as a mask at any resolution, numbers of tokens, words of the text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Union

from genkit.attention.site import Site
from genkit.errors import UsageError, explain
from genkit.layout import TokenLayout

if TYPE_CHECKING:
    import torch

    from genkit.control.rows import Rows

Span = tuple[int, int]


@dataclass(frozen=True)
class Seen:
    """What a rule's function sees of the attention call it is asked about.

    Args:
        site: where; ``site.layout`` and ``site.key_layout`` tell the tokens.
        q, k, v: (B, N, H, D) of all rows, after takes.
        rows: who the rows are. step, steps: when; None where nothing tells it.
    """

    site: Site
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    rows: Rows
    step: int | None
    steps: int | None


#: A mask (H, W), (T, H, W) at any resolution, or a function from :class:`Seen` to bool (grid tokens,) or to int64
#: numbers of grid tokens, which may repeat.
Region = Union["torch.Tensor", Callable[[Seen], "torch.Tensor"]]


@dataclass(frozen=True, eq=False)
class Tokens:
    """A set of tokens of one sequence: a region of the picture, words of the text, or both together.

    Args:
        region: grid tokens; None = no grid token. A mask is averaged over every token's area, and a token belongs to
            the region where at least half of it is inside.
        text: positions among the text tokens.
        everything: all tokens, whatever the others say.

    Example:
        >>> import torch
        >>> from genkit.layout import TokenLayout
        >>> left = torch.zeros(8, 8)
        >>> left[:, :4] = 1
        >>> layout = TokenLayout.of_grid(1, 2, 2, text=3, text_first=True)
        >>> Tokens(left, text=(1,)).flags(layout).int().tolist()
        [0, 1, 0, 1, 0, 1, 0]
    """

    region: Region | None = None
    text: tuple[int, ...] = ()
    everything: bool = False

    def flags(self, layout: TokenLayout, seen: Seen | None = None) -> torch.Tensor:
        """bool (tokens,) on the CPU; True = in the set."""
        import torch

        if self.everything:
            return torch.ones(layout.length, dtype=torch.bool)
        found = torch.zeros(layout.length, dtype=torch.bool)
        if self.region is not None:
            start, stop = asking_span(layout)
            found[start:stop] = region_flags(self.region, layout, seen)
        if self.text:
            found[list(text_columns(layout, self.text))] = True
        return found


def as_tokens(given: Any, what: str) -> Tokens:
    """``Tokens`` of what a caller gives: tokens, a mask or function (a region), or None (everything)."""
    import torch

    if given is None:
        return Tokens(everything=True)
    if isinstance(given, Tokens):
        return given
    if isinstance(given, torch.Tensor) or callable(given):
        return Tokens(given)
    raise UsageError(explain(what, given, "genkit.control.Tokens, a mask (H, W) or (T, H, W), a function, or None"))


def asking_span(layout: TokenLayout) -> Span:
    """The tokens that read the text: the picture's, or all of a sequence without a picture (sound)."""
    return layout.grid_span if layout.has_grid else (0, layout.length)


def region_flags(region: Region, layout: TokenLayout, seen: Seen | None) -> torch.Tensor:
    """bool (grid tokens,) of a region, on the CPU; (tokens,) of a sequence without a grid."""
    import torch

    found = region_tokens(region, layout, seen)
    if found.dtype == torch.bool:
        return found
    flags = torch.zeros(_count(layout), dtype=torch.bool)
    flags[found] = True
    return flags


def region_tokens(region: Region, layout: TokenLayout, seen: Seen | None) -> torch.Tensor:
    """bool (grid tokens,) or, from a function that gives numbers, int64 (any,); on the CPU."""
    import torch

    from genkit.attention.reference.masks import grid_mask

    if isinstance(region, torch.Tensor):
        if not layout.has_grid:
            raise UsageError(f"a mask needs a token grid, this sequence of {layout.length} tokens has none")
        mask = region.detach().float().cpu()
        return grid_mask(mask[None] if mask.dim() == 2 else mask, layout.grid)[0] >= 0.5
    if seen is None:
        raise UsageError("a region that is a function can only be asked in an attention call")
    found, count = region(seen).detach().cpu(), _count(layout)
    if found.dtype == torch.bool and tuple(found.shape) == (count,):
        return found
    if found.dtype == torch.int64 and found.dim() == 1:
        if len(found) and not 0 <= int(found.min()) <= int(found.max()) < count:
            raise UsageError(f"region: token numbers must lie from 0 to {count - 1}")
        return found
    raise UsageError(
        explain(
            "what a region's function gives",
            f"{tuple(found.shape)} {found.dtype}",
            f"bool ({count},), or int64 (any,) numbers of tokens",
        )
    )


def _count(layout: TokenLayout) -> int:
    start, stop = asking_span(layout)
    return stop - start


def text_columns(layout: TokenLayout, positions: tuple[int, ...] | None) -> tuple[int, ...]:
    """Places in a sequence of positions in its text; None = all of the text.

    Raises:
        UsageError: a sequence without text, or positions beyond it.
    """
    span = layout.text_span
    if span is None:
        raise UsageError(f"this sequence of {layout.length} tokens has no text")
    start, stop = span
    if positions is None:
        return tuple(range(start, stop))
    for position in positions:
        if isinstance(position, bool) or not isinstance(position, int) or not 0 <= position < stop - start:
            raise UsageError(explain("text token", position, f"0 to {stop - start - 1}"))
    return tuple(start + position for position in positions)
