"""``genkit style``: both pictures are read, what is refused, sizes, and that the record repeats the run."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from genkit import media
from genkit.cli.main import main
from genkit.errors import GenkitError, UnsupportedError, UsageError
from genkit.pipelines.resolve import resolve
from genkit.pipelines.session import Session
from genkit.pipelines.tasks.style.settings import StyleSettings


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    paths = tmp_path / "content.png", tmp_path / "style.png"
    for path, size in zip(paths, ((19, 26, 3), (16, 16, 3)), strict=True):
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(path)
    return paths


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys):
    """``genkit style`` in an empty folder: (exit code, standard output, standard error)."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def call(*arguments):
        code = main(["style", *map(str, arguments)])
        told = capsys.readouterr()
        return code, told.out, told.err

    return call


def ask(model, pictures, **changes):
    fixed = {"image": str(pictures[0]), "style": str(pictures[1]), "steps": 1, "resample": 0, "model": str(model)}
    return StyleSettings(**{**fixed, **changes})


def test_the_result_has_the_size_of_the_picture_and_its_record_repeats_it(cli, pictures, tiny_sd):
    code, out, err = cli(
        pictures[0], "--style", pictures[1], "--model", tiny_sd, "--steps", 2, "--resample", 1, "--keep", 0.5,
        "--style-prompt", "a cat", "-o", "a.png", "--json",
    )  # fmt: skip
    assert code == 0, err
    (entry,) = json.loads(out)["outputs"]
    assert (entry["height"], entry["width"]) == (19, 26) and "seed" not in entry["settings"]
    notes = [line for line in err.splitlines() if "worked on at" in line]
    assert notes and all(line.startswith("genkit: note: ") for line in notes) and "warning" not in err
    record = media.read_settings("a.png")
    assert record["command"] == "style" and record["settings"]["style"] == str(pictures[1].resolve())
    assert {"image_fingerprint", "style_fingerprint"} <= set(record["made_with"])
    code, _, err = cli("--from", "a.png", "-o", "b.png")
    assert code == 0, err
    assert np.array_equal(media.read_media("a.png").frames, media.read_media("b.png").frames)


def test_what_is_left_open_is_filled_and_a_dry_run_makes_nothing(cli, pictures, tiny_sd, tmp_path):
    filled = resolve(ask(tiny_sd, pictures, steps=None)).settings
    assert (filled.steps, filled.guidance_scale, filled.prompt) == (40, 1.0, "")
    code, out, _ = cli(pictures[0], "--style", pictures[1], "--model", tiny_sd, "--dry-run", "--json")
    assert code == 0 and json.loads(out)["dry_run"] and not list((tmp_path / "work").iterdir())


def test_a_shipped_model_gives_small_pictures_a_margin_and_refuses_large_ones(pictures, tmp_path):
    assert resolve(ask("toy-image", pictures)).inputs.canvas.size == (64, 64)
    Image.new("RGB", (600, 200)).save(tmp_path / "large.png")
    with pytest.raises(UsageError, match="goes up to a width of 512"):
        resolve(ask("toy-image", (tmp_path / "large.png", pictures[1])))


def test_hostile_inputs_are_refused_in_one_line(cli, pictures, tiny_sd, tmp_path):
    broken, folder = tmp_path / "broken.png", tmp_path / "folder"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    folder.mkdir()
    for image, style, more, code in (
        (pictures[0], None, (), 2),
        (None, pictures[1], (), 2),
        (tmp_path / "none.png", pictures[1], (), 1),
        (pictures[0], broken, (), 1),
        (folder, pictures[1], (), 1),
        (pictures[0], pictures[1], ("--keep", "2"), 2),
        (pictures[0], pictures[1], ("--style-layers", "("), 2),
        (pictures[0], pictures[1], ("--temperature", "0"), 2),
        (pictures[0], pictures[1], ("--resample", "-1"), 2),
        (pictures[0], pictures[1], ("--prompt", "word " * 500), 2),
        (pictures[0], pictures[1], ("--style-prompt", "word " * 500), 2),
    ):
        given = [*([] if image is None else [image]), *([] if style is None else ["--style", style]), *more]
        found, out, err = cli(*given, "--model", tiny_sd, "--steps", 1)
        last = err.strip().splitlines()[-1]
        assert found == code and last.startswith("genkit: error:") and "Traceback" not in err, (given, found, err)
    assert not list((tmp_path / "work").iterdir())


def test_a_seed_is_answered_with_why_there_is_none(pictures, tmp_path, capsys):
    (tmp_path / "seed.yaml").write_text("seed: 3")
    for flags in (("--seed", "1"), ("--num-videos", "2"), ("--config", str(tmp_path / "seed.yaml"))):
        assert main(["style", str(pictures[0]), "--style", str(pictures[1]), *flags]) == 2
        told = capsys.readouterr().err
        assert "draws nothing at random" in told and "Possible options" not in told, flags


def test_models_of_videos_and_layers_that_are_not_there_are_refused(pictures, tiny_wan, tiny_sd):
    with pytest.raises(UnsupportedError, match="makes videos"):
        resolve(ask(tiny_wan, pictures))
    with pytest.raises(GenkitError, match="layer"):
        Session(resolve(ask(tiny_sd, pictures, style_layers="nowhere"))).run()
