"""Which part of a clip's length a model was trained for, and what is told of the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from genkit.errors import counted
from genkit.families.facts import History
from genkit.families.lookup import facts_of, records
from genkit.pipelines.kinds import ARGUMENTS, IMAGE

_SIDE = 512  # pixels of the frames in whose grid latent frames are counted


@dataclass(frozen=True)
class TrainedLength:
    """The longest clips that a model was trained on.

    Args:
        frames: of pixels. source: who tells.
    """

    frames: int
    source: str


def trained_length(model: Any) -> TrainedLength | None:
    """From the model's ``genkit.json``, the family's record, or the default of the pipeline's call, which is the length
    that the published weights are made for; None when nobody tells, or the pipeline goes on by itself without an end.

    Args:
        model: a :class:`genkit.pipelines.model.Model`.
    """
    if model.kind is IMAGE:
        return None
    told = model.sidecar.defaults.get("num_frames")
    if told is not None:
        return TrainedLength(int(told), "its genkit.json")
    facts = facts_of(model.class_name)
    streaming = None if facts is None else facts.streaming
    if isinstance(streaming, History):
        return None  # chunk after chunk, whatever the length
    if streaming is not None:
        return TrainedLength(streaming.frames, "its family's record")
    for name in ARGUMENTS["num_frames"]:
        default = getattr(model.accepted.get(name), "default", None)
        if isinstance(default, int) and not isinstance(default, bool) and default > 1:
            return TrainedLength(default, f"the default of {model.class_name}")
    return None


def length_notes(model: Any, frames: int | None, attention: bool, loras: bool) -> list[str]:
    """A line on a clip that is longer than those of training; none on others.

    Args:
        model: as of :func:`trained_length`. frames: of pixels, of the clip.
        attention: whether a method of attention is asked for. loras: whether LoRAs are.
    """
    trained = trained_length(model)
    if trained is None or frames is None or frames <= trained.frames:
        return []
    grids = [model.grid(count, _SIDE, _SIDE) for count in (trained.frames, frames)]
    known, whole = (None if grid is None else grid[0] for grid in grids)
    latent = f" ({known} of {counted(whole, 'latent frame')})" if known and whole else ""
    line = (
        f"--num-frames {frames}: {model.name} was trained on clips of up to "
        f"{counted(trained.frames, 'frame')}{latent}, says "
        f"{trained.source}"
    )
    if loras:
        line += "; what is beyond is the LoRA's, if it was trained for the length, or else guessed"
    else:
        line += "; what is beyond is guessed"
    if not attention and not loras and known:
        line += f"; try {_advice(model, known)}"
    return [line]


def _advice(model: Any, known: int) -> str:
    """Options for a long clip: what did best in ``benchmarks/results/long_clips.md`` and the model can do."""
    name = model.config("transformer").get("_class_name")
    shaped = any(family.time_positions == "shape" and name in family.classes for family in records())
    if shaped and known >= 4:
        return f"--attention long_heads --attention-args trained={known},positions=reindexed"
    return f"--attention anchor_window --attention-args trained={known},window={max(1, known // 7)}"
