"""Samples on the way: files and sheet, the same bits of training with and without them, and failures."""

from __future__ import annotations

import json

import numpy as np
import pytest
import test_lora_run
import torch
from memory import load

from genkit.errors import ArtifactError, UnsupportedError, UsageError
from genkit.lora.files import NAMED
from genkit.media import read_image, read_mp4
from genkit.training.lora import samples as room
from genkit.training.lora.run import Run
from genkit.training.lora.sheet import MOST_ROWS, ROW, SHEET, row_of, sheet_of, strip_of
from genkit.training.lora.texts import Texts

data, cache = test_lora_run.data, test_lora_run.cache
PROMPTS = ("a red circle moves right", "a blue square")
RADIAL = {
    "attention": "radial", "schedule": "steps=1:",
    "attention_args": {"block_size": "8", "decay_factor": "0.1", "near": "decay", "sink": "false"},
}  # fmt: skip


def shown(tiny_wan, data, cache, output, **more):
    given = {
        "validation_prompts": list(PROMPTS), "validation_steps": 2, "validation_num_inference_steps": 2,
        "max_train_steps": 3, "use_ema": True, "ema_decay": 0.5, "held_out": 1, **more,
    }  # fmt: skip
    return test_lora_run.settings(tiny_wan, data, cache, output, **given)


@pytest.fixture(scope="module")
def sampled(tiny_wan, data, cache, tmp_path_factory):
    """(output folder, the run, lines told) of three steps with samples, radial attention in the loop."""
    output, told = tmp_path_factory.mktemp("sampled") / "lora", []
    run = Run.open(shown(tiny_wan, data, cache, output, report_to="tensorboard", **RADIAL), told.append)
    run.go()
    return output, run, told


def test_samples_are_made_before_during_and_after_training_with_a_sheet(sampled):
    output, _, _ = sampled
    steps = sorted(path.name for path in (output / "samples").iterdir())
    assert steps == [SHEET, "step-0", "step-2", "step-3"]
    names = {"01-a-red-circle-moves-right.mp4", "02-a-blue-square.mp4", ROW}
    assert all({path.name for path in (output / "samples" / step).iterdir()} == names for step in steps[1:])
    clips = [read_mp4(output / "samples" / step / "02-a-blue-square.mp4") for step in steps[1:]]
    assert clips[0][0].shape == (5, 32, 32, 3) and clips[0][1] == 8
    assert json.loads(clips[2][4]) == {"sample": {"step": 3, "prompt": PROMPTS[1], "seed": 0}}
    assert not np.array_equal(clips[0][0], clips[2][0])
    rows = [read_image(output / "samples" / step / ROW).frames[0] for step in steps[1:]]
    page = read_image(output / "samples" / SHEET).frames[0]
    bottom = page[-rows[2].shape[0] - 8 : -8, -rows[2].shape[1] - 8 : -8]
    assert np.array_equal(bottom, rows[2]) and page.shape[0] > 3 * rows[0].shape[0]


def test_training_ends_with_the_same_bits_as_without_samples(sampled, tiny_wan, data, cache, tmp_path):
    output, run, _ = sampled
    plain = Run.open(
        shown(
            tiny_wan, data, cache, tmp_path / "plain", validation_prompts=None, validation_num_inference_steps=None,
            validation_steps=None, **RADIAL,
        )
    )  # fmt: skip
    plain.go()
    states = [
        torch.load(path / "checkpoint-3" / "trainer.pt", weights_only=True) for path in (output, tmp_path / "plain")
    ]
    for part in ("module", "ema"):
        assert states[0][part].keys() == states[1][part].keys()
        assert all(torch.equal(states[0][part][name], value) for name, value in states[1][part].items())
    assert run.pipeline.scheduler.config == plain.pipeline.scheduler.config
    assert torch.equal(run.pipeline.scheduler.timesteps, plain.pipeline.scheduler.timesteps)
    assert run.pipeline.scheduler.num_inference_steps is None
    assert {name: part.training for name, part in run.task.named_modules()} == {
        name: part.training for name, part in plain.task.named_modules()
    }


def test_the_last_sample_is_what_the_written_file_generates(sampled, tiny_wan):
    """With the averages, and with the schedule's first step dense as in generate."""
    from genkit.pipelines.session import run
    from genkit.pipelines.settings import GenerateSettings

    output, _, _ = sampled
    given = {
        "model": str(tiny_wan), "prompt": PROMPTS[0], "seed": 0, "steps": 2, "height": 32, "width": 32,
        "num_frames": 5, "lora": [str(output / NAMED)], "device": "cpu", **RADIAL,
    }  # fmt: skip
    result = run(GenerateSettings.from_mappings(("the test", given)))
    assert result.report["ran"]
    row = read_image(output / "samples" / "step-3" / ROW).frames[0]
    strip = strip_of(result.frames)
    assert np.abs(row[:, : strip.shape[1]].astype(int) - strip).max() <= 1


def test_the_held_out_loss_is_logged_before_the_first_step_and_goes_to_the_tracker(sampled):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    output, _, _ = sampled
    rows = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "held-out loss" in row] == [0, 2, 3]
    events = next(output.rglob("events.out.tfevents.*"))
    found = EventAccumulator(str(events.parent), size_guidance={"images": 0, "scalars": 0})
    found.Reload()
    assert [each.step for each in found.Scalars("held-out loss")] == [0, 2, 3]
    assert [each.step for each in found.Images("sample 02-a-blue-square")] == [0, 2, 3]


def test_text_encoders_are_let_go_of_and_prompts_encoded_once(sampled, tiny_wan):
    _, run, _ = sampled
    assert run.pipeline.text_encoder is None and run.pipeline.vae is not None
    pipeline, calls = load(tiny_wan), []
    own = pipeline.encode_prompt
    pipeline.encode_prompt = lambda *args, **named: calls.append(1) or own(*args, **named)
    texts = Texts(pipeline)
    with texts.kept():
        for _ in range(2):
            first = pipeline.encode_prompt(prompt="a red circle", num_videos_per_prompt=1)
        other = pipeline.encode_prompt(prompt="a blue circle", num_videos_per_prompt=1)
    assert len(calls) == 2 and not torch.equal(first[0], other[0])
    with texts.kept():
        pipeline.encode_prompt(prompt=None, prompt_embeds=first[0], do_classifier_free_guidance=False)
    texts.release()
    assert pipeline.text_encoder is not None, "a call that cannot be kept still needs it"


def test_a_failure_before_the_first_step_ends_the_run_and_a_later_one_does_not(
    tiny_wan, data, cache, tmp_path, monkeypatch
):
    write = room.write_mp4
    failing = [2]

    def full(path, *args, **named):
        if json.loads(named["comment"])["sample"]["step"] in failing:
            raise OSError(28, "No space left on device")
        write(path, *args, **named)

    monkeypatch.setattr(room, "write_mp4", full)
    told: list[str] = []
    Run.open(shown(tiny_wan, data, cache, tmp_path / "later"), told.append).go()
    assert (tmp_path / "later" / NAMED).exists()
    assert sorted(path.name for path in (tmp_path / "later" / "samples").glob("step-*")) == ["step-0", "step-3"]
    assert any("no samples after step 2, training goes on" in line and "No space left" in line for line in told)
    failing[:] = [0]
    with pytest.raises(ArtifactError, match="before the first step.*No space left.*Nothing is trained yet"):
        Run.open(shown(tiny_wan, data, cache, tmp_path / "first"), told.append).go()
    assert not list((tmp_path / "first" / "samples").glob("*"))


@pytest.mark.parametrize(
    ("more", "error", "words"),
    [
        ({"validation_resolution": "30x32"}, UsageError, "validation samples: .*multiple"),
        ({"validation_images": ["a.png", "b.png"]}, UsageError, "takes no picture; leave it out"),
        ({"validation_prompts": ["a red circle " * 30]}, UsageError, "tokens"),
        ({**RADIAL, "schedule": "steps=5:"}, UsageError, "steps"),
    ],
)
def test_what_generate_would_refuse_is_refused_before_training(tiny_wan, data, cache, tmp_path, more, error, words):
    with pytest.raises(error, match=words):
        Run.open(shown(tiny_wan, data, cache, tmp_path / "bad", **more), lambda line: None)


def test_sizes_beyond_what_the_untrained_model_was_made_for_are_sampled(tiny_wan, data, cache, tmp_path):
    """genkit.json of the tiny model says max_frames 17."""
    given = shown(tiny_wan, data, cache, tmp_path / "long", validation_num_frames=21, num_validation_samples=2)
    views = Run.open(given, lambda line: None).views
    assert [each.name[-2:] for each in views.asked] == ["-0", "-1"] * 2
    assert views.session.request.settings.num_frames == 21


def test_weights_in_shards_are_refused(sampled):
    from torch.distributed.fsdp import FSDPModule

    sharded = type("Sharded", (torch.nn.Module, FSDPModule), {"__new__": lambda cls: torch.nn.Module.__new__(cls)})()
    with pytest.raises(UnsupportedError, match="weights in shards"):
        sampled[1].views.show(0, sharded, None)


def test_a_sheet_holds_rows_of_the_same_columns_and_few_of_many(tmp_path):
    from genkit.media.formats import dump
    from genkit.media.images import write_png

    clip = np.zeros((9, 20, 30, 3), np.uint8)
    row = row_of([strip_of(clip), strip_of(clip)])
    for step, columns in ((0, ["a", "b"]), (5, ["a", "c"])):
        (tmp_path / f"step-{step}").mkdir()
        write_png(tmp_path / f"step-{step}" / ROW, row, comment=dump({"columns": columns}))
    (tmp_path / "step-7").mkdir()
    (tmp_path / "step-7" / ROW).write_bytes(b"no picture")
    one = sheet_of(tmp_path, ["x", "y"], {10: row}).shape[0]
    two = sheet_of(tmp_path, ["a", "b"], {10: row}).shape[0]
    assert two - one == row.shape[0] + 8
    many = sheet_of(tmp_path, ["a", "b"], dict.fromkeys(range(1, 201), row)).shape[0]
    assert many - one == (MOST_ROWS - 1) * (row.shape[0] + 8)


@pytest.mark.parametrize(("name", "bucket", "ending"), [("sd", (1, 64, 64), ".png"), ("av", (9, 64, 64), ".mp4")])
def test_pictures_are_png_and_clips_have_their_sound(tiny_sd, tmp_path, name, bucket, ending):
    from genkit.models import locate
    from genkit.pipelines.hub import fetch
    from genkit.pipelines.load import load as load_pipeline
    from genkit.pipelines.model import Model
    from genkit.training.data.folder.buckets import Bucket
    from genkit.training.data.folder.cuts import Cut
    from genkit.training.data.folder.items import Item
    from genkit.training.lora.settings import LoraSettings

    place = str(tiny_sd) if name == "sd" else "toy-av"
    given = {
        "model": place, "data": "x", "output": str(tmp_path), "max_train_steps": 1, "device": "cpu",
        "validation_prompts": ["a red circle"], "validation_num_inference_steps": 2,
    }  # fmt: skip
    model = Model.of(fetch(locate(place)), place)
    pipeline = load_pipeline(place, "float32", "cpu")
    given = LoraSettings.from_mappings(("the test", given))
    views = room.ValidationSamples(
        given, model, pipeline, [Cut(Item(tmp_path / "x", ""), Bucket(*bucket), (0,))], print
    )
    views.encode()
    with torch.no_grad():
        views.render(0, None)
    path = tmp_path / "samples" / "step-0" / f"01-a-red-circle{ending}"
    if name == "sd":
        assert read_image(path).frames.shape == (1, 64, 64, 3)
        return
    frames, fps, sound, rate, _ = read_mp4(path)
    assert frames.shape == (9, 64, 64, 3) and abs(len(sound) / rate - 9 / fps) < 0.05
