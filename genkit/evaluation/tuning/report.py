"""What a tuning found, written: a recipe with its origin, a report as Markdown and JSON, the front as a plot."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from genkit import __version__
from genkit.attention.draw import QUERY, SEEN, SOFT
from genkit.errors import UsageError, counted, explain
from genkit.evaluation.charts import Axis, Series, page, plot
from genkit.evaluation.shares import mean_of
from genkit.evaluation.tuning.budget import METRICS, Budget, sign_of
from genkit.evaluation.tuning.outcome import Measured, Outcome
from genkit.evaluation.tuning.tune import file_names
from genkit.media.atomic import Files, check_writable
from genkit.pipelines.recipe_file import write_parts
from genkit.pipelines.recipe_match import denoisers_of_folder
from genkit.reading.files import place


def check_files(recipe: Path, force: bool) -> None:
    """The recipe and the report may be written. Reports of tries that missed the budget have names of their own and are
    in nobody's way.

    Raises:
        UsageError: another suffix, or something is there. ArtifactError: the folder cannot be written.
    """
    if recipe.suffix != ".yaml":
        raise UsageError(explain("--output", str(recipe), "a name ending in .yaml"))
    for path in (recipe, *file_names(recipe)):
        if path.is_dir() or (path.exists() and not force):
            raise UsageError(f"{place(path)} exists; use --force to replace it, or choose another --output")
    check_writable(recipe.absolute().parent)


def missed_before(recipe: Path) -> list[Path]:
    """Reports of earlier tries at a recipe that missed their budget, the oldest first."""
    found: list[Path] = []
    while (path := file_names(recipe, len(found) + 1)[0]).exists():
        found.append(path)
    return found


def worst(metric: str, values: Sequence[float]) -> float:
    """The worst of some prompts: the largest of a metric of which less is better."""
    return max(values) if sign_of(metric) < 0 else min(values)


def shown(values: Sequence[float]) -> str:
    """Mean and error in words."""
    found = mean_of(values)
    return f"{found.mean:.3f}" if found.cases < 2 else f"{found.mean:.3f} ± {found.error:.3f}"


def write_recipe(outcome: Outcome, path: Path, command: str) -> Path:
    """The chosen plan as a recipe. Its numbers are those of the held-out prompts.

    Raises:
        UsageError: the budget is not met: there is nothing to claim.
    """
    tuning, chosen = outcome.tuning, outcome.chosen
    if chosen is None or not outcome.met:
        raise UsageError(f"no recipe: {tuning.budget} was not met")
    request = tuning.request
    settings = request.settings
    name, config = denoisers_of_folder(request.model.folder)[0]
    made_for: dict[str, Any] = {"models": [Path(request.model.name).name], "steps": request.steps}
    made_for |= {
        key: value for key in ("height", "width", "num_frames") if (value := getattr(settings, key)) is not None
    }
    measured = {
        "budget": str(tuning.budget),
        "held-out prompts": {
            "prompts": len(tuning.cases.held_out),
            "seeds": _range([case.seed for case in tuning.cases.held_out]),
            **{f"{key} (mean, standard error)": _rounded(values) for key, values in outcome.held_out.items()},
            **{f"{key} of the worst prompt": round(worst(key, v), 4) for key, v in outcome.held_out.items()},
            **{f"{key} of dense attention": _rounded(values) for key, values in outcome.dense.items()},
            **{f"{key}, chosen less dense, pair by pair": _rounded(values) for key, values in outcome.changes.items()},
        },
        "calibration": {
            "prompts": [case.prompt for case in tuning.cases.calibration],
            "seeds": _range([case.seed for case in tuning.cases.calibration]),
        },
        "what the numbers are": {key: METRICS[key][0] for key in outcome.held_out},
        "made by": command,
        "genkit": __version__,
        "made with": outcome.made,
    }
    methods = ", ".join(dict.fromkeys(method.name for method, _ in chosen.parts))
    about = f"{methods} tuned on {Path(request.model.name).name} to {tuning.budget}"
    plain, origin = json.loads(json.dumps(measured)), f"genkit tune, {chosen.title}, for {tuning.budget}"
    return write_parts(path, chosen.parts, name, config, about, plain, made_for, origin)


def _range(seeds: Sequence[int]) -> str:
    """Seeds that follow each other, as the tuning gives them."""
    return str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"


def _rounded(values: Sequence[float]) -> list[float | None]:
    found = mean_of(values)
    return [round(found.mean, 4), None if found.cases < 2 else round(found.error, 4)]


def write_report(outcome: Outcome, recipe: Path, command: str) -> tuple[Path, Path, Path]:
    """The report beside where the recipe is or would be, all files or none.

    Of a budget that was missed it is ``NAME.missed-1.md`` and so on, the next free number, so that the same command can
    be given again and no report is lost; one that says the same as the latest takes its place.
    """
    data = json.dumps(as_data(outcome, command), indent=1) + "\n"
    number = None
    if not outcome.met:
        number = 1 + len(missed_before(recipe))
        latest = file_names(recipe, number - 1)[1]
        if number > 1 and latest.is_file() and latest.read_bytes() == data.encode():
            number -= 1
    text, numbers, picture = file_names(recipe, number)
    drawn = BytesIO()
    front_picture(outcome).save(drawn, format="PNG", optimize=True)
    with Files() as files:
        files.new(text).write_text(markdown(outcome, picture.name, command), encoding="utf-8")
        files.new(numbers).write_bytes(data.encode())
        files.new(picture).write_bytes(drawn.getvalue())
    return text, numbers, picture


def best_of(measured: Sequence[Measured], metric: str) -> list[Measured]:
    """The Pareto front of speedup and a metric: plans that no other one beats in both."""
    sign = sign_of(metric)
    return [
        one
        for one in measured
        if not any(
            other.mean("speedup") >= one.mean("speedup")
            and sign * other.mean(metric) >= sign * one.mean(metric)
            and (other.mean("speedup"), other.mean(metric)) != (one.mean("speedup"), one.mean(metric))
            for other in measured
        )
    ]


def quality_of(budget: Budget) -> str:
    """The metric that stands against speed."""
    return "psnr" if budget.fast else budget.metric


def front_picture(outcome: Outcome) -> Any:
    """Quality against speed of every plan that was run on the calibration prompts."""
    budget = outcome.tuning.budget
    metric = quality_of(budget)
    rest = [each for each in outcome.measured if each is not outcome.chosen]
    search = [each for each in rest if each.title.startswith("plan")]
    others = [each for each in rest if not each.title.startswith("plan")]

    def points(found: Sequence[Measured], colour: Any, wide: bool = False, names: Sequence[str] = ()) -> Series:
        x, y = [each.mean("speedup") for each in found], [each.mean(metric) for each in found]
        return Series(x, y, colour, dots=True, wide=wide, names=names)

    line = sorted(best_of(outcome.measured, metric), key=lambda each: each.mean("speedup"))
    series = [Series([each.mean("speedup") for each in line], [each.mean(metric) for each in line], SEEN)]
    series += [points(others, SOFT, names=[each.title for each in others])]
    series += [points(search, SEEN)]
    if outcome.chosen is not None:
        series.append(points([outcome.chosen], QUERY, wide=True, names=[f"chosen: {outcome.chosen.title}"]))
    guides = [] if budget.fast else [(str(budget), budget.limit)]
    labels = {"psnr": "PSNR to dense, dB", "ssim": "SSIM to dense", "judge": "judged accuracy"}
    label = labels.get(metric, "ST-LPIPS to dense (less is better)")
    note = f"{len(outcome.tuning.cases.calibration)} calibration prompts; line: no measured plan is better in both"
    drawn = plot(
        (860, 480), "Plans that were run", note, series, Axis("speedup of attention operations"), Axis(label), guides
    )
    title = f"Tuning {Path(outcome.tuning.request.model.name).name} to {budget}"
    return page(title, [_verdict(outcome)], [[drawn]])


def _verdict(outcome: Outcome) -> str:
    budget = outcome.tuning.budget
    if outcome.chosen is None:
        best = f"the best is {budget.metric} {shown(outcome.best().values[budget.metric])}"
        if outcome.on_average:
            tried = len(outcome.measured)
            return f"not surely kept by any plan tried: {outcome.on_average} of {tried} did on average, {best}"
        return f"not reached by any plan tried: {best}"
    found = ", ".join(f"{name} {shown(values)}" for name, values in outcome.held_out.items())
    return f"{'met' if outcome.met else 'NOT met'} on {len(outcome.tuning.cases.held_out)} held-out prompts: {found}"


def _words(parts: Sequence[Any]) -> str:
    return "; ".join(f"{method.describe()} at layers {at['layers']}, steps {at['steps']}" for method, at in parts)


def markdown(outcome: Outcome, picture: str, command: str) -> str:
    """The report for people."""
    tuning = outcome.tuning
    budget, metric = tuning.budget, quality_of(tuning.budget)
    front = {id(each) for each in best_of(outcome.measured, metric)}
    names = list(outcome.measured[0].values) if outcome.measured else []
    lines = [
        f"# {Path(tuning.request.model.name).name} tuned to {budget}",
        "",
        f"**{_verdict(outcome)[0].upper()}{_verdict(outcome)[1:]}.**",
        "",
        f"Made by `{command}` with genkit {__version__} on {outcome.made.get('machine')}, "
        f"{counted(outcome.made.get('threads'), 'thread')}; model {outcome.made.get('model_fingerprint')}.",
        "",
        *(f"- {name}: {METRICS[name][0]}" for name in names),
        "",
        "## Plans that were run on the calibration prompts",
        "",
        f"{counted(len(tuning.cases.calibration), 'prompt')}, means and standard errors. The front: no "
        "measured plan is better in "
        f"both speed and {metric}.",
        "",
        "Predicted PSNR is no measurement: what the search expected of a plan and ordered the plans by. It adds up the "
        "errors of its settings by layer and group of steps, from one pass beside the dense runs, each group weighted "
        "by what one probe run with errors there alone did to the clip.",
        "",
        f"| plan | {' | '.join(names)} | predicted PSNR | front | what runs |",
        f"|---|{'---|' * (len(names) + 3)}",
    ]
    for each in sorted(outcome.measured, key=lambda one: one.mean("speedup")):
        cells = " | ".join(shown(each.values[name]) for name in names)
        mark = "chosen" if each is outcome.chosen else "yes" if id(each) in front else ""
        lines.append(f"| {each.title} | {cells} | {_predicted(each):.1f} | {mark} | {_words(each.parts)} |")
    lines += ["", f"![Quality against speed]({picture})", ""]
    if outcome.held_out:
        dense, changes = (
            {name: shown(values) for name, values in found.items()} for found in (outcome.dense, outcome.changes)
        )
        lines += [
            "## The chosen plan on held-out prompts",
            "",
            f"{counted(len(tuning.cases.held_out), 'prompt')} that had no part in the choice.",
            "",
            "| metric | chosen | worst prompt | dense attention | chosen less dense, pair by pair |",
            "|---|---|---|---|---|",
            *(
                f"| {name} | {shown(values)} | {worst(name, values):.3f} | {dense.get(name, '')} | "
                f"{changes.get(name, '')} |"
                for name, values in outcome.held_out.items()
            ),
            "",
        ]
    return "\n".join(lines)


def _predicted(each: Measured) -> float:
    """PSNR that the additive model says, from probes with one setting."""
    return -10 * math.log10(max(each.plan.error, 1e-10))


def as_data(outcome: Outcome, command: str) -> dict[str, Any]:
    """The report for programs."""
    tuning = outcome.tuning
    front = {id(each) for each in best_of(outcome.measured, quality_of(tuning.budget))}
    return {
        "budget": str(tuning.budget),
        "met": outcome.met,
        "command": command,
        "genkit": __version__,
        "made_with": outcome.made,
        "settings": tuning.about()["settings"],
        **tuning.asked(),
        "plans": [
            {
                "title": each.title,
                "chosen": each is outcome.chosen,
                "front": id(each) in front,
                "predicted psnr": _predicted(each),
                "parts": [{"attention": method.describe(), "schedule": at} for method, at in each.parts],
                "values": each.values,
            }
            for each in outcome.measured
        ],
        "held_out": outcome.held_out,
        "dense": outcome.dense,
        "changes": outcome.changes,
    }
