"""What the benchmark of tuning trials reads out of reports of ``genkit tune``."""

from __future__ import annotations

from benchmarks.tuning_trials import TRIALS, best_uniform, outcome_of, text_of
from genkit.evaluation.tuning.budget import Budget


def plan(title, psnr, speedup, chosen=False):
    return {"title": title, "chosen": chosen, "values": {"psnr": [psnr - 1, psnr + 1], "speedup": [speedup] * 2}}


PLANS = [
    plan("plan 3 of 9", 33, 2.5, chosen=True),
    plan("every=2 everywhere", 34, 1.9),
    plan("every=3 everywhere", 33, 2.2),
    plan("every=4 everywhere", 29, 3.0),
    plan("every=4 from step 5", 36, 2.4),
]


def test_the_best_single_setting_is_as_good_as_the_chosen_plan():
    chosen = PLANS[0]
    assert best_uniform(PLANS, Budget.of("psnr>=30"), chosen)["speedup"] == 2.2
    assert best_uniform(PLANS, Budget.of("psnr>=30"), None)["speedup"] == 2.2
    assert best_uniform(PLANS[3:], Budget.of("psnr>=30"), chosen) is None
    fast = best_uniform(PLANS, Budget.of("speedup>=2.1"), plan("plan 1 of 9", 33, 2.1, chosen=True))
    assert fast["psnr"] == 33 and fast["speedup"] == 2.2


def test_a_report_becomes_a_row_of_the_table():
    held = {"psnr": [31.0, 35.0], "speedup": [2.5, 2.5]}
    found = outcome_of({"budget": "psnr>=30", "met": True, "plans": PLANS, "held_out": held})
    assert found["met"] and found["chosen"]["speedup"] == 2.5 and found["title"] == "plan 3 of 9"
    missed = outcome_of({"budget": "psnr>=50", "met": False, "plans": PLANS[1:], "held_out": {}})
    assert missed["chosen"] is None and missed["uniform"] is None
    facts = {"gpu": None, "cpu": "x", "threads": 1, "cores": 2, "python": "3", "versions": {}, "commit": "c"}
    rows = [{"trial": TRIALS[0].name, **found}, {"trial": "toy-dit, radial, psnr>=50", **missed}]
    text = text_of({"environment": facts, "trials": rows})
    assert "1 of 2 trials met their budget" in text and "0 missed it" in text and "| out of reach |" in text
    assert "| 33 ± 2 |" in text and "none as good" in text
