"""CLEAR: tokens of a picture see a disc around them and, if wanted, pooled keys of the whole picture."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from genkit.attention.cache import PatchCache
from genkit.attention.clear.pooled import pool, pooled_count, pooled_plan
from genkit.attention.clear.published import Published, is_published
from genkit.attention.clear.weights import PoolWeights, average
from genkit.attention.grid_windows import Disc, GridWindows, WindowMethod
from genkit.attention.keep import kept
from genkit.attention.method import check_choice, check_int, check_used
from genkit.attention.registry import register
from genkit.attention.score_scale import log_factor
from genkit.attention.site import Place, Site
from genkit.attention.static import StaticPlan, check_tokens, masked_plan, static_plan
from genkit.attention.weights import PatchWeights
from genkit.attention.windows import AxisWindow
from genkit.errors import UsageError, explain
from genkit.kernels import block_sparse_attention
from genkit.layout import TokenLayout

_OWNER = "clear"


@register(_OWNER)
@dataclass(frozen=True)
class Clear(WindowMethod):
    """A token of a picture sees the text and the tokens nearer than ``radius``; the work grows with the pixels.

    With ``down`` it also sees a pooled view of the whole picture: keys and values of p x p tokens, after rotary
    positions, weighed by p x p trainable numbers per layer and summed. Text sees everything but the pooled keys. The
    mask and the pooling are exact; a model that was not trained for them makes rather worse pictures: give trained
    ``weights``, or a LoRA made by ``genkit train distill --kind features``.

    Args:
        radius: of the disc in tokens; a key is seen when it is strictly nearer. Published 8, 16 and 32; larger is
            closer to dense attention. In clips every frame is seen within the same disc.
        down: side p of the cells that are pooled; 1 = no pooled keys. Published 4. Height and width in tokens must be
            multiples of it.
        proportional: sharpen the softmax on sequences longer than in training, by ``sqrt(log(n) / log(trained))``; n is
            the number of tokens, ten times that with ``down``. For high resolution.
        trained: tokens of a sequence in training, text included. Published 4608: 64 x 64 and 512 of text.
        weights: a file of trained weights: the pooling numbers that genkit wrote, or a published file, which holds
            whole projections (to_q, to_k, to_v, to_out) besides. Those take the place of the model's own while the
            patch is on.

    Source: CLEAR: Conv-Like Linearization Revs Pre-Trained Diffusion Transformers Up, arXiv 2412.16112.
    """

    radius: int | float = field(default=16, metadata={"help": "radius of the disc in tokens, strictly nearer"})
    down: int = field(default=1, metadata={"help": "side of pooled cells; 1 = none"})
    proportional: bool = field(default=False, metadata={"help": "softmax scale grows with the sequence"})
    trained: int = field(default=4608, metadata={"help": "tokens in training, for proportional"})
    weights: None | str = field(default=None, metadata={"help": "file with trained weights"})

    roles: ClassVar[tuple[str, ...]] = ("self", "joint")
    trainable: ClassVar[bool] = True
    takes_bias: ClassVar[bool] = False
    source: ClassVar[str] = "CLEAR, arXiv 2412.16112"

    def __post_init__(self):
        super().__post_init__()
        good = isinstance(self.radius, (int, float)) and not isinstance(self.radius, bool)
        if not good or not 0 < self.radius < 32768:
            raise UsageError(explain(f"{_OWNER}.radius", self.radius, "a number > 0, in tokens"))
        check_int(_OWNER, "down", self.down, 1, 64)
        check_choice(_OWNER, "proportional", self.proportional, (True, False))
        check_int(_OWNER, "trained", self.trained, 2)
        check_used(self, ("trained",), self.proportional, "proportional=true")
        if self.proportional and self.length_scale is not None:
            raise UsageError(
                f"{_OWNER}: proportional=true and length_scale={self.length_scale} are both factors of the softmax "
                f"scale; give one of them"
            )

    def on(self, grid: tuple[int, int, int]) -> GridWindows:
        """The disc on a concrete grid, cut at its borders."""
        t, h, w = grid
        reach = 2 * (math.ceil(self.radius) - 1) + 1
        windows = (AxisWindow(t, t), AxisWindow(h, reach, border="clip"), AxisWindow(w, reach, border="clip"))
        return GridWindows(windows, Disc(self.radius, (1, 2)))

    @property
    def hides_grid(self) -> bool:
        """See :attr:`Method.hides_grid`; pooled keys mix them."""
        return self.down == 1

    def why_not(self, site: Site) -> str | None:
        """As :meth:`Method.why_not`; also a grid that cells of ``down`` do not fill."""
        reason = super().why_not(site)
        if reason is None and any(side % self.down for side in site.layout.grid[1:]):
            height, width = site.layout.grid[1:]
            reason = (
                f"clear.down={self.down} pools cells of {self.down} x {self.down} tokens, which do not fill this grid "
                f"of {height} x {width}; choose a size whose tokens are multiples of {self.down}, or down=1"
            )
        return reason

    def score_factor(self, layout: TokenLayout) -> float:
        """See :meth:`WithScale.score_factor`; ``proportional`` counts the tokens of the sequence, ten times as many
        with pooled keys."""
        if not self.proportional:
            return super().score_factor(layout)
        return log_factor(self.trained, layout.length if self.down == 1 else 10 * layout.length)

    def details(self, layout: TokenLayout) -> str:
        """See :meth:`Method.details`."""
        text = f"disc of radius {self.radius:g}, up to {self.most_keys(layout)} keys;  {self.on(layout.grid).details()}"
        if self.down > 1:
            text += f";  {pooled_count(layout.grid, self.down)} pooled keys of {self.down} x {self.down} tokens"
        if self.proportional:
            text += f";  softmax scale x {self.score_factor(layout):.4f}"
        return text

    def most_keys(self, layout: TokenLayout) -> int:
        """Grid keys of a token in the middle of the grid: 193 for radius 8, 793 for 16, 3205 for 32."""
        frames, *sides = layout.grid
        reach = math.ceil(self.radius) - 1
        far = range(-reach, reach + 1)
        seen = [(y, x) for y in far for x in far if y * y + x * x < self.radius**2]
        inside = [at for at in seen if all(abs(step) < side for step, side in zip(at, sides, strict=True))]
        return frames * len(inside)

    def flops(self, layout: TokenLayout, width: int) -> int:
        """Floating-point operations of a layer's attention: 4 for every visible pair and channel.

        Args:
            width: channels of all heads together.
        """
        more = 0 if self.down == 1 else layout.grid_length * pooled_count(layout.grid, self.down)
        return 4 * width * (self.on(layout.grid).pairs(layout) + more)

    def build_plan(self, layout: TokenLayout, kind: str = "cpu", key_mask: torch.Tensor | None = None) -> StaticPlan:
        """See :meth:`StaticMethod.build_plan`; with ``down`` the keys are those of the sequence and the pooled ones."""
        windows = self.on(layout.grid)
        if self.down == 1:
            return windows.plan(layout, kind, key_mask)
        return pooled_plan(windows, self.down, layout, kind, key_mask)

    @property
    def every_grid(self) -> bool:
        """See :attr:`Method.every_grid`: not with pooled keys, which stand behind one grid."""
        return super().every_grid and self.down == 1

    def install(self, place: Place, cache: PatchCache) -> Iterable[Any]:
        """Make the pooling numbers of a layer; with a published file remember which layer it belongs to."""
        if self.down > 1:
            own = PoolWeights(place, self.down)
            PatchWeights.of(cache).put(self.name, place.name, own, self.settings())
        if self.weights is None:
            return ()
        published = self._published(Path(self.weights), cache)
        if published is not None:
            published.add(place)
            return (published,)
        if self.down == 1:
            raise UsageError(
                f"clear.weights: {self.weights} holds pooling numbers, which down=1 has no use for; give down as in "
                f"training"
            )
        return ()

    def ready(self, cache: PatchCache) -> None:
        """See :meth:`Method.ready`; published files are read in their own form."""
        published = None if self.weights is None else self._published(Path(self.weights), cache)
        if published is None:
            return super().ready(cache)
        return published.load(self.down, lambda site: PatchWeights.of(cache).at(self.name, site))

    def _published(self, path: Path, cache: PatchCache) -> Published | None:
        """The published file of a patch, looked at once; None for a file that genkit wrote."""
        return cache.get((_OWNER, "published", str(path)), lambda: Published(path) if is_published(path) else None)

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site, cache: PatchCache
    ) -> torch.Tensor | None:
        """See :meth:`Method.attend`; one softmax over the disc, the text and the pooled keys."""
        if self.down == 1:
            return super().attend(q, k, v, site, cache)
        self.require(site, cache)
        check_tokens(q, k, site)
        site = self.scaled(q, site)
        if site.key_mask is None:
            plan = kept(cache, static_plan, self, site.layout, q.device.type, device=q.device).plan
        else:
            masked = masked_plan(self, site.layout, site.key_mask, cache)
            if masked is None:
                return None
            plan = masked.plan
        weight = self._pooling(site, cache, q.device)
        start, stop = site.layout.grid_span
        k, v = (torch.cat([x, pool(x[:, start:stop], site.layout.grid, weight)], 1) for x in (k, v))
        out, _ = block_sparse_attention(q, k, v, plan, scale=site.scale, backend=cache.backend)
        return out

    def _pooling(self, site: Site, cache: PatchCache, device: torch.device) -> torch.Tensor:
        own = PatchWeights.of(cache)
        if own.has(self.name, site.name):
            weight: Any = own.at(self.name, site.name).spatial_weight
            return weight.to(device)
        return average(self.down, device)
