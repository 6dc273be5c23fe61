"""The node on ComfyUI's own classes, tiny and with random weights: run with ComfyUI's folder on PYTHONPATH.

``PYTHONPATH=/path/to/ComfyUI pytest tests/integrations/test_comfyui_real.py`` in an environment that has ComfyUI's
requirements. ComfyUI is no package of the registry, so elsewhere these tests are skipped.
"""

from __future__ import annotations

import logging

import pytest
import torch

cli_args = pytest.importorskip("comfy.cli_args", reason="ComfyUI is not on PYTHONPATH")
cli_args.args.cpu = True

import comfy.model_patcher  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.supported_models  # noqa: E402
from comfyui_node import patched  # noqa: E402

FULL = "size=all"
_FLUX = {
    "in_channels": 16, "out_channels": 16, "vec_in_dim": 8, "context_in_dim": 16, "hidden_size": 48, "mlp_ratio": 2.0,
    "num_heads": 2, "depth": 2, "depth_single_blocks": 1, "axes_dim": [8, 8, 8], "theta": 10000, "patch_size": 2,
    "qkv_bias": True, "guidance_embed": False,
}  # fmt: skip
_WAN = {
    "image_model": "wan2.1", "model_type": "t2v", "patch_size": (1, 2, 2), "text_len": 7, "in_dim": 16, "dim": 48,
    "ffn_dim": 32, "freq_dim": 16, "text_dim": 16, "out_dim": 16, "num_heads": 2, "num_layers": 3,
}  # fmt: skip
_UNET = {
    "image_size": 8, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [1, 1],
    "channel_mult": [1, 2], "transformer_depth": [1, 1], "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1, "context_dim": 16, "use_spatial_transformer": True, "num_heads": 2,
    "use_linear_in_transformer": False, "adm_in_channels": None, "use_temporal_attention": False, "legacy": False,
}  # fmt: skip
_COSMOS = {
    "image_model": "cosmos_predict2", "in_channels": 16, "out_channels": 16, "max_img_h": 16, "max_img_w": 16,
    "max_frames": 8, "patch_spatial": 2, "patch_temporal": 1, "model_channels": 48, "num_blocks": 2, "num_heads": 2,
    "crossattn_emb_channels": 16, "pos_emb_cls": "rope3d", "use_adaln_lora": True, "adaln_lora_dim": 8,
    "rope_enable_fps_modulation": False, "concat_padding_mask": True,
}  # fmt: skip
_QWEN = {
    "image_model": "qwen_image", "in_channels": 64, "out_channels": 16, "num_layers": 2, "attention_head_dim": 24,
    "num_attention_heads": 2, "joint_attention_dim": 16, "pooled_projection_dim": 8, "axes_dims_rope": (8, 8, 8),
}  # fmt: skip
_LTX = {
    "image_model": "ltxv", "in_channels": 128, "cross_attention_dim": 48, "attention_head_dim": 24, "num_layers": 2,
    "num_attention_heads": 2, "caption_channels": 16,
}  # fmt: skip
_HUNYUAN = {
    **_FLUX, "image_model": "hunyuan_video", "in_channels": 16, "out_channels": 16, "patch_size": [1, 2, 2],
    "byt5": False, "meanflow": False,
}  # fmt: skip
_CHROMA = {
    **{name: value for name, value in _FLUX.items() if name not in ("vec_in_dim", "guidance_embed")},
    "image_model": "chroma", "in_channels": 64, "out_channels": 64, "in_dim": 64, "out_dim": 48, "hidden_dim": 32,
    "n_layers": 1,
}  # fmt: skip
_SD3 = {
    "in_channels": 16, "depth": 1, "num_blocks": 3, "pos_embed_scaling_factor": None, "pos_embed_max_size": 16,
    "input_size": None, "num_patches": 256, "context_size": 16, "adm_in_channels": 8,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 16, "out_features": 64}},
}  # fmt: skip

# name -> class of supported_models, its configuration, shape of the latent, blocks with self-attention
MODELS = {
    "wan": ("WAN21_T2V", _WAN, (1, 16, 3, 10, 14), 3),
    "flux": ("FluxSchnell", {**_FLUX, "image_model": "flux"}, (1, 16, 12, 18), 3),
    "chroma": ("Chroma", _CHROMA, (1, 16, 12, 18), 3),
    "hunyuan": ("HunyuanVideo", _HUNYUAN, (1, 16, 3, 10, 14), 3),
    "qwen": ("QwenImage", _QWEN, (1, 16, 1, 12, 18), 2),
    "ltx": ("LTXV", _LTX, (1, 128, 3, 5, 7), 2),
    "cosmos": ("CosmosT2IPredict2", _COSMOS, (1, 16, 2, 10, 14), 2),
    "sd3": ("SD3", _SD3, (1, 16, 12, 18), 3),
    "sd15": ("SD15", _UNET, (1, 4, 10, 14), 7),
}  # fmt: skip


def build(name: str):
    """A ModelPatcher over a tiny model of ComfyUI's class."""
    kind, config, _, _ = MODELS[name]
    described = getattr(comfy.supported_models, kind)({**config, "dtype": torch.float32})
    if kind == "SD15":
        described.unet_config.update(num_heads=2, num_head_channels=-1)
    torch.manual_seed(0)
    base = described.get_model({}, "").eval()
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.normal_(0, 0.25 if parameter.ndim > 1 else 0.1)
    return comfy.model_patcher.ModelPatcher(base, torch.device("cpu"), torch.device("cpu"))


def sample(model, name: str, cfg: float = 3.0, **conditioning) -> torch.Tensor:
    """A picture or clip after three steps with guidance, by ComfyUI's own sampling."""
    shape = MODELS[name][2]
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(shape, generator=generator)
    more = {"pooled_output": torch.randn(1, 8, generator=generator), **conditioning}
    if name == "ltx":
        more.setdefault("attention_mask", torch.ones(1, 7, dtype=torch.int64))
    positive, negative = ([[torch.randn(1, 7, 16, generator=generator), dict(more)]] for _ in range(2))
    return comfy.sample.sample(
        model, noise, 3, cfg, "euler", "simple", positive, negative, torch.zeros(shape), disable_pbar=True, seed=0
    )


def lines(caplog) -> str:
    return "\n".join(record.getMessage() for record in caplog.records if record.name == "genkit.comfyui")


@pytest.mark.parametrize("name", list(MODELS))
def test_full_windows_are_the_model_and_small_ones_are_not(name, caplog):
    caplog.set_level(logging.INFO)
    model, blocks = build(name), MODELS[name][3]
    plain = sample(model, name)
    assert plain.isfinite().all() and plain.std() > 0
    scale = float(plain.abs().max())
    full = sample(patched(model, arguments=FULL), name)
    assert float((full - plain).abs().max()) < 2e-4 * scale, lines(caplog)
    assert f"ran in {blocks} of {blocks} attention calls" in lines(caplog), lines(caplog)
    for method, arguments in (("neighborhood", "size=1x3x3"), ("mixture_of_block", "keep=0.25,box=1x2x2")):
        out = sample(patched(model, method, arguments), name)
        assert out.isfinite().all() and float((out - plain).abs().max()) > 1e-4 * scale
    assert torch.equal(sample(model, name), plain)  # the model given stays as it was
    assert "own attention runs" not in lines(caplog), lines(caplog)


def test_steps_and_blocks_outside_are_the_models_own(caplog):
    caplog.set_level(logging.INFO)
    model = build("wan")
    plain = sample(model, "wan")
    assert torch.equal(sample(patched(model, dense="0:"), "wan"), plain)
    assert torch.equal(sample(patched(model, start=1.0), "wan"), plain)
    sample(patched(model, dense="0,-1"), "wan")
    assert "ran in 1 of 3 attention calls" in lines(caplog)


def test_references_and_masks_of_flux_and_hunyuan(caplog):
    caplog.set_level(logging.INFO)
    model, given = build("flux"), {"reference_latents": [torch.ones(1, 16, 6, 10), torch.ones(1, 16, 4, 4)]}
    plain = sample(model, "flux", **given)
    assert torch.allclose(sample(patched(model, arguments=FULL), "flux", **given), plain, atol=2e-4 * plain.abs().max())
    assert not torch.allclose(sample(patched(model), "flux", **given), plain, atol=1e-4)
    hidden = {"attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0, 0]]), "cfg": 1.0}  # takes masks of one row only
    model = build("hunyuan")
    plain = sample(model, "hunyuan", **hidden)
    out = sample(patched(model, arguments=FULL), "hunyuan", **hidden)
    assert torch.allclose(out, plain, atol=2e-4 * float(plain.abs().max()))
    assert not torch.allclose(sample(model, "hunyuan", cfg=1.0), plain, atol=1e-4)
    assert "own attention runs" not in lines(caplog), lines(caplog)


def test_keyframes_of_ltx_and_references_of_wan_stay_dense(caplog):
    caplog.set_level(logging.INFO)
    for name, given in (
        ("ltx", {"keyframe_idxs": torch.zeros(1, 3, 35)}),
        ("wan", {"time_dim_concat": torch.ones(1, 16, 1, 10, 14)}),
    ):
        model = build(name)
        plain = sample(model, name, **given)
        out = sample(patched(model, arguments=FULL), name, **given)
        assert torch.allclose(out, plain, atol=2e-4 * float(plain.abs().max()))
        assert not torch.allclose(sample(patched(model), name, **given), plain, atol=1e-4)
    assert "grid 2x5x7" in lines(caplog) and "grid 4x5x7" in lines(caplog), lines(caplog)
    assert "own attention runs" not in lines(caplog), lines(caplog)


def test_what_was_computed_is_said(caplog):
    caplog.set_level(logging.INFO)
    sample(patched(build("wan")), "wan")
    assert "grid 3x5x7" in lines(caplog) and "of pairs wanted" in lines(caplog)
