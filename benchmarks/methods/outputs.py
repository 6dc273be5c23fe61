"""Clips and pictures of a case: a base run, enlarged and denoised again under a method."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from benchmarks.methods.cases import Case
from benchmarks.toy_upscale import reduced

_SEED = 500


class Painter(Protocol):
    """Makes and judges the outputs of a case."""

    prompts: list[tuple[Any, str]]

    def base(self, number: int) -> np.ndarray:
        """Frames (T, h, w, 3) uint8 at the trained size."""

    def again(self, base: np.ndarray, number: int, method: Any, schedule: Any = None) -> np.ndarray:
        """The same enlarged and denoised under a method (None: dense), (T, H, W, 3) uint8."""

    def judge(self, frames: np.ndarray, number: int) -> dict[str, bool]:
        """What is right, read at the trained size: enlarging makes a small object large."""


class Clips:
    """toy-video."""

    def __init__(self, case: Case, prompts: int, dtype: torch.dtype):
        import genkit
        from genkit.evaluation.toy import draw_prompts

        self.case = case
        self.pipeline = genkit.load(case.model, dtype=dtype)
        self.pipeline.set_progress_bar_config(disable=True)
        self.prompts = draw_prompts("train", prompts, seed=77)

    def base(self, number: int) -> np.ndarray:
        """See :class:`Painter`."""
        from genkit.evaluation.toy import ClipRequest, generate_clips

        side = self.case.side
        request = ClipRequest(self.case.frames, side, side, self.case.steps, batch=1)
        return generate_clips(self.pipeline, [self.prompts[number][1]], request, _SEED + number)[0][0]

    def again(self, base: np.ndarray, number: int, method: Any, schedule: Any = None) -> np.ndarray:
        """See :class:`Painter`."""
        from genkit.pipelines.tasks.high_resolution.second_pass import high_resolution

        case = self.case
        made = high_resolution(
            self.pipeline, prompt=self.prompts[number][1], upscale=case.upscale, method=method, schedule=schedule,
            strength=case.strength, flow_shift=case.shift, frames=base / 255.0,
            generator=torch.Generator().manual_seed(_SEED + number), num_inference_steps=case.steps,
            guidance_scale=case.guidance, max_sequence_length=64,
        )  # fmt: skip
        return (made.frames[0] * 255).round().astype(np.uint8)

    def judge(self, frames: np.ndarray, number: int) -> dict[str, bool]:
        """See :class:`Painter`."""
        from genkit.evaluation.toy import judge_clips

        small = reduced(frames, (self.case.side, self.case.side))
        return judge_clips([self.prompts[number][0]], small[None])[1][0]


class Pictures:
    """toy-dit and toy-image."""

    def __init__(self, case: Case, prompts: int, dtype: torch.dtype):
        from diffusers import AutoPipelineForImage2Image

        import genkit
        from genkit.evaluation.toy_picture import PictureRequest, draw_picture_prompts

        self.case = case
        self.pipeline = genkit.load(case.model, dtype=dtype)
        self.pipeline.set_progress_bar_config(disable=True)
        self.second = AutoPipelineForImage2Image.from_pipe(self.pipeline)
        self.second.set_progress_bar_config(disable=True)
        self.request = PictureRequest.of_model(case.model, case.side, case.side, case.steps, 1)
        self.prompts = draw_picture_prompts("train", prompts, 77, 1, case.side)

    def base(self, number: int) -> np.ndarray:
        """See :class:`Painter`."""
        from genkit.evaluation.toy_picture import generate_pictures

        return generate_pictures(self.pipeline, [self.prompts[number][1]], self.request, _SEED + number)[0]

    def again(self, base: np.ndarray, number: int, method: Any, schedule: Any = None) -> np.ndarray:
        """See :class:`Painter`."""
        from contextlib import nullcontext

        from PIL import Image

        import genkit

        case, side = self.case, self.case.side * self.case.upscale
        large = Image.fromarray(base[0]).resize((side, side), Image.Resampling.BILINEAR)
        guidance = "true_cfg_scale" if "true_cfg_scale" in self.request.call else "guidance_scale"
        told = self.request.call | {guidance: case.guidance}
        patched = nullcontext() if method is None else genkit.patch(self.second, method, schedule=schedule)
        with torch.random.fork_rng(), patched:
            torch.manual_seed(_SEED + number)  # the sampler draws noise in every step
            made = self.second(
                self.prompts[number][1], image=large, strength=case.strength, height=side, width=side,
                num_inference_steps=case.steps, generator=torch.Generator().manual_seed(_SEED + number),
                output_type="np", **told,
            ).images  # fmt: skip
        return (np.asarray(made) * 255).round().astype(np.uint8)

    def judge(self, frames: np.ndarray, number: int) -> dict[str, bool]:
        """See :class:`Painter`."""
        from genkit.evaluation.toy_picture import judge_pictures

        small = reduced(frames, (self.case.side, self.case.side))
        return judge_pictures([self.prompts[number][0]], small)[1][0]


def painter(case: Case, prompts: int, dtype: torch.dtype) -> Painter:
    """The one of a case."""
    return (Clips if case.model == "toy-video" else Pictures)(case, prompts, dtype)


def kept(path: Path, make: Any) -> np.ndarray:
    """Frames of a file, made and written where there is none."""
    from genkit.media.atomic import Files

    if path.exists():
        return np.load(path)["frames"]
    frames = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    with Files() as files, files.new(path).open("wb") as out:
        np.savez_compressed(out, frames=frames)
    return frames
