"""Heads and layers that keep full attention, chosen by learning or measuring against spread evenly, on toy-video.

Equal numbers of heads or layers are sparse in both; the error is that of the model's answer on noised latents of clips
that neither training nor calibration saw.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.environment import RESULTS, environment, machine_line, report, table

SPARSE = {"size": (3, 3, 3)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``python -m benchmarks routing``."""
    parser.add_argument("--minutes", type=float, default=4.0, help="of training the gates")
    parser.add_argument("--clips", type=int, default=16, help="held-out clips")
    parser.add_argument("--output", type=Path, default=RESULTS)


def run(options: argparse.Namespace) -> int:
    """Train, measure, print and write the report."""
    from genkit import Part, Schedule
    from genkit.attention.neighborhood import Neighborhood
    from genkit.training.data.world.clips import ClipSize, LatentPool
    from genkit.training.engine.curriculum import Stage
    from genkit.training.routing.layers import calibration, errors_of, layer_errors
    from genkit.training.routing.table import dense_layers, full_heads, head_parts, spread_layers, uniform_heads
    from genkit.training.tasks.denoiser import Denoiser
    from genkit.training.tasks.heads import HeadsTask
    from genkit.training.tasks.kind import load_pipeline
    from genkit.training.toys.video.model import sizes

    torch.set_num_threads(1)
    size, method = ClipSize(17, 128, 128), Neighborhood(**SPARSE)
    pipeline = load_pipeline("toy-video", ("WanPipeline",))
    denoiser = Denoiser(pipeline)
    started = time.perf_counter()
    errors = layer_errors(denoiser, method, calibration(pipeline, size, 3, seed=11))
    measured = time.perf_counter() - started
    rng = np.random.default_rng(5)
    stages = (Stage(0.0, sizes((17, 128, 128, 1.0))),)
    task = HeadsTask(pipeline, LatentPool(pipeline.vae, rng), method, stages=stages)
    optimizer = torch.optim.AdamW(task.parameters(), lr=5e-2, weight_decay=0)
    started, steps = time.perf_counter(), 0
    while time.perf_counter() - started < 60 * options.minutes:
        loss = task(task.draw(size, 2, rng))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
    gates = task.gates()
    task.patch.remove()
    heads, layers = len(gates[0]), len(gates)
    held = calibration(pipeline, size, options.clips, seed=77)

    def schedules(parts: list[dict[str, str]]) -> list[Part]:
        return [Part(method, Schedule(**part)) for part in parts]

    def others(dense: tuple[int, ...]) -> list[dict[str, str]]:
        return [{"layers": ",".join(str(layer) for layer in range(layers) if layer not in dense)}]

    cases = {
        ("half of the heads", "learned gates"): head_parts(full_heads(gates, 0.5), heads),
        ("half of the heads", "evenly"): head_parts(uniform_heads(gates, 0.5), heads),
        ("all but 2 layers", "measured errors"): others(dense_layers(errors, 2)),
        ("all but 2 layers", "evenly"): others(spread_layers(layers, 2)),
        ("all heads and layers", "-"): [{"layers": ":"}],
    }
    found = {case: errors_of(denoiser, schedules(parts), held) for case, parts in cases.items()}
    rows = []
    for (sparse, chosen), values in found.items():
        even = found.get((sparse, "evenly"), values)
        less = [other - own for own, other in zip(values, even, strict=True)]
        rows.append(
            {
                "sparse": sparse,
                "chosen by": chosen,
                "error": _told(values),
                "less than evenly, same clips": _told(less) if chosen not in ("evenly", "-") else "",
            }
        )
    facts = environment()
    text = (
        "\n\n".join(
            [
                "# Which heads and layers keep full attention",
                f"{machine_line(facts)} toy-video, clips of {size}, neighborhood attention with windows of 3 x 3 x 3 "
                f"tokens. Error: squared distance of the model's answer to the dense model's over its variance, one "
                f"noise level a clip, mean over {options.clips} held-out clips with its standard error. Gates: {steps} "
                f"steps of two clips in {options.minutes:g} minutes; layers: {measured:.0f} s on 3 clips.",
                table(rows),
                f"Gates: {'; '.join(' '.join(f'{gate:.2f}' for gate in row) for row in gates.values())} (layers in "
                f"order). Errors of layers alone: {', '.join(f'{error:.4f}' for error in errors)}.",
            ]
        )
        + "\n"
    )
    report("routing", {"environment": facts, "steps": steps, "rows": rows, "gates": gates}, text, options.output)
    return 0


def _told(values: list[float]) -> str:
    return f"{statistics.mean(values):.5f} ± {statistics.stdev(values) / len(values) ** 0.5:.5f}"
