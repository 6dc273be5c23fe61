"""Neighborhood attention: every grid token sees a window around itself, in one, two or three dimensions."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from genkit.attention.grid_windows import Disc, GridWindows, WindowMethod
from genkit.attention.method import check_choice, check_int
from genkit.attention.registry import register
from genkit.attention.site import Site
from genkit.attention.windows import BORDERS, AxisWindow, rescaled
from genkit.errors import UsageError, explain
from genkit.layout import TokenLayout

Size = int | float | Literal["all"]
Sizes = Size | tuple[Size, Size] | tuple[Size, Size, Size] | None
Counts = int | tuple[int, int] | tuple[int, int, int]
Flags = bool | tuple[bool, bool] | tuple[bool, bool, bool]
SHAPES = ("box", "disc")
_AXES = ("time", "height", "width")


def _per_axis(name: str, value: object, first: object) -> tuple:
    """One value per axis (T, H, W): a single value holds for all axes, a pair is (H, W) with time at ``first``."""
    if not isinstance(value, tuple):
        return (value, value, value)
    if len(value) == 2:
        return (first, *value)
    if len(value) == 3:
        return value
    allowed = "one value, a pair (height, width) or three (time, height, width)"
    raise UsageError(explain(f"neighborhood.{name}", value, allowed))


def _check_size(value: object) -> None:
    allowed = "a whole number >= 1, a fraction in (0, 1], or 'all'"
    bad = isinstance(value, bool) or not (value == "all" or isinstance(value, (int, float)))
    if bad or (isinstance(value, int) and value < 1) or (isinstance(value, float) and not 0 < value <= 1):
        raise UsageError(explain("neighborhood.size", value, allowed))


@register("neighborhood")
@dataclass(frozen=True)
class Neighborhood(WindowMethod):
    """Local windows on the token grid, with stride, dilation and causality per axis.

    A pair of grid tokens is visible when the key lies in the query's window on every axis. Tokens outside the grid
    (text, reference, keyframes) see everything and are seen by everything. Sliding windows, blocked windows, dilated
    windows and FreeSwim's inward windows are special cases.

    Axes are (time, height, width). Settings accept one value for all axes, a pair for (height, width), or three values.
    A window larger than an axis covers the whole axis. Without training, keep the first steps dense (see
    :meth:`recommended`); with fine-tuning every step may be sparse.

    Args:
        size: keys per axis: a number of tokens, a fraction of the axis, or ``"all"``. A pair leaves time whole.
            Default: all frames, half of the height and half of the width (a disc: the disc's own bounding box).
            Larger is closer to dense attention and costs in proportion.
        stride: neighbouring queries that share one window. Larger strides waste less work at the edges of tiles and
            are a little less local. 1 to size.
        dilation: step inside the window; reaches farther with the same number of keys.
        causal: per axis, hide keys after the query.
        border: ``"shift"`` moves windows inward at the border so that every query has its full number of keys;
            ``"clip"`` cuts them.
        shape: ``"box"``, or ``"disc"``: keys nearer than ``radius`` (strictly) over the axes that are not ``"all"``,
            inside the box ``size``. A disc clips at borders and has no stride, dilation or causality.
        radius: radius of the disc in tokens.
        base_size: grid (T, H, W) the numbers were tuned for; they are rescaled to the actual grid. -1 = as actual.
        tile: box of the grid that one query block covers; None = the best blocks, by counting.

    Source: Generalized Neighborhood Attention (arXiv 2504.16922), Faster Neighborhood Attention (2403.04690).
    """

    size: Sizes = field(
        default=None, metadata={"help": "keys per axis: number, fraction or all; none = all x half x half"}
    )
    stride: Counts = field(default=1, metadata={"help": "queries that share a window"})
    dilation: Counts = field(default=1, metadata={"help": "step inside the window"})
    causal: Flags = field(default=False, metadata={"help": "hide later keys, per axis"})
    border: Literal["shift", "clip"] = field(default="shift", metadata={"help": "at the border: shift inward or clip"})
    shape: Literal["box", "disc"] = field(default="box", metadata={"help": "box or disc"})
    radius: float | None = field(default=None, metadata={"help": "radius of the disc in tokens"})
    base_size: tuple[int, int, int] | None = field(default=None, metadata={"help": "grid the numbers were tuned for"})
    tile: tuple[int, int, int] | None = field(default=None, metadata={"help": "query tile; none = the best blocks"})

    roles: ClassVar[tuple[str, ...]] = ("self", "joint")
    trainable: ClassVar[bool] = True
    source: ClassVar[str] = "Generalized Neighborhood Attention, arXiv 2504.16922"

    def __post_init__(self):
        super().__post_init__()
        check_choice("neighborhood", "border", self.border, BORDERS)
        check_choice("neighborhood", "shape", self.shape, SHAPES)
        for size in self.sizes():
            _check_size(size)
        for name in ("stride", "dilation"):
            for value in _per_axis(name, getattr(self, name), 1):
                check_int("neighborhood", name, value, 1)
        for value in _per_axis("causal", self.causal, False):
            check_choice("neighborhood", "causal", value, (True, False))
        for size, stride in zip(self.sizes(), _per_axis("stride", self.stride, 1), strict=True):
            if isinstance(size, int):
                check_int("neighborhood", "stride", stride, 1, size)
        for name, low in (("base_size", -1), ("tile", 1)):
            values = getattr(self, name)
            if values is not None and not (isinstance(values, tuple) and len(values) == 3):
                raise UsageError(explain(f"neighborhood.{name}", values, "three numbers (time, height, width)"))
            for value in values or ():
                check_int("neighborhood", name, value, low)
        if self.base_size is not None and 0 in self.base_size:
            raise UsageError(
                explain("neighborhood.base_size", self.base_size, "lengths >= 1, or -1 for the actual one")
            )
        if self.shape == "disc":
            self._check_disc()
        elif self.radius is not None:
            raise UsageError("neighborhood.radius belongs to a disc: give shape='disc' too, or leave radius out")

    def _check_disc(self) -> None:
        if isinstance(self.radius, bool) or not isinstance(self.radius, (int, float)) or not 0 < self.radius < 32768:
            raise UsageError(explain("neighborhood.radius", self.radius, "a number > 0, in tokens, for shape='disc'"))
        if all(size == "all" for size in self.sizes()):
            raise UsageError(
                "neighborhood: a disc needs an axis whose size is not 'all'; leave size out for the usual one"
            )
        boxes_only = (
            ("stride", self.stride, 1),
            ("dilation", self.dilation, 1),
            ("causal", self.causal, False),
            ("base_size", self.base_size or -1, -1),
        )
        for name, value, plain in boxes_only:
            if any(part != plain for part in _per_axis(name, value, plain)):
                raise UsageError(
                    explain(f"neighborhood.{name} of a disc", value, f"{plain}; use shape='box' for others")
                )

    def sizes(self) -> tuple[Size, Size, Size]:
        """The window size per axis as it was asked for, defaults filled in."""
        if self.size is not None:
            return _per_axis("size", self.size, "all")
        if self.shape == "disc" and isinstance(self.radius, (int, float)):
            reach = 2 * (math.ceil(self.radius) - 1) + 1
            return ("all", reach, reach)
        return ("all", 0.5, 0.5)

    def on(self, grid: tuple[int, int, int]) -> GridWindows:
        """The windows of a concrete grid, clamped or rescaled to it; UsageError when a dilation does not fit."""
        settings = zip(
            _AXES,
            grid,
            self.sizes(),
            _per_axis("stride", self.stride, 1),
            _per_axis("dilation", self.dilation, 1),
            _per_axis("causal", self.causal, False),
            self.base_size or (-1, -1, -1),
            strict=True,
        )
        disc = None
        if self.shape == "disc":
            disc = Disc(self.radius, tuple(axis for axis, size in enumerate(self.sizes()) if size != "all"))
        return GridWindows(tuple(self._window(*setting) for setting in settings), disc, self.tile)

    def _window(
        self, axis: str, length: int, size: Size, stride: int, dilation: int, causal: bool, base: int
    ) -> AxisWindow:
        if size == "all":
            return AxisWindow(length, length, min(stride, length), 1, causal)
        base = length if base == -1 else base
        w = max(1, round(size * base)) if isinstance(size, float) else size
        if self.base_size is not None:
            w, stride, dilation = rescaled(w, stride, dilation, length, base)
        border = "clip" if self.shape == "disc" else self.border
        if border == "shift":
            w = min(w, length)
        if border == "shift" and w * dilation > length:
            allowed = f"1 to {length // w}, because a window of {w} must fit into {length} tokens"
            advice = "use a smaller dilation or size, or give base_size so that the numbers are rescaled"
            raise UsageError(explain(f"neighborhood.dilation over {axis}", dilation, allowed, advice))
        return AxisWindow(length, w, min(stride, w), min(dilation, length), causal, border)

    def why_not(self, site: Site) -> str | None:
        """As :meth:`Method.why_not`; also a dilation that does not fit this grid."""
        reason = super().why_not(site)
        if reason is None:
            try:
                self.on(site.layout.grid)
            except UsageError as error:
                reason = str(error)
        return reason

    def details(self, layout: TokenLayout) -> str:
        """See :meth:`Method.details`."""
        return self.on(layout.grid).details()
