"""What the report says when attention calls do not come, and how patches are found without their handles."""

from __future__ import annotations

import pytest
import tiny
import torch
from gate_methods import Full, Scaled

import genkit
from genkit.errors import UsageError


def test_processors_that_were_replaced_are_told():
    """attn_processors, then fuse_qkv_projections: no call comes any more, and the report says why."""
    case = tiny.build("flux")
    case.model.set_attn_processor(genkit.attn_processors(case.model, Scaled()))
    own = dict(case.model.attn_processors)
    handle = own["transformer_blocks.0.attn.processor"].handle
    case.run()
    assert handle.report(clear=True).ran == case.calls and not handle.report().remarks
    case.model.set_attn_processor({name: processor._inner for name, processor in own.items()})
    case.run()
    report = handle.report()
    assert report.calls == 0 and report.forwards == 1
    (remark,) = report.remarks
    assert remark.startswith(f"all {case.calls} layers (transformer_blocks.0.attn, ...): its processor is FluxAttnProc")
    assert "genkit.attn_processors" in str(report) and all(site.remark for site in report.sites)
    case.model.set_attn_processor(own)
    case.run()
    assert handle.report().ran == case.calls and not handle.report().remarks
    genkit.unpatch(case.model)


def test_one_replaced_processor_is_told_for_its_layer():
    case = tiny.build("wan")
    case.model.set_attn_processor(genkit.attn_processors(case.model, Full(), roles="self"))
    processor = case.model.blocks[1].attn1.processor
    case.model.blocks[1].attn1.set_processor(processor._inner)
    case.run()
    report = processor.handle.report()
    assert [bool(site.remark) for site in report.sites] == [False, True, False] and report.ran == 2
    assert report.remarks[0].startswith("1 of 3 layers (blocks.1.attn1): its processor is WanAttnProcessor")
    genkit.unpatch(case.model)


def test_fused_projections_after_attn_processors():
    case = tiny.build("sd3")
    processors = genkit.attn_processors(case.model, Full(), roles="joint")
    handle = next(each.handle for each in processors.values() if hasattr(each, "handle"))
    case.model.set_attn_processor(processors)
    case.model.fuse_qkv_projections()
    assert handle.active and "layers (transformer_blocks.0.attn" in handle.report().remarks[0]
    case.model.unfuse_qkv_projections()
    genkit.unpatch(case.model)


def test_a_run_in_which_no_call_came_is_told_with_hooks_too(monkeypatch):
    """Another attention that neither backend nor source shows: the modules run, and nothing passes the gate."""
    case = tiny.build("wan")
    with genkit.patch(case.model, Full(), roles="self", total_steps=2) as handle:
        for t in (900, 500):
            case.run(timestep=torch.tensor([t, t]))
        assert not handle.report().remarks
        for block in case.model.blocks:
            block.attn1.processor = lambda attn, hidden_states, *rest, **more: hidden_states
        for t in (900, 500):
            case.run(timestep=torch.tensor([t, t]))
        report = handle.report()
    assert report.remarks == (
        "all 3 layers (blocks.0.attn1, ...): no attention call came in the latest 2 denoiser calls",
    )
    assert sum(site.skipped for site in report.sites) == 6


def test_a_skipped_pass_is_no_remark():
    """LTX-2 leaves attentions out where a pass isolates the modalities; calls came in the same run."""
    case = tiny.build("ltx2")
    with genkit.patch(case.model, Full()) as handle:
        case.run()
        case.run(isolate_modalities=True)
        assert not handle.report().remarks


# --- patches without handles ---------------------------------------------------------------------------------------


def _pipe():
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

    return WanPipeline(
        tokenizer=None, text_encoder=None, vae=None, scheduler=FlowMatchEulerDiscreteScheduler(),
        transformer=tiny.build("wan").model, transformer_2=tiny.build("wan", seed=1).model,
    )  # fmt: skip


def test_patches_are_found_and_taken_off_without_their_handles():
    pipe, case = _pipe(), tiny.build("wan")
    before = {name: set(module.__dict__) for name, module in pipe.transformer.named_modules()}
    with torch.no_grad():
        reference = pipe.transformer(**case.args)[0]
    assert genkit.patches(pipe) == () == genkit.unpatch(pipe)
    first = genkit.patch(pipe, Scaled(), roles="self")
    second = genkit.patch(pipe.transformer_2, Scaled(), roles="cross")
    assert genkit.patches(pipe) == (first, second)
    assert genkit.patches(pipe.transformer) == (first,) and set(genkit.patches(pipe.transformer_2)) == {first, second}
    with torch.no_grad():
        pipe.transformer(**case.args)
    assert genkit.unpatch(pipe) == (first, second) and not first.active and not second.active
    assert first.report().ran == 3, "a removed patch still tells what ran"
    assert genkit.patches(pipe) == ()
    with torch.no_grad():
        assert torch.equal(pipe.transformer(**case.args)[0], reference)
    for name, module in pipe.transformer.named_modules():
        assert set(module.__dict__) == before[name]
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_unpatching_one_model_takes_a_patch_of_several_off_all_of_them():
    pipe = _pipe()
    handle = genkit.patch(pipe, Full(), roles="self")
    assert genkit.unpatch(pipe.transformer_2) == (handle,)
    assert not pipe.transformer._forward_pre_hooks and not pipe.transformer_2._forward_pre_hooks


def test_processors_make_room_for_the_models_own():
    case = tiny.build("wan")
    own = {name: processor for name, processor in case.model.attn_processors.items()}
    reference = case.run()
    case.model.set_attn_processor(genkit.attn_processors(case.model, Scaled()))
    assert not torch.allclose(case.run(), reference)
    assert len(genkit.unpatch(case.model)) == 1
    assert case.model.attn_processors == own and torch.equal(case.run(), reference)


def test_only_pipelines_and_models_have_patches():
    assert genkit.patches(torch.nn.Linear(2, 2)) == ()
    for ask in (genkit.patches, genkit.unpatch):
        with pytest.raises(UsageError, match="pipeline or denoiser"):
            ask("wan")
