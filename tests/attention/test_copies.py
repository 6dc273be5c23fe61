"""A grid that stands twice in a sequence has one pattern for all pairs: values and gradients against masked softmax."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from attention_helpers import attention_over, tokens

from genkit.attention.anchor_window import AnchorWindow
from genkit.attention.block_select import BlockSelect
from genkit.attention.cache import PatchCache
from genkit.attention.clear import Clear
from genkit.attention.copies import places, read_rows, repeated, site_for, visible
from genkit.attention.dynamic import attend_grid
from genkit.attention.mixture_of_block import MixtureOfBlock
from genkit.attention.neighborhood import Neighborhood
from genkit.attention.plan_facts import plan_facts
from genkit.attention.pyramid import Pyramid
from genkit.attention.radial import Radial
from genkit.attention.shards import Shards
from genkit.attention.shifted_groups import ShiftedGroups
from genkit.attention.site import Site
from genkit.attention.sliding_window import SlidingWindow
from genkit.attention.static import any_plan
from genkit.errors import UnsupportedError, UsageError
from genkit.layout import Segment, TokenLayout

T, H, W = 3, 5, 6
N = T * H * W


def layout_of(*parts, copies=("encoded",)):
    return TokenLayout((T, H, W), tuple(Segment(name, length) for name, length in parts), copies=copies)


LAYOUTS = {
    "decoder": layout_of(("grid", N), ("encoded", N)),
    "copy first": layout_of(("encoded", N), ("grid", N)),
    "with text": layout_of(("text", 5), ("grid", N), ("reference", 7), ("encoded", N), ("more", 3)),
    "three": layout_of(("grid", N), ("encoded", N), ("text", 4), ("third", N), copies=("encoded", "third")),
}
STATIC = {
    "box": Neighborhood(size=3),
    "dilated": Neighborhood(size=(3, 2, 3), dilation=(1, 2, 2)),
    "causal": Neighborhood(size=("all", 3, 3), causal=(True, False, False)),
    "disc": Neighborhood(shape="disc", radius=2.5),
    "radial": Radial(block_size=8, near="decay", sink=False, decay_factor=0.1),
    "ragged radial": Radial(block_size=16, near="decay", sink=False, decay_factor=0.01, thin_below=128),
    "sliding_window": SlidingWindow(base=(3, 3)),
    "clear": Clear(radius=1.5),
    "anchor_window": AnchorWindow(trained=1, window=0, first=0, period=3),
}
#: Heads see different pairs: these tell which by ``pair_rows``.
BY_HEAD = {"shifted_groups": ShiftedGroups(group=2, sink="none"), "shards": Shards(block=8, stride=3, local=0)}
CHOOSING = {
    "block_select": BlockSelect(block=8, keep=2),
    "block_select top_p": BlockSelect(block=8, top_p=0.5),
    "block_select kmeans": BlockSelect(block=8, keep=2, score="kmeans"),
    "block_select sink": BlockSelect(block=16, keep=1, sink="first_frame"),
    "mixture_of_block": MixtureOfBlock(temporal=1, spatial=(2, 2), box=(1, 2, 2)),
    "mixture_of_block threshold": MixtureOfBlock(temporal=1, select="threshold", scope="head", tau=0.5),
}
every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
every_static = pytest.mark.parametrize("method", STATIC.values(), ids=STATIC.keys())
heads_differ = pytest.mark.parametrize("method", BY_HEAD.values(), ids=BY_HEAD.keys())
every_choice = pytest.mark.parametrize("method", CHOOSING.values(), ids=CHOOSING.keys())


def site_of(layout, **more):
    return Site.of_layout(layout, role="joint", heads=2, **more)


def place(layout):
    """The place of every token by hand: that of the grid, or -1 - its number among the tokens outside."""
    found, others = [], 0
    for part in layout.segments:
        if part.name in ("grid", *layout.copies):
            found += range(N)
        else:
            found += range(-1 - others, -1 - others - part.length, -1)
            others += part.length
    return torch.tensor(found)


def by_places(mask, layout):
    """(.., N1, N1) of one grid's places -> (.., N, N) of the sequence: tokens outside see all and are seen by all."""
    at = place(layout)
    inside = at >= 0
    whole = mask[..., at.clamp(min=0)[:, None], at.clamp(min=0)]
    return whole | ~inside[:, None] | ~inside


def close(out, right, inputs, atol=3e-6):
    torch.testing.assert_close(out.double(), right, atol=atol, rtol=1e-5)
    weight = torch.sin(torch.arange(out.numel())).view(out.shape)
    found = (torch.autograd.grad((x * weight).sum(), inputs) for x in (out, right))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


@every_static
@every_layout
def test_static_methods_are_softmax_over_the_pattern_of_places(method, layout):
    inputs = [x.requires_grad_() for x in tokens(layout, key_heads=1)]
    mask = by_places(method.mask(TokenLayout.of_grid(T, H, W)), layout)
    assert torch.equal(visible(method, layout), mask)
    site, cache = site_of(layout), PatchCache()
    scale = method.scaled(inputs[0], site).scale
    out = method.attend(*inputs, site, cache)
    close(out, attention_over(*inputs, mask, scale), inputs)
    density = method.density(site, cache)
    assert density.computed == pytest.approx(mask.double().mean().item(), abs=1e-12)
    assert density.computed <= density.executed and not density.dense
    rows = torch.arange(0, layout.length, 7)
    assert torch.equal(read_rows(method, *inputs, site, cache, rows)[0, 0], mask[rows])


@heads_differ
@every_layout
def test_heads_that_differ_keep_their_own_pattern(method, layout):
    inputs = [x.requires_grad_() for x in tokens(layout, heads=4)]
    one = TokenLayout.of_grid(T, H, W)
    every = torch.arange(N)
    q, k = (torch.zeros(1, N, 4, 8) for _ in range(2))
    masks = method.pair_rows(q, k, Site.of_layout(one, heads=4), PatchCache(), every)
    assert not (masks == masks[:, :1]).all()
    mask = by_places(masks, layout)
    site = dataclasses.replace(site_of(layout), heads=4)
    close(method.attend(*inputs, site, PatchCache()), attention_over(*inputs, mask), inputs)
    assert method.density(site, PatchCache()).computed == pytest.approx(mask.double().mean().item(), abs=1e-12)
    assert torch.equal(read_rows(method, *inputs, site, PatchCache(), torch.arange(layout.length)), mask)


def quadrants(method, q, k, layout, site):
    """bool (B, H, N, N): what each grid's queries choose of each grid's keys, asked for one grid at a time."""
    one, every = TokenLayout.of_grid(T, H, W), torch.arange(N)
    single = dataclasses.replace(site, layout=one, key_layout=one)
    found = torch.ones(q.shape[0], q.shape[2], layout.length, layout.length, dtype=torch.bool)
    spans = [layout.span(name) for name in ("grid", *layout.copies)]
    for begin, end in spans:
        for start, stop in spans:
            rows = method.pair_rows(q[:, begin:end], k[:, start:stop], single, PatchCache(), every)
            found[:, :, begin:end, start:stop] = rows
    return found


@every_choice
@every_layout
@pytest.mark.parametrize("layer", [0, 1])
def test_choices_are_made_in_every_grid(method, layout, layer):
    inputs = [x.requires_grad_() for x in tokens(layout)]
    site, cache = dataclasses.replace(site_of(layout), layer=layer, layers=2), PatchCache()
    mask = quadrants(method, *inputs[:2], layout, site)
    close(method.attend(*inputs, site, cache), attention_over(*inputs, mask), inputs)
    assert method.density(site, cache).computed == pytest.approx(mask.double().mean().item(), abs=1e-6)
    rows = torch.arange(0, layout.length, 5)
    assert torch.equal(read_rows(method, *inputs, site, cache, rows), mask[:, :, rows])


def test_a_budget_is_told_before_any_call():
    layout = LAYOUTS["decoder"]
    for method in (BlockSelect(block=9, keep=2), MixtureOfBlock(temporal=1, keep=1, cycle=(1, 0, 0))):
        cache = PatchCache()
        before = method.density(site_of(layout), cache)
        method.attend(*tokens(layout), site_of(layout), cache)
        assert before.computed == pytest.approx(method.density(site_of(layout), cache).computed, abs=1e-6)


def test_means_of_keys_are_those_of_each_grid():
    """Dropped nothing, all read exactly, is dense attention; with means every grid's keys weigh as by itself."""
    layout = LAYOUTS["with text"]
    inputs = [x.requires_grad_() for x in tokens(layout)]
    exact = Pyramid(block=8, mode="quantile", quantiles=(1.0, 0.0, 0.0, 0.0))
    every = torch.ones(layout.length, layout.length, dtype=torch.bool)
    close(exact.attend(*inputs, site_of(layout), PatchCache()), attention_over(*inputs, every), inputs, atol=1e-5)
    method, cache = Pyramid(block=8, thresholds=(0.2, 0.3, 0.5, 0.6)), PatchCache()
    assert not torch.allclose(
        method.attend(*inputs, site_of(layout), cache), exact.attend(*inputs, site_of(layout), cache)
    )
    assert method.density(site_of(layout), cache).computed < 1


@every_layout
def test_hidden_keys_are_hidden_in_every_grid(layout):
    q, k, v = tokens(layout)
    hidden = torch.rand(2, layout.length, generator=torch.Generator().manual_seed(5)) > 0.2
    for method in (STATIC["box"], STATIC["radial"]):
        mask = visible(method, layout) & hidden[:, None, None]
        assert mask.any(-1).all()
        out = method.attend(q, k, v, site_of(layout, key_mask=hidden), PatchCache())
        torch.testing.assert_close(out.double(), attention_over(q, k, v, mask), atol=3e-6, rtol=1e-5)


def test_a_full_window_is_dense_attention():
    layout = LAYOUTS["decoder"]
    q, k, v = tokens(layout)
    method, cache = Neighborhood(size="all"), PatchCache()
    dense = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    assert torch.equal(method.attend(q, k, v, site_of(layout), cache), dense)
    assert method.density(site_of(layout), cache).dense


@every_static
@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_the_plan_of_two_grids_executes_the_share_that_one_executes(method, kind):
    one = method.build_plan(TokenLayout.of_grid(T, H, W), kind)
    both = any_plan(method, LAYOUTS["decoder"], kind, None)
    assert both.density.computed == pytest.approx(one.density.computed, abs=1e-12)
    assert both.density.executed == pytest.approx(one.density.executed, abs=1e-12)
    states = one.plan.states()
    torch.testing.assert_close(both.plan.density().computed, one.density.computed, atol=1e-9, rtol=0)
    assert (both.plan.states() == 2).sum() == 4 * (states == 2).sum()  # none of the full blocks became partial
    facts = plan_facts(method, LAYOUTS["decoder"], kind)
    assert facts.visible == pytest.approx(plan_facts(method, TokenLayout.of_grid(T, H, W), kind).visible, abs=1e-12)


UNSERVED = {
    "bias": Neighborhood(size=3, bias="distance:t=0.5:h=0.5:w=0.5"),
    "chosen with a bias": BlockSelect(block=8, keep=2, bias="distance:t=0.5:h=0.5:w=0.5"),
    "trained keys": BlockSelect(block=8, keep=2, score="keys", untrained=True),
}


@pytest.mark.parametrize("method", UNSERVED.values(), ids=UNSERVED.keys())
def test_to_other_methods_a_copy_is_a_segment_like_any_other(method):
    layout = LAYOUTS["decoder"]
    site = site_for(method, site_of(layout))
    assert not method.every_grid and site.layout == site.key_layout == layout.without_copies()
    assert site_for(STATIC["box"], site_of(layout)).layout == layout
    q, k, v = tokens(layout)
    if method.has_weights:
        return
    out = method.attend(q, k, v, site, PatchCache())
    every = torch.ones(layout.length, layout.length, dtype=torch.bool)
    torch.testing.assert_close(out[:, N:].double(), attention_over(q, k, v, every)[:, N:], atol=3e-6, rtol=1e-5)


def test_pooled_keys_stand_behind_one_grid():
    method = Clear(radius=1.5, down=2)
    assert not method.every_grid and Clear(radius=1.5).every_grid
    assert not AnchorWindow(positions="reindexed").every_grid and AnchorWindow().every_grid
    one = TokenLayout.of_grid(2, 4, 4)
    twice = TokenLayout((2, 4, 4), (Segment("grid", 32), Segment("encoded", 32)), copies=("encoded",))
    with pytest.raises(UnsupportedError, match="cannot be repeated"):
        repeated(method.build_plan(one).plan, twice)


def test_what_cannot_be_merged_is_refused():

    layout = LAYOUTS["decoder"]
    q, k, v = tokens(layout)
    with pytest.raises(UnsupportedError, match="log-sum-exp"):
        attend_grid(q, k, v, site_of(layout), PatchCache(), lambda q, k, v: (q, None))
    assert attend_grid(q, k, v, site_of(layout), PatchCache(), lambda q, k, v: None) is None


def test_layouts_tell_and_check_their_copies():
    layout = LAYOUTS["with text"]
    assert layout.grid_spans == ((5, 5 + N), (12 + N, 12 + 2 * N)) and layout.all_grids_length == 2 * N
    assert layout.once() == TokenLayout(
        (T, H, W), (Segment("text", 5), Segment("grid", N), Segment("reference", 7), Segment("more", 3))
    )
    assert layout != layout.without_copies() and layout.without_copies().segments == layout.segments
    assert hash(layout) != hash(layout.without_copies())
    at, mine = place(layout), places(layout)
    assert torch.equal((at >= 0), (mine >= 5) & (mine < 5 + N)) and torch.equal(at[at >= 0], mine[at >= 0] - 5)
    for wrong in (("text",), ("nothing",), ("grid",), ("encoded", "encoded")):
        with pytest.raises(UsageError, match="copies"):
            layout_of(("grid", N), ("encoded", N), ("text", 4), copies=wrong)
