"""MiniMax-H3: joint attention of text, references, sound and video in one packed sequence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genkit.errors import UnsupportedError
from genkit.families.base import MAIN, TEXT, Family, SiteRule, Streams, Untold, grid_with
from genkit.families.facts import PipelineFacts


def _streams(model: Any, args: Mapping[str, Any]) -> Streams:
    names = ("position_ids", "timestep_indices", "video_indices", "audio_indices", "text_indices")
    missing = [name for name in names if args.get(name) is None]
    if missing:
        raise UnsupportedError(
            f"MiniMax-H3: the token grid follows from {missing[0]}, which this call of the model lacks"
        )
    positions, levels, video, audio, text = (args[name].detach().cpu() for name in names)
    total = len(positions)
    kinds = positions.new_zeros(total)
    kinds[audio], kinds[text] = 1, 2
    # The video that is made ends the sequence: rows of video with one noise level.
    target = _tail((kinds == 0) & (levels == levels[-1]))
    start = total - target
    grid = _grid_of(positions[start:])
    leading = int((kinds != 2).nonzero()[0])
    if grid is None or len(video) + len(audio) + len(text) != total or leading != len(text):
        return {MAIN: Untold(f"the last {target} of its {total} tokens are not a grid in raster order after the text")}
    sound = _tail(kinds[:start] == 1)
    before = ((TEXT, leading), ("reference", start - sound - leading), ("audio", sound))
    return {MAIN: grid_with(grid, before=before)}


def _tail(flags: Any) -> int:
    """How many flags at the end are set."""
    unset = (~flags).nonzero()
    return len(flags) - (int(unset[-1]) + 1 if len(unset) else 0)


def _grid_of(positions: Any) -> tuple[int, int, int] | None:
    """Sizes of a grid from the (t, h, w) positions of its tokens in raster order; None when they are none."""
    if not len(positions):
        return None
    w = _run(positions[:, 2], positions[:, :2])
    h = _run(positions[::w, 1], positions[::w, :1])
    t = len(positions) // (h * w)
    if t * h * w != len(positions):
        return None
    box = positions.view(t, h, w, 3)
    same = (box[..., 2] == box[:1, :1, :, 2]) & (box[..., 1] == box[:1, :, :1, 1]) & (box[..., 0] == box[:, :1, :1, 0])
    return (t, h, w) if bool(same.all()) else None


def _run(inner: Any, outer: Any) -> int:
    """How many tokens come before the outer positions change."""
    changed = (outer != outer[:1]).any(dim=1).nonzero()
    return int(changed[0]) if len(changed) else len(inner)


FAMILY = Family(
    name="MiniMax-H3",
    classes=("MiniMaxH3Transformer3DModel",),
    pipelines=("MiniMaxH3ModularPipeline",),
    rules=(SiteRule(r"transformer_blocks\.\d+\.attn", "joint"),),
    streams=_streams,
    reads=("position_ids", "timestep_indices", "video_indices", "audio_indices", "text_indices"),
    sample="hidden_states",
    order=("transformer_blocks",),
    grid="position_ids of the last video rows; before them text, 'reference' and 'audio'",
    text="first",
    video=True,
    facts=PipelineFacts(
        pattern="MiniMaxH3.*",
        fps="24",
        lora_targets=r"transformer_blocks\.\d+\.attn\.(?:to_[qkv]|to_out\.0)",
    ),
    notes="Positions are read from the device at every call. The text refiner keeps its own attention.",
)
