"""Sparse attention with a linear branch for what it drops: exact where it matters, a trained low-rank rest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch.nn import functional as F

from genkit.attention.cache import PatchCache
from genkit.attention.linear_forms import FORMS, Inputs, LinearWeights, over_all, over_past, over_unselected
from genkit.attention.method import Density, check_choice, check_int, check_used
from genkit.attention.read_blocks import BlocksRead
from genkit.attention.registry import register
from genkit.attention.site import Place, Site
from genkit.attention.sparse_part import WithSparsePart, as_text, parse, tellers
from genkit.attention.static import check_tokens
from genkit.attention.weights import PatchWeights
from genkit.errors import UsageError, explain
from genkit.layout import TokenLayout

_OWNER = "sparse_linear"
BRANCH_SHADE = 1e-3  # of the branch's pairs in pictures: seen, and next to nothing in counts
UNSELECTED, ALL, PAST = KEYS = ("unselected", "all", "past")
#: Forms that a kind of keys allows.
_FORMS = {
    UNSELECTED: tuple(name for name, form in FORMS.items() if form.unselected),
    ALL: tuple(FORMS),
    PAST: ("softmax", "elu", "relu", "state"),
}


@register(_OWNER)
@dataclass(frozen=True)
class SparseLinear(WithSparsePart):
    """A sparse method and a linear branch beside it: ``sparse + linear W + c``, W and c trained, zero at the start.

    The sparse part is any method that computes self-attention. The branch sums over the blocks it dropped (or over all
    keys) at linear cost, so that the rest is not lost. Until W is trained or fitted, the output is bit for bit that of
    the sparse part: an untrained branch would add error. Text and other extra tokens see everything in the sparse part
    and get nothing from the branch. Train with ``genkit train lora --attention sparse_linear
    --train-attention-weights``, or fit W from a few runs with :class:`ProjectionFit`.

    Args:
        sparse: the sparse method with its settings, separated by spaces: ``"block_select keep=0.1"``; or a method.
        keys: what the branch reads: ``"unselected"``, the blocks that the sparse part did not; ``"all"`` (SLA's main
            form); ``"past"``, the frames ``lag`` or more before (the running state of Hybrid Forcing). Weights of one
            do not fit another.
        form: how the branch weights pairs; see :class:`LinearAttention`. ``"state"`` is Hybrid Forcing's.
        projection: W ``"shared"`` by the heads of a layer (published), or one per ``"head"``.
        lag: with ``keys="past"``: frames from a token's own to the nearest one the branch reads.
        weights: safetensors file with trained weights, read when the patch is made.

    Sources: SLA: Beyond Sparsity in Diffusion Transformers via Fine-Tunable Sparse-Linear Attention, arXiv 2509.24006;
    Hybrid Forcing, arXiv 2604.10103.
    """

    sparse: str = field(default="block_select keep=0.1", metadata={"help": "sparse method and its settings, by spaces"})
    keys: Literal["unselected", "all", "past"] = field(default="unselected", metadata={"help": "what the branch reads"})
    form: Literal["softmax", "elu", "relu", "rala", "lightnet", "lightning", "flow", "state"] = field(
        default="softmax", metadata={"help": "how the branch weights pairs"}
    )
    projection: Literal["shared", "head"] = field(default="shared", metadata={"help": "W of a layer, or of a head"})
    lag: int = field(default=1, metadata={"help": "keys=past: frames to the nearest one read"})
    weights: None | str = field(default=None, metadata={"help": "file with trained weights"})

    roles: ClassVar[tuple[str, ...]] = ("self", "joint")
    variants: ClassVar[tuple[dict, ...]] = ({}, {"keys": "all"})
    trainable: ClassVar[bool] = True
    trained_with: ClassVar[tuple[str, ...]] = ("keys", "form")
    by_data: ClassVar[bool] = True
    two_branches: ClassVar[bool] = True
    source: ClassVar[str] = "SLA, arXiv 2509.24006; Hybrid Forcing, arXiv 2604.10103"

    def __post_init__(self):
        super().__post_init__()
        what = f"{_OWNER}.sparse"
        part = parse(self.sparse, what)
        object.__setattr__(self, "sparse", as_text(part, what))
        check_choice(_OWNER, "keys", self.keys, KEYS)
        check_choice(_OWNER, "form", self.form, tuple(FORMS))
        check_choice(_OWNER, "projection", self.projection, ("shared", "head"))
        check_int(_OWNER, "lag", self.lag, 1)
        check_used(self, ("lag",), self.keys == PAST, "keys='past'")
        if self.form not in _FORMS[self.keys]:
            raise UsageError(explain(f"{_OWNER}.form with keys={self.keys}", self.form, _FORMS[self.keys]))
        if self.keys == UNSELECTED and not part.tells_blocks:
            raise UsageError(
                f"{_OWNER}.keys='unselected' needs a sparse part that reads whole blocks and nothing else, got "
                f"{part.describe()}; allowed: {', '.join(tellers())}, or keys='all'"
            )

    @property
    def heads_apart(self) -> bool:
        """See :attr:`Method.heads_apart`."""
        return self.part.heads_apart

    def install(self, place: Place, cache: PatchCache) -> Iterable[Any]:
        """Make the layer's weights, and those of the sparse part."""
        own = LinearWeights(place, self.form, self.projection)
        PatchWeights.of(cache).put(self.name, place.name, own, self.settings())
        return self.part.install(place, cache)

    def check_weights(self) -> None:
        """See :meth:`Method.check_weights`: the sparse part's."""
        self.part.check_weights()

    def recommended(self, steps: int, layers: int) -> dict[str, str]:
        """What the sparse part advises."""
        return self.part.recommended(steps, layers)

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site, cache: PatchCache
    ) -> torch.Tensor | None:
        """See :meth:`Method.attend`. Declines where the sparse part does."""
        own: Any = PatchWeights.of(cache).at(self.name, site.name)
        found = self.branches(q, k, v, site, cache, own)
        if found is None:
            return None
        out, rest = found
        start, stop = site.layout.grid_span
        term = own.project(rest)
        if site.layout.length != stop - start:
            term = F.pad(term, (0, 0, 0, 0, start, site.layout.length - stop))
        return (out.to(term.dtype) + term).to(out.dtype)

    def branches(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site, cache: PatchCache, own: LinearWeights
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Both parts of a call before they are added: the sparse output (B, N, H, D) and, of the grid's tokens, what
        the projection takes (B, T*H*W, H, D), at least float32. None where the sparse part declines."""
        self.require(site, cache)
        check_tokens(q, k, site)
        read = None
        if self.keys == UNSELECTED:
            found = self.part.attend_blocks(q, k, v, site, cache)
            if found is None:
                return None
            out, read = found
        else:
            out = self.part.attend(q, k, v, site, cache)
            if out is None:
                return None
        share = torch.tensor(1.5 * q.shape[-1] / site.layout.length)
        cache.measure((self, site.name), lambda: share)
        return out, self._rest(q, k, v, site, read, own)

    def _rest(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site, read: BlocksRead | None,
        own: LinearWeights | None,
    ) -> torch.Tensor:  # fmt: skip
        """The linear branch of the grid's tokens before its projection."""
        start, stop = site.layout.grid_span
        if self.keys == ALL:
            return over_all(Inputs(self.form, q, k, v, site.key_mask), site, own)[:, start:stop]
        if read is None or read.grid:
            q, k, v = (x[:, start:stop] for x in (q, k, v))
            mask = None if site.key_mask is None else site.key_mask[:, start:stop]
            if read is None:
                return over_past(Inputs(self.form, q, k, v, mask), site.layout.frame_tokens, self.lag)
            moved = None if read.permutation is None or read.permutation.identity else read.permutation
            if moved is not None:
                q, k, v = (x.index_select(1, moved.order) for x in (q, k, v))
                mask = None if mask is None else mask.index_select(1, moved.order)
            out = over_unselected(Inputs(self.form, q, k, v, mask), read.plan)
            return out if moved is None else out.index_select(1, moved.inverse)
        x = Inputs(self.form, q, k, v, site.key_mask)
        out = torch.zeros_like(x.v.expand_as(x.q)) if read.plan is None else over_unselected(x, read.plan)
        return out[:, start:stop]

    def seen(self, q: torch.Tensor, k: torch.Tensor, site: Site, cache: PatchCache) -> torch.Tensor:
        """1 for pairs that the sparse part reads, just above 0 for those of the branch; see :meth:`Method.seen`."""
        exact = self.part.seen(q, k, site, cache) if self.part.by_data else self.part.mask(site.layout).float()
        start, stop = site.layout.grid_span
        reach = torch.zeros_like(exact)
        reach[start:stop] = 1
        if self.keys == PAST:
            frame = torch.arange(stop - start) // site.layout.frame_tokens
            reach.zero_()
            reach[start:stop, start:stop] = (frame[None] + self.lag <= frame[:, None]).float()
        cache.measure((self, site.name), lambda: torch.tensor(1.5 * q.shape[-1] / site.layout.length))
        return torch.maximum(exact, BRANCH_SHADE * reach)

    def pair_rows(
        self, q: torch.Tensor, k: torch.Tensor, site: Site, cache: PatchCache, queries: torch.Tensor
    ) -> torch.Tensor:
        """Those of the sparse part; the branch reads sums. See :meth:`Method.pair_rows`."""
        return self.part.pair_rows(q, k, site, cache, queries)

    def read_rows(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site, cache: PatchCache, queries: torch.Tensor
    ) -> torch.Tensor:
        """See :meth:`Method.read_rows`."""
        return self.part.read_rows(q, k, v, site, cache, queries)

    def density(self, site: Site, cache: PatchCache) -> Density | None:
        """That of the sparse part; what is executed counts the branch too, as the share of dense attention it costs."""
        of_part, share = self.part.density(site, cache), cache.measured((self, site.name))
        if of_part is None:
            return None
        return Density(of_part.computed, of_part.executed + (share or 0.0))

    def details(self, layout: TokenLayout) -> str:
        """See :meth:`Method.details`."""
        reads = {UNSELECTED: "the blocks it drops", ALL: "all keys", PAST: f"frames {self.lag} or more before"}
        told = self.part.details(layout)
        return f"{self.part.name}{': ' if told else ''}{told};  linear branch ({self.form}) over {reads[self.keys]}"

    def remarks(self, cache: PatchCache) -> list[str]:
        """See :meth:`Method.remarks`: those of the sparse part, and whether the branch does anything."""
        found = list(self.part.remarks(cache))
        own: list[Any] = [each for name, each in PatchWeights.of(cache).layers.items() if name.startswith(f"{_OWNER}/")]
        if own and not any(bool(each.weight.any()) or bool(each.bias.any()) for each in own):
            found.append(
                f"{_OWNER}: the projection of the linear branch is zero, so the output is that of {self.part.name}; "
                "give weights=FILE, from genkit train lora --train-attention-weights or ProjectionFit"
            )
        return found
