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

from genkit.layout import TEXT, TokenLayout
from genkit.patching.head_split import HeadSplit
from genkit.patching.order import Order

if TYPE_CHECKING:
    from genkit.patching.interception import Call

#: The argument with the text tokens, in the models whose text is split apart from the picture's tokens.
_TEXT_INPUT = "encoder_hidden_states"


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
