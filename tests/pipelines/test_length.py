"""What is told of clips longer than a model was trained on, and noise that is shared along time."""

from __future__ import annotations

import shutil

import pytest
import torch

import genkit
from genkit.errors import UnsupportedError, UsageError
from genkit.pipelines.length import length_notes, trained_length
from genkit.pipelines.noise import frame_order, shared_noise
from genkit.pipelines.resolve import resolve
from genkit.pipelines.settings import GenerateSettings


def told(frames, model="toy-video", **more):
    settings = {"prompt": "a", "model": str(model), "num_frames": frames, "height": 64, "width": 64, "seed": 0}
    found = resolve(GenerateSettings(**settings | more))
    return [note for note in found.notes if "trained on" in note]


def test_a_longer_clip_is_told_with_what_can_be_done():
    assert told(25) == []
    (line,) = told(97)
    assert "up to 25 frames (7 of 25 latent frames), says its genkit.json" in line
    assert line.endswith("try --attention long_heads --attention-args trained=7,positions=reindexed")
    (line,) = told(97, attention="long_heads", attention_args={"trained": "7", "positions": "reindexed"})
    assert "try" not in line and "guessed" in line


def test_who_tells_the_length(tiny_wan, tmp_path):
    bare = shutil.copytree(tiny_wan, tmp_path / "bare")
    (bare / "genkit.json").unlink()
    assert told(81, bare, height=16, width=16) == []
    (line,) = told(85, bare, height=16, width=16)
    assert "81 frames (21 of 22 latent frames), says its family's record" in line
    assert "long_heads --attention-args trained=21" in line

    class Other:
        """A pipeline without a record of its length."""

        kind, class_name, name = "video", "SomePipeline", "some"
        sidecar = type("Sidecar", (), {"defaults": {}})
        accepted = {"num_frames": type("Parameter", (), {"default": 16})}

        def grid(self, *size):
            return None if self.bare else (size[0], 1, 1)

        def config(self, part):
            return {"_class_name": "LTXVideoTransformer3DModel"}

        bare = True

    assert trained_length(Other()).frames == 16
    assert length_notes(Other(), 17, False, False) == [
        "--num-frames 17: some was trained on clips of up to 16 frames, says the default of SomePipeline; what is "
        "beyond is guessed"
    ]
    assert "the LoRA's" in length_notes(Other(), 17, False, True)[0]
    Other.bare = False
    assert length_notes(Other(), 17, False, False)[0].endswith("anchor_window --attention-args trained=16,window=2")
    Other.accepted = {}
    assert trained_length(Other()) is None and length_notes(Other(), 17, False, False) == []


def test_later_windows_take_the_noise_of_the_first_one():
    order = frame_order(17, 5, "shuffled", seed=3)
    assert order[:5].tolist() == list(range(5))
    for start in (5, 10):
        assert sorted(order[start : start + 5].tolist()) == list(range(5))
    assert order[5:10].tolist() != order[10:15].tolist()
    assert frame_order(17, 5, "repeated").tolist() == [*range(5)] * 3 + [0, 1]
    for kind, frames in (("independent", 17), ("shuffled", 5)):
        assert frame_order(frames, 5, kind).tolist() == list(range(frames))
    with pytest.raises(UsageError, match="shuffled"):
        frame_order(9, 5, "mixed")


def test_a_pipeline_begins_with_shared_noise(tiny_wan):
    pipe = genkit.load(str(tiny_wan))
    pipe.set_progress_bar_config(disable=True)
    seen = []

    def sample():
        first = lambda pipe, step, level, values: seen.append(values["latents"]) or {}  # noqa: E731
        arguments = {"height": 16, "width": 16, "num_frames": 25, "num_inference_steps": 1, "output_type": "latent"}
        generator = torch.Generator().manual_seed(0)
        return pipe("a", generator=generator, callback_on_step_end=first, **arguments).frames

    shape = pipe.prepare_latents(1, 4, 16, 16, 25, torch.float32, "cpu", torch.Generator().manual_seed(0))
    with shared_noise(pipe, 3, "repeated"):
        noise = pipe.prepare_latents(1, 4, 16, 16, 25, torch.float32, "cpu", torch.Generator().manual_seed(0))
        out = sample()
    assert noise.shape == shape.shape == (1, 4, 7, *shape.shape[3:])
    assert torch.equal(noise[:, :, :3], shape[:, :, :3])
    assert torch.equal(noise[:, :, 3:6], shape[:, :, :3]) and torch.equal(noise[:, :, 6], shape[:, :, 0])
    assert "prepare_latents" not in vars(pipe) and not torch.equal(sample(), out)


def test_pipelines_without_an_axis_of_frames_are_refused(tiny_sd):
    pipe = genkit.load(str(tiny_sd))
    with pytest.raises(UnsupportedError, match="which axis"), shared_noise(pipe, 7):
        pass


def ask(**settings):
    return resolve(GenerateSettings(**{"prompt": "a", "height": 64, "width": 64, "seed": 3} | settings))


def test_generate_takes_noise_of_a_long_clip(tiny_sd):
    request = ask(noise="shuffled", num_frames=97)
    assert request.inputs == 7 and request.task.name == "longer" and "trained on" in request.notes[0]
    for bad, told in (
        ({"num_frames": 25}, "beyond 25 frames"),
        ({"num_frames": 97, "noise": "white"}, "shuffled"),
        ({"num_frames": 97, "stream": True}, "exclude each other"),
        ({"model": str(tiny_sd), "height": 16, "width": 16}, "which axis"),
    ):
        with pytest.raises((UsageError, UnsupportedError), match=told):
            ask(**{"noise": "shuffled"} | bad)


def test_a_run_with_shared_noise_is_the_pipelines_with_it():
    from genkit.pipelines.session import Session

    request = ask(noise="repeated", num_frames=33, steps=1)
    made = Session(request).run()
    pipe = genkit.load("toy-video")
    pipe.set_progress_bar_config(disable=True)
    call = {"height": 64, "width": 64, "num_frames": 33, "num_inference_steps": 1, "guidance_scale": 4.0}
    with shared_noise(pipe, 7, "repeated", 3):
        frames = pipe("a", max_sequence_length=64, generator=torch.Generator().manual_seed(3), **call).frames[0]
    assert abs(made.frames / 255.0 - frames).max() < 0.01
