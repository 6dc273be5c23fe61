"""Making toy-av from nothing in seconds: every stage runs, resumes and gives a pipeline whose clips sound."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import subprocess
import sys
import wave
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch

import genkit
from benchmarks import toy_av, toy_context
from genkit import media
from genkit.attention.cross_modal_context.route import TASKS
from genkit.attention.registry import trained
from genkit.cli.main import main
from genkit.errors import UsageError
from genkit.evaluation import toy_av as judged
from genkit.families.sound_features import features_of
from genkit.models.registry import verify_checksums
from genkit.pipelines.tasks.audio_video.complete import complete
from genkit.pipelines.tasks.audio_video.given import Given
from genkit.training.data.world.clips import ClipSize
from genkit.training.engine.checkpoint import load_checkpoint
from genkit.training.tasks.context import IMITATED, IMITATION, ContextTask
from genkit.training.tasks.run import main as patch_main
from genkit.training.toys.av.pool import SoundPool
from genkit.training.toys.av.probe import sound_probe
from genkit.training.toys.av.run import MAKING, SIDECAR

SCRIPT = Path(__file__).parents[2] / "scripts" / "train_toy_av.py"
SMALL = ["--height", "64", "--width", "64", "--steps", "2", "--seed", "1"]


def make(folder: Path, *more: str) -> Path:
    parser = argparse.ArgumentParser()
    MAKING.add_arguments(parser)
    given = ["--folder", str(folder), "--minutes", "0.01", "--tokens", "100", "--sample-minutes", "0", *more]
    MAKING.run(parser.parse_args(given))
    return folder


@pytest.fixture(scope="module")
def av_run(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("runs") / "av")


@pytest.fixture(scope="module")
def pipeline(av_run):
    return genkit.load(str(av_run / "model"))


@pytest.fixture
def cli(av_run, tmp_path, monkeypatch, capsys):
    """Run genkit generate with the model in an empty folder; returns exit code, standard output and error."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments, model=av_run / "model"):
        code = main(["generate", *map(str, arguments), "--model", str(model)])
        return code, *capsys.readouterr()

    return call


def write_tone(path: Path, seconds: float, rate: int = 44100) -> np.ndarray:
    values = (0.4 * 32767 * np.sin(2 * np.pi * 400 * np.arange(round(seconds * rate)) / rate)).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(values.tobytes())
    return values / 32768


@pytest.mark.slow
def test_all_stages_give_a_pipeline(av_run, pipeline):
    model = av_run / "model"
    assert verify_checksums(model) == ("ok", [])
    assert sum(path.stat().st_size for path in model.rglob("*")) < 20e6
    facts = json.loads((model / "training.json").read_text())
    assert facts["steps"] >= 1 and all(facts[name]["steps"] >= 1 for name in ("vae", "decoder", "sound"))
    assert type(pipeline).__name__ == "LTX2Pipeline"
    assert pipeline.vae.latents_std.min() > 0 and (pipeline.vae.latents_std != 1).any()
    assert (pipeline.audio_vae.latents_std != 1).any()
    steps = {name: load_checkpoint(av_run / name / "checkpoint.pt")["step"] for name in MAKING.shares}
    make(av_run, "--stage", "sound")
    make(av_run, "--stage", "transformer")
    assert steps == {name: load_checkpoint(av_run / name / "checkpoint.pt")["step"] for name in steps}


@pytest.mark.slow
def test_text_makes_a_video_with_a_track_of_its_length(cli):
    code, out, err = cli("a green ball bounces twice", *SMALL, "--num-frames", 9, "-o", "x.mp4")
    assert code == 0, err
    assert "1.125 s of sound at 16000 Hz" in out
    clip = media.read_media("x.mp4")
    assert clip.frames.shape == (9, 64, 64, 3) and clip.fps == 8
    assert clip.audio.shape == (18000, 2) and clip.sample_rate == 16000
    assert clip.settings["settings"]["guidance_scale"] == 4.0
    assert "does not know" not in err


@pytest.mark.slow
def test_a_given_sound_is_kept_and_a_video_made_for_it(cli):
    sound = write_tone(Path("in.wav"), 1.0)
    code, out, err = cli("a red circle bounces", *SMALL, "--audio", "in.wav", "-o", "x.mp4")
    assert code == 0, err
    assert "silence was added" in err
    clip = media.read_media("x.mp4")
    assert clip.frames.shape == (9, 64, 64, 3) and clip.sample_rate == 44100
    assert clip.audio.shape[1] == 1 and abs(len(clip.audio) - 1.125 * 44100) < 1
    assert np.abs(clip.audio[2000:40000, 0] - sound[2000:40000]).max() < 0.05
    code, _, err = cli("a red circle bounces", *SMALL, "--audio", "in.wav", "--num-frames", 5, "-o", "short.mp4")
    assert code == 0 and "was cut to" in err


@pytest.mark.slow
def test_a_given_video_is_kept_and_a_sound_made_for_it(cli):
    frames = np.random.default_rng(0).integers(0, 255, (20, 1, 1, 3)).repeat(96, 1).repeat(96, 2).astype(np.uint8)
    media.write_media("in.mp4", frames, 16)
    code, _, err = cli("a red circle bounces", *SMALL, "--video", "in.mp4", "-o", "x.mp4")
    assert code == 0, err
    assert "16 frames per second" in err and "resized from 96x96 to 64x64" in err
    clip = media.read_media("x.mp4")
    assert clip.frames.shape == (9, 64, 64, 3) and clip.fps == 8 and clip.audio.shape == (18000, 2)
    assert np.abs(clip.frames.astype(int) - frames[1::2][:9, :1, :1].astype(int)).mean() < 6


@pytest.mark.slow
def test_the_given_half_is_untouched(pipeline):
    request = judged.SoundRequest(9, 64, 64, steps=2, call={"guidance_scale": 2.0, **SIDECAR["call"]})
    scenes = [scene for scene, _ in judged.draw_sound_prompts("train", 1, 1)]
    clips = [clip for clip, _ in judged.true_clips(scenes, request, 1)]
    for keep in ("audio", "video"):
        made, _ = judged.complete_clips(pipeline, ["a red circle"], clips, request, keep)
        again, _ = judged.complete_clips(pipeline, ["a red circle"], clips, request, keep)
        for old, new, same in zip(clips, made, again, strict=True):
            kept, given = (new.sound, old.sound) if keep == "audio" else (new.frames, old.frames)
            assert np.array_equal(kept, given)
            assert np.array_equal(new.frames, same.frames) and np.array_equal(new.sound, same.sound)
            assert new.frames.shape == (9, 64, 64, 3) and len(new.sound) == 18000


@pytest.mark.slow
def test_both_streams_tell_the_model_their_levels(pipeline, monkeypatch):
    """The given stream's tokens and level are the same in every step; the other one's level falls."""
    seen = []
    original = pipeline.transformer.forward

    def watch(**arguments):
        names = ("timestep", "audio_timestep", "sigma", "audio_sigma")
        levels = {name: float(arguments[name].max()) for name in names}
        seen.append((levels, arguments["audio_hidden_states"][0].clone(), arguments["hidden_states"][0].clone()))
        return original(**arguments)

    monkeypatch.setattr(pipeline.transformer, "forward", watch)
    given = Given(sound=np.zeros((18000, 2), np.float32), rate=16000)
    call = {"height": 64, "width": 64, "num_frames": 9, "frame_rate": 8.0, "num_inference_steps": 3, **SIDECAR["call"]}
    generator = torch.Generator().manual_seed(0)
    output = complete(pipeline, given, features_of(pipeline, "tones"), prompt="", generator=generator, **call)
    assert output.audio is None and len(seen) == 3
    assert all(levels["audio_timestep"] == levels["audio_sigma"] == 0 for levels, *_ in seen)
    told = [levels["timestep"] for levels, *_ in seen]
    assert told[0] > told[1] > told[2] > 0
    assert all(torch.equal(sound, seen[0][1]) for _, sound, _ in seen)
    assert not torch.equal(seen[0][2], seen[1][2])
    for wrong, text in (({"sigmas": [1]}, "sigmas"), ({"height": 72}, "multiples of 16"), ({"num_frames": 8}, "of 4")):
        with pytest.raises(UsageError, match=text):
            complete(pipeline, given, features_of(pipeline, "tones"), prompt="", **{**call, **wrong})


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["audio", "video"])
def test_without_the_cross_modal_attentions_it_is_the_stock_loop(av_run, keep):
    """The half that is made does not depend on the other then, so it must be what the stock pipeline makes."""
    apart = genkit.load(str(av_run / "model"))
    for block in apart.transformer.transformer_blocks:
        for part in (block.audio_to_video_attn, block.video_to_audio_attn):
            torch.nn.init.zeros_(part.to_out[0].weight)
            torch.nn.init.zeros_(part.to_out[0].bias)
    for layer in (apart.transformer.proj_out, apart.transformer.audio_proj_out):
        torch.nn.init.normal_(layer.weight, std=0.1)
    call = {
        "prompt": "a red circle", "negative_prompt": "blue", "height": 64, "width": 64, "num_frames": 5,
        "frame_rate": 8.0, "num_inference_steps": 2, "output_type": "np", "max_sequence_length": 32,
        "guidance_scale": 3.0, "audio_guidance_scale": 2.0, "guidance_rescale": 0.5, "audio_guidance_rescale": 0.3,
        "stg_scale": 0.5, "audio_stg_scale": 0.7, "spatio_temporal_guidance_blocks": [1],
        "modality_scale": 1.5, "audio_modality_scale": 2.0, "use_cross_timestep": False,
    }  # fmt: skip
    stock = apart(generator=torch.Generator().manual_seed(3), **call)
    generator = torch.Generator().manual_seed(3)
    if keep == "audio":
        given = Given(sound=np.zeros((10000, 2), np.float32), rate=16000)
    else:
        given = Given(frames=np.zeros((5, 64, 64, 3), np.uint8))
        torch.randn(1, apart.transformer.config.in_channels, 2, 4, 4, generator=generator)  # drawn before the sound
    made = complete(apart, given, features_of(apart, "tones"), generator=generator, **call)
    one, other = (made.frames, stock.frames) if keep == "audio" else (made.audio.numpy(), stock.audio.numpy())
    assert one.shape == other.shape and other.std() > 0.01
    assert np.abs(one - other).max() < 1e-3


@pytest.mark.slow
def test_a_first_frame_can_be_given(pipeline):
    from diffusers import LTX2ImageToVideoPipeline
    from PIL import Image

    parts = {name: part for name, part in pipeline.components.items() if part is not None}
    animated = LTX2ImageToVideoPipeline(**parts)
    animated.set_progress_bar_config(disable=True)
    call = {"height": 64, "width": 64, "num_frames": 9, "frame_rate": 8.0, "num_inference_steps": 2, **SIDECAR["call"]}
    output = animated(image=Image.new("RGB", (64, 64), "red"), prompt="a red circle", output_type="np", **call)
    assert output.frames.shape == (1, 9, 64, 64, 3) and output.audio.shape[:2] == (1, 2)


@pytest.mark.slow
def test_the_probe_measures_and_draws(pipeline, tmp_path):
    right = sound_probe(pipeline, SIDECAR["call"], tmp_path / "sheet.png", count=2, steps=2, frames=9)
    assert 0 <= right["f1"] <= 1 and 0 <= right["colour"] <= 1
    assert (tmp_path / "sheet.png").stat().st_size > 1000
    assert math.isnan(right["offset"]) or abs(right["offset"]) <= 0.25


@pytest.mark.slow
def test_the_benchmark_reports_every_row(av_run, tmp_path):
    parser = argparse.ArgumentParser()
    toy_av.add_arguments(parser)
    few = ["--prompts", "4", "--pairs", "1", "--frames", "9", "--side", "64", "--steps", "1"]
    places = ["--sheet", str(tmp_path / "sheet.png"), "--output", str(tmp_path)]
    assert toy_av.run(parser.parse_args(["--model", str(av_run / "model"), *few, *places])) == 0
    rows = json.loads((tmp_path / "toy_av.json").read_text())["accuracy"]
    assert [row["number"] for row in rows] == [2, 1, 1, 2, 1, 1, 1, 1]
    own = next(row for row in rows if row["clips"] == "the world's own clips")
    seen, heard = own["events seen / heard"].split(" / ")
    assert seen == heard and own["event F1"] == "1.000"
    assert (tmp_path / "sheet.png").exists() and "event F1" in (tmp_path / "toy_av.md").read_text()


@pytest.mark.slow
def test_the_sample_sheet_shows_what_is_heard(av_run, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "scripts")
    import sample_sheet

    target = tmp_path / "sheet.png"
    given = ["--model", str(av_run / "model"), "--size", "5x64x64", "--steps", "1", "-o", str(target)]
    monkeypatch.setattr(sys, "argv", ["sample_sheet.py", *given])
    assert sample_sheet.main() == 0
    assert capsys.readouterr().out.count("heard") == len(sample_sheet.SOUNDING)
    assert iio.imread(target).std() > 1


@pytest.mark.slow
def test_bad_requests_are_one_line_with_their_exit_code(cli, tmp_path):
    write_tone(Path("in.wav"), 0.5)
    Path("bad.wav").write_bytes(b"no sound")
    media.write_media("in.mp4", np.zeros((9, 64, 64, 3), np.uint8), 8)
    for code, text, arguments in (
        (2, "exclude each other", ("--audio", "in.wav", "--video", "in.mp4")),
        (1, "does not exist", ("--audio", "none.wav")),
        (1, "cannot read", ("--audio", "bad.wav")),
        (1, "cannot read", ("--video", "bad.wav")),
        (1, "no video", ("--video", "in.wav")),
        (1, "no sound", ("--audio", "in.mp4")),
        (2, "only .mp4", ("--audio", "in.wav", "-o", "x.gif")),
        (2, "allowed: 1 plus a multiple of 4", ("--audio", "in.wav", "--num-frames", "8")),
    ):
        found, out, err = cli("a red circle", *SMALL, *arguments)
        assert found == code and text in err, (arguments, err)
        told = [line for line in err.splitlines() if not line.startswith("genkit: loading ")]
        assert len(told) == 1 and out == ""
    found, _, err = cli("a red circle", "--audio", "in.wav", model="toy-video")
    assert found == 2 and "WanPipeline makes no sound" in err
    assert not list(tmp_path.glob("x*"))


def test_bad_options_are_one_line():
    result = subprocess.run([sys.executable, str(SCRIPT), "--minutes", "0"], capture_output=True, text=True)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and "--minutes: got '0', allowed: a number above 0" in line


def test_context_tokens_train_by_the_command_and_serve_the_pipeline(av_run, tmp_path):
    model = av_run / "model"
    command = ["cross_modal_context", "--model", str(model), "--folder", str(tmp_path), "--tokens", "100"]
    command += ["--measure", "2", "--lr", "0.02", "--context-tokens", "3"]
    assert patch_main("test", [*command, "--steps", "2"]) == 0
    first = load_checkpoint(tmp_path / "weights" / "checkpoint.pt")["module"]
    assert patch_main("test", [*command, "--steps", "3"]) == 0
    second = load_checkpoint(tmp_path / "weights" / "checkpoint.pt")["module"]
    assert all(name.startswith("weights.") for name in first)
    for part in ("keys", "values", "beta"):
        moved = [not torch.equal(first[name], second[name]) for name in first if name.endswith(part)]
        # Six layers, two directions; what a hardly trained model answers may not notice one of these.
        assert len(moved) == 12 and sum(moved) >= 6
    pipeline = genkit.load(str(model), "float32", "cpu")
    pipeline.set_progress_bar_config(disable=True)
    request = judged.SoundRequest.of_model(str(model), num_frames=9, height=64, width=64, steps=2)

    def run(**call):
        changed = dataclasses.replace(request, call={**request.call, **call})
        (clip,), _ = judged.generate_sound_clips(pipeline, ["a green ball bounces"], changed, 3)
        return clip.frames

    plain = run()
    with genkit.patch(pipeline, trained("cross_modal_context", tmp_path / "cross_modal_context.safetensors")) as patch:
        assert patch.weights is not None
        patched, guided = run(), run(modality_scale=3.0, audio_modality_scale=3.0)
    assert not np.array_equal(patched, plain) and not np.array_equal(guided, patched)
    assert np.array_equal(run(), plain)

    parser = argparse.ArgumentParser()
    toy_context.add_arguments(parser)
    few = ["--prompts", "1", "--size", "9x64x64", "--steps", "1", "--output", str(tmp_path), "--model", str(model)]
    weights = ["--weights", str(tmp_path / "cross_modal_context.safetensors")]
    assert toy_context.run(parser.parse_args([*few, *weights])) == 0
    report = json.loads((tmp_path / "toy_context.json").read_text())
    assert [row["clips"] for row in report["rows"]] == [way.title for way in toy_context.WAYS]
    assert report["weights"]["steps"] == 3
    assert all(len(row["counts"]) == 1 and "F1 less the model's" in row for row in report["rows"][2:])
    assert report["rows"][0]["pairs"] == "100%" and report["rows"][2]["pairs"] != "100%"
    # Rows of the same settings are kept, others are measured; other settings measure all anew.
    measured = []
    real = toy_context._measure

    def measure(pipeline, way, *rest):
        measured.append(way.name)
        return real(pipeline, way, *rest)

    toy_context._measure = measure
    try:
        for more, wanted in (([], []), (["--rows", "default", "--scale", "2"], ["default"])):
            assert toy_context.run(parser.parse_args([*few, *weights, "--resume", *more])) == 0
            assert measured == wanted
    finally:
        toy_context._measure = real


def test_a_context_batch_follows_its_tasks(av_run):
    pipeline = genkit.load(str(av_run / "model"), "float32", "cpu")
    pool = SoundPool(pipeline.vae, np.random.default_rng(0), audio_vae=pipeline.audio_vae)
    task = ContextTask(pipeline, pool, genkit.CrossModalContext(frames=3, whole_layers=2, tokens=2, beta=-2.0))
    draws = (task.draw(ClipSize(9, 64, 64), 12, np.random.default_rng(seed)) for seed in range(20))
    batch = next(batch for batch in draws if {"t2av", "a2v"} <= set(batch.tasks) and not IMITATED >= set(batch.tasks))
    for name, sigma, sound_sigma in zip(batch.tasks, batch.drawn["sigma"], batch.drawn["sound_sigma"], strict=True):
        assert TASKS[name].noise == (bool(sigma > 0), bool(sound_sigma > 0))
    loss = task(batch)
    loss.backward()
    # What reads the other half learns what the model without windows answers to the same noise, the rest the clip.
    with torch.no_grad():
        task.routes.set(batch.tasks)
        answers, wanted = task._velocities(pipeline, batch), task._velocities(task.dense[0], batch)
    own = 0.0
    for row, name in enumerate(batch.tasks):
        for half, (level, target) in enumerate((("sigma", "velocity"), ("sound_sigma", "sound_velocity"))):
            noise = float(batch.drawn[level][row])
            right = wanted[half][row] if name in IMITATED else batch.drawn[target][row]
            error = float((answers[half][row] - right).square().mean()) * (IMITATION if name in IMITATED else 1.0)
            own += error * (noise > 0) * (0.5 if noise < 0.25 else 1.0) / len(batch.tasks)
    assert loss.item() == pytest.approx(own, rel=1e-4)
    assert IMITATED == {"t2av", "i2av", "a2v", "v2a"}
    assert all(parameter.grad is not None for parameter in task.parameters())
    assert not any(parameter.requires_grad for parameter in pipeline.transformer.parameters())
    # A clip whose every reader is sent to the context tokens does not notice the other half.
    batch.tasks = ("t2v",) * 12
    with torch.no_grad():
        batch.drawn["sound_sigma"] = torch.zeros(12)
        one = task(batch)
        batch.drawn["sound"] = torch.randn_like(batch.drawn["sound"])
        assert torch.equal(one, task(batch))
    task.patch.remove()
