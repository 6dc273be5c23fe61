"""Agent attention: worked and published numbers, limits, cells of real models, text, merging."""

from __future__ import annotations

import pytest
import torch
from attention_helpers import attention_over, tokens

from genkit.attention.agent import Agent, Cells, downsample
from genkit.attention.cache import PatchCache
from genkit.attention.site import Site
from genkit.attention.static import dense_attention
from genkit.attention.token_merge import destinations, match
from genkit.errors import UsageError
from genkit.kernels.agent import agent_attention
from genkit.layout import TokenLayout

VIDEO = TokenLayout.of_grid(5, 8, 8)
JOINT = TokenLayout.of_grid(4, 6, 8, text=5)
IMAGE = TokenLayout.of_grid(1, 8, 8)


def sines(count, width, offset):
    return torch.sin(0.1 * torch.arange(count * width, dtype=torch.float64) + offset).view(1, count, 1, width)


Q, K, V = (sines(8, 4, offset) for offset in range(3))


def run(method, layout, q, k, v, cache=None, **more):
    site = Site.of_layout(layout, heads=q.shape[2], **more)
    return method.attend(q, k, v, site, cache or PatchCache())


def test_dense_attention_of_the_worked_example_has_the_computed_sum_and_first_row():
    out = dense_attention(Q, K, V, 0.5, None)
    assert out.sum().item() == pytest.approx(3.030114619734, abs=1e-11)
    assert out[0, 0, 0].tolist() == pytest.approx([-0.040757, -0.105460, -0.169109, -0.231068], abs=1e-6)


@pytest.mark.parametrize(
    ("power", "shortcut", "total", "row"),
    [
        (1.0, 0.0, 4.385415807418, (0.220095, 0.147016, 0.072469, -0.002802)),
        (0.3, 0.075, 4.372032523324, (0.294362, 0.217674, 0.138811, 0.058561)),
    ],
)
def test_agents_of_query_pairs_give_the_worked_examples_sum_and_first_row(power, shortcut, total, row):
    agents = Cells((1, 1, 8), (1, 1, 2)).mean(Q)
    out = agent_attention(Q, K, V, agents, scale=0.5, read_scale=0.5**power, shortcut=shortcut)
    assert out.sum().item() == pytest.approx(total, abs=1e-11)
    assert out[0, 0, 0].tolist() == pytest.approx(row, abs=1e-6)


@pytest.mark.parametrize(
    ("grid", "cell", "count", "work"),
    [
        ((21, 30, 52), (1, 4, 4), 2184, 0.1333),
        ((21, 30, 52), (3, 4, 4), 832, 0.0508),
        ((21, 45, 80), (3, 4, 4), 1920, 0.0508),
        ((33, 45, 80), (3, 4, 4), 2880, 0.0485),
        ((13, 30, 45), (3, 4, 4), 480, 0.0547),
        ((1, 64, 64), (3, 4, 4), 256, 0.125),
    ],
)
def test_agents_of_real_models(grid, cell, count, work):
    layout = TokenLayout.of_grid(*grid)
    method = Agent(cell=cell)
    assert f"{count} agents" in method.details(layout)
    assert method.density(Site.of_layout(layout), PatchCache()).computed == pytest.approx(work, abs=5e-5)


def test_cells_keep_the_first_frame_apart_and_average_real_tokens():
    cells = Cells((5, 3, 4), (2, 2, 3))
    assert len(cells.sizes) == 3 * 2 * 2 and cells.sizes.sum() == 60
    assert cells.cell_of.view(5, 3, 4)[:, 0, 0].tolist() == [0, 4, 4, 8, 8]
    assert cells.sizes.tolist()[:4] == [6, 2, 3, 1]
    q = torch.randn(2, 60, 3, 4, dtype=torch.float64)
    mean = cells.mean(q)
    for cell in range(12):
        torch.testing.assert_close(mean[:, cell], q[:, cells.cell_of == cell].mean(1))
    assert torch.equal(cells.cell_of[cells.centre], torch.arange(12))


def agents_by_hand(method, layout, q, k, v, mean, visible=None):
    """The method written out in float64: agents over grid keys, queries over agents and text, text dense."""
    scale = q.shape[-1] ** -0.5
    start, stop = layout.grid_span
    cells = Cells(layout.grid, tuple(min(a, b) for a, b in zip(method.cell, layout.grid, strict=True)))
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))
    grid_q = q[:, :, start:stop]
    picked = grid_q[:, :, cells.centre]
    if mean:
        picked = torch.stack([grid_q[:, :, cells.cell_of == c].mean(2) for c in range(len(cells.sizes))], 2)
    carried = (scale * picked @ k[:, :, start:stop].transpose(-1, -2)).softmax(-1) @ v[:, :, start:stop]
    other = [i for i in range(layout.length) if not start <= i < stop]
    scores = torch.cat([scale**method.scale_power * grid_q @ picked.transpose(-1, -2),
                        scale * grid_q @ k[:, :, other].transpose(-1, -2)], -1)  # fmt: skip
    if method.count_bias:
        scores[..., : len(cells.sizes)] += cells.sizes.double().log()
    if visible is not None:
        scores[..., len(cells.sizes) :].masked_fill_(~visible[:, None, None, other], -torch.inf)
    out = torch.zeros_like(q)
    out[:, :, start:stop] = scores.softmax(-1) @ torch.cat([carried, v[:, :, other]], 2)
    out[:, :, start:stop] += method.shortcut * v[:, :, start:stop]
    whole = torch.ones(layout.length, layout.length, dtype=torch.bool)
    whole = whole if visible is None else visible[:, None, None, :].expand(-1, 1, layout.length, -1)
    dense = attention_over(*(x.transpose(1, 2) for x in (q, k, v)), whole).transpose(1, 2)
    out[:, :, other] = dense[:, :, other]
    return out.transpose(1, 2)


@pytest.mark.parametrize("settings", [{}, {"pool": "mean"}, {"cell": (2, 3, 3), "count_bias": True, "shortcut": 0.0}])
@pytest.mark.parametrize(
    "layout", [VIDEO, JOINT, TokenLayout.of_grid(3, 6, 8, text=4, text_first=True)], ids=["video", "last", "first"]
)
def test_equals_the_formula(layout, settings):
    method = Agent(**settings)
    q, k, v = tokens(layout)
    out = run(method, layout, q, k, v)
    right = agents_by_hand(method, layout, q, k, v, settings.get("pool") == "mean")
    torch.testing.assert_close(out.double(), right, atol=3e-6, rtol=1e-5)


def test_queries_of_plain_images_are_averaged():
    q, k, v = tokens(IMAGE)
    out = run(Agent(), IMAGE, q, k, v)
    torch.testing.assert_close(out.double(), agents_by_hand(Agent(), IMAGE, q, k, v, True), atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("count_bias", [False, True])
def test_hidden_text_keys_are_hidden_exactly(count_bias):
    method = Agent(count_bias=count_bias)
    q, k, v = tokens(JOINT)
    visible = torch.ones(2, JOINT.length, dtype=torch.bool)
    visible[0, -2:], visible[1, -5:] = False, False
    out = run(method, JOINT, q, k, v, key_mask=visible)
    right = agents_by_hand(method, JOINT, q, k, v, False, visible)
    torch.testing.assert_close(out.double(), right, atol=3e-6, rtol=1e-5)


def test_weights_are_row_stochastic_of_low_rank_and_values_pass_through():
    q, k, _ = (x.double() for x in tokens(VIDEO, heads=1, width=64, batch=1))
    weights = run(
        Agent(shortcut=0.0),
        VIDEO,
        *(x.expand(-1, -1, 1, -1) for x in (q, k)),
        torch.eye(320, 64)[None, :, None].double(),
    )
    assert torch.linalg.matrix_rank(weights[0, :, 0], tol=1e-9) <= len(Cells(VIDEO.grid, (3, 4, 4)).sizes)
    ones = torch.ones_like(q)
    torch.testing.assert_close(run(Agent(), VIDEO, q, k, ones), ones * 1.075)


def test_the_order_of_keys_does_not_change_the_output():
    q, k, v = tokens(VIDEO)
    agents = Cells(VIDEO.grid, (3, 4, 4)).mean(q)
    shuffle = torch.randperm(VIDEO.length, generator=torch.Generator().manual_seed(1))
    plain = agent_attention(q, k, v, agents)
    torch.testing.assert_close(agent_attention(q, k[:, shuffle], v[:, shuffle], agents), plain, atol=1e-6, rtol=1e-5)


def test_gradients_through_pooling_and_both_softmaxes_are_finite_differences():
    layout = TokenLayout.of_grid(1, 4, 6, text=2)
    inputs = [x.double().requires_grad_() for x in tokens(layout, heads=1, width=3, batch=1)]
    method = Agent(cell=(1, 2, 2), pool="mean")
    assert torch.autograd.gradcheck(lambda *x: run(method, layout, *x), inputs)


def test_too_few_tokens_decline():
    small = TokenLayout.of_grid(1, 2, 4)
    q, k, v = tokens(small)
    assert run(Agent(cell=(1, 1, 2)), small, q, k, v) is None
    assert Agent(cell=(1, 1, 2)).density(Site.of_layout(small), PatchCache()).dense


# ---- merging -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ratio", "features", "agents", "merged"), [
    (0.1, 3687, 0.1125, 0.8103), (0.4, 2458, 0.0750, 0.3601), (0.5, 2048, 0.0625, 0.25)
])  # fmt: skip
def test_work_of_merging_is_two_n_times_features_over_n_squared(ratio, features, agents, merged):
    """Section 4: shares of dense work with agents and with merging alone, 64 x 64 tokens."""
    x = torch.randn(1, 4096, 2, generator=torch.Generator().manual_seed(0))
    merge, heavier = Agent(agents="merge", ratio=ratio).merge_plan(x, merge_site(64), PatchCache())
    assert (merge.length, heavier.length) == (features, 256)
    assert 2 * merge.length * heavier.length / 4096**2 == pytest.approx(agents, abs=6e-5)
    assert (merge.length / 4096) ** 2 == pytest.approx(merged, abs=6e-5)


def test_second_scales_of_the_published_widths():
    found = [(width**-0.5) ** Agent().scale_power for width in (40, 64, 80, 128, 160)]
    assert found == pytest.approx([0.5750, 0.5359, 0.5182, 0.4830, 0.4671], abs=5e-5)


def merge_site(side, step=0, layer=0):
    layout = TokenLayout.of_grid(1, side, side)
    return Site("up.0", layer, 5, "self", 1, layout, layout, step=step, steps=50)


@pytest.mark.parametrize(("step", "features", "agents"), [(0, 2458, 256), (19, 2458, 256), (20, 2458, None)])
def test_merging_leaves_the_published_number_of_features_and_agents(step, features, agents):
    x = torch.randn(1, 4096, 16, generator=torch.Generator().manual_seed(0))
    merge, heavier = Agent(agents="merge").merge_plan(x, merge_site(64, step), PatchCache())
    assert merge.length == features
    assert (heavier.length if heavier else None) == agents


def test_an_8x8_grid_merges_to_39_features_and_4_agents():
    merge, heavier = Agent(agents="merge").merge_plan(torch.randn(2, 64, 8), merge_site(8), PatchCache())
    assert (merge.length, heavier.length) == (39, 4)


def test_one_destination_per_cell_the_same_for_the_same_seed():
    chosen = destinations((9, 10), (4, 4), 7)
    assert torch.equal(chosen, destinations((9, 10), (4, 4), 7))
    cells = {(int(token) // 10 // 4, int(token) % 10 // 4) for token in chosen}
    assert len(chosen) == 4 and cells == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert destinations((8, 8), (4, 4), None).tolist() == [0, 4, 32, 36]
    method, cache = Agent(agents="merge"), PatchCache()
    x = torch.randn(1, 64, 8)
    first, again, later = (method.merge_plan(x, merge_site(8, step), cache)[0] for step in (3, 3, 4))
    assert torch.equal(first.destinations, again.destinations)
    assert not torch.equal(first.destinations, later.destinations)


def test_merging_averages_groups_and_undo_copies_back():
    x = torch.randn(2, 64, 3, 4, dtype=torch.float64)
    merge = match(x.flatten(2), destinations((8, 8), (4, 4), 0), 30)
    merged = merge.apply(x)
    assert merged.shape == (2, 34, 3, 4)
    back = merge.undo(merged, 64)
    for b in range(2):
        for place, token in enumerate(merge.destinations.tolist()):
            joined = merge.sources[b, :30][merge.target[b, :30] == place].tolist()
            torch.testing.assert_close(back[b, token], x[b, [token, *joined]].mean(0))
            assert all(torch.equal(back[b, source], back[b, token]) for source in joined)
        for source in merge.sources[b, 30:].tolist():
            assert torch.equal(back[b, source], x[b, source])


def test_equal_tokens_merge_first_and_change_nothing():
    x = torch.randn(1, 64, 1, 8)
    chosen = destinations((8, 8), (4, 4), None)
    for cell, token in enumerate(chosen.tolist()):
        x[0, token + 1 + cell] = x[0, token]
    merge = match(x.flatten(2), chosen, 4)
    assert torch.equal(merge.undo(merge.apply(x), 64), x)


def test_merged_attention_without_merging_is_agents_over_all_keys():
    q, k, v = tokens(IMAGE, heads=1)
    method = Agent(agents="merge", ratio=0.0, min_tokens=0)
    site = Site("up.0", 0, 5, "self", 1, IMAGE, IMAGE, step=0, steps=50)
    merge, heavier = method.merge_plan(k.flatten(2), site, PatchCache())
    assert merge.count == 0 and heavier.length == 4
    right = agent_attention(q, k, v, heavier.apply(q), read_scale=(8**-0.5) ** 0.3, shortcut=0.075)
    torch.testing.assert_close(method.attend(q, k, v, site, PatchCache()), right, atol=1e-6, rtol=1e-5)
    late = Site("up.0", 0, 5, "self", 1, IMAGE, IMAGE, step=30, steps=50)
    dense = attention_over(q, k, v, torch.ones(64, 64, dtype=torch.bool)).float()
    torch.testing.assert_close(method.attend(q, k, v, late, PatchCache()), dense, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("side", [32, 64, 96, 97, 128])
def test_only_the_latents_own_resolution_is_merged_at_any_size(side):
    """Levels of a UNet, halved rounding up; pictures of 256 to 1024 pixels of Stable Diffusion 1.5."""
    method, sides = Agent(agents="merge"), [side, -(-side // 2), -(-side // 4)]
    levels = [TokenLayout.of_grid(1, n, n) for n in sides]
    sites = [Site("x", 0, 5, "self", 1, level, level, step=0, steps=50, finest=(1, side, side)) for level in levels]
    assert [downsample(site) for site in sites] == [1, 2, 4]
    coarse = [levels[1].length, levels[2].length]
    for site, length in zip(sites[1:], coarse, strict=True):
        q = torch.zeros(1, length, 1, 4)
        assert method.attend(q, q, q, site, PatchCache()) is None
    if side == 32:
        q, k, v = tokens(levels[0], heads=1)
        assert method.attend(q, k, v, sites[0], PatchCache()) is not None
        q, k, v = tokens(levels[1], heads=1)
        assert Agent(agents="merge", max_downsample=2).attend(q, k, v, sites[1], PatchCache()) is not None


def test_merging_serves_single_images_of_enough_tokens():
    method = Agent(agents="merge", min_tokens=65)
    assert "single images" in method.why_not(Site.of_layout(VIDEO))
    assert method.why_not(Site.of_layout(IMAGE)) is None
    q, k, v = tokens(IMAGE)
    assert run(method, IMAGE, q, k, v) is None
    assert method.recommended(50, 16) == {}
    assert Agent().recommended(50, 30) == {"steps": ":20", "layers": "2:-2"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"agents": "tokens"}, "cells, merge"),
        ({"pool": "max"}, "auto, mean, centre"),
        ({"cell": (0, 4, 4)}, "cell"),
        ({"ratio": 1.5}, "ratio"),
        ({"scale_power": -1.0}, "scale_power"),
        ({"seed": -2}, "seed"),
        ({"max_downsample": 0}, "max_downsample"),
        ({"shortcut": "much"}, "shortcut"),
    ],
)
def test_wrong_settings_are_refused_with_words(settings, words):
    with pytest.raises(UsageError, match=words):
        Agent(**settings)
