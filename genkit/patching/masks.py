"""What a model's attention mask means for a method: nothing, a set of hidden keys, or something it cannot take."""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Diffusers writes "hidden" as -10000 (in bfloat16 -9984) or as the lowest number of the dtype.
_HIDDEN = -9000.0


@dataclass(frozen=True)
class MaskView:
    """A mask as methods see it.

    Args:
        keys: bool (B, Nk), True = attend, or None when every key is visible.
        obstacle: why the mask cannot be told in this form, or None.
    """

    keys: torch.Tensor | None = None
    obstacle: str | None = None


def view_mask(mask: torch.Tensor | None, batch: int, n_q: int, n_k: int) -> MaskView:
    """Read a mask: bool (True = attend) or additive, of shape (B, Nk) or broadcastable to (B, H, Nq, Nk).

    A mask that hides nothing is dropped. A mask that hides the same keys from every query and head becomes ``keys``.
    Anything else (per query, per head, soft biases) gives an ``obstacle``. Reads the values (device synchronisation).
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
    if mask.dtype == torch.bool:
        visible = mask
    else:
        visible = mask > _HIDDEN
        if not bool((~visible | (mask == 0)).all()):
            return MaskView(obstacle="its attention mask is a soft bias, not a choice of keys")
    if bool(visible.all()):
        return MaskView()
    first = visible[:, :1, :1]
    if not bool((visible == first).all()):
        return MaskView(obstacle="its attention mask differs between queries or heads")
    keys = first[:, 0, 0].expand(batch, n_k)
    if mask.dtype != torch.bool:
        # A finite bias added to every key of a row changes nothing: the softmax sees them all.
        keys = keys | ~keys.any(dim=1, keepdim=True)
        if bool(keys.all()):
            return MaskView()
    elif not bool(keys.any(dim=1).all()):
        return MaskView(obstacle="its attention mask hides every key of a batch row")
    return MaskView(keys=keys.contiguous())
