"""Layer router on models of the real classes: dense at the start, compiled, beside adapters, in a file and back."""

from __future__ import annotations

import pytest
import tiny
import torch
from safetensors import safe_open

import genkit
from genkit.attention.layer_router import LayerRouter
from genkit.attention.registry import trained
from genkit.errors import ArtifactError, UsageError
from genkit.pipelines.recipe_file import write_parts

SPARSE = "block_select block=8 keep=2"
FRESH = LayerRouter(sparse=SPARSE, untrained=True)
#: Grid alone, text beside the grid in two ways, a UNet, noise levels of other names.
NAMES = ["wan", "flux", "hunyuan_video", "sd3", "unet"]


def scatter(patch, seed=0, full=0.0, spread=0.7):
    """Networks that decide by what they see; ``full`` is added to the logit of full attention."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in patch.weights.named_weights().items():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * spread)
            if name.endswith("biases.4"):
                parameter.copy_(torch.tensor([0.0, full]))


def decided(patch):
    """Layer -> its latest decision by rows."""
    return {
        name: patch.cache.held(("layer_router", FRESH, layer.name, "decided"))[1]
        for name, layer in patch.layers.items()
    }  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_fresh_router_is_the_model_bit_for_bit_by_both_doors(name):
    case = tiny.build(name)
    reference = case.run()
    with genkit.patch(case.model, FRESH) as patch:
        assert torch.equal(case.run(), reference)
        report = patch.report()
        assert report.ran == 0 and report.outside == report.calls > 0 and not report.declined
        assert any("layer_router: full attention in" in line and "100%" in line for line in report.remarks)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in case.model.modules())
    if name != "unet":
        own = dict(case.model.attn_processors)
        case.model.set_attn_processor(genkit.attn_processors(case.model, FRESH))
        assert torch.equal(case.run(), reference)
        case.model.set_attn_processor(own)


@pytest.mark.parametrize("name", NAMES)
def test_sparse_everywhere_is_the_sparse_method(name):
    case = tiny.build(name)
    part = FRESH.part
    with genkit.patch(case.model, part) as patch:
        expected, others = case.run(), patch.report()
    with genkit.patch(case.model, FRESH) as patch:
        scatter(patch, full=-1e4)
        torch.testing.assert_close(case.run(), expected)
        report = patch.report()
    assert (report.ran, report.density.executed) == (others.ran, pytest.approx(others.density.executed))
    assert report.work == pytest.approx(others.work)


def test_layers_and_rows_decide_apart_and_the_report_counts_them():
    case = tiny.build("wan")
    with genkit.patch(case.model, FRESH) as patch:
        for seed in range(30):
            scatter(patch, seed)
            patch.restart()
            out = case.run()
            found = [full for rows in decided(patch).values() for full in rows]
            if 0 < sum(found) < len(found) and any(len(set(rows)) == 2 for rows in decided(patch).values()):
                break
        else:
            raise AssertionError("no seed whose rows differ")
        patch.restart()
        assert torch.equal(case.run(), out)
        report = patch.report(clear=True)
        (line,) = [line for line in report.remarks if "layer_router" in line]
        total, full = sum(len(rows) for rows in decided(patch).values()), sum(found)
        assert full != total and f"of {total * (seed + 2)} decisions" in line
        assert line.count("%") == len(decided(patch))
        assert all(site.ran + site.outside == site.calls for site in report.sites)


def test_noise_levels_reach_the_networks():
    for name in ("wan", "flux", "unet"):
        case = tiny.build(name)
        with genkit.patch(case.model, FRESH) as patch:
            case.run()
            held = patch.cache.held(("layer_router", "level"))
            assert patch.cache.held(("layer_router", "timestep")) == "timestep" and held is case.args["timestep"]


@pytest.mark.parametrize("name", ["wan", "hunyuan_video", "sd3"])
def test_compiled_it_gives_the_same(name):
    """Queries are read between graphs; what they are is that of the call and not of the trace."""
    case = tiny.build(name)
    with genkit.patch(case.model, FRESH) as patch:
        scatter(patch, 3)
        other = {"hidden_states": case.args["hidden_states"].flip(0) * 3}
        expected = []
        for changes in ({}, other):
            patch.restart()
            expected.append((case.run(**changes), decided(patch)))
        torch._dynamo.reset()
        plain, case.model = case.model, torch.compile(case.model, backend="eager")
        for _ in range(2):
            for changes, (out, rows) in zip(({}, other), expected, strict=True):
                patch.restart()
                torch.testing.assert_close(case.run(**changes), out, atol=2e-5, rtol=2e-5)
                assert decided(patch) == rows
        case.model = plain
    torch._dynamo.reset()


def test_means_are_those_of_the_projection_with_its_adapters():
    """A LoRA that comes after the patch changes the queries, and those are what the network reads."""
    from peft import LoraConfig

    case = tiny.build("wan")
    name = "blocks.1.attn1"
    module = case.model.get_submodule(name)
    with genkit.patch(case.model, FRESH) as patch:
        case.run()
        before = patch.cache.held(("layer_router", name)).clone()
        case.model.add_adapter(LoraConfig(r=2, target_modules=["blocks.1.attn1.to_q"], init_lora_weights=False))
        seen = []
        hook = module.to_q.register_forward_hook(lambda _, args, out: seen.append(out.mean(1)))
        case.run()
        after = patch.cache.held(("layer_router", name))
        assert torch.equal(after, seen[0]) and not torch.allclose(after, before)
        hook.remove()
        case.model.delete_adapters("default")
        case.run()
        again = patch.cache.held(("layer_router", name))
        torch.testing.assert_close(again, before)
    assert not any(each._forward_hooks for each in case.model.modules())


def test_fused_projections_are_told():
    case = tiny.build("sd3")
    reference = case.run()
    with genkit.patch(case.model, FRESH, roles="joint") as patch:
        scatter(patch, full=-1e4)
        case.model.fuse_qkv_projections()
        torch.testing.assert_close(case.run(), reference, atol=1e-5, rtol=1e-5)
        (reason,) = patch.report().declined
        assert "fused" in reason
        case.model.unfuse_qkv_projections()


@pytest.mark.parametrize("checkpointed", [False, True])
def test_gradients_reach_the_networks_alone_and_are_the_same_recomputed(checkpointed):
    case = tiny.build("wan")
    case.model.requires_grad_(False)
    found = []
    for again in (False, checkpointed):
        if again:
            case.model.enable_gradient_checkpointing()
        case.model.train(again)
        with genkit.patch(case.model, FRESH) as patch:
            scatter(patch, 3, spread=0.2)
            draws = LayerRouter.draws(patch.cache)
            draws.draw([layer.name for layer in patch.layers.values()], 2, torch.Generator().manual_seed(1))
            out = case.forward()
            share = torch.stack(list(draws.decided.values())).mean()
            (out.square().sum() + 3 * share).backward()
            assert all(parameter.grad is not None for parameter in patch.weights.parameters())
            found.append([parameter.grad.clone() for parameter in patch.weights.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    assert any(each.any() for each in found[0])
    assert not any(parameter.grad is not None for parameter in case.model.parameters())


def test_frozen_networks_run_one_branch_also_where_gradients_are_wanted():
    """A LoRA trained through a router that is not trained: hard decisions, gradients through what was chosen."""
    case = tiny.build("wan")
    with genkit.patch(case.model, FRESH.part):
        expected = case.forward()
        wanted = torch.autograd.grad(expected.square().sum(), case.model.blocks[0].attn1.to_q.weight)[0]
    with genkit.patch(case.model, FRESH) as patch:
        scatter(patch, full=-1e4)
        patch.weights.requires_grad_(False)
        out = case.forward()
        torch.testing.assert_close(out, expected)
        found = torch.autograd.grad(out.square().sum(), case.model.blocks[0].attn1.to_q.weight)[0]
    torch.testing.assert_close(found, wanted)


def test_a_pipeline_takes_weights_back_and_both_halves_agree(tmp_path):
    pipe = genkit.load("toy-video")
    call = {"height": 64, "width": 64, "num_frames": 9, "num_inference_steps": 3, "output_type": "np"}

    def clip():
        return pipe("a red circle moves right", generator=torch.Generator().manual_seed(2), **call).frames

    with pytest.raises(UsageError, match=r"must be trained.*weights=FILE.*untrained=true"):
        genkit.patch(pipe, LayerRouter())
    plain = clip()
    branches = {}
    with genkit.patch(pipe, FRESH) as patch:
        assert (clip() == plain).all()
        for seed in range(20):
            scatter(patch, seed)
            first = clip()
            if not (first == plain).all():
                break
        report = patch.report()
        for site in report.sites:
            if site.ran:
                branches[site.name] = site.branches
        assert branches and all(set(each) == {"cond", "uncond"} for each in branches.values())
        assert all(site.ran % 2 == 0 for site in report.sites)  # the halves of a step go the same way
        file = patch.weights.save(tmp_path / "router.safetensors")
    method = trained("layer_router", file)
    assert method == LayerRouter(sparse=SPARSE, weights=str(file))
    for _ in range(2):
        with genkit.patch(pipe, method):
            assert (clip() == first).all()
    path = write_parts(
        tmp_path / "routed.yaml", [(method, {"steps": "1:"})], type(pipe.transformer).__name__,
        pipe.transformer.config, "a router in a recipe", {},
    )  # fmt: skip
    with genkit.patch(pipe, genkit.recipe(str(path))) as patch:  # beside a schedule, which comes first
        clip()
        assert all(0 not in site.steps and site.outside >= 2 for site in patch.report().sites)
        assert sum(site.ran for site in patch.report().sites) > 0
    with pytest.raises(ArtifactError, match="layer_router.sparse was block_select block=8 keep=2 in training"):
        genkit.patch(pipe, LayerRouter(sparse="neighborhood size=3", weights=str(file)))
    with safe_open(file, "pt") as held:
        assert all(name.startswith("layer_router/") for name in held.keys())


def test_heads_of_a_layer_decide_together():
    case = tiny.build("wan")
    with pytest.raises(UsageError, match="needs all 2 heads"):
        genkit.patch(case.model, FRESH, schedule=genkit.Schedule(heads="0"), roles="self")
