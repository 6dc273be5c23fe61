"""Clips of four times the training length without training: toy-video by the judge, on paired prompts.

All rows make the same prompts from the same seeds, one prompt after the other in every row, so that times are of the
same minutes. The first row is the model at its own length.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.compare import JUDGED
from benchmarks.environment import RESULTS, environment, machine_line, report, table
from benchmarks.lora.length import change
from benchmarks.toy_common import shares, split_counts, tell, told_options
from genkit.reading import whole

MODEL = "toy-video"
TRAINED = 7  # latent frames of the 25 that toy-video was trained on
SEED = 1000
SHOWN = 8  # frames of a clip on the sheet
SHEET = (0, 1, 2, 4, 7, 11)  # rows on it
PROMPTS = (0, 4, 8, 12)  # prompts on it: every fourth


@dataclass(frozen=True)
class Row:
    """One way to make a clip.

    Args:
        name: as shown. method, settings: of attention, "" = the model's own. layers: that it is on.
        noise: see :mod:`genkit.pipelines.noise`. frames: of the clip; None = the length in question.
    """

    name: str
    method: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    layers: str = "0:"
    noise: str = "independent"
    frames: int | None = None


WINDOW = {"trained": TRAINED, "window": 1}
HEADS = {"trained": TRAINED}
NEW = {"positions": "reindexed"}
ROWS = (
    Row("dense, 25 frames", frames=25),
    Row("dense"),
    Row("radial, layers 2:", "radial", {"near": "full", "thin_below": 64}, "2:"),
    Row("window and first frame", "anchor_window", {"trained": TRAINED, "window": 3}),
    Row("anchor windows", "anchor_window", WINDOW),
    Row("anchor windows, reindexed", "anchor_window", WINDOW | NEW),
    Row("long heads", "long_heads", HEADS),
    Row("long heads, reindexed", "long_heads", HEADS | NEW),
    Row("shuffled noise, dense", noise="shuffled"),
    Row("shuffled noise, anchor windows", "anchor_window", WINDOW, noise="shuffled"),
    Row("shuffled noise, anchor windows, reindexed", "anchor_window", WINDOW | NEW, noise="shuffled"),
    Row("shuffled noise, long heads, reindexed", "long_heads", HEADS | NEW, noise="shuffled"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``python -m benchmarks long_clips``."""
    parser.add_argument("--folder", type=Path, default=Path("runs/long-clips"), help="what was judged; a second call "
                        "goes on where the first stopped")  # fmt: skip
    parser.add_argument("--frames", type=int, default=97, help="of a clip; toy-video was trained on at most 25")
    parser.add_argument("--side", type=int, default=64, help="pixels of a side")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10, help="of sampling")
    parser.add_argument("--threads", type=whole(1), default=1)
    parser.add_argument("--rows", default=None, help="numbers of the rows to make: 0,1,4; default: all")
    parser.add_argument("--sheet", type=Path, default=None, help="picture of some rows to write")
    parser.add_argument("--output", type=Path, default=RESULTS)


def run(options: argparse.Namespace) -> int:
    """Make and judge clips, and write the report and the sheet."""
    import torch

    torch.set_num_threads(options.threads)
    chosen = ROWS if options.rows is None else [ROWS[int(number)] for number in options.rows.split(",")]
    readings = judged(options, list(chosen))
    readings = {row.name: readings[row.name] for row in chosen}
    data = {"environment": {**environment(), "load average": os.getloadavg()},
            "options": told_options(options), "judged": lines(readings, options),
            "readings": readings}  # fmt: skip
    report("long_clips", data, text_of(data, options), options.output)
    if options.sheet is not None:
        sheet(options.folder, options.sheet)
    return 0


def judged(options: argparse.Namespace, rows: list[Row]) -> dict[str, dict[str, Any]]:
    """What the judge reads, row by row; kept in the folder as it comes."""
    import genkit
    from genkit.evaluation.toy import draw_prompts, judge_clips
    from genkit.media.images import write_png

    prompts = [
        drawn
        for split, count in split_counts(options.prompts).items()
        if count
        for drawn in draw_prompts(split, count, seed=77, actors=1)
    ]
    options.folder.mkdir(parents=True, exist_ok=True)
    kept = options.folder / "readings.json"
    readings = json.loads(kept.read_text()) if kept.exists() else {}
    pipeline = genkit.load(MODEL)
    pipeline.set_progress_bar_config(disable=True)
    for index, (scene, caption) in enumerate(prompts):
        for row in rows:
            done = readings.setdefault(row.name, {"readings": [], "seconds": [], "work": 1.0})
            if len(done["readings"]) > index:
                continue
            clip, done["work"], seconds = one_clip(pipeline, row, caption, SEED + index, options)
            found = judge_clips([scene], clip[None])[1][0]
            done["readings"].append({key: bool(value) for key, value in found.items()})
            done["seconds"].append(round(seconds, 2))
            kept.write_text(json.dumps(readings))
            places = np.linspace(0, len(clip) - 1, SHOWN).astype(int)
            name = f"{index:02d}-{ROWS.index(row):02d}.png"
            write_png(options.folder / name, np.concatenate(list(clip[places]), 1))
        tell("prompts", index + 1, len(prompts))
    return readings


def one_clip(
    pipeline: Any, row: Row, caption: str, seed: int, options: argparse.Namespace
) -> tuple[np.ndarray, float, float]:
    """A clip uint8 (F, H, W, 3), its self-attention's share of dense work, and the CPU seconds it took."""
    import genkit
    from genkit.attention import registry
    from genkit.evaluation.toy import ClipRequest, generate_clips
    from genkit.pipelines.noise import shared_noise

    request = ClipRequest(row.frames or options.frames, options.side, options.side, options.steps, batch=1)
    work = 1.0
    with ExitStack() as stack:
        if row.noise != "independent":
            stack.enter_context(shared_noise(pipeline, TRAINED, row.noise, seed))
        if row.method:
            method = registry.build(row.method, {key: str(value) for key, value in row.settings.items()})
            patch = stack.enter_context(genkit.patch(pipeline, method, schedule=genkit.Schedule(layers=row.layers)))
        begun = time.process_time()
        clips, _ = generate_clips(pipeline, [caption], request, seed)
        seconds = time.process_time() - begun
        if row.method:
            found = patch.report()
            assert found.ran and not found.declined
            work = float(found.work or 0.0)
    return clips[0], work, seconds


def sheet(folder: Path, path: Path) -> None:
    """Frames of the clips of some prompts, row by row."""
    from PIL import Image, ImageDraw, ImageFont

    font, parts = ImageFont.load_default(15), []
    for prompt in PROMPTS:
        for number in SHEET:
            strip = Image.open(folder / f"{prompt:02d}-{number:02d}.png").convert("RGB")
            line = Image.new("RGB", (330 + strip.width, strip.height), "white")
            line.paste(strip, (330, 0))
            ImageDraw.Draw(line).text((8, strip.height // 2 - 9), ROWS[number].name, fill="#222222", font=font)
            parts.append(line)
        parts.append(Image.new("RGB", (parts[0].width, 12), "white"))
    whole = Image.new("RGB", (parts[0].width, sum(part.height for part in parts)), "white")
    at = 0
    for part in parts:
        whole.paste(part, (0, at))
        at += part.height
    whole.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


def lines(readings: dict[str, dict[str, Any]], options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of the table, of the prompts that all rows have."""
    from genkit.evaluation.toy import ATTRIBUTES, accuracy_of

    count = min(len(done["readings"]) for done in readings.values())
    base = readings["dense"]["readings"][:count]
    dense = np.median(readings["dense"]["seconds"][:count])
    found = []
    for row in ROWS:
        if row.name not in readings:
            continue
        done = readings[row.name]["readings"][:count]
        pairs = list(zip(done, base, strict=True))
        seconds = np.median(readings[row.name]["seconds"][:count])
        found.append(
            {"way": row.name}
            | shares(accuracy_of(done, ATTRIBUTES), ATTRIBUTES)
            | {"all: change": change(pairs, ("all",)), "mean of four: change": change(pairs, JUDGED),
               "attention FLOPs": f"{readings[row.name]['work']:.2f}" if row.frames is None else "",
               "CPU s per clip": f"{seconds:.2f}", "relative": f"{seconds / dense:.2f}"}
        )  # fmt: skip
    return found


def text_of(data: dict[str, Any], options: argparse.Namespace) -> str:
    """The report."""
    frames = 1 + (options.frames - 1) // 4
    count = min(len(done["readings"]) for done in data["readings"].values())
    return "\n\n".join(
        [
            "# Clips of four times the training length, without training",
            f"{machine_line(data['environment'])} toy-video was trained on clips of up to 25 frames (7 latent); here "
            f"they have {options.frames} ({frames} latent) of {options.side}x{options.side} pixels, "
            f"{frames * (options.side // 16) ** 2} tokens.",
            f"{count} prompts with one object, half of them of combinations seen in training, {options.steps} UniPC "
            f"steps, guidance 4, the same seeds in every row. Percent with their standard error. Changes are against "
            f"dense at this length, prompt by prompt: of `all`, and of the mean of background, colour, nearest shape, "
            f"motion. Attention FLOPs: share of dense self-attention over all layers and steps. CPU seconds: medians, "
            f"rows in turns, prompt by prompt, {options.threads} thread; other work ran beside.",
            table(data["judged"]),
            "Methods are on all layers and steps unless said otherwise. `reindexed`: `positions=reindexed`. Window and "
            "first frame: `window=3`, which leaves no room for anchors. [How to use them](../../docs/tasks/longer.md).",
        ]
    )
