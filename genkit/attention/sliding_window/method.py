"""Sliding windows of the training size, for pictures and videos larger than a model was trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch

from genkit.attention.cache import PatchCache
from genkit.attention.grid_windows import GridWindows, WindowMethod
from genkit.attention.method import Density, check_choice, check_int, check_used
from genkit.attention.registry import register
from genkit.attention.score_scale import log_factor
from genkit.attention.site import Site
from genkit.attention.static import dense_attention
from genkit.attention.windows import AxisWindow
from genkit.errors import GenkitError, UsageError, explain
from genkit.layout import TEXT, TokenLayout

OFF, BOTH, REUSE = "off", "both", "reuse"


class DualPath:
    """What the two paths of one patch share between layers and steps.

    With two paths every sample is two neighbouring rows of the batch: row ``2b`` runs with windows, row ``2b + 1`` with
    full attention; both use the text cross-attention of row ``2b + 1``. Steps between two refreshes run the window rows
    alone and use the stored cross-attention.

    Attributes:
        calls: denoiser calls made by :meth:`run`; without any the second path never ran.
        mode: ``"off"`` (one row, windows only), ``"both"`` (two rows) or ``"reuse"`` (one row, stored cross-attention).
        stored: raw cross-attention output of the full path per layer, (B, N, H, D).
    """

    def __init__(self) -> None:
        self.mode = OFF
        self.calls = 0
        self.stored: dict[str, torch.Tensor] = {}

    @staticmethod
    def of(cache: PatchCache) -> DualPath:
        """The state that belongs to a patch, made on first use."""
        return cache.get("dual path", DualPath)

    def plan_step(self, method: SlidingWindow, step: int, branch: str | None) -> str:
        """The mode of a forward call: ``step`` counts the denoising steps that are run, from 0."""
        if not method.dual or (branch == "uncond" and method.override == "cond"):
            return OFF
        return REUSE if step % method.cache_steps and self.stored and branch != "uncond" else BOTH

    def run(
        self, forward: Callable[..., Any], method: SlidingWindow, step: int, branch: str | None, **inputs: Any
    ) -> torch.Tensor:
        """One call of a denoiser on the paths this step needs; returns the window path's prediction (B, ...).

        Args:
            forward: the denoiser's forward, called with ``return_dict=False`` and keyword arguments.
            inputs: its keyword arguments; tensors whose first size is that of ``hidden_states`` are doubled.
        """
        inputs, out = self.begin(method, step, branch, inputs), None
        try:
            out = forward(**inputs, return_dict=False)[0]
        finally:
            out = self.end(out)
        return out

    def begin(self, method: SlidingWindow, step: int, branch: str | None, inputs: dict[str, Any]) -> dict[str, Any]:
        """The keyword arguments of a call of the denoiser, doubled where this step needs both paths; :meth:`end` is due
        after the call."""
        self.calls += 1
        self.mode = self.plan_step(method, step, branch)
        if self.mode == BOTH and branch != "uncond":
            self.stored.clear()
        if self.mode != BOTH:
            return inputs
        batch = inputs["hidden_states"].shape[0]
        return {name: _doubled(value, batch) for name, value in inputs.items()}

    def end(self, out: Any) -> Any:
        """The window path's prediction out of what a call returned; None for a call that failed."""
        mode, self.mode = self.mode, OFF
        return out[0::2] if mode == BOTH and out is not None else out

    @contextmanager
    def around(self, model: Any, begin: Callable[[dict[str, Any]], dict[str, Any]]) -> Iterator[None]:
        """Whoever calls a denoiser within the block, such as its pipeline, runs the paths that a step needs.

        Args:
            model: the denoiser, which is called with keyword arguments and ``return_dict=False``.
            begin: makes the arguments of a call by :meth:`begin`.
        """
        hooks = (
            # Before the patch looks at the arguments: it must see all rows.
            model.register_forward_pre_hook(
                lambda _, args, inputs: (args, begin(inputs)), with_kwargs=True, prepend=True
            ),
            model.register_forward_hook(
                lambda _, args, out: self.end(None) if out is None else (self.end(out[0]), *out[1:]), always_call=True
            ),
        )  # fmt: skip
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def clear(self) -> None:
        """Forget stored cross-attention, for instance before another video or when another denoiser takes over."""
        self.mode = OFF
        self.stored.clear()


def _doubled(value: Any, batch: int) -> Any:
    if isinstance(value, torch.Tensor) and value.dim() > 0 and value.shape[0] == batch:
        return value.repeat_interleave(2, 0)
    return value


@register("sliding_window")
@dataclass(frozen=True)
class SlidingWindow(WindowMethod):
    """Windows of the size a model was trained at, moved inward at the borders, all frames visible (FreeSwim).

    Lets a model make larger pictures and videos than it was trained for: inside a window positions stay within what it
    knows. Windows alone keep detail and may repeat content; with ``dual`` a second path with full attention runs beside
    and lends its text cross-attention to both, which keeps the layout. On models with joint attention (no
    cross-attention) only the window applies.

    Args:
        base: token grid (height, width) of the training size, for instance (30, 52) for Wan at 480 x 832.
        inward: move windows inward at borders, so that every query has as many keys; off = cut them.
        scale_factor: factor of the softmax scale. ``"auto"``: ``sqrt(log_n(2 n))`` for n base tokens, 1.0461 for
            (30, 52) as published; larger sharpens. 1 = the model's own scale.
        dual: run the second path, see :class:`DualPath`; the pipeline around must double the batch.
        cache_steps: with ``dual``, run the full path every so many steps and reuse its cross-attention in between;
            1 = every step.
        override: which branches take the full path's cross-attention: ``"cond"`` as in the published cached form, or
            ``"both"``.
        offload: keep the stored cross-attention in main memory (15.8 GB for Wan 1.3B at 1088 x 1920).

    Source: FreeSwim: Revisiting Sliding-Window Attention Mechanisms for Training-Free Ultra-High-Resolution Video
    Generation.
    """

    base: tuple[int, int] = field(
        default=(30, 52), metadata={"help": "token grid of the training size, height x width"}
    )
    inward: bool = field(default=True, metadata={"help": "move windows inward at borders"})
    scale_factor: float | Literal["auto"] = field(default="auto", metadata={"help": "factor of the softmax scale"})
    dual: bool = field(default=False, metadata={"help": "second path with full attention lends its cross-attention"})
    cache_steps: int = field(default=2, metadata={"help": "steps per run of the full path"})
    override: Literal["cond", "both"] = field(
        default="cond", metadata={"help": "branches that take the full path's text"}
    )
    offload: bool = field(default=False, metadata={"help": "keep stored cross-attention in main memory"})

    roles: ClassVar[tuple[str, ...]] = ("self", "joint", "cross")
    variants: ClassVar[tuple[dict, ...]] = ({}, {"dual": True})
    source: ClassVar[str] = "FreeSwim, sliding-window attention for training-free ultra-high-resolution video"

    def __post_init__(self):
        super().__post_init__()
        if not (isinstance(self.base, tuple) and len(self.base) == 2):
            raise UsageError(explain("sliding_window.base", self.base, "two numbers (height, width) of tokens"))
        for side in self.base:
            check_int("sliding_window", "base", side, 1)
        for name in ("inward", "dual", "offload"):
            check_choice("sliding_window", name, getattr(self, name), (True, False))
        check_int("sliding_window", "cache_steps", self.cache_steps, 1)
        check_choice("sliding_window", "override", self.override, ("cond", "both"))
        check_used(self, ("cache_steps", "override", "offload"), self.dual, "dual=true")
        if self.dual and self.bias is not None:
            raise UsageError("sliding_window.bias has no place in the second path of dual=true; leave one of them out")
        factor = self.scale_factor
        if self.length_scale is not None and factor != "auto":
            raise UsageError(
                f"sliding_window: scale_factor={factor} and length_scale={self.length_scale} are both factors of the "
                f"softmax scale; give one of them"
            )
        if factor != "auto" and (
            isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor < 100
        ):
            raise UsageError(explain("sliding_window.scale_factor", factor, "'auto' or a number > 0"))

    def on(self, grid: tuple[int, int, int]) -> GridWindows:
        """The windows of a concrete grid: all frames, odd height and width around the query."""
        t, *sides = grid
        border = "shift" if self.inward else "clip"
        windows = [AxisWindow(t, t)]
        for length, side in zip(sides, self.base, strict=True):
            size = 2 * (side // 2) + 1
            windows.append(AxisWindow(length, min(size, length) if self.inward else size, border=border))
        return GridWindows(tuple(windows))

    def score_factor(self, layout: TokenLayout) -> float:
        """The factor applied to the softmax scale of self-attention: ``length_scale`` where given, else the setting
        of the method's own, which does not depend on the layout."""
        return self.score_factor_of_its_own() if self.length_scale is None else super().score_factor(layout)

    def score_factor_of_its_own(self) -> float:
        """The factor that ``scale_factor`` comes to."""
        if self.scale_factor != "auto":
            return float(self.scale_factor)
        tokens = max(2, self.base[0] * self.base[1])
        return log_factor(tokens, 2 * tokens)

    def details(self, layout: TokenLayout) -> str:
        """See :meth:`Method.details`."""
        return f"{self.on(layout.grid).details()};  softmax scale x {self.score_factor(layout):.4f}"

    def why_not(self, site: Site) -> str | None:
        """As :meth:`Method.why_not`; cross-attention is touched only by the dual path, which joint models lack."""
        if site.role == "cross":
            if not self.dual:
                return "sliding_window touches cross-attention only with dual=true"
            if site.key_layout.span(TEXT) is None:
                return "the dual path lends text cross-attention, these keys are not text"
            return None
        if site.role == "joint" and self.dual:
            return "the dual path lends cross-attention, a joint-attention model has none; use dual=false"
        return super().why_not(site)

    def remarks(self, cache: PatchCache) -> list[str]:
        """Says when two paths were asked for and nothing ran them, and when only the scale is not dense attention's."""
        told = list(super().remarks(cache))
        if cache.held(("all pairs", self)) and self.length_scale is None and self.score_factor_of_its_own() != 1:
            told.append(
                f"sliding_window: the windows hold every pair at this size, yet the output is not that of dense "
                f"attention: the softmax scale is {self.score_factor_of_its_own():.4f} times the model's own, as "
                f"published for larger sizes; scale_factor=1 keeps it"
            )
        if not self.dual or DualPath.of(cache).calls:
            return told
        return [
            *told,
            "sliding_window with dual=true ran windows alone: the second path needs every denoiser call to go through "
            "DualPath.run, as genkit generate --upscale and genkit.pipelines' high_resolution do; ordinary calls equal "
            "dual=false",
        ]

    def leaves(self, site: Site, cache: PatchCache) -> bool:
        """As :meth:`Method.leaves`: the text of calls to which the second path lends nothing."""
        return site.role == "cross" and DualPath.of(cache).mode == OFF

    def density(self, site: Site, cache: PatchCache) -> Density | None:
        """Density of the window path; None for cross-attention."""
        return None if site.role == "cross" else super().density(site, cache)

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site, cache: PatchCache
    ) -> torch.Tensor | None:
        """See :meth:`Method.attend`; with ``dual``, rows are told apart by the patch's :class:`DualPath`."""
        self.require(site, cache)
        path = DualPath.of(cache) if self.dual else None
        if site.role == "cross":
            return self._lent(q, k, v, site, path)
        if path is None or path.mode != BOTH:
            return super().attend(q, k, v, site, cache)
        _expect_pairs(q, site)
        mask = site.key_mask
        window = super().attend(
            q[0::2],
            k[0::2],
            v[0::2],
            dataclasses.replace(site, key_mask=None if mask is None else mask[0::2]),
            cache,
        )
        scale = self.scaled(q, site).scale
        full = dense_attention(q[1::2], k[1::2], v[1::2], scale, None if mask is None else mask[1::2])
        return torch.stack([window, full], 1).flatten(0, 1)

    def _lent(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site, path: DualPath
    ) -> torch.Tensor | None:
        """Text cross-attention of the full path for both rows, or the stored one."""
        if path.mode == OFF:
            return None
        if path.mode == REUSE:
            if site.name not in path.stored:
                raise GenkitError(f"layer {site.name}: no stored cross-attention; the first step must run both paths")
            return path.stored[site.name].to(q.device)
        _expect_pairs(q, site)
        mask = None if site.key_mask is None else site.key_mask[1::2]
        out = dense_attention(q[1::2], k[1::2], v[1::2], site.scale, mask)
        if self.cache_steps > 1 and site.branch != "uncond":
            path.stored[site.name] = out.detach().to("cpu") if self.offload else out.detach()
        return out.repeat_interleave(2, 0)


def _expect_pairs(q: torch.Tensor, site: Site) -> None:
    if q.shape[0] % 2:
        raise UsageError(f"layer {site.name}: two paths need rows in pairs (window, full), got a batch of {q.shape[0]}")
