"""A router from the command's settings to a generated clip: trained, stored, found again, refused."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import genkit
from genkit.errors import ArtifactError, UsageError
from genkit.lora.facts import Facts
from genkit.lora.files import parse_lora
from genkit.lora.mixture.files import loras_of, read_router
from genkit.lora.save import save_lora
from genkit.media.files import write_media
from genkit.pipelines.session import run
from genkit.pipelines.settings import GenerateSettings
from genkit.training.lora.run import Run, train_lora
from genkit.training.lora.settings import LoraSettings


@pytest.fixture(scope="module")
def loras(tiny_wan, tmp_path_factory):
    """Two LoRAs of the tiny model, all attention projections of its transformer."""
    folder = tmp_path_factory.mktemp("loras")
    model = genkit.load(str(tiny_wan)).transformer
    paths = [name for name, _ in model.named_modules() if name.endswith(("to_q", "to_k", "to_v", "to_out.0"))]
    for number, name in enumerate("ab"):
        draw = torch.Generator().manual_seed(number)
        weights = {}
        for path in paths:
            layer = model.get_submodule(path)
            halves = [torch.randn(shape, generator=draw) for shape in ((2, layer.in_features), (layer.out_features, 2))]
            weights[path] = (*halves, 2.0)
        save_lora(folder / f"{name}.safetensors", {"transformer": weights}, Facts())
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for index, level in enumerate((40, 220)):
        frames = np.full((5, 32, 32, 3), level, np.uint8)
        frames[:, 8:24, 4 + 2 * index : 20] = 255 - level
        write_media(folder / f"{index}.mp4", frames, 8)
        (folder / f"{index}.txt").write_text("a red circle moves right")
    return folder


def settings(tiny_wan, loras, data, output, **more):
    given = {
        "model": str(tiny_wan), "data": str(data), "output": str(output), "cache_dir": str(data.parent / "cache"),
        "resolution": "32x32", "num_frames": 5, "max_train_steps": 4, "learning_rate": 0.3, "checkpointing_steps": 2,
        "mix": [str(loras / "a.safetensors"), f"{loras / 'b.safetensors'}@0.5"], **more,
    }  # fmt: skip
    return LoraSettings.from_mappings(("the test", given))


@pytest.fixture(scope="module")
def trained(tiny_wan, loras, data, tmp_path_factory):
    output = tmp_path_factory.mktemp("trained") / "router"
    opened = Run.open(settings(tiny_wan, loras, data, output))
    before = {name: value.clone() for name, value in opened.adapter.model.state_dict().items()}
    file = opened.go()
    assert all(torch.equal(value, before[name]) for name, value in opened.adapter.model.state_dict().items())
    opened.adapter.remove()
    return file


def clip(tiny_wan, **more):
    given = {"prompt": "a red circle moves right", "model": str(tiny_wan), "seed": 1, "height": 32, "width": 32,
             "num_frames": 5, "steps": 2, "guidance_scale": 3.0, **more}  # fmt: skip
    return run(GenerateSettings.from_mappings(("the test", given)))


def test_only_the_router_is_trained_and_its_file_names_the_loras(trained):
    facts = read_router(trained)
    assert trained.name == "router.safetensors" and facts.steps == 4 and facts.component == "transformer"
    assert [choice.rank for choice in facts.loras] == [2, 2] and [each.strength for each in facts.loras] == [1, 0.5]
    tables = load_file(trained)
    assert "blocks/0/attn1/input/weight" in tables and "blocks/0/attn2/keys/weight" in tables
    assert all(value.shape[0] == 3 for value in tables.values()) and any(value.any() for value in tables.values())
    log = (trained.parent / "log.jsonl").read_text()
    assert "takes lora 0" in log and "takes none" in log


def test_checkpoints_hold_routers_that_find_the_same_loras(trained, loras):
    checkpoint = trained.parent / "checkpoint-2" / trained.name
    for file in (trained, checkpoint):
        chosen, others = loras_of(file)
        assert [lora.path.name for lora in chosen] == ["a.safetensors", "b.safetensors"] and not others


def test_a_run_goes_on_from_a_checkpoint_with_the_same_bits(tiny_wan, loras, data, trained, tmp_path):
    begun = train_lora(settings(tiny_wan, loras, data, tmp_path / "parts", max_train_steps=2))
    more = {"resume_from_checkpoint": "latest", "gradient_checkpointing": False}
    file = train_lora(settings(tiny_wan, loras, data, tmp_path / "parts", **more))
    assert begun == file
    whole, parts = load_file(trained), load_file(file)
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


def test_recomputation_trains_alike(tiny_wan, loras, data, trained, tmp_path):
    file = train_lora(settings(tiny_wan, loras, data, tmp_path / "kept", gradient_checkpointing=True))
    whole, kept = load_file(trained), load_file(file)
    assert all(torch.allclose(value, kept[name], atol=1e-5) for name, value in whole.items())


def test_clips_are_made_with_the_router_and_repeat(tiny_wan, loras, trained):
    plain, mixed = clip(tiny_wan), clip(tiny_wan, lora_router=str(trained))
    again = clip(
        tiny_wan, lora_router=str(trained), lora=[str(loras / "b.safetensors@0.5"), str(loras / "a.safetensors")]
    )
    assert not np.array_equal(plain.frames, mixed.frames) and np.array_equal(again.frames, mixed.frames)
    assert len(mixed.record["made_with"]["lora_fingerprints"]) == 3
    both = clip(tiny_wan, lora=[str(loras / "a.safetensors"), f"{loras / 'b.safetensors'}@0.5"])
    assert not np.array_equal(both.frames, mixed.frames)


def test_masks_say_where_loras_act(tiny_wan, loras, tmp_path):
    for name, value in (("white", 255), ("black", 0)):
        Image.new("L", (8, 8), value).save(tmp_path / f"{name}.png")
    a = str(loras / "a.safetensors")
    white = clip(tiny_wan, lora=[a], lora_mask=[str(tmp_path / "white.png")])
    assert np.abs(white.frames.astype(int) - clip(tiny_wan, lora=[a]).frames).max() <= 1
    black = clip(tiny_wan, lora=[a], lora_mask=[str(tmp_path / "black.png")])
    assert not np.array_equal(black.frames, white.frames)
    with pytest.raises(UsageError, match="one for each of the 1 LoRA$"):
        clip(tiny_wan, lora=[a], lora_mask=[str(tmp_path / "white.png")] * 2)
    with pytest.raises(UsageError, match="give one of them"):
        clip(tiny_wan, lora=[a], lora_mask=[str(tmp_path / "white.png")], lora_router="x")


def test_a_lora_that_is_gone_or_changed_is_told(trained, loras, tmp_path):
    moved = tmp_path / "far" / "away" / "from" / "home" / "router.safetensors"
    moved.parent.mkdir(parents=True)
    shutil.copy(trained, moved)
    with pytest.raises(ArtifactError, match="a.safetensors is not there; name the file with --lora"):
        loras_of(moved)
    given = [parse_lora(str(loras / f"{name}.safetensors")) for name in "ab"]
    assert [lora.path.name for lora in loras_of(moved, given[::-1])[0]] == ["a.safetensors", "b.safetensors"]
    with pytest.raises(UsageError, match="takes it with --lora-router"):
        parse_lora(str(trained))
    with pytest.raises(ArtifactError, match="is no router"):
        read_router(loras / "a.safetensors")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"rank": 4}, "belongs to a LoRA in training"), ({"mix": ["a"]}, "two LoRA files or more"),
        ({"mix": [], "mix_balance": 0.1}, "no effect without --mix"),
        ({"attention": "radial", "train_attention_weights": True}, "leave it or --mix out"),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_with_a_router_are_refused(tiny_wan, loras, data, tmp_path, more, words):
    with pytest.raises(UsageError, match=words):
        settings(tiny_wan, loras, data, tmp_path / "x", **more).check()
