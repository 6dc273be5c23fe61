"""A look at toy-av in training: a few clips with sound, judged, and put on one sheet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imageio.v3 as iio

from genkit.evaluation.sound_sheet import sound_sheet
from genkit.evaluation.toy_av import SoundRequest, draw_sound_prompts, generate_sound_clips, judge_sound_clips


def sound_probe(
    pipeline: Any, call: dict, sheet: Path, count: int = 8, seed: int = 11, steps: int = 12, frames: int = 17
) -> dict[str, float]:
    """Sample ``count`` one-object training scenes, write a sheet and return the judge's figures.

    Args:
        pipeline: an ``LTX2Pipeline`` of the model in training.
        call: further arguments of its call.
        sheet: where the picture goes.
        count, seed: samples; seed of prompts and noise.
        steps: denoising steps.
        frames: of the clips.
    """
    prompts = draw_sound_prompts("train", count, seed)
    call = {"guidance_scale": 4.0, "max_sequence_length": 64, **call}
    request = SoundRequest(num_frames=frames, steps=steps, call=call)
    clips, _ = generate_sound_clips(pipeline, [text for _, text in prompts], request, seed)
    iio.imwrite(sheet, sound_sheet(clips, [text for _, text in prompts], request.fps))
    accuracy, sync = judge_sound_clips([scene for scene, _ in prompts], clips, request)
    return {**accuracy.right, **{name: getattr(sync, name) for name in ("f1", "offset", "pitch", "side", "silence")}}
