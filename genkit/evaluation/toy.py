"""How well a model draws the toy world, by the judge: prompts, clips, accuracy per attribute."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from genkit.errors import UsageError
from genkit.world.caption import caption
from genkit.world.judge import judge_clip, score
from genkit.world.scene import SPLITS, Scene, draw_scene

ATTRIBUTES = ("background", "count", "colour", "shape", "nearest shape", "size", "motion", "all")


@dataclass(frozen=True)
class ClipRequest:
    """Size and sampling of evaluation clips; the defaults are those of toy-video's sidecar."""

    num_frames: int = 25
    height: int = 128
    width: int = 128
    steps: int = 20
    guidance_scale: float = 4.0
    max_sequence_length: int = 64
    batch: int = 4


@dataclass(frozen=True)
class Accuracy:
    """Share of samples right per attribute.

    Args:
        right: attribute -> share.
        clips: number of samples.
        asked: attribute -> number of samples in which it was asked for, where that is fewer.
    """

    right: dict[str, float]
    clips: int
    asked: dict[str, int] = field(default_factory=dict)

    def error(self, attribute: str) -> float:
        """Standard error of the share of one attribute."""
        share = self.right[attribute]
        return float(np.sqrt(max(share * (1 - share), 1e-9) / self.asked.get(attribute, self.clips)))


def accuracy_of(results: Sequence[dict[str, bool]], attributes: Sequence[str]) -> Accuracy:
    """Share of right answers per attribute, over the samples that have it."""
    right, asked = {}, {}
    for name in attributes:
        values = [result[name] for result in results if name in result]
        if values:
            right[name], asked[name] = float(np.mean(values)), len(values)
    return Accuracy(right, len(results), asked)


def draw_prompts(split: str, count: int, seed: int = 0, actors: int | None = 1) -> list[tuple[Scene, str]]:
    """Scenes of one split with their canonical captions, the same for the same seed.

    Args:
        split: ``train``, ``held_out_tuple`` or ``held_out_pair``.
        count: how many.
        seed: of the draw.
        actors: objects per scene; None for the world's own mix.
    """
    if split not in SPLITS:
        raise UsageError(f"split: got {split!r}, allowed: {', '.join(SPLITS)}")
    rng = np.random.default_rng(seed)
    scenes = [draw_scene(rng, split, actors=actors) for _ in range(count)]
    return [(scene, caption(scene)) for scene in scenes]


def generate_clips(
    pipeline: Any,
    captions: Sequence[str],
    request: ClipRequest,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[np.ndarray, float]:
    """Run a text-to-video pipeline over captions; clip ``i`` starts from the noise of seed ``seed + i``.

    Returns:
        uint8 clips (B, F, H, W, 3) and the wall seconds spent in the pipeline.
    """
    call = {
        "num_frames": request.num_frames,
        "height": request.height,
        "width": request.width,
        "num_inference_steps": request.steps,
        "guidance_scale": request.guidance_scale,
        "max_sequence_length": request.max_sequence_length,
    }
    return run_batches(pipeline, captions, call, lambda output: output.frames, request.batch, seed, progress)


def run_batches(
    pipeline: Any,
    captions: Sequence[str],
    call: dict,
    read: Callable[[Any], Any],
    batch: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[np.ndarray, float]:
    """Run a pipeline over captions in batches; sample ``i`` starts from the noise of seed ``seed + i``.

    Args:
        pipeline: any text-to-image or text-to-video pipeline.
        captions: the prompts.
        call: further arguments of the pipeline's call.
        read: takes the samples, floats in 0..1, from the pipeline's output.
        batch: prompts per call.
        seed: of the first sample.
        progress: called with (done, total).

    Returns:
        uint8 samples, stacked, and the wall seconds spent in the pipeline.
    """
    import torch

    found, seconds = [], 0.0
    device = pipeline._execution_device
    for start in range(0, len(captions), batch):
        part = list(captions[start : start + batch])
        generators = [torch.Generator(device=device).manual_seed(seed + start + i) for i in range(len(part))]
        seconds -= time.perf_counter()
        with torch.random.fork_rng():
            # Flow matching with fresh noise draws it without the generators.
            torch.manual_seed(seed + start)
            output = pipeline(part, generator=generators, output_type="np", **call)
        seconds += time.perf_counter()
        found.append((np.asarray(read(output)) * 255).round().astype(np.uint8))
        if progress:
            progress(min(start + batch, len(captions)), len(captions))
    return np.concatenate(found), seconds


def judge_clips(scenes: Sequence[Scene], clips: np.ndarray) -> tuple[Accuracy, list[dict[str, bool]]]:
    """Accuracy per attribute and the single results."""
    results = [score(scene, judge_clip(clip)) for scene, clip in zip(scenes, clips, strict=True)]
    return accuracy_of(results, ATTRIBUTES), results
