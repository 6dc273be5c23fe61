"""A whole model in one file, as A1111 and ComfyUI keep them: told before weights, and the same model as its folder."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import tiny_pipelines
import torch
from ldm_file import open_clip_names, sd_tensors, write_sd_file
from safetensors.torch import load_file, save_file

import genkit
from genkit.errors import ArtifactError, UnsupportedError, UsageError
from genkit.pipelines.checkpoint import find_checkpoint
from genkit.pipelines.resolve import resolve
from genkit.pipelines.session import Session
from genkit.pipelines.settings import GenerateSettings
from genkit.pipelines.tasks.edit.settings import EditSettings

TEXT = "cond_stage_model"


@pytest.fixture(scope="module")
def file(tiny_sd, tmp_path_factory):
    return write_sd_file(tiny_sd, tmp_path_factory.mktemp("file") / "model.safetensors")


@pytest.fixture(scope="module")
def configurations(tiny_sd, tmp_path_factory):
    """The folder of a Stable Diffusion without weights."""
    target = tmp_path_factory.mktemp("configurations") / "sd"
    return shutil.copytree(tiny_sd, target, ignore=shutil.ignore_patterns("*.safetensors"))


def ask(model, parts_from=None, **changes):
    parts_from = None if parts_from is None else str(parts_from)
    return GenerateSettings(prompt="a red circle", model=str(model), seed=1, steps=2, parts_from=parts_from, **changes)


def saved(tensors, path):
    save_file({name: value.clone().contiguous() for name, value in tensors.items()}, path)
    return path


def test_a_file_is_the_model_of_its_folder(tiny_sd, file, configurations):
    wanted = Session(resolve(ask(tiny_sd))).run()
    request = resolve(ask(file, configurations))
    assert request.notes == (
        f"model.safetensors holds text_encoder, unet, vae; scheduler, tokenizer come from {configurations}",
    )
    session = Session(request)
    made = session.run()
    assert np.array_equal(made.frames, wanted.frames)
    stored, digest = made.record["settings"], made.record["made_with"]["model_fingerprint"]
    assert (stored["model"], stored["parts_from"]) == (str(file), str(configurations))
    assert digest != wanted.record["made_with"]["model_fingerprint"]
    again = GenerateSettings.from_mappings(stored=("record", json.loads(json.dumps(stored))))
    assert np.array_equal(session.again(resolve(again)).run().frames, wanted.frames)
    assert session.again(resolve(ask(tiny_sd))) is None
    pipe = genkit.load(file, parts_from=configurations)
    assert type(pipe).__name__ == "StableDiffusionPipeline" and pipe.safety_checker is None


def test_a_file_under_a_method_and_in_other_tasks(file, configurations, tmp_path):
    from genkit.training.lora.plan import LoraPlan
    from genkit.training.lora.settings import LoraSettings

    windows = {"attention": "neighborhood", "attention_args": {"size": "1x3x3"}}
    made = Session(resolve(ask(file, configurations, **windows))).run()
    assert made.report["ran"] > 0
    made.write(tmp_path / "data" / "a.png")
    (tmp_path / "data" / "a.txt").write_text("a red circle")
    given = {"model": str(file), "parts_from": str(configurations)}
    edit = EditSettings(
        **given, prompt="a blue circle", method="img2img", strength=0.5, steps=2, image=str(tmp_path / "data" / "a.png")
    )
    assert Session(resolve(edit)).run().frames.shape == made.frames.shape
    given |= {"data": str(tmp_path / "data"), "output": str(tmp_path / "lora"), "resolution": "16"}
    given |= {"device": "cpu", "max_train_steps": 1}
    plan = LoraPlan.of(LoraSettings.from_mappings(("test", given)))
    assert plan.model.source == (file, str(configurations))
    assert plan.fingerprint()["base"]["model_fingerprint"] == made.record["made_with"]["model_fingerprint"]


def test_parts_that_the_file_does_not_hold_come_from_the_folder(tiny_sd, configurations, tmp_path):
    file = write_sd_file(tiny_sd, tmp_path / "part.safetensors", without=TEXT)
    wanted = Session(resolve(ask(tiny_sd))).run()
    request = resolve(ask(file, tiny_sd))
    assert request.notes[0].startswith("part.safetensors holds unet, vae; scheduler, text_encoder, tokenizer come")
    assert np.array_equal(Session(request).run().frames, wanted.frames)
    with pytest.raises(ArtifactError, match="holds unet, vae, and text_encoder neither; .* has no weights of it"):
        resolve(ask(file, configurations))
    index = json.loads((configurations / "model_index.json").read_text())
    checked = shutil.copytree(configurations, tmp_path / "checked")
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (checked / "model_index.json").write_text(json.dumps(index))
    (checked / "safety_checker").mkdir()
    (checked / "safety_checker" / "config.json").write_text("{}")
    whole = write_sd_file(tiny_sd, tmp_path / "whole.safetensors")
    request = resolve(ask(whole, checked))
    assert request.notes[0].endswith("; without safety_checker, whose weights neither holds")
    assert np.array_equal(Session(request).run().frames, wanted.frames)


@pytest.mark.parametrize("width", [4, 12])
def test_two_text_encoders_are_told_by_their_width(tmp_path, width):
    pipe = tiny_pipelines.stable_diffusion_xl()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        first, second = tiny_pipelines.clip(width)[0], tiny_pipelines.clip(16 - width, 8)[0]
    pipe.register_modules(text_encoder=first, text_encoder_2=second)
    pipe.save_pretrained(tmp_path / "xl")
    tensors = sd_tensors(pipe)
    tensors = {name.replace(f"{TEXT}.", "conditioner.embedders.0."): value for name, value in tensors.items()}
    tensors |= open_clip_names(second, "conditioner.embedders.1.model.")
    file = saved(tensors, tmp_path / "xl.safetensors")
    conf = shutil.copytree(tmp_path / "xl", tmp_path / "conf", ignore=shutil.ignore_patterns("*.safetensors"))
    loaded = genkit.load(file, parts_from=conf)
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        own, wanted = getattr(loaded, part).state_dict(), getattr(pipe, part).state_dict()
        assert all(torch.equal(own[name], wanted[name]) for name in wanted), part


def test_a_t5_and_a_transformer(tmp_path):
    pipe = tiny_pipelines.ltx()
    pipe.save_pretrained(tmp_path / "ltx")
    names = (("proj_in", "patchify_proj"), ("time_embed", "adaln_single"), ("norm_q", "q_norm"), ("norm_k", "k_norm"))
    tensors = {}
    for name, value in pipe.transformer.state_dict().items():
        for ours, theirs in names:
            name = name.replace(ours, theirs)
        tensors[f"model.diffusion_model.{name}"] = value + 1
    for name, value in pipe.text_encoder.state_dict().items():
        if "embed_tokens" not in name:
            tensors[f"text_encoders.t5xxl.transformer.{name}"] = value + 1
    file = saved(tensors, tmp_path / "ltx.safetensors")
    loaded = genkit.load(file, parts_from=tmp_path / "ltx")
    own, wanted = loaded.transformer.state_dict(), pipe.transformer.state_dict()
    assert all(torch.equal(own[name], wanted[name] + 1) for name in wanted)
    assert torch.equal(loaded.text_encoder.encoder.embed_tokens.weight, pipe.text_encoder.shared.weight + 1)
    assert torch.equal(loaded.vae.state_dict()["encoder.conv_in.conv.weight"], pipe.vae.encoder.conv_in.conv.weight)


def test_a_denoiser_alone_is_pointed_to_its_option(tiny_wan, tmp_path):
    flux = saved({"double_blocks.0.img_attn.norm.key_norm.scale": torch.ones(4)}, tmp_path / "flux.safetensors")
    with pytest.raises(UsageError, match="a denoiser, as black-forest-labs/FLUX.1-schnell has it, .* --denoiser flux"):
        resolve(ask(flux))
    wan = saved({f"model.diffusion_model.{name}": torch.ones(1536, 16, 1, 2, 2) for name in
                 ("head.modulation", "patch_embedding.weight")}, tmp_path / "wan.safetensors")  # fmt: skip
    with pytest.raises(UsageError, match="as Wan-AI/Wan2.1-T2V-1.3B-Diffusers has it"):
        resolve(ask(wan))
    with pytest.raises(
        ArtifactError, match="does not belong .* transformer .WanTransformer3DModel. .*looks like Wan-A"
    ):
        resolve(ask(wan, tiny_wan))
    part = load_file(tiny_wan / "transformer" / "diffusion_pytorch_model.safetensors")
    own = saved({name: value * 2 for name, value in part.items()}, tmp_path / "own.safetensors")
    request = resolve(ask(own, tiny_wan))
    assert list(request.model.checkpoint.parts) == ["transformer"]
    changed = Session(request).run().frames
    assert np.array_equal(changed, Session(resolve(ask(tiny_wan, denoiser=(str(own),)))).run().frames)


def test_what_is_no_model_is_told(tiny_sd, file, configurations, tmp_path, tiny_wan):
    for names, told in (
        (["lora_unet_down_blocks_0.lora_down.weight"], "is a LoRA, no model: give it as --lora"),
        (["transformer.blocks.0.attn1.to_q.lora_A.weight"], "is a LoRA"),
        (["ip_adapter.1.to_k_ip.weight", "image_proj.norm.weight"], "is an image prompt adapter"),
        (["control_model.input_blocks.0.0.weight"], "is a ControlNet"),
        (["decoder.conv_in.weight", "encoder.conv_in.weight"], "holds no denoiser: none of its 2 tensors"),
        ([], "holds no weights"),
    ):
        other = saved({name: torch.ones(2) for name in names}, tmp_path / "other.safetensors")
        with pytest.raises(UsageError, match=told):
            find_checkpoint(other)
    for name, told in (("a.ckpt", "is a pickle"), ("a.gguf", "the file as --denoiser"), ("a.txt", "is a file; genkit")):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(UsageError, match=told):
            resolve(ask(tmp_path / name))
    scaled = saved(load_file(file) | {"scaled_fp8": torch.zeros(2)}, tmp_path / "scaled.safetensors")
    with pytest.raises(UnsupportedError, match="scaled 8-bit weights"):
        resolve(ask(scaled, configurations))
    (tmp_path / "cut.safetensors").write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ArtifactError, match="is truncated"):
        resolve(ask(tmp_path / "cut.safetensors", configurations))
    with pytest.raises(UsageError, match="--parts-from goes with a whole model in one file"):
        resolve(ask(tiny_sd, configurations))
    with pytest.raises(UsageError, match="of no kind that Diffusers knows .* --parts-from FOLDER"):
        resolve(ask(file))
    with pytest.raises(UsageError, match="--quantize nf4 with a model in one file"):
        resolve(ask(file, configurations, quantize="nf4"))
    with pytest.raises(ArtifactError, match="--parts-from folder .*none does not exist"):
        resolve(ask(file, tmp_path / "none"))
    with pytest.raises(ArtifactError, match="WanPipeline, .* does not belong|does not belong"):
        resolve(ask(file, tiny_wan))


def test_a_file_of_other_shapes_or_layers_is_refused(file, configurations, tmp_path):
    def changed(**values):
        folder = shutil.copytree(configurations, tmp_path / "changed", dirs_exist_ok=True)
        config = json.loads((configurations / "unet" / "config.json").read_text())
        (folder / "unet" / "config.json").write_text(json.dumps(config | values))
        return folder

    with pytest.raises(ArtifactError, match=r"for unet \(UNet2DConditionModel\) it has \[16, 4, 3, 3\] for conv_in"):
        resolve(ask(file, changed(in_channels=9)))
    with pytest.raises(ArtifactError, match=r"it has nothing for \d+ tensors of it, the first is "):
        resolve(ask(file, changed(layers_per_block=2)))
    names = load_file(file)
    block = "model.diffusion_model.middle_block.1.transformer_blocks."
    more = {name.replace(f"{block}0", f"{block}1"): value for name, value in names.items() if name.startswith(block)}
    deeper = saved(names | more, tmp_path / "deeper.safetensors")
    with pytest.raises(ArtifactError, match="tensors that it has no place for, the first is mid_block.*blocks.1"):
        resolve(ask(deeper, configurations))


def test_configurations_of_the_hub(tiny_sd, configurations, tmp_path, monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked = []

    def download(name, revision, allow_patterns):
        asked.append((name, allow_patterns))
        if name != "stable-diffusion-v1-5/stable-diffusion-v1-5":
            raise LocalEntryNotFoundError("not in the cache")
        return str(configurations if "*.json" in allow_patterns else tiny_sd)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    mark = {"model.diffusion_model.output_blocks.11.0.skip_connection.weight": torch.ones(1)}
    file = write_sd_file(tiny_sd, tmp_path / "v1.safetensors", **mark)
    request = resolve(ask(file))
    assert request.notes[0].endswith("come from stable-diffusion-v1-5/stable-diffusion-v1-5")
    assert request.settings.parts_from is None and len(asked) == 1
    part = write_sd_file(tiny_sd, tmp_path / "part.safetensors", without=TEXT, **mark)
    with pytest.raises(ArtifactError, match="text_encoder neither"):  # the cache of this test is never filled
        resolve(ask(part))
    assert asked[-1][1] == ["text_encoder/*.safetensors*"]
    mark = {"edm_mean": torch.ones(1)}
    other = write_sd_file(tiny_sd, tmp_path / "other.safetensors", **mark)
    with pytest.raises(
        ArtifactError, match=r"looks like playgroundai/.*(hub cannot be reached|offline mode).* --parts-from FOLDER"
    ):
        resolve(ask(other))
