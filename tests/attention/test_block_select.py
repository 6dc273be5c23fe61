"""block_select: every score, budget and preset against attention under the mask it chose, limits and refusals."""

from __future__ import annotations

import math

import pytest
import torch
from layouts import LAYOUTS, layout_of

from genkit.attention import registry
from genkit.attention.block_select import BlockSelect
from genkit.attention.block_select.presets import PLAIN, PRESETS
from genkit.attention.block_select.selectors import SELECTORS
from genkit.attention.cache import PatchCache
from genkit.attention.grid_blocks import GridBlocks, auto_across
from genkit.attention.site import Site
from genkit.errors import UsageError
from genkit.kernels.scores import block_mass


def drawn(layout, heads=4, key_heads=4, batch=2, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, layout.length, h, 8) for h in (heads, key_heads, key_heads)]
    return [(1.5 * torch.randn(shape, generator=generator, dtype=dtype)).requires_grad_() for shape in shapes]


def masked(q, k, v, mask, scale=None):
    """Attention under a bool mask (B, H, Nq, Nk), in the obvious way."""
    k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], 2) for x in (k, v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    return torch.einsum("bhqk,bkhd->bqhd", scores.masked_fill(~mask, -torch.inf).softmax(-1), v)


def token_mask(method, q, k, layout):
    """The mask of the chosen blocks (B, H, N, N), by looking up every pair."""
    blocks = method.blocks_on(layout.grid)
    start, stop = layout.grid_span
    order = blocks.permutation.order
    chosen = method.select_blocks(*(x.detach()[:, start:stop][:, order] for x in (q, k)), blocks)
    block_of = torch.empty(len(order), dtype=torch.int64)
    block_of[order] = torch.arange(len(order)) // method.block
    mask = torch.ones(*chosen.shape[:2], layout.length, layout.length, dtype=torch.bool)
    mask[:, :, start:stop, start:stop] = chosen[:, :, block_of][:, :, :, block_of]
    return mask


@pytest.mark.parametrize("score", SELECTORS)
def test_the_pairs_that_are_told_are_those_that_are_read(score):
    layout = LAYOUTS["picture, text and reference"]
    q, k, v = drawn(layout, key_heads=2)
    method, cache = BlockSelect(score=score, block=16, keep=2), PatchCache("reference")
    site = Site.of_layout(layout, heads=4)
    told = method.pairs(q, k, site, cache)
    torch.testing.assert_close(attend(method, q, k, v, layout), masked(q, k, v, told))
    assert method.density(site, cache).computed == pytest.approx(told.double().mean().item())
    torch.testing.assert_close(method.seen(q, k, site, cache), told[0].float().mean(0))


def attend(method, q, k, v, layout, cache=None, **site):
    site = Site.of_layout(layout, heads=q.shape[2], role="joint" if layout.text_span else "self", **site)
    return method.attend(q, k, v, site, PatchCache("reference") if cache is None else cache)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("score", SELECTORS)
def test_all_blocks_are_dense_attention(layout, score):
    q, k, v = drawn(layout)
    out = attend(BlockSelect(score=score, keep=1.0, block=16), q, k, v, layout)
    everything = torch.ones(1, 1, layout.length, layout.length, dtype=torch.bool)
    torch.testing.assert_close(out, masked(q, k, v, everything))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("score", [name for name in SELECTORS if name not in ("kmeans", "keys")])
@pytest.mark.parametrize("key_heads", [4, 2])
def test_output_and_gradients_are_those_of_the_chosen_blocks(layout, score, key_heads):
    q, k, v = drawn(layout, key_heads=key_heads)
    method = BlockSelect(score=score, keep=0.4, block=16)
    mask = token_mask(method, q, k, layout)
    assert not mask.all()
    out, expected = attend(method, q, k, v, layout), masked(q, k, v, mask)
    torch.testing.assert_close(out, expected)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(5), dtype=out.dtype)
    for ours, theirs in zip(
        torch.autograd.grad((out * weight).sum(), (q, k, v)),
        torch.autograd.grad((expected * weight).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_hidden_text_is_hidden_exactly():
    layout = LAYOUTS["ragged, text first"]
    q, k, v = drawn(layout)
    key_mask = torch.ones(2, layout.length, dtype=torch.bool)
    key_mask[0, 3:5] = key_mask[1, 1:5] = False
    method = BlockSelect(keep=0.4, block=16)
    mask = token_mask(method, q, k, layout) & key_mask[:, None, None]
    torch.testing.assert_close(attend(method, q, k, v, layout, key_mask=key_mask), masked(q, k, v, mask))


def test_tokens_by_content_meet_those_of_their_cluster():
    layout = layout_of((1, 8, 16))
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(4, (2, 3, 128), generator=generator)
    centres = 12 * torch.eye(8, dtype=torch.float64)[:4]
    x = centres[label] + 0.1 * torch.randn(2, 3, 128, 8, generator=generator, dtype=torch.float64)
    q = k = x.transpose(1, 2)
    v = torch.randn(2, 128, 3, 8, generator=generator, dtype=torch.float64)
    out = attend(BlockSelect(score="kmeans", clusters=8, block=16, keep=5), q, k, v, layout)
    everything = torch.ones(1, 1, 128, 128, dtype=torch.bool)
    dense = masked(q, k, v, everything)
    by_place = attend(BlockSelect(block=16, keep=5), q, k, v, layout)
    # all but tokens of blocks where two clusters meet
    assert ((out - dense).abs().amax(-1) < 1e-6).double().mean() > 0.95
    assert ((by_place - dense).abs().amax(-1) < 1e-6).double().mean() < 0.1


def test_gradients_of_tokens_by_content():
    layout = LAYOUTS["ragged, text first"]
    q, k, v = drawn(layout, key_heads=2)
    method = BlockSelect(score="kmeans", clusters=6, block=16, keep=0.4)
    told = method.pairs(q, k, Site.of_layout(layout, heads=4), PatchCache())
    out, expected = attend(method, q, k, v, layout), masked(q, k, v, told)
    for ours, theirs in zip(
        torch.autograd.grad(out.square().sum(), (q, k, v)),
        torch.autograd.grad(expected.square().sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_counts_are_those_of_the_budget():
    layout = layout_of((4, 8, 8))
    q, k, _ = drawn(layout)
    blocks = BlockSelect(block=16).blocks_on(layout.grid)
    moved = [x.detach()[:, blocks.permutation.order] for x in (q, k)]

    def counts(**settings):
        return BlockSelect(block=16, **settings).select_blocks(*moved, blocks).sum(-1)

    assert blocks.count == 16 and (counts(keep=3) == 3).all() and (counts(keep=0.3) == 5).all()
    shared = counts(keep=3, scope="head")
    assert (shared.sum(-1) == 48).all() and (shared >= 1).all() and shared.min() < 3 < shared.max()
    by_mass = counts(top_p=0.6, most=0.75)
    assert by_mass.min() >= 1 and by_mass.max() <= 12 and len(by_mass.unique()) > 1
    assert (counts(top_p=0.01, least=4) == 4).all() and (counts(top_p=1.0, most=0.25) == 4).all()
    assert (counts(keep=2, sink="first_frame") >= blocks.first.sum()).all()
    assert (counts(keep=1, guard=1.0) == 16).all() and (counts(keep=2, guard=-1.0) == 2).all()


def test_top_p_keeps_the_share_of_the_true_mass_it_was_asked_for():
    layout = layout_of((4, 8, 8))
    q, k, _ = drawn(layout)
    blocks = BlockSelect(block=16).blocks_on(layout.grid)
    moved = [x.detach()[:, blocks.permutation.order] for x in (q, k)]
    # with all rows read, the offset-free score is the true mass
    method = BlockSelect(score="proxy", groups=4, block=16, top_p=0.7, most=1.0)
    chosen, mass = method.select_blocks(*moved, blocks), block_mass(*moved, 16, 16)
    kept = (mass * chosen).sum(-1)
    assert (kept >= 0.7 - 1e-6).all()
    smallest = mass.masked_fill(~chosen | blocks.own, torch.inf).amin(-1)
    more_than_own = chosen.sum(-1) > 1
    assert ((kept - smallest)[more_than_own] < 0.7).all()


def test_a_shared_ranking_with_budgets_of_every_head():
    layout = layout_of((4, 8, 8))
    q, k, _ = drawn(layout)
    with torch.no_grad():
        q[:, :, 0] *= 3
    blocks = BlockSelect(block=16).blocks_on(layout.grid)
    moved = [x.detach()[:, blocks.permutation.order] for x in (q, k)]
    settings = {"score": "proxy", "agreement": -1.0, "block": 16, "top_p": 0.6, "most": 1.0}
    shared = BlockSelect(ranking="shared", **settings).select_blocks(*moved, blocks)
    pooled = BlockSelect(block=16, top_p=0.6, most=1.0).select_blocks(*moved, blocks)
    assert torch.equal(shared.sum(-1), pooled.sum(-1)) and not torch.equal(shared, pooled)
    # the lists of two heads are beginnings of one ranking, but for the own block
    small, large = (shared & ~blocks.own)[:, :2].sort(1).values.unbind(1)
    assert ((small & ~large).sum(-1) == 0).all()


def test_what_is_dropped_is_read_as_means():
    layout = layout_of((2, 8, 8))
    q, k, v = drawn(layout, batch=1, heads=2, key_heads=2)
    method = BlockSelect(block=16, keep=2, tail=4)
    blocks = method.blocks_on(layout.grid)
    order = blocks.permutation.order
    qo, ko, vo = (x[:, order] for x in (q, k, v))
    chosen = method.select_blocks(qo, ko, blocks)
    means_k, means_v = (x.unflatten(1, (-1, 4)).mean(2) for x in (ko, vo))
    scores = torch.einsum("bqhd,bkhd->bhqk", qo, torch.cat([ko, means_k], 1)) * 8**-0.5
    scores = scores + torch.cat([torch.zeros(128), torch.full((32,), math.log(4))])
    exact = chosen.repeat_interleave(16, 2).repeat_interleave(16, 3)
    coarse = ~chosen.repeat_interleave(16, 2).repeat_interleave(4, 3)
    weights = scores.masked_fill(~torch.cat([exact, coarse], 3), -torch.inf).softmax(-1)
    expected = torch.einsum("bhqk,bkhd->bqhd", weights, torch.cat([vo, means_v], 1))[:, order.argsort()]
    cache = PatchCache("reference")
    out = attend(method, q, k, v, layout, cache)
    torch.testing.assert_close(out, expected)
    for ours, theirs in zip(
        torch.autograd.grad(out.square().sum(), (q, k, v)),
        torch.autograd.grad(expected.square().sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)
    site = Site.of_layout(layout, heads=2)
    assert method.density(site, cache).executed == pytest.approx(2 / 8 + 6 / 8 / 4)


def test_a_selection_serves_the_steps_it_should_and_what_that_missed_is_told():
    layout = layout_of((2, 8, 8))
    method = BlockSelect(block=16, keep=3, refresh=2)
    cache = PatchCache("reference")
    inputs = [[x.detach() for x in drawn(layout, seed=seed)] for seed in range(5)]

    def at(step, seed, branch="cond", run=0):
        return attend(method, *inputs[seed], layout, cache, step=step, steps=4, branch=branch, run=run)

    def with_mask_of(chooser, seed):
        q, k, v = inputs[seed]
        return masked(q, k, v, token_mask(method, *inputs[chooser][:2], layout))

    torch.testing.assert_close(at(0, 0), with_mask_of(0, 0))
    torch.testing.assert_close(at(0, 4, "uncond"), with_mask_of(4, 4))
    torch.testing.assert_close(at(1, 1), with_mask_of(0, 1))
    assert method.remarks(cache) == []
    torch.testing.assert_close(at(2, 2), with_mask_of(2, 2))
    torch.testing.assert_close(at(3, 3), with_mask_of(2, 3))
    old, new = (token_mask(method, *inputs[seed][:2], layout) for seed in (0, 2))
    [told] = method.remarks(cache)
    assert f"{(old & new).sum() / new.sum():.0%} of the blocks" in told
    # another run begins at an earlier step
    torch.testing.assert_close(at(2, 1), with_mask_of(1, 1))
    torch.testing.assert_close(attend(method, *inputs[3], layout, cache), with_mask_of(3, 3))
    # or at a later one, where a schedule counts from the end
    torch.testing.assert_close(at(3, 4, run=1), with_mask_of(4, 4))


def test_rows_of_a_batch_do_not_meet():
    layout = LAYOUTS["video"]
    for score in SELECTORS:
        q, k, v = drawn(layout)
        method = BlockSelect(score=score, block=16, keep=3)
        both = attend(method, q, k, v, layout)
        for row in range(2):
            alone = attend(method, *(x[row : row + 1] for x in (q, k, v)), layout)
            torch.testing.assert_close(both[row : row + 1], alone)


def test_the_same_call_gives_the_same_bits():
    layout = LAYOUTS["picture, text and reference"]
    q, k, v = drawn(layout, dtype=torch.float32)
    for score in SELECTORS:
        method = BlockSelect(score=score, block=16, keep=2)
        assert torch.equal(attend(method, q, k, v, layout), attend(method, q, k, v, layout))


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_their_settings(preset):
    method = BlockSelect(preset=preset)
    for name, value in (PLAIN | PRESETS[preset].settings).items():
        assert getattr(method, name) == value
    assert BlockSelect(**method.settings()) == method
    assert method.describe() == f"block_select(preset={preset})"
    assert registry.build("block_select", {"preset": preset}) == method
    assert PRESETS[preset].source and PRESETS[preset].differs
    other = BlockSelect(preset=preset, block=256, **({"keep": 0.3} if method.top_p is None else {"top_p": 0.5}))
    assert other.block == 256 and "block=256" in other.describe()
    layout = LAYOUTS["ragged, text first"]
    q, k, v = drawn(layout)
    assert attend(method, q, k, v, layout).isfinite().all()


def test_blocks_are_compact_and_of_one_size():
    assert auto_across((7, 16, 16), 64) == (4, 4) and auto_across((1, 64, 64), 64) == (1, 8)
    assert auto_across((2, 16, 16), 64) == (2, 6)
    blocks = GridBlocks((4, 8, 8), 64, (4, 4))
    assert sorted(map(tuple, blocks.places.tolist())) == [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1)]
    ragged = GridBlocks((3, 5, 7), 16, (2, 3))
    assert ragged.sizes.tolist() == [16.0] * 6 + [9.0]
    assert torch.equal(ragged.permutation.order.sort().values, torch.arange(105))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"preset": "radial"}, "xattention"),
        ({"score": "best"}, "pooled"),
        ({"keep": 0}, "keep"),
        ({"keep": 1.5}, "keep"),
        ({"keep": True}, "keep"),
        ({"top_p": 1.2}, "top_p"),
        ({"top_p": 0.9, "keep": 3}, "no effect"),
        ({"least": 2}, "belong to top_p"),
        ({"ranking": "shared"}, "belong to top_p"),
        ({"top_p": 0.9, "scope": "head"}, "no effect"),
        ({"stride": 4}, "score=pooled"),
        ({"score": "antidiagonal", "stride": 7}, "allowed"),
        ({"tail": 7}, "allowed"),
        ({"tail": 1}, "tail"),
        ({"score": "tree", "top_p": 0.9}, "masses"),
        ({"score": "kmeans", "sink": "first_frame"}, "no boxes"),
        ({"block": 4}, "block"),
        ({"across": (0, 4)}, "across"),
        ({"refresh": 0}, "refresh"),
        ({"guard": 2.0}, "guard"),
        ({"block": 8192}, "from 8 to 4096"),
        ({"block": 2**70, "tail": 7}, "block"),
        ({"score": "sampled", "seed": 2**70}, "seed"),
        ({"score": "kmeans", "iterations": 1001}, "iterations"),
        ({"score": "tree", "slack": 0.5}, "slack"),
        ({"score": "proxy", "agreement": -2.0}, "agreement"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, text):
    with pytest.raises(UsageError) as refused:
        BlockSelect(**settings)
    assert text in str(refused.value) and "block_select" in str(refused.value)


@pytest.mark.parametrize("preset", [None, *PRESETS])
@pytest.mark.parametrize(
    "changed",
    [
        {}, {"top_p": 0.9}, {"keep": 0.3}, {"keep": 0.2, "scope": "head"}, {"top_p": None}, {"tail": None},
        {"guard": None}, {"across": None}, {"agreement": None}, *({"score": name} for name in SELECTORS),
    ],
)  # fmt: skip
def test_settings_can_be_given_again(preset, changed):
    """Reports, files and recipes hold the settings; what is made of them is the same method."""
    base = PLAIN | (PRESETS[preset].settings if preset else {}) | changed
    if (base["score"] in ("tree", "keys") and base["top_p"]) or ("agreement" in changed and base["score"] != "proxy"):
        with pytest.raises(UsageError, match="masses|no effect"):
            BlockSelect(preset=preset, **changed)
        return
    method = BlockSelect(preset=preset, **changed)
    assert BlockSelect(**method.settings()) == method
    assert registry.build("block_select", method.settings()) == method
    for name, value in changed.items():
        assert getattr(method, name) == value


@pytest.mark.parametrize("preset", PRESETS)
def test_none_goes_before_a_preset(preset):
    for name in ("across", "top_p", "tail", "guard", *(["agreement"] if preset == "proxyattn" else [])):
        built = registry.build("block_select", {"preset": preset, name: "none"})
        assert getattr(built, name) is None
