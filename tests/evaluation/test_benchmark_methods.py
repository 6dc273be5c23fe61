"""The comparison of methods: a small run of each model, going on after a stop, and what the report concludes."""

import argparse
import json

import numpy as np
import pytest
import torch

from benchmarks.editing.store import Store
from benchmarks.methods import cases, report, run
from benchmarks.methods.cases import Case, settings_text
from benchmarks.methods.mass import Calls, measure
from genkit.attention import registry
from genkit.attention.site import Site
from genkit.layout import TokenLayout

NEAR = ("neighborhood", {"size": "1x4x4", "stride": "1x4x4"})
FULL = ("neighborhood", {"size": "all"})
CHOSEN = ("block_select", {"keep": "2", "block": "16"})
FEWER = ("block_select", {"keep": "1", "block": "16"})
TAIL = ("block_select", {"keep": "1", "block": "16", "tail": "16"})


def small(monkeypatch, case):
    monkeypatch.setattr(cases, "CASES", {"small-80": case})
    for module in (run, report):
        monkeypatch.setattr(module, "CASES", {"small-80": case})
    monkeypatch.setattr(report, "TAILS", {"small-80": (CHOSEN, FEWER, TAIL)})


def started(tmp_path, *more):
    parser = argparse.ArgumentParser()
    run.add_arguments(parser)
    told = ["--case", "small-80", "--work", str(tmp_path / "work"), "--output", str(tmp_path / "out"), *more]
    return run.run(parser.parse_args(told))


@pytest.mark.parametrize("model, frames", [("toy-video", 5), ("toy-dit", 1)])
def test_a_small_run_measures_every_row_and_a_second_one_nothing(model, frames, monkeypatch, tmp_path, capsys):
    small(monkeypatch, Case(model, frames, 64, 2, 4, 0.5, 4.0, 1.0, 1, {"some": (NEAR, FULL, CHOSEN)}))
    assert started(tmp_path, "--prompts", "2", "--looked", "1") == 0
    text = (tmp_path / "out/methods.md").read_text()
    assert text in capsys.readouterr().out and "| neighborhood" in text and "| block_select" in text
    rows = Store(tmp_path / "out/methods.json").rows
    full = rows[f"{model}/small-80/outputs/{settings_text(FULL)}"]
    near = rows[f"{model}/small-80/outputs/{settings_text(NEAR)}"]
    assert full.count == near.count == 2 and np.mean(full.values("psnr")) > 60 > np.mean(near.values("psnr"))
    assert full.values("all") == rows[f"{model}/small-80/outputs/dense"].values("all")
    look = rows[f"{model}/small-80/look/{settings_text(FULL)}"]
    assert look.count == 1 and look.values("mass") == [100.0] and look.values("error") == [0.0]
    assert 0 < rows[f"{model}/small-80/look/{settings_text(NEAR)}"].values("mass")[0] < 100

    before = (tmp_path / "out/methods.json").read_text()
    monkeypatch.setattr("benchmarks.methods.outputs.Clips.again", None)
    monkeypatch.setattr("benchmarks.methods.outputs.Pictures.again", None)
    assert started(tmp_path, "--prompts", "2", "--looked", "1") == 0
    assert json.loads((tmp_path / "out/methods.json").read_text())["rows"] == json.loads(before)["rows"]


def test_mass_is_that_of_the_pairs_of_all_queries():
    layout = TokenLayout.of_grid(2, 8, 8)
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(1, layout.length, 2, 8, generator=generator) for _ in range(3))
    site = Site.of_layout(layout, heads=2)
    method = registry.build(*CHOSEN)
    found = measure(method, Calls([(q, k, v, site)]))
    weights = (torch.einsum("bqhd,bkhd->bhqk", q, k) * 8**-0.5).softmax(-1)
    from genkit.attention.cache import PatchCache

    right = (weights * method.pairs(q, k, site, PatchCache())).sum(-1).mean()
    assert found["mass"] == pytest.approx(100 * float(right), rel=1e-5)
    assert found["computed"] == pytest.approx(25.0) and found["call ms"] > 0 and found["choosing ms"] > 0
    everything = measure(registry.build("block_select", {"keep": "1.0", "block": "16"}), Calls([(q, k, v, site)]))
    assert everything["mass"] == pytest.approx(100, rel=1e-5) and everything["error"] < 1e-3


def test_the_report_compares_at_equal_density_and_tells_what_a_tail_brings(monkeypatch, tmp_path):
    small(monkeypatch, Case("toy-video", 5, 64, 2, 4, 0.5, 4.0, 1.0, 1, {"some": (NEAR, CHOSEN, FEWER, TAIL)}))
    store = Store(tmp_path / "none.json")
    store.facts = {"gpu": None, "cpu": "x", "threads": 1, "cores": 1, "python": "3", "versions": {}, "commit": "c"}
    psnr = {NEAR[1]["size"]: (20, 22), "2": (30, 31), "1": (24, 26), "16": (28, 29)}
    for setting, executed in ((NEAR, 12), (CHOSEN, 25), (FEWER, 12.1), (TAIL, 18), (None, None)):
        values = psnr[setting[1].get("tail") or setting[1].get("keep") or setting[1]["size"]] if setting else (0, 0)
        method = settings_text(setting) if setting else "dense"
        for value in values:
            row = store.row("toy-video", "small-80/outputs", method, {"dtype": "float32"})
            row.add({"psnr": value, "all": 1, "base": 1})
        if setting:
            look = store.row("toy-video", "small-80/look", method, {})
            numbers = {"executed": executed, "computed": executed, "mass": executed, "error": 1.0}
            look.add(numbers | {"call ms": 3.0, "dense ms": 10.0} | ({} if setting is NEAR else {"choosing ms": 1.0}))
    text = report.text(store)
    assert text.count("| +4.00 ± 0.00 | block_select(block=16, keep=1) |") == 1
    assert "+4.00 ± 0.00" in text  # 24, 26 against 20, 22: the only one that executes as little
    assert "brings back" in text and "64 ± " in text  # (4 + 3) / (6 + 5)
    assert "| 12% |" in text  # 1 ms of 8 that are saved
    assert "| mass kept | 4 | 1.00 ± 0.00 |" in text  # the same order as PSNR's
    assert "| error of the output |" not in text.partition("predict the output?")[2]  # all alike: no order


def test_rank_correlation_is_spearmans():
    draw = np.random.default_rng(0)
    for _ in range(20):
        x, y = draw.permutation(9), draw.permutation(9)
        right = 1 - 6 * float(((x - y) ** 2).sum()) / (9 * 80)
        assert report.rank_correlation(x, y * 3.0) == pytest.approx(right)
    assert report.rank_correlation(np.array([1, 1, 2]), np.array([5, 5, 9])) == pytest.approx(1)  # ranks .5, .5, 2


@pytest.mark.parametrize("name", list(cases.CASES))
def test_cases_have_methods_that_exist_once_each_and_tails_among_them(name):
    told = [settings_text(setting) for setting in run.methods_of(cases.CASES[name])]
    assert len(set(told)) == len(told) and all(settings_text(one) in told for one in cases.TAILS[name])


def test_a_number_of_prompts_below_one_is_refused(tmp_path):
    parser = argparse.ArgumentParser()
    run.add_arguments(parser)
    with pytest.raises(SystemExit, match="--prompts"):
        run.run(parser.parse_args(["--prompts", "0", "--output", str(tmp_path)]))


@pytest.mark.parametrize("values", [[0.9997], [0.0, 1.0], [0.004, 1.0], [2.5, float("nan")], [100.0]])
def test_numbers_that_are_read_back_are_written_alike(values):
    from benchmarks.editing.store import _pack, _unpack

    assert _pack(_unpack(_pack(values))) == _pack(values)
