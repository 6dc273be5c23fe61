"""Write what a shipped model draws right, with captions, to train it on its own best samples.

    python scripts/write_best.py toy-dit best --count 300             # best-00000.png, best-00000.txt, ...
    python scripts/write_best.py toy-video best --count 200 --of 8    # clips
    genkit train lora --model toy-dit --data best --output runs/best --resolution 128 --max-train-steps 400
    genkit lora merge runs/best/pytorch_lora_weights.safetensors --into toy-dit --output better

Captions of the world are drawn, every one sampled from up to ``--of`` seeds, and the first sample that the judge finds
right in everything is kept (best-of-n fine-tuning, with an exact reward: Nakano et al. 2021, Dong et al. 2023).
Captions of which none is right are left out and counted. The same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from genkit.media import write_media
from genkit.media.atomic import Files

FPS = 8
#: Captions and noise are drawn from here on, away from those of the benchmarks.
SEED = 500_000
TRIED = "tried.json"


@dataclass(frozen=True)
class Maker:
    """What a model makes and how that is judged.

    Args:
        draw: (split, count, seed) -> scenes with captions.
        make: (captions, seed of the first) -> samples.
        right: (scene, sample) -> whether everything is as asked.
        suffix: of the files.
    """

    draw: Callable[[str, int, int], list[tuple[Any, str]]]
    make: Callable[[Sequence[str], int], np.ndarray]
    right: Callable[[Any, np.ndarray], bool]
    suffix: str


def maker(model: str, options: argparse.Namespace) -> Maker:
    """How samples of a model are made: clips where its pipeline makes clips, else pictures."""
    import genkit
    from genkit.editing.shared import EditModel
    from genkit.evaluation import toy, toy_picture

    pipeline = genkit.load(model, dtype=options.dtype)
    pipeline.set_progress_bar_config(disable=True)
    if EditModel.of(pipeline).video:
        clip = replace(toy.ClipRequest(), batch=options.batch)
        return Maker(
            lambda split, count, seed: toy.draw_prompts(split, count, seed, options.actors),
            lambda captions, seed: toy.generate_clips(pipeline, captions, clip, seed)[0],
            lambda scene, sample: toy.judge_clips([scene], sample[None])[1][0]["all"],
            ".mp4",
        )
    picture = toy_picture.PictureRequest.of_model(model, 128, 128, 20, options.batch)
    return Maker(
        lambda split, count, seed: toy_picture.draw_picture_prompts(split, count, seed, options.actors),
        lambda captions, seed: toy_picture.generate_pictures(pipeline, captions, picture, seed)[0],
        lambda scene, sample: toy_picture.judge_pictures([scene], sample[None])[1][0]["all"],
        ".png",
    )


def tried(folder: Path) -> dict[str, int]:
    """Number of a caption -> samples made of it, in earlier calls."""
    path = folder / TRIED
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write(found: Maker, options: argparse.Namespace) -> tuple[int, int]:
    """Sample, judge and write until every caption has a right sample or was tried often enough.

    Returns:
        captions with a right sample, and samples made.
    """
    folder: Path = options.folder
    scenes = found.draw("train", options.count, SEED + options.seed)
    counts = tried(folder)
    for begin in range(0, options.count, options.batch):
        numbers = [n for n in range(begin, min(begin + options.batch, options.count)) if str(n) not in counts]
        made = dict.fromkeys(numbers, 0)
        open_ones = numbers
        for attempt in range(options.of):
            if not open_ones:
                break
            samples = found.make([scenes[n][1] for n in open_ones], SEED + attempt * options.count + begin)
            kept = []
            for number, sample in zip(open_ones, samples, strict=True):
                made[number] += 1
                if found.right(scenes[number][0], sample):
                    name = folder / f"best-{number:05d}"
                    frames = sample.reshape(-1, *sample.shape[-3:])
                    write_media(name.with_suffix(found.suffix), frames, FPS, force=True)
                    name.with_suffix(".txt").write_text(scenes[number][1] + "\n", encoding="utf-8")
                    kept.append(number)
            open_ones = [number for number in open_ones if number not in kept]
        counts |= {str(number): count for number, count in made.items()}
        with Files() as files:
            files.new(folder / TRIED).write_text(json.dumps(counts), encoding="utf-8")
        right = len(list(folder.glob(f"best-*{found.suffix}")))
        print(f"{len(counts)} of {options.count} captions, {right} with a right sample, {sum(counts.values())} samples")
    return len(list(folder.glob(f"best-*{found.suffix}"))), sum(counts.values())


def main() -> None:
    """Read the command line and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="shipped model or a folder of one")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=300, help="captions (default 300)")
    parser.add_argument("--of", type=int, default=4, help="most samples of a caption (default 4)")
    parser.add_argument("--actors", type=int, help="objects in each; default: the world's own mix")
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--seed", type=int, default=0, help="of captions and noise; another one, other captions")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    right, made = write(maker(options.model, options), options)
    print(f"{right} files with captions in {options.folder}, of {made} samples")


if __name__ == "__main__":
    main()
