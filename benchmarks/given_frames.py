"""Frames that are given on toy-video: a first and a last one are kept, a clip that is continued goes on."""

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

NAME = "given_frames"
#: Frames of a clip that are continued, and that are made behind it.
BEFORE, NEW = 21, 20
#: Noise of the first case.
NOISE = 7000
Made = tuple[np.ndarray, dict[str, float]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``python -m benchmarks given_frames``."""
    parser.add_argument("--model", default="toy-video")
    parser.add_argument("--cases", type=int, default=20, help="clips of every kind (default 20)")
    parser.add_argument("--size", default="25x128x128", help="frames x height x width of what the model makes at once")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=10.0, help="of processor time, then it stops (default 10)")
    parser.add_argument("--kinds", nargs="*", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--output", type=Path, default=RESULTS)


class Maker:
    """Makes clips with given frames.

    Args:
        pipeline: a WanPipeline that is trained for them. size: frames, height and width. steps: of denoising.
    """

    def __init__(self, pipeline: Any, size: tuple[int, int, int], steps: int):
        import genkit

        self.pipe = genkit.WanGivenFramesPipeline.from_pipe(pipeline)
        self.pipe.set_progress_bar_config(disable=True)
        self.chain, self.size, self.steps = genkit.ShotChainPipeline(self.pipe), size, steps

    def options(self, seed: int) -> dict[str, Any]:
        """What every call has."""
        import torch

        return {
            "height": self.size[1], "width": self.size[2], "num_inference_steps": self.steps, "guidance_scale": 4.0,
            "max_sequence_length": 64, "generator": torch.Generator().manual_seed(seed),
        }  # fmt: skip

    def with_picture(self, case: Any, seed: int, name: str, frame: np.ndarray) -> np.ndarray:
        """A clip with one given picture, uint8 (F, H, W, 3)."""
        from PIL import Image

        from genkit.world.caption import caption

        given = {name: Image.fromarray(frame)}
        made = self.pipe(caption(case.scene), **given, num_frames=self.size[0], **self.options(seed)).frames[0]
        return (np.asarray(made) * 255).round().astype(np.uint8)


def _cases(kind: str, count: int, size: tuple[int, int, int]) -> list[Any]:
    from genkit.evaluation.given_frames import draw_begun

    if kind.startswith("clip"):
        return draw_begun(count, 25, BEFORE + NEW, BEFORE, size[1:])
    return draw_begun(count, 24, size[0], size[0], size[1:])


def _first(maker: Maker, case: Any, seed: int) -> Made:
    from genkit.evaluation.given_frames import judge_kept

    made = maker.with_picture(case, seed, "image", case.clip[0])
    return made, {**judge_kept(case.clip[0], made[0]), **_shown(case, made)}


def _last(maker: Maker, case: Any, seed: int) -> Made:
    from genkit.evaluation.given_frames import judge_kept

    made = maker.with_picture(case, seed, "last_image", case.clip[-1])
    return made, {**judge_kept(case.clip[-1], made[-1]), **_shown(case, made)}


def _shown(case: Any, made: np.ndarray) -> dict[str, float]:
    from genkit.evaluation.storyboard import SMOOTH, border_jumps
    from genkit.world.judge import judge_clip, score

    right = score(case.scene, judge_clip(made))
    (jump,) = border_jumps(made, [len(made) // 2])
    return {"motion": float(right["motion"]), "all": float(right["all"]), "smooth": float(jump <= SMOOTH)}


def _continued(within: int) -> Callable[[Maker, Any, int], Made]:
    def run(maker: Maker, case: Any, seed: int) -> Made:
        from genkit.evaluation.given_frames import judge_continued
        from genkit.world.caption import caption

        window = within + NEW
        made = maker.chain(
            [caption(case.scene)], [NEW], clip=case.source, window_frames=window, within_frames=within,
            **maker.options(seed),
        ).frames  # fmt: skip
        return made, judge_continued(case, made)

    return run


#: Row of the tables -> what makes a clip and judges it.
KINDS: dict[str, Callable[[Maker, Any, int], Made]] = {
    "first frame": _first,
    "last frame": _last,
    "clip, its last 5 frames": _continued(5),
    "clip, its last 9 frames": _continued(9),
    "clip, its last frame alone": _continued(1),
}


def run(options: argparse.Namespace) -> int:
    """Measure case by case, going on from an earlier run, and write the report."""
    import torch

    import genkit
    from genkit.models import locate

    torch.set_num_threads(1)
    pipeline = genkit.load(options.model)
    store, facts, size = Store(options.output / f"{NAME}.json"), environment(), parse_size(options.size)
    settings = {"size": options.size, "steps": options.steps}
    weights = weights_of(locate(options.model).path)
    rows = {kind: store.row(options.model, kind, "given", settings, weights) for kind in KINDS}
    store.facts, maker, shown = facts, Maker(pipeline, size, options.steps), {}
    begun = time.process_time()
    for kind in options.kinds:
        row = rows[kind]
        for number, case in enumerate(_cases(kind, options.cases, size)):
            if number < row.count or time.process_time() - begun > 60 * options.minutes:
                continue
            cpu = time.process_time()
            made, values = KINDS[kind](maker, case, NOISE + number)
            row.add({"cpu": time.process_time() - cpu, **values})
            line = machine_line(facts)
            row.at += [] if line in row.at else [line]
            shown[kind, number] = made, case
            tell(kind, number + 1, options.cases)
            write_results(NAME, store.data(), _report(store, rows, options), options.output)
    _sheet(shown, options.output / f"{NAME}.png")
    report(NAME, store.data(), _report(store, rows, options), options.output)
    return 0


def _report(store: Store, rows: dict[str, Row], options: argparse.Namespace) -> str:
    kept, goes = [], []
    for kind, row in rows.items():
        if not row.count:
            continue
        line: dict[str, Any] = {"given": kind, "clips": row.count}
        if kind.startswith("clip"):
            line |= {name: _share(row, name) for name in ("motion", "look", "goes on", "smooth")}
            line["jump"] = f"{np.median(row.values('jump')):.2f}"
            goes.append(line)
        else:
            line |= {name: _share(row, name) for name in ("object", "place", "colour", "kept")}
            line |= {"PSNR, dB": f"{np.mean(row.values('psnr')):.1f}", "lowest": f"{min(row.values('psnr')):.1f}"}
            line |= {"motion of the clip": _share(row, "motion"), "all right": _share(row, "all")}
            line["smooth in the middle"] = _share(row, "smooth")
            kept.append(line)
        line["s of one core"] = f"{np.median(row.values('cpu')):.1f}"
    return "\n".join(
        [
            "# Given frames",
            "",
            machine_line(store.facts),
            f"{options.model}, {options.size}, {options.steps} steps, guidance 4, one thread. What is given is "
            "rendered: one moving object of the training's kind. Shares in percent with their standard error.",
            "",
            "## A first or last frame is kept",
            "",
            "The frame of the clip against the one that was given. Object: one, of the same nearest shape. Place: "
            "centres at most 2.5 pixels apart. Kept: object, place and colour. Smooth in the middle: what a border is "
            "judged by below, at a frame that is none: how often a clip passes that is made in one piece.",
            "",
            table(kept) if kept else "Not measured.",
            "",
            "## A clip is continued",
            "",
            f"{BEFORE} rendered frames, and {NEW} that follow, judged by themselves. Motion: that of the clip goes on. "
            "Look: colour and nearest shape stay. Goes on: both. Smooth: the largest difference of neighbouring frames "
            "within three of the border is at most 1.5 medians of the others, of clips whose rendering keeps that; "
            "jump: that largest difference, in medians, its median over the clips.",
            "",
            table(goes) if goes else "Not measured.",
            "",
            f"![]({NAME}.png)",
            "",
            "*The first clips of each kind, every fourth frame, after the one that was given; nothing picked by hand.*",
            "",
        ]
    )  # fmt: skip


def _share(row: Row, key: str) -> str:
    values = np.array(row.values(key))
    error = (values.mean() * (1 - values.mean()) / max(len(values), 1)) ** 0.5
    return f"{100 * values.mean():.1f} ± {100 * error:.1f}"


def _sheet(shown: dict[tuple[str, int], tuple[np.ndarray, Any]], path: Path, most: int = 3) -> None:
    """Every fourth frame of the first clips, behind the given one; of clips from the last given frames on."""
    from genkit.evaluation.sheet import contact_sheet, save_sheet
    from genkit.world.caption import caption

    groups, titles = [], []
    for (kind, number), (made, case) in shown.items():
        if number >= most:
            continue
        given = case.clip[-1] if kind == "last frame" else case.clip[0]
        if kind.startswith("clip"):
            given, made = case.source[-1], made[case.before - 5 :]
        groups.append(np.concatenate([given[None], made[::4]]))
        titles.append(f"{kind}: {caption(case.scene)}")
    if groups:
        longest = max(map(len, groups))
        blank = [np.full((longest - len(group), *group.shape[1:]), 255, np.uint8) for group in groups]
        groups = [np.concatenate(pair) for pair in zip(groups, blank, strict=True)]
        save_sheet(contact_sheet(groups, titles, 1, longest), path)
