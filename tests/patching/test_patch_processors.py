"""The processors' door: the same results as `genkit.patch`, standard Diffusers manners, undone by setting others."""

from __future__ import annotations

import gc

import pytest
import tiny
import torch
from gate_methods import Failing, Full, Scaled

import genkit
from genkit.errors import UnsupportedError, UsageError
from genkit.patching import interception

NAMES = ["wan", "wan_i2v", "flux", "sd35", "hunyuan_video_padded", "cogvideox", "ltx", "ltx2", "qwen_image", "unet"]


@pytest.mark.parametrize("name", NAMES)
def test_equal_to_patch_and_undone(name):
    case = tiny.build(name)
    reference, schedule = case.run(), genkit.Schedule(layers="1:", heads="1:")
    with genkit.patch(case.model, Scaled(), schedule=schedule) as handle:
        expected, ran = case.run(), handle.report().ran
    own = case.model.attn_processors
    case.model.set_attn_processor(genkit.attn_processors(case.model, Scaled(), schedule))
    assert torch.equal(case.run(), expected) and not torch.equal(expected, reference)
    wrapped = [p for p in case.model.attn_processors.values() if hasattr(p, "handle")]
    assert wrapped[0].handle.report().ran == ran and "scaled" in str(wrapped[0].handle.describe())
    del wrapped
    case.model.set_attn_processor(dict(own))
    gc.collect()
    assert not interception.INTERCEPTION.installed and torch.equal(case.run(), reference)
    assert all(a is b for a, b in zip(own.values(), case.model.attn_processors.values(), strict=True))
    assert not case.model._forward_pre_hooks and "cache_context" not in case.model.__dict__


HAVE = [name for name in tiny.names() if hasattr(tiny.build(name).model, "set_attn_processor")]


@pytest.mark.parametrize("name", HAVE)
def test_a_real_method_gives_the_same_through_both_doors(name):
    """Windows on some layers, on every variant whose model takes processors; nothing differs in a single bit."""
    case = tiny.build(name)
    reference, method, schedule = case.run(), genkit.Neighborhood(size=3), genkit.Schedule(layers="1:")
    with genkit.patch(case.model, method, schedule=schedule, backend="reference") as handle:
        expected, calls = case.run(), handle.report().ran
    own = case.model.attn_processors
    case.model.set_attn_processor(genkit.attn_processors(case.model, method, schedule, backend="reference"))
    assert torch.equal(case.run(), expected) and not torch.equal(expected, reference)
    wrapped = [processor for processor in case.model.attn_processors.values() if hasattr(processor, "handle")]
    assert calls == wrapped[0].handle.report().ran > 0
    del wrapped
    case.model.set_attn_processor(dict(own))
    gc.collect()
    assert not interception.INTERCEPTION.installed and torch.equal(case.run(), reference)


def test_manners():
    """Settings Diffusers makes on a processor reach the wrapped one; exceptions leave nothing behind."""
    from diffusers.models.attention_dispatch import AttentionBackendName

    case = tiny.build("wan")
    own = case.model.attn_processors
    case.model.set_attn_processor(genkit.attn_processors(case.model, Full(), roles="self"))
    expected = case.run()
    for module in case.model.modules():
        if hasattr(module, "set_attention_backend") and hasattr(module, "processor"):
            module.set_attention_backend("_native_math")
    assert own["blocks.0.attn1.processor"]._attention_backend == AttentionBackendName._NATIVE_MATH
    torch.testing.assert_close(case.run(), expected, atol=2e-5, rtol=2e-5)
    case.model.set_attn_processor(dict(own))
    case.model.set_attn_processor(genkit.attn_processors(case.model, Failing()))
    with pytest.raises(ValueError, match="on purpose"):
        case.run()
    assert interception.depth() == 0
    case.model.set_attn_processor(dict(own))


def test_arguments_reach_the_wrapped_processor():
    """Diffusers passes on only arguments that the processor's signature names."""
    import inspect

    case = tiny.build("ltx2")
    own = case.model.attn_processors
    processors = genkit.attn_processors(case.model, Full())
    for name, processor in processors.items():
        expected = list(inspect.signature(own[name].__call__).parameters)
        assert list(inspect.signature(processor.__call__).parameters) == expected
    del processors, processor


def test_refusals():
    with pytest.raises(UnsupportedError, match=r"MochiTransformer3DModel has no attention processors.*genkit\.patch"):
        genkit.attn_processors(tiny.build("mochi").model, Full())
    case = tiny.build("wan")
    own = case.model.attn_processors
    case.model.set_attn_processor(genkit.attn_processors(case.model, Full()))
    with pytest.raises(UsageError, match="already has full"):
        genkit.attn_processors(case.model, Full())
    with pytest.raises(UsageError, match="already has full"):
        genkit.patch(case.model, Full())
    with pytest.raises(UsageError, match="other door"):
        genkit.patch(case.model, Full(), schedule=genkit.Schedule(steps=[]))
    case.model.set_attn_processor(own)
    with genkit.patch(case.model, Full()):
        with pytest.raises(UsageError, match="already has full"):
            genkit.attn_processors(case.model, Full())

    class Trained(torch.nn.Module):
        def __call__(self, attn, hidden_states):
            return hidden_states

    unet = tiny.build("unet").model
    unet.set_attn_processor({name: Trained() for name in unet.attn_processors})
    with pytest.raises(UnsupportedError, match="processor with weights"):
        genkit.attn_processors(unet, Full())
