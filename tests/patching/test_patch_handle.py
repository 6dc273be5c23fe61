"""The handle: what it refuses, what it tells, that it undoes everything and that patches do not see each other."""

from __future__ import annotations

import copy
import gc
import pickle
import threading

import pytest
import tiny
import torch
import torch.nn.functional as functional
from gate_methods import Declining, Failing, Full, GridOnly, Scaled, Sdpa

import genkit
from genkit.errors import UnsupportedError, UsageError
from genkit.patching import interception


def test_no_patch_no_pass_through(tiny_model):
    before = functional.scaled_dot_product_attention
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    backends = dict(_AttentionBackendRegistry._backends)
    case = tiny_model("sd3")
    first = genkit.patch(case.model, Full(), roles="joint")
    second = genkit.patch(tiny_model("wan").model, Full())
    assert functional.scaled_dot_product_attention is not before
    first.remove()  # first in, first out
    assert functional.scaled_dot_product_attention is not before
    second.remove()
    second.remove()
    assert functional.scaled_dot_product_attention is before
    assert dict(_AttentionBackendRegistry._backends) == backends
    assert not first.active and not second.active and "removed" in repr(second)


@pytest.mark.parametrize("pair", [("wan", "wan"), ("sd3", "sd3"), ("sd3", "wan"), ("unet", "mochi")])
def test_two_patched_models_at_once(pair):
    a, b = tiny.build(pair[0]), tiny.build(pair[1], seed=1)
    expected = []
    for case, factor in ((a, 0.5), (b, 2.0)):
        with genkit.patch(case.model, Scaled(factor)):
            expected.append(case.run())
    plain = a.run(), b.run()
    first, second = genkit.patch(a.model, Scaled(0.5)), genkit.patch(b.model, Scaled(2.0))
    assert torch.equal(a.run(), expected[0]) and torch.equal(b.run(), expected[1])
    assert (first.report().ran, second.report().ran) == (a.calls, b.calls)
    first.remove()
    assert torch.equal(a.run(), plain[0]) and torch.equal(b.run(), expected[1])
    second.remove()
    assert torch.equal(b.run(), plain[1])


def test_two_threads():
    cases = [tiny.build("wan", seed) for seed in range(2)]
    factors = (0.5, 2.0)
    expected = []
    for case, factor in zip(cases, factors, strict=True):
        with genkit.patch(case.model, Scaled(factor)):
            expected.append(case.run())
    wrong = []

    def work(case, right):
        for _ in range(5):
            if not torch.equal(case.run(), right):
                wrong.append(case)

    handles = [genkit.patch(case.model, Scaled(factor)) for case, factor in zip(cases, factors, strict=True)]
    threads = [threading.Thread(target=work, args=pair) for pair in zip(cases, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for handle in handles:
        handle.remove()
    assert not wrong


def test_a_method_may_call_the_wrapped_functions(tiny_model):
    for name in ("wan", "sd3"):
        case = tiny_model(name)
        with genkit.patch(case.model, Sdpa()) as handle:
            torch.testing.assert_close(case.run(), case.run())
            assert handle.report().ran == 2 * case.calls


def test_declined_calls_run_the_model_and_are_told(tiny_model):
    for name in ("wan", "sd3", "mochi", "hunyuan_video_padded"):
        case = tiny_model(name)
        reference = case.run()
        with genkit.patch(case.model, Declining()) as handle:
            assert torch.equal(case.run(), reference)
            report = handle.report()
        assert report.ran == 0 and report.declined == {"the method declined this call": case.calls}
        assert report.own_seconds > 0 and "declined" in str(report) and report.density is None


def test_layers_and_heads(tiny_model):
    case = tiny_model("wan")
    reference = case.run()
    with genkit.patch(case.model, Scaled(), roles="self", schedule=genkit.Schedule(layers="1:")) as handle:
        case.run()
        text, described = str(handle.describe()), handle.describe()
        assert [row.method for row in described.rows] == [None, "scaled()", "scaled()"]
        assert described.rows[1].grid == (3, 4, 5) and described.rows[1].density.executed == 1.0
        assert len(described.untouched) == 3 and "model's own" in text and "3x4x5" in text
        assert set(described.to_dict()) == {"family", "schedule", "sites", "untouched"}
    with genkit.patch(case.model, Full(), schedule=genkit.Schedule(heads="1:")):
        torch.testing.assert_close(case.run(), reference, atol=2e-5, rtol=2e-5)
    outs = []
    for heads in (None, "0", "1"):
        with genkit.patch(case.model, Scaled(0.0), roles="self", schedule=genkit.Schedule(heads=heads, layers=0)):
            outs.append(case.run())
    assert not torch.allclose(outs[0], outs[1]) and not torch.allclose(outs[1], outs[2])
    for schedule in (genkit.Schedule(layers=""), genkit.Schedule(heads="")):
        with genkit.patch(case.model, Scaled(), schedule=schedule) as handle:
            assert torch.equal(case.run(), reference) and handle.sites == ()
    with pytest.raises(UsageError, match="there are 3 layers"):
        genkit.patch(case.model, Full(), schedule=genkit.Schedule(layers="2:7"))
    with pytest.raises(UsageError, match="there are 2 heads"):
        genkit.patch(case.model, Full(), schedule=genkit.Schedule(heads=[2]))


def test_head_subset_equals_a_mix_by_hand(tiny_model):
    """Covered heads by the method, the others by the model, each in its own place."""
    from dataclasses import dataclass

    case = tiny_model("flux")

    @dataclass(frozen=True)
    class OneHead(Full):
        name = "one_head"

        def attend(self, q, k, v, site, cache):
            out = super().attend(q, k, v, site, cache)
            if site.heads == 1:
                return out * 0.5
            return torch.cat([out[:, :, :1], out[:, :, 1:] * 0.5], dim=2)

    with genkit.patch(case.model, OneHead()):
        expected = case.run()
    with genkit.patch(case.model, OneHead(), schedule=genkit.Schedule(heads=1)) as handle:
        torch.testing.assert_close(case.run(), expected, atol=2e-5, rtol=2e-5)
        assert handle.report().ran == case.calls


def test_stacking_and_overlap(tiny_model):
    case = tiny_model("wan")
    low = genkit.patch(case.model, Scaled(0.5), roles="self", schedule=genkit.Schedule(layers=":1"))
    high = genkit.patch(case.model, Scaled(2.0), roles="self", schedule=genkit.Schedule(layers="1:"))
    cross = genkit.patch(case.model, Full(), roles="cross")
    case.run()
    assert (low.report().ran, high.report().ran, cross.report().ran) == (1, 2, 3)
    with pytest.raises(UsageError, match=r"blocks\.0\.attn1 already has scaled"):
        genkit.patch(case.model, Full(), roles="self")
    assert low.active and interception.INTERCEPTION.installed
    low.remove()
    again = genkit.patch(case.model, Full(), roles="self", schedule=genkit.Schedule(layers=0))
    for handle in (again, cross, high):
        handle.remove()


def test_steps_can_be_shared(tiny_model):
    case = tiny_model("wan")
    early = genkit.patch(case.model, Scaled(), roles="self", schedule=genkit.Schedule(steps=":1"), total_steps=3)
    late = genkit.patch(case.model, Full(), roles="self", schedule=genkit.Schedule(steps="1:"))
    with pytest.raises(UsageError, match="already has"):
        genkit.patch(case.model, Full(), roles="self", schedule=genkit.Schedule(steps="2:"))
    for t in (900, 500, 100):
        case.run(timestep=torch.tensor([t, t]))
    assert {site.steps for site in early.report().sites} == {(0,)} and late.report().sites[0].steps == (1, 2)
    assert {(site.ran, site.outside) for site in early.report().sites} == {(1, 2)}
    early.remove()
    late.remove()


def test_several_methods_and_parts(tiny_model):
    case = tiny_model("ltx2")
    parts = [GridOnly(), genkit.Part(Scaled(1.0), genkit.Schedule(layers=0), ["cross", "audio_to_video"])]
    with genkit.patch(case.model, parts) as handle:
        case.run()
        ran = {(site.role, site.layer): site.method for site in handle.report().sites}
    assert ran == {
        ("self", 0): "grid_only()", ("self", 1): "grid_only()", ("cross", 0): "scaled(factor=1.0)",
        ("audio_to_video", 0): "scaled(factor=1.0)",
    }  # fmt: skip
    with pytest.raises(UsageError, match="already has"):
        genkit.patch(case.model, [GridOnly(), Full()])

    class Recipe:
        parts = (genkit.Part(GridOnly()),)

    with genkit.patch(case.model, Recipe(), schedule=genkit.Schedule(layers="1:")) as handle:
        assert handle.sites == ("transformer_blocks.1.attn1",)


def test_wrong_arguments(tiny_model):
    model = tiny_model("wan").model
    for call in (
        lambda: genkit.patch(model, "radial"),
        lambda: genkit.patch(model, []),
        lambda: genkit.patch(model, Full(), roles="selfie"),
        lambda: genkit.patch(model, Full(), schedule="1:"),
        lambda: genkit.patch(model, Full(), backend="cuda13"),
        lambda: genkit.patch(object(), Full()),
        lambda: genkit.patch(None, Full()),
    ):
        with pytest.raises(UsageError):
            call()


def test_refusals(tiny_model):
    with pytest.raises(UnsupportedError, match="it works on self attention, Flux has joint"):
        genkit.patch(tiny_model("flux").model, GridOnly())
    with pytest.raises(UnsupportedError, match="asked for: cross"):
        genkit.patch(tiny_model("wan").model, genkit.Radial(), roles="cross")
    assert "Flux has joint" in genkit.why_not(tiny_model("flux").model, GridOnly())
    assert genkit.why_not(tiny_model("wan").model, GridOnly()) is None


def test_unknown_models():
    from diffusers import ConfigMixin, DDIMScheduler, ModelMixin, UNet1DModel, WanTransformer3DModel
    from diffusers.configuration_utils import register_to_config
    from diffusers.pipelines import DDIMPipeline

    class Strange(ModelMixin, ConfigMixin):
        @register_to_config
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 2)

    with pytest.raises(UnsupportedError, match="Strange is not a model genkit knows"):
        genkit.patch(Strange(), Full())
    assert "not a model genkit knows" in genkit.why_not(Strange(), Full())
    with pytest.raises(
        UnsupportedError, match="DDIMPipeline has no denoiser genkit knows .unet is (Strange|ModelMixin)"
    ):
        genkit.patch(DDIMPipeline(Strange(), DDIMScheduler()), Full())
    seen = UNet1DModel(block_out_channels=(32, 32, 64), extra_in_channels=64)
    with pytest.raises(UnsupportedError, match="UNet1DModel cannot be patched: it computes its softmax by itself"):
        genkit.patch(seen, Full())
    with pytest.raises(UnsupportedError, match="Linear"):
        genkit.patch(torch.nn.Linear(2, 2), Full())

    class Mine(WanTransformer3DModel):
        """A user's subclass is still a Wan model."""

    from genkit.families import family_of

    assert family_of(Mine.__new__(Mine)).name == "Wan"


def test_processors_that_bypass_the_gate():
    from diffusers.models.attention_processor import (
        AttnProcessor,
        AttnProcessor2_0,
        SlicedAttnProcessor,
        XFormersAttnProcessor,
    )

    case = tiny.build("unet")
    for processor in (AttnProcessor(), SlicedAttnProcessor(2), XFormersAttnProcessor()):
        case.model.set_attn_processor(processor)
        with pytest.raises(UnsupportedError, match=type(processor).__name__):
            genkit.patch(case.model, Full())
    case.model.set_attn_processor(AttnProcessor2_0())
    with genkit.patch(case.model, Full()):
        case.run()
        case.model.set_attn_processor(AttnProcessor())
        with pytest.raises(UnsupportedError, match="AttnProcessor computes attention with its own"):
            case.run()


def test_tokens_the_arguments_do_not_tell_of():
    case = tiny.build("ltx")
    with genkit.patch(case.model, GridOnly()):
        with pytest.raises(UnsupportedError, match="more than the 60 tokens"):
            case.run(num_frames=4)
    block = tiny.build("wan")
    with genkit.patch(block.model, Full()):
        with pytest.raises(UnsupportedError, match="outside of the model's forward"):
            block.model.blocks[0].attn1(torch.randn(1, 60, 24))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_exceptions_leave_nothing_behind(error):
    case = tiny.build("sd3")
    reference = case.run()
    handle = genkit.patch(case.model, Failing(error), schedule=genkit.Schedule(layers=1))
    with pytest.raises(error, match="on purpose"):
        case.run()
    # Whatever runs next on this thread, even of the same shape, is none of the patch's business.
    q = torch.randn(1, 2, 47, 8)
    assert functional.scaled_dot_product_attention(q, q, q).shape == q.shape
    handle.remove()
    assert torch.equal(case.run(), reference) and interception.depth() == 0


def test_interrupt_between_hooks_and_attention():
    """An interrupt inside the attention module, before its attention call, runs no hook at all."""
    case = tiny.build("wan")
    layer = case.model.blocks[1].attn1.to_q

    def interrupt(module, args):
        raise KeyboardInterrupt

    hook = layer.register_forward_pre_hook(interrupt)
    with genkit.patch(case.model, Scaled()) as handle:
        with pytest.raises(KeyboardInterrupt):
            case.run()
        hook.remove()
        q = torch.randn(2, 2, 60, 12)
        functional.scaled_dot_product_attention(q, q, q)
        assert handle.report().sites[2].calls == 0
        ran = handle.report().ran
        case.run()
        assert handle.report().ran == ran + case.calls


def test_backend_changed_after_patching():
    from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend

    case = tiny.build("wan")
    with genkit.patch(case.model, Scaled()) as handle:
        expected = case.run()
        with attention_backend(AttentionBackendName._NATIVE_MATH):
            assert torch.equal(case.run(), expected)
        for processor in case.model.attn_processors.values():
            processor._attention_backend = AttentionBackendName._NATIVE_MATH
        assert torch.equal(case.run(), expected)
        assert handle.report().ran == 3 * case.calls


@pytest.mark.parametrize("name", ["wan", "wan_i2v", "flux", "cogvideox", "unet"])
def test_fused_projections(name):
    case = tiny.build(name)
    reference = case.run()
    case.model.fuse_qkv_projections()
    with genkit.patch(case.model, Full()) as handle:
        torch.testing.assert_close(case.run(), reference, atol=1e-4, rtol=1e-4)
        case.model.unfuse_qkv_projections()
        torch.testing.assert_close(case.run(), reference, atol=1e-4, rtol=1e-4)
        case.model.fuse_qkv_projections()
        case.run()
        assert handle.report().ran == 3 * case.calls


def test_a_patched_model_is_not_copied_or_pickled():
    case = tiny.build("wan")
    with genkit.patch(case.model, Full()):
        with pytest.raises(UnsupportedError, match="remove the patch"):
            copy.deepcopy(case.model)
        with pytest.raises(UnsupportedError, match="remove the patch"):
            pickle.dumps(case.model)
    assert torch.equal(copy.deepcopy(case).run(), case.run())


def test_a_dropped_model_takes_its_patch_along():
    case = tiny.build("wan")
    genkit.patch(case.model, Full())
    case.run()
    assert interception.INTERCEPTION.installed
    del case
    gc.collect()
    assert not interception.INTERCEPTION.installed


def test_the_patch_lives_without_its_handle():
    case = tiny.build("wan")
    with genkit.patch(case.model, Scaled()):
        expected = case.run()
    genkit.patch(case.model, Scaled())
    gc.collect()
    assert torch.equal(case.run(), expected)


def test_image_prompt_keys_stay_with_the_model():
    """Flux: an image prompt adapter attends other keys in a second call, which no grid method can serve."""
    case = tiny.build("flux")
    inner = case.model.transformer_blocks[0].attn.processor

    class Adapter:
        _attention_backend = _parallel_config = None

        def __call__(self, attn, hidden_states, encoder_hidden_states=None, mask=None, image_rotary_emb=None):
            out = inner(attn, hidden_states, encoder_hidden_states, image_rotary_emb=image_rotary_emb)
            q = hidden_states.unflatten(-1, (2, -1)).transpose(1, 2)
            extra = functional.scaled_dot_product_attention(q, q[:, :, :3], q[:, :, :3])
            return out[0] + extra.transpose(1, 2).flatten(2), out[1]

    case.model.transformer_blocks[0].attn.processor = Adapter()
    reference = case.run()
    with genkit.patch(case.model, Full()) as handle:
        torch.testing.assert_close(case.run(), reference, atol=2e-5, rtol=2e-5)
        assert sum(handle.report().declined.values()) == 1 and "image prompt" in next(iter(handle.report().declined))


def test_masks_that_methods_cannot_take(tiny_model):
    """LTX-2's self-attention strength between tokens is a soft bias per query: told, and left to the model."""
    case = tiny_model("ltx2")
    strength = torch.rand(2, 60, 60, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
    reference = case.run(video_self_attention_mask=strength)
    with genkit.patch(case.model, Full(), roles="self") as handle:
        assert torch.equal(case.run(video_self_attention_mask=strength), reference)
        assert list(handle.report().declined) == ["its attention mask is a soft bias, not a choice of keys"]


def test_stg_skips_attention():
    from diffusers import LTX2VideoTransformer3DModel

    case = tiny.build("ltx2")
    config = {key: value for key, value in case.model.config.items() if not key.startswith("_")}
    model = LTX2VideoTransformer3DModel(**config | {"perturbed_attn": True}).eval()
    case.model = model
    with genkit.patch(model, Full(), roles="self") as handle:
        case.run(spatio_temporal_guidance_blocks=[1])
        sites = handle.report().sites
    assert [(site.ran, site.skipped) for site in sites] == [(1, 0), (0, 1)]


def test_wrong_output_is_refused(tiny_model):
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Wrong(Full):
        name = "wrong"

        def attend(self, q, k, v, site, cache):
            return q[:, :-1]

    with genkit.patch(tiny_model("wan").model, Wrong()):
        with pytest.raises(UnsupportedError, match="wrong returned"):
            tiny_model("wan").run()


def test_with_offloading_hooks():
    """accelerate replaces a model's forward by one without a signature of its own."""
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    case = tiny.build("wan")
    reference = case.run()
    add_hook_to_module(case.model, ModelHook())
    with genkit.patch(case.model, Full()) as handle:
        args = case.args
        with torch.no_grad():
            out = case.model(args["hidden_states"], args["timestep"], args["encoder_hidden_states"], return_dict=False)
        torch.testing.assert_close(out[0].flatten(), reference, atol=2e-5, rtol=2e-5)
        assert handle.report().ran == case.calls
    remove_hook_from_module(case.model)


def test_with_diffusers_caching():
    """A cache that skips blocks: the calls that remain are counted, and cache contexts reach the cache too."""
    from diffusers import PyramidAttentionBroadcastConfig

    case = tiny.build("wan")
    timestep = [900]
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, spatial_attention_timestep_skip_range=(100, 950),
        spatial_attention_block_identifiers=("blocks",), current_timestep_callback=lambda: timestep[0],
    )  # fmt: skip
    case.model.enable_cache(config)
    with genkit.patch(case.model, Full(), roles="self") as handle:
        for t in (900, 800):
            timestep[0] = t
            with case.model.cache_context("cond"):
                case.run(timestep=torch.tensor([t, t]))
        report = handle.report()
        assert report.ran == 3 and report.forwards == 2 and "3 forwards of attention layers came without" in str(report)
        assert report.sites[0].branches == ("cond",) and report.sites[0].skipped == 1
    case.model.disable_cache()
