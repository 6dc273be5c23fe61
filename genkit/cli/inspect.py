"""``genkit inspect``: a picture of what a method lets every token see, and how dense it is."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Annotated

import typer

from genkit.cli.options import Force, Json
from genkit.cli.output import print_json, say
from genkit.errors import UnsupportedError, UsageError, explain
from genkit.pipelines.text import parse_pairs, slug

MOST_TOKENS = 200_000


def inspect(
    method: Annotated[str, typer.Argument(help="Method by name; see genkit methods.")],
    attention_args: Annotated[str | None, typer.Option(help="Settings of the method: key=value,key=value.")] = None,
    grid: Annotated[
        str | None, typer.Option(help="Token grid as frames x rows x columns, for instance 7x16x16.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Take the grid from this model instead.")] = None,
    height: Annotated[int | None, typer.Option(help="Height in pixels, with --model.")] = None,
    width: Annotated[int | None, typer.Option(help="Width in pixels, with --model.")] = None,
    num_frames: Annotated[int | None, typer.Option(help="Frames, with --model.")] = None,
    text: Annotated[int, typer.Option(min=0, help="Text tokens in the same sequence (joint attention).")] = 0,
    text_first: Annotated[bool, typer.Option("--text-first", help="The text comes before the grid.")] = False,
    reference: Annotated[int, typer.Option(min=0, help="Reference tokens behind the grid (editing models).")] = 0,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the queries and keys, for methods that decide by them.")
    ] = 0,
    layer: Annotated[int, typer.Option(min=0, help="Layer to draw, for methods whose layers differ.")] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="PNG to write; METHOD-GRID.png when left out.")
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Draw what a method lets tokens see on a token grid and print its computed and executed density.

    Methods that decide by queries and keys are drawn with random ones, as the picture says.

    Computed is the share of token pairs the method wants; executed is the share in the blocks that are visited, which
    is what the machine pays for. Methods that know everything from the layout also tell how a CPU's and a GPU's blocks
    are cut and how well they fit; no GPU is needed for that.
    """
    if (grid is None) == (model is None):
        raise UsageError("give either --grid 7x16x16 or --model NAME with --height, --width and --num-frames")
    if grid is not None and not (height is None and width is None and num_frames is None):
        raise UsageError("--height, --width and --num-frames go with --model; --grid already counts tokens")
    shape = _parse_grid(grid) if grid is not None else _grid_of(model, height, width, num_frames)
    tokens = shape[0] * shape[1] * shape[2] + text + reference
    if tokens > MOST_TOKENS:
        raise UsageError(explain("tokens", tokens, f"at most {MOST_TOKENS} for a picture"))
    name = "x".join(str(side) for side in shape)
    target = output if output is not None else Path(f"{slug(method)}-{name}.png")
    if target.suffix.lower() != ".png":
        raise UsageError(explain("--output", str(target), "a name ending in .png"))
    from genkit.attention import registry
    from genkit.attention.draw import draw
    from genkit.attention.plan_facts import plan_facts
    from genkit.attention.static import StaticMethod
    from genkit.attention.views import HEADS
    from genkit.layout import Segment, TokenLayout
    from genkit.media.atomic import Files
    from genkit.media.formats import check_output

    built = registry.build(method, parse_pairs(attention_args, "--attention-args") if attention_args else {})
    check_output(target, force=force)
    layout = TokenLayout.of_grid(*shape, text=text, text_first=text_first)
    if reference:
        layout = TokenLayout(layout.grid, (*layout.segments, Segment("reference", reference)))
    picture, density = draw(built, layout, seed=seed, layer=layer)
    with Files() as files:
        picture.save(files.new(target), format="PNG", optimize=True)
    plans = []
    if isinstance(built, StaticMethod):
        plans = [plan_facts(built, layout, kind, HEADS) for kind in ("cpu", "cuda")]
    if json:
        print_json(
            {
                "file": str(target),
                "method": built.describe(),
                "grid": shape,
                "tokens": layout.length,
                "density": None if density is None else dataclasses.asdict(density),
                "plans": [dataclasses.asdict(plan) for plan in plans],
            }
        )
        return
    say(f"{target}  {built.describe()} on {name} = {layout.length} tokens: {density or 'density depends on the data'}")
    for plan in plans:
        say(f"  {plan}")


def _parse_grid(text: str) -> tuple[int, int, int]:
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", text):
        raise UsageError(explain("--grid", text, "frames x rows x columns in tokens, for instance 7x16x16"))
    return tuple(int(side) for side in text.split("x"))


def _grid_of(model: str, height: int | None, width: int | None, num_frames: int | None) -> tuple[int, int, int]:
    """The token grid of a model at a size in pixels; sizes left out come from the model."""
    from genkit.pipelines.resolve import resolve
    from genkit.pipelines.settings import GenerateSettings

    request = GenerateSettings(prompt="", model=model, height=height, width=width, num_frames=num_frames, device="cpu")
    found = resolve(request)
    size = found.settings
    if size.height is None or size.width is None:
        raise UsageError(f"{model} names no default size; give --height and --width")
    shape = found.model.grid(size.num_frames or 1, size.height, size.width)
    if shape is None:
        name = found.model.class_name
        raise UnsupportedError(f"the token grid of {name} is not known; give --grid FRAMESxROWSxCOLUMNS")
    return shape
