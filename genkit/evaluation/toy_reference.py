"""How well clips follow a reference picture, by the judge: colour and shape of an object the prompt does not name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from genkit.attention.reference_masks import box_mask
from genkit.attention.reference_store import References
from genkit.evaluation.toy import Accuracy, ClipRequest, accuracy_of, generate_clips
from genkit.pipelines.reference_picture import record_pictures
from genkit.world.judge import judge_clip, score
from genkit.world.scene import Scene, Tracks, draw_scene, lay_out
from genkit.world.subject import actor_boxes, draw_subject_picture, subject_caption

# "reference": colour and nearest shape are both the reference's.
ATTRIBUTES = ("reference", "colour", "nearest shape", "shape", "size", "count", "background", "motion")


@dataclass(frozen=True)
class ReferenceCase:
    """A prompt that keeps silent about its object, and a picture of the object.

    Args:
        scene: what should be seen: motion and background of the prompt, colour, shape and size of the picture.
        prompt: the caption.
        picture: uint8 (H, W, 3), the object elsewhere on another background.
        tracks: one way to move; its boxes may be told.
    """

    scene: Scene
    prompt: str
    picture: np.ndarray
    tracks: Tracks


def draw_cases(split: str, count: int, request: ClipRequest, seed: int = 0, side: int = 96) -> list[ReferenceCase]:
    """Cases of one split, the same for the same seed.

    Args:
        split: ``train``, ``held_out_tuple`` or ``held_out_pair`` (colour and shape never shown together in training).
        count: how many.
        request: size of the clips.
        seed: of the draw.
        side: of the reference pictures in pixels.
    """
    rng = np.random.default_rng(seed)
    cases = []
    for _ in range(count):
        scene = draw_scene(rng, split, actors=1)
        tracks = lay_out(scene, request.num_frames, request.height, request.width, rng)
        cases.append(ReferenceCase(scene, subject_caption(scene), draw_subject_picture(scene, rng, side, side), tracks))
    return cases


def boxes_of(cases: Sequence[ReferenceCase], request: ClipRequest) -> torch.Tensor:
    """Boxes of the cases' own tracks, for ``References.set_boxes``: (cases, frames, height / 8, width / 8)."""
    height, width = request.height, request.width
    masks = [box_mask(actor_boxes(case.scene, case.tracks, height, width), height // 8, width // 8) for case in cases]
    return torch.stack(masks)


def generate_cases(
    pipeline: Any,
    cases: Sequence[ReferenceCase],
    request: ClipRequest,
    seed: int = 0,
    patch: Any = None,
    boxes: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[np.ndarray, float]:
    """Run a text-to-video pipeline over cases; clip ``i`` starts from the noise of seed ``seed + i``.

    Args:
        pipeline: a Wan pipeline.
        cases: what to make.
        request: size and sampling.
        seed: of the first clip.
        patch: handle of a patch with ``reference`` on the pipeline; None runs without the pictures.
        boxes: tell the patch where the object is.
        progress: called with (done, total).

    Returns:
        uint8 clips (B, F, H, W, 3) and the wall seconds spent in the pipeline.
    """
    found, seconds = [], 0.0
    for start in range(0, len(cases), request.batch):
        part = cases[start : start + request.batch]
        if patch is not None:
            pictures = np.stack([case.picture for case in part])
            record_pictures(patch, pipeline, pictures, slots=request.max_sequence_length)
            References.of(patch.cache).set_boxes(boxes_of(part, request) if boxes else None)
        clips, spent = generate_clips(pipeline, [case.prompt for case in part], request, seed + start)
        found.append(clips)
        seconds += spent
        if progress:
            progress(start + len(part), len(cases))
    return np.concatenate(found), seconds


def judge_cases(cases: Sequence[ReferenceCase], clips: np.ndarray) -> Accuracy:
    """Share of clips per attribute that show what prompt and picture ask for."""
    results = []
    for case, clip in zip(cases, clips, strict=True):
        result = score(case.scene, judge_clip(clip))
        results.append(result | {"reference": result["colour"] and result["nearest shape"]})
    return accuracy_of(results, ATTRIBUTES)
