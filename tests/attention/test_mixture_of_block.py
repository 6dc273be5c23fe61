"""Mixture of block: which blocks are chosen, and exact attention on the chosen ones."""

from __future__ import annotations

import pytest
import torch
from attention_helpers import attention_over, tokens

from genkit.attention.cache import PatchCache
from genkit.attention.mixture_of_block import MixtureOfBlock, Partition
from genkit.attention.mixture_of_block.select import (
    block_means,
    gates,
    means_by_product,
    running_sum,
    select_threshold,
    select_top_k,
)
from genkit.attention.site import Site
from genkit.errors import UsageError
from genkit.kernels import merge
from genkit.layout import TokenLayout

VIDEO = TokenLayout.of_grid(4, 6, 6)
RAGGED = TokenLayout.of_grid(5, 7, 6, text=5)
FIRST = TokenLayout.of_grid(4, 4, 6, text=7, text_first=True)


def site_of(layout, layer=0, **more):
    role = "joint" if len(layout.segments) > 1 else "self"
    return Site(f"layer{layer}", layer, 6, role, 2, layout, layout, **more)


def test_blocks_gather_the_published_tokens():
    spatial, box = Partition((2, 4, 4), (2, 2, 2)), Partition((2, 4, 4), (1, 2, 2))
    assert spatial.permutation.order[:8].tolist() == [0, 1, 4, 5, 16, 17, 20, 21] and spatial.starts == [
        0,
        8,
        16,
        24,
        32,
    ]
    assert box.permutation.order[:8].tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    temporal = Partition((5, 3, 4), (2, 3, 4))
    assert torch.equal(temporal.permutation.order, torch.arange(60)) and temporal.starts == [0, 24, 48, 60]
    for part in (spatial, box, temporal):
        assert torch.equal(part.permutation.order[part.permutation.inverse], torch.arange(len(part.permutation.order)))
        assert torch.equal(part.own.sum(0), torch.tensor(part.starts).diff())


def test_layers_take_turns():
    assert [MixtureOfBlock().kind(layer) for layer in range(4)] == ["temporal", "spatial", "box", "temporal"]
    late = MixtureOfBlock(cycle=(2, 1, 1), first_layer=1)
    assert [late.kind(layer) for layer in range(1, 6)] == ["temporal", "temporal", "spatial", "box", "temporal"]
    assert {MixtureOfBlock(cycle=(0, 1, 0)).kind(layer) for layer in range(5)} == {"spatial"}


def test_published_block_sizes_give_the_published_counts():
    method = MixtureOfBlock(temporal=3, spatial=(6, 8), box=(8, 12, 8))
    counts = [
        len(Partition((24, 36, 64), method.block_box((24, 36, 64), kind)).starts) - 1
        for kind in ("temporal", "spatial", "box")
    ]
    assert counts == [8, 48, 72 * 8 * 12 * 8 // (8 * 12 * 8)]
    assert [MixtureOfBlock().blocks_kept(count) for count in (7, 24, 72)] == [2, 6, 18]
    auto = MixtureOfBlock().block_box
    assert auto((24, 36, 64), "temporal") == (3, 36, 64)
    assert auto((21, 30, 52), "temporal") == (3, 30, 52)


TINY_OWN = torch.tensor([[1, 0], [1, 0], [0, 1]]).bool()
TINY_GATE = torch.tensor([[4.0, 1.0, 0.0], [2.0, 3.0, 1.0]]).T[None, None]


@pytest.mark.parametrize(
    ("scope", "tau", "expected"),
    [
        ("head", 0.3, [[1, 1, 0], [0, 1, 1]]),
        ("head", 0.6, [[1, 1, 0], [0, 1, 1]]),
        ("head", 0.9, [[1, 1, 0], [1, 1, 1]]),
        ("head", 1.5, [[1, 1, 1], [1, 1, 1]]),
        ("all", 0.9, [[1, 1, 0], [1, 1, 1]]),
        ("block", 0.3, [[1, 1, 1], [0, 1, 1]]),
        ("query", 0.3, [[1, 1, 1], [1, 1, 1]]),
    ],
)
def test_thresholds_choose_the_worked_examples_blocks(scope, tau, expected):
    assert select_threshold(TINY_GATE, TINY_OWN, tau, scope, None)[0, 0].T.int().tolist() == expected


@pytest.mark.parametrize(
    ("tau", "head", "query"), [(0.15, 0.112, 0.098), (0.25, 0.193, 0.163), (0.35, 0.278, 0.235), (0.5, 0.416, 0.355)]
)
def test_random_gates_give_the_measured_densities(tau, head, query):
    own = torch.nn.functional.one_hot(torch.arange(4608) // 64, 72).bool()
    gate = torch.randn(1, 1, 4608, 72, generator=torch.Generator().manual_seed(0))
    assert select_threshold(gate, own, tau, "head", None).float().mean().item() == pytest.approx(head, rel=0.02)
    assert select_threshold(gate, own, tau, "query", None).float().mean().item() == pytest.approx(query, rel=0.01)


@pytest.mark.parametrize("scope", ["query", "block", "head", "all"])
def test_an_unreachable_threshold_keeps_everything_flat_gates_the_own_block(scope):
    own = torch.nn.functional.one_hot(torch.arange(24) // 3, 8).bool()
    gate = torch.randn(2, 3, 24, 8, generator=torch.Generator().manual_seed(1))
    assert select_threshold(gate, own, 1.5, scope, None).all()
    flat = select_threshold(torch.full_like(gate, 0.3), own, 0.25, scope, None)
    assert torch.equal(flat, own.expand_as(flat))
    capped = select_threshold(gate, own, 1.5, scope, 0.5)
    assert capped.float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert (capped & own).sum() == own.sum() * 6


@pytest.mark.parametrize("scope", ["query", "head", "all"])
def test_top_k_keeps_own_blocks_and_its_budget(scope):
    own = torch.nn.functional.one_hot(torch.arange(24) // 3, 8).bool()
    gate = torch.randn(2, 3, 24, 8, generator=torch.Generator().manual_seed(1))
    chosen = select_top_k(gate, own, 3, scope)
    assert chosen.sum().item() == 3 * 2 * 3 * 24 and (chosen & own).sum() == own.sum() * 6
    if scope == "query":
        assert (chosen.sum(-1) == 3).all()
    assert select_top_k(gate, own, 8, scope).all()


def test_equal_gates_go_to_the_lower_block_and_nan_to_the_front():
    gate = torch.randint(0, 3, (2, 3, 40, 9), generator=torch.Generator().manual_seed(0)).float()
    gate[0, 0, 0, 4] = torch.nan
    own = torch.zeros(40, 9, dtype=torch.bool)
    chosen = select_top_k(gate, own, 4, "query")
    for batch, head, query in ((b, h, n) for b in range(2) for h in range(3) for n in range(40)):
        values = gate[batch, head, query].nan_to_num(nan=float("inf")).tolist()
        best = sorted(range(9), key=lambda block: (-values[block], block))[:4]
        assert sorted(best) == chosen[batch, head, query].nonzero().flatten().tolist()


def test_selection_equals_a_loop_over_queries():
    own = torch.nn.functional.one_hot(torch.arange(20) // 4, 5).bool()
    gate = torch.randn(1, 2, 20, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for tau in (0.1, 0.25, 0.6, 0.95):
        chosen = select_threshold(gate, own, tau, "query", None)
        for head in range(2):
            for query in range(20):
                row = gate[0, head, query]
                weight = (row - row.min()) / (row.max() - row.min())
                mine = query // 4
                kept, mass = {mine}, weight[mine].item()
                for block in weight.argsort(descending=True).tolist():
                    if block == mine:
                        continue
                    kept.add(block)
                    mass += weight[block].item()
                    if mass >= tau * weight.sum().item():
                        break
                assert set(chosen[0, head, query].nonzero().flatten().tolist()) == kept


@pytest.mark.parametrize("scope", ["block", "head", "all"])
@pytest.mark.parametrize("tau", [0.0001, 0.25, 0.6, 0.95])
def test_shared_budgets_equal_a_loop(scope, tau):
    """Per block (all queries and heads), per head, over all: own entries, then the best until the share is there."""
    own = torch.nn.functional.one_hot(torch.arange(12) // 3, 4).bool()
    gate = torch.randn(2, 3, 12, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    chosen = select_threshold(gate, own, tau, scope, None)
    groups: dict[tuple, list[tuple[int, ...]]] = {}
    for place in [tuple(p) for p in torch.ones_like(gate).nonzero().tolist()]:
        item, head, _, block = place
        groups.setdefault({"block": (item, block), "head": (item, head), "all": (item,)}[scope], []).append(place)
    for places in groups.values():
        values = [gate[place].item() for place in places]
        low, high = min(values), max(values)
        weight = {place: (value - low) / (high - low) for place, value in zip(places, values, strict=True)}
        mine = {place for place in places if own[place[2], place[3]]}
        kept, mass = set(mine), sum(weight[place] for place in mine)
        for place in sorted(set(places) - mine, key=weight.get, reverse=True):
            kept.add(place)
            mass += weight[place]
            if mass >= tau * sum(weight.values()):
                break
        assert {place for place in places if chosen[place]} == kept


def test_a_blocks_budget_goes_to_the_heads_that_want_it():
    """Twelve heads, one of which has all the similarity: with ``scope="block"`` it alone gets more than own blocks."""
    own = torch.nn.functional.one_hot(torch.arange(27) // 3, 9).bool()
    gate = torch.rand(1, 12, 27, 9, generator=torch.Generator().manual_seed(5)) * 1e-3
    gate[:, 7] += torch.rand(27, 9, generator=torch.Generator().manual_seed(6)) + 1
    chosen = select_threshold(gate, own, 0.5, "block", None) & ~own
    assert chosen[:, 7].sum() > 50 and not chosen[:, [head for head in range(12) if head != 7]].any()
    assert (select_threshold(gate, own, 0.5, "head", None) & ~own).any((0, 2, 3)).all()


@pytest.mark.parametrize("scope", ["query", "block", "head", "all"])
@pytest.mark.parametrize("tau", [0.0001, 0.3, 0.9])
def test_own_blocks_are_always_taken(scope, tau):
    own = torch.nn.functional.one_hot(torch.arange(24) // 3, 8).bool()
    gate = torch.randn(2, 3, 24, 8, generator=torch.Generator().manual_seed(3))
    gate[..., 0] += 5  # everybody's favourite is one block
    chosen = select_threshold(gate, own, tau, scope, None)
    assert (chosen & own).sum() == own.sum() * 6 and chosen.sum(-1).min() >= 1


def test_a_single_block_is_dense_attention():
    q, k, v = tokens(VIDEO)
    whole = MixtureOfBlock(temporal=4, spatial=(6, 6), box=(4, 6, 6))
    right = attention_over(q, k, v, torch.ones(VIDEO.length, VIDEO.length, dtype=torch.bool))
    for layer in range(3):
        out = whole.attend(q, k, v, site_of(VIDEO, layer), PatchCache())
        torch.testing.assert_close(out.double(), right, atol=3e-6, rtol=1e-5)


def _piece(q, k, v, visible):
    """Attention over the visible pairs (H, N, M) of one head set; rows that see nothing give 0 and -inf."""
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k) * q.shape[-1] ** -0.5
    some = visible.any(-1, keepdim=True)
    scores = scores.masked_fill(~visible & some, -torch.inf)
    out = torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v) * some[..., 0].T[None, ..., None]
    return out, scores.logsumexp(-1).masked_fill(~some[..., 0], -torch.inf)


def test_own_block_and_single_blocks_merge_into_the_masked_softmax():
    """96 tokens in 6 blocks, 2 heads, float64: value and gradients."""
    own = torch.nn.functional.one_hot(torch.arange(96) // 16, 6).bool()
    inputs = [torch.randn(1, 96, 2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(s)).requires_grad_()
              for s in range(3)]  # fmt: skip
    q, k, v = inputs
    gate = gates(q, block_means(k, torch.arange(96) // 16, torch.eye(6).bool().repeat_interleave(16, 0))).detach()
    chosen = select_threshold(gate, own, 0.35, "head", None)[0]
    assert 0.2 < chosen.double().mean() < 0.9
    mask = chosen.repeat_interleave(16, -1)
    parts = [_piece(q, k, v, own.repeat_interleave(16, -1).expand(2, -1, -1))]
    for block in range(6):
        keys = slice(16 * block, 16 * block + 16)
        rows = (chosen[..., block] & ~own[:, block])[..., None].expand(-1, -1, 16)
        parts.append(_piece(q, k[:, keys], v[:, keys], rows))
    out, _ = merge(parts)
    right = attention_over(q, k, v, mask)
    torch.testing.assert_close(out, right, atol=5e-15, rtol=0)
    weight = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    for one, other in zip(torch.autograd.grad(out, inputs, weight), torch.autograd.grad(right, inputs, weight),
                          strict=True):  # fmt: skip
        torch.testing.assert_close(one, other, atol=5e-15, rtol=1e-12)


def chosen_mask(method, layout, q, k, layer):
    """The pairs of tokens (B, H, N, N) that the method's own choice of blocks makes visible."""
    part = Partition(layout.grid, method.block_box(layout.grid, method.kind(layer)))
    start, stop = layout.grid_span
    qs, ks = (x[:, start:stop].index_select(1, part.permutation.order) for x in (q, k))
    chosen = method.select_blocks(qs, ks, part)
    pairs = chosen[..., part.block_of][:, :, part.permutation.inverse][..., part.permutation.inverse]
    mask = torch.ones(q.shape[0], q.shape[2], layout.length, layout.length, dtype=torch.bool)
    mask[:, :, start:stop, start:stop] = pairs
    return mask


METHODS = {
    "topk": MixtureOfBlock(keep=2, temporal=1, spatial=(3, 2), box=(2, 3, 3)),
    "threshold": MixtureOfBlock(select="threshold", scope="head", temporal=2, spatial=(2, 3), box=(2, 4, 4)),
    "auto": MixtureOfBlock(),
}


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("layout", [VIDEO, RAGGED, FIRST], ids=["video", "ragged", "text first"])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_exact_attention_on_the_chosen_blocks(method, layout, layer):
    q, k, v = tokens(layout)
    cache = PatchCache()
    out = method.attend(q, k, v, site_of(layout, layer), cache)
    mask = chosen_mask(method, layout, q, k, layer)
    torch.testing.assert_close(out.double(), attention_over(q, k, v, mask), atol=3e-6, rtol=1e-5)
    density = method.density(site_of(layout, layer), cache)
    assert density.computed == pytest.approx(mask.double().mean().item(), abs=1e-6)


def test_everything_chosen_is_dense_attention():
    q, k, v = tokens(RAGGED)
    right = attention_over(q, k, v, torch.ones(RAGGED.length, RAGGED.length, dtype=torch.bool))
    for method in (
        MixtureOfBlock(keep=1.0),
        MixtureOfBlock(select="threshold", scope="head", tau=1.5, max_density=None),
    ):
        for layer in range(3):
            out = method.attend(q, k, v, site_of(RAGGED, layer), PatchCache())
            torch.testing.assert_close(out.double(), right, atol=3e-6, rtol=1e-5)


def test_items_of_a_batch_do_not_share_a_budget():
    method, layout = METHODS["threshold"], VIDEO
    q, k, v = tokens(layout)
    together = method.attend(q, k, v, site_of(layout), PatchCache())
    alone = method.attend(q[1:], k[1:], v[1:], site_of(layout), PatchCache())
    torch.testing.assert_close(together[1:], alone, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("layout", [RAGGED, FIRST], ids=["text last", "text first"])
def test_hidden_text_keys_are_hidden_exactly(layout):
    method = METHODS["topk"]
    q, k, v = tokens(layout)
    visible = torch.ones(2, layout.length, dtype=torch.bool)
    low, high = layout.text_span
    visible[0, high - 2 : high], visible[1, low:high] = False, False
    out = method.attend(q, k, v, site_of(layout, key_mask=visible), PatchCache())
    mask = chosen_mask(method, layout, q, k, 0) & visible[:, None, None, :]
    torch.testing.assert_close(out.double(), attention_over(q, k, v, mask), atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["topk", "threshold"])
def test_gradients_are_those_of_the_chosen_pairs(name):
    method, layout = METHODS[name], RAGGED
    mask = chosen_mask(method, layout, *tokens(layout)[:2], 1)
    weight = torch.randn(2, layout.length, 2, 8, generator=torch.Generator().manual_seed(5))
    inputs = [x.requires_grad_() for x in tokens(layout)]
    out = method.attend(*inputs, site_of(layout, 1), PatchCache())
    found = torch.autograd.grad((out * weight).sum(), inputs)
    right = torch.autograd.grad((attention_over(*inputs, mask).float() * weight).sum(), inputs)
    for grad, expected in zip(found, right, strict=True):
        torch.testing.assert_close(grad, expected, atol=2e-5, rtol=1e-4)


def test_grouped_queries_gate_with_their_key_head():
    q, k, _ = tokens(VIDEO, heads=4, key_heads=2)
    part = Partition(VIDEO.grid, (2, 6, 6))
    gate = gates(q, block_means(k, part.block_of, part.own))
    means = torch.stack([k[:, :72].mean(1), k[:, 72:].mean(1)], 1)
    for head in range(4):
        torch.testing.assert_close(gate[:, head], q[:, :, head] @ means[:, :, head // 2].transpose(1, 2))


def test_sums_that_repeat_on_every_device_are_the_same_sums():
    """On GPUs the order of additions varies from run to run; these forms do not depend on it."""
    k = torch.randn(2, 30, 3, 4, dtype=torch.float64)
    block_of = torch.arange(30) // 7
    own = torch.nn.functional.one_hot(block_of, 5).bool()
    torch.testing.assert_close(means_by_product(k, own), block_means(k, block_of, own), atol=1e-14, rtol=0)
    shares = torch.rand(3, 5000)
    sums = running_sum(shares)
    torch.testing.assert_close(sums, shares.double().cumsum(-1), atol=5000 * 2**-31, rtol=0)
    assert torch.equal(sums[:, -1], running_sum(shares.flip(-1))[:, -1])


def test_density_is_known_before_a_run_only_for_top_k():
    assert MixtureOfBlock(keep=2, temporal=1).density(site_of(VIDEO), PatchCache()).computed == pytest.approx(0.5)
    assert METHODS["threshold"].density(site_of(VIDEO), PatchCache()) is None


def test_the_authors_schedule():
    assert MixtureOfBlock().recommended(50, 30) == {"steps": "13:"}
    assert "cross attention" in MixtureOfBlock().why_not(Site("x", 0, 1, "cross", 1, VIDEO, VIDEO))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"keep": 0}, "keep"),
        ({"keep": 1.5}, "keep"),
        ({"tau": 0.0}, "tau"),
        ({"max_density": 2.0}, "max_density"),
        ({"scope": "block"}, "query, head, all"),
        ({"select": "best"}, "topk, threshold"),
        ({"cycle": (0, 0, 0)}, "cycle"),
        ({"box": (2, 0, 2)}, "box"),
        ({"first_layer": -1}, "first_layer"),
    ],
)
def test_wrong_settings_are_refused_with_words(settings, words):
    with pytest.raises(UsageError, match=words):
        MixtureOfBlock(**settings)


def test_at_least_one_block_is_kept_and_no_more_than_there_are():
    assert [MixtureOfBlock(keep=0.01).blocks_kept(count) for count in (1, 7, 250)] == [1, 1, 2]
    assert [MixtureOfBlock(keep=3).blocks_kept(count) for count in (1, 3, 7)] == [1, 3, 3]
