"""``genkit.compare`` on a tiny pipeline: numbers again from the saved files, failures, interrupts, and the page."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

import genkit
from genkit.errors import ArtifactError, UsageError
from genkit.evaluation.comparison.api import compare
from genkit.evaluation.comparison.caches import parse_cache
from genkit.evaluation.comparison.report.write import Report
from genkit.media import read_media

CALL = {"num_inference_steps": 3, "height": 64, "width": 64, "num_frames": 5, "guidance_scale": 3.0}
PROMPTS = ["a red circle moves right on a blue background", "a green square"]
SPARSE = genkit.Neighborhood(size=(1, 3, 3))


@pytest.fixture(scope="module")
def pipe(tiny_wan):
    pipeline = genkit.load(tiny_wan)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def made(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    variants = {
        "sparse": SPARSE,
        "late": {"attention": SPARSE, "schedule": genkit.Schedule(steps="2:")},
        "the same": None,
        "cached": {"cache": "first_block:threshold=100.0"},
    }
    found = compare(pipe, PROMPTS, variants, seeds=[3, 4], output=folder / "r.html", perceptual=False, **CALL)
    return found, folder


def test_numbers_again_from_the_saved_files(made):
    found, folder = made
    data = json.loads((folder / "r.json").read_text())
    runs = {(row["name"], run["prompt"], run["seed"]): run for row in data["variants"] for run in row["runs"]}
    assert len(runs) == 5 * 2 * 2 and data["finished"]
    for (name, prompt, seed), run in runs.items():
        if name == "dense":
            continue
        one, other = (read_media(folder / each["file"]).frames / 255.0 for each in (run, runs["dense", prompt, seed]))
        errors = ((one - other) ** 2).mean((1, 2, 3))
        psnr = [100.0 if error == 0 else min(100.0, -10 * np.log10(error)) for error in errors]
        assert run["values"]["psnr"] == pytest.approx(np.mean(psnr)), name
        assert run["per_frame"]["psnr"] == pytest.approx(psnr)
        drift = 255 * np.sqrt(((one.mean((1, 2)) - other.mean((1, 2))) ** 2).sum(1))
        assert run["values"]["colour_drift"] == pytest.approx(drift.mean(), abs=1e-9)
        change = [255 * np.abs(np.diff(clip, axis=0)).mean() for clip in (one, other)]
        assert run["values"]["flicker"] == pytest.approx(change[0] - change[1], abs=1e-9)


def test_the_outputs_are_those_of_the_pipeline_itself(made, pipe):
    """Same seed, same steps: the dense file is what a call without genkit makes; a variant that changes nothing is
    equal, latents at every step included."""
    found, folder = made
    run = found.rows[0].find(PROMPTS[1], 4)
    alone = pipe(PROMPTS[1], generator=torch.Generator("cpu").manual_seed(4), output_type="np", **CALL).frames[0]
    assert np.array_equal(read_media(folder / run.file).frames, (alone * 255).round().astype(np.uint8))
    same = found.rows[[row.name for row in found.rows].index("the same")]
    for each in same.runs:
        assert each.numbers.values["psnr"] == 100 and each.numbers.steps["latent_error"] == [0, 0, 0]
    late = next(row for row in found.rows if row.name == "late")
    assert all(run.numbers.steps["latent_error"][:2] == [0, 0] for run in late.runs)
    assert all(run.numbers.steps["latent_error"][2] > 0 for run in late.runs)


def test_costs_add_up(made):
    found, _ = made
    dense, sparse, late = (found.summary(name) for name in ("dense", "sparse", "late"))
    assert dense["flops_executed"].mean == dense["flops_dense"].mean == sparse["flops_dense"].mean > 0
    assert sparse["flops_computed"].mean < late["flops_computed"].mean < dense["flops_computed"].mean
    cached = found.summary("cached")
    assert cached["flops_executed"].mean < 0.8 * dense["flops_executed"].mean, (
        "blocks that the cache skips are not paid"
    )
    for row in found.rows:
        for run in row.runs:
            assert 0 < run.attention.seconds < run.seconds
            assert run.peak is None or run.peak > 10_000_000
    report = found.rows[1].runs[0].report
    own = found.rows[1].runs[0].attention
    assert report["ran"] > 0 and own.calls > report["calls"]  # cross attention is watched as well
    assert dense["seconds"].count == 4 and sparse["speedup"].low < sparse["speedup"].mean < sparse["speedup"].high


def test_another_seed_is_the_scale(made):
    found, folder = made
    assert len(found.scale) == 2
    first, second = (read_media(folder / found.rows[0].find(PROMPTS[0], seed).file).frames for seed in (3, 4))
    from genkit.evaluation.metrics import psnr

    assert found.scale[0]["psnr"] == pytest.approx(psnr(second, first))


class Page(HTMLParser):
    """Collects addresses and scripts."""

    def __init__(self):
        super().__init__()
        self.addresses: list[str] = []
        self.data: dict[str, str] = {}
        self._open = None

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.addresses += [attrs[name] for name in ("src", "href", "action") if name in attrs]
        self._open = attrs.get("id") if tag == "script" else None

    def handle_data(self, data):
        if self._open:
            self.data[self._open] = self.data.get(self._open, "") + data

    def handle_endtag(self, tag):
        self._open = None


def test_the_page_holds_everything_and_asks_nobody(made):
    found, folder = made
    text = (folder / "r.html").read_text()
    page = Page()
    page.feed(text)
    assert not page.addresses
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert "default-src 'none'" in text
    inside = json.loads(page.data["data"])
    assert inside == json.loads((folder / "r.json").read_text())
    media = json.loads(page.data["media"])
    assert len(media) == 4 and set(media[0]["clips"]) == {row.name for row in found.rows}
    assert len(media[0]["clips"]["dense"]["frames"]) == 5 and media[0]["fps"] > 0
    drawn = json.loads(page.data["drawn"])
    assert drawn["sparse"] and drawn["sparse"][0][1].startswith("data:image/png;base64,")
    from PIL import Image

    with Image.open(folder / "r.png") as sheet:
        assert sheet.width > 500 and sheet.height > 5 * 100
    assert not [path for path in folder.rglob(".genkit-*")]


def test_names_cannot_break_out_of_the_page(pipe, tmp_path):
    bad = "</script><script>alert(1)</script>"
    compare(pipe, bad[:20], {bad: SPARSE}, output=tmp_path / "r.html", perceptual=False, warm_up=False, **CALL)
    page = Page()
    page.feed((tmp_path / "r.html").read_text())
    assert json.loads(page.data["data"])["variants"][1]["name"] == bad
    assert "<script>alert" not in (tmp_path / "r.html").read_text()


class Breaks(genkit.Neighborhood):
    """Fails at its third denoiser call of attention and later."""

    def attend(self, q, k, v, site, cache):
        raise RuntimeError("the kernel fell over")


def test_a_variant_that_fails_costs_the_others_nothing(pipe, tmp_path):
    variants = {"broken": Breaks(size=(1, 3, 3)), "sparse": SPARSE}
    found = compare(pipe, PROMPTS, variants, output=tmp_path / "r.html", perceptual=False, warm_up=False, **CALL)
    assert [row.name for row in found.failed] == ["broken"]
    assert "the kernel fell over" in found.failed[0].failed and not found.failed[0].runs
    assert len(found.rows[0].runs) == len(found.rows[2].runs) == 2 and found.finished
    data = json.loads((tmp_path / "r.json").read_text())
    assert "the kernel fell over" in data["variants"][1]["failed"]
    assert "the kernel fell over" in (tmp_path / "r.html").read_text()
    assert not genkit.patches(pipe) and not pipe.transformer._forward_pre_hooks


def test_a_baseline_that_fails_leaves_costs_and_no_distances(pipe, tmp_path):
    found = compare(
        pipe, PROMPTS[0], {"broken": Breaks(size=(1, 3, 3)), "sparse": SPARSE}, baseline="broken", perceptual=False,
        warm_up=False, output=tmp_path / "r.html", **CALL,
    )  # fmt: skip
    assert found.baseline.failed and len(found.rows) == 2
    assert found.rows[1].runs[0].numbers is None and found.rows[1].runs[0].seconds > 0


def test_ctrl_c_keeps_what_was_made(pipe, tmp_path, monkeypatch):
    from genkit.evaluation.comparison.makers import PipelineMaker

    calls, real = [], PipelineMaker.make

    def make(self, *rest):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self, *rest)

    monkeypatch.setattr(PipelineMaker, "make", make)
    with pytest.raises(KeyboardInterrupt):
        compare(pipe, PROMPTS, {"sparse": SPARSE}, output=tmp_path / "r.html", perceptual=False, warm_up=False, **CALL)
    data = json.loads((tmp_path / "r.json").read_text())
    assert not data["finished"] and sum(len(row["runs"]) for row in data["variants"]) == 3
    assert "Not finished" in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize(
    ("prompts", "variants", "options", "words"),
    [
        ([], {"a": SPARSE}, {}, "prompts"),
        (["x", 3], {"a": SPARSE}, {}, "prompts"),
        ("x", {}, {}, "variants"),
        ("x", {"dense": None}, {}, "nothing to compare"),
        ("x", {"a": {"method": SPARSE}}, {}, "did you mean|allowed: attention"),
        ("x", {"a": {"schedule": genkit.Schedule(steps="2:")}}, {}, "without an attention"),
        ("x", {"a": 3}, {}, "attention method"),
        ("x", {"a": SPARSE}, {"baseline": "b"}, "baseline"),
        (3, {"a": SPARSE}, {}, "prompts"),
        (["x", "x"], {"a": SPARSE}, {}, "prompts.*each once"),
        ("x", {"a": SPARSE}, {"seeds": None}, "seeds"),
        ("x", {"a": SPARSE}, {"seeds": [1, 1]}, "seeds.*each once"),
        ("x", {"dense": SPARSE, "a": SPARSE}, {}, "own attention"),
        ("x", {"": SPARSE}, {}, "no name"),
        ("x", {"a": SPARSE}, {"seeds": []}, "seeds"),
        ("x", {"a": SPARSE}, {"seeds": [True]}, "seeds"),
        ("x", {"a": SPARSE}, {"output": "r.pdf"}, "ending in .html"),
        ("x", {"a": {"cache": "second_block"}}, {}, "first_block"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_runs(pipe, prompts, variants, options, words):
    with pytest.raises(UsageError, match=words):
        compare(pipe, prompts, variants, **options, **CALL)


def test_reports_are_not_written_over_unasked(pipe, tmp_path):
    (tmp_path / "r.json").write_text("{}")
    with pytest.raises(UsageError, match="--force"):
        compare(pipe, "x", {"a": SPARSE}, output=tmp_path / "r.html", **CALL)
    (tmp_path / "file").write_text("")
    with pytest.raises((ArtifactError, UsageError)):
        compare(pipe, "x", {"a": SPARSE}, output=tmp_path / "file" / "r.html", **CALL)


def test_a_report_in_place_of_an_older_one_leaves_none_of_its_outputs_and_all_other_files(pipe, tmp_path):
    told = {"output": tmp_path / "r.html", "perceptual": False, "warm_up": False, "force": True, **CALL}
    compare(pipe, PROMPTS, {"sparse": SPARSE}, **told)
    own = tmp_path / "r_outputs" / "of-mine.webp"
    own.write_text("")
    found = compare(pipe, PROMPTS[1], {"whole": genkit.Neighborhood(size="all")}, **told)
    listed = {tmp_path / run.file for row in found.rows for run in row.runs}
    records = {path.with_name(f"{path.name}.json") for path in listed}
    assert len(listed) == 2 and set((tmp_path / "r_outputs").iterdir()) == listed | records | {own}
    assert "every pair of attention was executed" in found.rows[1].told[0] and not found.rows[0].told


def test_a_disk_that_is_full_at_the_end_still_shows_the_numbers(tmp_path, tiny_wan, monkeypatch, capsys):
    from genkit.cli.main import main

    def full(self, comparison):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Report, "write", full)
    path = str(tmp_path / "r.html")
    words = ["compare", "a red circle", "--model", str(tiny_wan), "--attention", "neighborhood:size=1x3x3"]
    size = ["--steps", "2", "--height", "64", "--width", "64", "--num-frames", "5", "--no-perceptual"]
    assert main([*words, *size, "-o", path]) != 0
    told = capsys.readouterr()
    assert "neighborhood" in told.out and "PSNR" in told.out and "No space left" in told.err


def test_of_two_runs_to_one_place_one_gets_it(pipe, tmp_path):
    first, second = (Report(tmp_path / "r.html") for _ in range(2))
    first.check()
    second.check()
    with first:
        with pytest.raises(UsageError, match="r_outputs exists"), second:
            pass
        assert first.folder.is_dir()
        with Report(tmp_path / "r.html", force=True):
            (first.folder / "kept.png").write_text("")
    assert first.folder.is_dir()
    with Report(tmp_path / "s.html"):
        pass
    assert not (tmp_path / "s_outputs").exists()
    (tmp_path / "t_outputs").write_text("")
    with pytest.raises(UsageError, match="no folder"):
        Report(tmp_path / "t.html", force=True).check()


def test_a_cache_is_taken_off_again(pipe):
    from genkit.evaluation.comparison.caches import cached

    with cached(pipe, parse_cache("first_block:threshold=0.1")):
        assert pipe.transformer.is_cache_enabled
    assert not pipe.transformer.is_cache_enabled


def test_pictures_have_no_rate_and_no_flicker(tmp_path, tiny_sd):
    pipeline = genkit.load(tiny_sd)
    pipeline.set_progress_bar_config(disable=True)
    found = compare(
        pipeline, "red", {"agent": genkit.Agent()}, output=tmp_path / "p.html", perceptual=False, warm_up=False,
        num_inference_steps=2, height=64, width=64,
    )  # fmt: skip
    run = found.rows[1].runs[0]
    assert run.file.endswith(".png") and "flicker" not in run.values and "psnr" in run.values
    assert read_media(tmp_path / run.file).frames.shape == (1, 64, 64, 3)
    page = Page()
    page.feed((tmp_path / "p.html").read_text())
    assert json.loads(page.data["media"])[0]["fps"] is None


def test_clips_with_sound_keep_exact_samples(tmp_path):
    """An .npz beside the .mp4 holds what the numbers are of."""
    from genkit.evaluation.comparison.loop import Loop
    from genkit.evaluation.comparison.makers import Run
    from genkit.evaluation.comparison.numbers import Output
    from genkit.evaluation.comparison.report.write import Report
    from genkit.evaluation.comparison.results import Comparison, Row
    from genkit.evaluation.comparison.sound import mel_distance

    rng = np.random.default_rng(0)

    class Maker:
        pipeline, device, told = object(), "cpu", []

        def __init__(self, loud):
            self.loud = loud

        def begins(self):
            return 0

        def make(self, prompt, seed, progress, latents, stop):
            frames = rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
            wave = (self.loud * np.sin(np.arange(8000) / 9)[:, None] * np.ones((1, 2))).astype(np.float32)
            return Run(Output(frames, Fraction(8), wave, 16000), 0.1)

    rows = [Row("dense", "", True), Row("half", "")]
    comparison = Comparison(rows, ["x"], [0])
    report = Report(tmp_path / "s.html")

    class Known(Loop):
        def _watches(self):
            from contextlib import nullcontext

            return nullcontext({})

    Known({"dense": Maker(0.5), "half": Maker(0.25)}, comparison, report, warm_up=False).run()
    report.write(comparison)
    both = [np.load(tmp_path / row.runs[0].file) for row in rows]
    assert all((tmp_path / row.runs[0].file).with_suffix(".mp4").exists() for row in rows)
    right = mel_distance(both[1]["audio"], both[0]["audio"], int(both[0]["sample_rate"]))
    assert rows[1].runs[0].values["mel_distance"] == pytest.approx(right) and right > 0
    page = Page()
    page.feed((tmp_path / "s.html").read_text())
    assert json.loads(page.data["media"])[0]["clips"]["half"]["sound"].startswith("data:audio/wav;base64,")
