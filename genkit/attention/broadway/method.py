"""BroadWay on the gate: which temporal layers it works on, which layer each follows, what is kept between layers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch

from genkit.attention.broadway import maps
from genkit.attention.cache import PatchCache
from genkit.attention.keep import kept
from genkit.attention.method import Density, Method, check_choice, check_int, check_number
from genkit.attention.registry import register
from genkit.attention.site import Place, Site
from genkit.attention.static import check_tokens
from genkit.errors import UnsupportedError, UsageError
from genkit.layout import TokenLayout

_OWNER = "broadway"
BLOCKS = ("auto", "decoder", "all")


class _Layers:
    """What one patch knows of its layers.

    Attributes:
        placed: names of the layers it is on. guides: name -> the layer it follows, for those of the decoder.
        kept: maps of guides in the running denoiser call, with their places. alone: layers that had to do without.
    """

    def __init__(self) -> None:
        self.placed: set[str] = set()
        self.guides: dict[str, str] = {}
        self.kept: dict[str, tuple[torch.Tensor, tuple[int, int]]] = {}
        self.alone: set[str] = set()

    @staticmethod
    def of(cache: PatchCache) -> _Layers:
        """That of a patch, made on first use."""
        return cache.get(_OWNER, _Layers)


@register(_OWNER)
@dataclass(frozen=True)
class Broadway(Method):
    """Steadier structures and more motion from video models with attention along the frames of every place.

    Needs no training. In the early steps the temporal maps of the finer decoder blocks are drawn towards those of the
    coarsest one (self-guidance, ``alpha``), then their high frequencies along the key frames are amplified by at least
    ``beta``: by more where guidance took energy away, so that motion is never less than before.

    Made for UNets over video (AnimateDiff and its like). On other models with temporal layers, which have no coarser
    block, only the frequencies are amplified, on all layers: an experiment, begin with ``beta=1.1``. Models with one
    attention over space and time have no such layers and are refused.

    Args:
        alpha: strength of the guidance, 0 to 1; published: 0.6 (AnimateDiff), 0.1 (VideoCrafter2). Too much freezes
            motion.
        beta: least gain of the high frequencies, 1 or more; published: 1.5 and 10. Too much warps moving things.
        tau: half width of the band of high frequencies; ``"full"`` = all but the constant, which is the published 7 at
            16 frames. Larger values than a clip allows count as ``"full"``.
        blocks: ``"auto"``: the decoder blocks that have a guide where the model has such, else all temporal layers;
            ``"decoder"``: the former or an error; ``"all"``: all temporal layers, guided where there is a guide.

    A layer with another number of heads than its guide follows the mean over the guide's heads (our choice).

    Cost: maps of F x F per place and head, some places at a time; those of the coarsest block stay until the next
    denoiser call (12 MB for AnimateDiff at 512 x 512 in float16).

    Source: BroadWay (ByTheWay): Boost Your Text-to-Video Generation Model in a Training-free Way, arXiv 2410.06241.
    """

    alpha: float = field(default=0.6, metadata={"help": "strength of the guidance by the coarsest block"})
    beta: float = field(default=1.5, metadata={"help": "least gain of the high frequencies"})
    tau: int | Literal["full"] = field(default="full", metadata={"help": "half width of the band of high frequencies"})
    blocks: Literal["auto", "decoder", "all"] = field(default="auto", metadata={"help": "which temporal layers"})

    roles: ClassVar[tuple[str, ...]] = ("temporal",)
    declines: ClassVar[str] = "broadway: not a decoder block that has a guide; blocks=all takes every temporal layer"
    source: ClassVar[str] = "BroadWay (ByTheWay), arXiv 2410.06241"

    def __post_init__(self):
        check_number(_OWNER, "alpha", self.alpha, 0, 1)
        check_number(_OWNER, "beta", self.beta, 1)
        if self.tau != "full":
            check_int(_OWNER, "tau", self.tau, 0)
        check_choice(_OWNER, "blocks", self.blocks, BLOCKS)

    def recommended(self, steps: int, layers: int) -> dict[str, str]:
        """The authors' schedule: the first fifth of the steps."""
        return {"steps": f":{max(1, steps // 5)}"}

    def why_not(self, site: Site) -> str | None:
        """As :meth:`Method.why_not`; hidden keys have no place in a map of all frames."""
        reason = super().why_not(site)
        if reason is None and site.key_mask is not None:
            return f"{_OWNER} works on all frames, this call hides some"
        return reason

    @property
    def needs_heads(self) -> bool:
        """See :attr:`Method.needs_heads`: the call tells them."""
        return False

    def install(self, place: Place, cache: PatchCache) -> Iterable[Any]:
        """Note which layer this one follows."""
        layers = _Layers.of(cache)
        layers.placed.add(place.name)
        if place.guide:
            layers.guides[place.name] = place.guide
        return ()

    def ready(self, cache: PatchCache) -> None:
        """Refuse decoder blocks that the model lacks, and a schedule that leaves out guides."""
        layers = _Layers.of(cache)
        if self.blocks == "decoder" and not layers.guides:
            raise UnsupportedError(
                f"{_OWNER}.blocks='decoder': none of the {len(layers.placed)} temporal layers in the schedule is in a "
                f"decoder block that has a guide; use blocks=all with alpha=0"
            )
        missing = [name for name, guide in layers.guides.items() if guide not in layers.placed]
        if missing and self.alpha:
            raise UsageError(
                f"{_OWNER}: layer {missing[0]} follows {layers.guides[missing[0]]}, which the schedule leaves out; "
                f"let it have both layers, or use alpha=0"
            )

    def observe(self, given: Mapping[str, Any], cache: PatchCache) -> None:
        """Drop the maps of the call before."""
        _Layers.of(cache).kept.clear()

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site, cache: PatchCache
    ) -> torch.Tensor | None:
        """See :meth:`Method.attend`; declines layers outside of the blocks asked for."""
        self.require(site, cache)
        check_tokens(q, k, site)
        layers = _Layers.of(cache)
        if not site.guide and self.blocks != "all" and layers.guides:
            return None
        frames, rows = site.layout.grid[0], q.shape[0]
        places = site.places if site.places is not None and rows % math.prod(site.places) == 0 else None
        first = site.guide == site.name and self.alpha > 0
        found = maps.attend(
            q,
            k,
            v,
            q.shape[-1] ** -0.5 if site.scale is None else site.scale,
            kept(cache, maps.high_pass, frames, self._width(frames), device=q.device),
            float(self.alpha),
            float(self.beta),
            None if places is None else self._guide(site, places, layers, cache, q),
            rows // 2 if site.both and rows % 2 == 0 else 0,
            keep=first,
        )
        if found.maps is not None and places is not None:
            layers.kept[site.name] = (found.maps, places)
        cache.measure((self, site.name), lambda: found.gain)
        return found.out

    def _width(self, frames: int) -> int:
        return maps.widest(frames) if self.tau == "full" else min(self.tau, maps.widest(frames))

    def _guide(
        self, site: Site, places: tuple[int, int], layers: _Layers, cache: PatchCache, q: torch.Tensor
    ) -> maps.Guide | None:
        """The maps that a layer follows, their mean over heads where it has another number of heads; None for the guide
        itself and for layers without one."""
        if not self.alpha or site.guide in ("", site.name):
            return None
        there = layers.kept.get(site.guide)
        if there is None or len(there[0]) * math.prod(places) != q.shape[0] * math.prod(there[1]):
            layers.alone.add(site.name)
            return None
        found = there[0] if there[0].shape[1] == q.shape[2] else there[0].mean(1, keepdim=True)
        return maps.Guide(found, kept(cache, maps.Finer.of, there[1], places, device=q.device))

    def density(self, site: Site, cache: PatchCache) -> Density | None:
        """All pairs are read."""
        return Density(1.0, 1.0)

    def mask(self, layout: TokenLayout) -> torch.Tensor:
        """See :meth:`Method.mask`: every frame sees every frame."""
        return torch.ones(layout.length, layout.length, dtype=torch.bool)

    def details(self, layout: TokenLayout) -> str:
        """See :meth:`Method.details`."""
        frames = layout.grid[0]
        share = int(maps.high_pass(frames, self._width(frames)).diagonal().sum().round())
        return f"{share} of {frames} frequencies along the frames are amplified, guidance {self.alpha:g}"

    def remarks(self, cache: PatchCache) -> list[str]:
        """Says where guidance had nothing to go by."""
        layers, told = _Layers.of(cache), []
        if self.alpha and not layers.guides:
            told.append(
                f"{_OWNER}: no layer has a coarser decoder block to follow, so alpha={self.alpha:g} had no effect: "
                f"only high frequencies were amplified"
            )
        if layers.alone:
            name = sorted(layers.alone)[0]
            told.append(
                f"{_OWNER}: {len(layers.alone)} layers ({name}, ...) got no map of the layer they follow "
                f"({layers.guides[name]}), which did not run before them: only high frequencies were amplified there"
            )
        return told
