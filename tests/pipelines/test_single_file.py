"""--denoiser: one file of weights, with Diffusers' names or those of the original, in place of the model's own."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import tiny_pipelines
import torch
from safetensors.torch import save_file
from tiny_wan import build_tiny_wan

from genkit.errors import ArtifactError, UnsupportedError, UsageError
from genkit.pipelines.checkpoint import Checkpoint, find_checkpoint
from genkit.pipelines.resolve import resolve
from genkit.pipelines.session import Session
from genkit.pipelines.settings import GenerateSettings

#: Some names of Wan's own files, which tell them from Diffusers'.
ORIGINAL = {
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "attn1.to_q": "self_attn.q", "attn1.to_k": "self_attn.k", "attn1.to_v": "self_attn.v",
    "attn1.to_out.0": "self_attn.o", "attn1.norm_q": "self_attn.norm_q", "attn1.norm_k": "self_attn.norm_k",
    "attn2.to_q": "cross_attn.q", "attn2.to_k": "cross_attn.k", "attn2.to_v": "cross_attn.v",
    "attn2.to_out.0": "cross_attn.o", "attn2.norm_q": "cross_attn.norm_q", "attn2.norm_k": "cross_attn.norm_k",
    "ffn.net.0.proj": "ffn.0", "ffn.net.2": "ffn.2", "norm2": "norm3",
}  # fmt: skip


def original(name):
    """A tensor's name in Wan's own files, as ComfyUI stores them."""
    if name == "scale_shift_table":
        return "model.diffusion_model.head.modulation"
    if name.startswith("proj_out"):
        return f"model.diffusion_model.{name.replace('proj_out', 'head.head')}"
    name = name.replace("scale_shift_table", "modulation")
    for ours, theirs in ORIGINAL.items():
        name = name.replace(f"{ours}.", f"{theirs}.")
    return f"model.diffusion_model.{name}"


def ask(folder, **changes):
    return GenerateSettings(prompt="a red circle", model=str(folder), seed=1, steps=2, **changes)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Another model of the same shape, and its denoiser as one file in both kinds of names."""
    from diffusers import WanTransformer3DModel

    folder = build_tiny_wan(tmp_path_factory.mktemp("other") / "wan", seed=7)
    weights = WanTransformer3DModel.from_pretrained(folder / "transformer").state_dict()
    save_file(weights, folder / "diffusers.safetensors")
    save_file({original(name): value for name, value in weights.items()}, folder / "comfy.safetensors")
    return folder


@pytest.mark.parametrize("name", ["diffusers", "comfy"])
def test_one_file_in_place_of_the_denoiser(tiny_wan, other, tmp_path, name):
    mixed = shutil.copytree(tiny_wan, tmp_path / "mixed")
    shutil.copy(other / "transformer" / "diffusion_pytorch_model.safetensors", mixed / "transformer")
    wanted = Session(resolve(ask(mixed))).run()
    session = Session(resolve(ask(tiny_wan, denoiser=(str(other / f"{name}.safetensors"),))))
    made = session.run()
    assert np.array_equal(made.frames, wanted.frames)
    assert not np.array_equal(made.frames, Session(resolve(ask(tiny_wan))).run().frames)
    stored = made.record["settings"]
    assert stored["denoiser"] == [f"transformer={other / name}.safetensors"]
    assert len(made.record["made_with"]["denoiser_fingerprints"]) == 1
    again = GenerateSettings.from_mappings(stored=("record", json.loads(json.dumps(stored))))
    assert resolve(again).single == session.request.single


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("door", ["diffusers", "comfy", "model"])
def test_what_a_class_keeps_in_float32_stays_exact(tiny_wan, other, door, dtype):
    """By every door a file's weights are those that ``from_pretrained`` reads from the folder, type by type."""
    from diffusers import WanTransformer3DModel

    wanted = WanTransformer3DModel.from_pretrained(other / "transformer", dtype=dtype).state_dict()
    assert {each.dtype for each in wanted.values()} == {dtype, torch.float32}
    if door == "model":
        loaded = find_checkpoint(other / "comfy.safetensors", str(tiny_wan)).load(dtype)["transformer"]
    else:
        request = resolve(ask(tiny_wan, denoiser=(str(other / f"{door}.safetensors"),)))
        loaded = request.single[0].load(request.model, dtype)
    found = loaded.state_dict()
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


def test_text_encoders_keep_theirs_for_float16(tmp_path):
    """T5 in a whole file of Stable Diffusion 3: rounded to float16 by Diffusers before it is kept in float32."""
    text_encoder = tiny_pipelines.t5(16)
    text_encoder.save_pretrained(tmp_path / "model" / "text_encoder_3")
    prefix = "text_encoders.t5xxl.transformer."
    tensors = {f"{prefix}{name}": value.clone() for name, value in text_encoder.state_dict().items()}
    save_file(tensors, tmp_path / "all.safetensors")
    parts = {"text_encoder_3": ("transformers", "T5EncoderModel")}
    checkpoint = Checkpoint(tmp_path / "all.safetensors", tmp_path / "model", "model", parts)
    for dtype, kept in ((torch.float16, torch.float32), (torch.bfloat16, torch.bfloat16)):
        wanted = type(text_encoder).from_pretrained(tmp_path / "model" / "text_encoder_3", dtype=dtype).state_dict()
        found = checkpoint.load(dtype)["text_encoder_3"].state_dict()
        assert {value.dtype for value in wanted.values()} == {dtype, kept}
        for name, value in wanted.items():
            assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


def test_files_that_do_not_fit_are_refused_before_weights(tiny_wan, tmp_path, monkeypatch):
    save_file({"blocks.0.ffn.0.weight": torch.zeros(3, 3)}, tmp_path / "small.safetensors")
    save_file({"scaled_fp8": torch.zeros(2)}, tmp_path / "scaled.safetensors")
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    (tmp_path / "a.ckpt").write_bytes(b"x")
    monkeypatch.setattr("genkit.pipelines.single_file.find_spec", lambda name: None)
    for name, error, told in (
        ("small.safetensors", ArtifactError, "has 9 weights, and transformer of"),
        ("scaled.safetensors", UnsupportedError, "scaled 8-bit weights"),
        ("a.gguf", UnsupportedError, "install gguf"),
        ("a.ckpt", UsageError, "only .safetensors and .gguf files are read"),
        ("none.safetensors", ArtifactError, "it does not exist"),
    ):
        with pytest.raises(error, match=told):
            resolve(ask(tiny_wan, denoiser=(str(tmp_path / name),)))
    with pytest.raises(UsageError, match="--denoiser: got 'unet', allowed: transformer"):
        resolve(ask(tiny_wan, denoiser=(f"unet={tmp_path / 'small.safetensors'}",)))
