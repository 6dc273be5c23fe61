"""A LoRA for clips of four times the training length: toy-video by the judge before and after, and what a step costs.

Long clips are drawn and written as mp4 + txt, a LoRA is trained from that folder by ``genkit train lora`` through
radial attention, through shifted groups and through the model's own, and every result is judged on the same prompts and
seeds. The last table has the seconds of a training step, every kind of attention once a turn.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.compare import JUDGED
from benchmarks.environment import RESULTS, environment, machine_line, report, table
from benchmarks.toy_common import SPLITS, shares, split_counts, tell, told_options
from genkit.reading import whole

MODEL = "toy-video"
FPS = 8
SEED = 1000
LAYERS = "2:"
#: Attention in the loop, by name of the run: method and settings.
LOOPS: dict[str, tuple[str, dict[str, Any]] | None] = {
    "dense": None,
    "radial": ("radial", {"near": "full", "thin_below": 64}),
    "shifted_groups": ("shifted_groups", {"group": 7}),
}


@dataclass(frozen=True)
class Row:
    """One row of the table: which LoRA, and through which attention clips are made.

    Args:
        lora: name of a run in :data:`LOOPS`, or None.
        attention: the same, of sampling.
        frames: of the clips; None = the length in question.
    """

    lora: str | None
    attention: str
    frames: int | None = None

    def name(self, frames: int) -> str:
        """As shown, and as readings are kept."""
        lora = "no LoRA" if self.lora is None else f"LoRA trained {self.lora.replace('_', ' ')}"
        return f"{self.frames or frames} frames, {lora}, sampled {self.attention.replace('_', ' ')}"


ROWS = (
    Row(None, "dense", 25),
    Row(None, "dense"),
    Row(None, "radial"),
    Row("radial", "radial"),
    Row("radial", "dense"),
    Row("shifted_groups", "dense"),
    Row("dense", "dense"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``python -m benchmarks lora_length``."""
    parser.add_argument("--folder", type=Path, default=Path("runs/lora-length"), help="clips, runs and what was "
                        "judged; a second call goes on where the first stopped")  # fmt: skip
    parser.add_argument("--frames", type=int, default=97, help="of a clip; toy-video was trained on at most 25")
    parser.add_argument("--side", type=int, default=96, help="pixels of a side")
    parser.add_argument("--clips", type=int, default=256, help="training clips")
    parser.add_argument("--train-steps", type=int, default=900)
    parser.add_argument("--loops", default="radial,shifted_groups,dense", help="LoRAs to train and judge")
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--steps", type=int, default=20, help="of sampling")
    parser.add_argument("--timed-sides", default="96,192", help="pixels of a side at which steps are timed")
    parser.add_argument("--turns", type=int, default=7, help="of the timing; 0 = no timing")
    parser.add_argument("--threads", type=whole(1), default=1)
    parser.add_argument("--output", type=Path, default=RESULTS)


def run(options: argparse.Namespace) -> int:
    """Write clips, train, judge, time, and write the report."""
    import torch

    torch.set_num_threads(options.threads)
    loops = options.loops.split(",")
    if not (options.folder / "clips").exists():
        write_clips(options.folder / "clips", options)
    trained = {name: train(name, options) for name in loops}
    rows = judged(options, [row for row in ROWS if row.lora is None or row.lora in loops])
    costs = []
    for side in map(int, options.timed_sides.split(",") if options.turns else ()):
        costs += timed(argparse.Namespace(**{**vars(options), "side": side, "clips": 1}))
    facts = {**environment(), "load average": os.getloadavg()}
    data = {"environment": facts, "options": told_options(options), "training": trained,
            "judged": rows, "cost": costs}  # fmt: skip
    report("lora_length", data, text_of(data, options), options.output)
    return 0


def write_clips(folder: Path, options: argparse.Namespace) -> None:
    """Captioned clips of the world at the length in question, as a user would have them."""
    from genkit.media.files import write_media
    from genkit.world.caption import caption
    from genkit.world.render import render_clip
    from genkit.world.scene import draw_scene, lay_out

    rng, side = np.random.default_rng(5), options.side
    part = folder.with_name(f"{folder.name}.part")
    part.mkdir(parents=True, exist_ok=True)
    for index in range(options.clips):
        scene = draw_scene(rng, "train", actors=1)
        clip = render_clip(scene, lay_out(scene, options.frames, side, side, rng), side, side)
        write_media(part / f"clip-{index:03d}.mp4", clip, FPS, force=True)
        (part / f"clip-{index:03d}.txt").write_text(caption(scene) + "\n")
        tell("clips", index + 1, options.clips)
    part.rename(folder)


def config(name: str, options: argparse.Namespace, output: Path) -> dict[str, Any]:
    """Settings of ``genkit train lora``."""
    settings = {
        "model": MODEL, "data": [str(options.folder / "clips")], "output": str(output),
        "cache_dir": str(options.folder / "cache"), "resolution": [f"{options.side}x{options.side}"],
        "num_frames": [options.frames], "rank": 32, "learning_rate": 5e-4, "lr_scheduler": "cosine",
        "lr_warmup_steps": 20, "train_batch_size": 1, "max_train_steps": options.train_steps, "held_out": 8,
        "validation_steps": 100, "checkpointing_steps": 200, "checkpoints_total_limit": 1, "threads": options.threads,
    }  # fmt: skip
    loop = LOOPS[name]
    if loop is not None:
        settings |= {"attention": loop[0], "attention_args": loop[1], "schedule": f"layers={LAYERS}"}
    return settings


def train(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train one LoRA by the command; the held-out losses and the seconds of a step."""
    output = options.folder / name
    if not (output / "pytorch_lora_weights.safetensors").exists():
        settings = config(name, options, output)
        if output.exists():
            settings["resume_from_checkpoint"] = "latest"
        file = options.folder / f"{name}.yaml"
        file.write_text(json.dumps(settings, indent=1))
        environment_ = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
        command = [sys.executable, "-m", "genkit", "train", "lora", "--config", str(file)]
        subprocess.run(command, check=True, env=environment_)
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    held = {line["step"]: round(line["held-out loss"], 4) for line in lines if "held-out loss" in line}
    return {"held-out loss": held, "steps": options.train_steps}


def judged(options: argparse.Namespace, rows: list[Row]) -> list[dict[str, object]]:
    """Table of what the judge says; readings are kept in the folder as they come."""
    from genkit.evaluation.toy import ATTRIBUTES, accuracy_of, draw_prompts

    prompts = [
        drawn
        for split, count in split_counts(options.prompts).items()
        if count
        for drawn in draw_prompts(split, count, seed=77, actors=1)
    ]
    assert {split for split, _ in SPLITS} == set(split_counts(options.prompts))
    kept = options.folder / "readings.json"
    readings = json.loads(kept.read_text()) if kept.exists() else {}
    for row in rows:
        name = row.name(options.frames)
        pipeline = None
        done = readings.setdefault(name, {"readings": [], "seconds": 0.0})
        for index in range(len(done["readings"]), len(prompts)):
            pipeline = pipeline or prepared(row, options)
            found, seconds = one_clip(pipeline, row, prompts[index], SEED + index, options)
            done["readings"].append({key: bool(value) for key, value in found.items()})
            done["seconds"] += seconds
            kept.write_text(json.dumps(readings))
            tell(name, index + 1, len(prompts))
    base = readings[Row(None, "dense").name(options.frames)]["readings"]
    table_rows = []
    for row in rows:
        done = readings[row.name(options.frames)]
        pairs = list(zip(done["readings"], base, strict=True))
        table_rows.append(
            {"clips": row.name(options.frames)}
            | shares(accuracy_of(done["readings"], ATTRIBUTES), ATTRIBUTES)
            | {"all: change": change(pairs, ("all",)), "mean of four: change": change(pairs, JUDGED),
               "s per clip": f"{done['seconds'] / len(prompts):.1f}"}
        )  # fmt: skip
    return table_rows


def change(pairs: list[tuple[dict[str, bool], dict[str, bool]]], names: tuple[str, ...]) -> str:
    """Points by which the share of some attributes differs, prompt by prompt, and the standard error."""
    points = [100 * (np.mean([one[name] for name in names]) - np.mean([other[name] for name in names]))
              for one, other in pairs]  # fmt: skip
    return f"{np.mean(points):+.1f} ± {np.std(points, ddof=1) / np.sqrt(len(points)):.1f}"


def prepared(row: Row, options: argparse.Namespace) -> Any:
    """The pipeline with a row's LoRA, as stock Diffusers loads it."""
    import genkit

    pipeline = genkit.load(MODEL)
    pipeline.set_progress_bar_config(disable=True)
    if row.lora is not None:
        pipeline.load_lora_weights(str(options.folder / row.lora))
    return pipeline


def one_clip(
    pipeline: Any, row: Row, prompt: tuple[Any, str], seed: int, options: argparse.Namespace
) -> tuple[dict[str, bool], float]:
    """What the judge reads in one clip, and the seconds it took."""
    from contextlib import nullcontext

    import genkit
    from genkit.attention import registry
    from genkit.evaluation.toy import ClipRequest, generate_clips, judge_clips

    scene, caption = prompt
    request = ClipRequest(row.frames or options.frames, options.side, options.side, options.steps, batch=1)
    loop, patch = LOOPS[row.attention], nullcontext()
    if loop is not None:
        method, settings = loop
        built = registry.build(method, {key: str(value) for key, value in settings.items()})
        patch = genkit.patch(pipeline, built, schedule=genkit.Schedule(layers=LAYERS))
    with patch:
        clips, seconds = generate_clips(pipeline, [caption], request, seed)
    return judge_clips([scene], clips)[1][0], seconds


@dataclass
class Loop:
    """One kind of attention in the loop, timed: ``steps(n)`` runs n training steps and gives their seconds."""

    name: str
    steps: Any
    work: float = 1.0
    density: str = "1.000"
    seconds: list[float] = field(default_factory=list)


def timed(options: argparse.Namespace) -> list[dict[str, object]]:
    """Seconds of a training step by attention, in turns, and the share of attention FLOPs that is left."""
    from benchmarks.lora.speed import ours
    from genkit.training.lora.settings import LoraSettings

    clips = options.folder / f"timing-{options.side}"
    if not clips.exists():
        write_clips(clips, options)
    loops = []
    for name in LOOPS:
        settings = config(name, options, options.folder / f"timing-{options.side}-{name}") | {"data": [str(clips)]}
        settings |= {"max_train_steps": 10**9, "checkpointing_steps": 10**8, "held_out": 0, "validation_steps": None}
        settings |= {"caption_dropout": 0.0, "lr_scheduler": "constant", "lr_warmup_steps": 0}
        settings.pop("checkpoints_total_limit")
        given = {key: value for key, value in settings.items() if value is not None}
        loop = Loop(name, ours(LoraSettings.from_mappings(("the benchmark", given)), time.process_time))
        loop.work, loop.density = work_of(name, options)
        loops.append(loop)
    for loop in loops:
        loop.steps(1)  # the first call is slower
    for turn in range(options.turns):
        for loop in loops:
            loop.seconds += loop.steps(2)
        tell("turns", turn + 1, options.turns)
    base = statistics.median(loops[0].seconds)
    return [
        {
            "size": f"{options.frames}x{options.side}x{options.side}",
            "tokens": tokens_of(options),
            "attention": loop.name.replace("_", " "),
            "pairs executed in its layers": loop.density,
            "attention FLOPs": f"{loop.work:.2f}",
            "CPU s / step": f"{statistics.median(loop.seconds):.3f}",
            "fastest": f"{min(loop.seconds):.3f}",
            "relative": f"{statistics.median(loop.seconds) / base:.3f}",
        }
        for loop in loops
    ]


def tokens_of(options: argparse.Namespace) -> int:
    """Latent tokens of a clip."""
    return (1 + (options.frames - 1) // 4) * (options.side // 16) ** 2


def work_of(name: str, options: argparse.Namespace) -> tuple[float, str]:
    """Share of the self-attention's FLOPs at a size that a kind of attention leaves, and its density."""
    import torch

    import genkit
    from genkit.attention import registry

    if LOOPS[name] is None:
        return 1.0, "1.000"
    method, settings = LOOPS[name]
    model = genkit.load(MODEL).transformer
    built = registry.build(method, {key: str(value) for key, value in settings.items()})
    side, frames = options.side // 8, 1 + (options.frames - 1) // 4
    with torch.no_grad(), genkit.patch(model, built, schedule=genkit.Schedule(layers=LAYERS)) as patch:
        text = torch.zeros(1, 8, model.config.text_dim)
        model(torch.zeros(1, model.config.in_channels, frames, side, side), torch.zeros(1), text, return_dict=False)
        found = patch.report()
    return found.work, f"{found.density.executed:.3f}"


def text_of(data: dict[str, Any], options: argparse.Namespace) -> str:
    """The report."""
    tokens = tokens_of(options)
    losses = [
        {"LoRA trained": name.replace("_", " ")}
        | {f"step {step}": loss for step, loss in found["held-out loss"].items()}
        for name, found in data["training"].items()
    ]
    return (
        "\n\n".join(
            [
                "# Longer clips by a LoRA",
                f"{machine_line(data['environment'])} toy-video was trained on clips of up to 25 frames; here they "
                f"have {options.frames} of {options.side}x{options.side} pixels, {tokens} tokens. LoRA of rank 32 on "
                f"all attention projections, {options.train_steps} steps with one clip each on {options.clips} clips "
                f"(eight of them held out) that `genkit.world` drew, written as mp4 + txt; AdamW, 5e-4, cosine.",
                "## By the judge",
                f"{options.prompts} prompts with one object, half of them of combinations seen in training, "
                f"{options.steps} UniPC steps, guidance 4, the same seeds in every row. Percent with their standard "
                "error. Changes are against dense without LoRA at this length, prompt by prompt: of `all`, and of the "
                f"mean of {', '.join(JUDGED)}.",
                table(data["judged"]),
                "## Held-out loss",
                table(losses),
                "## Cost of a training step",
                "Batch 1, latents and text cached, one thread; median CPU seconds, every kind of attention once a turn."
                " Attention FLOPs: share of dense self-attention over all layers, the first two of six are dense.",
                table(data["cost"]) if data["cost"] else "Not measured.",
            ]
        )
        + "\n"
    )
