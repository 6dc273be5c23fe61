"""Sample sheet of a text-to-video model of the toy world: python scripts/sample_sheet.py --model toy-video -o sheet.png

Every prompt gets one clip from one seed; nothing is picked by hand. The reading of the judge is printed.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

PROMPTS = (
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="toy-video")
    parser.add_argument("--output", "-o", type=Path, required=True)
    parser.add_argument("--size", default="25x128x128", help="frames x height x width")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()

    import imageio.v3 as iio

    import genkit
    from genkit.errors import GenkitError
    from genkit.evaluation.sheet import contact_sheet
    from genkit.evaluation.toy import ClipRequest, generate_clips
    from genkit.world import judge_clip

    try:
        frames, height, width = (int(part) for part in options.size.split("x"))
        pipeline = genkit.load(options.model)
    except (GenkitError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    pipeline.set_progress_bar_config(disable=True)
    clips, _ = generate_clips(
        pipeline, PROMPTS, ClipRequest(frames, height, width, options.steps, batch=2), options.seed
    )
    titles = []
    for prompt, clip in zip(PROMPTS, clips, strict=True):
        verdict = judge_clip(clip)
        seen = ", ".join(" ".join((a.size, a.colour, a.shape, a.motion)) for a in verdict.actors)
        titles.append(prompt)
        print(f"{prompt}\n    judged: {seen} on {verdict.background}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    iio.imwrite(options.output, np.asarray(contact_sheet(list(clips), titles)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
