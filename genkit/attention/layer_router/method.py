"""Full or sparse attention, decided by trained networks for every layer, sample and sampling step."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from genkit.attention.batch_rows import spread
from genkit.attention.cache import PatchCache
from genkit.attention.layer_router.queries import QueryMeans
from genkit.attention.layer_router.router import FULL, SPARSE, Router
from genkit.attention.layer_router.tally import Tally
from genkit.attention.method import Density, check_flag
from genkit.attention.registry import register
from genkit.attention.site import FOLDED, Place, Site
from genkit.attention.sparse_part import WithSparsePart, as_text, parse
from genkit.attention.static import check_tokens, dense_attention
from genkit.attention.straight_through import Draws
from genkit.attention.weights import PatchWeights
from genkit.errors import UsageError
from genkit.layout import TokenLayout

_OWNER = "layer_router"


@register(_OWNER)
@dataclass(frozen=True)
class LayerRouter(WithSparsePart):
    """A small network per layer decides from the mean query whether the layer's attention is full or sparse.

    One decision per layer, sample and sampling step; both halves of guidance follow that of the conditional one. Only
    what was decided is computed: a full call is the model's own attention, untouched. Networks begin with full
    attention everywhere; train them with ``scripts/train_patch.py layer_router``. Where their gradients are wanted both
    branches run and are mixed, ``z full + (1 - z) sparse`` with z one or zero and the gradient of the soft decision.

    Args:
        sparse: the sparse method with its settings, separated by spaces: ``"block_select keep=0.1"``; or a method. It
            has no weights of its own.
        weights: file with trained networks.
        untrained: begin with networks that choose full attention, to train them.

    Cost: that of the branches that were chosen; the network reads one mean, ``36 d^2`` weights a layer for heads of d
    channels. The device is waited for once a call, since the decision says what runs.

    Source: Flux Attention: Context-Aware Hybrid Attention for Efficient LLMs Inference. The mean over all tokens
    instead of the first and last ones of a prompt, the noise level and one decision for both halves are this project's.
    """

    sparse: str = field(
        default="block_select keep=0.25", metadata={"help": "sparse method and its settings, by spaces"}
    )
    weights: str | None = field(default=None, metadata={"help": "file with trained networks"})
    untrained: bool = field(default=False, metadata={"help": "begin with untrained networks"})

    roles: ClassVar[tuple[str, ...]] = ("self", "joint")
    trainable: ClassVar[bool] = True
    by_data: ClassVar[bool] = True
    trained_with: ClassVar[tuple[str, ...]] = ("sparse",)
    two_branches: ClassVar[bool] = True
    declines: ClassVar[str] = (
        "its sparse method declined, or no queries of these samples came from its projection (fused)"
    )
    source: ClassVar[str] = "Flux Attention"

    def __post_init__(self):
        super().__post_init__()
        what = f"{_OWNER}.sparse"
        part = parse(self.sparse, what)
        if part.needs_heads or getattr(part, "refresh", 1) != 1:
            why = "it has weights of its own" if part.needs_heads else "calls may be left out between its steps"
            raise UsageError(
                f"{what}: {part.describe()} cannot be the sparse part, {why}; allowed: methods without weights that "
                "choose anew in every call, such as 'neighborhood size=3x5x5' or 'block_select keep=0.1'"
            )
        object.__setattr__(self, "sparse", as_text(part, what))
        check_flag(_OWNER, "untrained", self.untrained)
        if self.untrained and self.weights is not None:
            raise UsageError(f"{_OWNER}: weights and untrained=true exclude each other; give one of them")

    @property
    def hides_grid(self) -> bool:
        """See :attr:`Method.hides_grid`: the sparse part's."""
        return self.part.hides_grid

    @property
    def every_grid(self) -> bool:
        """See :attr:`Method.every_grid`: the sparse part's."""
        return self.part.every_grid

    @property
    def needs_heads(self) -> bool:
        """See :attr:`Method.needs_heads`."""
        return True

    def why_not(self, site: Site) -> str | None:
        """As :meth:`Method.why_not`, of both branches."""
        if site.role in FOLDED:
            return f"{_OWNER} decides by samples, and the batch of {site.role} attention holds parts of them"
        return super().why_not(site)

    def check_weights(self) -> None:
        """See :meth:`Method.check_weights`."""
        if self.weights is None and not self.untrained:
            raise UsageError(
                f"{_OWNER}: its networks must be trained; give weights=FILE (made by scripts/train_patch.py {_OWNER}), "
                f"or untrained=true to train them"
            )

    def recommended(self, steps: int, layers: int) -> dict[str, str]:
        """The steps that the sparse part advises; layers are for the networks to choose."""
        advice = self.part.recommended(steps, layers)
        return {name: value for name, value in advice.items() if name == "steps"}

    def details(self, layout: TokenLayout) -> str:
        """See :meth:`Method.details`."""
        told = self.part.details(layout)
        return f"full attention, or {self.part.name}{': ' if told else ''}{told}"

    def install(self, place: Place, cache: PatchCache) -> Iterable[Any]:
        """Make the network of a layer and follow its queries; refused without trained ones, unless they are to be
        trained."""
        self.check_weights()
        PatchWeights.of(cache).put(self.name, place.name, Router(place), self.settings())
        cache.hold((_OWNER, "timestep"), place.timestep)
        return [
            QueryMeans(place, functools.partial(cache.hold, (_OWNER, place.name))),
            *self.part.install(place, cache),
        ]

    def observe(self, given: Mapping[str, Any], cache: PatchCache) -> None:
        """See :meth:`Method.observe`: keeps the noise level."""
        super().observe(given, cache)
        cache.hold((_OWNER, "level"), given.get(cache.held((_OWNER, "timestep"), "")))

    @staticmethod
    def draws(cache: PatchCache) -> Draws:
        """Temperature and noise of a patch in training, and what was decided. Without asking for it there is no noise
        and the temperature is 1."""
        found = cache.held((_OWNER, "draws"))
        if found is None:
            found = Draws()
            cache.hold((_OWNER, "draws"), found)
        return found

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site, cache: PatchCache
    ) -> torch.Tensor | None:
        """See :meth:`Method.attend`. A call that is full for every sample is left to the model."""
        self.require(site, cache)
        check_tokens(q, k, site)
        cache.hold((_OWNER, self, site.name, "left"), False)
        own: Any = PatchWeights.of(cache)
        if not own.has(self.name, site.name):  # outside a patch: as networks at their start
            full = [True] * len(q)
        else:
            router = own.at(self.name, site.name)
            if torch.is_grad_enabled() and any(each.requires_grad for each in router.parameters()):
                return self._mixed(q, k, v, site, cache, router)
            decided = self._decided(q, site, cache, router)
            if decided is None:
                return None
            full = decided
        if all(full):
            self._tally(site, cache).count(full, served=False)
            cache.hold((_OWNER, self, site.name, "left"), True)
            return None
        out = self._chosen(q, k, v, site, cache, full)
        if out is not None:
            self._tally(site, cache).count(full, served=True)
        return out

    def leaves(self, site: Site, cache: PatchCache) -> bool:
        """As :meth:`Method.leaves`: calls that are full for every sample."""
        return cache.held((_OWNER, self, site.name, "left"), False)

    def _logit(self, rows: int, site: Site, cache: PatchCache, router: Router) -> torch.Tensor | None:
        """(rows,) logits of full over sparse attention; None where no queries came."""
        means = cache.held((_OWNER, site.name))
        if means is None or len(means) != rows:
            return None
        logits = router(means, _level(cache.held((_OWNER, "level")), means))
        logit = logits[:, FULL] - logits[:, SPARSE]
        if site.both and rows % 2 == 0:  # the unconditional half comes first
            logit = logit[rows // 2 :].repeat(2)
        return logit

    def _mixed(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site, cache: PatchCache, router: Router
    ) -> torch.Tensor | None:
        """Both branches, mixed by ones and zeros with the gradient of the soft decision."""
        logit = self._logit(len(q), site, cache, router)
        sparse = None if logit is None else self.part.attend(q, k, v, site, cache)
        if logit is None or sparse is None:
            return None
        full = dense_attention(q, k, v, site.scale, site.key_mask)
        gate = self.draws(cache).decide(logit, site.name).to(q)[:, None, None, None]
        return gate * full + (1 - gate) * sparse

    def _decided(self, q: torch.Tensor, site: Site, cache: PatchCache, router: Router) -> list[bool] | None:
        """Whether each row is full. Further calls of a step follow its first one: branches of guidance that come in
        calls of their own, of which the conditional is the first in Diffusers' pipelines."""
        key, moment = (_OWNER, self, site.name, "decided"), (site.run, site.step, len(q))
        before = cache.held(key)
        if site.step is not None and before is not None and before[0] == moment:
            return before[1]
        logit = self._logit(len(q), site, cache, router)
        if logit is None:
            return None
        with torch.no_grad():
            full = self.draws(cache).decide(logit, site.name).bool().tolist()
        cache.hold(key, (moment, full))
        return full

    def _chosen(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site, cache: PatchCache, full: list[bool]
    ) -> torch.Tensor | None:
        """Each row by its own branch."""
        if not any(full):
            return self.part.attend(q, k, v, site, cache)
        mask, where = site.key_mask, torch.tensor(full, device=q.device)
        dense, rest = where.nonzero()[:, 0], (~where).nonzero()[:, 0]
        masks = [None if mask is None else mask[rows] for rows in (dense, rest)]
        few = dataclasses.replace(site, key_mask=masks[1])
        sparse = self.part.attend(q[rest], k[rest], v[rest], few, cache)
        if sparse is None:
            return None
        out = q.new_empty(*q.shape[:3], v.shape[3])
        full_rows = dense_attention(q[dense], k[dense], v[dense], site.scale, masks[0])
        return out.index_copy(0, dense, full_rows.to(q.dtype)).index_copy(0, rest, sparse.to(q.dtype))

    def pair_rows(
        self, q: torch.Tensor, k: torch.Tensor, site: Site, cache: PatchCache, queries: torch.Tensor
    ) -> torch.Tensor:
        """What the latest decision lets every sample read; without one, what the sparse part reads. See
        :meth:`Method.pair_rows`."""
        return self._seen(self.part.pair_rows(q, k, site, cache, queries), site, cache, len(q))

    def read_rows(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site, cache: PatchCache, queries: torch.Tensor
    ) -> torch.Tensor:
        """See :meth:`Method.read_rows`."""
        return self._seen(self.part.read_rows(q, k, v, site, cache, queries), site, cache, len(q))

    def _seen(self, found: torch.Tensor, site: Site, cache: PatchCache, rows: int) -> torch.Tensor:
        decided = cache.held((_OWNER, self, site.name, "decided"))
        if decided is None or len(decided[1]) != rows:
            return found
        return found | torch.tensor(decided[1], device=found.device)[:, None, None, None]

    def _tally(self, site: Site, cache: PatchCache) -> Tally:
        """What was decided at a layer."""
        tallies: dict[str, Tally] = cache.held((_OWNER, self), {})
        if site.name not in tallies:
            tallies = {**tallies, site.name: Tally(site.layer, site.role)}
            cache.hold((_OWNER, self), tallies)
        return tallies[site.name]

    def density(self, site: Site, cache: PatchCache) -> Density | None:
        """Of the calls in which some sample was sparse: that of the sparse part for those, all pairs for the others."""
        of_part = self.part.density(site, cache)
        found = cache.held((_OWNER, self), {}).get(site.name)
        if of_part is None or found is None or not found.served:
            return of_part
        share = found.sparse / found.served
        return Density(*(1 - share * (1 - each) for each in (of_part.computed, of_part.executed)))

    def remarks(self, cache: PatchCache) -> list[str]:
        """See :meth:`Method.remarks`: the share of full decisions, by layer."""
        found: list[Tally] = list(cache.held((_OWNER, self), {}).values())
        told = list(self.part.remarks(cache))
        if found:
            every, full = sum(each.rows for each in found), sum(each.full for each in found)
            ordered = sorted(found, key=lambda each: (each.role, each.layer))
            several = len({each.role for each in found}) > 1
            layers = ", ".join(
                f"{each.role + ' ' if several else ''}{each.layer}: {each.share:.0%}" for each in ordered
            )
            told.append(f"{_OWNER}: full attention in {full} of {every} decisions, by layer {layers}")
        return told


def _level(given: Any, means: torch.Tensor) -> torch.Tensor | None:
    """(B,) noise levels of a call from the denoiser's argument: a number, or a tensor of one or several samples; of
    levels per token the largest. None where there is none for these rows."""
    if given is None or isinstance(given, (list, tuple, Mapping, str)):
        return None
    level = torch.as_tensor(given, device=means.device).detach().to(means.dtype)
    level = level.reshape(1) if level.dim() == 0 else level.flatten(1).amax(1) if level.dim() > 1 else level
    return None if len(means) % max(1, len(level)) else spread(level, len(means), "timestep")
