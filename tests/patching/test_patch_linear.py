"""Sparse + linear and linear attention on tiny models of the real classes: idle at first, trained, fitted, saved."""

from __future__ import annotations

import pytest
import tiny
import torch

import genkit
from genkit.attention.sparse_linear import ProjectionFit
from genkit.errors import ArtifactError, UsageError

SPARSE = genkit.BlockSelect(block=8, keep=2)
FORMS = [
    genkit.SparseLinear(sparse=SPARSE),
    genkit.SparseLinear(sparse=SPARSE, keys="all", form="rala", projection="head"),
    genkit.SparseLinear(sparse=genkit.Neighborhood(size=3), keys="past", form="state"),
    genkit.LinearAttention(form="lightning"),
    genkit.LinearAttention(form="rala"),
]
BRANCHES = FORMS[:3]


def noise(patch, scale=0.3):
    draw = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in patch.weights.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=draw))


def named(method):
    return method.describe()


@pytest.mark.parametrize("name", ["wan", "flux", "hunyuan_video_padded", "unet"])
@pytest.mark.parametrize("method", BRANCHES, ids=named)
def test_a_branch_starts_as_the_sparse_method_bit_for_bit_by_both_doors(tiny_model, name, method):
    case = tiny_model(name)
    reference, state = case.run(), set(case.model.state_dict())
    with genkit.patch(case.model, method.part):
        alone = case.run()
    with genkit.patch(case.model, method) as patch:
        assert torch.equal(case.run(), alone)
        assert "projection of the linear branch is zero" in str(patch.report())
        noise(patch)
        if method.keys != "past" or case.grid[0] > 1:
            assert not torch.allclose(case.run(), alone, atol=1e-4)
        assert set(case.model.state_dict()) == state
    if name == "wan":
        before = case.model.attn_processors
        case.model.set_attn_processor(genkit.attn_processors(case.model, method))
        assert torch.equal(case.run(), alone)
        case.model.set_attn_processor(before)
    assert torch.equal(case.run(), reference) and not torch.equal(alone, reference)


def test_weights_are_saved_serve_another_size_and_only_their_own_settings(tiny_model, tmp_path):
    case, method, path = tiny_model("wan"), FORMS[0], tmp_path / "branch.safetensors"
    width = case.model.config.attention_head_dim
    with genkit.patch(case.model, method) as patch:
        noise(patch)
        expected = case.run()
        larger = {"hidden_states": torch.randn(2, 4, 5, 12, 8, generator=torch.Generator().manual_seed(1))}
        other = case.run(**larger)
        patch.weights.save(path)
        assert patch.weights.count() == len(patch.sites) * (width * width + width)
    again = genkit.SparseLinear(sparse=method.sparse, weights=str(path))
    with genkit.patch(case.model, again) as patch:
        assert torch.equal(case.run(), expected) and torch.equal(case.run(**larger), other)
        assert "is zero" not in str(patch.report())
    with pytest.raises(ArtifactError, match="sparse_linear.keys was unselected in training, here it is all"):
        genkit.patch(case.model, genkit.SparseLinear(sparse=method.sparse, keys="all", weights=str(path)))
    with pytest.raises(UsageError, match="all 2 heads"):
        genkit.patch(case.model, method, schedule=genkit.Schedule(heads="0:1"))


@pytest.mark.parametrize("method", FORMS, ids=named)
def test_gradients_reach_every_weight_and_survive_checkpointing(method):
    case = tiny.build("wan")
    case.model.requires_grad_(False).train()
    with genkit.patch(case.model, method) as patch:
        noise(patch)
        found = []
        for recompute in (False, True):
            if recompute:
                case.model.enable_gradient_checkpointing()
            patch.weights.zero_grad(set_to_none=True)
            # A checkpointed block needs an input that asks for gradients.
            sample = case.args["hidden_states"].clone().requires_grad_()
            case.forward(hidden_states=sample).square().mean().backward()
            found.append([sample.grad, *(parameter.grad.clone() for parameter in patch.weights.parameters())])
    assert all(gradient.any() for gradient in found[0])
    for plain, recomputed in zip(*found, strict=True):
        torch.testing.assert_close(recomputed, plain, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("method", [FORMS[0], FORMS[3]], ids=named)
def test_runs_in_compiled_graphs_but_is_not_trained_there(method):
    torch._dynamo.reset()
    case = tiny.build("wan")
    case.model.blocks = case.model.blocks[:1]
    compiled = torch.compile(case.model, backend="eager", fullgraph=True)
    with genkit.patch(case.model, method) as patch:
        noise(patch)
        eager = case.run()
        with torch.no_grad():
            torch.testing.assert_close(compiled(**case.args)[0].flatten(), eager, atol=1e-6, rtol=1e-5)
        with pytest.raises(Exception, match="cannot be trained inside torch.compile"):
            compiled(**case.args)
    torch._dynamo.reset()


def test_a_form_without_weights_trains_in_compiled_graphs():
    torch._dynamo.reset()
    case = tiny.build("wan")
    case.model.blocks = case.model.blocks[:1]
    compiled = torch.compile(case.model, backend="eager", fullgraph=True)
    sample = case.args["hidden_states"].clone().requires_grad_()
    with genkit.patch(case.model, genkit.LinearAttention(form="elu")):
        eager = torch.autograd.grad(case.forward(hidden_states=sample).square().sum(), sample)[0]
        out = compiled(**{**case.args, "hidden_states": sample})[0]
        torch.testing.assert_close(torch.autograd.grad(out.square().sum(), sample)[0], eager, atol=1e-5, rtol=1e-4)
    torch._dynamo.reset()


@pytest.mark.parametrize("projection", ["shared", "head"])
def test_the_fit_leaves_the_model_dense_and_lessens_the_error_of_every_layer(tiny_model, tmp_path, projection):
    case = tiny_model("wan")
    reference = case.run()
    fit = ProjectionFit(genkit.SparseLinear(sparse=SPARSE, projection=projection))
    draw = torch.Generator().manual_seed(7)
    inputs = [{"hidden_states": torch.randn(case.args["hidden_states"].shape, generator=draw)} for _ in range(4)]
    with genkit.patch(case.model, fit) as patch:
        torch.testing.assert_close(case.run(), reference, atol=1e-5, rtol=1e-5)
        for given in inputs:
            patch.restart()
            case.run(**given)
    left = fit.solve()
    assert len(left) == 3 and all(0 < share <= 1 for share in left.values())
    file = fit.write(tmp_path / "branch.safetensors")
    method = genkit.SparseLinear(sparse=SPARSE, projection=projection, weights=str(file))
    errors = []
    for each in (SPARSE, method):
        with genkit.patch(case.model, each):
            errors.append((case.run() - reference).norm())
    assert errors[1] < errors[0] and min(left.values()) < 1
    assert torch.equal(case.run(), reference)


def test_a_replaced_softmax_is_told_of(tiny_model):
    case = tiny_model("wan")
    with genkit.patch(case.model, genkit.LinearAttention()) as patch:
        case.run()
        assert "was not trained through it makes noise" in str(patch.report())
