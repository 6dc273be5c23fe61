"""Motif-Video from folder to clip: routed, with shared cross-attention, and both files in the stock pipeline."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny_pipelines
import torch
from safetensors.torch import load_file

import genkit
from genkit.attention import registry
from genkit.errors import ArtifactError, UsageError
from genkit.lora.contents import read_lora
from genkit.media.files import write_media
from genkit.models import check_folder
from genkit.training.lora.plan import LoraPlan
from genkit.training.lora.run import Run
from genkit.training.lora.settings import LoraSettings

SHARED = "shared_cross_attention"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Folders of both pipelines, and a clip."""
    folder = tmp_path_factory.mktemp("motif")
    for name in ("text", "picture"):
        tiny_pipelines.motif_video(pictures=name == "picture", layers=2).save_pretrained(folder / name)
    (folder / "data").mkdir()
    frames = np.full((5, 32, 48, 3), 40, np.uint8)
    frames[:, 8:24, 8:30] = 200
    write_media(folder / "data" / "0.mp4", frames, 24)
    (folder / "data" / "0.txt").write_text("a red circle moves right")
    return folder


def settings(home, output, name="text", **more):
    given = {
        "model": str(home / name), "data": str(home / "data"), "output": str(output), "resolution": "32x48",
        "num_frames": 5, "max_train_steps": 3, "rank": 2, "learning_rate": 0.01, "seed": 3, "route": "0:3:0.5",
        "attention": SHARED, "train_attention_weights": True, "max_sequence_length": 16,
        "gradient_checkpointing": True, **more,
    }  # fmt: skip
    return LoraSettings.from_mappings(("the test", given))


def load(home, name):
    import diffusers

    kind = {"text": diffusers.MotifVideoPipeline, "picture": diffusers.MotifVideoImage2VideoPipeline}[name]
    pipeline = kind.from_pretrained(home / name)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def clip(pipeline, told):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        prompt="a red circle", height=32, width=48, num_frames=5, num_inference_steps=2, output_type="latent",
        generator=torch.Generator().manual_seed(1), max_sequence_length=16, **told,
    ).frames  # fmt: skip


@pytest.mark.parametrize("name", ["text", "picture"])
def test_trained_routed_with_shared_cross_attention_and_both_files_come_back(home, tmp_path, name):
    from PIL import Image

    run = Run.open(settings(home, tmp_path / "lora", name, validation_prompts=[]), lambda line: None)
    assert run.training.takes == (() if name == "text" else ("first_frame",))
    assert run.go().parent == tmp_path / "lora"
    lora, own = (
        load_file(tmp_path / "lora" / each) for each in ("pytorch_lora_weights.safetensors", "attention.safetensors")
    )
    # The last encoder block's text goes nowhere, and the decoder has no text: the rest has learned.
    upper = [bool(value.any()) for key, value in lora.items() if "lora_B" in key]
    # Two dual blocks with four layers, three single ones with three, and the cross-attention of two of these.
    assert len(upper) == 2 * 4 + 3 * 3 + 2 * 4 and sum(upper) >= 0.8 * len(upper)
    assert len(own) == 4 * (len(run.handle.sites) - 1) == 16  # the decoder sees no text
    assert all(value.any() for key, value in own.items() if key.startswith(SHARED) and key.endswith(".out"))
    facts = read_lora(tmp_path / "lora").facts
    assert (facts.family, facts.attention) == ("Motif-Video", SHARED) and facts.settings["route"] == "0:3:0.5"

    run.task.route.remove()
    told = {} if name == "text" else {"image": Image.new("RGB", (48, 32), "red")}
    pipeline = load(home, name)
    plain = clip(pipeline, told)
    pipeline.transformer, own_model = run.adapter.model, pipeline.transformer
    trained = clip(pipeline, told)
    pipeline.transformer = own_model
    genkit.load_lora(pipeline, tmp_path / "lora")
    with genkit.patch(pipeline, registry.trained(SHARED, tmp_path / "lora" / "attention.safetensors")) as patch:
        torch.testing.assert_close(clip(pipeline, told), trained, atol=1e-4, rtol=1e-4)
        assert patch.report().ran
    assert not torch.allclose(clip(pipeline, told), trained, atol=1e-4)
    genkit_way = clip(pipeline, told)
    pipeline.transformer.unload_lora()
    assert torch.equal(clip(pipeline, told), plain)
    # Diffusers alone reads the file through the denoiser, which is all this pipeline class has.
    pipeline.transformer.load_lora_adapter(load_file(tmp_path / "lora" / "pytorch_lora_weights.safetensors"))
    torch.testing.assert_close(clip(pipeline, told), genkit_way, atol=1e-5, rtol=1e-4)


def test_a_folder_without_the_guiders_configuration_is_refused(home, tmp_path):
    assert check_folder(home / "text")["_class_name"] == "MotifVideoPipeline"
    for name in ("model_index.json", "scheduler", "vae", "text_encoder", "tokenizer", "transformer"):
        (tmp_path / name).symlink_to(home / "text" / name)
    (tmp_path / "feature_extractor").symlink_to(home / "text" / "feature_extractor")
    (tmp_path / "guider").mkdir()
    (tmp_path / "guider" / "other.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"guider_config.json is missing \(ClassifierFreeGuidance needs it\)"):
        check_folder(tmp_path)
    (tmp_path / "guider" / "guider_config.json").write_text(json.dumps([]))
    with pytest.raises(ArtifactError, match=r"guider_config.json"):
        check_folder(tmp_path)


def test_a_route_into_the_decoder_is_refused_before_weights_are_read(home, tmp_path, no_weights):
    with pytest.raises(UsageError, match=r"blocks 0:5 of a model with 5; allowed: 0 <= START < END <= 4"):
        LoraPlan.of(settings(home, tmp_path / "lora", route="0:5:0.5"))
    assert not (tmp_path / "lora").exists()


def test_a_shift_made_for_pictures_is_refused_before_weights_are_read(home, tmp_path, no_weights):
    for each in (home / "text").iterdir():
        if each.name != "scheduler":
            (tmp_path / each.name).symlink_to(each)
    (tmp_path / "scheduler").mkdir()
    told = json.loads((home / "text" / "scheduler" / "scheduler_config.json").read_text())
    told |= {"use_dynamic_shifting": True, "base_shift": 5.0}
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(told))
    given = settings(home, tmp_path / "lora", model=str(tmp_path))
    with pytest.raises(UsageError, match=r"flow_shift: .* of 12 tokens by 190 .*give --flow-shift"):
        LoraPlan.of(given).estimate()
    given = settings(home, tmp_path / "lora", model=str(tmp_path), flow_shift=15.0)
    assert LoraPlan.of(given).estimate().memory.activations > 0


def test_the_dry_run_tells_weights_of_methods_and_the_blocks_of_the_route(home, tmp_path):
    from genkit.cli.train import lines_of
    from genkit.training.lora.dry_run import described
    from genkit.training.lora.plan import LoraPlan

    plan = LoraPlan.of(settings(home, tmp_path / "lora"))
    run = Run.open(settings(home, tmp_path / "lora"), lambda line: None)
    own = sum(value.numel() for value in run.handle.weights.parameters())
    run.handle.remove()
    found = described(plan, None)
    assert found["attention_parameters"] == own > 0
    blocks = ["transformer_blocks.0", "transformer_blocks.1", "single_transformer_blocks.0"]
    assert found["route"] == {"blocks": blocks, "of": 5, "share": 0.5}
    told = list(lines_of(found))
    assert any(f"{own:,} parameters more" in line for line in told)
    line = "route: 50% of the tokens skip 3 of 5 blocks: transformer_blocks.0 to single_transformer_blocks.0"
    assert line in told
    plain = described(
        LoraPlan.of(settings(home, tmp_path / "b", route=None, attention=None, train_attention_weights=False)), None
    )
    assert plain["route"] is None and not plain["attention_parameters"]
