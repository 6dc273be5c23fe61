"""What a clip of several prompts takes beside the common settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from genkit.errors import UsageError
from genkit.pipelines.request import NEVER, WHEN_GIVEN, Settings, flag, option
from genkit.pipelines.text import as_texts, shares
from genkit.schema import Rule

GROUP = "Several prompts"
#: Settings of tiles, and all that mean nothing without shots.
TILES = (
    "tile_overlap", "transitions", "sharing", "sharing_words", "sharing_layers", "sharing_steps", "single_pass"
)  # fmt: skip
HOW = ("shots_by", "tile_frames", "border_frames", *TILES)
#: How shots become one clip: each from the last frame before, or as blended tiles of one clip.
CHAIN, DITCTRL = "chain", "ditctrl"


def as_shots(value: Any, what: str) -> Any:
    """Shots as texts: a file of settings may hold them as ``prompt`` and ``frames``, as a storyboard does."""
    from genkit.pipelines.tasks.storyboard.shots import _shot

    if isinstance(value, str):
        return (value,)
    if not isinstance(value, (list, tuple)):
        return value
    return tuple(
        _shot(each, f"shot {number + 1} of {what}").text if isinstance(each, Mapping) else each
        for number, each in enumerate(value)
    )


@dataclass(frozen=True)
class StoryboardSettings(Settings):
    """The shots, and how their clip is made."""

    shots: tuple[str, ...] = option(
        (), "Prompt of a shot, with @25 for its frames; several make one clip. The same as --prompt several times. "
        "Repeatable.", group=GROUP, parse=as_shots, stored=WHEN_GIVEN, prose=True, repeats="prompt",
    )  # fmt: skip
    storyboard: str | None = option(
        None, "YAML file with shots: prompt and frames of each; one clip.", group=GROUP,
        stored=NEVER,
    )  # fmt: skip
    shots_by: str | None = option(
        None, "How shots become one clip: chain (each from the last frame of the one before, with models that take a "
        "first frame) or ditctrl (tiles that are blended and share keys). chain where the model has it, when left out.",
        group=GROUP, rule=Rule(choices=(CHAIN, DITCTRL)), stored=WHEN_GIVEN,
    )  # fmt: skip
    tile_frames: int | None = option(
        None, "Frames that the model makes at once; its own number when left out.", group=GROUP,
        rule=Rule(low=1, high=10_000), stored=WHEN_GIVEN,
    )  # fmt: skip
    border_frames: int = option(
        1, "For chain: frames that a shot is given of the one before. With more than 1 its motion is carried over too.",
        group=GROUP, rule=Rule(low=1, high=10_000), stored=WHEN_GIVEN,
    )  # fmt: skip
    tile_overlap: int | None = option(
        None, "Latent frames that neighbouring tiles share; 6 of 13 when left out.", group=GROUP,
        rule=Rule(low=0, high=10_000), stored=WHEN_GIVEN,
    )  # fmt: skip
    transitions: int = option(
        1, "Tiles between two prompts, with text of both.", group=GROUP, rule=Rule(low=0, high=10), stored=WHEN_GIVEN
    )
    sharing: str = option(
        "kv", "What a tile reads of the one before: kv (its keys and values), mask (what the words name reads what "
        "they name there), none.", group=GROUP, rule=Rule(choices=("kv", "mask", "none")), stored=WHEN_GIVEN,
    )  # fmt: skip
    sharing_words: tuple[str, ...] = option(
        (), "For mask: what stays, in words of every prompt. Repeatable.", group=GROUP, parse=as_texts,
        stored=WHEN_GIVEN, prose=True,
    )  # fmt: skip
    sharing_layers: str | None = option(
        None, "Layers that share, such as 25:30; the last sixth when left out.", group=GROUP, stored=WHEN_GIVEN
    )
    sharing_steps: str = option("0.04:0.5", "Share of the steps that share.", group=GROUP, stored=WHEN_GIVEN)
    single_pass: bool = option(
        False, "Ask for every tile once, all in one call: faster, more memory.", group=GROUP, one_way=True,
        stored=WHEN_GIVEN,
    )  # fmt: skip

    def check(self) -> None:
        super().check()
        if self.shots and self.storyboard is not None:
            raise UsageError("--shots and --storyboard both say what the shots are; leave one out")
        idle = [flag(name) for name in HOW if self.given(name)]
        if getattr(self, "source_video", None) is not None:  # a clip is continued by windows too
            idle = [name for name in idle if name != flag("tile_frames")]
        if idle and not self.shots and self.storyboard is None:
            others = ", or --source-video FILE, a clip to continue" if idle[0] == flag("tile_frames") else ""
            raise UsageError(
                f"{idle[0]} goes with several prompts: give --prompt several times, or --storyboard FILE{others}"
            )
        tiles = next((name for name in TILES if self.given(name)), None)
        if tiles is not None and self.shots_by == CHAIN:
            raise UsageError(f"{flag(tiles)} belongs to --shots-by {DITCTRL}, which blends tiles; leave it out")
        if self.given("border_frames") and (tiles is not None or self.shots_by == DITCTRL):
            raise UsageError(f"--border-frames belongs to --shots-by {CHAIN}; tiles have --tile-overlap")
        shares(self.sharing_steps, "--sharing-steps")
        if (self.sharing == "mask") != bool(self.sharing_words):
            raise UsageError('--sharing mask and --sharing-words "red circle" go together: the words say what stays')

    @classmethod
    def merge(cls, before: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
        """A later prompt replaces earlier shots with all that belongs to them, later shots an earlier prompt."""
        dropped: tuple[str, ...]
        if given.get("shots") or given.get("storyboard"):
            dropped = ("prompt", "shots", "storyboard")
        elif given.get("prompt") is not None and before.get("prompt") is None:
            dropped = ("shots", "storyboard", "num_frames", *HOW) if before.get("shots") else ("storyboard",)
        else:
            return super().merge(before, given)
        return super().merge({name: value for name, value in before.items() if name not in dropped}, given)

    def to_dict(self) -> dict[str, Any]:
        """As every settings do; of shots the prompt is not one of its own."""
        values = super().to_dict()
        if self.shots:
            values.pop("prompt", None)
        return values


def tiles_asked(settings: StoryboardSettings) -> bool:
    """Whether a setting is given that only tiles have."""
    return any(map(settings.given, TILES))


def asked_by(settings: StoryboardSettings) -> str | None:
    """The flag by which settings ask for several shots."""
    if settings.storyboard is not None:
        return "--storyboard"
    return "a row of prompts (--prompt several times, --storyboard or --shots)" if settings.shots else None
