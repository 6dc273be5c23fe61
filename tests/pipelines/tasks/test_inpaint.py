"""genkit inpaint from the command line: outputs, repeats, and one clear line for every kind of bad input."""

from __future__ import annotations

import json
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genkit import media
from genkit.cli.main import main
from genkit.errors import UsageError
from genkit.pipelines.record import Record, followed
from genkit.pipelines.tasks.inpaint.settings import InpaintSettings

PROGRESS = re.compile(r"genkit: (loading |output \d+/\d+: step)")
SIZE = (21, 30)


def picture():
    return np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def inside():
    marked = np.zeros(SIZE, bool)
    marked[4:14, 5:17] = True
    return marked


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys, tiny_sd):
    """Run the command beside picture.png and mask.png; returns (exit code, standard output, standard error lines
    without progress)."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(picture()).save("picture.png")
    Image.fromarray(inside().astype(np.uint8) * 255).save("mask.png")

    def call(*arguments, model=tiny_sd):
        chosen = [] if model is None else ["--model", str(model), "--steps", "2"]
        code = main(["inpaint", *map(str, arguments), *chosen])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, [line for line in captured.err.splitlines() if not PROGRESS.match(line)]

    return call


ASKED = ("picture.png", "--mask", "mask.png", "-p", "a red cat")


def test_the_output_has_the_inputs_size_and_its_pixels_outside_the_mask(cli):
    code, out, errors = cli(*ASKED, "-o", "out.png", "--seed", 3, "--context", 40)
    assert code == 0 and "out.png  (30x21, seed 3" in out
    assert [line for line in errors if "mirror image" not in line] == []
    made = media.read_image("out.png").frames[0]
    assert np.array_equal(made[~inside()], picture()[~inside()]) and (made != picture())[inside()].any()
    stored = media.read_settings("out.png")
    assert stored["command"] == "inpaint" and stored["settings"]["mask"] == str(Path("mask.png").resolve())
    assert {"image_fingerprint", "mask_fingerprint"} <= set(stored["made_with"])
    code, out, _ = cli("--from", "out.png", "-o", "again.png", "--json", model=None)
    assert code == 0 and json.loads(out)["outputs"][0]["height"] == 21
    assert np.array_equal(media.read_image("again.png").frames[0], made)
    code, _, _ = cli("--from", "out.png", "-o", "other.png", "--mask-invert", model=None)
    assert code == 0 and np.array_equal(media.read_image("other.png").frames[0][inside()], picture()[inside()])


def test_a_dry_run_writes_nothing_and_tells_what_the_model_is_shown(cli):
    code, out, errors = cli(*ASKED, "--dry-run", "--json", "--context", 2)
    settings = json.loads(out)["outputs"][0]["settings"]
    assert code == 0 and settings["painta"] == 0.5 and settings["rasg"] == 0.0 and settings["steps"] == 2
    assert settings["resample"] == 2
    assert "16x16 pixels around the mask" in errors[0] and sorted(p.name for p in Path().iterdir()) == [
        "mask.png",
        "picture.png",
    ]


def test_a_run_from_before_steps_were_taken_twice_is_repeated_as_it_was():
    """Its record does not name --resample; what a user leaves open is another matter."""
    asked = InpaintSettings(image="picture.png", mask="mask.png", prompt="a red cat").to_dict()
    record = {name: value for name, value in asked.items() if name != "resample"}
    assert InpaintSettings.from_mappings(stored=("old.png", record)).resample == 1
    assert InpaintSettings.from_mappings(("it", {"resample": 2}), stored=("old.png", record)).resample == 2
    assert InpaintSettings.from_mappings(("it", record)).resample is None


def test_models_that_were_trained_to_inpaint_take_every_step_once(cli, monkeypatch):
    monkeypatch.setattr("genkit.pipelines.tasks.inpaint.choice.made_for_it", lambda model: True)
    code, out, _ = cli(*ASKED, "--dry-run", "--json")
    assert code == 0 and json.loads(out)["outputs"][0]["settings"]["resample"] == 1
    code, _, errors = cli(*ASKED, "--resample", 3)
    assert code == 2 and len(errors) == 1 and "--resample 3" in errors[0] and "leave it out" in errors[0]


def test_rasg_and_feather_and_growth_keep_the_rest(cli):
    code, _, _ = cli(*ASKED, "-o", "out.png", "--rasg", 0.1, "--feather", 2, "--mask-grow", 1, "--painta", 0)
    made = media.read_image("out.png").frames[0]
    grown = np.zeros(SIZE, bool)
    grown[3:15, 5:17] = grown[4:14, 4:18] = True
    assert code == 0 and np.array_equal(made[~grown], picture()[~grown])


def bomb():
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def test_bad_pictures_and_masks_are_refused_in_one_line(cli, tiny_wan, tiny_flux, tmp_path):
    Image.new("L", (30, 21)).save("empty.png")
    Image.new("L", (30, 20), 255).save("small.png")
    Image.new("L", (1, 1), 255).save("dot.png")
    Path("bomb.png").write_bytes(bomb())
    Path("text.png").write_text("no picture")
    Path("cut.png").write_bytes(Path("picture.png").read_bytes()[:80])
    Path("folder.png").mkdir()
    for arguments, code, said in (
        ((), 2, "nothing to inpaint"),
        (("picture.png",), 2, "--mask"),
        (("picture.png", "--mask", "empty.png"), 2, "marks nothing"),
        (("picture.png", "--mask", "small.png"), 2, "30x20 pixels and the picture 30x21"),
        (("picture.png", "--mask", "dot.png"), 2, "1x1 pixels and the picture 30x21"),
        (("dot.png", "--mask", "mask.png"), 2, "30x21 pixels and the picture 1x1"),
        (("bomb.png", "--mask", "mask.png"), 1, "pixels"),
        (("picture.png", "--mask", "bomb.png"), 1, "pixels"),
        (("text.png", "--mask", "mask.png"), 1, "as an image"),
        (("picture.png", "--mask", "cut.png"), 1, "as an image"),
        (("missing.png", "--mask", "mask.png"), 1, "IMAGE missing.png"),
        (("picture.png", "--mask", "missing.png"), 1, "--mask missing.png"),
        (("folder.png", "--mask", "mask.png"), 1, "folder.png"),
        (("picture.png", "--mask", "mask.png", "--painta", "2"), 2, "--painta"),
        (("picture.png", "--mask", "mask.png", "--mask-grow", "-8"), 2, "nothing is left"),
        (("picture.png", "--mask", "mask.png", "--mask-channel", "green"), 2, "--mask-channel"),
        (("picture.png", "--mask", "mask.png", "--upscaler", "toy-image"), 1, "StableDiffusionUpscalePipeline"),
        (("picture.png", "--mask", "mask.png", "--upscaler", "nope"), 2, "--upscaler: got 'nope'"),
        (("picture.png", "--mask", "mask.png", "--upscaler", "./nope"), 1, "--upscaler folder ./nope"),
    ):
        found, out, errors = cli("-p", "a cat", *arguments, "-o", "out.png")
        assert found == code and said in errors[-1] and out == "", (arguments, errors)
    assert cli(*ASKED[:3])[0] == 2  # no prompt
    for model, said in ((tiny_wan, "works on pictures"), (tiny_flux, "leave it out")):
        found, _, errors = cli(*ASKED, "--rasg", 0.1, model=model)
        assert found == 1 and said in errors[-1]
    assert not Path("out.png").exists()


def test_a_single_pixel_and_a_full_mask_are_worked_on(cli):
    Image.new("RGB", (1, 1), (9, 8, 7)).save("dot.png")
    Image.new("L", (1, 1), 255).save("white.png")
    code, out, errors = cli("dot.png", "--mask", "white.png", "-p", "", "-o", "out.png", "--seed", 1)
    assert code == 0 and "1x1" in out and any("nothing of it is kept" in line for line in errors)


def test_a_record_does_not_make_models_be_downloaded(tmp_path):
    record = Record({"model": "toy-image", "upscaler": "somebody/upscaler"})
    with pytest.raises(UsageError, match="add --upscaler somebody/upscaler"):
        followed(record, "out.png", {})
    assert followed(record, "out.png", {"upscaler"})[0]["upscaler"] == "somebody/upscaler"


def test_a_clip_in_place_of_a_picture_is_told_with_what_it_was_given_as(cli):
    media.write_media("clip.mp4", np.zeros((5, 32, 32, 3), np.uint8), 8)
    for picture_file, mask, what in (("clip.mp4", "mask.png", "IMAGE"), ("picture.png", "clip.mp4", "--mask")):
        code, _, err = cli(picture_file, "--mask", mask, "-p", "a red cat")
        assert code == 1 and f"cannot read {what} clip.mp4 as an image: it is a clip; give a picture" in err[-1], err
