"""Learning which keys to read: the mass to learn from pair by pair, its loss, and a tiny model that learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import genkit
from genkit.attention.block_select import BlockSelect
from genkit.attention.block_select.keys import key_bias
from genkit.attention.cache import PatchCache
from genkit.attention.site import Place, Site
from genkit.attention.weights import PatchWeights
from genkit.errors import UsageError
from genkit.evaluation.inspection.taker import Taker
from genkit.layout import TokenLayout
from genkit.training.data.world.clips import ClipSize, LatentPool
from genkit.training.engine.curriculum import Stage
from genkit.training.routing.keys import ChosenKeys, choice_loss, key_mass
from genkit.training.tasks.keys import KeysTask
from genkit.training.toys.video.model import sizes

SIZE = ClipSize(5, 96, 96)
METHOD = BlockSelect(score="keys", block=8, keep=2, untrained=True)


def mass_kept(method, call, cache):
    q, k, v, site = call
    weights = torch.einsum("bqhd,bkhd->bhqk", q, k).mul(q.shape[-1] ** -0.5).softmax(-1)
    return float((weights * method.read_rows(q, k, v, site, cache, torch.arange(q.shape[1]))).sum(-1).mean())


def drawn(layout, heads=4, key_heads=2, batch=2):
    draw = torch.Generator().manual_seed(0)
    shapes = [(batch, layout.length, count, 6) for count in (heads, key_heads, key_heads)]
    return [torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize("hidden", [False, True])
def test_mass_is_that_of_dense_attention_outside_of_the_own_block(hidden):
    layout = TokenLayout.of_grid(2, 4, 5, text=3)
    q, k, _ = drawn(layout)
    mask = None
    if hidden:
        mask = torch.ones(2, layout.length, dtype=torch.bool)
        start = layout.grid_span[0]
        mask[1, 0 if start else layout.length - 1] = False
    site = Site.of_layout(layout, heads=4, role="joint", key_mask=mask)
    blocks = METHOD.blocks_on(layout.grid)
    queries = torch.tensor([0, 7, 21, 39])
    found = key_mass(q, k, site, blocks, queries)
    start, stop = layout.grid_span
    order = blocks.permutation.order.tolist()
    block_of = {token: place // 8 for place, token in enumerate(order)}
    for row in range(2):
        for head in range(4):
            right = torch.zeros(layout.grid_length, dtype=torch.float64)
            for query in queries.tolist():
                scores = k[row, :, head // 2] @ q[row, start + query, head] * 6**-0.5
                if mask is not None:
                    scores = scores.masked_fill(~mask[row], -torch.inf)
                for key, weight in enumerate(scores.softmax(0)[start:stop]):
                    right[key] += weight * (block_of[key] != block_of[query])
            torch.testing.assert_close(found[row, head], right / right.sum())


def test_the_loss_of_the_choice_is_the_divergence_and_least_at_the_mass():
    mass = torch.rand(2, 4, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mass[0, 0, 3] = 0
    mass /= mass.sum(-1, keepdim=True)
    of_key = mass.unflatten(1, (2, 2)).mean(2)
    bias = torch.randn(2, 2, 9, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    sharpness = torch.tensor([0.3, -0.2], dtype=torch.float64)
    told = (sharpness.exp()[:, None] * bias).softmax(-1)
    rows = zip(of_key.flatten(0, 1), told.flatten(0, 1), strict=True)
    right = [float(sum(p * (p / t).log() for p, t in zip(*row, strict=True) if p > 0)) for row in rows]
    assert float(choice_loss(mass, bias, sharpness)) == pytest.approx(np.mean(right))
    assert float(choice_loss(mass, (of_key + 1e-300).log() / sharpness.exp()[:, None], sharpness)) == pytest.approx(0)


def test_the_gradient_of_the_loss_is_exact_for_every_weight_it_reaches():
    """Finite differences in float64, through softplus and softmax, for shared key heads and a key nobody reads."""
    draw = torch.Generator().manual_seed(4)
    mass = torch.rand(2, 4, 7, generator=draw, dtype=torch.float64)
    mass[1, 2, 5] = 0
    mass /= mass.sum(-1, keepdim=True)
    v = torch.randn(2, 7, 2, 3, generator=draw, dtype=torch.float64)
    table = torch.randn(2, 6, generator=draw, dtype=torch.float64, requires_grad=True)
    sharpness = torch.randn(2, generator=draw, dtype=torch.float64, requires_grad=True)
    sign = torch.tensor([1.0, -1.0], dtype=torch.float64)

    def loss(table, sharpness):
        return choice_loss(mass, key_bias(sign, table, v), sharpness)

    assert torch.autograd.gradcheck(loss, (table, sharpness))
    told = (sharpness.exp()[:, None] * key_bias(sign, table, v)).softmax(-1)
    slope = (told - mass.unflatten(1, (2, 2)).mean(2)) / 4  # of the mean over two rows and two key heads
    ranks = key_bias(sign, table, v).detach().requires_grad_()
    (found,) = torch.autograd.grad(choice_loss(mass, ranks, sharpness), ranks)
    torch.testing.assert_close(found, slope * sharpness.exp()[:, None])


def hot_problem(seed):
    """A fixed call in which single keys, far apart, are read by everyone: what block means hide and values tell."""
    layout = TokenLayout.of_grid(2, 8, 8)
    draw = torch.Generator().manual_seed(seed)
    q, k, v = (0.3 * torch.randn(2, layout.length, 2, 8, generator=draw, dtype=torch.float64) for _ in range(3))
    q[..., 0] += 2
    for row in range(2):
        hot = torch.randperm(layout.length, generator=draw)[:8]
        k[row, hot, :, 0] += 8
        v[row, hot, :, 1] += 3
    return layout, (q, k, v)


def learner(layout, steps, lr=0.05):
    """Weights after so many steps on the call, by the loss of the choice and the output's own."""
    module = torch.nn.Module()
    module.to_q = module.to_v = torch.nn.Linear(3, 16).double()
    taught, cache = ChosenKeys(METHOD, 1.0), PatchCache()
    taught.install(Place("site", "self", 0, 1, 2, module), cache)
    own = PatchWeights.of(cache).at("block_select", "site")
    optimizer = torch.optim.Adam([*own.parameters(), *taught.sharpness.parameters()], lr=lr)
    _, call = hot_problem(0)
    site = Site.of_layout(layout, heads=2)
    dense = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in call)).transpose(1, 2)
    for _ in range(steps):
        optimizer.zero_grad()
        (taught.attend(*call, site, cache) - dense).square().mean().backward()
        optimizer.step()
        own.amplitude.data.clamp_(min=1e-3)
    return cache, site


def test_trained_keys_keep_more_of_attention_than_pooled_blocks_where_single_keys_matter():
    """On the call that was learned and on others of its kind; untrained they keep less than pooled blocks do."""
    layout, _ = hot_problem(0)
    site = Site.of_layout(layout, heads=2)
    pooled = BlockSelect(score="pooled", block=8, keep=2)
    caches = {steps: learner(layout, steps)[0] for steps in (0, 40)}
    for seed in range(4):
        call = (*hot_problem(seed)[1], site)
        kept = {steps: mass_kept(METHOD, call, cache) for steps, cache in caches.items()}
        beside = mass_kept(pooled, call, PatchCache())
        assert kept[40] > beside + 0.2 and kept[40] > 0.7, (kept, beside)
        assert kept[0] < beside, (kept, beside)


def test_training_again_gives_the_same_bits():
    layout, call = hot_problem(0)
    found = [learner(layout, 5) for _ in range(2)]
    (one, site), (other, _) = found
    weights = [PatchWeights.of(cache).named_weights() for cache in (one, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert all(weights[0][name].any() for name in weights[0])
    assert torch.equal(METHOD.attend(*call, site, one), METHOD.attend(*call, site, other))


def test_training_adds_the_loss_of_the_choice_and_leaves_the_output():
    layout = TokenLayout.of_grid(2, 4, 4)
    q, k, v = drawn(layout)
    site, cache = Site.of_layout(layout, heads=4), PatchCache()
    module = torch.nn.Module()
    module.to_q, module.to_v = torch.nn.Linear(3, 24).double(), torch.nn.Linear(3, 12).double()
    learner = ChosenKeys(METHOD, factor=0.7)
    learner.install(Place("site", "self", 0, 1, 4, module), cache)
    own = PatchWeights.of(cache).at("block_select", "site")
    own.map.data = torch.randn(own.map.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    weights = list(own.parameters())
    out, plain = learner.attend(q, k, v, site, cache), METHOD.attend(q, k, v, site, cache)
    assert torch.equal(out, plain)
    blocks = METHOD.blocks_on(layout.grid)
    loss = 0.7 * choice_loss(key_mass(q, k, site, blocks, torch.arange(32)), own.ranks(v), learner.sharpness["site"])
    assert torch.autograd.grad(loss, own.amplitude, allow_unused=True, retain_graph=True) == (None,)
    both = torch.autograd.grad(plain.square().sum() + loss, weights)
    for one, other in zip(torch.autograd.grad(out.square().sum(), weights), both, strict=True):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        assert torch.equal(learner.attend(q, k, v, site, cache), plain)
    with pytest.raises(UsageError, match="score=keys"):
        ChosenKeys(BlockSelect())


def test_a_model_learns_which_keys_are_read(tiny_wan, tmp_path):
    """The divergence falls, and the trained weights keep more of dense attention than untrained ones."""
    pipeline = genkit.load(str(tiny_wan), "float32", "cpu")
    stages = (Stage(0.0, sizes((5, 96, 96, 1.0))),)
    task = KeysTask(pipeline, LatentPool(pipeline.vae, np.random.default_rng(0)), METHOD, stages=stages)
    batch = task.draw(SIZE, 2, np.random.default_rng(1))
    optimizer = torch.optim.Adam(task.parameters(), lr=0.05)
    told = []
    for _ in range(15):
        loss = task(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        told.append(task.probe()["choice"])
    assert told[-1] < 0.9 * told[0]
    for each in task.weights.layers.values():
        each.amplitude.data.fill_(-0.2)
    task(batch)
    assert all((each.amplitude > 0).all() for each in task.weights.layers.values())  # the order is never turned round
    next(iter(task.weights.layers.values())).amplitude.data.fill_(-0.1)  # as a last step or an average may leave it
    file = task.save(tmp_path / "keys.safetensors")
    assert all((value > 0).all() for name, value in load_file(file).items() if name.endswith("amplitude"))
    task.patch.remove()
    calls = []
    with genkit.patch(pipeline, Taker(lambda *call: calls.append(call))):
        task.predict(batch)
    kept = {}
    for name, settings in (("untrained", {"untrained": True}), ("trained", {"weights": str(file)})):
        method = BlockSelect(score="keys", block=8, keep=2, **settings)
        with genkit.patch(pipeline, method) as patch, torch.no_grad():
            kept[name] = [mass_kept(method, call, patch.cache) for call in calls]
    assert len(calls) > 1 and np.mean(kept["trained"]) > np.mean(kept["untrained"]) + 0.01
    with pytest.raises(UsageError, match="--mass"):
        KeysTask(pipeline, task.pool, METHOD, factor=-1.0)
