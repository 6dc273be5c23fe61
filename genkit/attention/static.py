"""Running a method whose plan depends on the layout alone: build the plan once, look it up, execute it.

Keys that the model hides (text padding) enter exactly, through a plan of their own, kept per mask. Inside torch.compile
methods are opaque operators (see :mod:`genkit.patching.compiled`), so nothing here is ever traced.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from genkit.attention.cache import PatchCache
from genkit.attention.copies import repeated, share_of_pairs
from genkit.attention.keep import kept
from genkit.attention.method import Density
from genkit.attention.read_blocks import BlocksRead
from genkit.attention.scored import WithBias
from genkit.attention.site import Site
from genkit.errors import UsageError
from genkit.kernels import block_sparse_attention
from genkit.kernels.plan.bias import LowRank
from genkit.kernels.plan.block_plan import BlockPlan
from genkit.kernels.plan.checks import NoVisibleKeyError
from genkit.kernels.plan.interop import mask_mod
from genkit.kernels.plan.mask_spec import ABSENT, Rule
from genkit.layout import TokenLayout

_HIDDEN = -1e30  # added to the logit of a hidden key; finite, so that no row of a block is -inf minus -inf


@dataclass(eq=False)
class StaticPlan:
    """What runs at a site: a plan, or dense attention when ``plan`` is None (nothing is hidden)."""

    plan: BlockPlan | None
    density: Density

    def to(self, device: torch.device) -> StaticPlan:
        """The same plan with its tables on ``device``."""
        return StaticPlan(None if self.plan is None else self.plan.to(device), self.density)


def executed_share(plan: BlockPlan) -> float:
    """Pairs in visited blocks, padding included, over all token pairs; averaged over batch entries and heads."""
    entries = float(plan.full_count.sum() + plan.partial_count.sum()) / (plan.batch * plan.heads)
    return entries * plan.block_q * plan.block_k / (plan.n_q * plan.n_k)


class StaticMethod(WithBias):
    """A method that knows everything from the layout; subclasses give :meth:`build_plan` and :meth:`mask`.

    With ``by_head`` heads see different pairs: ``build_plan`` then takes the number of heads as a fourth argument.
    """

    by_head: ClassVar[bool] = False
    declines: ClassVar[str] = "its attention mask hides every key that some query would see (padding of the grid)"

    @property
    def heads_apart(self) -> bool:
        """See :attr:`Method.heads_apart`: the layout alone decides."""
        return True

    @property
    def hides_grid(self) -> bool:
        """See :attr:`Method.hides_grid`: the plan does."""
        return True

    @property
    def every_grid(self) -> bool:
        """See :attr:`Method.every_grid`: the plan of one grid is repeated. A bias is one of distances in one grid."""
        return self.bias is None

    def build_plan(self, layout: TokenLayout, kind: str = "cpu", key_mask: torch.Tensor | None = None) -> StaticPlan:
        """The plan of a layout, made on the CPU, for a kind of device (``"cpu"``, ``"cuda"``, ...).

        ``key_mask`` bool (B, Nk), True = attend, hides keys per batch entry.
        """
        raise TypeError(f"{type(self).__name__} defines no build_plan()")

    def arrangement(self, layout: TokenLayout, kind: str = "cpu") -> str:
        """Which tokens the blocks of the plan hold, in a few words; "" where they are runs of the sequence."""
        return ""

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site, cache: PatchCache
    ) -> torch.Tensor | None:
        """Exact attention over the visible pairs; see :meth:`Method.attend` for shapes. Declines where the model's mask
        leaves some query no key: what such a query gets is the model's to say."""
        return self._attend(q, k, v, site, cache)[0]

    @property
    def tells_blocks(self) -> bool:
        """See :attr:`Method.tells_blocks`: where attention is that of the plan and nothing else."""
        return type(self).attend is StaticMethod.attend

    def attend_blocks(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site, cache: PatchCache
    ) -> tuple[torch.Tensor, BlocksRead] | None:
        """See :meth:`Method.attend_blocks`. Of a block that is visible in part, all counts as read."""
        if not self.tells_blocks:
            return super().attend_blocks(q, k, v, site, cache)
        out, plan = self._attend(q, k, v, site, cache)
        return None if out is None else (out, BlocksRead(plan))

    @property
    def takes_pairs(self) -> bool:
        """See :attr:`Method.takes_pairs`: where attention is that of the plan and nothing else."""
        return self.tells_blocks

    def attend_pairs(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site, cache: PatchCache, pairs: torch.Tensor
    ) -> torch.Tensor | None:
        """See :meth:`Method.attend_pairs`. The plan is made once per mask, from the blocks that the method visits."""
        if not self.takes_pairs:
            return super().attend_pairs(q, k, v, site, cache, pairs)
        return self._attend(q, k, v, site, cache, pairs)[0]

    def _attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        site: Site,
        cache: PatchCache,
        pairs: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor | None, BlockPlan | None]:
        self.require(site, cache)
        check_tokens(q, k, site)
        site = self.scaled(q, site)
        heads = (site.all_heads or q.shape[2],) if self.by_head else ()
        made: StaticPlan | None
        if pairs is not None:
            made = paired_plan(self, site.layout, pairs, cache, *heads)
        elif site.key_mask is not None:
            made = masked_plan(self, site.layout, site.key_mask, cache, *heads)
        else:
            made = kept(cache, static_plan, self, site.layout, q.device.type, *heads, device=q.device)
        if made is None:
            return None, None
        plan = made.plan
        if plan is not None and site.all_heads is not None:
            plan = plan.for_heads(site.first_head, q.shape[2])
        bias = self.bias_terms(q, site, cache)
        if plan is None:
            cache.hold(("all pairs", self), True)
        if plan is None and not bias:
            return dense_attention(q, k, v, site.scale, site.key_mask), None
        run = plan
        if run is None:
            run = whole_plan(q.shape[1], k.shape[1], site.key_mask, q.device, cache)
        out, _ = block_sparse_attention(q, k, v, run, scale=site.scale, backend=cache.backend, bias=bias or None)
        return out, plan

    def density(self, site: Site, cache: PatchCache) -> Density:
        """Densities of the plan that ran last at this layout, or that would run on this device."""
        heads = (site.all_heads or site.heads,) if self.by_head else ()
        paired = cache.held(("paired", self, site.layout, *heads))
        if paired is not None and paired[1] is not None:
            return paired[1].density
        found = kept(cache, static_plan, self, site.layout, cache.device.type, *heads, device=cache.device).density
        return replace(found, dense=found.dense and not self.changes_scores(site.layout))

    def changes_scores(self, layout: TokenLayout) -> bool:
        """Whether scores are not the model's own, so that even all pairs do not make dense attention."""
        return self.bias is not None or self.score_factor(layout) != 1


def check_tokens(q: torch.Tensor, k: torch.Tensor, site: Site) -> None:
    """Raise UsageError unless the tensors have as many tokens as the site's layouts."""
    if q.shape[1] != site.layout.length or k.shape[1] != site.key_layout.length:
        raise UsageError(
            f"layer {site.name}: {q.shape[1]} queries and {k.shape[1]} keys do not fit the layout of "
            f"{site.layout.length} and {site.key_layout.length} tokens"
        )


def static_plan(method: StaticMethod, layout: TokenLayout, kind: str, *heads: int) -> StaticPlan:
    """The plan of a layout without hidden keys; see :func:`genkit.attention.cache.kept`."""
    return any_plan(method, layout, kind, None, *heads)


def any_plan(
    method: StaticMethod, layout: TokenLayout, kind: str, key_mask: torch.Tensor | None, *heads: int
) -> StaticPlan:
    """:meth:`StaticMethod.build_plan` of any layout: with copies of the grid it is repeated where the method's pattern
    holds for them."""
    if not (layout.copies and method.every_grid):
        return method.build_plan(layout, kind, key_mask, *heads)
    made = method.build_plan(layout.once(), kind, None, *heads)
    if made.plan is None:
        return made
    plan = repeated(made.plan, layout, key_mask)
    return StaticPlan(plan, Density(share_of_pairs(made.density.computed, layout), executed_share(plan)))


def masked_plan(
    method: StaticMethod, layout: TokenLayout, key_mask: torch.Tensor, cache: PatchCache, *heads: int
) -> StaticPlan | None:
    """The plan of a layout with hidden keys, kept by the content of the mask; None when some query would see no key."""
    device = key_mask.device

    def build() -> StaticPlan | None:
        try:
            return any_plan(method, layout, device.type, key_mask, *heads).to(device)
        except NoVisibleKeyError:
            return None

    return cache.recent(("masked", method, layout, *heads, str(device), cache.of_tensor(key_mask)), build)


def paired_plan(
    method: StaticMethod, layout: TokenLayout, pairs: torch.Tensor, cache: PatchCache, *heads: int
) -> StaticPlan | None:
    """The plan of a layout cut to ``pairs`` bool (B|1, N, N), kept for the last such tensor; None when some query would
    see no key. A method that hides nothing itself counts as dense."""
    key = ("paired", method, layout, *heads)
    held = cache.held(key)
    if held is not None and held[0] is pairs:
        return held[1]
    whole = kept(cache, static_plan, method, layout, pairs.device.type, *heads, device=pairs.device).plan
    try:
        plan = _cut(whole, pairs)
        hidden = Density(*plan.density()) if whole is not None else Density(1.0, 1.0, dense=True)
        found = StaticPlan(plan, hidden)
    except NoVisibleKeyError:
        found = None
    cache.hold(key, (pairs, found))
    return found


def _cut(plan: BlockPlan | None, pairs: torch.Tensor) -> BlockPlan:
    """A plan (None = all pairs) without the pairs that a mask bool (B|1, Nq, Nk) hides."""
    batch, n_q, n_k = pairs.shape
    sizes: dict[str, Any] = {"batch": batch, "device": pairs.device}
    if plan is None:
        return BlockPlan.from_mask_mod(lambda b, h, i, j: pairs[b, i, j], n_q, n_k, **sizes)
    seen = mask_mod(plan)  # of tokens in block order
    places = [
        torch.arange(n, device=pairs.device) if order is None else order.inverse.to(pairs.device)
        for n, order in ((n_q, plan.order), (n_k, plan.key_order))
    ]
    return BlockPlan.from_mask_mod(
        lambda b, h, i, j: seen(b, h, places[0][i], places[1][j]) & pairs[b, i, j],
        n_q,
        n_k,
        heads=plan.heads,
        block_q=plan.block_q,
        block_k=plan.block_k,
        order=plan.order,
        key_order=plan.key_order,
        keep=plan.states() != ABSENT,
        **sizes,
    )


def every_pair(queries: int, keys: int, key_mask: torch.Tensor | None = None) -> BlockPlan:
    """A plan of all pairs but those that a mask bool (B, Nk) on the CPU hides."""
    if key_mask is None:
        return BlockPlan.dense(queries, keys, block_q=256)
    rule = Rule.everything(queries, keys).hide_keys(key_mask)
    return BlockPlan.from_rule(rule, block_q=256, block_k=64, check=False)


def whole_plan(
    queries: int, keys: int, key_mask: torch.Tensor | None, device: torch.device, cache: PatchCache
) -> BlockPlan:
    """:func:`every_pair` on a device, kept by lengths and by the content of the mask."""
    if key_mask is None:
        return kept(cache, every_pair, queries, keys, device=device)
    key = ("every pair", queries, keys, str(device), cache.of_tensor(key_mask))
    return cache.recent(key, lambda: every_pair(queries, keys, key_mask.cpu()).to(device))


def hidden_key_bias(key_mask: torch.Tensor, queries: int) -> LowRank:
    """The hidden keys of a mask bool (B, Nk) as a rank-one bias: 0 where visible, very negative where hidden."""
    hidden = torch.where(key_mask, 0.0, _HIDDEN)[:, :, None, None]
    return LowRank(torch.ones(1, queries, 1, 1, dtype=torch.float32, device=key_mask.device), hidden)


def dense_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None, key_mask: torch.Tensor | None
) -> torch.Tensor:
    """Plain softmax attention of q (B, Nq, H, D) over k, v (B, Nk, Hk, D); ``key_mask`` bool (B, Nk) hides keys."""
    mask = None
    if key_mask is not None:
        mask = torch.where(key_mask, 0.0, float("-inf")).to(q.dtype)[:, None, None, :]
    options: dict[str, Any] = {"attn_mask": mask, "scale": scale, "enable_gqa": q.shape[2] != k.shape[2]}
    out = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), **options
    )
    return out.transpose(1, 2)
