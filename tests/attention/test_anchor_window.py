"""Anchor windows: LVSA's frames, counts and sparsities; plans equal masked attention step by step; new positions."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from attention_helpers import attention_over, tokens

import genkit
from genkit.attention.anchor_window.frames import anchors, auto_period, seen, visible
from genkit.attention.cache import PatchCache
from genkit.attention.frame_lists import attend_frames, moves, turned
from genkit.attention.site import Site
from genkit.errors import UsageError
from genkit.layout import Segment, TokenLayout

LAYOUTS = {
    "video": TokenLayout.of_grid(11, 2, 3),
    "text last": TokenLayout.of_grid(9, 2, 2, text=5),
    "extra": TokenLayout((10, 1, 3), (Segment("text", 4), Segment("grid", 30), Segment("reference", 9))),
}
METHODS = {
    "default": genkit.AnchorWindow(trained=6, window=1),
    "first alone": genkit.AnchorWindow(trained=5, window=2, period="none"),
    "anchors alone": genkit.AnchorWindow(trained=4, window=0, first=0, period=3, offset=1),
    "two first": genkit.AnchorWindow(trained=6, window=1, first=2, rotate=False),
}


def angles(frames, device="cpu", width=8):
    """Two of four pairs turn along time, at two speeds."""
    turn = torch.arange(frames, dtype=torch.float64)[:, None] * torch.tensor([1.0, 0.3, 0.0, 0.0], dtype=torch.float64)
    return turn.cos(), turn.sin()


def at(layout, heads=2, **more):
    return Site.of_layout(layout, heads=heads, angles=angles, **more)


@pytest.mark.parametrize(
    ("offset", "rows"),
    [
        (0, ["012346", "012346", "012346", "012346", "023456", "034567", "035678", "035678", "035678"]),
        (1, None),
        (2, None),
    ],
)
def test_nine_frames_are_the_published_picture(offset, rows):
    shared = anchors(9, 1, 3, offset)
    assert shared == {0: {0, 3, 6}, 1: {0, 1, 4, 7}, 2: {0, 2, 5, 8}}[offset]
    if rows:
        pictures = ["GwwGw.g..", "GwwGw.g..", "GwwGw.g..", "gwwGw.g..", "g.wGwwg..", "g..GwwGw.", "g..gwwGw.",
                    "g..g.wGww", "g..g.wGww"]  # fmt: skip
        for frame, picture in enumerate(pictures):
            assert seen(frame, 9, 1, shared) == [i for i, mark in enumerate(picture) if mark != "."]


@pytest.mark.parametrize(
    ("trained", "window", "frames", "period", "low", "high", "sparsity"),
    [
        (21, 3, 33, 2, 24, 24, 0.273), (21, 3, 41, 3, 21, 22, 0.480), (21, 3, 81, 6, 21, 22, 0.733),
        (21, 3, 121, 9, 21, 22, 0.820), (21, 4, 41, 3, 23, 24, 0.431), (21, 4, 81, 7, 21, 22, 0.732),
        (33, 4, 41, 2, 30, 30, 0.268), (33, 4, 49, 2, 34, 34, 0.306), (33, 4, 81, 3, 36, 37, 0.547),
    ],
)  # fmt: skip
def test_periods_counts_and_sparsities_are_those_of_its_code(trained, window, frames, period, low, high, sparsity):
    assert auto_period(frames, trained, window, 1) == period
    masks = [visible(frames, window, 1, period, offset) for offset in range(period)]
    counts = [mask.sum(1) for mask in masks]
    assert all((count == count[0]).all() for count in counts)  # as many for every frame
    assert all(mask.diagonal().all() for mask in masks)
    assert (min(int(c[0]) for c in counts), max(int(c[0]) for c in counts)) == (low, high)
    found = 1 - sum(float(mask.double().mean()) for mask in masks) / period
    assert found == pytest.approx(sparsity, abs=6e-4)
    method = genkit.AnchorWindow(trained=trained, window=window)
    density = method.density(at(TokenLayout.of_grid(frames, 2, 2)), PatchCache())
    assert density.computed == pytest.approx(1 - sparsity, abs=6e-4)


def test_up_to_the_trained_length_everything_is_dense():
    method = genkit.AnchorWindow(trained=11, window=1)
    assert method.build_plan(LAYOUTS["video"]).plan is None and "dense" in method.details(LAYOUTS["video"])
    assert method.mask(LAYOUTS["video"]).all()


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("step", [None, 0, 4])
def test_a_step_is_softmax_over_its_mask(layout, method, step):
    inputs, cache = [x.requires_grad_() for x in tokens(layout)], PatchCache()
    site = dataclasses.replace(at(layout), step=step)
    out = method.attend(*inputs, site, cache)
    now = dataclasses.replace(
        method, offset=(method.offset + (step or 0) * method.rotate) % (method.every(layout.grid[0]) or 1)
    )
    right = attention_over(*inputs, now.mask(layout))
    torch.testing.assert_close(out.double(), right, atol=3e-6, rtol=1e-5)
    rows = method.pair_rows(*inputs[:2], site, cache, torch.tensor([1, layout.length - 2]))
    assert torch.equal(rows[0, 0], now.mask(layout)[[1, -2]])
    weight = torch.sin(torch.arange(out.numel())).view(out.shape)
    pairs = zip(*(torch.autograd.grad((x * weight).sum(), inputs) for x in (out, right)), strict=True)
    assert all(torch.allclose(one, other, atol=2e-5, rtol=1e-4) for one, other in pairs)


def rotated(x, positions):
    """(B, N, H, D) turned to positions of its tokens."""
    cos, sin = (table[positions][:, None] for table in angles(int(positions.max()) + 1))
    return turned(x, cos, sin)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_reindexed_frames_stand_at_0_1_2(layout, method):
    """Frame by frame in plain torch: the tokens of the list, rotated from the start to their place in it."""
    method = dataclasses.replace(method, positions="reindexed")
    raw = [x.double().requires_grad_() for x in tokens(layout)]
    (start, stop), s = layout.grid_span, layout.frame_tokens
    frame_of = torch.arange(layout.grid_length) // s
    own = torch.zeros(layout.length, dtype=torch.int64)
    own[start:stop] = frame_of
    inside = torch.zeros(layout.length, dtype=torch.bool)
    inside[start:stop] = True
    given = [torch.where(inside[:, None, None], rotated(x, own), x) for x in raw[:2]]
    out = method.attend(*given, raw[2], at(layout), PatchCache())
    rows = []
    for frame, row in enumerate(method.visible(layout)[0]):
        listed = row.nonzero()[:, 0]
        place = {int(each): number for number, each in enumerate(listed)}
        keys = torch.cat([torch.arange(layout.length)[~inside], *(start + i * s + torch.arange(s) for i in listed)])
        positions = torch.tensor([place[int(own[i])] if inside[i] else 0 for i in keys])
        k = torch.where(inside[keys][:, None, None], rotated(raw[1][:, keys], positions), raw[1][:, keys])
        q = rotated(raw[0][:, start + frame * s : start + (frame + 1) * s], torch.full((s,), place[frame]))
        rows.append(attention_over(q, k, raw[2][:, keys], torch.ones(s, len(keys), dtype=torch.bool)))
    right = torch.cat(rows, 1)
    torch.testing.assert_close(out[:, start:stop], right, atol=1e-12, rtol=0)
    weight = torch.sin(torch.arange(right.numel())).view(right.shape)
    pairs = zip(*(torch.autograd.grad((x * weight).sum(), raw) for x in (out[:, start:stop], right)), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, atol=1e-11, rtol=0)


def test_a_contiguous_run_keeps_its_logits_and_all_frames_are_dense():
    layout = TokenLayout.of_grid(7, 2, 2)
    q, k, v = (x.double() for x in tokens(layout))
    everything = torch.arange(7).expand(1, 1, 7, 7)
    dense = attention_over(q, k, v, torch.ones(28, 28, dtype=torch.bool))
    for reindexed in (True, False):
        torch.testing.assert_close(attend_frames(q, k, v, at(layout), everything, reindexed), dense, atol=1e-14, rtol=0)
    runs = torch.stack([torch.arange(3) + min(max(i - 1, 0), 4) for i in range(7)])[None, None]
    found = [attend_frames(q, k, v, at(layout), runs, reindexed) for reindexed in (True, False)]
    torch.testing.assert_close(*found, atol=1e-13, rtol=0)
    cos, sin = moves(angles(9), torch.tensor([5]), torch.tensor([2]))
    torch.testing.assert_close(cos[0], angles(9)[0][3])
    torch.testing.assert_close(sin[0], -angles(9)[1][3])


def test_hidden_text_stays_hidden_with_new_positions():
    layout = LAYOUTS["text last"]
    q, k, v = tokens(layout)
    mask = torch.ones(2, layout.length, dtype=torch.bool)
    mask[1, -3:] = False
    method = dataclasses.replace(METHODS["default"], positions="reindexed")
    out = method.attend(q, k, v, dataclasses.replace(at(layout), key_mask=mask), PatchCache())
    for x in (k, v):
        x[1, -3:] += 5
    again = method.attend(q, k, v, dataclasses.replace(at(layout), key_mask=mask), PatchCache())
    torch.testing.assert_close(out, again)


def test_what_is_refused():
    for bad in ({"trained": 0}, {"window": -1}, {"first": True}, {"period": 0}, {"period": "x"}, {"positions": "new"},
                {"window": 0, "first": 0, "period": "none"}, {"positions": "reindexed", "bias": "alibi"}):  # fmt: skip
        with pytest.raises(UsageError, match="anchor_window"):
            genkit.AnchorWindow(**bad)
    site = Site.of_layout(LAYOUTS["video"])
    assert "positions=model" in genkit.AnchorWindow(positions="reindexed").why_not(site)
