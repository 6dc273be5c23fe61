"""``genkit edit``: what is read, what is chosen, what is refused, and that the output has the input's size."""

from __future__ import annotations

import json
import struct
import zlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genkit import media
from genkit.cli.main import main
from genkit.errors import UsageError
from genkit.pipelines.resolve import resolve
from genkit.pipelines.session import Session
from genkit.pipelines.tasks.edit.choice import usual_values
from genkit.pipelines.tasks.edit.settings import METHODS, PRESETS, EditSettings
from genkit.pipelines.tasks.edit.words import differing

PIXELS = np.random.default_rng(0).integers(0, 256, (19, 26, 3), dtype=np.uint8)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "cat.png"
    Image.fromarray(PIXELS).save(path)
    return path


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys, tiny_sd):
    """``genkit edit`` in an empty folder: (exit code, standard output, lines of standard error without progress)."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def call(*arguments, model=tiny_sd):
        code = main(["edit", *map(str, arguments), *([] if model is None else ["--model", str(model)])])
        told = capsys.readouterr()
        lines = [line for line in told.err.splitlines() if "loading" not in line and "output 1/1: step" not in line]
        return code, told.out, lines

    return call


def ask(model, picture, **changes):
    fixed = {"image": str(picture), "prompt": "a blue circle", "source_prompt": "a red circle", "seed": 1, "steps": 2}
    return EditSettings(**{**fixed, "model": str(model), **changes})


def test_an_edit_has_the_size_of_the_picture_and_its_settings_repeat_it(cli, picture):
    given = ["--source-prompt", "a red circle", "--prompt", "a blue circle", "--seed", 3, "--steps", 2]
    code, out, lines = cli(picture, *given, "--words", "blue", "-o", "a.png", "--json")
    assert code == 0, lines
    (entry,) = json.loads(out)["outputs"]
    assert (entry["height"], entry["width"]) == (19, 26)
    assert "worked on at" in "\n".join(lines)
    settings = media.read_settings("a.png")
    assert settings["command"] == "edit" and settings["settings"]["image"] == str(picture.resolve())
    assert "image_fingerprint" in settings["made_with"]
    code, _, lines = cli("--from", "a.png", "-o", "b.png", model=None)
    assert code == 0, lines
    assert np.array_equal(media.read_media("a.png").frames, media.read_media("b.png").frames)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "flowedit"])
def test_every_method_of_a_diffusion_model_runs_and_tells_its_steps(method, picture, tiny_sd):
    session = Session(resolve(ask(tiny_sd, picture, method=method)))
    steps, previews = [], []
    made = session.run(
        progress=lambda *told: steps.append(told), latents=lambda latents: previews.append(latents.shape)
    )
    assert made.frames.shape == (1, 19, 26, 3)
    assert steps[-1] == ("decode", 0, 1) and steps[0][0] == "step" and steps[0][1] == 1
    assert len(previews) == len(steps) - 1 and set(previews) == {(1, 4, 12, 16)}


def test_a_clip_keeps_its_frames_and_its_rate(tmp_path, tiny_wan):
    frames = np.random.default_rng(0).integers(0, 256, (4, 32, 48, 3), dtype=np.uint8)
    media.write_mp4(tmp_path / "clip.mp4", frames, Fraction(24000, 1001))
    request = resolve(ask(tiny_wan, tmp_path / "clip.mp4", max_sequence_length=16))
    assert (request.settings.method, request.settings.keep) == ("infedit", 0.7)
    assert any("last one 1 time more" in line for line in request.notes)
    made = Session(request).run()
    assert made.frames.shape == frames.shape and made.fps == Fraction(24000, 1001)
    (tmp_path / "edit.mp4").unlink(missing_ok=True)
    made.write(tmp_path / "edit.mp4")
    assert media.read_media(tmp_path / "edit.mp4").fps == Fraction(24000, 1001)


def test_a_picture_given_to_a_model_of_videos_comes_back_as_a_picture(picture, tiny_wan, tmp_path):
    request = resolve(ask(tiny_wan, picture, max_sequence_length=16, output=str(tmp_path / "out.png")))
    assert request.frames == 1 and request.inputs.size[2] == 1


def test_the_source_prompt_is_read_from_a_picture_that_genkit_made(tmp_path, tiny_sd):
    record = {"command": "generate", "settings": {"prompt": "a red circle"}}
    media.write_media(tmp_path / "made.png", PIXELS[None], settings=record)
    request = resolve(ask(tiny_sd, tmp_path / "made.png", source_prompt=None))
    assert request.settings.source_prompt == "a red circle"
    assert any("the one the picture was made with: a red circle" in line for line in request.notes)


def test_what_is_left_open_is_filled_by_method_and_preset(picture, tiny_sd, tiny_flux):
    usual = resolve(ask(tiny_sd, picture, steps=None)).settings
    assert (usual.method, usual.strength, usual.source_guidance_scale) == ("infedit", 1.0, 1.0)
    assert usual.steps and usual.guidance_scale and usual.keep is not None
    flow = resolve(ask(tiny_flux, picture, steps=None)).settings
    assert (flow.method, flow.keep) == ("infedit", usual.keep)
    assert resolve(ask(tiny_flux, picture, steps=None, method="flowedit")).settings.keep is None
    # Guidance of a preset is in the scale of diffusion models; the words and shares count for flow models too.
    own = {name: usual_values("infedit", True, name) for name in ("background", "add")}
    assert own["background"]["new_words"] == "free" and own["background"]["keep"] == 1.0
    assert 0 < own["background"]["keep_maps"] < 1  # to the end they leave the old colour
    assert own["add"]["guidance_scale"] == usual_values("infedit", True)["guidance_scale"]
    keeps = {name: resolve(ask(tiny_sd, picture, preset=name)).settings.keep for name in PRESETS}
    assert keeps["colour"] > keeps["shape"]
    assert resolve(ask(tiny_sd, picture, preset="colour", keep=0.2)).settings.keep == 0.2
    assert "preset" not in usual.to_dict()


def test_what_goes_is_told_by_the_words_that_go_unless_others_are_named(picture, tiny_sd, tiny_flux):
    from genkit.pipelines.tasks.edit.words import going

    for model in (tiny_sd, tiny_flux):
        of = {"preset": "remove", "source_prompt": "a red circle and a square", "prompt": "a red circle"}
        request = resolve(ask(model, picture, **of))
        assert request.settings.source_words == ("auto",) and going(request.settings) == ("and", "a", "square")
        assert going(resolve(ask(model, picture, **of, source_words=("square",))).settings) == ("square",)
        assert going(resolve(ask(model, picture, **of, source_words=("none",))).settings) == ()
        assert going(resolve(ask(model, picture, **of | {"preset": "colour"})).settings) == ()
        assert "source_words" not in resolve(ask(model, picture, method="p2p", preset="remove")).settings.to_dict()
        same = resolve(ask(model, picture, **of | {"prompt": "a red circle and a square"}))
        assert any("--source-words auto (of --preset remove)" in line for line in same.notes)


def test_another_shape_takes_the_method_that_is_better_at_it_and_says_so(picture, tiny_sd, tiny_flux, tiny_wan):
    from genkit.pipelines.routes import route_of

    def told(request):
        return [line for line in request.notes if "the method is" in line]

    for model, more in ((tiny_flux, {}), (tiny_wan, {"max_sequence_length": 16})):
        shape = resolve(ask(model, picture, preset="shape", **more))
        assert shape.settings.method == "flowedit" and "preset" not in shape.settings.to_dict()
        (line,) = told(shape)
        assert "--preset shape" in line and "--method infedit" in line and line in route_of(shape).because
        assert not any("changes nothing" in line for line in shape.notes)
    # Who asks for control of attention has it, and is told of the other.
    for given in ({"keep": 0.5}, {"words": ("auto",)}, {"keep_words": ("circle",)}, {"new_words": "free"}):
        kept = resolve(ask(tiny_flux, picture, preset="shape", **given))
        assert kept.settings.method == "infedit" and "flowedit reaches" in told(kept)[0]
    assert resolve(ask(tiny_flux, picture, preset="shape", words=("none",))).settings.method == "flowedit"
    for model, more in ((tiny_flux, {"method": "infedit"}), (tiny_sd, {})):
        other = resolve(ask(model, picture, preset="shape", **more))
        assert (other.settings.method, other.settings.preset, told(other)) == ("infedit", "shape", [])


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        ("a red circle on blue", "a striped green circle on blue", ("striped", "green")),
        ("a red circle", "a red circle", ()),
        ("", "a circle", ("a", "circle")),
        ("a red circle, blue background", "a red circle and a square, blue background", ("and", "a", "square")),
    ],
)
def test_words_are_those_without_a_partner(source, target, words):
    assert differing(source, target) == words


def damaged(path: Path, kind: str) -> Path:
    """A file that is no picture, in one of several ways."""
    if kind == "text":
        path.write_text("not a picture")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "cut":
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:3000])
    elif kind == "program":  # a name says nothing: it is PostScript, which Pillow hands to an interpreter
        path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\nshowpage\n")
    elif kind == "bomb":
        head = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
        chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
        parts = [
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
            for name, data in chunks
        ]
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    else:
        path.mkdir()
    return path


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("text", "cannot read"),
        ("empty", "cannot read"),
        ("cut", "cannot read"),
        ("bomb", "400000000 pixels"),
        ("folder", "folder"),
        ("program", "EPS is a program that draws, which is not run"),
    ],
)
def test_a_file_that_is_no_picture_is_refused_in_one_line(kind, said, cli, tmp_path):
    code, _, lines = cli(damaged(tmp_path / "bad.png", kind), "--source-prompt", "a", "--prompt", "b")
    assert code in (1, 2) and len(lines) == 1 and said in lines[0] and "Traceback" not in lines[0]
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"words": ("zebra",)}, "--words: got 'zebra', allowed: a, blue, circle"),
        ({"words": ("auto", "red")}, "stand alone"),
        ({"method": "flowedit"}, "flow models"),
        ({"method": "flowedit", "keep": 0.5}, "leaves alone"),
        ({"method": "img2img", "words": ("red",)}, "leaves alone"),
        ({"method": "img2img", "source_guidance_scale": 2.0}, "reads no source prompt"),
        ({"method": "p2p", "strength": 0.5}, "--keep"),
        ({"method": "img2img", "strength": 0.0}, "leaves no step to run"),
        ({"method": "p2p", "new_words": "free"}, "--new-words: p2p has no such setting"),
        ({"method": "vimaedit", "keep_words": ("circle",)}, "--keep-words: vimaedit has no such setting"),
        ({"method": "p2p", "source_words": ("red",)}, "--source-words: p2p has no such setting"),
        ({"source_words": ("blue",)}, "--source-words (words of --source-prompt): got 'blue', allowed: a, red, circle"),
        ({"source_words": ("none", "red")}, "--source-words auto and none stand alone"),
        ({"keep_words": ("zebra",)}, "--keep-words (words that both prompts have) in --prompt: got 'zebra'"),
        ({"method": "masactrl"}, "infedit"),
        ({"preset": "colours"}, "colour"),
        ({"keep": 1.1}, "1"),
        ({"source_prompt": None}, "--source-prompt"),
        ({"prompt": None}, "no prompt"),
        ({"prompt": "red " * 100}, "tokens, the model reads 77"),
        ({"source_prompt": "red " * 100}, "the source prompt has"),
        ({"image": None}, "nothing to edit"),
        ({"image": "/nowhere/cat.png"}, "does not exist"),
        ({"image": "cat\0.png"}, "NUL"),
        ({"output": "out.mp4"}, "single pictures"),
        ({"steps": 0}, "steps"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, said, picture, tiny_sd):
    from genkit.errors import GenkitError

    with pytest.raises(GenkitError) as error:
        resolve(ask(tiny_sd, picture, **options))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_clip_is_refused_by_a_model_of_pictures(tmp_path, tiny_sd):
    media.write_mp4(tmp_path / "clip.mp4", np.zeros((2, 32, 32, 3), np.uint8), 8)
    with pytest.raises(UsageError, match="edits pictures"):
        resolve(ask(tiny_sd, tmp_path / "clip.mp4"))


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (65, 3)])
def test_pictures_of_any_small_size_come_back_at_it(size, tmp_path, tiny_sd):
    Image.new("RGB", size[::-1], (200, 30, 30)).save(tmp_path / "small.png")
    made = Session(resolve(ask(tiny_sd, tmp_path / "small.png", steps=1))).run()
    assert made.frames.shape[1:3] == size


def test_a_shipped_model_says_how_large_a_picture_may_be(tmp_path):
    Image.new("RGB", (600, 200)).save(tmp_path / "large.png")
    with pytest.raises(UsageError, match="600x200 .* toy-image goes up to a width of 512"):
        resolve(ask("toy-image", tmp_path / "large.png"))
    Image.new("RGB", (20, 90)).save(tmp_path / "small.png")
    assert resolve(ask("toy-image", tmp_path / "small.png")).inputs.size == (96, 64, 1)
