"""pyramid: levels of the paper and of its code, the curve, one softmax over tokens and means, gradients, refusals."""

from __future__ import annotations

import math

import pytest
import torch

from genkit.attention.cache import PatchCache
from genkit.attention.pyramid import Pyramid
from genkit.attention.pyramid.gilbert import gilbert_order
from genkit.attention.pyramid.levels import levels_by_share, levels_by_threshold, similarity_cap
from genkit.attention.site import Site
from genkit.errors import UsageError
from genkit.layout import Segment, TokenLayout

SPREAD = torch.tensor([0.30, 0.22, 0.16, 0.11, 0.08, 0.06, 0.04, 0.03])
PEAK = torch.tensor([0.90, 0.02, 0.02, 0.02, 0.02, 0.01, 0.005, 0.005])


def layout_of(grid, before=0):
    text = (Segment("text", before),) if before else ()
    return TokenLayout(grid, (*text, Segment("grid", math.prod(grid))))


def drawn(layout, heads=4, key_heads=2, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, layout.length, h, 8) for h in (heads, key_heads, key_heads)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


def attend(method, q, k, v, layout, cache=None, **site):
    site = Site.of_layout(layout, heads=q.shape[2], **site)
    return method.attend(q, k, v, site, PatchCache("reference") if cache is None else cache)


def dense(q, k, v, bias=0.0):
    k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], 2) for x in (k, v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5 + bias
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)


def one_softmax(q, k, v, levels, block):
    """Attention over tokens and means, every mean of n valid tokens once with ln n, by looking at every block."""
    keys, values, bias = [], [], []
    count = k.shape[1]
    for column in range(levels.shape[-1]):
        for factor in (1, 2, 4, 8):
            inside = range(column * block, min((column + 1) * block, count))
            for at in range(inside.start, inside.stop, factor):
                group = slice(at, min(at + factor, inside.stop))
                keys.append(k[:, group].mean(1))
                values.append(v[:, group].mean(1))
                row = torch.where(levels[..., column] == factor, math.log(group.stop - group.start), -torch.inf)
                bias.append(row.repeat_interleave(block, 2)[:, :, : q.shape[1]])
    return dense(q, torch.stack(keys, 1), torch.stack(values, 1), torch.stack(bias, -1).double())


def test_levels_of_the_worked_examples():
    thresholds = (0.4, 0.5, 0.6, 0.8)
    assert levels_by_threshold(SPREAD, thresholds, crossing=False).tolist() == [1, 4, 8, 8, 0, 0, 0, 0]
    assert levels_by_threshold(SPREAD, thresholds).tolist() == [1, 1, 4, 8, 8, 0, 0, 0]
    assert levels_by_threshold(PEAK, thresholds, crossing=False).tolist() == [0] * 8
    assert levels_by_threshold(PEAK, thresholds).tolist() == [1, 0, 0, 0, 0, 0, 0, 0]
    shuffled = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    assert levels_by_threshold(SPREAD[shuffled], thresholds).tolist() == [[1, 1, 4, 8, 8, 0, 0, 0][i] for i in shuffled]
    found = levels_by_share(torch.rand(40, generator=torch.Generator().manual_seed(0)), (0.1, 0.05, 0.0, 0.2))
    assert [int((found == p).sum()) for p in (1, 2, 4, 8, 0)] == [4, 2, 0, 8, 26]
    assert levels_by_share(torch.tensor([0.1, 0.2]), (0.1, 0.05, 0.0, 0.2)).tolist() == [0, 1]


def test_the_curve_of_the_worked_examples():
    assert gilbert_order((2, 2, 3)).tolist() == [0, 1, 3, 4, 10, 9, 6, 7, 8, 11, 5, 2]
    expected = "0 15 20 5 10 25 26 11 6 21 16 1 2 17 18 3 8 23 22 7 12 13 27 28 29 14 9 24 19 4"
    assert gilbert_order((2, 3, 5)).tolist() == [int(number) for number in expected.split()]
    assert gilbert_order((5, 5, 4))[60:66].tolist() == [79, 78, 74, 75, 95, 94]


@pytest.mark.parametrize(("grid", "jumps"), [((8, 8, 8), 0), ((18, 48, 80), 0), ((21, 30, 52), 76), ((1, 9, 7), None)])
def test_the_curve_meets_everything_once_and_seldom_jumps(grid, jumps):
    order = gilbert_order(grid)
    assert torch.equal(order.sort().values, torch.arange(math.prod(grid)))
    place = torch.stack([order // (grid[1] * grid[2]), order // grid[2] % grid[1], order % grid[2]], 1)
    steps = place.diff(dim=0).abs().sum(1)
    assert steps.max() <= 2 and (jumps is None or int((steps > 1).sum()) == jumps)


def test_similar_blocks_may_be_read_coarsely():
    k = torch.randn(1, 40, 2, 8, generator=torch.Generator().manual_seed(0))
    k[:, :16, 0] = k[:, :1, 0]  # a block of equal keys
    k[:, 16:32:2, 1] = k[:, 17:32:2, 1]  # pairs of equal keys
    cap = similarity_cap(k, 16, (0.9, 0.9, 0.9))
    assert cap[0, :, :2].tolist() == [[8, 1], [1, 2]] and cap.shape == (1, 2, 3)
    for head in range(2):
        for number, (factor, apart) in enumerate(((2, 1), (4, 3), (8, 7))):
            first = range(0, 16, factor)
            alike = torch.stack([torch.cosine_similarity(k[0, at, head], k[0, at + apart, head], 0) for at in first])
            limits = [2.0, 2.0, 2.0]
            limits[number] = float(alike.mean()) - 1e-4
            assert similarity_cap(k, 16, tuple(limits))[0, head, 0] == factor
            limits[number] += 2e-4
            assert similarity_cap(k, 16, tuple(limits))[0, head, 0] == 1


@pytest.mark.parametrize("grid", [(4, 6, 6), (3, 5, 7)])
@pytest.mark.parametrize(
    "settings",
    [
        {"thresholds": (0.3, 0.45, 0.6, 0.8)},
        {"thresholds": (0.2, 0.2, 0.5, 0.6), "order": "box", "importance": "row_max"},
        {"thresholds": (0.1, 0.3, 0.5, 0.8), "crossing": False, "order": "sequence"},
        {"mode": "quantile", "quantiles": (0.2, 0.2, 0.2, 0.2)},
        {"mode": "quantile", "quantiles": (0.3, 0.0, 0.0, 0.7), "cap": (0.0, 0.0, 0.0)},
    ],
    ids=str,
)
def test_output_and_gradients_are_those_of_one_softmax(grid, settings):
    layout = layout_of(grid)
    q, k, v = drawn(layout)
    method, cache = Pyramid(block=16, **settings), PatchCache("reference")
    blocks = method.blocks_on(grid)
    order = blocks.permutation.order
    moved = [x[:, order] for x in (q, k, v)]
    levels = method.levels(*moved[:2])
    assert (levels != 0).any(-1).all() and len(levels.unique()) > 1
    expected = one_softmax(*moved, levels, 16)[:, order.argsort()]
    out = attend(method, q, k, v, layout, cache)
    torch.testing.assert_close(out, expected)
    for ours, theirs in zip(
        torch.autograd.grad(out.square().sum(), (q, k, v)),
        torch.autograd.grad(expected.square().sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)
    site = Site.of_layout(layout, heads=4)
    weight = torch.where(levels > 0, 1 / levels.clamp(min=1), 0.0).repeat_interleave(16, 2).repeat_interleave(16, 3)
    tokens = weight[:, :, : layout.length, : layout.length].double().mean().item()
    assert method.density(site, cache).computed == pytest.approx(tokens)
    seen = method.seen(q[:1].detach(), k[:1].detach(), site, PatchCache())
    back = order.argsort()
    torch.testing.assert_close(seen, weight[0].mean(0)[: layout.length, : layout.length][back][:, back].float())


def test_everything_at_the_finest_level_is_dense_attention():
    layout = layout_of((3, 5, 7), before=5)
    q, k, v = drawn(layout)
    out = attend(Pyramid(block=16, thresholds=(1.0, 1.0, 1.0, 1.0)), q, k, v, layout)
    torch.testing.assert_close(out, dense(q, k, v))


def test_keys_that_are_equal_in_eights_are_read_exactly_at_any_level():
    layout = layout_of((4, 4, 8))
    q, k, v = (x.detach() for x in drawn(layout))
    method = Pyramid(block=16, mode="quantile", quantiles=(0.25, 0.25, 0.25, 0.25), order="sequence")
    k, v = (x[:, ::8].repeat_interleave(8, 1) for x in (k, v))
    torch.testing.assert_close(attend(method, q, k, v, layout), dense(q, k, v))


def test_hidden_text_is_hidden_and_text_is_read_exactly():
    layout = layout_of((2, 8, 8), before=6)
    q, k, v = (x.detach() for x in drawn(layout))
    key_mask = torch.ones(2, layout.length, dtype=torch.bool)
    key_mask[0, 4:6] = False
    method = Pyramid(block=16, thresholds=(1.0, 1.0, 1.0, 1.0))
    bias = torch.where(key_mask, 0.0, -torch.inf)[:, None, None]
    torch.testing.assert_close(attend(method, q, k, v, layout, key_mask=key_mask), dense(q, k, v, bias))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"mode": "best"}, "threshold"),
        ({"block": 12}, "multiple of 8"),
        ({"block": 4}, "block"),
        ({"block": 8192}, "from 8 to 4096"),
        ({"seed": 2**70}, "seed"),
        ({"thresholds": (0.5, 0.4, 0.7, 0.8)}, "ascending"),
        ({"thresholds": (0.5, 0.6, 0.7)}, "4 numbers"),
        ({"thresholds": (0.0, 0.0, 0.0, 0.0)}, "above 0"),
        ({"mode": "quantile", "quantiles": (0.5, 0.5, 0.5, 0.0)}, "at most 1"),
        ({"mode": "quantile", "quantiles": (0.0, 0.0, 0.0, 0.0)}, "more than 0"),
        ({"quantiles": (0.5, 0.1, 0.1, 0.1)}, "mode='quantile'"),
        ({"mode": "quantile", "crossing": False}, "mode='threshold'"),
        ({"cap": (0.5, 0.5)}, "3 numbers"),
        ({"cap": (2.0, 0.5, 0.5)}, "-1 to 1"),
        ({"samples": 0.0}, "samples"),
        ({"order": "raster"}, "gilbert"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, text):
    with pytest.raises(UsageError) as refused:
        Pyramid(**settings)
    assert text in str(refused.value) and "pyramid" in str(refused.value)
