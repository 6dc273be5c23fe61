"""A few-step student against its teacher, on the same prompts from the same noise: what the judge says, and the time of
one clip."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.environment import RESULTS, environment, machine_line, report, table
from benchmarks.toy_common import SPLITS, shares, split_counts, tell
from genkit.reading import whole

NAME = "few_steps"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``python -m benchmarks few_steps``."""
    parser.add_argument("--model", default="toy-video")
    parser.add_argument("--lora", type=Path, help="of the student; the model's own (--fast) when left out")
    parser.add_argument("--prompts", type=int, default=200, help="half of them seen, half held out (default 200)")
    parser.add_argument("--pairs", type=int, default=24, help="prompts with two objects besides (default 24)")
    parser.add_argument("--timed", type=int, default=7, help="clips whose time is taken, one at a time; the median")
    parser.add_argument("--threads", type=whole(1))
    parser.add_argument("--output", type=Path, default=RESULTS)


def run(options: argparse.Namespace) -> int:
    """Measure, print and write the report."""
    import torch

    import genkit
    from genkit.evaluation.toy import ClipRequest
    from genkit.lora.files import Lora, lora_file
    from genkit.models import locate
    from genkit.models.check import FAST
    from genkit.pipelines.few_steps import few_steps_of

    if options.threads:
        torch.set_num_threads(options.threads)
    folder = options.lora or locate(options.model).path / FAST
    few = few_steps_of([Lora(lora_file(folder))])
    if few is None:
        raise SystemExit(f"{folder} is no LoRA for few steps")
    chosen = _prompts(options)
    pipeline = genkit.load(options.model, dtype=torch.bfloat16)
    pipeline.set_progress_bar_config(disable=True)
    full = ClipRequest()
    short = replace(full, steps=few.sampling.steps)
    found = {
        f"the model, {full.steps} steps, guidance {full.guidance_scale:g}": _measured(pipeline, chosen, full, options),
        f"the model, {short.steps} steps, guidance {short.guidance_scale:g}": _measured(
            pipeline, chosen, short, options
        ),
    }
    few.apply(pipeline, None)
    pipeline.load_lora_weights(str(folder))
    told = replace(short, guidance_scale=few.sampling.guidance_scale)
    found[f"the student, {short.steps} steps, no guidance"] = _measured(pipeline, chosen, told, options)
    facts = environment()
    rows = [_row(name, each, next(iter(found.values())), chosen) for name, each in found.items()]
    data = {"environment": facts, "model": options.model, "prompts": len(chosen), "rows": rows}
    report(NAME, data, _text(data, facts), options.output)
    return 0


def _prompts(options: argparse.Namespace) -> list[tuple[str, object, str]]:
    """(kind, scene, caption) of everything that is asked for."""
    from genkit.evaluation.toy import draw_prompts

    counts = split_counts(options.prompts)
    plans = [("single", split, counts[split], 1) for split, _ in SPLITS] + [("pair", "train", options.pairs, 2)]
    return [
        (kind, scene, text)
        for kind, split, count, actors in plans
        for scene, text in draw_prompts(split, count, seed=1234, actors=actors)
    ]


def _measured(pipeline, chosen, request, options: argparse.Namespace) -> dict:
    """Results of every prompt, and the median seconds of one clip."""
    from genkit.evaluation.toy import generate_clips, judge_clips

    texts = [text for _, _, text in chosen]
    title = f"{request.steps} steps"
    clips, _ = generate_clips(pipeline, texts, request, 1000, lambda done, total: tell(title, done, total))
    _, results = judge_clips([scene for _, scene, _ in chosen], clips)
    seconds = []
    for text in texts[: options.timed]:
        started = time.perf_counter()
        generate_clips(pipeline, [text], replace(request, batch=1), 1000)
        seconds.append(time.perf_counter() - started)
    return {"results": results, "seconds": float(np.median(seconds))}


def _row(name: str, found: dict, first: dict, chosen) -> dict[str, object]:
    """Shares of the single objects, what the pairs come to, and the difference to the first row, prompt by prompt."""
    from genkit.evaluation.toy import ATTRIBUTES, accuracy_of

    single = [index for index, (kind, _, _) in enumerate(chosen) if kind == "single"]
    pair = [index for index, (kind, _, _) in enumerate(chosen) if kind == "pair"]
    row: dict[str, object] = {"sampled": name}
    row |= shares(accuracy_of([found["results"][index] for index in single], ATTRIBUTES), ATTRIBUTES)
    change = np.array([found["results"][i]["all"] - first["results"][i]["all"] for i in single], float) * 100
    row["all, change"] = f"{change.mean():+.1f} ± {change.std() / len(change) ** 0.5:.1f}" if change.any() else ""
    if pair:
        row |= {"two objects, all": shares(accuracy_of([found["results"][i] for i in pair], ("all",)), ("all",))["all"]}
    return row | {"s a clip": f"{found['seconds']:.2f}"}


def _text(data: dict, facts: dict) -> str:
    return "\n".join(
        [
            "# Few steps",
            "",
            machine_line(facts),
            f"{data['model']}, 25x128x128, bfloat16, {data['prompts']} prompts, half of them seen; the same noise in "
            'every row. Shares in percent with their standard error; the change of "all" is prompt by prompt. Seconds: '
            "the median of one clip at a time, text and decoding included.",
            "",
            table(data["rows"]),
            "",
        ]
    )
