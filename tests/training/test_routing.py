"""Heads and layers that keep full attention: gates against the worked example, choices, recipes that load."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import genkit
from genkit.attention.cache import PatchCache
from genkit.attention.site import Place, Site
from genkit.attention.static import dense_attention
from genkit.attention.straight_through import Draws
from genkit.attention.weights import PatchWeights
from genkit.errors import UsageError
from genkit.layout import TokenLayout
from genkit.training.data.world.clips import ClipSize, LatentPool
from genkit.training.engine.curriculum import Stage
from genkit.training.routing.gates import GatedHeads, GatedLayers
from genkit.training.routing.layers import calibration, errors_of, layer_errors
from genkit.training.routing.table import (
    dense_layers,
    full_heads,
    head_parts,
    spread_layers,
    uniform_heads,
    write_recipe,
)  # fmt: skip
from genkit.training.tasks.heads import HeadsTask
from genkit.training.tasks.layers import LayersTask, temperature
from genkit.training.toys.video.model import sizes

SIZE = ClipSize(5, 96, 96)
WINDOW = genkit.Neighborhood(size=(1, 3, 3))


@pytest.fixture
def pipeline(tiny_wan):
    pipeline = genkit.load(str(tiny_wan), "float32", "cpu")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_a_gate_mixes_full_and_sparse_and_its_gradient_is_exact():
    layout = TokenLayout.of_grid(2, 4, 4, text=3)
    site, cache, module = Site.of_layout(layout, heads=3), PatchCache(), torch.nn.Linear(2, 2).double()
    method = GatedHeads(WINDOW)
    method.install(Place(site.name, "joint", 0, 1, 3, module), cache)
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, layout.length, 3, 4, generator=draw, dtype=torch.float64) for _ in range(3))
    full, sparse = dense_attention(q, k, v, None, None), WINDOW.attend(q, k, v, site, PatchCache())
    assert torch.equal(method.attend(q, k, v, site, cache), full)  # gates of 1
    gate = PatchWeights.of(cache).at("gated_heads", site.name).gate
    with torch.no_grad():
        gate.copy_(torch.tensor([0.0, 0.8, 1.0]))
    out = method.attend(q, k, v, site, cache)
    assert torch.equal(out[:, :, 0], sparse[:, :, 0]) and torch.equal(out[:, :, 2], full[:, :, 2])
    torch.testing.assert_close(out[:, :, 1], 0.8 * full[:, :, 1] + 0.2 * sparse[:, :, 1])
    push = torch.randn(out.shape, generator=draw, dtype=torch.float64)
    (found,) = torch.autograd.grad((out * push).sum(), gate)
    torch.testing.assert_close(found, (push * (full - sparse)).sum((0, 1, 3)))


def test_the_optimum_of_one_gate_is_the_worked_example():
    """Differences D of .25, .05, .025 at a penalty of .05 give gates .9, .5 and 0."""
    for difference, wanted in ((0.25, 0.9), (0.05, 0.5), (0.025, 0.0)):
        gate = torch.ones((), dtype=torch.float64, requires_grad=True)
        for _ in range(4000):
            loss = (1 - gate) ** 2 * difference + 0.05 * gate.abs()
            (slope,) = torch.autograd.grad(loss, gate)
            with torch.no_grad():
                gate -= 0.05 * slope
                gate.clamp_(0, 1)
        assert gate.item() == pytest.approx(wanted, abs=2e-3)


def test_heads_of_the_worked_example():
    gates = {0: (0.9, 0.1, 0.6, 0.05), 1: (0.3, 0.02, 0.75, 0.4)}
    assert full_heads(gates, 0.5) == {0: (0, 2), 1: (2, 3)}
    assert full_heads(gates, 0.75) == {0: (0,), 1: (2,)}
    assert full_heads(gates, 0) == {0: (0, 1, 2, 3), 1: (0, 1, 2, 3)} and full_heads(gates, 1) == {0: (), 1: ()}
    assert uniform_heads(gates, 0.5) == {0: (0, 1), 1: (0, 1)}
    assert head_parts(full_heads(gates, 0.5), 4) == [
        {"layers": "0", "heads": "1,3"}, {"layers": "1", "heads": "0,1"}
    ]  # fmt: skip
    assert head_parts({0: (0,), 1: (0, 1), 2: (0,), 3: ()}, 2) == [
        {"layers": "0,2", "heads": "1"}, {"layers": "3"}
    ]  # fmt: skip
    for share in (-0.1, 1.1, True, float("nan")):
        with pytest.raises(UsageError, match="sparsity"):
            full_heads(gates, share)


def test_layers_are_chosen_by_error_or_spread():
    assert dense_layers([0.1, 0.5, 0.5, 0.2], 2) == (1, 2) and dense_layers([0.1, 0.5, 0.5, 0.2], 1) == (1,)
    assert (
        spread_layers(12, 2) == (0, 6)
        and spread_layers(24, 4) == (0, 6, 12, 18)
        and spread_layers(5, 5) == (*range(5),)
    )
    for count in (-1, 5, True, 1.0):
        with pytest.raises(UsageError, match="dense layers"):
            dense_layers([0.0] * 4, count)
    for count in (-1, 13):
        with pytest.raises(UsageError, match="dense layers"):
            spread_layers(12, count)


def test_gates_learn_and_become_a_recipe(pipeline, tmp_path):
    task = HeadsTask(
        pipeline, LatentPool(pipeline.vae, np.random.default_rng(0)), WINDOW, sparsity=0.5, penalty=0.01,
        stages=(Stage(0.0, sizes((5, 96, 96, 1.0))),),
    )  # fmt: skip
    batch = task.draw(SIZE, 2, np.random.default_rng(1))
    optimizer = torch.optim.Adam(task.parameters(), lr=0.1)
    losses = []
    for _ in range(12):
        loss = task(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(0.01, abs=1e-6) and losses[-1] < losses[0]  # open gates repeat the dense model
    task.save(tmp_path / "heads.safetensors")
    gates = task.gates()
    task.patch.remove()
    found = genkit.recipe(str(tmp_path / "heads.yaml"))
    heads = pipeline.transformer.config.num_attention_heads
    total = heads * len(gates)
    sparse = 0
    with genkit.patch(pipeline, found) as patch:
        task.predict(batch)
        for part in found.parts:
            chosen = part.schedule.heads
            sparse += len(part.schedule.layers) * (heads if chosen is None else len(chosen))
        assert patch.report().ran == len({site for site in patch.sites})
    assert sparse == total - round(0.5 * total)
    assert all(part.method == WINDOW for part in found.parts)


def test_layers_are_open_or_closed_for_every_sample_with_the_gradient_of_the_soft_decision():
    layout = TokenLayout.of_grid(2, 4, 4)
    site, cache, module = Site.of_layout(layout, heads=3), PatchCache(), torch.nn.Linear(2, 2).double()
    draws = Draws(temperature=1.3)
    method = GatedLayers(WINDOW, draws)
    method.install(Place(site.name, "self", 5, 9, 3, module), cache)
    own = PatchWeights.of(cache).at("gated_layers", site.name)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, layout.length, 3, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    full, sparse = dense_attention(q, k, v, None, None), WINDOW.attend(q, k, v, site, PatchCache())
    assert torch.equal(method.attend(q, k, v, site, cache), full)  # it begins open
    with torch.no_grad():
        own.logit.fill_(-0.1)
    assert torch.equal(method.attend(q, k, v, site, cache), sparse)
    draws.noise = {5: torch.tensor([0.3, -0.2, 2.0]), 4: torch.zeros(3)}
    out = method.attend(q, k, v, site, cache)
    assert torch.equal(out[0], full[0]) and torch.equal(out[1], sparse[1]) and torch.equal(out[2], full[2])
    push = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    (found,) = torch.autograd.grad((out * push).sum(), own.logit)
    soft = ((own.logit.detach() + draws.noise[5].double()) / 1.3).sigmoid()
    right = ((push * (full - sparse)).sum((1, 2, 3)) * soft * (1 - soft) / 1.3).sum()
    torch.testing.assert_close(found, right)
    draws.draw([5], 2000, torch.Generator().manual_seed(1))
    first = draws.noise[5]
    share = float(method.decided(own, 2000).detach().mean())
    assert share == pytest.approx(1 / (1 + np.exp(0.1)), abs=0.04)  # Gumbel noise: open as often as the sigmoid says
    draws.draw([5], 2000, torch.Generator().manual_seed(1))
    assert torch.equal(first, draws.noise[5])
    assert [temperature(at) for at in (0.0, 0.3, 0.6, 1.0)] == pytest.approx([1.5, 1.25, 1.0, 1.0])


def test_layers_close_until_the_share_is_reached_and_become_a_recipe(pipeline, tmp_path):
    def made(seed):
        pool = LatentPool(pipeline.vae, np.random.default_rng(0))
        task = LayersTask(pipeline, pool, WINDOW, 0.5, stages=(Stage(0.0, sizes((5, 96, 96, 1.0))),))
        task.seed = seed
        return task

    task = made(3)
    batch = task.draw(SIZE, 2, np.random.default_rng(1))
    with torch.no_grad():
        assert float(task(batch)) == pytest.approx(0.5 + 0.25, abs=1e-6)  # all open: the dense model, half too few
    assert float(task(batch).detach()) == float(task(batch).detach())  # the seed decides what is drawn
    (slope,) = torch.autograd.grad(task(batch), task.push)
    task.seed = 3
    closed = 1 - torch.stack([task.gated.decided(each, 2) for each in task.weights.layers.values()]).detach().mean()
    off = closed - 0.5
    torch.testing.assert_close(slope, -torch.stack([off.abs(), off.square()]).to(slope))
    optimizer = torch.optim.Adam(task.parameters(), lr=0.5)
    for number in range(40):
        task.seed = number
        loss = task(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    logits = task.logits()
    assert min(logits.values()) < 2.0 and task.probe()["logit"] < 4.5
    task.save(tmp_path / "layers.safetensors")
    task.patch.remove()
    full = task.full()
    assert len(full) == len(logits) - round(0.5 * len(logits))
    assert min(logits[layer] for layer in full) >= max(logits[layer] for layer in logits if layer not in full)
    found = genkit.recipe(str(tmp_path / "layers.yaml"))
    with genkit.patch(pipeline, found) as patch:
        task.predict(batch)
        assert {layer.layer for layer in patch.layers.values()} == set(logits) - set(full)
    for share in (0, 1.1, True, float("nan")):
        with pytest.raises(UsageError, match="--sparsity"):
            LayersTask(pipeline, task.pool, WINDOW, share)


def test_gates_refuse_what_cannot_be_their_sparse_branch(pipeline):
    for method in (genkit.Neighborhood(bias="table:t=1"), genkit.Agent(form="trained"), genkit.Reference()):
        with pytest.raises(UsageError, match="sparse branch"):
            GatedHeads(method)
    pool = LatentPool(pipeline.vae, np.random.default_rng(0))
    with pytest.raises(UsageError, match="penalty"):
        HeadsTask(pipeline, pool, WINDOW, penalty=-1.0)
    with pytest.raises(UsageError, match="sparsity"):
        HeadsTask(pipeline, pool, WINDOW, sparsity=2.0)


def test_layers_are_measured_one_by_one_and_become_a_recipe(pipeline, tmp_path):
    from genkit.training.tasks.denoiser import Denoiser

    denoiser = Denoiser(pipeline)
    batches = calibration(pipeline, SIZE, 2, seed=3)
    errors = layer_errors(denoiser, WINDOW, batches)
    layers = pipeline.transformer.config.num_layers
    assert len(errors) == layers and all(error > 0 for error in errors)
    assert errors_of(denoiser, [], batches) == [0.0, 0.0]
    alone = genkit.Part(WINDOW, genkit.Schedule(layers=layers - 1))
    assert errors[-1] == pytest.approx(np.mean(errors_of(denoiser, [alone], batches)))
    again = layer_errors(denoiser, WINDOW, calibration(pipeline, SIZE, 2, seed=3))
    assert errors == again
    rest = [layer for layer in range(layers) if layer not in dense_layers(errors, 1)]
    path = write_recipe(
        tmp_path / "layers.yaml", WINDOW, [{"layers": ",".join(map(str, rest))}], pipeline.transformer, "some", {}
    )
    with genkit.patch(pipeline, genkit.recipe(str(path))) as patch:
        assert len(patch.sites) == layers - 1
    with pytest.raises(UsageError, match="nothing|sparse"):
        write_recipe(tmp_path / "none.yaml", WINDOW, [], pipeline.transformer, "none", {})
    assert not (tmp_path / "none.yaml").exists()
