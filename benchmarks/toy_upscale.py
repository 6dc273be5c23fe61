"""toy-video at twice its training size: dense attention from noise against windows of the training size (FreeSwim)."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from benchmarks.compare import judged
from benchmarks.environment import RESULTS, environment, machine_line, table, write_results
from benchmarks.toy_common import parse_size, tell


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``python -m benchmarks toy_upscale``."""
    parser.add_argument("--model", default="toy-video")
    parser.add_argument("--prompts", type=int, default=6)
    parser.add_argument("--base", default="17x256x256", help="frames x height x width of the training size")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--strength", type=float, default=0.3, help="share of the steps run again at twice the size")
    parser.add_argument("--shift", type=float, default=4.0, help="timestep shift of the second pass")
    parser.add_argument("--output", type=Path, default=RESULTS)


def run(options: argparse.Namespace) -> int:
    """Measure, print and write the report and a sheet of middle frames, whole after every prompt."""
    import genkit
    from genkit.evaluation.toy import draw_prompts

    pipeline = genkit.load(options.model)
    pipeline.set_progress_bar_config(disable=True)
    frames, height, width = parse_size(options.base)
    chosen = draw_prompts("train", options.prompts, seed=88)
    scenes, captions = [scene for scene, _ in chosen], [text for _, text in chosen]
    found: dict[str, list[np.ndarray]] = {"base": [], "dense": [], "sliding_window": []}
    spent = dict.fromkeys(found, 0.0)
    call = {"num_inference_steps": options.steps, "guidance_scale": 4.0, "max_sequence_length": 64}
    facts = environment()
    text = ""
    for i, caption in enumerate(captions):
        size = {"height": height, "width": width, "num_frames": frames}
        jobs = {
            "base": lambda at=size, t=caption, i=i: _plain(pipeline, t, i, at | call),
            "dense": lambda at=size, t=caption, i=i: _plain(
                pipeline, t, i, at | call | {"height": 2 * height, "width": 2 * width}
            ),
            "sliding_window": lambda at=size, t=caption, i=i: _again(pipeline, t, i, options, at | call),
        }
        for name, job in jobs.items():
            started = time.perf_counter()
            found[name].append(job())
            spent[name] += time.perf_counter() - started
        rows = _rows(found, spent, scenes[: i + 1], (height, width))
        text = _write(options, facts, rows, captions[: i + 1], found)
        tell("prompts", i + 1, len(captions))
    print(text)
    return 0


def _rows(found: dict[str, list[np.ndarray]], spent: dict[str, float], scenes, size: tuple[int, int]) -> list[dict]:
    rows = []
    for name, clips in found.items():
        row = {"run": name, "pixels": "{1}x{0}".format(*clips[0].shape[1:3])}
        row["s per clip"] = f"{spent[name] / len(clips):.1f}"
        rows.append(row | judged(best_reading(scenes, clips, size)))
    return rows


def _write(options: argparse.Namespace, facts: dict, rows: list[dict], captions: list[str], found: dict) -> str:
    """Write sheet and report of the prompts that are done; returns the report."""
    from genkit.evaluation.sheet import save_sheet

    sheet = options.output / "toy_upscale.png"
    save_sheet(draw_sheet(captions, found), sheet)
    text = "\n".join(
        [
            "# toy-video at twice its training size",
            "",
            machine_line(facts),
            f"{options.base} at first, {options.steps} UniPC steps, guidance 4, {len(captions)} seen prompts, the same "
            f"seeds in every row. The second pass runs {options.strength:g} of the steps with shift {options.shift:g}. "
            "A clip counts as right when the judge finds it right either as it is or at the training size, because "
            "enlarging makes a small object a large one. The time of the last row includes the base run.",
            "",
            table(rows),
            "",
            "Middle frames, one row per prompt, columns in the order of the table:",
            "",
            f"![middle frames]({sheet.name})",
            "",
        ]
    )
    settings = {**vars(options), "prompts": len(captions), "output": None, "run": None}
    write_results("toy_upscale", {"environment": facts, "options": settings, "rows": rows}, text, options.output)
    return text


def _plain(pipeline, text: str, seed: int, call: dict) -> np.ndarray:
    import torch

    made = pipeline(text, generator=torch.Generator().manual_seed(seed), output_type="np", **call).frames[0]
    return (np.asarray(made) * 255).round().astype(np.uint8)


def _again(pipeline, text: str, seed: int, options, call: dict) -> np.ndarray:
    import torch

    from genkit.pipelines.tasks.high_resolution.second_pass import high_resolution

    made = high_resolution(
        pipeline, prompt=text, strength=options.strength, flow_shift=options.shift,
        generator=torch.Generator().manual_seed(seed), **call,
    )  # fmt: skip
    return (made.frames[0] * 255).round().astype(np.uint8)


def best_reading(scenes, clips: list[np.ndarray], size: tuple[int, int]):
    """Accuracy when every clip is read as it is and reduced to ``size``, whichever is right in more attributes."""
    from genkit.evaluation.toy import ATTRIBUTES, accuracy_of, judge_clips

    results = []
    for scene, clip in zip(scenes, clips, strict=True):
        readings = [judge_clips([scene], x[None])[1][0] for x in (clip, reduced(clip, size))]
        results.append(max(readings, key=lambda reading: (reading["all"], sum(reading.values()))))
    return accuracy_of(results, ATTRIBUTES)


def reduced(clip: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A clip (T, H, W, 3) made smaller by averaging whole squares of pixels."""
    rows, columns = clip.shape[1] // size[0], clip.shape[2] // size[1]
    parts = clip.reshape(clip.shape[0], size[0], rows, size[1], columns, 3)
    return parts.mean((2, 4)).round().astype(np.uint8)


def draw_sheet(captions: list[str], found: dict[str, list[np.ndarray]], side: int = 256) -> np.ndarray:
    """Middle frames as a picture: a row per prompt with its caption above, a column per run."""
    from PIL import Image

    from genkit.evaluation.sheet import contact_sheet

    def middle(clip: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(clip[len(clip) // 2]).resize((side, side), Image.Resampling.LANCZOS))

    rows = [np.stack([middle(clips[row]) for clips in found.values()]) for row in range(len(captions))]
    return contact_sheet(rows, captions, columns=1, frames=len(found))
