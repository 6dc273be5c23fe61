"""What stands on the leaderboard: models at their sizes, methods with their settings, schedules."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.methods.cases import CASES, Case, Setting, settings_text


@dataclass(frozen=True)
class Entry:
    """A row: a method with its settings and where it begins.

    Args:
        method: name and settings, as texts.
        steps: of a schedule, such as ``2:``.
    """

    method: Setting
    steps: str

    @property
    def title(self) -> str:
        """Settings and steps, as a row is kept under."""
        return f"{settings_text(self.method)} steps {self.steps}"


@dataclass(frozen=True)
class Board:
    """A model at a size and what competes on it.

    Args:
        title: for readers.
        case: how outputs are made.
        methods: each stands in the table once behind the case's dense steps.
        everywhere: and once from the first step on; left out of clips, whose rows take the longest.
    """

    title: str
    case: Case
    methods: tuple[Setting, ...]
    everywhere: bool = True

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All rows besides dense attention's."""
        begins = (*(("0:",) if self.everywhere else ()), f"{self.case.dense}:")
        return tuple(Entry(method, steps) for method in self.methods for steps in begins)


_HALF = {"block": "32"}
_CLEAR = ("clear", {"radius": "4"})
_AGENT = ("agent", {})
_MERGED = ("agent", {"agents": "merge"})
_PICTURE: tuple[Setting, ...] = (
    ("neighborhood", {"size": "1x0.5x0.5", "stride": "1x4x4"}),
    ("neighborhood", {"size": "1x0.25x0.25", "stride": "1x4x4"}),
    ("sliding_window", {"base": "6,6"}),
    ("sliding_window", {"base": "4,4"}),
    _CLEAR,
    ("mixture_of_block", {"cycle": "0,1,0", "keep": "0.2"}),
    ("mixture_of_block", {"cycle": "0,1,0", "keep": "0.1"}),
    ("block_select", {"keep": "0.1875"} | _HALF),
    ("block_select", {"keep": "0.1"} | _HALF),
    ("block_select", {"keep": "0.1875", "score": "antidiagonal"} | _HALF),
    ("block_select", {"keep": "0.125", "tail": "16"} | _HALF),
    ("pyramid", {"mode": "quantile", "quantiles": "0.12,0.06,0.04,0.2"} | _HALF),
    ("pyramid", {"mode": "quantile", "quantiles": "0.06,0.05,0.02,0.2"} | _HALF),
    _AGENT,
)
_VIDEO: tuple[Setting, ...] = (
    ("neighborhood", {"size": "allx0.5x0.5", "stride": "1x4x4"}),
    ("sliding_window", {"base": "4,4"}),
    ("clear", {"radius": "3"}),
    ("radial", {"near": "decay", "sink": "false", "decay_factor": "0.05"}),
    ("mixture_of_block", {"keep": "0.2"}),
    ("block_select", {"keep": "0.1"} | _HALF),
    ("block_select", {"keep": "0.0714", "tail": "32"} | _HALF),
    ("pyramid", {"mode": "quantile", "quantiles": "0.12,0.06,0.04,0.2"} | _HALF),
)

BOARDS = {
    "toy-dit": Board("toy-dit, pictures of 256x256", CASES["picture-1064"], _PICTURE),
    "toy-image": Board(
        "toy-image (a UNet), pictures of 256x256",
        Case("toy-image", 1, 128, 2, 20, 0.4, 1.0, 1.0, 2, {}),
        # What chooses blocks finds too few of them in the inner layers of a UNet.
        (*(each for each in _PICTURE if each[0] in ("neighborhood", "sliding_window", "clear", "agent")), _MERGED),
    ),
    "toy-video": Board("toy-video, clips of 25x256x256", CASES["video-1792"], _VIDEO, False),
}
