"""Heads and layers that keep full attention, chosen by learning or measuring against spread evenly, on toy-video.

Equal numbers of heads or layers are sparse in both; a router of layers is led to that share. The error is that of the
model's answer on noised latents of clips that neither training nor calibration saw; beside it whole clips are made.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.environment import RESULTS, environment, machine_line, report, table

SPARSE = {"size": (3, 3, 3)}
HELD = 77  # seed of the held-out clips
FRAMES, SIDE = 17, 128


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``python -m benchmarks routing``."""
    parser.add_argument("--minutes", type=float, default=4.0, help="of training the gates, of heads and of layers")
    parser.add_argument("--router-minutes", type=float, default=12.0, help="of training the router of layers")
    parser.add_argument("--clips", type=int, default=16, help="held-out clips")
    parser.add_argument("--prompts", type=int, default=6, help="prompts of whole clips")
    parser.add_argument("--steps", type=int, default=8, help="sampling steps of whole clips")
    parser.add_argument("--output", type=Path, default=RESULTS)


@dataclass
class Found:
    """One way to choose, measured.

    Args:
        errors: of every held-out clip. work: query-key pairs paid for in each of them, as a share of dense attention's.
        psnr: of every whole clip to the dense one. clip_work: the same share there. seconds: inside attention calls of
            the patched layers, a clip. remarks: of the report on the whole clips.
    """

    errors: list[float]
    work: list[float]
    psnr: list[float]
    clip_work: float
    remarks: tuple[str, ...]


def train(task: Any, size: Any, minutes: float, lr: float, rng: np.random.Generator) -> int:
    """Train on fresh batches of two clips, with a falling rate at the end; returns the number of steps."""
    from genkit.training.tasks.layers import ShareTask, temperature

    optimizer = torch.optim.AdamW(task.parameters(), lr=lr, weight_decay=0)
    started, steps = time.perf_counter(), 0
    while (progress := (time.perf_counter() - started) / (60 * minutes)) < 1:
        if isinstance(task, ShareTask):
            task.draws.temperature, task.seed = temperature(progress), steps
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (1 - progress) / 0.4)
        loss = task(task.draw(size, 2, rng))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
    task.patch.remove()
    return steps


class Measure:
    """Dense answers and dense clips, and what is measured against them.

    Args:
        pipeline: the model. size: of the noised clips. options: of the command.
    """

    def __init__(self, pipeline: Any, size: Any, options: argparse.Namespace):
        from genkit.evaluation.first_prompts import CLIP_PROMPTS
        from genkit.training.routing.layers import calibration
        from genkit.training.tasks.denoiser import Denoiser

        self.pipeline, self.denoiser = pipeline, Denoiser(pipeline)
        self.batches = calibration(pipeline, size, options.clips, seed=HELD)
        self.texts = [each.text for each in CLIP_PROMPTS[:: max(1, len(CLIP_PROMPTS) // options.prompts)]]
        self.texts, self.steps = self.texts[: options.prompts], options.steps
        with torch.no_grad():
            self.answers = [self.answer(batch) for batch in self.batches]
        self.dense = [self.clip(text, seed) for seed, text in enumerate(self.texts)]

    def answer(self, batch: Any) -> torch.Tensor:
        """The model's answer to noised latents."""
        return self.denoiser.predict(batch.noisy, batch.level, batch.text)

    def clip(self, text: str, seed: int) -> np.ndarray:
        """A whole clip (frames, height, width, 3)."""
        generator = torch.Generator().manual_seed(seed)
        size = {"height": SIDE, "width": SIDE, "num_frames": FRAMES, "num_inference_steps": self.steps}
        return self.pipeline(text, generator=generator, output_type="np", **size).frames[0]

    @torch.no_grad()
    def of(self, parts: Any) -> Found:
        """Methods on parts of the model."""
        from genkit import patch
        from genkit.evaluation.metrics import psnr

        errors, work = [], []
        for batch, dense in zip(self.batches, self.answers, strict=True):
            with patch(self.denoiser.module, parts) as handle:
                errors.append(float((self.answer(batch) - dense).square().mean() / dense.var()))
                work.append(handle.report().work or 0.0)
        with patch(self.pipeline, parts) as handle:
            clips = [self.clip(text, seed) for seed, text in enumerate(self.texts)]
            told = handle.report()
        found = [psnr(one, other) for one, other in zip(clips, self.dense, strict=True)]
        return Found(errors, work, found, told.work or 0.0, told.remarks)

    def by_level(self, work: list[float]) -> str:
        """The work of clips with more and with less noise than the middle one, in words."""
        order = sorted(range(len(work)), key=lambda at: float(self.batches[at].level))
        half = len(order) // 2
        low, high = (statistics.mean(work[at] for at in part) for part in (order[:half], order[half:]))
        return f"{low:.1%} in the half of the held-out clips with the lower noise levels, {high:.1%} in the other"


def run(options: argparse.Namespace) -> int:
    """Train, measure, print and write the report."""
    from genkit import LayerRouter, Part, Schedule
    from genkit.attention.neighborhood import Neighborhood
    from genkit.training.data.world.clips import ClipSize, LatentPool
    from genkit.training.engine.curriculum import Stage
    from genkit.training.routing.layers import calibration, layer_errors
    from genkit.training.routing.table import dense_layers, full_heads, head_parts, spread_layers, uniform_heads
    from genkit.training.tasks.heads import HeadsTask
    from genkit.training.tasks.kind import load_pipeline
    from genkit.training.tasks.layer_router import RouterTask
    from genkit.training.tasks.layers import LayersTask
    from genkit.training.toys.video.model import sizes

    torch.set_num_threads(1)
    size, method = ClipSize(FRAMES, SIDE, SIDE), Neighborhood(**SPARSE)
    pipeline = load_pipeline("toy-video", ("WanPipeline",))
    measure = Measure(pipeline, size, options)
    started = time.perf_counter()
    errors = layer_errors(measure.denoiser, method, calibration(pipeline, size, 3, seed=11))
    measured = time.perf_counter() - started
    rng, stages, steps = np.random.default_rng(5), (Stage(0.0, sizes((FRAMES, SIDE, SIDE, 1.0))),), {}

    def pool() -> LatentPool:
        return LatentPool(pipeline.vae, rng)

    heads_task = HeadsTask(pipeline, pool(), method, stages=stages)
    steps["gates of heads"] = train(heads_task, size, options.minutes, 5e-2, rng)
    layers_task = LayersTask(pipeline, pool(), method, 0.5, stages=stages)
    steps["gates of layers"] = train(layers_task, size, options.minutes, 1e-1, rng)
    router = LayerRouter(sparse=method, untrained=True)  # type: ignore[arg-type]
    router_task = RouterTask(pipeline, pool(), router, 0.5, stages=stages)
    steps["router"] = train(router_task, size, options.router_minutes, 2e-3, rng)
    gates = heads_task.gates()
    heads, layers = len(gates[0]), len(gates)

    def of(parts: list[dict[str, str]]) -> list[Part]:
        return [Part(method, Schedule(**part)) for part in parts]

    def others(dense: tuple[int, ...]) -> list[dict[str, str]]:
        return [{"layers": ",".join(str(layer) for layer in range(layers) if layer not in dense)}]

    half = layers // 2
    with tempfile.TemporaryDirectory() as folder:
        file = router_task.save(Path(folder) / "layer_router.safetensors")
        cases = {
            ("half of the heads", "learned gates"): of(head_parts(full_heads(gates, 0.5), heads)),
            ("half of the heads", "evenly"): of(head_parts(uniform_heads(gates, 0.5), heads)),
            ("half of the layers", "router"): [Part(LayerRouter(sparse=router.sparse, weights=str(file)))],
            ("half of the layers", "learned gates"): of(others(layers_task.full())),
            ("half of the layers", "measured errors"): of(others(dense_layers(errors, half))),
            ("half of the layers", "evenly"): of(others(spread_layers(layers, half))),
            ("all but 2 layers", "measured errors"): of(others(dense_layers(errors, 2))),
            ("all but 2 layers", "evenly"): of(others(spread_layers(layers, 2))),
            ("all heads and layers", "-"): of([{"layers": ":"}]),
        }
        found = {case: measure.of(parts) for case, parts in cases.items()}
    rows = [_row(case, found) for case in found]
    routed = found["half of the layers", "router"]
    facts = environment()
    trained = ", ".join(f"{name} {count}" for name, count in steps.items())
    text = (
        "\n\n".join(
            [
                "# Which heads and layers keep full attention",
                f"{machine_line(facts)} toy-video, clips of {size}, neighborhood attention with windows of 3 x 3 x 3 "
                f"tokens. Error: squared distance of the model's answer to the dense model's over its variance, one "
                f"noise level a clip, mean over {options.clips} held-out clips with its standard error. PSNR to dense: "
                f"of {len(measure.texts)} whole clips of {options.steps} steps. Work: query-key pairs that were paid "
                f"for, as a share of dense self-attention's, on the held-out clips and on the whole ones. "
                f"Steps of two clips: {trained}, in {options.minutes:g} minutes each, the router in "
                f"{options.router_minutes:g}; errors of layers: {measured:.0f} s on 3 clips. The router's share of "
                f"sparse decisions was led to a half.",
                table(rows),
                f"Gates of heads: {'; '.join(' '.join(f'{gate:.2f}' for gate in row) for row in gates.values())} "
                f"(layers in order). Logits of the gates of layers: "
                f"{', '.join(f'{logit:.2f}' for logit in layers_task.logits().values())}. Errors of layers alone: "
                f"{', '.join(f'{error:.4f}' for error in errors)}.",
                f"Router on the whole clips: {'; '.join(routed.remarks)}. Work: {measure.by_level(routed.work)}.",
            ]
        )
        + "\n"
    )
    report("routing", {"environment": facts, "steps": steps, "rows": rows, "gates": gates}, text, options.output)
    return 0


def _row(case: tuple[str, str], found: dict[tuple[str, str], Found]) -> dict[str, str]:
    """The table's row of a case."""
    (sparse, chosen), own = case, found[case]
    even = found.get((sparse, "evenly"), own)
    less = [other - mine for mine, other in zip(own.errors, even.errors, strict=True)]
    return {
        "sparse": sparse,
        "chosen by": chosen,
        "error": _told(own.errors, 5),
        "less than evenly, same clips": _told(less, 5) if chosen not in ("evenly", "-") else "",
        "PSNR to dense": _told(own.psnr, 2),
        "work": f"{statistics.mean(own.work):.1%}, {own.clip_work:.1%}",
    }


def _told(values: list[float], digits: int) -> str:
    error = statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):.{digits}f} ± {error:.{digits}f}"
