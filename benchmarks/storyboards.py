"""Three prompts, one clip: DiTCtrl on toy-video against clips put one after the other and against one long run."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.editing.store import Row, Store, weights_of
from benchmarks.environment import RESULTS, environment, machine_line, report, table, write_results
from benchmarks.toy_common import parse_size, tell

NAME = "storyboards"
SHOTS = 3
#: Noise of the first case; every case has its own.
NOISE = 5000
#: Titles of the table's columns and what they are in a row.
COLUMNS = (
    ("all right", "all"), ("background", "background"), ("colour", "colour"), ("shape", "shape"),
    ("nearest shape", "nearest shape"), ("motion", "motion"), ("keeps colour and shape", "kept"),
    ("borders without a cut", "smooth"),
)  # fmt: skip
Run = Callable[[Any, int], tuple[np.ndarray, Any]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``python -m benchmarks storyboards``."""
    parser.add_argument("--model", default="toy-video")
    parser.add_argument("--cases", type=int, default=10, help="storyboards of three shots each (default 10)")
    parser.add_argument("--size", default="25x128x128", help="frames x height x width of what the model makes at once")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=20.0, help="of processor time, then it stops (default 20)")
    parser.add_argument("--methods", nargs="*", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--output", type=Path, default=RESULTS)


def _spans(lengths: list[int]) -> list[tuple[int, int]]:
    ends = np.cumsum(lengths).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _single(pipeline: Any, frames: int, size: tuple[int, int], steps: int, prompt: str, seed: int) -> np.ndarray:
    import torch

    made = pipeline(
        prompt, num_frames=frames, height=size[0], width=size[1], num_inference_steps=steps, guidance_scale=4.0,
        max_sequence_length=64, generator=torch.Generator().manual_seed(seed), output_type="np",
    )  # fmt: skip
    return (np.asarray(made.frames[0]) * 255).round().astype(np.uint8)


def _concatenated(pipeline: Any, size: tuple[int, int, int], steps: int) -> Run:
    frames, *canvas = size

    def run(case: Any, seed: int) -> tuple[np.ndarray, Any]:
        made = [_single(pipeline, frames, tuple(canvas), steps, p, seed + n) for n, p in enumerate(case.prompts)]
        return np.concatenate(made), _spans([frames] * len(made))

    return run


def _ditctrl(**settings: Any) -> Callable[..., Run]:
    def make(pipeline: Any, size: tuple[int, int, int], steps: int) -> Run:
        import torch

        import genkit

        own = genkit.DiTCtrlPipeline.from_pipe(pipeline)

        def run(case: Any, seed: int) -> tuple[np.ndarray, Any]:
            made = own(
                case.prompts, tile_frames=size[0], height=size[1], width=size[2], num_inference_steps=steps,
                guidance_scale=4.0, max_sequence_length=64, generator=torch.Generator().manual_seed(seed), **settings,
            )  # fmt: skip
            return made.frames, made.plan.spans

        return run

    return make


def _long(pipeline: Any, size: tuple[int, int, int], steps: int) -> Run:
    from genkit.editing.ditctrl.pipeline import plan_of

    plan = plan_of(SHOTS, None, size[0], None, 1, 0, 4)

    def run(case: Any, seed: int) -> tuple[np.ndarray, Any]:
        prompt = " and ".join(case.prompts)
        return _single(pipeline, plan.frames, size[1:], steps, prompt, seed), plan.spans

    return run


def _chained(pipeline: Any, size: tuple[int, int, int], steps: int) -> Run:
    import torch

    import genkit

    given = genkit.WanGivenFramesPipeline.from_pipe(pipeline)
    given.set_progress_bar_config(disable=True)
    own = genkit.ShotChainPipeline(given)

    def run(case: Any, seed: int) -> tuple[np.ndarray, Any]:
        made = own(
            case.prompts, window_frames=size[0], height=size[1], width=size[2], num_inference_steps=steps,
            guidance_scale=4.0, max_sequence_length=64, generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        return made.frames, made.plan.spans

    return run


#: Line of the table -> what makes it.
METHODS: dict[str, Callable[..., Run]] = {
    "clips one after the other": _concatenated,
    "one long run": _long,
    "DiTCtrl": _ditctrl(),
    "DiTCtrl, no transition": _ditctrl(overlap=2, transitions=0),
    "DiTCtrl, no transition, no sharing": _ditctrl(overlap=2, transitions=0, sharing="none"),
    "chained shots": _chained,
}


def run(options: argparse.Namespace) -> int:
    """Measure case by case, going on from an earlier run, and write the report."""
    import torch

    import genkit
    from genkit.evaluation.storyboard import draw_storyboards, judge_shots
    from genkit.models import locate

    torch.set_num_threads(1)
    pipeline = genkit.load(options.model)
    pipeline.set_progress_bar_config(disable=True)
    store, facts = Store(options.output / f"{NAME}.json"), environment()
    weights = weights_of(locate(options.model).path)
    settings = {"size": options.size, "steps": options.steps}
    rows = {
        name: store.row(options.model, f"{SHOTS} shots, {options.size}", name, settings, weights) for name in METHODS
    }
    store.facts = facts
    cases = draw_storyboards(options.cases, seed=24)
    makers = {name: METHODS[name](pipeline, parse_size(options.size), options.steps) for name in options.methods}
    clips: dict[tuple[str, int], tuple[np.ndarray, Any]] = {}
    begun = time.process_time()
    for number, case in enumerate(cases):
        for name, make in makers.items():
            if rows[name].count != number or time.process_time() - begun > 60 * options.minutes:
                continue
            wall, cpu = time.perf_counter(), time.process_time()
            clip, spans = make(case, NOISE + 10 * number)
            spent = {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
            clips[name, number] = clip, spans
            rows[name].add(spent | {"frames": float(len(clip))} | judge_shots(case.scenes, clip, spans))
            line = machine_line(facts)
            rows[name].at += [] if line in rows[name].at else [line]
            tell(name, number + 1, len(cases))
            write_results(NAME, store.data(), _report(store), options.output)
    _sheet(cases, clips, options.output / f"{NAME}.png")
    report(NAME, store.data(), _report(store), options.output)
    return 0


def _report(store: Store) -> str:
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in store.rows.values():
        if not row.count:
            continue
        line: dict[str, Any] = {"clip": row.method, "cases": row.count, "frames": f"{row.values('frames')[0]:.0f}"}
        line |= {title: _share(row, key) for title, key in COLUMNS}
        line["jump at borders"] = f"{np.median(row.values('jump')):.2f}"
        line["s of one core"] = f"{np.median(row.values('cpu')):.0f}"
        kinds.setdefault(f"{row.model}, {row.kind} at once, {row.settings['steps']} steps", []).append(line)
    sections = [part for title, lines in kinds.items() for part in (f"## {title}", "", table(lines), "")]
    return "\n".join(
        [
            "# Three prompts, one clip",
            "",
            machine_line(store.facts),
            "Guidance 4, one thread. One object of the training's kind, three directions. Shots are judged one by one, "
            "by their own prompts; shares in percent with their standard error over the storyboards. Keeps colour and "
            "shape: the judge reads the same of both in the shots before and behind a border. Without a cut: the "
            "largest difference of neighbouring frames within three of a border is at most 1.5 medians of the others; "
            "jump: that largest difference, in medians, its median over the storyboards. Clips one after the other are "
            "the model's accuracy on single clips. Stopped runs go on where they were: numbers of cases may differ.",
            "",
            *sections,
            f"![]({NAME}.png)",
            "",
            "*The first storyboards of the latest run, every sixth frame; nothing picked by hand.*",
            "",
        ]
    )


def _share(row: Row, key: str) -> str:
    values = np.array(row.values(key))
    error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{100 * values.mean():.1f} ± {100 * error:.1f}"


def _sheet(cases: list[Any], clips: dict[tuple[str, int], tuple[np.ndarray, Any]], path: Path, most: int = 3) -> None:
    """Every sixth frame of the first storyboards, a row a method."""
    from genkit.evaluation.sheet import contact_sheet, save_sheet

    shown = sorted({number for _, number in clips})[:most]
    groups, titles = [], []
    longest = max((len(clip[::6]) for clip, _ in clips.values()), default=0)
    for number in shown:
        for name in METHODS:
            if (name, number) not in clips:
                continue
            frames = clips[name, number][0][::6]
            blank = np.full((longest - len(frames), *frames.shape[1:]), 255, np.uint8)
            groups.append(np.concatenate([frames, blank]))
            motions = ", ".join(scene.actors[0].motion for scene in cases[number].scenes)
            titles.append(f"{name}: {cases[number].prompts[0]} ({motions})")
    if groups:
        save_sheet(contact_sheet(groups, titles, 1, longest), path)
