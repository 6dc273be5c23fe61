"""Block masks to index lists and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genkit.kernels.block_lists import BlockLists, list_mask, rounded
from genkit.kernels.block_lists.lists import WIDTH_STEP


@dataclass(frozen=True)
class InverseLists:
    """For every key block, the query blocks that visit it (what dK and dV need).

    ``full_count`` (B|1, H|1, Mk) int32 and ``full_index`` (B|1, H|1, Mk, W) int32, ascending, 0 beyond the count;
    ``partial_count`` and ``partial_index`` alike. ``partial_tile`` (like ``partial_index``) is the bit tile of each
    partial entry, None in a plan without bit tiles.
    """

    full_count: Tensor
    full_index: Tensor
    partial_count: Tensor
    partial_index: Tensor
    partial_tile: Tensor | None = None


def from_mask(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Lists of the True columns of every row.

    Args:
        mask: (..., M, K) bool.

    Returns:
        count (..., M) int32 and index (..., M, W) int32, ascending, 0 beyond the count; W is the largest count rounded
        up to whole steps of width (inside a compiled graph K is, since it must not depend on values).
    """
    if torch.compiler.is_dynamo_compiling():
        lists = list_mask(mask)
        return lists.count, lists.index
    return mask.sum(-1, dtype=torch.int32), aligned(mask, mask.nonzero(as_tuple=True)[-1])


def aligned(mask: Tensor, values: Tensor) -> Tensor:
    """Values of the True columns of every row, moved to the left: the table beside the lists of :func:`from_mask`.

    Args:
        mask: (..., M, K) bool. values: one for every True, in the order of ``mask.nonzero()``.

    Returns:
        (..., M, W) int32, 0 beyond the count.
    """
    count = mask.sum(-1)
    width = rounded(int(count.max()) if count.numel() else 0)
    table = torch.zeros(*mask.shape[:-1], width, dtype=torch.int32, device=mask.device)
    rank = mask.cumsum(-1, dtype=torch.int32) - 1
    where = mask.nonzero(as_tuple=True)
    table[(*where[:-1], rank[where].long())] = values.to(torch.int32)
    return table


def to_mask(count: Tensor, index: Tensor, columns: int) -> Tensor:
    """(..., M, columns) bool with True at the first ``count`` entries of ``index``."""
    used = torch.arange(index.shape[-1], device=index.device) < count[..., None]
    # unused entries go to an extra column, dropped below
    target = torch.where(used, index, columns).long()
    mask = torch.zeros(*index.shape[:-1], columns + 1, dtype=torch.bool, device=index.device)
    return mask.scatter_(-1, target, True)[..., :columns]


def split_ragged(
    lists: BlockLists, valid: Tensor, block: int, even: bool, in_order: bool
) -> tuple[BlockLists, BlockLists]:
    """Full and partial lists of chosen blocks that hold ``valid`` of ``block`` tokens, without a look at the device.

    Args:
        even: whether no block lacks a token.
        in_order: whether only the last block can; it then is the last entry of an ascending list.
    """
    count, index = lists
    none = torch.zeros_like(count)
    narrow = index.new_zeros((*index.shape[:-1], WIDTH_STEP))
    if even:
        return lists, BlockLists(none, narrow)
    slot = torch.arange(index.shape[-1], device=index.device, dtype=torch.int32)
    if in_order:
        last = len(valid) - 1
        at = (count[..., None].long() - 1).clamp(min=0)
        ragged = ((index.gather(-1, at)[..., 0] == last) & (count > 0)).to(torch.int32)
        full = count - ragged
        narrow[..., 0] = ragged * last
        return BlockLists(full, index.masked_fill(slot >= full[..., None], 0)), BlockLists(ragged, narrow)
    used = slot < count[..., None]
    whole = valid.index_select(0, index.flatten()).view(index.shape) == block
    return _compact(index, used & whole), _compact(index, used & ~whole)


def tidied(count: Tensor, index: Tensor, columns: int) -> BlockLists:
    """Lists in any order and with repetitions as lists that a plan can be made of, without a look at the device. An
    entry outside is taken for the nearest column."""
    width = rounded(index.shape[-1])
    used = torch.arange(index.shape[-1], device=index.device) < count[..., None]
    value = torch.where(used, index.clamp(0, columns - 1), columns).to(torch.int32)
    value = torch.nn.functional.pad(value, (0, width - index.shape[-1]), value=columns).sort(-1).values
    first = torch.nn.functional.pad(value[..., 1:] != value[..., :-1], (1, 0), value=True)
    found = _compact(value, first & (value < columns))
    return BlockLists(found.count, found.index[..., : rounded(columns)].contiguous())


def _compact(index: Tensor, keep: Tensor) -> BlockLists:
    """The entries that are kept, moved to the left."""
    width = index.shape[-1]
    # what is not kept goes to an extra column, dropped below
    target = torch.where(keep, keep.cumsum(-1, dtype=torch.int32) - 1, width).long()
    found = index.new_zeros((*index.shape[:-1], width + 1)).scatter_(-1, target, index)
    return BlockLists(keep.sum(-1, dtype=torch.int32), found[..., :width].contiguous())
