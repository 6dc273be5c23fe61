"""``genkit tune``: a recipe that meets a stated quality or speed, found by measuring."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genkit.cli.options import Force, Json
from genkit.cli.output import note, print_json, quiet_libraries, say
from genkit.errors import GenkitError, counted
from genkit.pipelines.text import slug

if TYPE_CHECKING:
    from genkit.evaluation.tuning.outcome import Outcome
    from genkit.evaluation.tuning.store import Store
    from genkit.evaluation.tuning.tune import TunePlan

CALIBRATION, HELD_OUT = 4, 8
SIZE, WORK = "The runs", "The search"


class BudgetError(GenkitError):
    """The budget cannot be met, or is not met on held-out prompts."""


def tune(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Shipped name, local Diffusers folder or hub id.")],
    method: Annotated[str, typer.Option(help="Attention method by name; see genkit methods.")],
    budget: Annotated[
        str,
        typer.Option(
            help="psnr>=30, ssim>=0.95, st_lpips<=0.05, judge>=0.9 or speedup>=1.8 (of attention operations)."
        ),
    ],
    method_args: Annotated[
        str | None, typer.Option(help="Settings that every try has: key=value,key=value.", rich_help_panel=WORK)
    ] = None,
    tries: Annotated[
        list[str] | None,
        typer.Option("--try", help="Settings to choose among: keep=0.2. Repeatable.", rich_help_panel=WORK),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="One prompt per line; the first ones to choose by.", rich_help_panel=WORK)
    ] = None,
    calibration: Annotated[int, typer.Option(min=1, help="Prompts to choose by.", rich_help_panel=WORK)] = CALIBRATION,
    held_out: Annotated[
        int, typer.Option(min=1, help="Other prompts, on which the choice is measured.", rich_help_panel=WORK)
    ] = HELD_OUT,
    queries: Annotated[int, typer.Option(min=1, help="Queries sampled per call.", rich_help_panel=WORK)] = 64,
    compare_uniform: Annotated[
        bool,
        typer.Option(
            "--compare-uniform",
            help="Run every setting everywhere too, from the first step and after a quarter.",
            rich_help_panel=WORK,
        ),
    ] = False,
    work: Annotated[
        Path | None,
        typer.Option(help="Folder of results, from which it goes on. Default: OUTPUT.tune.", rich_help_panel=WORK),
    ] = None,
    height: Annotated[int | None, typer.Option(help="Height in pixels.", rich_help_panel=SIZE)] = None,
    width: Annotated[int | None, typer.Option(help="Width in pixels.", rich_help_panel=SIZE)] = None,
    num_frames: Annotated[int | None, typer.Option(help="Frames of a video.", rich_help_panel=SIZE)] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.", rich_help_panel=SIZE)] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="How strongly the prompt rules.", rich_help_panel=SIZE)
    ] = None,
    lora: Annotated[list[str] | None, typer.Option(help="LoRA file. Repeatable.", rich_help_panel=SIZE)] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16, float16.", rich_help_panel=SIZE)] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, ...", rich_help_panel=SIZE)] = None,
    offload: Annotated[str | None, typer.Option(help="none, model, group or sequential.", rich_help_panel=SIZE)] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the first run; and of drawn prompts.", rich_help_panel=SIZE)] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Recipe to write (.yaml); MODEL-METHOD-tuned.yaml.")
    ] = None,
    force: Force = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and tell what would be run.")] = False,
    json: Json = False,
) -> None:
    """Find layers, steps and settings of a method that meet a budget, and write them as a recipe.

    Dense runs of a few prompts measure the error of every setting at every layer and group of steps; the best plans
    are searched among by real runs, and the chosen one is measured on other prompts. A quality (psnr, ssim,
    st_lpips, judge) gives the fastest plan that keeps it, a speedup the most faithful plan that has it.

    Beside the recipe lie a report (.md, .json) and a plot (.png). A tuning that was stopped goes on where it was;
    another budget, more prompts or other settings use what was measured.
    Exit code 1, without a recipe, when the budget cannot be met: the best that was reached is told, and the report is
    NAME.missed-1.md, so that the command can be given again.
    """
    quiet_libraries()
    from genkit.evaluation.tuning.budget import Budget
    from genkit.evaluation.tuning.ladders import settings_to_try
    from genkit.evaluation.tuning.prompts import Cases
    from genkit.evaluation.tuning.report import check_files, write_recipe, write_report
    from genkit.evaluation.tuning.store import Store
    from genkit.evaluation.tuning.tune import TunePlan, Tuner
    from genkit.models import locate
    from genkit.pipelines.request import COMMAND_LINE
    from genkit.pipelines.settings import GenerateSettings

    wanted = Budget.of(budget)
    methods = settings_to_try(method, tries or [], method_args)
    name = slug(Path(model).name)
    target = output if output is not None else Path(f"{name}-{method}-tuned.yaml")
    check_files(target, force)
    locate(model)  # a name that nobody knows is told before prompts are asked for
    cases = Cases.of(model, prompts, calibration, held_out, seed, wanted.metric == "judge")
    given = {
        "model": model, "prompt": cases.calibration[0].prompt, "seed": seed, "height": height, "width": width,
        "num_frames": num_frames, "steps": steps, "guidance_scale": guidance_scale, "lora": lora or None,
        "dtype": dtype, "device": device, "offload": offload,
    }  # fmt: skip
    settings = GenerateSettings.from_mappings((COMMAND_LINE, {k: v for k, v in given.items() if v is not None}))
    note(f"loading {model} ...")
    tuning = TunePlan.of(settings, wanted, methods, cases, queries, compare_uniform)
    store = Store(target.with_suffix(".tune") if work is None else work, tuning.about())
    if dry_run:
        _tell_plan(tuning, store, target, json)
        return
    outcome = Tuner(tuning, store, note).run()
    command = _command(context, target)
    files = write_report(outcome, target, command)
    if outcome.met:
        write_recipe(outcome, target, command)
    _tell(outcome, target, files, json)
    _refuse_unmet(outcome, files[0])


#: Flags that say what becomes of the output, not how it is made.
_ABOUT_OUTPUT = frozenset({"force", "dry_run", "json"})


def _command(context: typer.Context, target: Path) -> str:
    """The command with every flag that was given: files without their folders, which say nothing elsewhere."""
    words = ["genkit", "tune"]
    for each in context.command.params:
        name, source = each.name or "", context.get_parameter_source(each.name or "")
        if name in _ABOUT_OUTPUT or source is None or source.name != "COMMANDLINE":
            continue
        given = context.params[name]
        if each.param_type_name == "argument":
            words.append(_shown(given))
        elif getattr(each, "is_flag", False):
            words += [each.opts[0]] if given else []
        elif name != "output":
            values = given if isinstance(given, (list, tuple)) else [given]
            words += [word for value in values for word in (each.opts[0], _shown(value))]
    return shlex.join([*words, "-o", target.name])


def _shown(value: Any) -> str:
    """A value as it was given; of a path that exists its name."""
    text = str(value)
    return Path(text).name if isinstance(value, Path) or Path(text).is_absolute() else text


def _tell_plan(tuning: TunePlan, store: Store, target: Path, json: bool) -> None:
    """What would be run, and what is there already."""
    from genkit.evaluation.tuning.report import missed_before

    settings = tuning.request.settings
    known, missed = tuning.measured_before(store), missed_before(target)
    found: dict[str, Any] = {
        "model": tuning.request.model.name,
        "budget": str(tuning.budget),
        "methods": [method.describe() for method in tuning.methods],
        "steps": [f"{start}:{stop}" for start, stop in tuning.groups],
        "calibration": [case.prompt for case in tuning.cases.calibration],
        "held out": [case.prompt for case in tuning.cases.held_out],
        "runs": tuning.runs,
        "size": {name: getattr(settings, name) for name in ("height", "width", "num_frames")},
        "file": str(target),
        "work": str(store.folder),
        "measured before": known,
        "missed before": [str(path) for path in missed],
    }
    if json:
        print_json(found)
        return
    say(f"{found['model']} to {found['budget']}, about {counted(tuning.runs, 'run')}")
    say(f"  settings: {', '.join(found['methods'])}; groups of steps: {', '.join(found['steps'])}")
    say(
        f"  {counted(len(found['calibration']), 'prompt')} to choose by, {len(found['held out'])} held out; "
        f"would write {target}"
    )
    there = [f"{count} {name}" for name, count in known.items() if count]
    say(f"  {store.folder}: {'goes on with ' + ', '.join(there) if there else 'nothing measured yet'}")
    if missed:
        say(f"  missed before: {', '.join(map(str, missed))}")


def _tell(outcome: Outcome, target: Path, files: tuple[Path, ...], json: bool) -> None:
    from genkit.evaluation.tuning.report import as_data, shown

    if json:
        print_json(
            {
                "file": str(target) if outcome.met else None,
                "report": [str(path) for path in files],
                **as_data(outcome, ""),
            }
        )
        return
    if outcome.met and outcome.chosen is not None:
        for name, values in outcome.held_out.items():
            dense = f" (dense: {shown(outcome.dense[name])})" if name in outcome.dense else ""
            say(f"{name} {shown(values)} on {len(values)} held-out prompts{dense}")
        say(f"{target}  recipe;  {files[0]}  report")


def _refuse_unmet(outcome: Outcome, report: Path) -> None:
    """Exit code 1 when the budget is not met, with what was reached."""
    from genkit.evaluation.tuning.report import shown

    budget = outcome.tuning.budget
    if outcome.chosen is None:
        best, count = outcome.best(), len(outcome.tuning.cases.calibration)
        has = f"{budget.metric} {shown(best.values[budget.metric])}"
        if not budget.fast:
            has += f" at speedup {shown(best.values['speedup'])}"
        if outcome.on_average:
            raise BudgetError(
                f"{budget} is not surely kept by any plan tried: {outcome.on_average} of {len(outcome.measured)} kept "
                f"it on average, the best with {has}, but of {counted(count, 'calibration prompt')} that "
                "differ so much "
                f"nothing sure follows for others; give more --calibration prompts, or ask for less ({report})"
            )
        raise BudgetError(
            f"{budget} is out of reach with these settings: the best plan tried has {has} on the calibration "
            f"prompts; give {'sparser' if budget.fast else 'denser'} settings with --try, or ask "
            f"for less ({report})"
        )
    if not outcome.met:
        raise BudgetError(
            f"{budget} was met on the calibration prompts but not on the held-out ones: "
            f"{shown(outcome.held_out[budget.metric])}; more --calibration prompts make the choice surer ({report})"
        )
