"""Context parallelism that splits heads (Ulysses): a method gets the whole sequence, and the heads of this process.

Diffusers gives every process a part of the sequence. Before attention an exchange turns parts of the sequence with all
heads into the whole sequence with a part of the heads, and another one turns the output back. The exchanges are
Diffusers' own; a method runs between them.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.compiler import is_compiling

from genkit.layout import TEXT, TokenLayout
from genkit.patching.order import Order

if TYPE_CHECKING:
    from genkit.patching.interception import Call

#: The argument with the text tokens, in the models whose text is split apart from the picture's tokens.
_TEXT_INPUT = "encoder_hidden_states"


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


def split_inputs(model: Any) -> frozenset[str]:
    """Names of the arguments that Diffusers' hooks split over processes, anywhere in a model."""
    from diffusers.hooks.context_parallel import ContextParallelSplitHook

    names: set[str] = set()
    for module in model.modules():
        registry = getattr(module, "_diffusers_hook", None)
        for hook in registry.hooks.values() if registry is not None else ():
            if isinstance(hook, ContextParallelSplitHook):
                names.update(name for name in hook.metadata if isinstance(name, str))
    return frozenset(names)


class _Layer(Protocol):
    """A patched layer, as far as it is needed here."""

    def serve(self, index: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: Call) -> torch.Tensor:
        """Serve one attention call of whole sequences."""

    def token_orders(self, index: int, n_q: int, n_k: int, split: HeadSplit) -> tuple[Any, Any]:
        """Orders of the queries and the keys."""


def attend(layer: _Layer, index: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: Call) -> torch.Tensor:
    """One attention call of a layer, (B, N / processes, H, D) in and out."""
    split, keys = call.split, k.shape[1]
    assert split is not None
    q, k, v = split.whole(q), split.whole(k), split.whole(v)
    mask = call.mask if call.mask is None else split.whole_mask(call.mask, keys)
    asking, asked = layer.token_orders(index, q.shape[1], k.shape[1], split)
    if asked is not None:
        asked = asked.to(k.device)
        k, v = asked.to_raster(k), asked.to_raster(v)
        if mask is not None and mask.shape[-1] == k.shape[1]:
            mask = mask.index_select(-1, asked.places)
    if asking is not None:
        asking = asking.to(q.device)
        q = asking.to_raster(q)
        if mask is not None and mask.ndim > 2 and mask.shape[-2] == q.shape[1]:
            mask = mask.index_select(-2, asking.places)
    out = layer.serve(index, q, k, v, call.of_whole(mask))
    return split.part(out if asking is None else asking.from_raster(out))


class ShardOrders:
    """Where the tokens of a layout are when the parts of all processes stand in a row."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Order | None] = {}

    def of(self, layout: TokenLayout, split: HeadSplit, inputs: frozenset[str]) -> Order | None:
        """The order of a sequence whose text was split by itself; None: the sequence was split as it is."""
        runs = [(name, sum(part.length for part in parts)) for name, parts in itertools.groupby(
            layout.segments, key=lambda part: part.name == TEXT)]  # fmt: skip
        if len(runs) < 2 or not {_TEXT_INPUT, "hidden_states"} <= inputs:
            return None
        key = (layout, split.processes)
        if key not in self._known:
            self._known[key] = _build([length for _, length in runs], split.processes)
        return self._known[key]


def _build(lengths: list[int], processes: int) -> Order:
    parts = [length // processes for length in lengths]
    places, before = [], 0
    for part in parts:
        starts = torch.arange(processes)[:, None] * sum(parts) + before
        places.append((starts + torch.arange(part)).flatten())
        before += part
    whole = torch.cat(places)
    return Order(whole, torch.argsort(whole))
