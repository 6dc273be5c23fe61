"""The models in the package: whole, unchanged, small, and what the bare command makes with the default one."""

from __future__ import annotations

import json

import pytest

from genkit import media
from genkit.cli.main import main
from genkit.models import DEFAULT_MODEL, check_folder, read_sidecar, shipped, verify_checksums
from genkit.world.judge import judge_clip
from genkit.world.listen import listen, match_events, same_pitch
from genkit.world.picture_judge import judge_picture
from genkit.world.watch import watch

LIMIT_BYTES, PACKAGE_BYTES = 23_000_000, 80_000_000


def test_the_default_model_is_shipped():
    assert DEFAULT_MODEL in shipped()


@pytest.mark.parametrize("name", shipped())
def test_shipped_models_are_whole_small_and_unchanged(name):
    folder = shipped()[name]
    assert check_folder(folder)["_class_name"]
    assert verify_checksums(folder) == ("ok", [])
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= LIMIT_BYTES
    assert not [path for path in folder.rglob("*.json") if "_name_or_path" in path.read_text()]
    sidecar = read_sidecar(folder)
    assert sidecar.description
    assert {"height", "width", "steps"} <= set(sidecar.defaults)
    assert ("num_frames" in sidecar.defaults) == ("fps" in sidecar.defaults)
    assert {"guidance_scale", "true_cfg_scale"} & ({*sidecar.defaults} | {*sidecar.call})


def test_the_package_stays_small():
    files = [path for folder in shipped().values() for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= PACKAGE_BYTES


@pytest.mark.slow
def test_the_bare_command_shows_what_the_prompt_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    prompt = "a red circle moves right on a blue background"
    code = main(["generate", prompt, "--seed", "1", "-o", "clip.mp4", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert code == 0
    assert result["warnings"] == []
    clip = media.read_media(tmp_path / "clip.mp4")
    verdict = judge_clip(clip.frames)
    assert verdict.background == "blue"
    assert [(actor.colour, actor.shape) for actor in verdict.actors] == [("red", "circle")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "prompt", "background", "wanted"),
    [
        (
            "toy-image",
            "a striped blue square left of a small red circle",
            None,
            [("striped", "blue", "square"), ("plain", "red", "circle")],
        ),
        ("toy-dit", "a striped yellow square on a purple background", "purple", [("striped", "yellow", "square")]),
    ],
)
def test_an_image_shows_what_the_prompt_says(model, prompt, background, wanted, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = main(["generate", prompt, "--model", model, "--seed", "0", "-o", "picture.png", "--json"])
    assert code == 0 and json.loads(capsys.readouterr().out)["warnings"] == []
    assert main(["generate", "--from", "picture.png", "-o", "again.png", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["warnings"] == []
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "picture.png").read_bytes()
    verdict = judge_picture(media.read_media(tmp_path / "picture.png").frames[0])
    assert background in (None, verdict.background)
    found = sorted((actor.x, actor.texture, actor.colour, actor.shape) for actor in verdict.actors)
    assert [actor[1:] for actor in found] == wanted


@pytest.mark.slow
def test_the_object_of_a_picture_appears_in_another(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = ["--model", "toy-image", "--seed", "1", "--json"]
    prompt = "a dotted pink square on a black background"
    small = ["--height", "64", "--width", "64"]
    follow = ["--attention", "reference", "--attention-args", "weights=reference.safetensors"]
    follow += ["--reference", "square.png", "--reference-box", "0.15,0.45,0.5,0.8"]
    for arguments in ([prompt, *small, "-o", "square.png"], ["on a blue background", *follow, "-o", "follow.png"]):
        assert main(["generate", *arguments, *model]) == 0
        assert json.loads(capsys.readouterr().out)["warnings"] == []
    verdict = judge_picture(media.read_media(tmp_path / "follow.png").frames[0])
    assert verdict.background == "blue"
    assert [(actor.texture, actor.colour, actor.shape) for actor in verdict.actors] == [("dotted", "pink", "square")]
    assert verdict.actors[0].x < 64 < verdict.actors[0].y


@pytest.mark.slow
@pytest.mark.skipif("toy-av" not in shipped(), reason="no weights in the package")
def test_a_ball_is_heard_when_it_is_seen_to_bounce(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = main(["generate", "a green ball bounces twice", "--model", "toy-av", "--seed", "1", "-o", "b.mp4", "--json"])
    assert code == 0 and json.loads(capsys.readouterr().out)["warnings"] == []
    clip = media.read_media(tmp_path / "b.mp4")
    verdict = judge_clip(clip.frames)
    assert [(actor.colour, actor.motion) for actor in verdict.actors] == [("green", "bounce")]
    sound, rate = media.read_sound(tmp_path / "b.mp4")
    seen, heard = watch(verdict, 8.0, clip.frames.shape[2]), listen(sound.T, rate)
    assert len(seen) == len(heard) == len(match_events(seen, heard)) == 2
    assert all(same_pitch(tone, event) for event, tone in match_events(seen, heard))
