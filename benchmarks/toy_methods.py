"""Every attention method that fits toy-video against dense attention at a size of 1,792 tokens."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.compare import Variant, comparison_rows
from benchmarks.environment import RESULTS, environment, machine_line, table, write_results
from benchmarks.toy_common import parse_size

# Settings for a grid of 7 x 16 x 16 tokens; the first steps decide the layout of a clip and stay dense.
VARIANTS = (
    Variant("neighborhood", {"size": "7x8x8", "stride": "1x4x4"}, {"steps": "4:"}),
    Variant("sliding_window", {"base": "8,8"}, {"steps": "4:"}),
    Variant("radial", {"near": "decay", "sink": "false"}, {"steps": "4:", "layers": "1:"}),
    Variant("radial", {"near": "decay", "sink": "false"}, {"steps": "2:", "layers": "1:"}),
    Variant("mixture_of_block", {"temporal": "2", "spatial": "4,4", "box": "4,4,4"}, {"steps": "5:"}),
    Variant("mixture_of_block", {"temporal": "1", "spatial": "4,4", "box": "1,8,8"}, {"steps": "5:"}),
    Variant("agent", {}, {"steps": ":8", "layers": "2:-2"}),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``python -m benchmarks toy_methods``."""
    parser.add_argument("--model", default="toy-video")
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--size", default="25x256x256", help="frames x height x width")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--output", type=Path, default=RESULTS)


def run(options: argparse.Namespace) -> int:
    """Measure, print and write the report, which is whole after every prompt."""
    import genkit
    from genkit.evaluation.toy import ClipRequest

    pipeline = genkit.load(options.model)
    pipeline.set_progress_bar_config(disable=True)
    request = ClipRequest(*parse_size(options.size), options.steps, batch=1)
    facts = environment()

    def save(rows: list[dict[str, object]], prompts: int) -> None:
        data = {"environment": facts, "model": options.model, "size": options.size, "steps": options.steps}
        text = _text(options, facts, rows, prompts)
        write_results("toy_methods", data | {"prompts": prompts, "rows": rows}, text, options.output)

    rows = comparison_rows(pipeline, VARIANTS, options.prompts, request, save)
    print(_text(options, facts, rows, options.prompts))
    return 0


def _text(options: argparse.Namespace, facts: dict, rows: list[dict[str, object]], prompts: int) -> str:
    return "\n".join(
        [
            "# Attention methods on toy-video",
            "",
            machine_line(facts),
            f"{options.size}, {options.steps} UniPC steps, guidance 4, {prompts} seen prompts with one object, the "
            "same seeds for every row. Shares in percent with their standard error. Change: mean of "
            "background, colour, nearest shape and motion against dense, in points, prompt by prompt.",
            "",
            table(rows),
            "",
        ]
    )
