"""Sample sheet of a model of the toy world: python scripts/sample_sheet.py --model toy-video -o sheet.png

Every prompt gets one clip from one seed, with its sound if the model makes one, or five pictures from five; nothing is
picked by hand. The reading of the judge is printed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

CLIPS = (
    "a red circle moves right on a blue background",
    "a green square moves up on a black background",
    "a blue triangle spins on a white background",
    "a yellow circle bounces on a purple background",
    "a pink cross grows on a gray background",
    "a big orange square shrinks on a green background",
    "a small cyan triangle moves down and left on a black background",
    "a purple circle stays still on a white background",
    "a red square moves left and a yellow circle moves right on a black background",
    "a blue cross spins and a pink circle moves up on a white background",
)
PICTURES = (
    "a red circle on a blue background",
    "a big green triangle at the top left on a black background",
    "a striped yellow square on a purple background",
    "a dotted pink cross in the middle on a gray background",
    "a striped blue square left of a small red circle on a white background",
    "an orange circle above a cyan triangle on a green background",
    "a dotted green circle right of a purple cross on a black background",
    "a small yellow cross below a big red square on a blue background",
    "a red triangle left of a green circle and a small blue square on a white background",
    "a pink square above a dotted orange circle and a cyan cross on a black background",
)
SOUNDING = (
    "a green circle bounces twice on a black background",
    "a red square bounces on a blue background",
    "a yellow triangle moves right on a purple background",
    "a big cyan circle moves left on a gray background",
    "a small pink cross moves up on a black background",
    "an orange square moves down on a white background",
    "a blue circle grows on a white background",
    "a purple triangle stays still on a green background",
)
SEEDS = 5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="toy-video")
    parser.add_argument("--output", "-o", type=Path, required=True)
    parser.add_argument("--size", help="frames x height x width, or height x width; default: the model's own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()

    import genkit
    from genkit.errors import GenkitError
    from genkit.evaluation.sheet import save_sheet
    from genkit.models.registry import locate
    from genkit.models.sidecar import read_sidecar
    from genkit.pipelines.kinds import kind_of

    try:
        pipeline = genkit.load(options.model)
        size = _size(options.size, read_sidecar(locate(options.model).path).defaults)
    except (GenkitError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    pipeline.set_progress_bar_config(disable=True)
    makers = {"video": sample_clips, "image": sample_pictures, "audio-video": sample_sounding}
    page = makers[kind_of(type(pipeline)).name](pipeline, options.model, size, options.steps, options.seed)
    save_sheet(np.asarray(page), options.output)
    return 0


def _size(given: str | None, defaults: dict[str, Any]) -> list[int]:
    """(frames, height, width) or (height, width), as given or as the model has it."""
    own = [defaults[name] for name in ("num_frames", "height", "width") if name in defaults]
    size = [int(part) for part in given.split("x")] if given else own
    if len(size) not in ((len(own),) if own else (2, 3)):
        raise ValueError(f"--size: got {given!r}, give FRAMESxHEIGHTxWIDTH for clips, HEIGHTxWIDTH for pictures")
    return size


def sample_clips(pipeline: Any, model: str, size: Sequence[int], steps: int, seed: int) -> np.ndarray:
    """One clip per prompt."""
    from genkit.evaluation.sheet import contact_sheet
    from genkit.evaluation.toy import ClipRequest, generate_clips

    clips, _ = generate_clips(pipeline, CLIPS, ClipRequest(*size, steps, batch=2), seed)
    for prompt, clip in zip(CLIPS, clips, strict=True):
        print(f"{prompt}\n    judged: {_read_clip(clip)}")
    return contact_sheet(list(clips), CLIPS)


def sample_sounding(pipeline: Any, model: str, size: Sequence[int], steps: int, seed: int) -> np.ndarray:
    """One clip with sound per prompt."""
    from genkit.evaluation.sound_sheet import sound_sheet
    from genkit.evaluation.toy_av import SoundRequest, generate_sound_clips, seen_and_heard

    frames, height, width = size
    request = SoundRequest.of_model(model, num_frames=frames, height=height, width=width, steps=steps)
    clips, _ = generate_sound_clips(pipeline, SOUNDING, request, seed)
    for prompt, clip in zip(SOUNDING, clips, strict=True):
        seen, heard = ([f"{event.time:.2f}" for event in events] for events in seen_and_heard(clip, request.fps))
        print(f"{prompt}\n    judged: {_read_clip(clip.frames)}; seconds seen {seen} heard {heard}")
    return sound_sheet(clips, SOUNDING, request.fps)


def _read_clip(clip: np.ndarray) -> str:
    from genkit.world import judge_clip

    verdict = judge_clip(clip)
    seen = ", ".join(" ".join((a.size, a.colour, a.shape, a.motion)) for a in verdict.actors)
    return f"{seen} on {verdict.background}"


def sample_pictures(pipeline: Any, model: str, size: Sequence[int], steps: int, seed: int) -> np.ndarray:
    """Five pictures per prompt."""
    from genkit.evaluation.sheet import contact_sheet
    from genkit.evaluation.toy_picture import PictureRequest, generate_pictures
    from genkit.world.picture_judge import judge_picture

    request = PictureRequest.of_model(model, *size, steps)
    sets = [generate_pictures(pipeline, PICTURES, request, seed + 100 * turn)[0] for turn in range(SEEDS)]
    rows = list(np.stack(sets, 1))
    for prompt, pictures in zip(PICTURES, rows, strict=True):
        print(prompt)
        for picture in pictures:
            verdict = judge_picture(picture)
            seen = ", ".join(" ".join((a.size, a.texture, a.colour, a.shape)) for a in verdict.actors)
            print(f"    judged: {seen} on {verdict.background}")
    return contact_sheet(rows, PICTURES)


if __name__ == "__main__":
    sys.exit(main())
