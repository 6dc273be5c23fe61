"""Counting what would make a host wait for its GPU, on a machine without one."""

from __future__ import annotations

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten

#: Operators whose results have a size, or that return a number, that depends on values.
WAITS = {
    aten._local_scalar_dense,
    aten.item,
    aten.is_nonzero,
    aten.equal,
    aten.nonzero,
    aten.nonzero_numpy,
    aten.masked_select,
    aten.unique_dim,
    aten.unique_consecutive,
    aten._unique,
    aten._unique2,
    aten.bincount,
    aten.allclose,
}


class Syncs(TorchDispatchMode):
    """Counts operators by name: ``every`` all of them, ``found`` those that would wait for the device.

    These are the ones whose result depends on values, indexing by masks, and copies between devices in either direction
    (from memory that is not pinned they wait too, and a graph that is being captured may hold none). ``tolist`` of a
    tensor on the CPU passes by unseen; on the meta device it fails, as everything that asks for a value does.
    """

    def __init__(self):
        super().__init__()
        self.found: Counter[str] = Counter()
        self.every: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self.every[str(func)] += 1
        packet = func.overloadpacket
        if packet in WAITS or self._sized(packet, args, kwargs) or self._by_mask(packet, args):
            self.found[str(func)] += 1
        result = func(*args, **kwargs)
        if packet in (aten._to_copy, aten.copy_):
            source = args[1] if packet is aten.copy_ else args[0]
            if isinstance(source, torch.Tensor) and source.device.type != result.device.type:
                self.found[f"{source.device.type} to {result.device.type}"] += 1
        return result

    @staticmethod
    def _sized(packet, args, kwargs) -> bool:
        """repeat_interleave by a table, without the size it comes to."""
        by_table = packet is aten.repeat_interleave and any(isinstance(x, torch.Tensor) for x in args[-1:])
        return by_table and kwargs.get("output_size") is None

    @staticmethod
    def _by_mask(packet, args) -> bool:
        if packet not in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_):
            return False
        return any(isinstance(x, torch.Tensor) and x.dtype in (torch.bool, torch.uint8) for x in tree_leaves(args[1]))
