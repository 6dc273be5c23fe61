"""Everything about a plan that does not depend on what is visible: lengths, block sizes, permutations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genkit.errors import UsageError
from genkit.kernels.permutation import TokenOrder
from genkit.kernels.plan.mask_spec import Rule

SAME = "same"


@dataclass(frozen=True)
class Sizes:
    """Lengths and blocks of both sides; see the fields of the same names of a plan."""

    n_q: int
    n_k: int
    block_q: int
    block_k: int
    q_valid: Tensor
    k_valid: Tensor
    order: TokenOrder | None = None
    key_order: TokenOrder | None = None
    even_keys: bool = False

    @classmethod
    def of(
        cls,
        n_q: int,
        n_k: int,
        block_q: int,
        block_k: int,
        order: TokenOrder | None,
        key_order: TokenOrder | str | None,
        device: torch.device,
    ) -> Sizes:
        """Sizes from what a caller gives; ``key_order="same"`` takes the queries' permutation where it fits."""
        if key_order == SAME:
            key_order = order if order is not None and n_k == order.length else None
        for name, value in (("n_q", n_q), ("n_k", n_k), ("block_q", block_q), ("block_k", block_k)):
            least = 0 if name == "n_k" else 1
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UsageError(f"plan: {name} must be a whole number >= {least}, got {value!r}")
        sides = []
        for name, count, block, arrange in (("queries", n_q, block_q, order), ("keys", n_k, block_k, key_order)):
            if arrange is None:
                start = torch.arange(0, count, block, device=device)
                sides.append((block, (count - start).clamp(max=block).to(torch.int32), None))
            elif arrange.length != count:
                raise UsageError(f"plan: the order of the {name} has {arrange.length} tokens, there are {count}")
            else:
                arrange = arrange if arrange.gather.device == device else arrange.to(device)
                sides.append((arrange.block, arrange.valid, arrange))
        if order is not None and key_order is order:
            sides[1] = sides[0]
        (block_q, q_valid, order), (block_k, k_valid, key_order) = sides
        # from shapes alone: no look at a device
        even = len(k_valid) * block_k == n_k
        return cls(n_q, n_k, block_q, block_k, q_valid, k_valid, order, key_order, even)

    @property
    def device(self) -> torch.device:
        """Where the tables are."""
        return self.q_valid.device

    @property
    def whole_keys(self) -> Tensor:
        """(1, 1, 1, Mk) bool: key blocks without padding, the only ones that may be full."""
        return (self.k_valid == self.block_k)[None, None, None]

    def expect(self, name: str, table: Tensor, dtypes: Sequence[torch.dtype] = (torch.bool,)) -> None:
        """Raise UsageError unless ``table`` is (B|1, H|1, Mq, Mk) of one of the dtypes."""
        wanted = (len(self.q_valid), len(self.k_valid))
        if table.dim() != 4 or tuple(table.shape[2:]) != wanted or table.dtype not in dtypes:
            kinds = " or ".join(str(kind).removeprefix("torch.") for kind in dtypes)
            raise UsageError(
                f"plan: {name} must be {kinds} of shape (B|1, H|1, {wanted[0]}, {wanted[1]}) for "
                f"{self.n_q} queries in blocks of {self.block_q} and {self.n_k} keys in blocks of "
                f"{self.block_k}, got {table.dtype} {tuple(table.shape)}"
            )

    def permute(self, rule: Rule) -> Rule:
        """The mask specification in block order, padded to whole blocks."""
        return rule.take(self.query_slots(), self.key_slots())

    def query_slots(self) -> Tensor:
        """(Mq * block_q,) int64: the query token of every slot in original order, -1 for padding."""
        return self._slots(self.q_valid, self.block_q, self.order)

    def key_slots(self) -> Tensor:
        """(Mk * block_k,) int64: the key token of every slot in original order, -1 for padding."""
        return self._slots(self.k_valid, self.block_k, self.key_order)

    def _slots(self, valid: Tensor, block: int, order: TokenOrder | None) -> Tensor:
        if order is not None:
            return order.gather
        slots = torch.arange(len(valid) * block, device=self.device).view(-1, block)
        return torch.where(slots % block < valid[:, None], slots, -1).flatten()

    def pool(self, factor: int) -> Sizes:
        """Sizes once every ``factor`` keys of a block are one."""
        n_k = len(self.k_valid) * self.block_k // factor
        k_valid = torch.div(self.k_valid + factor - 1, factor, rounding_mode="floor").to(torch.int32)
        return replace(self, n_k=n_k, block_k=self.block_k // factor, k_valid=k_valid, key_order=None)

    def behind(self, factor: int) -> Tensor | None:
        """Tokens behind each mean, or None when every mean with a token has ``factor`` of them."""
        first = torch.arange(0, self.block_k, factor, device=self.device)
        count = (self.k_valid[:, None] - first).clamp(0, factor).flatten()
        if self.even_keys or (count.device.type == "cpu" and bool((count % factor == 0).all())):
            return None
        return count.float()[None]

    def visible(self, key_mask: Tensor) -> Tensor:
        """(B, Mk * block_k) bool: the keys of a mask (B, Nk) in block order; padding is not visible."""
        if self.key_order is not None:
            key_mask = self.key_order.apply(key_mask.float()) > 0
        slots = len(self.k_valid) * self.block_k
        real = torch.arange(self.block_k, device=self.device) < self.k_valid[:, None]
        return torch.nn.functional.pad(key_mask, (0, slots - key_mask.shape[1])) & real.flatten()
