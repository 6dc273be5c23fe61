"""Two branches: untrained they are the sparse part bit for bit; trained, the formula pair by pair; the fit is ridge."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from attention_helpers import tokens
from test_linear_attention import JOINT, VIDEO, Module, installed, pair_weights

import genkit
from genkit.attention import registry
from genkit.attention.block_select import BlockSelect
from genkit.attention.cache import PatchCache
from genkit.attention.linear_forms import FORMS, LinearWeights
from genkit.attention.site import Place, Site
from genkit.attention.sparse_linear import ProjectionFit, SparseLinear
from genkit.attention.sparse_linear.fit import Equations, Sums
from genkit.attention.sparse_part import able, parse, tellers
from genkit.attention.static import dense_attention
from genkit.attention.weights import PatchWeights
from genkit.errors import ArtifactError, UsageError
from genkit.layout import TokenLayout

# A sparse part of every kind, small enough to drop something of 60 tokens.
PARTS = {
    "block_select": "block_select block=8 keep=2",
    "neighborhood": "neighborhood size=allx1x3",
    "radial": "radial block_size=16 near=decay sink=false decay_factor=0.01 thin_below=128",
    "shards": "shards block=8 stride=3 local=0",
    "shifted_groups": "shifted_groups group=1 sink=none",
    "mixture_of_block": "mixture_of_block temporal=1 spatial=2x2 box=1x2x2",
    "pyramid": "pyramid block=8 thresholds=0.2x0.3x0.5x0.6",
}
LAYOUTS = {"video": VIDEO, "joint": JOINT}


def site_of(layout, heads=2, **more):
    return Site.of_layout(layout, heads=heads, **more)


TELLERS = ("block_select", "neighborhood", "radial", "shards", "shifted_groups")


def test_what_can_be_a_part():
    assert set(PARTS) <= set(able()) and set(TELLERS) <= set(tellers()) <= set(able())
    assert not {"agent", "linear_attention", "reference", "sliding_window", "sparse_linear"} & set(able())
    assert not {"mixture_of_block", "pyramid"} & set(tellers())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("keys", ["unselected", "all", "past"])
@pytest.mark.parametrize("part", PARTS)
def test_untrained_is_the_sparse_part_bit_for_bit(part, keys, layout):
    if keys == "unselected" and part not in TELLERS:
        with pytest.raises(UsageError, match="allowed: .*block_select.*radial.*, or keys"):
            SparseLinear(sparse=PARTS[part], keys=keys)
        return
    method, inputs = SparseLinear(sparse=PARTS[part], keys=keys), tokens(LAYOUTS[layout])
    site = site_of(LAYOUTS[layout])
    alone = parse(PARTS[part], "x").attend(*inputs, site, PatchCache())
    assert torch.equal(method.attend(*inputs, site, installed(method)), alone)
    assert not torch.equal(method.attend(*inputs, site, installed(method, scale=0.3)), alone)


def read_pairs(method, q, k, v, site):
    """(B, H, N, N): the pairs of the blocks that the sparse part visited, and all pairs with a token outside the
    grid, from the plan it told."""
    _, read = method.part.attend_blocks(q, k, v, site, PatchCache())
    start, stop = site.layout.grid_span
    plan, n = read.plan, site.layout.length
    found = torch.ones(len(q), q.shape[2], n, n, dtype=torch.bool)
    if plan is None:
        return found
    if read.grid:
        order = read.permutation.inverse if read.permutation is not None else torch.arange(stop - start)
        places = [order // plan.block_q, order // plan.block_k]
        span = slice(start, stop)
    else:
        orders = (plan.order, plan.key_order)
        places = [
            (torch.arange(n) if order is None else order.inverse) // block
            for order, block in zip(orders, (plan.block_q, plan.block_k), strict=True)
        ]
        span = slice(None)
    visited = (plan.in_order().states() != 0)[:, :, places[0]][..., places[1]]
    found[:, :, span, span] = visited
    return found


def by_hand(method, q, k, v, site, own, visible=None):
    """sparse + (branch W + c), the branch from its weights of all pairs."""
    layout = site.layout
    start, stop = layout.grid_span
    out = method.part.attend(q, k, v, site, PatchCache())
    repeat = q.shape[2] // k.shape[2]
    wide_k, wide_v = (x.repeat_interleave(repeat, 2) for x in (k, v))
    grid = TokenLayout.of_grid(*layout.grid)
    if method.keys == "all":
        weights = pair_weights(method.form, q, wide_k, layout, False, visible, own)
        rest = torch.einsum("bhij,bjhe->bihe", weights, wide_v)[:, start:stop]
    else:
        eps = FORMS[method.form].eps
        weights = pair_weights(method.form, q, wide_k, layout, False, None, own)
        plain = weights  # normalised over all; the quotient of the rest has the same numerators
        if method.keys == "unselected":
            keep = ~read_pairs(method, q, k, v, site)
        else:
            frame = torch.full((layout.length,), 10**6)
            frame[start:stop] = torch.arange(stop - start) // grid.frame_tokens
            keep = (frame[None] + method.lag <= frame[:, None])[None, None].expand(plain.shape)
        if visible is not None:
            keep = keep & visible[:, None, None]
        phi = {"softmax": lambda x: x.softmax(-1), "relu": torch.relu}.get(
            method.form, lambda x: torch.nn.functional.elu(x) + 1
        )
        kept = torch.einsum("bihd,bjhd->bhij", phi(q), phi(wide_k)) * keep
        rest = torch.einsum("bhij,bjhe->bihe", kept / (kept.sum(-1, keepdim=True) + eps), wide_v)[:, start:stop]
    rule = "bnhd,de->bnhe" if own.weight.dim() == 2 else "bnhd,hde->bnhe"
    out = out.clone()
    out[:, start:stop] += torch.einsum(rule, rest, own.weight) + own.bias
    return out


CASES = [
    (part, "unselected", form, projection)
    for part in ("block_select", "neighborhood", "radial", "shards", "shifted_groups")
    for form, projection in (("softmax", "shared"), ("elu", "head"))
] + [
    ("pyramid", "all", "softmax", "head"), ("mixture_of_block", "all", "elu", "shared"),
    ("block_select", "all", "flow", "shared"), ("block_select", "past", "softmax", "shared"),
    ("neighborhood", "past", "relu", "head"),
]  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_value_and_gradients_equal_the_formula(case, layout):
    part, keys, form, projection = case
    lag = {"lag": 2} if keys == "past" else {}
    method = SparseLinear(sparse=PARTS[part], keys=keys, form=form, projection=projection, **lag)
    layout = LAYOUTS[layout]
    cache = installed(method, 4, scale=0.5)
    own = PatchWeights.of(cache).at("sparse_linear", "site")
    inputs = [x.requires_grad_() for x in tokens(layout, heads=4, key_heads=2, dtype=torch.float64)]
    visible = None
    if layout is JOINT:
        visible = torch.ones(2, layout.length, dtype=torch.bool)
        visible[1, 2:5] = False
    site = site_of(layout, 4, key_mask=visible)
    out, right = method.attend(*inputs, site, cache), by_hand(method, *inputs, site, own, visible)
    torch.testing.assert_close(out, right, rtol=1e-6, atol=1e-7)
    wanted = [*inputs, *own.parameters()]
    slope = torch.sin(torch.arange(out.numel()).double()).view(out.shape)
    found = (torch.autograd.grad((x * slope).sum(), wanted) for x in (out, right))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
    assert own.weight.grad is None and (out - method.part.attend(*inputs, site, PatchCache())).abs().max() > 0.05


def test_everything_selected_leaves_nothing_to_the_branch():
    """topk = 1: the denominator is 0 and so is the branch; with W whatever it is, dense attention but for c."""
    method = SparseLinear(sparse=BlockSelect(keep=1.0, block=8))
    inputs = tokens(VIDEO)
    cache = installed(method, scale=0.5)
    own = PatchWeights.of(cache).at("sparse_linear", "site")
    with torch.no_grad():
        own.bias.zero_()
    out = method.attend(*inputs, site_of(VIDEO), cache)
    torch.testing.assert_close(out, dense_attention(*inputs, None, None), atol=2e-6, rtol=1e-5)


def test_the_state_of_hybrid_forcing_reads_the_frames_that_left_the_window():
    """Its worked form: numerator of raw products, denominator of relu, over frames lag or more before."""
    method = SparseLinear(sparse=PARTS["neighborhood"], keys="past", form="state", lag=2)
    q, k, v = tokens(VIDEO, dtype=torch.float64)
    cache = PatchCache()
    method.install(Place("site", "self", 0, 1, 2, Module(16)), cache)
    _, rest = method.branches(q, k, v, site_of(VIDEO), cache, PatchWeights.of(cache).at("sparse_linear", "site"))
    frame = torch.arange(60) // 15
    keep = (frame[None] + 2 <= frame[:, None]).double()
    top = torch.einsum("bihd,bjhd,ij,bjhe->bihe", q, k, keep, v)
    below = torch.einsum("bihd,bjhd,ij->bih", q.relu(), k.relu(), keep)[..., None]
    least = 1e-3 * below[:, 30:].mean(1, keepdim=True)
    assert not rest[:, :30].any()
    torch.testing.assert_close(rest[:, 30:], (top / torch.maximum(below, least).clamp(min=1e-6))[:, 30:])


def test_weights_tell_how_they_were_made_and_fit_nothing_else(tmp_path):
    method = SparseLinear(sparse=PARTS["block_select"])
    cache = installed(method, scale=0.5)
    file = str(PatchWeights.of(cache).save(tmp_path / "w.safetensors"))
    again = registry.trained("sparse_linear", file)
    assert again == dataclasses.replace(method, weights=file)
    other = installed(again)
    again.ready(other)
    inputs = tokens(VIDEO)
    assert torch.equal(again.attend(*inputs, site_of(VIDEO), other), method.attend(*inputs, site_of(VIDEO), cache))
    per_head = dataclasses.replace(again, projection="head")
    with pytest.raises(ArtifactError, match="projection was shared, here it is head"):
        per_head.ready(installed(per_head))


def test_weights_of_another_form_of_keys_are_refused(tmp_path):
    """SLA's two published branches differ in what is summed; shapes cannot tell them apart, the file does."""
    method = SparseLinear(sparse=PARTS["block_select"], keys="all")
    file = str(PatchWeights.of(installed(method, scale=0.5)).save(tmp_path / "w.safetensors"))
    for changed in ({"keys": "unselected"}, {"keys": "all", "form": "elu"}):
        other = SparseLinear(sparse=PARTS["block_select"], weights=file, **changed)
        with pytest.raises(ArtifactError, match="sparse_linear.(keys|form) was"):
            other.ready(installed(other))


def test_the_fit_is_ridge_regression_of_what_is_missing():
    for projection in ("shared", "head"):
        method = SparseLinear(sparse=PARTS["block_select"], projection=projection)
        fit = ProjectionFit(method, ridge=1e-2)
        cache = PatchCache()
        fit.install(Place("site", "self", 0, 1, 2, Module(16)), cache)
        own = PatchWeights.of(cache).at("sparse_linear", "site")
        rest, wanted = [], []
        for seed in range(3):
            inputs = tokens(VIDEO, seed=seed, dtype=torch.float64)
            dense = fit.attend(*inputs, site_of(VIDEO), cache)
            torch.testing.assert_close(dense, dense_attention(*inputs, None, None))
            sparse, y = method.branches(*inputs, site_of(VIDEO), PatchCache(), own)
            rest.append(y)
            wanted.append(dense - sparse)
        y, r = torch.cat(rest), torch.cat(wanted)
        groups = [slice(0, 2)] if projection == "shared" else [slice(0, 1), slice(1, 2)]
        left = fit.solve()["site"]
        assert 0 < left < 1
        for number, heads in enumerate(groups):
            a, b = (x[:, :, heads].flatten(0, 2) for x in (y, r))
            a = torch.cat([a, torch.ones_like(a[:, :1])], 1)
            penalty = a[:, :-1].square().sum(0).mean() * 1e-2 * torch.eye(9, dtype=torch.float64)
            penalty[-1, -1] = penalty[0, 0] * 1e-7 + 1e-9 * y.shape[0] * y.shape[1]
            right = torch.linalg.solve(a.T @ a + penalty, a.T @ b)
            weight = own.weight if projection == "shared" else own.weight[number]
            torch.testing.assert_close(weight.detach(), right[:-1], rtol=1e-6, atol=1e-9)
        new = (r - own.project(y)).square().sum() / r.square().sum()
        assert new.item() == pytest.approx(left, rel=1e-6)


def test_the_penalty_serves_runs_that_were_left_out_or_there_is_no_branch():
    """What the branch can tell (a map that holds for all runs) is learned, what is of one run alone is not."""
    draw = torch.Generator().manual_seed(3)
    for lawful in (True, False):
        own = LinearWeights(Place("site", "self", 0, 1, 2, Module(16)), "softmax", "shared")
        sums, law = Sums(own), torch.randn(8, 8, generator=draw, dtype=torch.float64)
        for run in range(4):
            y = torch.randn(1, 12, 2, 8, generator=draw, dtype=torch.float64)
            mine = law if lawful else torch.randn(8, 8, generator=draw, dtype=torch.float64)
            sums.add(y, y @ mine, run)
        left = sums.solve("auto")
        assert (left < 0.01) == lawful and (lawful or left > 0.8)
        assert sums.solve(1e-4) < left + 1e-3  # on what was fitted a small penalty always looks better
    for run in range(4):  # the same outputs ask for opposite things: no branch is best
        sums.folds[run] = Equations.of(y, (-1) ** run * (y @ law))
    assert sums.solve("auto") == 1 and not own.weight.any() and not own.bias.any()


def test_a_fit_without_calls_or_over_weights_is_refused(tmp_path):
    with pytest.raises(UsageError, match="seen no call"):
        ProjectionFit(SparseLinear()).solve()
    with pytest.raises(UsageError, match="weights already"):
        ProjectionFit(SparseLinear(weights="x.safetensors"))
    with pytest.raises(UsageError, match="ridge"):
        ProjectionFit(SparseLinear(), ridge=0)
    fit, cache = ProjectionFit(SparseLinear(sparse=PARTS["block_select"])), PatchCache()
    fit.install(Place("site", "self", 0, 1, 2, Module(16)), cache)
    fit.attend(*tokens(VIDEO), site_of(VIDEO), cache)
    with pytest.raises(UsageError, match="one sampling run"):
        fit.write(tmp_path / "x.safetensors")


def test_refusals_say_what_is_allowed():
    for text, words in (
        ("", "block_select keep=0.1"), ("sparse", "allowed: .*block_select"), ("block_select keep", "setting=value"),
        ("block_select keep=0", "block_select.keep"), ("block_select keep=0.1 keep=0.2", "given twice"),
        ("block_select size=3", "setting of block_select"), ("agent", "chooses no pairs"),
        ("sliding_window", "nothing can be trained"), ("sparse_linear", "two branches"),
        ("cross_modal_context", "audio_to_video"), ("linear_attention", "chooses no pairs"),
        ("reference", "cannot be the sparse part"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=words):
            SparseLinear(sparse=text)
    for options, words in (
        ({"form": "flow"}, "keys=unselected: got 'flow'.*softmax, elu, relu, rala"),
        ({"keys": "past", "form": "lightnet"}, "allowed: softmax, elu, relu, state"),
        ({"lag": 2}, "no effect"), ({"keys": "past", "lag": 0}, "lag"), ({"projection": "both"}, "shared"),
        ({"keys": "some"}, "unselected"), ({"sparse": "block_select tail=16"}, "whole blocks"),
        ({"sparse": "block_select score=kmeans"}, "whole blocks"), ({"sparse": 3}, "with its settings"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=words):
            SparseLinear(**options)


@pytest.mark.parametrize(
    "part",
    [
        BlockSelect(keep=3, block=32), BlockSelect(preset="sparge", guard=None), genkit.Radial(block_size=64),
        genkit.Neighborhood(size=("all", 5, 0.5)), genkit.Pyramid(cap=(0.7, 0.65, 0.6), block=32),
        genkit.ShiftedGroups(),
    ],
    ids=lambda part: part.name,
)  # fmt: skip
def test_a_method_becomes_a_text_that_says_the_same(part):
    method = SparseLinear(sparse=part, keys="all")
    assert method.part == part and parse(method.sparse, "x") == part
    assert registry.build("sparse_linear", {"sparse": method.sparse, "keys": "all"}) == method
    assert hash(method) == hash(SparseLinear(sparse=method.sparse, keys="all"))


def test_density_counts_the_branch_and_the_report_says_when_it_is_idle():
    method = SparseLinear(sparse=PARTS["block_select"])
    cache, site = installed(method), site_of(VIDEO)
    before = method.part.density(site, cache)
    method.attend(*tokens(VIDEO), site, cache)
    after = method.density(site, cache)
    assert after.computed == pytest.approx(before.computed, rel=0.2)
    assert after.executed == pytest.approx(method.part.density(site, cache).executed + 1.5 * 8 / 60)
    assert "projection of the linear branch is zero" in method.remarks(cache)[-1]
    assert not any("zero" in text for text in method.remarks(installed(method, scale=1.0)))


def test_the_picture_shows_the_branch_behind_the_pairs():
    q, k = (torch.randn(1, 60, 2, 16, generator=torch.Generator().manual_seed(i)) for i in range(2))
    for part in ("block_select", "neighborhood"):
        seen = SparseLinear(sparse=PARTS[part]).seen(q, k, site_of(VIDEO), PatchCache())
        assert seen.max() == 1 and seen.min() == pytest.approx(1e-3)
    past = SparseLinear(sparse=PARTS["neighborhood"], keys="past", lag=2).seen(q, k, site_of(VIDEO), PatchCache())
    assert not _shaded(past[:30]) and (past[45:, :30] > 0).all() and not _shaded(past[45:, 30:])


def _shaded(seen):
    return bool(((seen > 0) & (seen < 0.01)).any())
