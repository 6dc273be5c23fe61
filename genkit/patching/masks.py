"""What a model's attention mask means for a method: nothing, a set of hidden keys, or something it cannot take."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

# Diffusers writes "hidden" as -10000 (in bfloat16 -9984) or as the lowest number of the dtype.
_HIDDEN = -9000.0
DIFFERS = "its attention mask differs between queries or heads"
_SOFT = "its attention mask is a soft bias, not a choice of keys"


@dataclass(frozen=True)
class MaskView:
    """A mask as methods see it.

    Args:
        keys: bool (B, Nk), True = attend, or None when every key is visible.
        obstacle: why the mask cannot be told in this form, or None.
        rest: only the grid's queries see these keys; what other tokens see is in the model's own mask alone.
        bias: float32 (B, Nk), added to the scores of the keys, or None.
        grid: whether keys of the grid are among the hidden ones.
        pairs: bool (B|1, Nq, Nk), True = attend, where queries see different keys; else None.
    """

    keys: torch.Tensor | None = None
    obstacle: str | None = None
    rest: bool = False
    bias: torch.Tensor | None = None
    grid: bool = False
    pairs: torch.Tensor | None = None


#: The view of no mask.
NO_MASK = MaskView()


def view_mask(
    mask: torch.Tensor | None,
    batch: int,
    n_q: int,
    n_k: int,
    grid_rows: tuple[int, int] | None = None,
    grid_keys: tuple[tuple[int, int], ...] = (),
) -> MaskView:
    """Read a mask: bool (True = attend) or additive, of shape (B, Nk) or broadcastable to (B, H, Nq, Nk).

    A mask that hides nothing is dropped. A mask that hides the same keys from every query and head becomes ``keys``,
    one that adds the same numbers everywhere becomes ``bias``. Where only the queries of the grid agree (text that is
    causal, or that sees other padding), the view is theirs and ``rest`` is set. Where queries see different keys, the
    same for all heads, they are ``pairs``. Anything else (other keys per head, other numbers) gives an ``obstacle``.
    Reads the values (device synchronisation).

    Args:
        grid_rows: span of the grid among the queries, when other tokens ask too.
        grid_keys: spans of the grid and its copies among the keys.
    """
    if mask is None:
        return MaskView()
    if mask.ndim == 2 and mask.shape == (batch, n_k):
        mask = mask[:, None, None, :]
    if mask.ndim == 3:
        mask = mask[:, None]
    if mask.ndim == 2:
        mask = mask[None, None]
    if mask.ndim != 4 or mask.shape[-1] not in (1, n_k):
        return MaskView(obstacle=f"its attention mask has the unexpected shape {tuple(mask.shape)}")
    rest = False
    if not _agree(mask):
        if grid_rows is None or mask.shape[2] != n_q or not _agree(mask[:, :, slice(*grid_rows)]):
            return _of_pairs(mask, n_q, n_k)
        mask, rest = mask[:, :, slice(*grid_rows)], True
    row = mask[:, 0, 0].expand(batch, n_k)
    view = _of_row(row, rest)
    keys = view.keys
    hidden = keys is not None and not all(bool(keys[:, start:stop].all()) for start, stop in grid_keys)
    return replace(view, grid=True) if hidden else view


def _agree(mask: torch.Tensor) -> bool:
    """Whether all queries and heads have the same mask, whatever number says "hidden"."""
    if bool((mask == mask[:, :1, :1]).all()):
        return True
    visible = _visible(mask)
    soft = mask.dtype != torch.bool and not bool((mask == mask[:, :1, :1])[visible].all())
    return not soft and bool((visible == visible[:, :1, :1]).all())


def _hides(mask: torch.Tensor) -> bool:
    """Whether a mask only chooses keys."""
    return mask.dtype == torch.bool or bool((mask == 0)[_visible(mask)].all())


def _of_pairs(mask: torch.Tensor, n_q: int, n_k: int) -> MaskView:
    """The view of a mask (B|1, H|1, Nq, Nk) whose queries do not agree."""
    if not _hides(mask):
        return MaskView(obstacle=_SOFT)
    visible = _visible(mask)
    if visible.shape[2:] != (n_q, n_k) or not bool((visible == visible[:, :1]).all()):
        return MaskView(obstacle=DIFFERS)
    return MaskView(pairs=visible[:, 0])


def _visible(mask: torch.Tensor) -> torch.Tensor:
    return mask if mask.dtype == torch.bool else mask > _HIDDEN


def _of_row(row: torch.Tensor, rest: bool) -> MaskView:
    """The view of what one query sees of the keys, (B, Nk)."""
    if row.dtype == torch.bool:
        if not bool(row.any(dim=1).all()):
            return MaskView(obstacle="its attention mask hides every key of a batch row")
        return MaskView(None if bool(row.all()) else row.contiguous(), rest=rest)
    keys = row > _HIDDEN
    # A finite bias added to every key of a row changes nothing: the softmax sees them all.
    keys = keys | ~keys.any(dim=1, keepdim=True)
    bias = torch.where(row > _HIDDEN, row.float(), 0.0)
    most = torch.where(keys, bias, float("-inf")).amax(dim=1, keepdim=True)
    level = bool(((bias == most) | ~keys).all())  # the same number for every visible key changes nothing either
    return MaskView(None if bool(keys.all()) else keys.contiguous(), rest=rest, bias=None if level else bias)


def with_bias(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values (B, N, H, D) widened so that their products hold the bias of every key.

    Eight more numbers per head: the queries get ones, the keys the bias over ``scale`` in two parts (the second is what
    rounding to a half-precision dtype loses of the first), the values zeros; outputs are cut to D again.
    """
    wanted = bias / scale
    high = wanted.to(k.dtype)
    low = (wanted - high.float()).to(k.dtype)
    extra = k.new_zeros(*k.shape[:3], 8)
    extra[..., 0], extra[..., 1] = high[:, :, None], low[:, :, None]
    ones = q.new_zeros(*q.shape[:3], 8)
    ones[..., :2] = 1
    return torch.cat([q, ones], -1), torch.cat([k, extra], -1), torch.cat([v, v.new_zeros(*v.shape[:3], 8)], -1)
