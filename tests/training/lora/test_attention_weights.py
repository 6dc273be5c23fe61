"""A method's own weights beside a LoRA: both are trained and saved, and both files make the trained model again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from memory import load
from safetensors.torch import load_file

import genkit
from genkit.attention import registry
from genkit.errors import UsageError
from genkit.lora.contents import read_lora
from genkit.media.files import write_media
from genkit.training.lora.run import Run
from genkit.training.lora.settings import LoraSettings

SHARED = "shared_cross_attention"
ARGUMENTS = {"form": "trained", "cell": "1x2x2", "lattice": "1x2x2", "lines": "2x2x2"}
METHOD = genkit.Agent(form="trained", cell=(1, 2, 2), lattice=(1, 2, 2), lines=(2, 2, 2))


@pytest.fixture(scope="module")
def opened(tiny_wan, tmp_path_factory):
    """A finished run of four steps through agent attention."""
    folder = tmp_path_factory.mktemp("agent")
    (folder / "data").mkdir()
    frames = np.full((5, 64, 64, 3), 40, np.uint8)
    frames[:, 16:48, 8:40] = 200
    write_media(folder / "data" / "0.mp4", frames, 8)
    (folder / "data" / "0.txt").write_text("a red circle moves right")
    run = Run.open(settings(tiny_wan, folder))
    assert run.go().parent == folder / "lora"
    return run, folder


def settings(tiny_wan, folder, **more):
    given = {
        "model": str(tiny_wan), "data": str(folder / "data"), "output": str(folder / "lora"), "resolution": "64x64",
        "num_frames": 5, "max_train_steps": 4, "rank": 2, "learning_rate": 0.01, "checkpointing_steps": 2,
        "attention": "agent", "attention_args": ARGUMENTS, "train_attention_weights": True, **more,
    }  # fmt: skip
    return LoraSettings.from_mappings(("the test", given))


def answer(model):
    draw = torch.Generator().manual_seed(2)
    latents, text = (torch.randn(shape, generator=draw) for shape in ((1, 4, 2, 8, 8), (1, 5, model.config.text_dim)))
    with torch.no_grad():
        return model(latents, torch.tensor([500.0]), text, return_dict=False)[0]


def test_both_are_trained_and_saved(opened):
    run, folder = opened
    lora, own = (
        load_file(folder / "lora" / name) for name in ("pytorch_lora_weights.safetensors", "attention.safetensors")
    )
    assert all(value.any() for name, value in lora.items() if "lora_B" in name)
    tables = {name for name, value in own.items() if value.any()}
    assert {"agent/blocks/0/attn1.taps", "agent/blocks/0/attn1.read.map"} <= tables
    for number in (2, 4):
        assert (folder / "lora" / f"checkpoint-{number}" / "attention.safetensors").is_file()


def test_both_files_make_the_trained_model_in_a_stock_pipeline(opened, tiny_wan):
    run, folder = opened
    trained = answer(run.adapter.model)
    pipeline = load(tiny_wan)
    plain = answer(pipeline.transformer)
    pipeline.load_lora_weights(str(folder / "lora"))
    file = str(folder / "lora" / "attention.safetensors")
    with genkit.patch(pipeline, genkit.Agent(**{**METHOD.settings(), "weights": file})):
        torch.testing.assert_close(answer(pipeline.transformer), trained, atol=1e-5, rtol=1e-4)
    with genkit.patch(pipeline, METHOD):  # the method's weights at their start: the file matters
        assert not torch.allclose(answer(pipeline.transformer), trained, atol=1e-4)
    assert not torch.allclose(plain, trained, atol=1e-4)


def test_a_linear_branch_trains_beside_a_lora_and_both_come_back(opened, tiny_wan, tmp_path):
    _, folder = opened
    (tmp_path / "data").symlink_to(folder / "data")
    arguments = {"sparse": "block_select block=8 keep=2", "keys": "all"}
    more = {"attention": "sparse_linear", "attention_args": arguments}
    run = Run.open(settings(tiny_wan, tmp_path, **more))
    run.go()
    stored = load_file(tmp_path / "lora" / "attention.safetensors")
    assert stored and all(name.startswith("sparse_linear/") and value.any() for name, value in stored.items())
    facts = read_lora(tmp_path / "lora").facts
    assert (facts.attention, dict(facts.attention_args)) == ("sparse_linear", arguments)
    trained, pipeline = answer(run.adapter.model), load(tiny_wan)
    pipeline.load_lora_weights(str(tmp_path / "lora"))
    method = registry.trained("sparse_linear", tmp_path / "lora" / "attention.safetensors")
    with genkit.patch(pipeline, method):
        torch.testing.assert_close(answer(pipeline.transformer), trained, atol=1e-5, rtol=1e-4)


def test_a_stopped_run_goes_on_with_both(opened, tiny_wan, tmp_path):
    _, folder = opened
    (tmp_path / "data").symlink_to(folder / "data")
    Run.open(settings(tiny_wan, tmp_path, max_train_steps=2)).go()
    Run.open(settings(tiny_wan, tmp_path, resume_from_checkpoint="latest")).go()
    for name in ("pytorch_lora_weights.safetensors", "attention.safetensors"):
        whole, parts = (load_file(each / "lora" / name) for each in (folder, tmp_path))
        assert all(torch.equal(value, parts[key]) for key, value in whole.items())


def test_weights_stay_as_they_are_unless_asked(opened, tiny_wan, tmp_path):
    _, folder = opened
    (tmp_path / "data").symlink_to(folder / "data")
    run = Run.open(settings(tiny_wan, tmp_path, train_attention_weights=False, max_train_steps=1))
    run.go()
    assert not any(value.any() for key, value in run.task.named_parameters() if "agent" in key)
    assert not (tmp_path / "lora" / "attention.safetensors").exists()
    with pytest.raises(UsageError, match="has no weights of its own"):
        Run.open(settings(tiny_wan, tmp_path, output=str(tmp_path / "x"), attention="radial", attention_args={}))


def test_context_tokens_between_sound_and_picture_train_beside_a_lora_and_are_saved(tmp_path):
    (tmp_path / "data").mkdir()
    frames = np.full((9, 64, 64, 3), 40, np.uint8)
    frames[:, 16:48, 8:40] = 200
    tone = np.sin(np.arange(16000 * 9 // 8) / 12).astype(np.float32)[:, None] * 0.5
    write_media(tmp_path / "data" / "0.mp4", frames, 8, audio=tone, sample_rate=16000)
    (tmp_path / "data" / "0.txt").write_text("a red circle moves right")
    more = {"num_frames": 9, "max_train_steps": 2, "attention": "cross_modal_context", "target_modules": ["to_q"]}
    arguments = {"tokens": "2", "beta": "-2"}
    run = Run.open(settings("toy-av", tmp_path, **more, attention_args=arguments))
    before = {name: value.detach().clone() for name, value in run.weights.named_parameters()}
    run.go()
    stored = load_file(tmp_path / "lora" / "attention.safetensors")
    moved = [name for name, value in run.weights.named_parameters() if not torch.equal(value, before[name])]
    assert {part for name in moved for part in ("audio_to_video", "video_to_audio") if part in name} == {
        "audio_to_video", "video_to_audio"
    }  # fmt: skip
    assert len(stored) == len(before) > 0
    assert sorted(map(tuple, (value.shape for value in stored.values()))) == sorted(
        map(tuple, (value.shape for value in before.values()))
    )
    facts = read_lora(tmp_path / "lora").facts
    assert (facts.attention, facts.attention_weights) == ("cross_modal_context", "attention.safetensors")
    # A stock pipeline with both files makes what was trained.
    pipeline = genkit.load("toy-av", "float32", "cpu")
    file = str(tmp_path / "lora" / "attention.safetensors")
    with genkit.patch(pipeline, genkit.CrossModalContext(tokens=2, beta=-2.0, weights=file)) as handle:
        kept = dict(handle.weights.named_parameters())
        assert kept.keys() == before.keys()
        for name, value in run.weights.named_parameters():
            torch.testing.assert_close(kept[name], value.detach(), atol=1e-6, rtol=1e-6)


def test_shared_cross_attention_trains_beside_a_lora_and_both_come_back(tiny_flux, tmp_path):
    (tmp_path / "data").mkdir()
    picture = np.full((1, 64, 64, 3), 40, np.uint8)
    picture[:, 16:48, 8:40] = 200
    write_media(tmp_path / "data" / "0.png", picture, 1)
    (tmp_path / "data" / "0.txt").write_text("a red circle")
    more = {
        "num_frames": (),
        "attention": "shared_cross_attention",
        "attention_args": {},
        "gradient_checkpointing": True,
    }
    run = Run.open(settings(tiny_flux, tmp_path, **more), lambda line: None)
    assert run.go().parent == tmp_path / "lora"
    stored = load_file(tmp_path / "lora" / "attention.safetensors")
    assert len(stored) == 4 * len(run.handle.sites) > 0 and read_lora(tmp_path / "lora").facts.attention == SHARED
    assert all(value.any() for name, value in stored.items() if name.startswith(SHARED) and name.endswith(".out"))
    trained, pipeline = flux_answer(run.adapter.model), load(tiny_flux)
    plain = flux_answer(pipeline.transformer)
    pipeline.load_lora_weights(str(tmp_path / "lora"))
    with genkit.patch(pipeline, registry.trained(SHARED, tmp_path / "lora" / "attention.safetensors")):
        torch.testing.assert_close(flux_answer(pipeline.transformer), trained, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(flux_answer(pipeline.transformer), trained, atol=1e-4)
    pipeline.unload_lora_weights()
    assert torch.equal(flux_answer(pipeline.transformer), plain)


def flux_answer(model):
    draw = torch.Generator().manual_seed(2)
    config = model.config
    shapes = (1, 16, config.in_channels), (1, 5, config.joint_attention_dim), (1, config.pooled_projection_dim)
    latents, text, pooled = (torch.randn(shape, generator=draw) for shape in shapes)
    places = torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(4.0))
    told = {"guidance": torch.ones(1)} if config.guidance_embeds else {}
    with torch.no_grad():
        return model(
            latents, text, pooled, torch.tensor([0.5]), places, torch.zeros(5, 3), return_dict=False, **told
        )[0]  # fmt: skip
