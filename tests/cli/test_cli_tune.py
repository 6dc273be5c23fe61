"""``genkit tune`` on a tiny model: the budget is met on held-out prompts, the recipe runs, it goes on, it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

import genkit
from genkit.cli.main import main
from genkit.evaluation.tuning import tune as tuning
from genkit.pipelines.session import Session

RUN = ["--steps", "2", "--height", "64", "--width", "64", "--num-frames", "17", "--calibration", "2", "--held-out", "2"]
SHORT = ["--calibration", "1", "--held-out", "1", "--num-frames", "9"]  # given later, they win
TRIES = ["--method", "block_select", "--method-args", "block=16", "--try", "keep=0.2", "--try", "keep=0.6"]
PROMPTS = "a red circle\na blue square\na green triangle\na red square moves\n"


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys, tiny_wan):
    from genkit.evaluation.comparison import perceptual

    monkeypatch.setattr(perceptual, "why_not", lambda: "its network takes longer than all the rest")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text(PROMPTS)

    def call(*arguments, method=TRIES):
        code = main(["tune", str(tiny_wan), *method, "--prompts", "prompts.txt", *RUN, *map(str, arguments)])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def counted(monkeypatch):
    """The prompts of the runs that were made."""
    runs, run = [], Session.run

    def note(self, settings=None, *args, **options):
        runs.append((settings.prompt, settings.seed))
        return run(self, settings, *args, **options)

    monkeypatch.setattr(Session, "run", note)
    return runs


def test_a_quality_is_kept_and_a_stopped_tuning_goes_on(cli, counted, tmp_path, tiny_wan, monkeypatch):
    stopped = tuning.Tuner._try

    def stop(self, plan, title, outcome):
        raise KeyboardInterrupt

    monkeypatch.setattr(tuning.Tuner, "_try", stop)
    assert cli("--budget", "psnr>=40", "-o", "r.yaml")[0] == 130
    assert not (tmp_path / "r.yaml").exists() and len(list((tmp_path / "r.tune").glob("look-*.json"))) == 1
    first = len(counted)
    monkeypatch.setattr(tuning.Tuner, "_try", stopped)
    code, out, err = cli("--budget", "psnr>=40", "--compare-uniform", "-o", "r.yaml", "--json")
    assert code == 0, err
    told = json.loads(out)
    assert "dense runs of" not in err and "probe" not in err and first == 2 + 2 * 2
    assert told["met"] and np.mean(told["held_out"]["psnr"]) >= 40 and np.mean(told["held_out"]["speedup"]) > 1
    calibration = {prompt for prompt, seed in counted if seed < 10_000}
    held = {prompt for prompt, seed in counted if seed >= 10_000}
    assert calibration == {"a red circle", "a blue square"} and held == {"a green triangle", "a red square moves"}
    chosen = next(each for each in told["plans"] if each["chosen"])
    good = [each for each in told["plans"] if np.mean(each["values"]["psnr"]) >= 45]
    assert np.mean(chosen["values"]["speedup"]) == max(np.mean(each["values"]["speedup"]) for each in good)
    assert sum(each["chosen"] for each in told["plans"]) == 1 and any(each["front"] for each in told["plans"])
    assert [each["title"] for each in told["plans"][:2]] == [
        "keep=0.2 everywhere", "keep=0.2 from step 1"
    ]  # fmt: skip

    # The numbers are those of runs with the recipe as it was written.
    values = yaml.safe_load((tmp_path / "r.yaml").read_text())
    claimed = values["measured"]["held-out prompts"]["psnr (mean, standard error)"][0]
    assert claimed == pytest.approx(np.mean(told["held_out"]["psnr"]), abs=1e-3)
    assert all(value.origin == "ours" and "genkit tune" in value.note for value in genkit.recipe("r.yaml").values)
    assert values["measured"]["held-out prompts"]["seeds"] == "10002 to 10003"
    assert values["made_for"]["steps"] == 2 and str(tmp_path) not in (tmp_path / "r.yaml").read_text()
    pipe = genkit.load(str(tiny_wan))
    with genkit.patch(pipe, genkit.recipe("r.yaml")) as handle:
        assert {each.method.name for each in handle.parts} == {"block_select"}

    text = (tmp_path / "r.md").read_text()
    assert "Met on 2 held-out prompts" in text and "![Quality against speed](r.png)" in text
    assert (tmp_path / "r.png").read_bytes()[:4] == b"\x89PNG"

    # Another budget uses what was measured; a speed gives the most faithful plan that has it.
    before = len(counted)
    code, out, err = cli("--budget", "speedup>=1.5", "-o", "s.yaml", "--work", "r.tune", "--json")
    told = json.loads(out)
    assert code == 0 and np.mean(told["held_out"]["speedup"]) >= 1.5 and len(counted) - before < before
    slower = [each for each in told["plans"] if np.mean(each["values"]["speedup"]) < 1.5]
    chosen = next(each for each in told["plans"] if each["chosen"])
    rest = [each for each in told["plans"] if each not in slower]
    assert np.mean(chosen["values"]["psnr"]) == max(np.mean(each["values"]["psnr"]) for each in rest)

    # What cannot be reached is told with the best that was, and leaves a report and no recipe.
    code, _, err = cli("--budget", "speedup>=400", "-o", "t.yaml", "--work", "r.tune")
    assert (
        code == 1 and "speedup>=400 is out of reach with these settings: the best plan tried has speedup 5.000" in err
    )
    assert not (tmp_path / "t.yaml").exists() and (tmp_path / "t.missed-1.md").is_file()
    code, _, err = cli("--budget", "psnr>=99", "-o", "u.yaml", "--work", "r.tune")
    assert code == 1 and "psnr>=99 is out of reach" in err and not (tmp_path / "u.yaml").exists()

    # Results of other runs are not mixed in; a recipe that is there is not written over.
    code, _, err = cli("--budget", "psnr>=40", "--guidance-scale", "3", "-o", "v.yaml", "--work", "r.tune")
    assert code == 2 and "holds results of another tuning (settings differ)" in err
    code, _, err = cli("--budget", "psnr>=40", "-o", "r.yaml")
    assert code == 2 and "exists; use --force" in err


def test_a_missed_budget_is_tried_again_and_loses_nothing(cli, counted, tmp_path):
    words = ["--budget", "psnr>=99", *SHORT, "-o", "r.yaml"]
    assert cli(*words)[0] == 1
    first, report = len(counted), (tmp_path / "r.missed-1.json").read_bytes()

    # The same command again says the same and runs nothing; its report is the one that is there.
    code, _, err = cli(*words)
    assert code == 1 and "r.missed-1.md" in err and len(counted) == first
    assert not (tmp_path / "r.missed-2.md").exists() and (tmp_path / "r.missed-1.json").read_bytes() == report

    # More prompts to choose by, and denser settings, go on with what is known; the earlier report stays.
    dry, out, _ = cli(*words, "--dry-run", "--json")
    told = json.loads(out)
    assert dry == 0 and told["missed before"] == ["r.missed-1.md"] and told["work"] == "r.tune"
    assert told["measured before"]["dense calibration runs"] == 1
    assert told["measured before"]["passes that measure the settings"] == 1
    assert told["measured before"]["runs of plans on calibration prompts"] > 0
    denser = [*TRIES, "--try", "keep=0.9"]
    code, out, _ = cli(*words, "--dry-run", method=denser)
    assert "goes on with 1 dense calibration runs" in out and "passes" not in out
    assert "missed before: r.missed-1.md" in out and len(counted) == first
    code, _, err = cli(*words, method=denser)
    assert code == 1 and "r.missed-2.md" in err and (tmp_path / "r.missed-1.json").read_bytes() == report
    second = json.loads((tmp_path / "r.missed-2.json").read_text())
    assert "block_select(block=16, keep=0.9)" in second["methods"]

    # A budget that can be met then gives the recipe beside the reports.
    assert cli("--budget", "psnr>=5", *SHORT, "-o", "r.yaml", method=denser)[0] == 0
    assert (tmp_path / "r.yaml").is_file() and (tmp_path / "r.md").is_file() and (tmp_path / "r.missed-2.md").is_file()


def test_prompts_that_were_run_serve_a_tuning_with_more_of_them(cli, counted, monkeypatch):
    def stop(self, plan, title, outcome):
        raise KeyboardInterrupt

    monkeypatch.setattr(tuning.Tuner, "_try", stop)
    assert cli("--budget", "psnr>=5", "-o", "r.yaml", *SHORT)[0] == 130
    one, other = ("a red circle", 0), ("a blue square", 1)
    assert counted == [one, one, one], "dense, with a pass beside it, and two probes"
    assert cli("--budget", "psnr>=6", "-o", "r.yaml", *SHORT, "--calibration", "2")[0] == 130
    assert counted[3:] == [one, other, other, other], "a pass over other prompts, probes of the new one alone"


def test_the_report_holds_every_flag_that_was_given_and_a_dry_run_refuses_what_a_run_would(cli, tmp_path, tiny_wan):
    words = [*SHORT, "--budget", "psnr>=5", "--compare-uniform", "--queries", "8", "--force"]
    assert cli(*words, "-o", tmp_path / "r.yaml")[0] == 0
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["command"] == (
        f"genkit tune {tiny_wan.name} --method block_select --budget 'psnr>=5' --method-args block=16 --try keep=0.2 "
        "--try keep=0.6 --prompts prompts.txt --calibration 1 --held-out 1 --queries 8 --compare-uniform --height 64 "
        "--width 64 --num-frames 9 --steps 2 -o r.yaml"
    )
    text = (tmp_path / "r.md").read_text()
    assert report["command"] in text and str(tmp_path) not in text
    assert "| predicted PSNR |" in text and "Predicted PSNR is no measurement" in text

    code, _, err = cli("--budget", "psnr>=20", "-o", "s.yaml", "--work", "r.tune", "--guidance-scale", "3", "--dry-run")
    assert code == 2 and "r.tune holds results of another tuning (settings differ)" in err
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("hello")
    code, _, err = cli("--budget", "psnr>=20", "-o", "s.yaml", "--work", "other", "--dry-run")
    assert code == 2 and "other holds other things" in err
    code, _, err = cli("--budget", "psnr>=20", "-o", "r.yaml", "--dry-run")
    assert code == 2 and "exists; use --force" in err


def test_a_perceptual_budget_is_the_most_it_may_be_and_asks_for_its_package(cli, counted, tmp_path, monkeypatch):
    from genkit.evaluation.comparison import perceptual

    monkeypatch.setattr(perceptual, "why_not", lambda: "it is not installed")
    code, _, err = cli("--budget", "st_lpips<=0.02", "-o", "r.yaml")
    assert code != 0 and "--budget st_lpips: it is not installed" in err and not counted
    assert cli("--budget", "psnr>=20", "-o", "p.yaml", "--work", "work")[0] == 0
    first = len(counted)

    monkeypatch.setattr(perceptual, "why_not", lambda: None)
    monkeypatch.setattr(perceptual, "st_lpips_frames", lambda a, b: np.abs(a / 255.0 - b / 255.0).mean((1, 2, 3)))
    code, out, err = cli("--budget", "st_lpips<=0.02", "-o", "r.yaml", "--work", "work", "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told["met"] and np.mean(told["held_out"]["st_lpips"]) <= 0.02
    assert len(counted) > first, "runs without the number are made again"
    chosen = next(each for each in told["plans"] if each["chosen"])
    assert np.mean(chosen["values"]["st_lpips"]) <= 0.02
    found = yaml.safe_load((tmp_path / "r.yaml").read_text())["measured"]["held-out prompts"]
    assert found["st_lpips of the worst prompt"] == round(max(told["held_out"]["st_lpips"]), 4)
    assert found["psnr of the worst prompt"] == round(min(told["held_out"]["psnr"]), 4)
    code, _, err = cli("--budget", "st_lpips<=0.0", "-o", "s.yaml", "--work", "work")
    assert code == 1 and "out of reach" in err and not (tmp_path / "s.yaml").exists()


@pytest.mark.parametrize(
    ("budget", "values", "told"),
    [
        ("psnr>=25", [20.0, 60.0], "surely kept by any plan tried: 1 of 1 kept it on average, the best with psnr 40"),
        ("psnr>=45", [20.0, 60.0], "out of reach with these settings: the best plan tried has psnr 40.000 ± 20.000 at"),
        ("speedup>=9", [2.0, 2.0], "the best plan tried has speedup 2.000 ± 0.000 on the calibration prompts; give"),
    ],
)
def test_a_budget_that_is_kept_on_average_is_not_out_of_reach(budget, values, told):
    from genkit.cli.tune import BudgetError, _refuse_unmet
    from genkit.evaluation.tuning.budget import Budget
    from genkit.evaluation.tuning.outcome import Measured, Outcome

    budget = Budget.of(budget)
    cases = SimpleNamespace(calibration=values)
    row = Measured(None, [], "", {"speedup": [2.0, 2.0], budget.metric: values})
    with pytest.raises(BudgetError) as error:
        _refuse_unmet(Outcome(SimpleNamespace(budget=budget, cases=cases), [row]), Path("t.md"))
    assert told in str(error.value) and str(error.value).endswith("ask for less (t.md)")
    assert ("--calibration" in str(error.value)) == ("surely" in told)


def test_a_dry_run_tells_and_writes_nothing(cli, tmp_path):
    code, out, _ = cli("--budget", "ssim>=0.9", "--dry-run", "--json")
    told = json.loads(out)
    assert (
        code == 0 and told["steps"] == ["0:1", "1:2"] and told["held out"] == ["a green triangle", "a red square moves"]
    )
    assert told["methods"] == ["block_select(block=16)", "block_select(block=16, keep=0.6)"]
    code, out, _ = cli("--budget", "ssim>=0.9", "--dry-run")
    assert code == 0 and "2 prompts to choose by, 2 held out" in out
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.txt"]


@pytest.mark.parametrize(
    ("words", "method", "told"),
    [
        (["--budget", "lpips>=0.1"], TRIES, "metric of --budget: got 'lpips', allowed: psnr, ssim, st_lpips, judge"),
        (["--budget", "psnr=30"], TRIES, "METRIC>=NUMBER"),
        (["--budget", "judge>=0.9"], TRIES, "there is no judge for"),
        (["--budget", "psnr>=30", "-o", "r.json"], TRIES, "a name ending in .yaml"),
        (["--budget", "psnr>=30", "--held-out", "9"], TRIES, "at least 11"),
        (["--budget", "psnr>=30"], ["--method", "agent"], "no settings of agent are known to try"),
        (["--budget", "psnr>=30"], ["--method", "agent", "--try", "cell=1x2x2"], "has weights for every layer"),
        (["--budget", "psnr>=30"], ["--method", "broadway", "--try", "alpha=0.5"], "broadway fits no attention"),
        (["--budget", "psnr>=30"], ["--method", "nothing"], "nothing"),
        (["--budget", "psnr>=30", "--prompts", "none.txt"], TRIES, "none.txt"),
    ],
)
def test_bad_input_ends_before_anything_is_written(cli, tmp_path, words, method, told):
    code, out, err = cli(*words, method=method)
    assert code in (1, 2) and told in err and not out
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.txt"]


def test_settings_that_save_nothing_are_told(cli):
    code, _, err = cli(
        "--budget", "psnr>=10", "-o", "r.yaml", method=["--method", "neighborhood", "--try", "size=9x9x9"]
    )
    assert code == 1 and "no setting executes less than dense attention" in err
    assert "probe" not in err  # nothing is run that cannot help


def test_a_model_that_nobody_knows_is_told_before_prompts_are_asked_for(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["tune", "nope", "--method", "radial", "--budget", "psnr>=25"]) == 2
    assert "model: got 'nope', allowed: toy-av" in capsys.readouterr().err
