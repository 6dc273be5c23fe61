"""CLEAR: the published masks, counts and operations; pooled keys in one softmax; scale; refusals."""

from __future__ import annotations

import math

import pytest
import torch
from attention_helpers import attention_over, tokens

import genkit
from genkit.attention.cache import PatchCache
from genkit.attention.clear import Clear
from genkit.attention.clear.pooled import pool
from genkit.attention.site import Place, Site
from genkit.attention.weights import PatchWeights
from genkit.errors import UnsupportedError, UsageError
from genkit.layout import Segment, TokenLayout

LAYOUTS = {
    "picture": TokenLayout.of_grid(1, 8, 12),
    "text first": TokenLayout.of_grid(1, 6, 8, text=5, text_first=True),
    "text last": TokenLayout.of_grid(2, 4, 6, text=3),
    "extra": TokenLayout((1, 4, 4), (Segment("text", 3), Segment("grid", 16), Segment("reference", 7))),
}
every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())


def site_of(layout, **more):
    return Site.of_layout(layout, role="joint" if len(layout.segments) > 1 else "self", heads=2, **more)


def reference(method, q, k, v, layout, weight, hidden=None):
    """Section 2.2 of the method in float64: pooled keys behind the sequence, hidden from all but the grid."""
    p, (frames, height, width) = method.down, layout.grid
    start, stop = layout.grid_span
    more = []
    for x in (k, v):
        cells = x[:, start:stop].double().view(len(x), frames, height // p, p, width // p, p, *x.shape[2:])
        more.append((cells * weight.double().view(1, 1, 1, p, 1, p, 1, 1)).sum((3, 5)).flatten(1, 3))
    mask = torch.nn.functional.pad(method.mask(layout), (0, more[0].shape[1]), value=False)
    mask[start:stop, layout.length :] = True
    if hidden is not None:
        mask = mask & ~torch.nn.functional.pad(hidden, (0, more[0].shape[1]))[:, None, None]
    keys, values = (torch.cat([x.double(), extra], 1) for x, extra in zip((k, v), more, strict=True))
    return attention_over(q, keys, values, mask)


def test_the_published_example_masks():
    layout = TokenLayout.of_grid(1, 4, 5, text=2, text_first=True)
    mask = Clear(radius=2).mask(layout)
    assert mask.sum() == 214 and mask.numel() == 484
    assert mask[2 + 5 + 2].nonzero().flatten().tolist() == [0, 1, 3, 4, 5, 8, 9, 10, 13, 14, 15]
    assert mask[2].nonzero().flatten().tolist() == [0, 1, 2, 3, 7, 8]
    square = TokenLayout.of_grid(1, 6, 6)
    for radius, total, rows in (
        (2, 256, {0: [4, 6, 6, 6, 6, 4]}), (3, 576, {0: [9, 12, 15, 15, 12, 9], 2: [15, 20, 25, 25, 20, 15]}),
    ):  # fmt: skip
        mask = Clear(radius=radius).mask(square)
        assert mask.sum() == total and torch.equal(mask, mask.T)
        for row, counts in rows.items():
            assert mask.sum(1).view(6, 6)[row].tolist() == counts


def test_the_published_example_of_pooled_keys():
    layout, method = TokenLayout.of_grid(1, 4, 4, text=2, text_first=True), Clear(radius=2, down=2)
    plan = method.build_plan(layout).plan
    assert (plan.n_q, plan.n_k) == (18, 22)
    assert method.density(site_of(layout), PatchCache()).computed * 18**2 == pytest.approx(232, abs=1e-9)
    # channel j of the values is 1 for key j alone: the output says which keys a query weighs
    q, k = torch.zeros(1, 18, 1, 32), torch.zeros(1, 18, 1, 32)
    seen = []
    for cell in range(18):
        v = torch.zeros(1, 18, 1, 32)
        v[0, cell] = 1.0
        seen.append(method.attend(q, k, v, site_of(layout), PatchCache())[0, :, 0, 0])
    weights = torch.stack(seen, 1)
    # (0, 0) sees 0-3, 6, 7 and four pooled keys: ten in all, each pooled one a quarter of a key in its cell
    first = [0.1, 0.1, 0.125, 0.125, 0.025, 0.025, 0.125, 0.125] + [0.025] * 10
    torch.testing.assert_close(weights[2], torch.tensor(first), atol=1e-6, rtol=0)
    torch.testing.assert_close(weights[0], torch.full((18,), 1 / 18), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("side", "values"),
    [
        (64, (63.5, 86.6, 154.1, 76.4, 99.5)),
        (128, (246.2, 352.6, 724.3, 452.4, 558.7)),
        (256, (979.3, 1433.2, 3141.7, 4277.8, 4731.7)),
        (512, (3915.4, 5789.2, 13085.0, 56691.9, 58565.7)),
    ],
)
def test_the_papers_table_of_operations(side, values):
    layout = TokenLayout.of_grid(1, side, side, text=512, text_first=True)
    settings = [{"radius": 8}, {"radius": 16}, {"radius": 32}, {"radius": 8, "down": 4}, {"radius": 16, "down": 4}]
    found = [Clear(**each).flops(layout, 3072) / 1e9 for each in settings]
    assert [round(value, 1) for value in found] == list(values)


def test_keys_in_the_middle():
    layout = TokenLayout.of_grid(1, 128, 128)
    assert [Clear(radius=r).most_keys(layout) for r in (8, 16, 32)] == [193, 793, 3205]


@every_layout
def test_a_disc_equals_masked_attention_and_a_wide_one_dense(layout):
    q, k, v = tokens(layout)
    for radius in (2, 2.5):
        method = Clear(radius=radius)
        out = method.attend(q, k, v, site_of(layout), PatchCache())
        torch.testing.assert_close(out.double(), attention_over(q, k, v, method.mask(layout)), atol=3e-6, rtol=1e-5)
    far = math.sqrt((layout.grid[1] - 1) ** 2 + (layout.grid[2] - 1) ** 2)
    assert not Clear(radius=far).mask(layout).all() and Clear(radius=far + 0.01).mask(layout).all()
    assert Clear(radius=far + 0.01).density(site_of(layout), PatchCache()).dense


@every_layout
@pytest.mark.parametrize("radius", [2, 50])
def test_pooled_keys_are_one_softmax_with_the_rest(layout, radius):
    method = Clear(radius=radius, down=2)
    q, k, v = tokens(layout)
    out = method.attend(q, k, v, site_of(layout), PatchCache())
    right = reference(method, q, k, v, layout, torch.full((2, 2), 0.25))
    torch.testing.assert_close(out.double(), right, atol=3e-6, rtol=1e-5)
    start, stop = layout.grid_span
    dense = attention_over(q, k, v, torch.ones(layout.length, layout.length, dtype=torch.bool))
    outside = [i for i in range(layout.length) if not start <= i < stop]
    torch.testing.assert_close(out[:, outside].double(), dense[:, outside], atol=3e-6, rtol=1e-5)


def test_gradients_of_pooled_keys_and_their_weight():
    layout, method = LAYOUTS["text first"], Clear(radius=2.5, down=2)
    site, cache = site_of(layout), PatchCache("reference")
    place = Place(site.name, "joint", 0, 1, 2, torch.nn.Linear(2, 2).double())
    method.install(place, cache)
    weight = PatchWeights.of(cache).at("clear", site.name).spatial_weight
    with torch.no_grad():
        weight.add_(0.3 * torch.randn(2, 2, generator=torch.Generator().manual_seed(1)))
    inputs = [x.double().requires_grad_() for x in tokens(layout)]
    value = torch.randn(2, layout.length, 2, 8, generator=torch.Generator().manual_seed(2)).double()
    found = torch.autograd.grad((method.attend(*inputs, site, cache) * value).sum(), [*inputs, weight])
    right = torch.autograd.grad((reference(method, *inputs, layout, weight) * value).sum(), [*inputs, weight])
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-8)


def test_pooling_is_an_average_at_first():
    x = torch.randn(2, 2 * 4 * 6, 3, 5)
    cells = pool(x, (2, 4, 6), torch.full((2, 2), 0.25)).view(2, 2, 2, 3, 3, 5)
    images = x.view(2, 2, 4, 6, 3, 5).permute(0, 1, 4, 5, 2, 3)
    right = torch.nn.functional.avg_pool2d(images.flatten(0, 3), 2).view(2, 2, 3, 5, 2, 3)
    torch.testing.assert_close(cells, right.permute(0, 1, 4, 5, 2, 3))


def test_hidden_text_stays_hidden_beside_pooled_keys():
    layout, method = LAYOUTS["text first"], Clear(radius=2, down=2)
    q, k, v = tokens(layout)
    visible = torch.ones(2, layout.length, dtype=torch.bool)
    visible[0, 3:5], visible[1, :5] = False, False
    out = method.attend(q, k, v, site_of(layout, key_mask=visible), PatchCache())
    right = reference(method, q, k, v, layout, torch.full((2, 2), 0.25), ~visible)
    torch.testing.assert_close(out.double(), right, atol=3e-6, rtol=1e-5)


def test_the_published_factors_of_the_scale():
    large = TokenLayout.of_grid(1, 128, 256, text=512)
    assert Clear(proportional=True).score_factor(large) == pytest.approx(1.11103, abs=5e-6)
    assert Clear(proportional=True, down=4).score_factor(large) == pytest.approx(1.22774, abs=5e-6)
    assert Clear(proportional=True).score_factor(TokenLayout.of_grid(1, 64, 64, text=512)) == 1.0
    assert Clear().score_factor(large) == 1.0
    layout = LAYOUTS["text first"]
    q, k, v = tokens(layout)
    for down in (1, 2):
        method = Clear(radius=2, down=down, proportional=True, trained=20)
        factor = (math.log(layout.length * (10 if down > 1 else 1)) / math.log(20)) ** 0.5
        found = method.attend(q, k, v, site_of(layout), PatchCache())
        right = Clear(radius=2, down=down).attend(q, k, v, site_of(layout, scale=8**-0.5 * factor), PatchCache())
        assert torch.equal(found, right)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"radius": 0}, "radius"), ({"radius": True}, "radius"), ({"radius": math.inf}, "radius"),
        ({"down": 0}, "down"), ({"down": 2.0}, "down"), ({"proportional": 1}, "proportional"),
        ({"trained": 1}, "trained"), ({"trained": 100}, "proportional=true"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused_with_what_is_allowed(settings, words):
    with pytest.raises(UsageError, match=words):
        Clear(**settings)


def test_a_grid_that_cells_do_not_fill_is_refused():
    layout = TokenLayout.of_grid(1, 6, 7)
    assert "multiples of 2" in Clear(down=2).why_not(site_of(layout))
    with pytest.raises(UnsupportedError, match="6 x 7"):
        Clear(down=2).attend(*tokens(layout), site_of(layout), PatchCache())


def test_it_is_public_and_repeats_bit_for_bit():
    assert genkit.Clear is Clear
    layout, method = LAYOUTS["picture"], Clear(radius=3, down=2)
    q, k, v = tokens(layout)
    assert torch.equal(
        method.attend(q, k, v, site_of(layout), PatchCache()), method.attend(q, k, v, site_of(layout), PatchCache())
    )
