"""Patches beside Diffusers' other features, on tiny models of the real classes: docs/features.md names these tests.

Every feature is switched on before and under a patch: a full method gives what the model gives with the feature alone,
another one acts, and after ``remove()`` the output is bit for bit that of the feature alone.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import diffusers
import pytest
import tiny
import torch
from diffusers.hooks import HookRegistry, LayerSkipConfig, apply_layer_skip
from diffusers.hooks.layer_skip import AttentionProcessorSkipHook
from diffusers.hooks.smoothed_energy_guidance_utils import (
    SmoothedEnergyGuidanceConfig,
    _apply_smoothed_energy_guidance_hook,
)
from gate_methods import Full, Scaled
from peft import LoraConfig

import genkit

ROOT = Path(__file__).resolve().parents[2]


def check(case, run=None, tolerance=2e-5, **where):
    """Full attention changes nothing, another method acts, nothing stays behind; returns the report of the first."""
    run = run or case.run
    reference = run()
    with genkit.patch(case.model, Full(), **where) as handle:
        torch.testing.assert_close(run(), reference, atol=tolerance, rtol=tolerance)
        report = handle.report()
    with genkit.patch(case.model, Scaled(), **where):
        assert not torch.allclose(run(), reference, atol=1e-4)
    assert torch.equal(run(), reference)
    return report


# --- the model's own switches -------------------------------------------------------------------------------------


def test_set_attention_backend():
    """It sets one model's backend and, as Diffusers has it, the process-wide one; a patch touches neither."""
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry as registry

    case, before = tiny.build("wan"), registry._active_backend
    try:
        case.model.set_attention_backend("_native_math")
        chosen = registry._active_backend
        assert check(case).ran == case.calls and registry._active_backend is chosen
    finally:
        case.model.reset_attention_backend()
        registry._active_backend = before


def test_freeu():
    case = tiny.build("unet")
    plain = case.run()
    case.model.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    assert not torch.equal(case.run(), plain)
    assert check(case).ran == case.calls
    case.model.disable_freeu()


def test_controlnet_of_a_unet():
    """The ControlNet's residuals go into the patched UNet; the ControlNet itself keeps its own attention."""
    case = tiny.build("unet")
    control = diffusers.ControlNetModel.from_unet(case.model).eval()
    for parameter in control.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    args = {name: case.args[name] for name in ("sample", "timestep", "encoder_hidden_states")}
    picture = torch.randn(2, 3, *(8 * side for side in args["sample"].shape[2:]))

    def run():
        with torch.no_grad():
            down, mid = control(**args, controlnet_cond=picture, return_dict=False)
            return case.run(down_block_additional_residuals=down, mid_block_additional_residual=mid)

    assert not torch.allclose(run(), case.run(), atol=1e-4)
    assert check(case, run, 1e-4).ran == case.calls


def test_controlnet_of_a_transformer():
    case = tiny.build("flux")
    width = case.model.inner_dim
    residuals = [torch.randn(2, case.args["hidden_states"].shape[1], width)]

    def run():
        return case.run(controlnet_block_samples=residuals, controlnet_single_block_samples=residuals)

    assert not torch.allclose(run(), case.run(), atol=1e-4)
    assert check(case, run).ran == case.calls


# --- weights that come and go -------------------------------------------------------------------------------------


def test_lora_hot_swap():
    """Adapters are added, chosen, weighted, fused and taken away under one patch: it always acts on what is there."""
    case = tiny.build("wan")
    plain = case.run()
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_v"], init_lora_weights=False)
    torch.manual_seed(0)
    with genkit.patch(case.model, Full(), roles="self") as handle:
        seen = [plain]
        for act in (
            lambda: case.model.add_adapter(config, "one"),
            lambda: case.model.add_adapter(config, "two"),
            lambda: case.model.set_adapters(["one", "two"], [0.5, 2.0]),
            lambda: case.model.disable_adapters(),
            lambda: case.model.enable_adapters(),
            lambda: case.model.fuse_lora(),
            lambda: case.model.unfuse_lora(),
        ):
            act()
            out = case.run()
            handle.remove()
            own = case.run()
            torch.testing.assert_close(out, own, atol=5e-5, rtol=5e-5)
            seen.append(own)
            handle = genkit.patch(case.model, Full(), roles="self")
        assert all(not torch.allclose(seen[at], plain, atol=1e-4) for at in (1, 2, 3, 5, 6))
        torch.testing.assert_close(seen[4], plain)
        case.model.unload_lora()
        torch.testing.assert_close(case.run(), plain, atol=5e-5, rtol=5e-5)
        assert handle.report().ran == 3
        handle.remove()
    torch.testing.assert_close(case.run(), plain, atol=1e-5, rtol=1e-5)  # fusing and taking apart rounds the weights


def test_dynamically_quantised_linears():
    """int8 linears of torch itself; torchao's and bitsandbytes' replace the same modules in the same way."""
    case = tiny.build("wan")
    linears = {name for name, module in case.model.named_modules() if re.search(r"attn\d\.to_[qkv]$", name)}
    case.model = torch.ao.quantization.quantize_dynamic(case.model, linears, dtype=torch.qint8)
    assert "quantized.dynamic" in type(case.model.blocks[0].attn1.to_q).__module__
    assert check(case, tolerance=5e-3).ran == case.calls


def test_torchao_linears():
    torchao = pytest.importorskip("torchao", reason="torchao is not installed")
    case = tiny.build("wan")
    torchao.quantize_(case.model, torchao.quantization.Int8WeightOnlyConfig())
    assert check(case, tolerance=5e-3).ran == case.calls


# --- memory -------------------------------------------------------------------------------------------------------


def test_layerwise_casting():
    case = tiny.build("wan")
    case.model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert case.model.blocks[0].attn1.to_q.weight.dtype == torch.float8_e4m3fn
    assert check(case).ran == case.calls
    assert case.model.blocks[0].attn1.to_q.weight.dtype == torch.float8_e4m3fn


@pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
def test_group_offload(kind):
    case = tiny.build("wan")
    case.model.enable_group_offload(
        torch.device("cpu"), torch.device("cpu"), kind, num_blocks_per_group=1 if kind == "block_level" else None
    )
    assert check(case).ran == case.calls


# --- caches and skipping ------------------------------------------------------------------------------------------

CACHES = {
    "first_block": lambda: diffusers.FirstBlockCacheConfig(threshold=1e9),
    "mag": lambda: diffusers.MagCacheConfig(
        threshold=10.0, max_skip_steps=2, retention_ratio=0.0, num_inference_steps=4, mag_ratios=torch.ones(4)
    ),
    "taylor_seer": lambda: diffusers.TaylorSeerCacheConfig(
        cache_interval=2, disable_cache_before_step=1, max_order=1, cache_identifiers=[r"blocks\.\d+\.attn\d"]
    ),
}


@pytest.mark.parametrize("name", list(CACHES))
def test_caches_that_skip_blocks(name):
    """What a cache skips is told by the report; what it lets through is served; the cache works as without a patch."""
    case = tiny.build("wan")

    def run():
        case.model.enable_cache(CACHES[name]())
        outs = []
        for t in (900, 700, 500, 300):
            with case.model.cache_context("cond"):
                outs.append(case.run(timestep=torch.tensor([t, t])))
        case.model.disable_cache()
        return torch.cat(outs)

    report = check(case, run, 1e-4, roles="self")
    assert 0 < report.ran < 12


def test_faster_cache():
    case = tiny.build("wan")
    clock = [900]
    config = dict(
        spatial_attention_block_skip_range=2, spatial_attention_timestep_skip_range=(-1, 750),
        tensor_format="BCFHW", is_guidance_distilled=True, current_timestep_callback=lambda: clock[0],
        spatial_attention_block_identifiers=("blocks",),
    )  # fmt: skip

    def run():
        case.model.enable_cache(diffusers.FasterCacheConfig(**config))
        outs = []
        for clock[0] in (900, 800, 700, 600):
            with case.model.cache_context("cond"):
                outs.append(case.run(timestep=torch.tensor([clock[0], clock[0]])))
        case.model.disable_cache()
        return torch.cat(outs)

    assert 0 < check(case, run, 1e-4, roles="self").ran < 12


def test_skipped_layers():
    """Skip-layer guidance, and DeepCache-like skipping of whole blocks: the block's attention is never called."""
    case = tiny.build("wan")
    plain = case.run()
    apply_layer_skip(case.model, LayerSkipConfig(indices=[1], fqn="blocks", skip_attention=True, skip_ff=True))
    assert not torch.allclose(case.run(), plain, atol=1e-4)
    assert check(case).ran == case.calls - 2


# --- guidance that changes attention --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wan", "unet"])
def test_perturbed_attention_guidance(name):
    """The pass in which values take the place of attention stays what it is, whatever is patched."""
    case = tiny.build(name)
    plain = case.run()
    path = next(path for path, _ in case.model.named_modules() if path.endswith("attn1"))
    hook = AttentionProcessorSkipHook(lambda *_: None, skip_attention_scores=True)
    HookRegistry.check_if_exists_or_initialize(case.model.get_submodule(path)).register_hook(hook, "skip")
    assert not torch.allclose(case.run(), plain, atol=1e-5)
    report = check(case)
    site = next(site for site in report.sites if site.name == path)
    reasons = ["a guidance skips attention in this pass (perturbed attention)"] if name == "wan" else []
    assert (site.ran, site.skipped) == (0, int(name == "unet")) and list(site.declined) == reasons
    assert report.ran == case.calls - 1


def test_smoothed_energy_guidance():
    case = tiny.build("wan")
    plain = case.run()
    config = SmoothedEnergyGuidanceConfig(indices=[0, 1], fqn="blocks")
    _apply_smoothed_energy_guidance_hook(case.model, config, blur_sigma=10.0)
    assert not torch.allclose(case.run(), plain, atol=1e-5)
    assert check(case).ran == case.calls


# --- the page -----------------------------------------------------------------------------------------------------


def test_every_test_that_the_page_names_exists():
    page = (ROOT / "docs" / "features.md").read_text()
    named = re.findall(r"`((?:tests/)?[\w/]+\.py)::(\w+)`", page)
    assert len(named) >= 20
    for file, test in named:
        tree = ast.parse((ROOT / file).read_text())
        assert test in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, f"{file}::{test}"


def test_every_test_of_this_file_is_named_by_the_page():
    page = (ROOT / "docs" / "features.md").read_text()
    own = re.findall(r"^def (test_\w+)", Path(__file__).read_text(), re.MULTILINE)
    assert [name for name in own if not name.startswith("test_every_") and f"::{name}`" not in page] == []
