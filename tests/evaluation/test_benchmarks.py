"""The comparisons of ``benchmarks/`` at a small size."""

import argparse
import json

import numpy as np
import pytest
import torch

from benchmarks import attention_grid, methods_cpu, toy_upscale
from benchmarks.compare import Variant, comparison_rows
from benchmarks.toy_common import parse_size
from genkit.evaluation.toy import ClipRequest
from genkit.world.render import render_clip
from genkit.world.scene import draw_scene, lay_out


@pytest.fixture(scope="module")
def pipeline():
    import genkit

    found = genkit.load("toy-video")
    found.set_progress_bar_config(disable=True)
    return found


def test_a_full_window_equals_dense_and_costs_as_much_while_a_narrow_one_does_not(pipeline):
    variants = [
        Variant("neighborhood", {"size": "3x8x8"}, {}),
        Variant("neighborhood", {"size": "1x4x4", "stride": "1x4x4"}, {"steps": "1:"}),
    ]
    saved = []
    request = ClipRequest(9, 128, 128, steps=2, batch=1)
    rows = comparison_rows(pipeline, variants, 2, request, lambda rows, done: saved.append((rows, done)))
    assert [done for _, done in saved] == [1, 2] and saved[-1][0] == rows
    dense, full, narrow = rows
    assert dense["change"] == "" and full["change"] == "+0.0 ± 0.0" and "±" in narrow["change"]
    assert dense["attention FLOPs"] == full["attention FLOPs"] == "1.00"
    assert full["PSNR to dense"] == "inf" or float(full["PSNR to dense"]) > 60
    assert float(narrow["PSNR to dense"]) < 60
    # the second of two steps sees 16 of 192 tokens, in whole blocks of a frame; the first is dense
    assert (narrow["density computed"], narrow["density executed"]) == ("0.083", "0.333")
    assert float(narrow["attention FLOPs"]) == pytest.approx(0.5 + 1 / 6, abs=6e-3)


def test_a_clip_at_twice_the_size_is_read_at_its_own_and_at_the_base_size():
    rng = np.random.default_rng(3)
    scene = draw_scene(rng, actors=1)
    clip = render_clip(scene, lay_out(scene, 17, 128, 128, rng), 128, 128)
    double = clip.repeat(2, 1).repeat(2, 2)
    assert np.array_equal(toy_upscale.reduced(double, (128, 128)), clip)
    right = toy_upscale.best_reading([scene], [double], (128, 128)).right
    assert right["all"] == 1
    other = next(s for s in (draw_scene(rng, actors=1) for _ in range(50)) if s.background != scene.background)
    assert toy_upscale.best_reading([other], [double], (128, 128)).right["all"] == 0


def test_the_report_at_twice_the_size_has_a_row_per_run_and_a_sheet(tmp_path):
    parser = argparse.ArgumentParser()
    toy_upscale.add_arguments(parser)
    given = ["--prompts", "1", "--base", "5x64x64", "--steps", "4", "--strength", "0.5", "--output", str(tmp_path)]
    assert toy_upscale.run(parser.parse_args(given)) == 0
    text = (tmp_path / "toy_upscale.md").read_text()
    assert "| dense | 128x128 |" in text and "| sliding_window | 128x128 |" in text
    assert (tmp_path / "toy_upscale.png").stat().st_size > 1000 and (tmp_path / "toy_upscale.json").exists()


def test_sizes_are_three_numbers():
    assert parse_size("25x128x64") == (25, 128, 64)
    with pytest.raises(SystemExit, match="25x128"):
        parse_size("25x128")


def test_the_methods_are_timed_against_dense_attention(tmp_path):
    parser = argparse.ArgumentParser()
    methods_cpu.add_arguments(parser)
    threads = str(torch.get_num_threads())
    given = ["--grid", "3x8x8", "--dtype", "fp32", "--turns", "1", "--threads", threads, "--output", str(tmp_path)]
    assert methods_cpu.run(parser.parse_args(given)) == 0
    rows = json.loads((tmp_path / "methods_cpu.json").read_text())["rows"]
    assert rows[0]["method"] == "dense" and rows[0]["speed"] == "1.00x"
    assert {row["method"].partition("(")[0] for row in rows[1:]} >= {"radial", "mixture_of_block", "agent"}
    assert all(float(row["ms"]) >= 0 and float(row["pairs executed"]) > 0 for row in rows)
    assert methods_cpu.run(parser.parse_args([*given, "--chosen"])) == 0
    rows = json.loads((tmp_path / "methods_cpu_chosen.json").read_text())["rows"]
    assert {row["method"].partition("(")[0] for row in rows} == {"dense", "block_select", "pyramid"}
    assert all(float(row["pairs executed"]) < 1 and float(row["over the pairs"]) > 0 for row in rows[1:])


def test_the_grid_of_masks_tells_errors_and_speed_of_every_backend(tmp_path):
    parser = argparse.ArgumentParser()
    attention_grid.add_arguments(parser)
    told = [
        "--grid",
        "2x8x8",
        "--role",
        "self",
        "--role",
        "joint",
        "--role",
        "temporal",
        "--turns",
        "1",
        "--heads",
        "2",
    ]
    given = [*told, "--channels", "16", "--threads", str(torch.get_num_threads()), "--output", str(tmp_path)]
    assert attention_grid.run(parser.parse_args(given)) == 0
    rows = json.loads((tmp_path / "attention_grid.json").read_text())["rows"]
    kinds = {(row["role"], row["tokens"]) for row in rows}
    assert kinds == {("self", 128), ("joint", 192), ("temporal", 2)}
    assert {row["backend"] for row in rows} == {"torch", "cpu", "reference"}
    assert all(float(row["error"]) < 1e-4 and float(row["error of gradients"]) < 1e-4 for row in rows)
    assert len([row for row in rows if row["mask"] == "dense" and row["speed"] == "1.00x"]) == 3


def test_a_backend_that_cannot_run_here_is_refused_by_its_reason(tmp_path, capsys):
    from benchmarks.__main__ import main

    told = ["attention_grid", "--device", "cpu", "--backend", "flex", "--output", str(tmp_path)]
    assert main(told) == 1 and "no backward pass on the CPU" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--output", "--work"])
def test_results_that_cannot_be_written_are_told_before_anything_runs(option, tmp_path, capsys, monkeypatch):
    from benchmarks.__main__ import main
    from benchmarks.leaderboard import run

    monkeypatch.setattr(run, "run", None)
    (tmp_path / "file").touch()
    assert main(["leaderboard", option, str(tmp_path / "file" / "below")]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith("error: cannot write into") and f"choose another {option}" in err


@pytest.mark.parametrize("given", [["--threads", "0"], ["--threads", "many"], ["--prompts", "-3"]])
def test_a_number_out_of_range_is_refused_by_its_option(given, capsys):
    from benchmarks.__main__ import main

    with pytest.raises(SystemExit) as ended:
        main(["leaderboard", *given])
    assert ended.value.code == 2
    assert f"argument {given[0]}: got {given[1]!r}, allowed: a whole number of at least 1" in capsys.readouterr().err
