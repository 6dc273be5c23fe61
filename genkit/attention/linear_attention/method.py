"""Linear attention in the place of softmax, for models that are trained through it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch

from genkit.attention.cache import PatchCache
from genkit.attention.linear_forms import FORMS, Inputs, LinearWeights, over_all
from genkit.attention.method import Density, Method, check_choice
from genkit.attention.registry import register
from genkit.attention.site import Place, Site
from genkit.attention.static import check_tokens
from genkit.attention.views import weights_by_values
from genkit.attention.weights import PatchWeights
from genkit.errors import UsageError, explain
from genkit.layout import TokenLayout

_OWNER = "linear_attention"
_WEIGHTED = ("lightning", "lightnet", "rala")
_FORMS = tuple(name for name in FORMS if name != "state")  # reads the past alone
_CAUSAL = tuple(name for name in _FORMS if FORMS[name].causal)


@register(_OWNER)
@dataclass(frozen=True)
class LinearAttention(Method):
    """Sums of keys and values instead of a softmax over pairs: cost linear in the number of tokens.

    Only for models that are trained through it (``genkit train lora --attention linear_attention``, with
    ``--train-attention-weights`` where the form has weights): put on a softmax model as it is, pictures are destroyed.
    Features are taken of queries and keys as attention gets them, after rotary embedding.

    Args:
        form: ``"softmax"`` (over channels, SLA's), ``"elu"`` (elu + 1), ``"relu"``, ``"rala"`` (keys weighted by the
            mean query, local convolution of values), ``"lightnet"`` (keys by softmax over tokens in every channel),
            ``"lightning"`` (silu, frames fade with their distance), ``"flow"`` (keys compete, queries allocate).
            ``rala``, ``lightnet`` and ``lightning`` have weights of their own.
        causal: frames see themselves and earlier ones, as a stream of frames needs; not ``rala`` and ``flow``, whose
            weights look at all tokens.
        weights: safetensors file with trained weights, read when the patch is made.

    Sources: RALA, arXiv 2411.07635; LightNet, arXiv 2405.21022; Lightning Attention-2, arXiv 2401.04658; Flowformer,
    arXiv 2202.06258; SLA, arXiv 2509.24006.
    """

    form: Literal["softmax", "elu", "relu", "rala", "lightnet", "lightning", "flow"] = field(
        default="elu", metadata={"help": "how pairs are weighted"}
    )
    causal: bool = field(default=False, metadata={"help": "frames see themselves and earlier ones"})
    weights: None | str = field(default=None, metadata={"help": "file with trained weights"})

    roles: ClassVar[tuple[str, ...]] = ("self", "joint")
    trainable: ClassVar[bool] = True
    by_data: ClassVar[bool] = True
    weighs: ClassVar[bool] = True
    source: ClassVar[str] = "RALA, LightNet, Lightning Attention-2, Flowformer, SLA"

    def __post_init__(self):
        super().__post_init__()
        check_choice(_OWNER, "form", self.form, _FORMS)
        check_choice(_OWNER, "causal", self.causal, (True, False))
        if self.causal and self.form not in _CAUSAL:
            raise UsageError(explain(f"{_OWNER}.form with causal=true", self.form, _CAUSAL))
        if self.weights is not None and self.form not in _WEIGHTED:
            raise UsageError(
                f"{_OWNER}.weights: form={self.form} has no weights of its own; those that have: {', '.join(_WEIGHTED)}"
            )

    @property
    def heads_apart(self) -> bool:
        """See :attr:`Method.heads_apart`."""
        return True

    @property
    def hides_grid(self) -> bool:
        """See :attr:`Method.hides_grid`: a hidden key weighs nothing."""
        return True

    def install(self, place: Place, cache: PatchCache) -> Iterable[Any]:
        """Make the layer's weights, for forms that have some."""
        if self.form in _WEIGHTED:
            PatchWeights.of(cache).put(self.name, place.name, LinearWeights(place, self.form), self.settings())
        return ()

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site, cache: PatchCache
    ) -> torch.Tensor | None:
        """See :meth:`Method.attend`. The softmax scale of the model has no meaning here."""
        self.require(site, cache)
        check_tokens(q, k, site)
        own: Any = PatchWeights.of(cache).at(self.name, site.name) if self.form in _WEIGHTED else None
        share = q.shape[-1] / site.layout.length
        cache.measure((self, site.name), lambda: torch.tensor(share))
        return over_all(Inputs(self.form, q, k, v, site.key_mask), site, own, self.causal).to(q.dtype)

    def seen(self, q: torch.Tensor, k: torch.Tensor, site: Site, cache: PatchCache) -> torch.Tensor:
        """The weights that keys get, 1 = a row's largest; see :meth:`Method.seen`."""
        return weights_by_values(
            lambda value: over_all(Inputs(self.form, q, k, value, None), site, None, self.causal), q
        )

    def density(self, site: Site, cache: PatchCache) -> Density | None:
        """Work relative to dense attention, head size over tokens, known after a call; no pair is hidden."""
        share = cache.measured((self, site.name))
        return None if share is None else Density(share, share)

    def details(self, layout: TokenLayout) -> str:
        """See :meth:`Method.details`."""
        order = "; frames see themselves and earlier ones" if self.causal else ""
        return f"{FORMS[self.form].words}{order}; work of head size / {layout.length} of dense attention"

    def remarks(self, cache: PatchCache) -> list[str]:
        """See :meth:`Method.remarks`: what it needs."""
        if self.weights is not None:
            return []
        return [
            f"{_OWNER} replaces softmax attention: a model that was not trained through it makes noise; train it with "
            f"genkit train lora --attention {_OWNER}, or keep softmax and add a linear branch with sparse_linear"
        ]
