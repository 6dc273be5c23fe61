"""Trained agent attention on tiny models of the real classes: starts as the free form, learns, is saved, is removed."""

from __future__ import annotations

import pytest
import tiny
import torch

import genkit
from genkit.errors import ArtifactError, UsageError

CELL = (1, 2, 2)
TRAINED = genkit.Agent(form="trained", cell=CELL, lattice=(3, 3, 3), lines=(3, 6, 6))


def _noise(patch, scale=0.5):
    draw = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in patch.weights.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=draw))


@pytest.mark.parametrize("name", ["unet", "wan", "flux", "hunyuan_video_padded"])
def test_starts_as_the_training_free_form(tiny_model, name):
    case = tiny_model(name)
    reference, state = case.run(), set(case.model.state_dict())
    with genkit.patch(case.model, genkit.Agent(cell=CELL)):
        free = case.run()
    with genkit.patch(case.model, TRAINED) as patch:
        torch.testing.assert_close(case.run(), free, atol=2e-5, rtol=2e-5)
        assert patch.report().ran and patch.weights.count() > 0
        _noise(patch)
        assert not torch.allclose(case.run(), free, atol=1e-3)
        assert set(case.model.state_dict()) == state
    assert not torch.allclose(free, reference, atol=1e-3)
    assert torch.equal(case.run(), reference)


@pytest.mark.parametrize(("name", "seen", "unseen"), [("wan", 0.4, 0.9), ("unet", 0.2, 0.5)])
def test_learns_dense_attention(name, seen, unseen):
    """Distilled from the model's own attention: after 40 steps the squared error against it is at most these shares of
    the training-free form's, on the four inputs it saw and on two others (noise, of which positions tell little);
    nothing but the patch's weights moves."""
    case = tiny.build(name)
    case.model.requires_grad_(False)
    before = {key: value.clone() for key, value in case.model.state_dict().items()}
    sample = "sample" if "sample" in case.args else "hidden_states"
    draw = torch.Generator().manual_seed(7)
    inputs = [{sample: torch.randn(case.args[sample].shape, generator=draw)} for _ in range(6)]
    dense = [case.run(**given) for given in inputs]
    with genkit.patch(case.model, TRAINED) as patch:

        def error(place):
            return (case.forward(**inputs[place]) - dense[place]).square().mean()

        def errors():
            with torch.no_grad():
                each = [float(error(place)) for place in range(6)]
            return sum(each[:4]), sum(each[4:])

        start = errors()
        optimiser = torch.optim.Adam(patch.weights.parameters(), lr=0.01)
        for step in range(40):
            loss = error(step % 4)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        end = errors()
    assert end[0] < seen * start[0] and end[1] < unseen * start[1]
    assert all(torch.equal(value, before[key]) for key, value in case.model.state_dict().items())


def test_weights_are_saved_and_serve_another_size(tiny_model, tmp_path):
    case = tiny_model("wan")
    path = tmp_path / "agent.safetensors"
    with genkit.patch(case.model, TRAINED, schedule=genkit.Schedule(layers="1:")) as patch:
        _noise(patch)
        expected = case.run()
        larger = {"hidden_states": torch.randn(2, 4, 5, 12, 8, generator=torch.Generator().manual_seed(1))}
        other = case.run(**larger)
        assert patch.weights.save(path) == path
        names = {key.split("/")[0] for key in patch.weights.named_weights()}
        assert names == {"agent"} and patch.weights.count() == 2 * (2 * 2 * 27 * (9 + 15) + 24 * 27)
    again = genkit.Agent(form="trained", cell=CELL, lattice=(3, 3, 3), lines=(3, 6, 6), weights=str(path))
    with genkit.patch(case.model, again, schedule=genkit.Schedule(layers="1:")):
        assert torch.equal(case.run(), expected) and torch.equal(case.run(**larger), other)
    with pytest.raises(ArtifactError, match="lacks"):
        genkit.patch(case.model, again)
    wrong = genkit.Agent(form="trained", cell=CELL, lattice=(1, 3, 3), lines=(3, 6, 6), weights=str(path))
    with pytest.raises(ArtifactError, match="in the file"):
        genkit.patch(case.model, wrong, schedule=genkit.Schedule(layers="1:"))
    with pytest.raises(UsageError, match="all 2 heads"):
        genkit.patch(case.model, TRAINED, schedule=genkit.Schedule(heads="0:1"))


def test_gradients_survive_activation_checkpointing():
    case = tiny.build("wan")
    case.model.requires_grad_(False).train()
    with genkit.patch(case.model, TRAINED) as patch:
        _noise(patch)
        found = []
        for recompute in (False, True):
            if recompute:
                case.model.enable_gradient_checkpointing()
            patch.weights.zero_grad(set_to_none=True)
            # A checkpointed block needs an input that asks for gradients.
            sample = case.args["hidden_states"].clone().requires_grad_()
            case.forward(hidden_states=sample).square().mean().backward()
            found.append([parameter.grad.clone() for parameter in patch.weights.parameters()])
    assert all(gradient.any() for gradient in found[0])
    for plain, recomputed in zip(*found, strict=True):
        torch.testing.assert_close(recomputed, plain, atol=1e-6, rtol=1e-4)


def test_runs_in_compiled_graphs_but_is_not_trained_there():
    torch._dynamo.reset()
    case = tiny.build("wan")
    case.model.blocks = case.model.blocks[:1]
    compiled = torch.compile(case.model, backend="eager", fullgraph=True)
    with genkit.patch(case.model, TRAINED) as patch:
        _noise(patch)
        eager = case.run()
        with torch.no_grad():
            torch.testing.assert_close(compiled(**case.args)[0].flatten(), eager, atol=1e-6, rtol=1e-5)
        with pytest.raises(Exception, match="cannot be trained inside torch.compile"):
            compiled(**case.args)
    torch._dynamo.reset()


def test_shares_no_layer_with_another_method_and_stacks_on_other_roles(tiny_model):
    case = tiny_model("ltx2")
    with genkit.patch(case.model, [TRAINED, genkit.CrossModalContext(tokens=2)]) as patch:
        case.run()
        ran = {site.role: site.method.split("(")[0] for site in patch.report().sites}
        assert ran.pop("self") == "agent" and sorted(ran) == ["audio_to_video", "video_to_audio"]
        assert set(ran.values()) == {"cross_modal_context"}
        methods = {key.split("/")[0] for key in patch.weights.named_weights()}
        assert methods == {"agent", "cross_modal_context"}
    with pytest.raises(UsageError, match="already has"):
        genkit.patch(case.model, [TRAINED, genkit.Neighborhood(size=3)])


@pytest.mark.parametrize(("side", "settings", "merged"), [
    (16, {}, {(1, 16, 16)}),
    (32, {}, {(1, 32, 32)}),
    (32, {"max_downsample": 2}, {(1, 32, 32), (1, 16, 16)}),
])  # fmt: skip
def test_merging_takes_the_full_resolution_of_a_unet_at_any_size(side, settings, merged):
    """On the real class with attention at three levels; the published code merges the first of them only."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=side, block_out_channels=(8, 8, 8), layers_per_block=1, cross_attention_dim=8, norm_num_groups=4,
        attention_head_dim=4, down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
    ).eval()  # fmt: skip
    with genkit.patch(unet, genkit.Agent(agents="merge", **settings)) as patch, torch.no_grad():
        unet(torch.randn(1, 4, side, side), 1, torch.randn(1, 3, 8))
        described = {row.name: row.grid for row in patch.describe().rows}
        report = patch.report()
    assert {described[site.name] for site in report.sites if site.ran} == merged
    assert len({described[site.name] for site in report.sites}) > len(merged)
