"""Measure which layers need full attention, and write a recipe that leaves them dense.

python scripts/route_layers.py --attention neighborhood --attention-args size=3x5x5 --dense 2 --output layers.yaml

The method is put on every layer alone, and the error of the model's answer on noised latents of the toy world is
compared. The layers with the largest errors keep their own attention.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="toy-video", help="a model whose patches can be trained (default toy-video)")
    parser.add_argument("--attention", default="neighborhood", help="the method of the other layers")
    parser.add_argument("--attention-args", default="size=3x5x5", help="its settings")
    parser.add_argument("--dense", type=int, default=2, help="layers that stay dense")
    parser.add_argument("--samples", type=int, default=4, help="clips that are measured on")
    parser.add_argument("--frames", type=int, default=25)
    parser.add_argument("--size", type=int, default=192, help="height and width in pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("layers.yaml"))
    options = parser.parse_args(arguments)

    from genkit.attention import registry
    from genkit.errors import UsageError, explain
    from genkit.families.lookup import able
    from genkit.pipelines.text import parse_pairs
    from genkit.training.data.world.clips import ClipSize
    from genkit.training.routing.layers import calibration, layer_errors
    from genkit.training.routing.table import dense_layers, write_recipe
    from genkit.training.tasks.denoiser import Denoiser
    from genkit.training.tasks.kind import load_pipeline

    if options.samples < 1:
        raise UsageError(explain("--samples", options.samples, "a whole number >= 1"))
    method = registry.build(options.attention, parse_pairs(options.attention_args, "--attention-args"))
    pipeline = load_pipeline(options.model, able("train_agent"))
    denoiser = Denoiser(pipeline)
    size = ClipSize(options.frames, options.size, options.size)
    errors = layer_errors(denoiser, method, calibration(pipeline, size, options.samples, options.seed))
    dense = dense_layers(errors, options.dense)
    for layer, error in enumerate(errors):
        print(f"layer {layer}: error {error:.5f}{'  stays dense' if layer in dense else ''}")
    rest = ",".join(str(layer) for layer in range(len(errors)) if layer not in dense)
    about = f"{method.name} but for the {len(dense)} layers where it costs most, measured one layer at a time"
    measured = {"error of the layer alone": [round(error, 6) for error in errors], "clips": options.samples}
    parts = [{"layers": rest}] if rest else []
    print("written:", write_recipe(options.output, method, parts, denoiser.module, about, measured))
    return 0


if __name__ == "__main__":
    from genkit.errors import GenkitError, UsageError

    try:
        sys.exit(main())
    except GenkitError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError) else 1)
