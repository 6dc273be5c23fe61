"""Does ``genkit tune`` keep its word? Trials of their own prompts, methods and budgets, measured on held-out prompts.

Every trial is the command itself, run to its end. A stopped benchmark goes on with the trials that are left.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.environment import RESULTS, environment, machine_line, report, table, write_results
from benchmarks.toy_common import tell

NAME = "tuning_trials"
#: Prompts to choose by, and held out, of every trial: the command's defaults.
CALIBRATION, HELD_OUT = 4, 8


@dataclass(frozen=True)
class Trial:
    """One tuning.

    Args:
        model, method, budget: what is tuned, with what, to what.
        settings: of the method in every try.
    """

    model: str
    method: str
    budget: str
    settings: str | None = None

    @property
    def name(self) -> str:
        """Model, method with settings, budget."""
        return f"{self.model}, {self.method}{f' ({self.settings})' if self.settings else ''}, {self.budget}"


#: Quality budgets from loose to strict, and speeds, on a UNet and a joint transformer.
TRIALS = (
    Trial("toy-image", "broadcast", "psnr>=35"),
    Trial("toy-image", "neighborhood", "psnr>=30"),
    Trial("toy-image", "block_select", "psnr>=30", "block=16"),
    Trial("toy-image", "mixture_of_block", "ssim>=0.95"),
    Trial("toy-image", "broadcast", "speedup>=1.8"),
    Trial("toy-dit", "broadcast", "psnr>=35"),
    Trial("toy-dit", "neighborhood", "psnr>=30"),
    Trial("toy-dit", "block_select", "psnr>=30", "block=16"),
    Trial("toy-dit", "mixture_of_block", "ssim>=0.95"),
    Trial("toy-dit", "broadcast", "psnr>=28"),
    Trial("toy-dit", "broadcast", "speedup>=1.5"),
    Trial("toy-image", "block_select", "st_lpips<=0.02", "block=16"),
    Trial("toy-image", "mixture_of_block", "psnr>=32"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``python -m benchmarks tuning_trials``."""
    parser.add_argument("--trials", type=int, default=len(TRIALS), help=f"the first so many of {len(TRIALS)}")
    parser.add_argument("--work", type=Path, default=None, help="folder of the tunings' runs, to go on from")
    parser.add_argument("--output", type=Path, default=RESULTS)


def run(options: argparse.Namespace) -> int:
    """Run the trials that are left, one after the other."""
    facts = environment()
    stored = options.output / f"{NAME}.json"
    rows: dict[str, dict[str, Any]] = {}
    if stored.is_file():
        rows = {row["trial"]: row for row in json.loads(stored.read_text())["trials"]}
    with tempfile.TemporaryDirectory() as made:
        folder = options.work or Path(made)
        for number, trial in enumerate(TRIALS[: options.trials]):
            if trial.name not in rows:
                rows[trial.name] = {"trial": trial.name, "at": machine_line(facts), **tuned(trial, number, folder)}
                data = _data(facts, rows)
                write_results(NAME, data, text_of(data), options.output)
            tell("trials", number + 1, options.trials)
    data = _data(facts, rows)
    report(NAME, data, text_of(data), options.output)
    return 0


def _data(facts: dict[str, Any], rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What is stored: the trials in their order, without those of earlier lists."""
    return {"environment": facts, "trials": [rows[each.name] for each in TRIALS if each.name in rows]}


def tuned(trial: Trial, number: int, folder: Path) -> dict[str, Any]:
    """What a trial came to, from the command's own report.

    Args:
        trial: to be run.
        number: of the trial; its prompts and seeds follow from it.
        folder: for its files.
    """
    from genkit.evaluation.toy_picture import draw_picture_prompts

    place = folder / f"trial-{number}"
    place.mkdir(parents=True, exist_ok=True)
    texts = list(dict.fromkeys(text for _, text in draw_picture_prompts("train", 60, seed=900 + number)))
    (place / "prompts.txt").write_text("\n".join(texts[: CALIBRATION + HELD_OUT]) + "\n")
    words = ["tune", trial.model, "--method", trial.method, "--budget", trial.budget, "--prompts", "prompts.txt"]
    words += ["--method-args", trial.settings] if trial.settings else []
    words += ["--calibration", str(CALIBRATION), "--held-out", str(HELD_OUT), "--compare-uniform"]
    words += ["--seed", str(1000 * number), "-o", "tuned.yaml", "--force"]
    here = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    done = subprocess.run(
        [sys.executable, "-m", "genkit", *words], cwd=place, env=here, capture_output=True, text=True, check=False
    )
    reports = [place / "tuned.json", *sorted(place.glob("tuned.missed-*.json"))]
    found = [path for path in reports if path.is_file()]
    if done.returncode not in (0, 1) or not found:
        raise RuntimeError(f"{trial.name}: {done.stderr.strip()[-400:]}")
    return outcome_of(json.loads(max(found, key=lambda path: path.stat().st_mtime).read_text()))


def outcome_of(told: dict[str, Any]) -> dict[str, Any]:
    """The figures of a trial.

    Args:
        told: the JSON report of ``genkit tune --compare-uniform``.
    """
    from genkit.evaluation.tuning.budget import Budget

    budget = Budget.of(told["budget"])
    chosen = next((plan for plan in told["plans"] if plan["chosen"]), None)
    return {
        "met": bool(told["met"]),
        "runs": len(told["plans"]),
        "chosen": chosen and {name: _mean(values) for name, values in chosen["values"].items()},
        "title": chosen and chosen["title"],
        "held out": {name: list(values) for name, values in told["held_out"].items()},
        "uniform": best_uniform(told["plans"], budget, chosen),
    }


def best_uniform(
    plans: Sequence[dict[str, Any]], budget: Any, chosen: dict[str, Any] | None
) -> dict[str, float] | None:
    """The best plan with one setting on all layers in all steps, on the calibration prompts.

    For a quality: the fastest one whose quality is at least that of the chosen plan (of the budget, where nothing was
    chosen). For a speed: the most faithful one that is at least as fast.

    Returns:
        Its figures; None where no such plan is as good.
    """
    from genkit.evaluation.tuning.budget import sign_of

    metric, sign = budget.metric, sign_of(budget.metric)
    bar = sign * (_mean(chosen["values"][metric]) if chosen else budget.limit)
    plain = [
        {name: _mean(values) for name, values in plan["values"].items()}
        for plan in plans
        if plan["title"].endswith(" everywhere")
    ]
    good = [figures for figures in plain if sign * figures[metric] >= bar]
    return max(good, key=lambda figures: figures["psnr" if budget.fast else "speedup"], default=None)


MET, MISSED, UNREACHED = "yes", "no", "out of reach"


def _word(row: dict[str, Any]) -> str:
    """How a trial ended."""
    return MET if row["met"] else MISSED if row["chosen"] else UNREACHED


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def text_of(data: dict[str, Any]) -> str:
    """The page of results."""
    from genkit.evaluation.shares import mean_of
    from genkit.evaluation.tuning.budget import Budget

    rows, words = [], [_word(each) for each in data["trials"]]
    for each in data["trials"]:
        budget = Budget.of(each["trial"].rsplit(", ", 1)[1])
        held = each["held out"].get(budget.metric)
        line: dict[str, Any] = {"trial": each["trial"], "met": _word(each)}
        if held:
            found = mean_of(held)
            line["held out"] = f"{found.mean:.3g} ± {found.error:.2g}"
            line["held-out PSNR, dB"] = f"{_mean(each['held out']['psnr']):.1f}"
            line["speedup"] = f"{_mean(each['held out']['speedup']):.2f}"
            line["chosen"] = each["title"]
        other = "psnr" if budget.fast else "speedup"
        line[f"one setting everywhere: {'PSNR' if budget.fast else 'speedup'}"] = (
            f"{each['uniform'][other]:.3g}" if each["uniform"] else "none as good"
        )
        rows.append(line)
    return "\n".join(
        [
            "# Does tuning keep its word?",
            "",
            machine_line(data["environment"]),
            f"{words.count(MET)} of {len(words)} trials met their budget on held-out prompts, "
            f"{words.count(MISSED)} missed it there, {words.count(UNREACHED)} ended without a choice: no plan kept it "
            f"on the calibration prompts, which the command says (exit code 1, no recipe). Every trial is "
            f"`genkit tune MODEL --method METHOD --budget BUDGET --compare-uniform` at the model's default size and "
            f"steps, with {CALIBRATION} prompts of its own to choose by and {HELD_OUT} others to measure with.",
            "",
            "Held out: the budget's metric with its standard error. Speedup: dense over executed operations of the "
            "attention layers. One setting everywhere: of the plans that have one setting on all layers in all steps "
            "the best that is at least as good as the chosen plan in the budget's metric, on the calibration prompts.",
            "",
            table(rows),
            "",
        ]
    )
