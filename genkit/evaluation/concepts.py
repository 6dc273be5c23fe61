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
from genkit.world.concepts import CONCEPTS, draw_concept_clip, draw_concept_picture, shows_concept
from genkit.world.judge import judge_clip, score
from genkit.world.picture_judge import judge_picture, score_picture
from genkit.world.picture_scene import Picture
from genkit.world.scene import Scene

CLIP, SOUND, PICTURE = "clip", "sound", "picture"
KINDS = (CLIP, SOUND, PICTURE)
#: Attributes of prompts without the concept that are compared before and after.
KEPT: dict[str, tuple[str, ...]] = {
    CLIP: ("background", "count", "colour", "nearest shape", "size", "motion"),
    SOUND: ("background", "count", "colour", "nearest shape", "size", "motion"),
    PICTURE: ("background", "count", "colour", "shape", "texture", "size"),
}
#: Attributes of prompts with a new shape: what a triangle's place is held for is no matter of the judge of shapes.
_BESIDE = ("background", "count", "colour", "size", "motion")


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
        sizes = ("medium", "big") if shown else ("small", "medium", "big")
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
        if isinstance(scene, Picture):
            told = score_picture(scene, judge_picture(pixels[0]))
            names = ("background",) if shown else KEPT[PICTURE]
        else:
            told = score(scene, judge_clip(pixels))
            names = _BESIDE if shown else KEPT[kind]
        result.append(right | {name: told[name] for name in names if name in told})
    return result


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
