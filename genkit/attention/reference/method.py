"""Reference attention: pictures and videos that follow a reference, training-free or with small trained weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch

from genkit.attention.batch_rows import spread
from genkit.attention.cache import PatchCache
from genkit.attention.dynamic import attend_grid
from genkit.attention.keep import kept
from genkit.attention.method import Density, Method, check_choice, check_int, check_number, check_used
from genkit.attention.reference.masks import direction_density
from genkit.attention.reference.store import LayerWeights, References
from genkit.attention.registry import register, trained_settings
from genkit.attention.site import Place, Site, base_layer
from genkit.attention.static import check_tokens, dense_attention, hidden_key_bias
from genkit.attention.weights import PatchWeights
from genkit.errors import UnsupportedError, UsageError, explain
from genkit.kernels import BlockPlan, block_sparse_attention, merge
from genkit.layout import TokenLayout

SEGMENTS = ("reference", "keyframe")
RANK = 16  # of new weights: our choice
Part = tuple[torch.Tensor, torch.Tensor]


def _dense_plan(queries: int, keys: int) -> BlockPlan:
    return BlockPlan.dense(queries, keys, block_q=256)


@register("reference")
@dataclass(frozen=True)
class Reference(Method):
    """Queries of the picture also read keys and values of reference pictures, rows or tokens; these never read it.

    ``origin="recorded"``: references are recorded once by a pass through the patched model
    (``References.of(patch.cache).record(...)``) and serve all steps. ``"rows"``: the first row of every group in a
    batch is the reference of the others. ``"sequence"``: reference tokens that the model itself appends (FLUX
    Kontext, Qwen-Image edit) stop reading text and picture.

    ``form="append"`` needs no training: one softmax over own and reference keys. ``"residual"`` is the trained form:
    a second attention over the reference through a zero-initialised projection, added to the model's own attention
    (or to a sparse method's: it shares the layer), with low-rank changes of the projections the reference goes through.

    Args:
        form: ``"append"`` or ``"residual"``; ``"auto"``: residual when weights are given, else append.
        origin: ``"recorded"``, ``"rows"`` or ``"sequence"``; the residual form takes recorded ones.
        strength: factor of the share of all references; 1 = the plain joint softmax.
        outside: weight outside the boxes given to ``References.set_boxes``; 0.75 published, 1 = boxes change nothing.
        group: rows per group with ``origin="rows"``.
        rank: rank of the changes of q, k, v on the reference's side; 0 = none, ``"full"`` = whole matrices. ``"auto"``:
            that of the weights file, 16 for new weights.
        weights: safetensors file with trained weights, read when the patch is made.
        seed: start of the low-rank factors.

    Source: ScaleWeaver, arXiv 2510.14882; DreamVideo-2, arXiv 2410.13830. The training-free forms are ours.
    """

    form: Literal["auto", "append", "residual"] = field(
        default="auto", metadata={"help": "joint softmax or trained term; auto = residual with weights"}
    )
    origin: Literal["recorded", "rows", "sequence"] = field(
        default="recorded", metadata={"help": "recorded references, rows of the batch, or tokens the model appends"}
    )
    strength: float = field(default=1.0, metadata={"help": "factor of the references' share"})
    outside: float = field(default=0.75, metadata={"help": "weight outside the boxes"})
    group: int = field(default=2, metadata={"help": "rows per group, the first is the reference"})
    rank: int | Literal["auto", "full"] = field(
        default="auto", metadata={"help": "rank of the trained changes of q, k, v; auto = the file's, else 16"}
    )
    weights: None | str = field(default=None, metadata={"help": "file with trained weights"})
    seed: int = field(default=0, metadata={"help": "start of the low-rank factors"})

    roles: ClassVar[tuple[str, ...]] = ("self", "joint")
    trainable: ClassVar[bool] = True
    own_task: ClassVar[str] = (
        "it follows a picture that is recorded for every sample; genkit train weights reference trains it"
    )
    source: ClassVar[str] = "ScaleWeaver, arXiv 2510.14882; DreamVideo-2, arXiv 2410.13830"

    def __post_init__(self):
        super().__post_init__()
        check_choice("reference", "form", self.form, ("auto", "append", "residual"))
        check_choice("reference", "origin", self.origin, ("recorded", "rows", "sequence"))
        check_int("reference", "group", self.group, 2)
        check_int("reference", "seed", self.seed, 0)
        if self.rank not in ("auto", "full"):
            check_int("reference", "rank", self.rank, 0)
        for name, high in (("strength", 1e6), ("outside", 1)):
            check_number("reference", name, getattr(self, name), 0, high)
        if self.adds and self.origin != "recorded":
            raise UsageError(explain("reference.origin", self.origin, "'recorded' with form='residual'"))
        check_used(self, ("group",), self.origin == "rows", "origin='rows'")
        check_used(self, ("rank", "seed"), self.adds, "form='residual'")
        if self.form == "append" and self.weights is not None:
            raise UsageError("reference.weights: form='append' has no trained weights; use form='residual'")

    @property
    def adds(self) -> bool:
        """The residual form adds its term to what computes the attention."""
        return self.form == "residual" or (self.form == "auto" and self.weights is not None)

    def recommended(self, steps: int, layers: int) -> dict[str, str]:
        """The trained form: the first 16 layers, as published for a model of 2 billion parameters."""
        return {"layers": f":{min(16, layers)}"} if self.adds else {}

    def details(self, layout: TokenLayout) -> str:
        """See :meth:`Method.details`."""
        if self.origin == "sequence":
            return "reference tokens read reference tokens only"
        return f"grid queries read {'the first row of every group' if self.origin == 'rows' else 'recorded references'}"

    def install(self, place: Place, cache: PatchCache) -> Iterable[Any]:
        """Residual form: make the layer's weights, and follow its projections so that the reference goes through the
        changed ones."""
        if not self.adds:
            return ()
        rank = cache.get(("rank", self), self._rank)
        own = LayerWeights(place, rank, self.seed)
        made_with = self.settings() | {"form": "residual", "rank": rank}
        PatchWeights.of(cache).put(self.name, place.name, own, made_with)
        references = References.of(cache)

        def adapt(change: torch.nn.Module, site: str) -> Any:
            def hook(module: torch.nn.Module, args: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor | None:
                if references.recording is None:
                    return None
                references.adapted.add(site)
                return output + change(args[0])

            return hook

        return [
            base_layer(getattr(place.projections, name)).register_forward_hook(adapt(change, place.name))
            for name, change in own.changes.items()
        ]

    def _rank(self) -> int | str:
        """The rank of the changes: as asked for, else that of the weights file, else 16."""
        if self.rank != "auto":
            return self.rank
        return RANK if self.weights is None else trained_settings(self.name, self.weights)["rank"]

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site, cache: PatchCache
    ) -> torch.Tensor | None:
        """See :meth:`Method.attend`; the residual form gives the term to add. Declines without a reference."""
        self.require(site, cache)
        check_tokens(q, k, site)
        if self.origin == "sequence":
            return self._one_way(q, k, v, site)
        references = References.of(cache)
        if references.recording is not None:
            return self._record(q, k, v, site, cache, references)
        if self.origin == "rows":
            return self._rows(q, k, v, site, cache, references)
        found = references.at(site.name)
        if not found or self.strength == 0:
            return None
        batch = q.shape[0]
        found = [
            (spread(keys, batch, "a reference").to(q), spread(values, batch, "a reference").to(q), strength)
            for keys, values, strength in found
        ]
        share = references.share(site, self.outside, batch, q)
        if self.adds:
            return self._term(q, site, cache, found, share)
        start, stop = site.layout.grid_span
        extra = [
            _weighed(self._part(q[:, start:stop], keys, values, site, cache), strength * self.strength, share)
            for keys, values, strength in found
        ]
        return self._joined(q, k, v, site, cache, extra)

    def _record(self, q, k, v, site: Site, cache: PatchCache, references: References) -> torch.Tensor:
        """The reference's own pass: keep the grid's keys and values; its queries read nothing else."""
        changes = PatchWeights.of(cache).at(self.name, site.name).changes if self.adds else ()
        if len(changes) and site.name not in references.adapted:
            raise UnsupportedError(
                f"layer {site.name}: the reference did not go through the projections of queries, keys and values "
                f"(fused?), so its trained changes would be lost; call unfuse_qkv_projections() or use rank=0"
            )

        def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, None]:
            references.recording.keep(site, k, v)
            return dense_attention(q, k, v, site.scale, None), None

        return attend_grid(q, k, v, site, cache, run)

    def _term(self, q, site: Site, cache: PatchCache, found, share: torch.Tensor | None) -> torch.Tensor:
        """The residual: projection of the attention over every reference, zero for tokens outside the grid."""
        start, stop = site.layout.grid_span
        parts = [strength * dense_attention(q[:, start:stop], k, v, site.scale, None) for k, v, strength in found]
        term = self.strength * PatchWeights.of(cache).at(self.name, site.name).project(sum(parts))
        if share is not None:
            term = term * share[:, :, None, None]
        return torch.nn.functional.pad(term, (0, 0, 0, 0, start, q.shape[1] - stop))

    def _rows(self, q, k, v, site: Site, cache: PatchCache, references: References) -> torch.Tensor | None:
        """Rows of a group also read the grid of the group's first row; the first rows are left as they are."""
        batch = q.shape[0]
        if batch % self.group:
            raise UsageError(
                f"layer {site.name}: a batch of {batch} rows has no groups of {self.group}; give reference.group the "
                f"number of prompts of one call, the reference first"
            )
        if self.strength == 0:
            return None
        start, stop = site.layout.grid_span
        rows = torch.arange(batch, device=q.device)
        first = rows - rows % self.group
        keys, values = (x[:, start:stop].index_select(0, first) for x in (k, v))
        share = references.share(site, self.outside, batch, q)
        share = torch.ones(1, 1, device=q.device, dtype=q.dtype) if share is None else share
        share = share * (rows != first).to(share.dtype)[:, None]
        part = _weighed(self._part(q[:, start:stop], keys, values, site, cache), self.strength, share)
        return self._joined(q, k, v, site, cache, [part])

    def _one_way(self, q, k, v, site: Site) -> torch.Tensor | None:
        """Reference tokens of the sequence read reference tokens only; everything else reads everything."""
        span = _segment(site.layout)
        if span is None or span[0] == span[1]:
            return None
        start, stop = span
        mask = None if site.key_mask is None else site.key_mask[:, start:stop]
        own = dense_attention(q[:, start:stop], k[:, start:stop], v[:, start:stop], site.scale, mask)
        others = torch.cat([q[:, :start], q[:, stop:]], 1)
        rest = dense_attention(others, k, v, site.scale, site.key_mask)
        return torch.cat([rest[:, :start], own, rest[:, start:]], 1)

    def _part(self, q, k, v, site: Site, cache: PatchCache, mask: torch.Tensor | None = None) -> Part:
        """Attention over one set of keys with its log-sum-exp."""
        plan = kept(cache, _dense_plan, q.shape[1], k.shape[1], device=q.device)
        bias = None if mask is None else hidden_key_bias(mask, q.shape[1])
        return block_sparse_attention(q, k, v, plan, scale=site.scale, backend=cache.backend, bias=bias)

    def _joined(self, q, k, v, site: Site, cache: PatchCache, extra: list[Part]) -> torch.Tensor:
        """Own attention merged with the parts of grid queries: the softmax over all keys together."""
        start, stop = site.layout.grid_span
        out, lse = self._part(q, k, v, site, cache, site.key_mask)
        grid, _ = merge([(out[:, start:stop], lse[..., start:stop]), *extra])
        return torch.cat([out[:, :start], grid, out[:, stop:]], 1)

    @property
    def hides_grid(self) -> bool:
        """See :attr:`Method.hides_grid`."""
        return True

    def density(self, site: Site, cache: PatchCache) -> Density | None:
        """Known for reference tokens of the sequence; recorded references add keys, which is no share of the pairs."""
        span = _segment(site.layout)
        if self.origin != "sequence" or span is None:
            return None
        count = span[1] - span[0]
        share = direction_density(0, site.layout.length - count, count)
        return Density(share, share)

    def mask(self, layout: TokenLayout) -> torch.Tensor:
        """Visible pairs with ``origin="sequence"``; see :meth:`Method.mask`."""
        span = _segment(layout)
        if self.origin != "sequence" or span is None:
            raise UnsupportedError(
                f"reference with origin={self.origin!r} hides nothing: the picture reads the reference's keys besides "
                "its own. A picture of who reads whom needs reference tokens in the sequence: "
                f"genkit inspect reference --grid {'x'.join(map(str, layout.grid))} --attention-args origin=sequence "
                "--reference 64"
            )
        visible = torch.ones(layout.length, layout.length, dtype=torch.bool)
        visible[span[0] : span[1]] = False
        visible[span[0] : span[1], span[0] : span[1]] = True
        return visible


def _segment(layout: TokenLayout) -> tuple[int, int] | None:
    return next((span for span in map(layout.span, SEGMENTS) if span is not None), None)


def _weighed(part: Part, strength: float, share: torch.Tensor | None) -> Part:
    """A part whose mass is multiplied by a strength and, per query, by a share (B, N); 0 switches it off exactly."""
    out, lse = part
    weight = torch.full((1, 1), strength, dtype=lse.dtype, device=lse.device)
    weight = weight if share is None else weight * share.to(lse.dtype)
    return out, lse + weight.log()[:, None]
