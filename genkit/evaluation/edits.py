"""How well edits succeed, by the judge of the world: cases of one kind, and their results in a few numbers."""

from __future__ import annotations

import numpy as np

from genkit.errors import UsageError, explain
from genkit.world.edits import (
    CLIP_KINDS,
    FILL_KINDS,
    PICTURE_KINDS,
    ClipEdit,
    Edit,
    Fill,
    PictureEdit,
    StylePair,
    SubjectSet,
    draw_clip_edit,
    draw_fill,
    draw_picture_edit,
    draw_style_pair,
    draw_subject_set,
)
from genkit.world.judge import judge_clip, score
from genkit.world.picture_judge import judge_picture, score_picture
from genkit.world.picture_scene import Picture, picture_split
from genkit.world.scene import Scene, split_of

#: Seed of the cases: no training, validation or other benchmark draws from it.
SEED = 19000
#: Decibels from which pixels count as kept.
KEPT_DB = 28.0


def draw_edits(kind: str, count: int, clips: bool = False, seed: int = SEED, split: str = "any") -> list[Edit]:
    """Cases of one kind, the same for the same seed; the first of a longer list are those of a shorter one.

    Args:
        kind: of :data:`genkit.world.edits.PICTURE_KINDS`, or of clips :data:`genkit.world.edits.CLIP_KINDS`.
        count: how many.
        clips: edits of clips.
        seed: of the draw.
        split: of the targets.
    """
    kinds = CLIP_KINDS if clips else PICTURE_KINDS
    if kind not in kinds:
        raise UsageError(explain("kind of edit", kind, kinds))
    rng = np.random.default_rng((seed, kinds.index(kind), clips))
    draw = draw_clip_edit if clips else draw_picture_edit
    return [draw(kind, rng, split=split) for _ in range(count)]


def draw_fills(kind: str, count: int, seed: int = SEED, split: str = "any") -> list[Fill]:
    """Parts to be made anew, the same for the same seed.

    Args:
        kind: of :data:`genkit.world.edits.FILL_KINDS`.
        count: how many.
        seed: of the draw.
        split: of the targets.
    """
    if kind not in FILL_KINDS:
        raise UsageError(explain("kind of repainting", kind, FILL_KINDS))
    rng = np.random.default_rng((seed, 10 + FILL_KINDS.index(kind)))
    return [draw_fill(kind, rng, split=split) for _ in range(count)]


def draw_style_pairs(count: int, seed: int = SEED, side: int = 128) -> list[StylePair]:
    """Contents and styles, the same for the same seed and size.

    Args:
        count: how many pairs.
        seed: of the draw.
        side: height and width of the pictures in pixels.
    """
    rng = np.random.default_rng((seed, 20))
    return [draw_style_pair(rng, side, side) for _ in range(count)]


def draw_subject_sets(count: int, subjects: int = 1, seed: int = SEED) -> list[SubjectSet]:
    """Prompts of the same subjects, the same for the same seed.

    Args:
        count: how many sets.
        subjects: 1 or 2 in every picture.
        seed: of the draw.
    """
    rng = np.random.default_rng((seed, 30 + subjects))
    return [draw_subject_set(rng, subjects) for _ in range(count)]


def seen_in_training(scene: Picture | Scene) -> bool:
    """Whether training shows such things: no held-out pair of colour and shape, no held-out combination."""
    return (picture_split(scene) if isinstance(scene, Picture) else split_of(scene)) == "train"


def judge_sample(case: Edit, sample: np.ndarray) -> dict[str, bool]:
    """Whether a sample of the target prompt alone shows all that it says: the bound that the model sets to editing.

    Returns:
        ``right``, and of clips ``roughly right``, with the shape by forced choice.
    """
    if isinstance(case, PictureEdit):
        return {"right": score_picture(case.after, judge_picture(sample))["all"]}
    assert isinstance(case, ClipEdit)
    told = score(case.after, judge_clip(sample))
    rough = told.pop("nearest shape")
    right = told.pop("all")
    return {"right": right, "roughly right": all((told | {"shape": rough}).values())}
