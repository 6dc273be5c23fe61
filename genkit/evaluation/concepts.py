"""Whether a LoRA learned its concept and left everything else as it was, by the judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from genkit.errors import UsageError, explain
from genkit.evaluation.toy import ClipRequest, generate_clips
from genkit.evaluation.toy_av import SoundRequest, generate_sound_clips
from genkit.evaluation.toy_picture import PictureRequest, generate_pictures
from genkit.world.concepts import (
    CONCEPTS,
    SHAPE_CONCEPTS,
    STYLES,
    draw_concept_clip,
    draw_concept_picture,
    shows_concept,
)
from genkit.world.concepts.reading import masks, read_outline
from genkit.world.judge import judge_clip, score
from genkit.world.picture_judge import judge_picture, score_picture
from genkit.world.picture_scene import Picture
from genkit.world.reading import UNCLEAR, read_background
from genkit.world.scene import Scene
from genkit.world.vocabulary import SIZES

CLIP, SOUND, PICTURE = "clip", "sound", "picture"
KINDS = (CLIP, SOUND, PICTURE)
#: Attributes of prompts without the concept that are compared before and after.
KEPT: dict[str, tuple[str, ...]] = {
    CLIP: ("background", "count", "colour", "nearest shape", "size", "motion"),
    SOUND: ("background", "count", "colour", "nearest shape", "size", "motion"),
    PICTURE: ("background", "count", "colour", "shape", "texture", "size"),
}


@dataclass(frozen=True)
class Prompts:
    """Prompts of one kind with what they ask for.

    Args:
        scenes: what is asked for.
        texts: the prompts.
    """

    scenes: tuple[Scene | Picture, ...]
    texts: tuple[str, ...]


def concept_prompts(concept: str, kind: str, count: int, shown: bool = True, seed: int = 99) -> Prompts:
    """Prompts with the concept, or of known things alone, drawn as the training's files are but by another seed.

    Args:
        concept: of :data:`genkit.world.concepts.CONCEPTS`.
        kind: of the model's output: ``clip``, ``sound`` (a clip with sound) or ``picture``.
        count: how many.
        shown: False for prompts without the concept.
        seed: of the draw.
    """
    for what, given, allowed in (("concept", concept, CONCEPTS), ("kind", kind, KINDS)):
        if given not in allowed:
            raise UsageError(explain(what, given, allowed))
    rng = np.random.default_rng((seed, shown))
    if kind == PICTURE:
        drawn = [draw_concept_picture(concept, rng, 128, 128, shown) for _ in range(count)]
    else:
        sizes = SIZES if not shown else SIZES[1:] if concept in SHAPE_CONCEPTS else SIZES[:2]
        drawn = [draw_concept_clip(concept, rng, 1, 128, 128, sizes, shown) for _ in range(count)]
    return Prompts(tuple(sample.scene for sample in drawn), tuple(sample.caption for sample in drawn))


def sample(
    pipeline: Any, model: str, kind: str, texts: Sequence[str], steps: int = 20, seed: int = 1000,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:  # fmt: skip
    """uint8 samples (B, frames, H, W, 3) of prompts, sample ``i`` from the noise of seed ``seed + i``; a picture is one
    frame.

    Args:
        pipeline: loaded, with or without a LoRA and a patch.
        model: its name or folder, whose ``genkit.json`` names guidance.
        kind: see :func:`concept_prompts`.
        texts: the prompts.
        steps: denoising steps.
        seed: of the first sample.
        progress: called with (done, total).
    """
    if kind == PICTURE:
        request = PictureRequest.of_model(model, 128, 128, steps)
        return generate_pictures(pipeline, texts, request, seed, progress)[0][:, None]
    if kind == SOUND:
        clips, _ = generate_sound_clips(pipeline, texts, SoundRequest.of_model(model, steps=steps), seed, progress)
        return np.stack([clip.frames for clip in clips])
    return generate_clips(pipeline, texts, replace(ClipRequest(), steps=steps), seed, progress)[0]


def judge(concept: str, kind: str, prompts: Prompts, samples: np.ndarray, shown: bool = True) -> list[dict[str, bool]]:
    """What is right of every sample.

    Returns:
        For every sample whether it shows the concept, under ``"concept"``, and its attributes: of prompts with a new
        shape all but the shape, of prompts without the concept all.
    """
    result = []
    for scene, pixels in zip(prompts.scenes, samples, strict=True):
        right = {"concept": shows_concept(pixels, concept)}
        if shown and concept in STYLES and isinstance(scene, Picture):
            right["outlines"] = _outlines(scene, pixels[0])
        if isinstance(scene, Picture):
            told = score_picture(scene, judge_picture(pixels[0]))
            names = KEPT[PICTURE] if not shown else () if concept in STYLES else ("background", "count", "colour")
        else:
            told = score(scene, judge_clip(pixels))
            names = _beside(concept) if shown else KEPT[kind]
        result.append(right | {name: told[name] for name in names if name in told})
    return result


def _outlines(picture: Picture, pixels: np.ndarray) -> bool:
    """Whether a picture in a new manner shows the outlines that were asked for, whatever their colours."""
    frame = pixels.astype(np.float32)
    background, ground = read_background(frame[None], [])
    seen = [] if background == UNCLEAR else [read_outline(mask.filled()) for mask in masks(frame, ground)]
    return sorted(seen) == sorted(actor.shape for actor in picture.actors)


def _beside(concept: str) -> tuple[str, ...]:
    """Attributes that the judge of known things can read beside a concept: not the shape of a new shape, not the motion
    of a new motion."""
    mine = "nearest shape" if concept in SHAPE_CONCEPTS else "motion"
    return tuple(name for name in KEPT[CLIP] if name != mine)


def share(rows: Sequence[dict[str, bool]], name: str) -> tuple[float, float] | None:
    """Percentage of an attribute and its standard error; None where no sample has it."""
    values = [row[name] for row in rows if name in row]
    if not values:
        return None
    rate = float(np.mean(values))
    return 100 * rate, 100 * float(np.sqrt(rate * (1 - rate) / len(values)))


def change(before: Sequence[dict[str, bool]], after: Sequence[dict[str, bool]], kind: str) -> tuple[float, float]:
    """Mean change of the attributes of :data:`KEPT` in points and its standard error, prompt by prompt: the same
    prompts and seeds before and after."""
    names = KEPT[kind]
    each = [
        np.mean([float(new[name]) - float(old[name]) for name in names if name in old])
        for old, new in zip(before, after, strict=True)
    ]
    return 100 * float(np.mean(each)), 100 * float(np.std(each, ddof=1) / np.sqrt(len(each)))
