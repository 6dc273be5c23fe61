"""How well clips follow a track of boxes, by the judge: overlap, distance, and whether the object is still itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from genkit.attention.motion_boxes import BoxTrack
from genkit.attention.reference.store import References
from genkit.evaluation.toy import ClipRequest, generate_clips
from genkit.pipelines.tasks.references.record import record_pictures
from genkit.world.caption import caption
from genkit.world.judge import judge_clip, match_actors, score
from genkit.world.scene import Scene, Tracks, draw_scene
from genkit.world.subject import actor_boxes, draw_subject_picture, subject_caption
from genkit.world.track import ARC, KEYS, box_overlap, direction_of, draw_track, with_motion

#: Whose shares are told beside overlap and distance; "object": colour and nearest shape are both the asked ones.
ATTRIBUTES = ("object", "colour", "nearest shape", "shape", "background", "count")
#: Side in pixels of a subject's picture.
SIDE = 96


@dataclass(frozen=True)
class BoxCase:
    """A prompt with a track.

    Args:
        scene: what should be seen; its motion is the direction of the track, as the prompt says it.
        prompt: the caption, with the object and that direction.
        silent: the caption without the object, for runs with a subject's picture.
        picture: uint8 (H, W, 3), the object elsewhere on another background.
        tracks: what the world would draw.
        boxes: (frames, 4) of the object, as shares of the canvas.
        kind: of the path: ``"keys"`` as in training, ``"arc"`` never trained.
    """

    scene: Scene
    prompt: str
    silent: str
    picture: np.ndarray
    tracks: Tracks
    boxes: np.ndarray
    kind: str


@dataclass(frozen=True)
class BoxScore:
    """What the judge says of one clip.

    Args:
        overlap: intersection over union of the object's box and the asked one, the mean over frames; 0 in frames
            without an object.
        distance: between the middles of both boxes as a share of the canvas' diagonal, over the frames with an object;
            NaN without any.
        right: attribute -> whether it is the asked one.
    """

    overlap: float
    distance: float
    right: dict[str, bool]


def draw_box_cases(split: str, count: int, request: ClipRequest, seed: int = 0) -> list[BoxCase]:
    """Cases of one split, the same for the same seed; every other path is an arc.

    Args:
        split: ``train``, ``held_out_tuple`` or ``held_out_pair``, of colours and shapes; tracks are new in all.
        count: how many. request: size of the clips. seed: of the draw.
    """
    rng = np.random.default_rng(seed)
    area = (request.num_frames, request.height, request.width)
    found = []
    for number in range(count):
        kind = ARC if number % 2 else KEYS
        still = draw_scene(rng, split, actors=1, moving=False)
        tracks = draw_track(still, *area, rng, kind)
        boxes = np.array(actor_boxes(still, tracks, *area[1:]))
        scene = with_motion(still, direction_of(tracks))
        picture = draw_subject_picture(still, rng, SIDE, SIDE)
        found.append(BoxCase(scene, caption(scene), subject_caption(scene), picture, tracks, boxes, kind))
    return found


def generate_box_cases(
    pipeline: Any,
    cases: Sequence[BoxCase],
    request: ClipRequest,
    seed: int = 0,
    patch: Any = None,
    boxes: bool = True,
    subject: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[np.ndarray, float]:
    """Run a pipeline over cases; clip ``i`` starts from the noise of seed ``seed + i``.

    Args:
        pipeline: a Wan pipeline.
        cases: what to make. request: size and sampling.
        patch: handle of a patch with ``motion_boxes``, ``reference`` or both; None runs without boxes.
        boxes: tell the patch the boxes.
        subject: show the pictures to the patch's ``reference``, with prompts that keep silent about the object.
        progress: called with (done, total).

    Returns:
        uint8 clips (B, F, H, W, 3), and the wall seconds spent in the pipeline.
    """
    found, seconds = [], 0.0
    for start in range(0, len(cases), request.batch):
        part = cases[start : start + request.batch]
        if patch is not None:
            rows = torch.tensor(np.stack([case.boxes for case in part])) if boxes else None
            BoxTrack.of(patch.cache).set(rows)
            if subject:
                record_pictures(patch, pipeline, np.stack([case.picture for case in part]))
                told = None if rows is None else rows.tolist()
                References.of(patch.cache).follow(told, request.height, request.width)
        prompts = [case.silent if subject else case.prompt for case in part]
        clips, spent = generate_clips(pipeline, prompts, request, seed + start)
        found.append(clips)
        seconds += spent
        if progress:
            progress(start + len(part), len(cases))
    return np.concatenate(found), seconds


def judge_box_cases(cases: Sequence[BoxCase], clips: np.ndarray) -> list[BoxScore]:
    """The judge's word on every clip."""
    return [judge_boxes(case, clip) for case, clip in zip(cases, clips, strict=True)]


def judge_boxes(case: BoxCase, clip: np.ndarray) -> BoxScore:
    """The judge's word on one clip: the object of the asked colour, else the largest one, against the asked boxes."""
    verdict = judge_clip(clip)
    told = score(case.scene, verdict)
    right = {name: told[name] for name in ATTRIBUTES if name in told}
    right["object"] = told["colour"] and told["nearest shape"]
    seen = match_actors(case.scene, verdict)[0][1]
    if seen is None:
        return BoxScore(0.0, float("nan"), right)
    height, width = clip.shape[1:3]
    scale = np.array([width, height, width, height])
    asked = case.boxes * scale
    middles = [(boxes[:, :2] + boxes[:, 2:]) / 2 for boxes in (asked, seen.boxes)]
    away = np.hypot(*(middles[0] - middles[1]).T) / np.hypot(height, width)
    distance = float(np.nanmean(away)) if np.isfinite(away).any() else float("nan")
    return BoxScore(float(box_overlap(asked, seen.boxes).mean()), distance, right)
