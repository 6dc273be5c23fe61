"""``--boxes``: what is read of a track, what is refused before weights, and that a run is what one makes by hand."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

import genkit
from genkit.attention.motion_boxes import BoxTrack
from genkit.attention.reference.masks import box_mask
from genkit.attention.reference.store import References
from genkit.attention.registry import trained
from genkit.cli.main import main
from genkit.errors import GenkitError, UsageError
from genkit.patching import Part
from genkit.pipelines.resolve import resolve
from genkit.pipelines.session import run
from genkit.pipelines.settings import GenerateSettings
from genkit.pipelines.tasks.boxes.track import read_track
from genkit.pipelines.tasks.references.record import record_pictures

FRAMES, SIDE = 9, 32
FIRST, LAST = [0.0, 0.1, 0.5, 0.6], [0.5, 0.4, 1.0, 0.9]
PIXELS = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def track(*rows, units="shares", **more):
    return {"units": units, "boxes": [{"frame": frame, "box": box} for frame, box in rows], **more}


GOOD = track((0, FIRST), (8, LAST))


@pytest.fixture
def model(tiny_wan, tmp_path):
    """The tiny Wan folder with a motion module whose projections are open."""
    folder = shutil.copytree(tiny_wan, tmp_path / "model")
    with genkit.patch(genkit.load(str(folder)), genkit.MotionBoxes(width=4, rank=3)) as patch:
        tiny.open_projections(patch.weights, scale=1.0)
        patch.weights.save(folder / "motion_boxes.safetensors")
    return folder


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tmp_path.joinpath("track.json").write_text(json.dumps(GOOD))
    Image.fromarray(PIXELS).save(tmp_path / "cat.png")
    return tmp_path


def ask(model, **changes):
    fixed = {"prompt": "a red circle", "model": str(model), "seed": 1, "boxes": "track.json", "num_frames": FRAMES}
    return GenerateSettings(
        **{**fixed, "height": SIDE, "width": SIDE, "steps": 2, "max_sequence_length": 16, **changes}
    )


def by_hand(result, folder, subject=False, boxes=True, method=None):
    """The pipeline called with a result's settings."""
    told, pipeline = result.settings, genkit.load(str(folder))
    only = genkit.Schedule(branches=("cond",))
    module = trained("motion_boxes", folder / "motion_boxes.safetensors")
    parts = [Part(method or genkit.Reference(), only)] * subject + [Part(module)] * boxes
    rows = genkit.attention.motion_boxes.interpolated({0: FIRST, 8: LAST}, FRAMES)
    with genkit.patch(pipeline, parts or genkit.Reference()) as patch:
        if boxes:
            BoxTrack.of(patch.cache).set(rows)
        if subject:
            record_pictures(patch, pipeline, PIXELS[None], slots=16)
            References.of(patch.cache).set_boxes(box_mask(rows.tolist(), SIDE // 8, SIDE // 8))
        output = pipeline(
            prompt=told.prompt, height=SIDE, width=SIDE, num_frames=FRAMES, num_inference_steps=2, output_type="np",
            guidance_scale=told.guidance_scale, generator=torch.Generator().manual_seed(1), max_sequence_length=16,
        )  # fmt: skip
    return np.rint(output.frames[0] * 255).astype(np.uint8)


@pytest.mark.parametrize("subject", [False, True])
def test_a_run_is_what_one_makes_by_hand(model, work, subject):
    more = {"attention": "reference", "reference": ("cat.png",)} if subject else {}
    result = run(ask(model, **more))
    assert np.array_equal(result.frames, by_hand(result, model, subject))
    assert not np.array_equal(result.frames, by_hand(result, model, subject, boxes=False))
    assert result.settings.boxes == str(work / "track.json") and result.report["ran"]
    assert result.record["made_with"]["boxes_fingerprint"]
    again = run(GenerateSettings.from_mappings(("the record", result.record["settings"])))
    assert np.array_equal(again.frames, result.frames)


def test_a_subject_is_shown_by_the_trained_weights_beside_the_model(model, work):
    """Weights of reference attention in the model's folder are found, and a run is what one makes by hand."""
    with genkit.patch(genkit.load(str(model)), genkit.Reference(form="residual", rank=2)) as patch:
        tiny.open_projections(patch.weights)
        patch.weights.save(model / "reference.safetensors")
    result = run(ask(model, subject=("cat.png",)))
    assert result.settings.attention_args["weights"] == str(model / "reference.safetensors")
    method = trained("reference", model / "reference.safetensors")
    assert np.array_equal(result.frames, by_hand(result, model, True, method=method))
    assert not np.array_equal(result.frames, by_hand(result, model, True))


def test_beside_a_sparse_method(model, work):
    plain = run(ask(model, attention="radial", attention_args={"block_size": "16"}, boxes=None))
    both = run(ask(model, attention="radial", attention_args={"block_size": "16"}))
    assert not np.array_equal(plain.frames, both.frames) and both.settings.attention == "radial"
    told = json.dumps(both.report)
    assert "radial" in told and "motion_boxes" in told


def test_pixels_and_shares_and_yaml_say_the_same(work):
    asked = read_track("track.json").frames(FRAMES, 40, 80)
    pixels = track((0, [0, 4, 40, 24]), (8, [40, 16, 80, 36]), units="pixels")
    (work / "pixels.json").write_text(json.dumps(pixels))
    (work / "track.yaml").write_text(
        "units: shares\nboxes:\n- {frame: 8, box: [0.5, 0.4, 1.0, 0.9]}\n- {frame: 0, box: [0.0, 0.1, 0.5, 0.6]}\n"
    )
    assert torch.allclose(read_track("pixels.json").frames(FRAMES, 40, 80), asked)
    assert torch.equal(read_track("track.yaml").frames(FRAMES, 40, 80), asked)
    assert torch.allclose(asked[4], torch.tensor([0.25, 0.25, 0.75, 0.75]).double())


NAN = '{"units": "shares", "boxes": [{"frame": 0, "box": [0.1, 0.1, NaN, 0.5]}, {"frame": 8, "box": [0, 0, 1, 1]}]}'
#: The file, what else is asked, words of the line.
WRONG = [
    (None, {}, "none.json"),
    ("", {}, "must hold units and boxes"),
    ("[1, 2]", {}, "must hold units and boxes; got list"),
    ("{", {}, "is no valid YAML or JSON"),
    (NAN, {}, "box[2]: got"),
    (NAN.replace("NaN", ".inf"), {}, "box[2]: got"),
    (NAN.replace("NaN", '"0.5"'), {}, "box[2]: got '0.5'"),
    (NAN.replace("NaN", "true"), {}, "box[2]: got True"),
    ({"boxes": GOOD["boxes"]}, {}, "units"),
    (track((0, FIRST), (8, LAST), units="percent"), {}, "units: got 'percent', allowed: shares, pixels"),
    (track((0, FIRST), (8, LAST), fps=8), {}, "fps"),
    ({"units": "shares", "boxes": [{"frame": 0, "box": FIRST, "label": "cat"}]}, {}, "label"),
    ({"units": "shares", "boxes": [{"box": FIRST}]}, {}, "frame"),
    ({"units": "shares", "boxes": [{"frame": 0}]}, {}, "box"),
    ({"units": "shares", "boxes": {"0": FIRST}}, {}, "boxes: got"),
    ({"units": "shares", "boxes": []}, {}, "has no boxes"),
    (track((0, FIRST)), {}, "--boxes: a track needs boxes at two frames or more, got 1"),
    (track((0, FIRST), (0, LAST)), {}, "box 2: frame 0 already has box 1"),
    (track((-1, FIRST), (8, LAST)), {}, "frame: got -1"),
    (track((0.5, FIRST), (8, LAST)), {}, "frame: got 0.5"),
    (track((0, FIRST), (9, LAST)), {}, "box 2, frame: got 9, allowed: 0 to 8, for the clip has 9 frames"),
    (track((0, FIRST[:3]), (8, LAST)), {}, "box 1: got [0.0, 0.1, 0.5], allowed: four numbers"),
    (track((0, [*FIRST, 1.0]), (8, LAST)), {}, "box 1: got [0.0, 0.1, 0.5, 0.6, 1.0], allowed: four numbers"),
    (track((0, [0.5, 0.1, 0.5, 0.6]), (8, LAST)), {}, "left < right and top < bottom"),
    (track((0, [0.5, 0.1, 0.2, 0.6]), (8, LAST)), {}, "left < right and top < bottom"),
    (track((0, [0.0, 0.7, 0.2, 0.6]), (8, LAST)), {}, "left < right and top < bottom"),
    (track((0, [-0.1, 0.1, 0.5, 0.6]), (8, LAST)), {}, "a box lies inside the canvas"),
    (
        track((0, FIRST), (8, [0.5, 0.5, 1.2, 0.9])),
        {},
        "inside the canvas of 1x1 shares; for pixels write units: pixels",
    ),
    (track((0, [0, 0, 16, 16]), (8, [20, 0, 33, 16]), units="pixels"), {}, "inside the canvas of 32x32 pixels"),
    (GOOD, {"boxes": "."}, "--boxes"),
    (GOOD, {"attention": "motion_boxes"}, "leave --attention motion_boxes out"),
    (GOOD, {"boxes_weights": "none.safetensors"}, "--boxes-weights: none.safetensors does not exist"),
    (GOOD, {"boxes_weights": "cat.png"}, "cat.png"),
    (GOOD, {"boxes_weights": "foreign.safetensors"}, "foreign.safetensors"),
    (GOOD, {"boxes_weights": "other.safetensors"}, "other.safetensors does not fit this patch"),
    (GOOD, {"upscale": 2.0}, "--boxes and --upscale exclude each other"),
    (GOOD, {"noise": "shuffled"}, "--boxes and --noise exclude each other"),
    (GOOD, {"attention": "reference", "reference": ("cat.png",), "reference_box": "0,0,1,1"}, "follow the track"),
    (GOOD, {"attention": "reference"}, "needs --reference FILE"),
    (GOOD, {"attention": "reference", "reference": ("none.png",)}, "none.png"),
]


@pytest.mark.parametrize(("text", "more", "said"), WRONG, ids=[row[2][:40] for row in WRONG])
def test_wrong_tracks_are_told_in_one_line_before_weights(model, work, monkeypatch, text, more, said):
    import diffusers
    import safetensors.torch
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, work / "foreign.safetensors")
    with genkit.patch(genkit.load("toy-video"), genkit.MotionBoxes(width=2, rank=2)) as patch:
        patch.weights.save(work / "other.safetensors")

    def forbidden(*args, **kwargs):
        raise AssertionError("weights were read")

    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", forbidden)
    monkeypatch.setattr(safetensors.torch, "load_file", forbidden)
    if text is None:
        more = {"boxes": "none.json"}
    else:
        (work / "track.json").write_text(text if isinstance(text, str) else json.dumps(text))
    with pytest.raises(GenkitError) as found:
        resolve(ask(model, **more))
    assert said in str(found.value) and "\n" not in str(found.value)


BESIDE = r"motion_boxes \(adds to the attention, hides no pairs\): (\d+) of \1 attention calls, [\d.]+ s"


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ([], rf"  {BESIDE}"),
        (
            ["--attention", "neighborhood", "--attention-args", "size=1x1x1"],
            rf"  neighborhood: \d+ of \d+ attention calls, \d+% of pairs wanted, \d+% executed; {BESIDE}",
        ),
    ],
)
def test_what_ran_is_told_method_by_method(model, work, capsys, more, told):
    arguments = ["generate", "a red circle", "--model", str(model), "--boxes", "track.json", "--num-frames", "9"]
    size = ["--height", "32", "--width", "32", "--max-sequence-length", "16", "--steps", "1", "-o", "a.mp4"]
    assert main([*arguments, *size, *more]) == 0
    out = capsys.readouterr().out
    assert re.search(told, out), out


def test_models_without_weights_or_of_another_kind(tiny_wan, tiny_sd, work):
    with pytest.raises(UsageError, match="has no trained motion module; train one with genkit train weights"):
        resolve(ask(tiny_wan))
    with pytest.raises(GenkitError, match="--boxes: got StableDiffusionPipeline, allowed: WanPipeline"):
        resolve(ask(tiny_sd, num_frames=None))
    with pytest.raises(UsageError, match="--boxes-weights needs --boxes"):
        ask(tiny_wan, boxes=None, boxes_weights="x.safetensors")


def test_plan_and_decision_tell_the_track(model, work, capsys):
    arguments = ["generate", "a red circle", "--model", str(model), "--boxes", "track.json", "--num-frames", "9"]
    arguments += ["--height", "32", "--width", "32", "--max-sequence-length", "16"]
    assert main([*arguments, "--explain", "--json"]) == 0
    route = json.loads(capsys.readouterr().out)["route"]
    assert route["task"] == "boxes" and [each["role"] for each in route["inputs"]] == ["track to go along"]
    assert main([*arguments, "--dry-run"]) == 0
    told = capsys.readouterr()
    assert "2 key frames, followed by" in told.out + told.err
    assert main([*arguments[:5], "none.json"]) == 1
    assert "none.json" in capsys.readouterr().err
