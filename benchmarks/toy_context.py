"""Cross-modal context attention on toy-av: does what is heard fit better to what is seen?"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.environment import RESULTS, environment, machine_line, report, table
from benchmarks.toy_av import sound_row
from benchmarks.toy_common import parse_size, tell, trained_facts, trained_text


@dataclass(frozen=True)
class Way:
    """One way to run the model.

    Args:
        title: in the table.
        trained: with trained context tokens; False = training-free, None = not patched.
        guided: with guidance against the pass in which the modalities are apart (or read context tokens).
    """

    title: str
    trained: bool | None
    guided: bool = False


WAYS = (
    Way("the model itself", None),
    Way("the model itself, modality guidance", None, True),
    Way("training-free", False),
    Way("training-free, modality guidance", False, True),
    Way("trained", True),
    Way("trained, guidance against context tokens", True, True),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``python -m benchmarks toy_context``."""
    parser.add_argument("--model", default="toy-av")
    parser.add_argument("--weights", type=Path, help="file of scripts/train_patch.py cross_modal_context")
    parser.add_argument("--prompts", type=int, default=48, help="seen prompts with one object (default 48)")
    parser.add_argument("--size", default="25x128x128", help="frames x height x width")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--scale", type=float, default=3.0, help="of modality guidance (default 3)")
    parser.add_argument("--output", type=Path, default=RESULTS)


def run(options: argparse.Namespace) -> int:
    """Measure, print and write the report."""
    import genkit
    from genkit.evaluation import toy_av as judged

    pipeline = genkit.load(options.model)
    pipeline.set_progress_bar_config(disable=True)
    frames, height, width = parse_size(options.size)
    request = judged.SoundRequest.of_model(
        options.model, num_frames=frames, height=height, width=width, steps=options.steps
    )
    bias = judged.own_bias(request)
    prompts = judged.draw_sound_prompts("train", options.prompts, 4321)
    rows = [
        _measure(pipeline, way, prompts, request, bias, options)
        for way in WAYS
        if not way.trained or options.weights is not None
    ]
    facts = environment()
    data = {"environment": facts, "model": options.model, "size": options.size, "steps": options.steps}
    data |= {"scale": options.scale, "weights": trained_facts(options.weights), "rows": rows}
    text = _report(data, facts)
    report("toy_context", data, text, options.output)
    return 0


def _measure(pipeline: Any, way: Way, prompts: list, request: Any, bias: float, options: argparse.Namespace) -> dict:
    """One row, the same prompts and seeds as every other."""
    import genkit
    from genkit.attention.registry import trained
    from genkit.evaluation import toy_av as judged

    scale = options.scale if way.guided else 1.0
    request = replace(request, call={**request.call, "modality_scale": scale, "audio_modality_scale": scale})
    patch = None
    if way.trained is not None:
        name = "cross_modal_context"
        patch = genkit.patch(pipeline, trained(name, options.weights) if way.trained else genkit.CrossModalContext())
    try:
        clips, seconds = judged.generate_sound_clips(
            pipeline, [text for _, text in prompts], request, 3000, lambda done, total: tell(way.title, done, total)
        )
    finally:
        if patch is not None:
            patch.remove()
    return sound_row(way.title, [scene for scene, _ in prompts], clips, request, bias, seconds)


def _report(data: dict, facts: dict) -> str:
    return "\n".join(
        [
            "# Cross-modal context attention on toy-av",
            "",
            machine_line(facts),
            f"{data['size']}, {data['steps']} steps, seen prompts with one object, the same seeds for every row. "
            f"Guidance {data['scale']:g} means `modality_scale` and `audio_modality_scale`. Columns as in toy_av.md. "
            + trained_text(data["weights"]),
            "",
            table(data["rows"]),
            "",
        ]
    )
