"""Write captioned files of something that the shipped models do not know, to train a LoRA on.

    python scripts/write_concept.py ring clips                       # 30 clips: ring-00.mp4, ring-00.txt, ...
    python scripts/write_concept.py zigzag zigzags                   # of a motion
    python scripts/write_concept.py heart pictures --kind picture    # 30 pictures
    python scripts/write_concept.py ring sounding --kind sound       # clips with sound
    python scripts/write_concept.py ring known --known               # the same without the concept, to keep the rest

They are ordinary files with their captions beside them, as a user has them; everything follows from the seed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from genkit.media import write_media
from genkit.world.concepts import CONCEPTS, Sample, draw_concept_clip, draw_concept_picture
from genkit.world.sound import SAMPLE_RATE

FPS = 8


def draw(options: argparse.Namespace, rng: np.random.Generator) -> Sample:
    """One sample as the options say."""
    size, shown = (options.size, options.size), not options.known
    if options.kind == "picture":
        return draw_concept_picture(options.concept, rng, *size, shown=shown)
    fps = FPS if options.kind == "sound" else None
    sizes = tuple(options.sizes.split(","))
    return draw_concept_clip(options.concept, rng, options.frames, *size, sizes=sizes, shown=shown, fps=fps)


def write(folder: Path, name: str, sample: Sample, kind: str) -> None:
    """One file and its caption."""
    if kind == "picture":
        write_media(folder / f"{name}.png", sample.pixels, force=True)
    else:
        sound = {} if sample.sound is None else {"audio": sample.sound.T, "sample_rate": SAMPLE_RATE}
        write_media(folder / f"{name}.mp4", sample.pixels, FPS, force=True, **sound)
    (folder / f"{name}.txt").write_text(sample.caption + "\n", encoding="utf-8")


def main() -> None:
    """Read the command line and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("concept", choices=CONCEPTS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kind", choices=("clip", "sound", "picture"), default="clip")
    parser.add_argument("--known", action="store_true", help="show known things instead of the concept")
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--frames", type=int, default=25, help="of a clip, 8 a second (default 25)")
    parser.add_argument("--size", type=int, default=128, help="height and width in pixels (default 128)")
    parser.add_argument("--sizes", default="medium,big", help="of the objects of clips (default medium,big)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(options.seed)
    name = "known" if options.known else options.concept
    for index in range(options.count):
        write(options.folder, f"{name}-{index:02d}", draw(options, rng), options.kind)
    print(f"{options.count} files with captions in {options.folder}")


if __name__ == "__main__":
    main()
