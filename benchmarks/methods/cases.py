"""What is compared: models at their sizes, and methods in groups of about the same executed density."""

from __future__ import annotations

from dataclasses import dataclass

#: Method and settings, as texts.
Setting = tuple[str, dict[str, str]]


@dataclass(frozen=True)
class Case:
    """A model at a size.

    The clip or picture is drawn at the size the model was trained for, enlarged, noised again and denoised under the
    method: from noise the toy models draw little at sizes they were not trained for, and likeness and the judge would
    tell nothing.

    Args:
        model: toy-video or toy-dit.
        frames, side: of the base run, in frames and pixels.
        upscale: factor of height and width.
        steps: of a whole run. strength: share of them that the second pass makes. shift: its timestep shift.
        guidance: of the second pass.
        dense: steps at the beginning of the second pass that stay dense under every method, a quarter of them: scores
            say little at high noise, and most authors of fixed masks keep some, too.
        groups: title -> methods.
    """

    model: str
    frames: int
    side: int
    upscale: int
    steps: int
    strength: float
    shift: float
    guidance: float
    dense: int
    groups: dict[str, tuple[Setting, ...]]

    @property
    def settings(self) -> dict[str, float]:
        """What outputs depend on besides the method."""
        names = ("frames", "side", "upscale", "steps", "strength", "shift", "guidance", "dense")
        return {name: getattr(self, name) for name in names}


_HALF = {"block": "32"}
_RADIAL = {"near": "decay", "sink": "false", "decay_factor": "0.05"}

#: 7 x 16 x 16 tokens: blocks of 64 or 32 tokens, 28 or 56 of them.
_VIDEO = {
    "about a fifth of the pairs": (
        ("neighborhood", {"size": "3x0.5x0.5", "stride": "1x4x4"}),
        ("neighborhood", {"size": "allx0.5x0.375", "stride": "1x4x2"}),
        ("sliding_window", {"base": "4,4"}),
        ("clear", {"radius": "3"}),
        ("radial", _RADIAL),
        ("mixture_of_block", {"keep": "0.2"}),
        ("block_select", {"keep": "0.178"}),
        ("block_select", {"keep": "0.178"} | _HALF),
        ("block_select", {"keep": "0.178", "score": "sampled"} | _HALF),
        ("block_select", {"keep": "0.178", "score": "antidiagonal"} | _HALF),
        ("block_select", {"keep": "0.178", "score": "kmeans"} | _HALF),
        ("block_select", {"keep": "0.125", "tail": "16"} | _HALF),
        ("pyramid", {"mode": "quantile", "quantiles": "0.12,0.06,0.04,0.2"} | _HALF),
        ("block_select", {"preset": "asa"}),
    ),
    "about a tenth of the pairs": (
        ("neighborhood", {"size": "1x1.0x1.0"}),
        ("neighborhood", {"size": "3x0.3x0.3"}),
        ("mixture_of_block", {"keep": "0.1"}),
        ("block_select", {"keep": "0.1"}),
        ("block_select", {"keep": "0.1"} | _HALF),
        ("block_select", {"keep": "0.0714", "tail": "32"} | _HALF),
        ("block_select", {"keep": "0.0357", "tail": "16"} | _HALF),
        ("block_select", {"keep": "0.1", "tail": "16"} | _HALF),
        ("pyramid", {"mode": "quantile", "quantiles": "0.06,0.05,0.02,0.2"} | _HALF),
    ),
}

#: 7 x 32 x 32 tokens: 112 or 224 blocks.
_LARGE = {
    "about a fifth of the pairs": (
        ("neighborhood", {"size": "allx0.5x0.375", "stride": "1x4x2"}),
        ("sliding_window", {"base": "10,10"}),
        ("clear", {"radius": "7"}),
        ("radial", _RADIAL | {"block_size": "32", "thin_below": "128"}),
        ("mixture_of_block", {"keep": "0.2"}),
        ("block_select", {"keep": "0.178"}),
        ("block_select", {"keep": "0.178", "score": "antidiagonal"}),
        ("block_select", {"keep": "0.125", "tail": "16"}),
        ("pyramid", {"mode": "quantile", "quantiles": "0.12,0.06,0.04,0.2"}),
    ),
    "about a tenth of the pairs": (
        ("neighborhood", {"size": "3x0.3x0.3"}),
        ("sliding_window", {"base": "8,8"}),
        ("block_select", {"keep": "0.1"}),
        ("block_select", {"keep": "0.0714", "tail": "32"}),
    ),
}

#: 32 x 32 tokens and 40 of text, which stays dense: 7 % of the pairs.
_PICTURE = {
    "about a quarter of the pairs": (
        ("neighborhood", {"size": "1x0.25x0.25", "stride": "1x4x4"}),
        ("sliding_window", {"base": "6,6"}),
        ("clear", {"radius": "4"}),
        ("mixture_of_block", {"cycle": "0,1,0", "keep": "0.2"}),
        ("block_select", {"keep": "0.1875"}),
        ("block_select", {"keep": "0.1875"} | _HALF),
        ("block_select", {"keep": "0.1875", "score": "antidiagonal"} | _HALF),
        ("block_select", {"keep": "0.125", "tail": "16"} | _HALF),
        ("pyramid", {"mode": "quantile", "quantiles": "0.12,0.06,0.04,0.2"} | _HALF),
    ),
    "less": (
        ("sliding_window", {"base": "4,4"}),
        ("mixture_of_block", {"cycle": "0,1,0", "keep": "0.1"}),
        ("block_select", {"keep": "0.1"} | _HALF),
        ("block_select", {"keep": "0.0625", "tail": "32"} | _HALF),
        ("pyramid", {"mode": "quantile", "quantiles": "0.06,0.05,0.02,0.2"} | _HALF),
    ),
}

CASES = {
    "video-1792": Case("toy-video", 25, 128, 2, 20, 0.4, 4.0, 1.0, 2, _VIDEO),
    "video-7168": Case("toy-video", 25, 128, 4, 20, 0.2, 4.0, 1.0, 1, _LARGE),
    "picture-1064": Case("toy-dit", 1, 128, 2, 20, 0.4, 1.0, 1.0, 2, _PICTURE),
}

#: Statement on tails: (twice the density without a tail, the density without, the density with one), by case.
TAILS: dict[str, tuple[Setting, Setting, Setting]] = {
    "video-1792": (
        ("block_select", {"keep": "0.178"} | _HALF),
        ("block_select", {"keep": "0.1"} | _HALF),
        ("block_select", {"keep": "0.0714", "tail": "32"} | _HALF),
    ),
    "video-7168": (
        ("block_select", {"keep": "0.178"}),
        ("block_select", {"keep": "0.1"}),
        ("block_select", {"keep": "0.0714", "tail": "32"}),
    ),
    "picture-1064": (
        ("block_select", {"keep": "0.1875"} | _HALF),
        ("block_select", {"keep": "0.1"} | _HALF),
        ("block_select", {"keep": "0.0625", "tail": "32"} | _HALF),
    ),
}


def settings_text(setting: Setting) -> str:
    """The row's name: the method and what differs from its defaults."""
    from genkit.attention import registry

    return registry.build(setting[0], setting[1]).describe()
