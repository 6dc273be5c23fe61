"""The benchmarks of editing at a small size: rows go on where they stopped, and reports say what was measured."""

import argparse

import numpy as np
import pytest

from benchmarks.editing import edit, fill
from benchmarks.editing.editors import EDITORS, given
from benchmarks.editing.store import Row, Store, measure


def _options(module, *given_):
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return parser.parse_args(given_)


def test_a_row_goes_on_where_it_stopped_and_begins_anew_with_other_settings(tmp_path):
    path, asked = tmp_path / "x.json", []

    def judge(case, output):
        return {"right": output == case, "psnr": 30.125 + case}

    def run(case, number):
        asked.append(number)
        return case if number != 1 else -1

    def once(count, weights="one", **settings):
        store = Store(path)
        row = store.row("m", "k", "way", settings, weights)

        def save():
            import json

            path.write_text(json.dumps(store.data()))

        measure(row, list(range(count)), run, judge, save, at=f"run of {count}")
        return row

    once(2)
    row = once(4)
    assert row.at == ["run of 2", "run of 4"]
    assert asked == [0, 1, 2, 3]
    assert row.values("right") == [1.0, 0.0, 1.0, 1.0]
    assert row.values("psnr") == pytest.approx([30.12, 31.12, 32.125, 33.125], abs=0.006)
    assert once(4).at == row.at and len(asked) == 4
    once(1, steps=2)
    once(1, steps=2, weights="others")
    assert asked[4:] == [0, 0]


def test_attributes_that_a_case_lacks_are_left_out_of_its_row():
    row = Row("m", "k", "way")
    row.add({"right": True})
    row.add({"right": False, "place": True})
    assert row.values("place") == [1.0] and row.values("right") == [1.0, 0.0] and row.count == 2


def test_the_report_of_edits_has_bounds_and_methods_with_errors(tmp_path, capsys):
    options = _options(
        edit, "--kinds", "colour", "--methods", "true target", "img2img", "--cases", "2", "--set", "steps=2",
        "strength=0.5", "--output", str(tmp_path), "--sheets", str(tmp_path / "sheets"),
    )  # fmt: skip
    assert edit.run(options) == 0
    told = (tmp_path / "editing.md").read_text()
    assert "| true target | 2 | 100 ± " in told and "| img2img | 2 | " in told
    assert sorted(path.name for path in (tmp_path / "sheets").iterdir()) == [
        "toy-image-colour-img2img.png", "toy-image-colour-true-target.png",
    ]  # fmt: skip
    store = Store(tmp_path / "editing.json")
    row = store.rows["toy-image/colour/img2img"]
    assert row.settings["steps"] == 2 and row.settings["strength"] == 0.5 and row.count == 2
    assert len(row.weights) == 8 and len(row.at) == 1
    assert f"- {row.at[0]}, weights {row.weights}: true target (colour); img2img (colour)" in told
    before = capsys.readouterr()
    assert edit.run(options) == 0
    assert "colour" not in capsys.readouterr().err, before.err  # nothing is measured again


def test_the_report_of_parts_made_anew_says_that_the_outside_is_untouched(tmp_path):
    options = _options(
        fill, "--kinds", "fill", "--methods", "true target", "blending alone", "--cases", "1", "--set",
        "num_inference_steps=2", "--output", str(tmp_path),
    )  # fmt: skip
    assert fill.run(options) == 0
    rows = Store(tmp_path / "editing_inpaint.json").rows
    assert rows["toy-image/fill/true target"].values("right") == [1.0]
    assert rows["toy-image/fill/blending alone"].values("outside") == [1.0]


def test_lines_without_control_say_so_and_presets_change_the_kinds_they_are_for():
    class Diffusion:
        pass

    from benchmarks.editing import editors

    before = editors._flow
    editors._flow = lambda pipeline: False
    try:
        none = EDITORS["infedit, no control"].settings("colour", Diffusion(), "toy-image")
        usual = EDITORS["infedit"].settings("colour", Diffusion(), "toy-image")
        presets = {
            kind: EDITORS["infedit, presets"].settings(kind, Diffusion(), "toy-image") for kind in ("colour", "add")
        }
    finally:
        editors._flow = before
    assert none["keep"] == 0.0 and usual["keep"] > 0.0
    assert presets["colour"] != presets["add"]


def test_settings_from_the_command_line_are_values_and_other_text_is_text():
    assert given(["steps=8", "words=('a',)", "spacing=own"]) == {"steps": 8, "words": ("a",), "spacing": "own"}
    with pytest.raises(SystemExit, match="NAME=VALUE"):
        given(["steps"])


def test_samples_of_the_truth_are_right_by_the_bound_too():
    from genkit.evaluation.edits import draw_edits, judge_sample

    for case in draw_edits("add", 2):
        assert judge_sample(case, case.target)["right"]
        assert not judge_sample(case, np.zeros_like(case.target))["right"]
