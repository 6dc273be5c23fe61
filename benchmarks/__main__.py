"""``python -m benchmarks NAME``: run one registered benchmark."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from genkit.errors import GenkitError
from genkit.media.atomic import check_writable

# Name -> module with add_arguments(parser) and run(options).
BENCHMARKS = {
    "toy_video": "benchmarks.toy_video",
    "toy_methods": "benchmarks.toy_methods",
    "methods": "benchmarks.methods.run",
    "leaderboard": "benchmarks.leaderboard.run",
    "recall": "benchmarks.recall",
    "linear_branch": "benchmarks.linear_branch",
    "toy_upscale": "benchmarks.toy_upscale",
    "toy_reference": "benchmarks.toy_reference",
    "toy_boxes": "benchmarks.toy_boxes",
    "toy_image": "benchmarks.toy_image",
    "toy_dit": "benchmarks.toy_dit",
    "toy_av": "benchmarks.toy_av",
    "toy_context": "benchmarks.toy_context",
    "few_steps": "benchmarks.few_steps",
    "sparse_student": "benchmarks.sparse_student",
    "first_prompts": "benchmarks.first_prompts",
    "bands": "benchmarks.bands",
    "tuning_trials": "benchmarks.tuning_trials",
    "storyboards": "benchmarks.storyboards",
    "long_clips": "benchmarks.long_clips",
    "given_frames": "benchmarks.given_frames",
    "seam": "benchmarks.seam",
    "swap_gaps": "benchmarks.swap_gaps",
    "same_outputs": "benchmarks.same_outputs",
    "streaming": "benchmarks.streaming",
    "methods_cpu": "benchmarks.methods_cpu",
    "attention_grid": "benchmarks.attention_grid",
    "biases": "benchmarks.biases",
    "routing": "benchmarks.routing",
    "lora_kills": "benchmarks.lora.kills",
    "lora_speed": "benchmarks.lora.speed",
    "lora_length": "benchmarks.lora.length",
    "lora_concept": "benchmarks.lora.concept",
    "demo": "benchmarks.demo",
    "editing": "benchmarks.editing.edit",
    "editing_consistent": "benchmarks.editing.subjects",
    "editing_style": "benchmarks.editing.style",
    "editing_inpaint": "benchmarks.editing.fill",
    "plans": "benchmarks.kernels.plans",
    "kernels_cpu": "benchmarks.kernels.cpu",
    "kernels_linear": "benchmarks.kernels.linear",
    "kernels_gpu": "benchmarks.kernels.gpu",
    "kernels_static": "benchmarks.kernels.static",
}


#: Options that name where results go.
FOLDERS = ("output", "work", "folder")


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and run the benchmark it names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="name", required=True)
    given = sys.argv[1:] if arguments is None else arguments
    for name, module in BENCHMARKS.items():
        # Only the benchmark that is named gets imported: some need packages that others do without.
        wanted = name in given[:1]
        loaded = importlib.import_module(module) if wanted else None
        text = loaded.__doc__ if loaded else None
        command = commands.add_parser(name, help=f"see python -m benchmarks {name} --help", description=text)
        if loaded:
            loaded.add_arguments(command)
            command.set_defaults(run=loaded.run)
    options = parser.parse_args(given)
    try:
        for setting in FOLDERS:
            check(getattr(options, setting, None), f"--{setting}")
        return options.run(options)
    except GenkitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def check(target: object, setting: str) -> None:
    """Refuse a folder, or a file's folder, that cannot be written: a benchmark may run for hours before it writes."""
    if isinstance(target, Path):
        check_writable(target.parent if target.suffix else target, setting)


if __name__ == "__main__":
    sys.exit(main())
