"""How the heads of an attention call are shared among processes that each have a part of the sequence."""

from __future__ import annotations

from typing import Any

import torch
from torch.compiler import is_compiling


class HeadSplit:
    """How the heads of one attention call are shared.

    Args:
        config: Diffusers' ``ContextParallelConfig``, set up.
    """

    __slots__ = ("group", "processes", "rank")

    def __init__(self, config: Any):
        self.group = config._ulysses_mesh.get_group()
        self.processes: int = config.ulysses_degree
        self.rank: int = config._ulysses_local_rank

    def whole(self, x: torch.Tensor) -> torch.Tensor:
        """(B, N / processes, H, D) of every process -> (B, N, H / processes, D), tokens process by process."""
        from diffusers.models.attention_dispatch import SeqAllToAllDim

        return SeqAllToAllDim.apply(self.group, x, 2, 1)

    def part(self, x: torch.Tensor) -> torch.Tensor:
        """The way back."""
        from diffusers.models.attention_dispatch import SeqAllToAllDim

        return SeqAllToAllDim.apply(self.group, x, 1, 2)

    def whole_mask(self, mask: torch.Tensor, keys: int) -> torch.Tensor:
        """A mask of the ``keys`` keys of every process, laid out as the exchange lays out the keys; others stay."""
        if mask.shape[-1] != keys:
            return mask
        plain = mask.to(torch.uint8) if mask.dtype == torch.bool else mask
        parts = [torch.empty_like(plain) for _ in range(self.processes)]
        torch.distributed.all_gather(parts, plain.contiguous(), group=self.group)
        return torch.cat(parts, dim=-1).to(mask.dtype)

    def here(self, heads: tuple[int, ...] | None, count: int) -> tuple[int, tuple[int, ...] | None]:
        """Those of some heads of the model that are among the ``count`` of this process, None = all of them.

        Returns:
            How many of them other processes have before, and their numbers here, None = all of this process.
        """
        first = self.rank * count
        if heads is None:
            return first, None
        mine = tuple(head - first for head in heads if first <= head < first + count)
        return sum(head < first for head in heads), None if len(mine) == count else mine


def why_not(config: Any, q: torch.Tensor, k: torch.Tensor) -> str | None:
    """Why no method can serve calls under a ``ParallelConfig``, or None. The same in all processes."""
    config = config.context_parallel_config
    if config.ring_degree > 1:
        return (
            "context parallelism by ring attention leaves every process a part of the keys, and methods need them all "
            "(ulysses_degree splits heads instead)"
        )
    if config.ulysses_anything:
        return (
            "context parallelism with ulysses_anything has parts of different sizes (without it, heads and tokens must "
            "be multiples of ulysses_degree)"
        )
    if is_compiling():
        return "context parallelism inside torch.compile"
    if q.shape[2] % config.ulysses_degree or k.shape[2] != q.shape[2]:
        return f"{q.shape[2]} heads of queries and {k.shape[2]} of keys cannot be split for context parallelism"
    return None
