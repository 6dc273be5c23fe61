"""Shared cross-attention: after joint attention the grid's tokens ask the text once more, alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from genkit.attention.cache import PatchCache
from genkit.attention.method import Method, check_int, check_number
from genkit.attention.registry import register
from genkit.attention.shared_cross_attention.layer import LayerWeights
from genkit.attention.shared_cross_attention.positions import turned
from genkit.attention.site import Place, Site
from genkit.attention.static import check_tokens, dense_attention
from genkit.attention.weights import PatchWeights
from genkit.errors import UnsupportedError, UsageError
from genkit.layout import TokenLayout

_OWNER = "shared_cross_attention"


@register(_OWNER)
@dataclass(frozen=True)
class SharedCrossAttention(Method):
    """The grid's tokens query the text a second time, by a trained term beside the layer's joint attention.

    In joint attention of a clip the text is a vanishing share of the keys (512 of 114,592). With the output ``a`` of
    that attention: ``Q = norm_q(LN(W_q a))``, turned by the positions of the grid; keys and values of the text are
    those that the block projected for its joint attention; ``W_o Attention(Q, K, V)`` is added to ``a`` before the
    block's output projection. Padded text is hidden, image tokens of a first frame are not asked. ``W_o`` starts at
    zero: without training the model is itself, bit for bit. It shares its layers with any other method.

    Args:
        strength: factor of the term; 0 = off.
        weights: safetensors file with trained weights, read when the patch is made.
        seed: start of the weights.

    Cost: per layer two projections of the grid's tokens (``2 C^2`` products each) and attention to the text alone;
    weights ``2 C^2 + 2 C`` per layer.

    Source: Motif-Video 2B: Technical Report (shared cross-attention), arXiv 2604.16503.
    """

    strength: float = field(default=1.0, metadata={"help": "factor of the term"})
    weights: None | str = field(default=None, metadata={"help": "file with trained weights"})
    seed: int = field(default=0, metadata={"help": "start of the weights"})

    roles: ClassVar[tuple[str, ...]] = ("joint",)
    trainable: ClassVar[bool] = True
    reads_output: ClassVar[bool] = True
    any_tokens: ClassVar[bool] = True
    declines: ClassVar[str] = "its strength is 0"
    source: ClassVar[str] = "Motif-Video 2B, arXiv 2604.16503"

    def __post_init__(self):
        super().__post_init__()
        check_number(_OWNER, "strength", self.strength, 0, 1e3)
        check_int(_OWNER, "seed", self.seed, 0)

    @property
    def hides_grid(self) -> bool:
        """See :attr:`Method.hides_grid`: the text alone is read."""
        return True

    @property
    def adds(self) -> bool:
        """See :attr:`Method.adds`."""
        return True

    def why_not(self, site: Site) -> str | None:
        """See :meth:`Method.why_not`; without text there is nothing to ask."""
        reason = super().why_not(site)
        if reason is None and not _length(site.layout.text_span):
            reason = f"{_OWNER} asks the text among the tokens, and this sequence has none"
        return reason

    def details(self, layout: TokenLayout) -> str:
        """See :meth:`Method.details`."""
        return "grid tokens ask the text once more"

    def install(self, place: Place, cache: PatchCache) -> Iterable[Any]:
        """Make the layer's weights, and follow the positions that its module is given."""
        if not place.text:
            return ()
        PatchWeights.of(cache).put(self.name, place.name, LayerWeights(place, self.seed), self.settings())
        rotary = place.rotary
        if rotary is None:
            cache.hold((_OWNER, "untold"), True)
        if rotary is None or not rotary.argument:
            return ()

        def keep(module: Any, args: tuple[Any, ...], given: Mapping[str, Any]) -> None:
            if torch.compiler.is_compiling():  # graphs would keep the tables of the call that was traced
                torch._dynamo.graph_break()
            cache.hold((_OWNER, place.name), given.get(rotary.argument))

        return [place.module.register_forward_pre_hook(keep, with_kwargs=True)]

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site, cache: PatchCache
    ) -> torch.Tensor | None:
        """See :meth:`Method.attend`: the term to add."""
        self.require(site, cache)
        check_tokens(q, k, site)
        if self.strength == 0:
            return None
        if site.output is None:
            raise UsageError(f"layer {site.name}: {_OWNER} needs what the attention gave, Site.output")
        layer: Any = PatchWeights.of(cache).at(self.name, site.name)
        start, stop = site.layout.grid_span
        words = slice(*(site.layout.text_span or (0, 0)))
        queries = layer.queries(site.output[:, start:stop])
        if layer.place.rotary is not None:
            told = cache.held((_OWNER, site.name))
            queries = turned(queries, told, layer.place.rotary.pairs, site.layout, site.name)
        term = layer.project(self._read(queries, k[:, words], v[:, words], site, words))
        return torch.nn.functional.pad(self.strength * term, (0, 0, 0, 0, start, q.shape[1] - stop))

    def _read(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, site: Site, words: slice
    ) -> torch.Tensor:
        """Attention to the text alone; zero where all of it is hidden."""
        if site.key_mask is None:
            return dense_attention(queries, keys, values, site.scale, None)
        seen = site.key_mask[:, words]
        some = seen.any(1, keepdim=True)
        found = dense_attention(queries, keys, values, site.scale, seen | ~some)
        return found * some[:, :, None, None].to(found.dtype)

    def remarks(self, cache: PatchCache) -> list[str]:
        """See :meth:`Method.remarks`."""
        told = []
        ends = [value for name, value in PatchWeights.of(cache).named_weights().items() if name.endswith(".out")]
        if ends and not any(bool(value.any()) for value in ends if not value.is_meta):
            told.append(f"{_OWNER} is not trained: the output is the model's own; give weights=FILE")
        if not cache.held((_OWNER, "untold"), False):
            return told
        return [
            *told,
            f"{_OWNER}: the record of this family does not tell how queries are turned by their positions; its queries "
            "have none",
        ]

    def mask(self, layout: TokenLayout) -> torch.Tensor:
        """There is none: see :meth:`Method.mask`."""
        raise UnsupportedError(
            f"{_OWNER} hides nothing: it adds a term by which the grid asks the text once more. What it does is seen "
            "in a clip: genkit generate PROMPT --attention shared_cross_attention --attention-args weights=FILE"
        )


def _length(span: tuple[int, int] | None) -> int:
    return 0 if span is None else span[1] - span[0]
