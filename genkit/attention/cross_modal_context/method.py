"""Cross-modal context attention: sound and picture meet in time, and context tokens stand in where nothing sounds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from genkit.attention.cache import PatchCache
from genkit.attention.cross_modal_context import windows
from genkit.attention.cross_modal_context.route import (
    CONTEXT,
    PARTNER,
    TO_AUDIO,
    TO_VIDEO,
    ContextRoute,
    stop_gradient,
)
from genkit.attention.keep import kept
from genkit.attention.method import Density, Method, check_choice, check_int, check_number, check_used
from genkit.attention.registry import register
from genkit.attention.site import Place, Site
from genkit.attention.static import check_tokens, executed_share
from genkit.attention.weights import PatchWeights, draw, like
from genkit.errors import UnsupportedError, UsageError, explain
from genkit.kernels import BlockPlan, Quadratic, block_sparse_attention, merge
from genkit.layout import TokenLayout


class ContextTokens(nn.Module):
    """Learnable context tokens of one layer and direction.

    ``keys, values`` (m, H, D) and a logit bias ``beta`` (H,), or ``tokens`` (m, D_source) in the source's hidden space,
    which go through the layer's own projections. Keys and tokens start as small noise, values at zero.
    """

    def __init__(self, place: Place, count: int, space: str, beta: float, seed: int):
        super().__init__()
        source = place.projections.k
        kind = like(source)
        own = seed * 1_000_003 + place.layer * 2 + (place.role == TO_AUDIO)
        width = source.out_features // place.heads
        if space == "source":
            self.tokens = draw((count, source.in_features), 0.02, own, **kind)
        else:
            self.keys = draw((count, place.heads, width), 0.02, own, **kind)
            self.values = nn.Parameter(torch.zeros(count, place.heads, width, **kind))
        self.beta = nn.Parameter(torch.full((place.heads,), float(beta), **kind))
        # Used, not owned: the model's weights are not saved here.
        object.__setattr__(self, "projections", place.projections)
        object.__setattr__(self, "layer", place.module)

    def pairs(self, q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (m, H, D); context tokens have no position."""
        if hasattr(self, "keys"):
            return self.keys, self.values
        own, heads = self.projections, q.shape[2]
        kind = own.k.weight.dtype
        kind = kind if kind.is_floating_point else q.dtype  # of quantised weights
        hidden = self.tokens.to(q.device, kind)
        keys, values = own.k(hidden), own.v(hidden)
        norm = getattr(self.layer, "norm_k", None)
        keys = keys if norm is None else norm(keys)
        return keys.unflatten(-1, (heads, -1)), values.unflatten(-1, (heads, -1))


def context_part(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, beta: torch.Tensor, scale: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of q (B, N, H, D) over context tokens (m, H, D) with logit bias (H,): out (B, N, H, D), lse (B, H, N).

    Statistics in float32 (float64 for float64). Memory: B * H * N * m numbers, m is small.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    keys, values, beta = (x.to(q.device, wide) for x in (keys, values, beta))
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    logits = torch.einsum("bnhd,mhd->bhnm", q.to(wide), keys) * factor + beta[:, None, None]
    lse = logits.logsumexp(-1)
    return torch.einsum("bhnm,mhd->bnhd", (logits - lse[..., None]).exp(), values).to(q.dtype), lse


#: Tokens of queries and keys in a block on CPUs. A clip has few audio tokens, of which a block of 64 would be most.
_BLOCKS = {("cpu", TO_VIDEO): (64, 16), ("cpu", TO_AUDIO): (16, 64)}


class _Partition:
    """The plan of one direction and its densities."""

    def __init__(self, plan: BlockPlan, density: Density, bias: Quadratic | None):
        self.plan, self.density, self.bias = plan, density, bias

    def to(self, device: torch.device) -> _Partition:
        """The same with tables on ``device``."""
        bias = self.bias
        if bias is not None:
            bias = Quadratic(*[table.to(device) for table in bias.tensors()])
        return _Partition(self.plan.to(device), self.density, bias)


def _partition(
    method: CrossModalContext, whole: bool, kind: str, role: str, queries: TokenLayout, keys: TokenLayout
) -> _Partition:
    size = (queries.length, keys.length)
    block_q, block_k = _BLOCKS.get((kind, role), (128, 64))
    if whole:
        plan = BlockPlan.dense(*size, block_q=128, block_k=64)
        return _Partition(plan, Density(1.0, 1.0, dense=True), None)
    if method.partition in ("none", "soft"):
        plan, bias = BlockPlan.dense(*size, block_q=128, block_k=64), None
        if method.partition == "soft":
            times = [torch.tensor(layout.times, dtype=torch.float32)[:, None] for layout in (queries, keys)]
            bias = Quadratic(*times, torch.tensor([0.5 / method.sigma**2]))
        return _Partition(plan, Density(1.0, 1.0, dense=True), bias)
    rule = method.rule(role, queries, keys)
    plan = BlockPlan.from_rule(rule, block_q=block_q, block_k=block_k)
    return _Partition(plan, Density(plan.density()[0], executed_share(plan)), None)


@register("cross_modal_context")
@dataclass(frozen=True)
class CrossModalContext(Method):
    """Audio-video cross attention partitioned by time, with learnable context tokens as an anchor (CCL).

    Training-free: video tokens hear the sound around their own frame, audio tokens see the frame they fall in. Trained
    (``tokens`` > 0): every direction also reads context tokens, so that a background that has nothing to do with the
    sound can take nothing from it; samples are routed by task (``ContextRoute``), and the pipeline's modality guidance
    uses the context tokens as its unconditional side.

    Args:
        partition: ``"time"``, ``"soft"`` (a penalty that grows with the distance), ``"index"`` (by counting tokens,
            for comparison; drifts on causal video codecs) or ``"none"``.
        window: audio seen by a frame, in frames' worth of time.
        frames: frames seen by an audio token, odd.
        sigma: width in seconds of the soft form.
        whole_layers: the first layers of each direction see the whole other modality. Models that were not trained with
            windows find out there what happens when; later layers, which only place it, lose next to nothing.
        tokens: context tokens per layer and direction; 0 = training-free. 8 is our choice, no number is published.
        space: ``"keys"`` (keys and values) or ``"source"`` (hidden states through the layer's own projections).
        beta: logit bias of the context tokens at the start; -5 is nearly the untouched model.
        guidance: with tokens, a pass that isolates the modalities reads the context tokens instead.
        detach_clean: while training, a stream given without noise gets no gradient through the other one.
        weights: safetensors file with trained context tokens.
        seed: start of the context tokens.

    Source: Improving Joint Audio-Video Generation with Cross-Modal Context Learning, arXiv 2603.18600.
    """

    partition: Literal["time", "soft", "index", "none"] = field(default="time", metadata={"help": "who meets whom"})
    window: float = field(default=3.0, metadata={"help": "audio a frame hears, in frames"})
    frames: int = field(default=1, metadata={"help": "frames an audio token sees, odd"})
    sigma: float = field(default=0.25, metadata={"help": "width in seconds of the soft form"})
    whole_layers: int = field(default=0, metadata={"help": "first layers without windows"})
    tokens: int = field(default=0, metadata={"help": "context tokens; 0 = training-free"})
    space: Literal["keys", "source"] = field(default="keys", metadata={"help": "where context tokens live"})
    beta: float = field(default=-5.0, metadata={"help": "logit bias of context tokens at the start"})
    guidance: bool = field(default=True, metadata={"help": "modality guidance against the context tokens"})
    detach_clean: bool = field(default=True, metadata={"help": "no gradient into a stream without noise"})
    weights: None | str = field(default=None, metadata={"help": "file with trained context tokens"})
    seed: int = field(default=0, metadata={"help": "start of the context tokens"})

    roles: ClassVar[tuple[str, ...]] = (TO_VIDEO, TO_AUDIO)
    needs_grid: ClassVar[bool] = False
    trainable: ClassVar[bool] = True
    source: ClassVar[str] = "Cross-Modal Context Learning, arXiv 2603.18600"

    def __post_init__(self):
        super().__post_init__()
        name = "cross_modal_context"
        check_choice(name, "partition", self.partition, ("time", "soft", "index", "none"))
        check_choice(name, "space", self.space, ("keys", "source"))
        for flag in ("guidance", "detach_clean"):
            check_choice(name, flag, getattr(self, flag), (True, False))
        for number in ("tokens", "seed", "whole_layers"):
            check_int(name, number, getattr(self, number), 0)
        check_int(name, "frames", self.frames, 1)
        if self.frames % 2 == 0:
            raise UsageError(explain(f"{name}.frames", self.frames, "an odd number, the own frame in the middle"))
        for number, low, high in (("window", 1, 1e6), ("sigma", 1e-3, 1e6), ("beta", -1e4, 1e4)):
            check_number(name, number, getattr(self, number), low, high)
        parts = self.partition in ("time", "index")
        check_used(self, ("window", "frames"), parts, "partition='time' or 'index'")
        check_used(self, ("sigma",), self.partition == "soft", "partition='soft'")
        check_used(self, ("space", "beta", "guidance", "seed"), self.tokens > 0, "context tokens (tokens=8)")
        if self.weights is not None and not self.tokens:
            raise UsageError(f"{name}.weights: without context tokens there is nothing to load; give tokens")

    def why_not(self, site: Site) -> str | None:
        """As :meth:`Method.why_not`; windows need times, counting needs a plain grid."""
        reason = super().why_not(site)
        if reason is not None:
            return reason
        video, audio = _video_audio(site.role, site.layout, site.key_layout)
        if not video.has_grid or not audio.length:
            return "cross_modal_context needs a video grid on one side and audio tokens on the other"
        if site.key_mask is not None:
            return "cross_modal_context does not take a mask of hidden keys"
        if self.partition in ("time", "soft") and (video.times is None or audio.times is None):
            return f"partition={self.partition!r} needs the time of every token, which this model does not tell"
        if self.partition == "time" and (video.intervals is None or audio.intervals is None):
            return "partition='time' needs start and end of every token, this layout has only instants"
        if self.partition == "index" and video.length != video.grid_length:
            return "partition='index' cannot place the tokens appended to the video; use partition='time'"
        return None

    def rule(self, role: str, queries: TokenLayout, keys: TokenLayout) -> Any:
        """The visible pairs of a direction as a closed-form rule (``"time"`` and ``"index"``)."""
        by_index = self.partition == "index"
        if role == TO_VIDEO:
            build = windows.audio_of_frames_by_index if by_index else windows.audio_of_frames
            return build(queries, keys, self.window)
        build = windows.frames_of_audio_by_index if by_index else windows.frames_of_audio
        return build(queries, keys, self.frames)

    def install(self, place: Place, cache: PatchCache) -> Iterable[Any]:
        """Make the layer's context tokens; follow its source for samples that pass no gradient."""
        route = ContextRoute.of(cache)
        if self.tokens:
            if place.projections.k is None or place.projections.v is None:
                raise UnsupportedError(f"layer {place.name}: context tokens need the projections of keys and values")
            if self.guidance and not place.always:
                raise UsageError(
                    "guidance against context tokens needs them in every step and branch: leave steps and branches out "
                    "of the schedule, or give guidance=False"
                )
            tokens = ContextTokens(place, self.tokens, self.space, self.beta, self.seed)
            PatchWeights.of(cache).put(self.name, place.name, tokens, self.settings())
            cache.get(("context layers", place.role), lambda: (place.layers, []))[1].append(place.layer)

        def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            # Before the projections and whatever adapters they have or get.
            source = kwargs.get("encoder_hidden_states")
            if source is None or not torch.is_grad_enabled():
                return None
            rows = route.detached(place.role, source.shape[0])
            return args, {**kwargs, "encoder_hidden_states": stop_gradient(source, rows)}

        return [place.module.register_forward_pre_hook(stop, with_kwargs=True)]

    def ready(self, cache: PatchCache) -> None:
        """Refuse guidance that would miss layers; read the weights file, if one is given."""
        if self.tokens and self.guidance:
            for role in (TO_VIDEO, TO_AUDIO):
                layers, there = cache.get(("context layers", role), lambda: (0, []))
                if not layers or len(there) < layers:
                    raise UsageError(
                        f"guidance against context tokens needs them in every layer of both directions, {role} has "
                        f"{len(there)}: leave layers and roles out, or give guidance=False"
                    )
        super().ready(cache)

    def arguments(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The pass without the other modality becomes a pass with context tokens in its place."""
        replaces = self.tokens and self.guidance and given.get("isolate_modalities")
        return {"isolate_modalities": False} if replaces else {}

    def observe(self, given: Mapping[str, Any], cache: PatchCache) -> None:
        """Fix the routes of the call that begins."""
        isolated = bool(self.tokens and self.guidance and given.get("isolate_modalities"))
        clean: dict[str, list[bool]] = {}
        if self.detach_clean and torch.is_grad_enabled() and not isolated:
            audio = given.get("audio_timestep")
            audio = given.get("timestep") if audio is None else audio
            for stream, time in (("audio", audio), ("video", given.get("timestep"))):
                if isinstance(time, torch.Tensor) and time.dim():
                    clean[stream] = time.detach().reshape(len(time), -1).eq(0).all(1).tolist()
        ContextRoute.of(cache).freeze(isolated, clean)

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site, cache: PatchCache
    ) -> torch.Tensor | None:
        """See :meth:`Method.attend`: partner and context attention, merged by their log-sum-exps."""
        self.require(site, cache)
        check_tokens(q, k, site)
        reads = ContextRoute.of(cache).reads(site.role, q.shape[0])
        if not self.tokens:
            if CONTEXT in reads:
                raise UsageError("this task reads context tokens alone, and there are none; give tokens=8")
            return self._partner(q, k, v, site, cache)[0]
        own = PatchWeights.of(cache).at(self.name, site.name)
        context, lse = context_part(q, *own.pairs(q), own.beta, site.scale)
        if set(reads) == {CONTEXT}:
            return context
        parts = [self._partner(q, k, v, site, cache), (context, lse)]
        for number, absent in ((0, CONTEXT), (1, PARTNER)):
            rows = torch.tensor([read == absent for read in reads], device=q.device)
            out, score = parts[number]
            parts[number] = (out, score.masked_fill(rows[:, None, None], -torch.inf))
        return merge(parts)[0]

    def _partner(self, q, k, v, site: Site, cache: PatchCache) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention over the other modality's tokens, partitioned."""
        part = self._part(site, cache, q.device)
        return block_sparse_attention(q, k, v, part.plan, scale=site.scale, backend=cache.backend, bias=part.bias)

    def density(self, site: Site, cache: PatchCache) -> Density | None:
        """Share of the partner's pairs; context tokens add ``tokens`` pairs per query."""
        return self._part(site, cache, cache.device).density

    def _part(self, site: Site, cache: PatchCache, device: torch.device) -> Any:
        whole = site.layer < self.whole_layers
        kind = torch.device(device).type
        return kept(cache, _partition, self, whole, kind, site.role, site.layout, site.key_layout, device=device)

    def details(self, layout: TokenLayout) -> str:
        """See :meth:`Method.details`."""
        where = f", from layer {self.whole_layers} on" if self.whole_layers else ""
        windows = f"frames hear {self.window:g} frames of sound, sound sees {self.frames}{where}"
        return f"{windows}; {self.tokens} context tokens"


def _video_audio(role: str, queries: TokenLayout, keys: TokenLayout) -> tuple[TokenLayout, TokenLayout]:
    return (queries, keys) if role == TO_VIDEO else (keys, queries)
