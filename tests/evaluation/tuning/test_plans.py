"""Plans are the best of their cost, by trying all; budgets, ladders and prompts read and refuse as they say."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import tiny

import genkit
from genkit.errors import UnsupportedError, UsageError
from genkit.evaluation.inspection.result import MethodLook, SiteLook, StepLook
from genkit.evaluation.tuning.budget import SURE, Budget
from genkit.evaluation.tuning.ladders import LADDERS, settings_to_try, short_names
from genkit.evaluation.tuning.outcome import Measured, Outcome, typical_spread
from genkit.evaluation.tuning.plans import (
    DENSE,
    Option,
    Plan,
    front,
    hull,
    parts_of,
    patched,
    step_groups,
    uniform,
)
from genkit.evaluation.tuning.prompts import APART, Case, Cases
from genkit.evaluation.tuning.store import digest
from genkit.evaluation.tuning.tune import _site, check_one_kind


def random_cells(seed):
    draw = random.Random(seed)
    cells = {}
    for layer, group in itertools.product(range(3), range(2)):
        options = {DENSE: Option(100.0, 0.0)}
        options |= {name: Option(draw.uniform(5, 110), draw.uniform(0.0, 1.0)) for name in range(3)}
        cells[layer, group] = options
    return cells


@pytest.mark.parametrize("seed", range(4))
def test_no_plan_of_the_same_cost_has_a_smaller_error(seed):
    """Every combination of six cells with four options is tried."""
    cells = random_cells(seed)
    every = [
        (sum(o.cost for o in chosen), sum(o.error for o in chosen))
        for chosen in itertools.product(*(options.values() for options in cells.values()))
    ]
    plans = front(cells)
    for plan in plans:
        assert plan.error <= min(error for cost, error in every if cost <= plan.cost + 1e-9) + 1e-9
        of_choices = [cells[cell][choice] for cell, choice in plan.choices]
        assert plan.cost == pytest.approx(sum(o.cost for o in of_choices))
        assert plan.error == pytest.approx(sum(o.error for o in of_choices))
    costs = [plan.cost for plan in plans]
    assert costs == sorted(costs, reverse=True) and len(set(costs)) == len(costs)
    assert plans[0].dense or plans[0].error == 0
    assert costs[-1] == pytest.approx(sum(min(o.cost for o in options.values()) for options in cells.values()))


def test_what_costs_more_and_breaks_more_is_never_chosen():
    options = {
        DENSE: Option(10, 0),
        0: Option(12, 0.5),
        1: Option(5, 0.2),
        2: Option(5, 0.1),
        3: Option(7, 0.09),
        4: Option(2, 1),
    }
    assert [name for name, _ in hull(options)] == [DENSE, 2, 4]
    assert [name for name, _ in hull({DENSE: Option(10, 0), 0: Option(10, 0)})] == [DENSE]
    assert [name for name, _ in hull({DENSE: Option(10, 0), 0: Option(5, 0)})] == [0]


def test_plans_become_as_few_parts_as_possible():
    methods = [genkit.BlockSelect(keep=0.5), genkit.BlockSelect(keep=0.1)]
    groups = [(0, 2), (2, 5), (5, 20)]
    choices = {
        (0, 0): DENSE,
        (0, 1): 0,
        (0, 2): 0,
        (1, 0): DENSE,
        (1, 1): 0,
        (1, 2): 0,
        (2, 0): 1,
        (2, 1): DENSE,
        (2, 2): 1,
    }
    parts = parts_of(Plan(tuple(sorted(choices.items())), 0, 0), methods, groups)
    assert [(method.keep, schedule) for method, schedule in parts] == [
        (0.5, {"layers": "0,1", "steps": "2:20"}), (0.1, {"layers": "2", "steps": "0:2,5:20"}),
    ]  # fmt: skip
    assert [str(part.schedule) for part in patched(parts)] == ["layers 0,1; steps 2:20", "layers 2; steps :2,5:20"]
    assert uniform({cell: {DENSE: Option(1, 0), 0: Option(0.5, 0.1)} for cell in choices}, 0, [2]).cost == 6 + 1.5


def measured(metric: str, *rows: list[float]) -> list[Measured]:
    return [Measured(None, [], str(number), {metric: row}) for number, row in enumerate(rows)]


@pytest.mark.parametrize(("metric", "best", "sign"), [("ssim", 1.0, -1), ("st_lpips", 0.0, 1)])
def test_what_bad_plans_scatter_is_not_held_against_good_ones(metric, best, sign):
    def row(distance):
        return [best + sign * distance * share for share in (0.7, 0.9, 1.1, 1.3)]

    rows = measured(metric, row(0.4), row(0.02), row(0.001))
    usual = np.mean([np.var(row(distance), ddof=1) for distance in (0.4, 0.02, 0.001)]) ** 0.5
    assert typical_spread(rows, metric, best + sign * 0.2) == pytest.approx(usual)
    # At most what outputs can have: near the best value hardly anything, whatever the mixture of good and bad ones.
    assert typical_spread(rows, metric, best + sign * 0.001) == pytest.approx((0.001 * (1.3 * 0.4 - 0.001)) ** 0.5)
    assert typical_spread(rows, metric, best) == typical_spread(rows[2:], metric, best + sign) == 0.0
    # A plan that is nearly perfect keeps a budget near perfection, whatever else was tried.
    limit = 0.95 if metric == "ssim" else 0.05
    assert Budget(metric, limit).surely_met(row(0.001), 8, typical_spread(rows, metric, best + sign * 0.001))
    # One that is near the budget needs more room than it has by itself: others melt on some prompts.
    close = [best + sign * 0.04] * 4
    assert not Budget(metric, limit).surely_met(close, 8, typical_spread(rows, metric, close[0]))


@pytest.mark.parametrize("wrong", [1, 3, 30])
def test_no_mixture_of_good_and_bad_outputs_has_more_spread_than_the_bound(wrong):
    values = [1.0] * (100 - wrong) + [0.6] * wrong
    bound = typical_spread(measured("ssim", [0.6, 1.0], [0.0, 1.0], values), "ssim", float(np.mean(values)))
    alone = typical_spread(measured("ssim", values), "ssim", float(np.mean(values)))
    assert bound >= alone == pytest.approx(np.std(values), rel=1e-9)


def test_spreads_of_decibels_are_alike_at_any_mean():
    rows = measured("psnr", [20.0, 22.0], [40.0, 40.0])
    assert typical_spread(rows, "psnr", 25.0) == typical_spread(rows, "psnr", 50.0) == pytest.approx(1.0)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8, 20, 50])
def test_groups_of_steps_cover_the_run_once(steps):
    groups = step_groups(steps)
    assert [step for start, stop in groups for step in range(start, stop)] == list(range(steps))
    assert len(groups) <= 4


def test_budgets():
    budget = Budget.of(" PSNR >= 30 ")
    assert (budget.metric, budget.limit, str(budget), budget.fast) == ("psnr", 30.0, "psnr>=30", False)
    assert Budget.of("speedup>=1.8").fast
    assert budget.met([29, 32]) and not budget.met([29, 30])
    values = [30.0, 31.0, 32.0]
    margin = SURE * 1.0 * (1 / 3 + 1 / 8) ** 0.5
    assert Budget("psnr", 31 - margin - 1e-9).surely_met(values, 8)
    assert not Budget("psnr", 31 - margin + 1e-6).surely_met(values, 8)
    assert not Budget("psnr", 30).surely_met([31.0, 31.0], 2, typical=2.0)
    assert Budget("psnr", 30).surely_met([31.0, 31.0], 2, typical=0.5)
    near = Budget.of("st_lpips<=0.1")
    assert str(near) == "st_lpips<=0.1" and near.met([0.05, 0.14]) and not near.met([0.1, 0.11])
    spread = SURE * 0.1 * (1 / 2 + 1 / 8) ** 0.5
    assert Budget("st_lpips", 0.2 + spread + 1e-9).surely_met([0.2, 0.2], 8, typical=0.1)
    assert not Budget("st_lpips", 0.2 + spread - 1e-9).surely_met([0.2, 0.2], 8, typical=0.1)
    assert Budget("psnr", 30).surely_met([30.0], 8) and Budget("speedup", 2).surely_met([1.5, 2.5], 8)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("vmaf>=90", "metric of --budget: got 'vmaf', allowed: psnr, ssim, st_lpips, judge, speedup"),
        ("lpips<=0.1", "did you mean 'st_lpips'"),
        ("st_lpips>=0.1", "allowed: st_lpips<=0.1: less of st_lpips is better"),
        ("st_lpips<=-1", "from 0 to 10"),
        ("psnr", "METRIC>=NUMBER"), ("psnr>30", "METRIC>=NUMBER"), (">=3", "METRIC"),
        ("psnr<=30", "allowed: psnr>=30: more of psnr is better"),
        ("psnr>=much", "METRIC>=NUMBER"), ("psnr>=nan", "from 0 to 99"), ("psnr>=inf", "from 0 to 99"),
        ("psnr>=100", "from 0 to 99"), ("ssim>=1", "from 0 to 0.9999"), ("judge>=95", "from 0 to 1"),
        ("speedup>=0.5", "from 1 to 1000"),
    ],
)  # fmt: skip
def test_wrong_budgets_are_refused(text, told):
    with pytest.raises(UsageError) as error:
        Budget.of(text)
    assert told in str(error.value)


@pytest.mark.parametrize("method", LADDERS)
def test_ladders_are_settings_of_their_methods(method):
    assert len(settings_to_try(method, [])) == len(LADDERS[method])


def test_settings_to_try():
    found = settings_to_try("block_select", ["keep=0.2", "keep=0.1"], "block=32")
    assert [(each.keep, each.block) for each in found] == [(0.2, 32), (0.1, 32)]
    assert short_names(found) == ["keep=0.2", "keep=0.1"]
    assert short_names(settings_to_try("block_select", ["keep=0.2"])) == ["block_select()"]
    assert short_names([genkit.BlockSelect(), genkit.BlockSelect(keep=0.5, block=32)])[1] == "block=32, keep=0.5"
    with pytest.raises(UsageError, match="no settings of agent are known to try; give some with --try"):
        settings_to_try("agent", [])
    with pytest.raises(UsageError, match="differ from each other"):
        settings_to_try("block_select", ["keep=0.2", "keep=0.20"])
    for wrong in (("nothing", []), ("block_select", ["kept=0.2"]), ("block_select", ["keep=-1"])):
        with pytest.raises(UsageError):
            settings_to_try(*wrong)


def test_prompts_are_apart(tmp_path):
    cases = Cases.of("toy-video", None, 3, 5, 7, judged=True)
    texts = [case.prompt for case in (*cases.calibration, *cases.held_out)]
    assert len(set(texts)) == 8 and all(case.scene is not None for case in cases.held_out)
    assert [case.seed for case in cases.calibration] == [7, 8, 9]
    assert [case.seed for case in cases.held_out] == [7 + APART + n for n in range(3, 8)]
    assert Cases.of("toy-video", None, 3, 5, 7) == cases

    file = tmp_path / "prompts.txt"
    file.write_text("one\ntwo\nthree\nfour\n")
    cases = Cases.of("any", file, 1, 2, 0)
    assert cases.texts() == {"calibration": ["one"], "held out": ["two", "three"]}
    with pytest.raises(UsageError, match="got 4, allowed: at least 6; 2 to choose by and 4 held out"):
        Cases.of("any", file, 2, 4, 0)
    file.write_text("one\ntwo\none\n")
    with pytest.raises(UsageError, match="has a prompt twice, 'one'"):
        Cases.of("any", file, 1, 2, 0)
    with pytest.raises(UsageError, match="give --prompts FILE"):
        Cases.of("any", None, 1, 2, 0)
    with pytest.raises(UnsupportedError, match="there is no judge for any, only for toy-video"):
        Cases.of("any", file, 1, 1, 0, judged=True)
    with pytest.raises(UsageError, match="leave --prompts out"):
        Cases.of("toy-video", file, 1, 1, 0, judged=True)


def test_names_of_results_follow_from_what_they_depend_on():
    cases = [Case("a", 1), Case("a", 2), Case("b", 1), Case("b", 1, "a scene")]
    assert len({case.name for case in cases}) == 3 and cases[0].name == digest("a", 1)
    assert all(len(case.name) == 12 for case in cases) and digest(["a", 1]) != digest("a", 1)


def test_models_with_two_kinds_of_attention_are_refused():
    """SD3.5 has joint attention in every block and self-attention besides in some: their layers have other numbers."""
    check_one_kind(tiny.build("wan").model, genkit.BlockSelect())
    with pytest.raises(UnsupportedError, match="works on joint and self attention of this model"):
        check_one_kind(tiny.build("sd35").model, genkit.BlockSelect())


def test_a_change_is_taken_prompt_by_prompt():
    """The mean is the difference of the means, the error that of the pairs; metrics of one side are left out."""
    outcome = Outcome(None, held_out={"judge": [1.0, 0.0, 1.0], "psnr": [30.0, 31.0, 32.0]})
    outcome.dense = {"judge": [1.0, 1.0, 0.0]}
    assert outcome.changes == {"judge": [0.0, -1.0, 1.0]}
    outcome.dense = {"judge": [1.0, 1.0]}
    with pytest.raises(ValueError):
        assert outcome.changes


def test_of_several_steps_of_a_group_the_mean_square_and_the_mean_count():
    methods = [genkit.Broadcast(every=2), genkit.Broadcast(every=3)]
    nothing = np.zeros(0)

    def look(error, executed):
        return MethodLook(None, error, nothing, executed, executed)

    steps = tuple(
        StepLook(step, 1, nothing, nothing, {}, {}, {methods[0].describe(): look(0.3 * (step % 2), 1.0 - step % 2)})
        for step in range(5)
    )
    site = SiteLook("a", "self", 0, 2, (1, 1, 1), 1, 7.0, steps, nothing, nothing, nothing)
    found = _site(site, [(0, 2), (2, 5), (5, 6)], methods)
    assert found["layer"] == 0 and found["operations"] == 7.0 and found["steps"][2] == {}
    assert found["steps"][0] == {"0": (pytest.approx(0.3 * 0.5**0.5), 0.5)}
    assert found["steps"][1] == {"0": (pytest.approx(0.3 * (1 / 3) ** 0.5), pytest.approx(2 / 3))}
