"""``genkit inspect``: what a method lets every token see, or what the attention of a real run looks like."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genkit.cli.options import Force, Json
from genkit.cli.output import note, print_json, print_table, quiet_libraries, say, warn
from genkit.errors import UnsupportedError, UsageError, counted, explain
from genkit.pipelines.text import parse_pairs, slug

if TYPE_CHECKING:
    from genkit.attention.method import Method

MOST_TOKENS = 200_000
MASK, RUN = "The mask of a method", "The attention of a run (with --prompt)"


def inspect(
    method: Annotated[
        str | None, typer.Argument(help="Method by name, the same as --attention; see genkit methods.")
    ] = None,
    attention: Annotated[str | None, typer.Option(help="Method by name.")] = None,
    attention_args: Annotated[str | None, typer.Option(help="Settings of the method: key=value,key=value.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Take the grid from this model, or run it.")
    ] = None,
    height: Annotated[int | None, typer.Option(help="Height in pixels, with --model.")] = None,
    width: Annotated[int | None, typer.Option(help="Width in pixels, with --model.")] = None,
    num_frames: Annotated[int | None, typer.Option(help="Frames, with --model.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of the run, or of the queries and keys drawn. Default: 0.")
    ] = None,
    grid: Annotated[
        str | None,
        typer.Option(help="Token grid as frames x rows x columns, for instance 7x16x16.", rich_help_panel=MASK),
    ] = None,
    text: Annotated[
        int | None,
        typer.Option(min=0, help="Text tokens in the same sequence (joint attention).", rich_help_panel=MASK),
    ] = None,
    text_first: Annotated[
        bool, typer.Option("--text-first", help="The text comes before the grid.", rich_help_panel=MASK)
    ] = False,
    reference: Annotated[
        int | None, typer.Option(min=0, help="Reference tokens behind the grid (editing models).", rich_help_panel=MASK)
    ] = None,
    layer: Annotated[
        int | None,
        typer.Option(min=0, help="Layer to draw, for methods whose layers differ.", rich_help_panel=MASK),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="Run --model with it and look.", rich_help_panel=RUN)
    ] = None,
    site: Annotated[
        list[str] | None,
        typer.Option(help="Layers by name, * matches anything: blocks.*.attn1. Repeatable.", rich_help_panel=RUN),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(help="Steps that are looked at: 0,5,-1 or 10:20. Default: 8 over the run.", rich_help_panel=RUN),
    ] = None,
    queries: Annotated[
        int | None, typer.Option(min=1, help="Queries sampled per call. Default: 64.", rich_help_panel=RUN)
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.", rich_help_panel=RUN)] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="How strongly the prompt rules.", rich_help_panel=RUN)
    ] = None,
    lora: Annotated[list[str] | None, typer.Option(help="LoRA file. Repeatable.", rich_help_panel=RUN)] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16, float16.", rich_help_panel=RUN)] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, ...", rich_help_panel=RUN)] = None,
    offload: Annotated[str | None, typer.Option(help="none, model, group or sequential.", rich_help_panel=RUN)] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and tell what would be done.", rich_help_panel=RUN)
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="PNG to write; METHOD-GRID.png or MODEL-attention.png when left out."),
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Draw what a method lets tokens see on a token grid and print its computed and executed density; or, with
    --prompt, run a model once and draw what its attention looks like.

    Masks: methods that decide by queries and keys are drawn with random ones, as the picture says. Computed is the
    share of token pairs the method wants; executed is the share in the blocks that are visited, which is what the
    machine pays for. Methods that know everything from the layout also tell how a CPU's and a GPU's blocks are cut and
    how well they fit; no GPU is needed for that.

    Runs: the model computes densely. Of every chosen layer and step some queries are sampled: how attention falls off
    with distance in frames and within the frame, how few keys hold most of it, and, with a method, the share of the
    mass that it reads and the error of its output. Plots go to a PNG, all numbers to the JSON beside it.
    """
    if method is not None and attention not in (None, method):
        raise UsageError(f"the method is given twice, as {method!r} and as --attention {attention}; leave one out")
    method = method if method is not None else attention
    asked = {
        "--site": site or None, "--at": at, "--queries": queries, "--steps": steps, "--guidance-scale": guidance_scale,
        "--lora": lora or None, "--dtype": dtype, "--device": device, "--offload": offload,
        "--dry-run": dry_run or None,
    }  # fmt: skip
    drawn = {
        "--grid": grid, "--text": text, "--text-first": text_first or None, "--reference": reference, "--layer": layer
    }  # fmt: skip
    size = {"height": height, "width": width, "num_frames": num_frames}
    if prompt is None:
        _refuse(asked, "belongs to the look at a run: give --prompt and --model too")
        if method is None:
            raise UsageError("give a METHOD to draw, or --model and --prompt to look at a run; see genkit methods")
        _draw_mask(
            method, attention_args, grid, model, size, text or 0, text_first, reference or 0, seed or 0, layer or 0,
            output, force, json,
        )  # fmt: skip
        return
    _refuse(drawn, "belongs to the picture of a mask; leave it or --prompt out")
    if model is None:
        raise UsageError("--prompt looks at a real run and needs --model NAME; see genkit models")
    if attention_args and method is None:
        raise UsageError("--attention-args needs --attention NAME; see genkit methods")
    run = {
        "prompt": prompt, "model": model, **size, "seed": seed or 0, "steps": steps, "guidance_scale": guidance_scale,
        "lora": lora or None, "dtype": dtype, "device": device, "offload": offload,
    }  # fmt: skip
    methods = [] if method is None else [_method(method, attention_args)]
    target = output if output is not None else Path(f"{slug(Path(model).name)}-attention.png")
    _look(run, methods, site or [], at, queries, target, force, dry_run, json)


def _refuse(given: dict[str, Any], why: str) -> None:
    for name, value in given.items():
        if value is not None:
            raise UsageError(f"{name} {why}")


def _method(name: str, args: str | None) -> Method:
    from genkit.attention import registry

    return registry.build(name, parse_pairs(args, "--attention-args") if args else {})


def _look(
    run: dict[str, Any], methods: list[Method], sites: list[str], at: str | None, queries: int | None, target: Path,
    force: bool, dry_run: bool, json: bool,
) -> None:  # fmt: skip
    """Look at a run, write plots and numbers, print the summary."""
    quiet_libraries()
    from genkit.cli.progress import RunProgress
    from genkit.evaluation.inspection.look import QUERIES
    from genkit.evaluation.inspection.picture import site_table
    from genkit.evaluation.inspection.run import LookPlan, check_file, write
    from genkit.pipelines.request import COMMAND_LINE
    from genkit.pipelines.settings import GenerateSettings

    check_file(target, force)
    note(f"loading {run['model']} ...")
    settings = GenerateSettings.from_mappings((COMMAND_LINE, {k: v for k, v in run.items() if v is not None}))
    plan = LookPlan.of(settings, methods, sites, at, QUERIES if queries is None else queries)
    for line in plan.request.notes:
        note(f"note: {line}")
    if dry_run:
        found = {
            "settings": plan.request.settings.to_dict(), "sites": list(plan.sites), "steps": plan.steps,
            "queries": plan.queries, "methods": [each.describe() for each in plan.methods],
            "files": [str(target), str(target.with_suffix(".json"))], "notes": list(plan.request.notes),
        }  # fmt: skip
        if json:
            print_json(found)
            return
        shown = plan.request.settings
        say(f"{shown.model}: {shown.prompt!r}, {counted(shown.steps or 'the usual', 'step')}, seed {shown.seed}")
        say(f"  {counted(len(plan.sites), 'layer')}: {', '.join(plan.sites)}")
        say(f"  steps: {'8 over the run' if plan.steps is None else ', '.join(map(str, plan.steps))}")
        say(f"  {plan.queries} queries a call; compared: {', '.join(found['methods']) or 'no method'}")
        say(f"  would write {' and '.join(found['files'])}")
        return
    progress = RunProgress(1)
    with progress.shown():
        progress.begin()
        look, record = plan.run(progress)
        progress.finished()
    numbers = write(look, record, target)
    left_out = [
        f"{name} was not compared at {layer}: {reason}"
        for name, left in look.left_out.items()
        for layer, reason in left.items()
    ]
    warnings = [*plan.told, *left_out]
    for line in warnings:
        warn(line)
    if json:
        print_json({
            "files": [str(target), str(numbers)], "methods": look.to_dict()["methods"], "layers": look.rows(),
            "notes": list(plan.request.notes), "warnings": warnings,
        })  # fmt: skip
        return
    print_table(*site_table(look))
    say(f"{target}  plots;  {numbers}  all numbers, by layer, step and head")


def _draw_mask(
    method: str, attention_args: str | None, grid: str | None, model: str | None, size: dict[str, int | None],
    text: int, text_first: bool, reference: int, seed: int, layer: int, output: Path | None, force: bool, json: bool,
) -> None:  # fmt: skip
    """Draw a method's mask on a grid and print its densities."""
    if (grid is None) == (model is None):
        raise UsageError(
            "give either --grid 7x16x16 or --model NAME with --height, --width and --num-frames; "
            "with --prompt too, the attention of a run is looked at"
        )
    if grid is not None and any(value is not None for value in size.values()):
        raise UsageError("--height, --width and --num-frames go with --model; --grid already counts tokens")
    shape = _parse_grid(grid) if grid is not None else _grid_of(str(model), size)
    tokens = shape[0] * shape[1] * shape[2] + text + reference
    if tokens > MOST_TOKENS:
        raise UsageError(explain("tokens", tokens, f"at most {MOST_TOKENS} for a picture"))
    name = "x".join(str(side) for side in shape)
    target = output if output is not None else Path(f"{slug(method)}-{name}.png")
    if target.suffix.lower() != ".png":
        raise UsageError(explain("--output", str(target), "a name ending in .png"))
    from genkit.attention.draw import draw
    from genkit.attention.plan_facts import plan_facts
    from genkit.attention.static import StaticMethod
    from genkit.attention.views import HEADS
    from genkit.layout import Segment, TokenLayout
    from genkit.media.atomic import Files
    from genkit.media.formats import check_output

    built = _method(method, attention_args)
    check_output(target, force=force)
    layout = TokenLayout.of_grid(*shape, text=text, text_first=text_first)
    if reference:
        layout = TokenLayout(layout.grid, (*layout.segments, Segment("reference", reference)))
    untrained = _untrained(built)
    if untrained is not None:
        warn(f"the picture is of untrained weights: {untrained}")
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
                "untrained": untrained is not None,
                "density": None if density is None else dataclasses.asdict(density),
                "plans": [dataclasses.asdict(plan) for plan in plans],
            }
        )
        return
    say(
        f"{target}  {built.describe()} on {name} = {counted(layout.length, 'token')}: "
        f"{density or 'density depends on the data'}"
    )
    for plan in plans:
        say(f"  {plan}")


def _untrained(method: Method) -> str | None:
    """Why a run with the method would be refused for want of trained weights; None where it would not."""
    try:
        method.check_weights()
    except UsageError as error:
        return str(error)
    return None


def _parse_grid(text: str) -> tuple[int, int, int]:
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", text):
        raise UsageError(explain("--grid", text, "frames x rows x columns in tokens, for instance 7x16x16"))
    t, h, w = (int(side) for side in text.split("x"))
    return t, h, w


def _grid_of(model: str, asked: dict[str, int | None]) -> tuple[int, int, int]:
    """The token grid of a model at a size in pixels; sizes left out come from the model."""
    from genkit.pipelines.resolve import resolve
    from genkit.pipelines.settings import GenerateSettings

    found = resolve(GenerateSettings(prompt="", model=model, device="cpu", **asked))  # type: ignore[arg-type]
    size = found.settings
    if size.height is None or size.width is None:
        raise UsageError(f"{model} names no default size; give --height and --width")
    shape = found.model.grid(size.num_frames or 1, size.height, size.width)
    if shape is None:
        name = found.model.class_name
        raise UnsupportedError(f"the token grid of {name} is not known; give --grid FRAMESxROWSxCOLUMNS")
    return shape
