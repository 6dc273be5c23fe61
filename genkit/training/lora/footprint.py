"""What a computation needs, found by running it on tensors without values: memory at its highest, and arithmetic.

Every operation on the meta device makes tensors with a size and no storage. Counting those that are alive gives what an
accelerator would hold, for any model, in seconds and without its weights.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from genkit.attention.method import Method

_SCALAR = torch.ops.aten._local_scalar_dense.default
#: Multiplications of attention's backward pass for one of its forward pass: five matrix products for two.
_BACKWARD = 2.5


class Footprint(TorchDispatchMode):
    """Counts bytes and arithmetic of operations on the meta device while it is on.

    What asks for a value (``item()``, a length that a mask tells) gets 1 or True. Tensors on other devices are not
    counted, nor is what a kernel needs inside.

    Attributes:
        live: bytes of the tensors that are alive.
        peak: the most there have been since :meth:`mark`.
        flops: floating-point operations of matrix products, convolutions and attention, two for a multiplication with
            its addition.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.flops = 0.0
        self._held: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is _SCALAR and args[0].is_meta:
            return True if args[0].dtype == torch.bool else 1
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        counted = flop_registry.get(function.overloadpacket)
        if counted is not None:
            self.flops += counted(*args, **kwargs, out_val=out)
        self.hold(tree_leaves(out))
        return out

    def hold(self, values: Iterable[Any]) -> None:
        """Count tensors that were there before."""
        for value in values:
            if isinstance(value, torch.Tensor) and value.is_meta:
                self._know(value.untyped_storage())
        self.peak = max(self.peak, self.live)

    def _know(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._held:
            return

        def gone(_: Any) -> None:
            del self._held[key]
            self.live -= size

        self._held[key] = weakref.ref(storage, gone)
        self.live += size

    def mark(self) -> int:
        """Begin to look for the highest again; what is alive now."""
        self.peak = self.live
        return self.live


class _Attention(torch.autograd.Function):
    """Attention as kernels do it that never hold the scores: what is kept for the backward pass, and no values."""

    @staticmethod
    def forward(
        context: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads_first: bool, footprint: Footprint,
        density: float,
    ) -> torch.Tensor:  # fmt: skip
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        lse = q.new_empty(q.shape[:-1], dtype=torch.float32)
        context.save_for_backward(q, k, v, out, lse)
        tokens = -2 if heads_first else -3
        pairs = q.shape[:-1].numel() * k.shape[tokens] * density
        context.work = 2.0 * pairs * (q.shape[-1] + v.shape[-1])
        context.footprint = footprint
        footprint.flops += context.work
        return out

    @staticmethod
    def backward(context: Any, *gradients: Any) -> Any:
        q, k, v, _, _ = context.saved_tensors
        context.footprint.flops += _BACKWARD * context.work
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), None, None, None


@contextmanager
def counting(methods: Iterable[Method] = ()) -> Iterator[tuple[Footprint, dict[str, Any]]]:
    """Count everything in the ``with`` block.

    Attention, PyTorch's own and that of ``methods`` which a patch has put in, is replaced by a stand-in without values
    for the time of the block, so nothing else may run attention in this process meanwhile.

    Yields:
        The counts, and the densities of the methods' calls by site.
    """
    own = torch.nn.functional.scaled_dot_product_attention
    footprint, densities = Footprint(), {}

    def plain(query: Any, key: Any, value: Any, *args: Any, **more: Any) -> Any:
        return _Attention.apply(query, key, value, True, footprint, 1.0)

    def patched(self: Any, q: Any, k: Any, v: Any, site: Any, cache: Any) -> Any:
        densities[site.name] = density = self.density(site, cache)
        return _Attention.apply(q, k, v, False, footprint, 1.0 if density is None else density.executed)

    kinds = {type(method): type(method).__dict__.get("attend") for method in methods}
    torch.nn.functional.scaled_dot_product_attention = plain
    for kind in kinds:
        kind.attend = patched
    try:
        with footprint:
            yield footprint, densities
    finally:
        torch.nn.functional.scaled_dot_product_attention = own
        for kind, before in kinds.items():
            if before is None:
                del kind.attend
            else:
                kind.attend = before
