"""How well clips and pictures follow a reference picture, by the judge: an object that the prompt does not name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from genkit.attention.reference.store import References
from genkit.evaluation.toy import Accuracy, ClipRequest, accuracy_of, generate_clips
from genkit.evaluation.toy_picture import PictureRequest, generate_pictures
from genkit.pipelines.tasks.references.record import record_pictures
from genkit.world.judge import judge_clip, score
from genkit.world.picture_judge import judge_picture, score_picture
from genkit.world.picture_scene import Picture, draw_picture
from genkit.world.picture_subject import draw_picture_subject, picture_subject_caption
from genkit.world.scene import Scene, Tracks, draw_scene, lay_out
from genkit.world.subject import actor_boxes, draw_subject_picture, subject_caption

# "reference": colour and nearest shape are both the reference's.
CLIP_ATTRIBUTES = ("reference", "colour", "nearest shape", "shape", "size", "count", "background", "motion")
# "reference": colour and shape are both the reference's.
PICTURE_ATTRIBUTES = ("reference", "colour", "shape", "texture", "size", "count", "background", "place")
_SIDES = {ClipRequest: 96, PictureRequest: 64}


@dataclass(frozen=True)
class ReferenceCase:
    """A prompt that keeps silent about its object, and a picture of the object.

    Args:
        scene: what should be seen: background, motion and place of the prompt; colour, shape, size and texture of the
            picture.
        prompt: the caption.
        picture: uint8 (H, W, 3), the object elsewhere on another background.
        tracks: one way to move, or one place; its boxes may be told.
    """

    scene: Scene | Picture
    prompt: str
    picture: np.ndarray
    tracks: Tracks


def draw_cases(
    split: str, count: int, request: ClipRequest | PictureRequest, seed: int = 0, side: int | None = None
) -> list[ReferenceCase]:
    """Cases of one split, the same for the same seed.

    Args:
        split: ``train``, ``held_out_tuple`` or ``held_out_pair`` (colour and shape never shown together in training).
        count: how many.
        request: size of the clips or pictures, and which of both.
        seed: of the draw.
        side: of the reference pictures in pixels; by default as in training, 96 for clips and 64 for pictures.
    """
    rng = np.random.default_rng(seed)
    draw = _draw_picture if isinstance(request, PictureRequest) else _draw_clip
    return [draw(rng, split, request, side or _SIDES[type(request)]) for _ in range(count)]


def _draw_clip(rng: np.random.Generator, split: str, request: ClipRequest, side: int) -> ReferenceCase:
    scene = draw_scene(rng, split, actors=1)
    tracks = lay_out(scene, request.num_frames, request.height, request.width, rng)
    return ReferenceCase(scene, subject_caption(scene), draw_subject_picture(scene, rng, side, side), tracks)


def _draw_picture(rng: np.random.Generator, split: str, request: PictureRequest, side: int) -> ReferenceCase:
    scene, placement = draw_picture(rng, request.height, request.width, split, actors=1)
    picture = draw_picture_subject(scene, rng, side, side)
    return ReferenceCase(scene, picture_subject_caption(scene), picture, placement.tracks)


def generate_cases(
    pipeline: Any,
    cases: Sequence[ReferenceCase],
    request: ClipRequest | PictureRequest,
    seed: int = 0,
    patch: Any = None,
    boxes: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[np.ndarray, float]:
    """Run a pipeline over cases; sample ``i`` starts from the noise of seed ``seed + i``.

    Args:
        pipeline: Wan for a ``ClipRequest``, Stable Diffusion for a ``PictureRequest``.
        cases: what to make.
        request: size and sampling.
        seed: of the first sample.
        patch: handle of a patch with ``reference`` on the pipeline; None runs without the pictures.
        boxes: tell the patch where the object is.
        progress: called with (done, total).

    Returns:
        uint8 clips (B, F, H, W, 3) or pictures (B, H, W, 3), and the wall seconds spent in the pipeline.
    """
    generate = generate_pictures if isinstance(request, PictureRequest) else generate_clips
    slots = getattr(request, "max_sequence_length", 64)
    found, seconds = [], 0.0
    for start in range(0, len(cases), request.batch):
        part = cases[start : start + request.batch]
        if patch is not None:
            record_pictures(patch, pipeline, np.stack([case.picture for case in part]), slots=slots)
            area = (request.height, request.width)
            rows = [actor_boxes(case.scene, case.tracks, *area) for case in part] if boxes else None
            References.of(patch.cache).follow(rows, *area)
        samples, spent = generate(pipeline, [case.prompt for case in part], request, seed + start)
        found.append(samples)
        seconds += spent
        if progress:
            progress(start + len(part), len(cases))
    return np.concatenate(found), seconds


def judge_cases(cases: Sequence[ReferenceCase], samples: np.ndarray) -> Accuracy:
    """Share of clips or pictures per attribute that show what prompt and picture ask for."""
    results = []
    for case, sample in zip(cases, samples, strict=True):
        if isinstance(case.scene, Picture):
            result, shape = score_picture(case.scene, judge_picture(sample)), "shape"
        else:
            result, shape = score(case.scene, judge_clip(sample)), "nearest shape"
        results.append(result | {"reference": result["colour"] and result[shape]})
    return accuracy_of(results, attributes_of(cases[0]))


def attributes_of(case: ReferenceCase) -> tuple[str, ...]:
    """What a case is judged by."""
    return PICTURE_ATTRIBUTES if isinstance(case.scene, Picture) else CLIP_ATTRIBUTES
