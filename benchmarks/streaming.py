"""Streams of toy-video: memory and time per chunk, the time of the first frame, and drift over time by the judge."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.environment import RESULTS, environment, machine_line, table, write_results
from genkit.reading import whole

if TYPE_CHECKING:
    from genkit.pipelines.few_steps import FewSteps

NAME = "streaming"
#: How a stream goes on: what it is called, and the settings of :class:`genkit.streaming.Stream`.
WAYS: dict[str, dict[str, Any]] = {
    "three clean latent frames": {"context": "frames", "recent": 3, "carried": "latents"},
    "last frame alone (the plain way)": {"context": "frames", "recent": 1, "carried": "pixels"},
    "key/value cache (sink 1, recent 3, chunk 3)": {"context": "cache", "chunk": 3, "sink": 1, "recent": 3},
}
LONG = "one run of 97 frames"
WINDOW = 25
MOTIONS = ("still", "bounce", "spin")  # what can go on for ever within a canvas
ATTRIBUTES = ("background", "colour", "nearest shape", "motion")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``python -m benchmarks streaming``."""
    parser.add_argument("--model", default="toy-video")
    parser.add_argument("--chunks", type=int, default=60)
    parser.add_argument("--scenes", type=int, default=4)
    parser.add_argument("--size", type=int, default=96, help="height and width in pixels")
    parser.add_argument("--threads", type=whole(1), default=1)
    parser.add_argument(
        "--lora", action="append", default=[], metavar="NAME=FOLDER",
        help="a further way: a LoRA of genkit train distill --kind causal or self-forcing; repeatable",
    )  # fmt: skip
    parser.add_argument("--only-cache", action="store_true", help="measure the cache and the LoRAs alone")
    parser.add_argument("--output", type=Path, default=RESULTS)


#: A way to stream: the pipeline, and the settings of its stream.
Way = tuple[Any, dict[str, Any]]


def _with_lora(model: str, folder: Path) -> tuple[Any, FewSteps]:
    """A pipeline with a distilled LoRA in it, and how it is sampled."""
    import genkit
    from genkit.lora.files import Lora, lora_file
    from genkit.pipelines.few_steps import few_steps_of

    pipeline = genkit.load(model)
    few = few_steps_of([Lora(lora_file(folder))])
    assert few is not None, "the LoRA tells how it is sampled"
    few.apply(pipeline, None)
    pipeline.load_lora_weights(str(folder))
    pipeline.fuse_lora()
    return pipeline, few


def _ways(options: argparse.Namespace, pipeline: Any) -> dict[str, Way]:
    """Everything that is measured, by name."""
    ways = {name: (pipeline, way) for name, way in WAYS.items() if way["context"] == "cache" or not options.only_cache}
    for given in options.lora:
        name, _, folder = given.partition("=")
        trained, few = _with_lora(options.model, Path(folder))
        own = {"steps": few.sampling.steps, "guidance_scale": few.sampling.guidance_scale}
        ways[name] = (trained, {**few.streamed({})[0], **own})
    return ways


def run(options: argparse.Namespace) -> int:
    """Measure, print and write the report."""
    import torch

    from genkit.models import locate
    from genkit.models.check import FAST

    torch.set_num_threads(options.threads)
    pipeline, few = _with_lora(options.model, locate(options.model).path / FAST)
    ways = _ways(options, pipeline)
    call = {"height": options.size, "width": options.size, **few.values}
    drift: dict[str, list[list[dict[str, bool]]]] = {
        name: [] for name in (*ways, *([] if options.only_cache else [LONG]))
    }  # fmt: skip
    rows: list[dict[str, list[float]]] = []
    for number, (scene, caption) in enumerate(_scenes(options.scenes)):
        found, measured = _streams(ways, scene, caption, call, options.chunks, number)
        rows.append(measured)
        for name, results in found.items():
            drift[name].append(results)
        if LONG in drift:
            drift[LONG].append(_long(pipeline, scene, caption, call, number))
        print(f"{number + 1} of {options.scenes}: {caption}", flush=True)
        facts = environment()
        asked = {name: getattr(options, name) for name in ("model", "chunks", "scenes", "size", "threads")}
        asked["lora"] = [given.partition("=")[0] for given in options.lora]
        data = {"environment": facts, "options": asked, "steps": few.values, "chunks": rows, "drift": drift}
        write_results(NAME, data, _markdown(facts, data, options), options.output)  # a long run may be ended early
    print(_markdown(facts, data, options))
    return 0


def _scenes(count: int) -> list[tuple[Any, str]]:
    from genkit.world.caption import caption
    from genkit.world.scene import draw_scene

    rng, found = np.random.default_rng(11), []
    while len(found) < count:
        scene = draw_scene(rng, "any", actors=1)
        if scene.actors[0].motion == MOTIONS[len(found) % len(MOTIONS)]:
            found.append((scene, caption(scene)))
    return found


def _resident() -> float:
    """Resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _streams(
    ways: dict[str, Way], scene: Any, caption: str, call: dict[str, Any], chunks: int, seed: int
) -> tuple[dict[str, list[dict[str, bool]]], dict[str, list[float]]]:
    """All ways in turns, chunk by chunk, so that what else the machine does strikes all alike."""
    from genkit.streaming import Stream
    from genkit.world.judge import judge_clip, score

    names = {"steps": call["steps"], "guidance_scale": call["guidance_scale"]}
    size = {"height": call["height"], "width": call["width"]}
    streams = {
        name: Stream(pipeline, caption, seed=seed, **{**names, **way}, **size) for name, (pipeline, way) in ways.items()
    }
    left: dict[str, np.ndarray] = {}
    results: dict[str, list[dict[str, bool]]] = {name: [] for name in ways}
    measured: dict[str, list[float]] = {f"{name}: {what}": [] for name in ways for what in ("wall", "cpu", "frames")}
    measured["resident"], measured["held"] = [], []
    for _ in range(chunks):
        for name, stream in streams.items():
            before = time.process_time()
            chunk = next(stream)
            for what, value in (("cpu", time.process_time() - before), ("wall", chunk.seconds)):
                measured[f"{name}: {what}"].append(value)
            measured[f"{name}: frames"].append(len(chunk.frames))
            held = np.concatenate([left[name], chunk.frames]) if name in left else chunk.frames
            while len(held) >= WINDOW:
                results[name].append({k: bool(v) for k, v in score(scene, judge_clip(held[:WINDOW])).items()})
                held = held[WINDOW:]
            left[name] = held.copy()
        measured["resident"].append(_resident())
        measured["held"].append(sum(stream.bytes for stream in streams.values()) / 2**20)
    return results, measured


def _long(pipeline: Any, scene: Any, caption: str, call: dict[str, Any], seed: int) -> list[dict[str, bool]]:
    """One run of as many frames as the model takes, judged in the same windows."""
    import torch

    from genkit.world.judge import judge_clip, score

    output = pipeline(
        caption, height=call["height"], width=call["width"], num_frames=97, num_inference_steps=call["steps"],
        guidance_scale=call["guidance_scale"], max_sequence_length=64, generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    frames = (np.asarray(output.frames[0]) * 255).round().astype(np.uint8)
    return [
        {k: bool(v) for k, v in score(scene, judge_clip(frames[start : start + WINDOW])).items()}
        for start in range(0, len(frames) - WINDOW + 1, WINDOW)
    ]


def _markdown(facts: dict, data: dict[str, Any], options: argparse.Namespace) -> str:
    steps, chunks, made = data["steps"], options.chunks, len(data["chunks"])
    lines = [
        "# Streams of toy-video", "", machine_line(facts), "",
        f"`python -m benchmarks streaming --chunks {chunks} --scenes {options.scenes} --size {options.size} "
        f"--threads {options.threads}`: {options.size}x{options.size} pixels, {steps['steps']} steps at guidance "
        f"{steps['guidance_scale']:g} (the model's LoRA for few steps), {made} scenes; all ways in turns, "
        "chunk by chunk. Other programs ran on the machine: CPU seconds say what a chunk costs, wall seconds what was "
        "waited here.", "", "## Constant memory and time", "",
    ]  # fmt: skip
    rows: list[dict[str, object]] = []
    for name in (name for name in data["drift"] if name != LONG):
        cpu = np.array([scene[f"{name}: cpu"] for scene in data["chunks"]])
        wall = np.array([scene[f"{name}: wall"] for scene in data["chunks"]])
        frames = [int(x) for x in data["chunks"][0][f"{name}: frames"]]
        early, late = np.median(cpu[:, 5:16]), np.median(cpu[:, -10:])
        rows.append({
            "way": name, "frames a chunk": f"{frames[0]}, then {frames[-1]}",
            "first chunk, CPU s": f"{np.median(cpu[:, 0]):.2f}", "chunks 5 to 15, CPU s": f"{early:.2f}",
            "last 10, CPU s": f"{late:.2f}", "change": f"{late / early - 1:+.1%}",
            "first frame after, wall s": f"{np.median(wall[:, 0]):.1f}",
        })  # fmt: skip
    lines.append(table(rows))
    resident = np.array([scene["resident"] for scene in data["chunks"]])
    change = resident[:, -1] / resident[:, min(5, chunks - 1)] - 1
    held = {round(scene["held"][-1], 3) for scene in data["chunks"]}
    lines += ["", f"Resident memory after the last chunk against after chunk 5, by scene: "
              f"{', '.join(f'{x:+.1%}' for x in change)} (of {resident[:, 5 if chunks > 5 else -1].mean():.0f} MiB). "
              f"All streams together hold {', '.join(f'{x:g}' for x in sorted(held))} MiB between chunks.", "",
              "## Drift", "",
              f"Share of windows of {WINDOW} frames that the judge reads right, with standard errors over windows; "
              f"streams of {chunks} chunks, thirds of their length.", ""]  # fmt: skip
    rows = []
    for name, scenes in data["drift"].items():
        thirds = 1 if name == LONG else 3
        for part in range(thirds):
            cut = [scene[len(scene) * part // thirds : len(scene) * (part + 1) // thirds] for scene in scenes]
            windows = [window for scene in cut for window in scene]
            label = "all" if thirds == 1 else ("first third", "second third", "last third")[part]
            shares = {attribute: _share(windows, attribute) for attribute in ATTRIBUTES}
            rows.append({"way": name, "part": label, "windows": len(windows), **shares})
    lines.append(table(rows))
    return "\n".join(lines) + "\n"


def _share(windows: list[dict[str, bool]], attribute: str) -> str:
    values = np.array([window[attribute] for window in windows if attribute in window], dtype=float)
    if not len(values):
        return "-"
    return f"{values.mean():.0%} ± {np.sqrt(values.mean() * (1 - values.mean()) / len(values)):.0%}"
