"""LongHeads: heads choose frames by mean queries and keys; attention over the choice; new positions; density, union."""

from __future__ import annotations

import pytest
import torch
from attention_helpers import attention_over, tokens

import genkit
from genkit.attention.cache import PatchCache
from genkit.attention.frame_lists import turned
from genkit.attention.site import Site
from genkit.errors import UsageError
from genkit.layout import TokenLayout

LAYOUTS = {"video": TokenLayout.of_grid(11, 2, 3), "text first": TokenLayout.of_grid(9, 2, 2, text=5, text_first=True)}
METHOD = genkit.LongHeads(trained=5)


def angles(frames, device="cpu"):
    turn = torch.arange(frames, dtype=torch.float32)[:, None] * torch.tensor([1.0, 0.3, 0.0, 0.0])
    return turn.cos(), turn.sin()


def at(layout, **more):
    return Site.of_layout(layout, heads=2, angles=angles, **more)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_heads_choose_by_means_and_attend_to_what_they_chose(layout):
    inputs, cache = [x.requires_grad_() for x in tokens(layout)], PatchCache()
    q, k, v = inputs
    out = METHOD.attend(*inputs, at(layout), cache)
    start, stop = layout.grid_span
    s, f = layout.frame_tokens, layout.grid[0]
    means = [torch.stack([x[:, start + i * s : start + (i + 1) * s].mean(1) for i in range(f)], 1) for x in (q, k)]
    mask = torch.ones(2, 2, layout.length, layout.length, dtype=torch.bool)
    mask[:, :, start:stop, start:stop] = False
    for b in range(2):
        for h in range(2):
            for i in range(f):
                forced = {0, *range(max(0, i - 1), min(f, i + 2))}
                scores = (means[1][b, :, h] @ means[0][b, i, h]).tolist()
                rest = sorted(set(range(f)) - forced, key=lambda j, of=scores: -of[j])
                for j in [*forced, *rest][:5]:
                    mask[b, h, start + i * s : start + (i + 1) * s, start + j * s : start + (j + 1) * s] = True
    right = torch.cat([attention_over(*(x[:, :, h : h + 1] for x in inputs), mask[:, h : h + 1]) for h in range(2)], 2)
    torch.testing.assert_close(out.double(), right, atol=2e-6, rtol=1e-5)
    assert torch.equal(METHOD.pairs(q, k, at(layout), cache), mask)
    some = torch.tensor([0, 7, layout.length - 1])
    assert torch.equal(METHOD.pair_rows(q, k, at(layout), cache, some), mask[:, :, some])
    weight = torch.sin(torch.arange(out.numel())).view(out.shape)
    pairs = zip(*(torch.autograd.grad((x * weight).sum(), inputs) for x in (out, right)), strict=True)
    assert all(torch.allclose(one, other, atol=2e-5, rtol=1e-4) for one, other in pairs)
    assert METHOD.density(at(layout), cache).computed == pytest.approx(mask.double().mean().item())
    union = mask[:, :, start:stop:s, start:stop:s].any(1).double().mean()
    assert f"{union:.0%}" in METHOD.remarks(cache)[0]


def test_new_positions_choose_without_rotation():
    layout = LAYOUTS["video"]
    raw, frame = tokens(layout), torch.arange(layout.grid_length) // layout.frame_tokens
    cos, sin = (table[frame][:, None] for table in angles(11))
    q, k = (turned(x, cos, sin) for x in raw[:2])
    new = genkit.LongHeads(trained=5, positions="reindexed")
    assert torch.equal(new.chosen(q, k, at(layout)), METHOD.chosen(raw[0], raw[1], at(layout)))
    assert not torch.equal(METHOD.chosen(q, k, at(layout)), METHOD.chosen(raw[0], raw[1], at(layout)))
    out = new.attend(q, k, raw[2], at(layout), PatchCache())
    assert not torch.allclose(out, METHOD.attend(q, k, raw[2], at(layout), PatchCache()), atol=1e-3)


def test_a_budget_of_all_frames_is_dense():
    layout = LAYOUTS["text first"]
    q, k, v = tokens(layout)
    dense = attention_over(q, k, v, torch.ones(layout.length, layout.length, dtype=torch.bool))
    for positions in ("model", "reindexed"):
        method = genkit.LongHeads(trained=9, positions=positions)
        out = method.attend(q, k, v, at(layout), PatchCache())
        torch.testing.assert_close(out.double(), dense, atol=2e-6, rtol=1e-5)
        assert method.density(at(layout), PatchCache()).dense and "dense" in method.details(layout)


def test_what_random_choices_cover():
    """3 of 20 far frames at random: 12 heads read 85.8% of them together, 40 heads 99.8%."""
    for heads, share in ((12, 0.858), (40, 0.998)):
        draw = torch.Generator().manual_seed(0)
        far = torch.rand(200, heads, 20, generator=draw).topk(3, -1).indices
        seen = torch.zeros(200, heads, 20, dtype=torch.bool).scatter(-1, far, True).any(1)
        assert seen.double().mean() == pytest.approx(share, abs=0.012)


def test_what_is_refused():
    for bad in ({"trained": 0}, {"near": -1}, {"first": 1.5}, {"positions": "old"}, {"trained": 3}):
        with pytest.raises(UsageError, match="long_heads"):
            genkit.LongHeads(**bad)
    reason = genkit.LongHeads(positions="reindexed").why_not(Site.of_layout(LAYOUTS["video"]))
    assert "positions=model" in reason
