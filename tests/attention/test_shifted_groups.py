"""Shifted groups: masks, pair counts and reach of the definition; plans equal masked attention by kind of heads."""

from __future__ import annotations

import pytest
import torch
from attention_helpers import attention_over, tokens

from genkit.attention.cache import PatchCache
from genkit.attention.frame_plan import runs
from genkit.attention.shifted_groups import ShiftedGroups
from genkit.attention.shifted_groups.groups import layers_to_reach, visible_frames
from genkit.attention.site import Site
from genkit.attention.views import view_of
from genkit.errors import UsageError
from genkit.kernels.merge import merge
from genkit.layout import Segment, TokenLayout

LAYOUTS = {
    "video": TokenLayout.of_grid(9, 3, 4),
    "one block a frame": TokenLayout.of_grid(5, 4, 4),
    "text last": TokenLayout.of_grid(6, 3, 5, text=5),
    "extra": TokenLayout((7, 2, 5), (Segment("text", 4), Segment("grid", 70), Segment("reference", 9))),
    "image": TokenLayout.of_grid(1, 5, 7),
}
METHODS = {
    "default": ShiftedGroups(),
    "four": ShiftedGroups(group=4),
    "no sink": ShiftedGroups(group=3, sink="none"),
    "rows": ShiftedGroups(group=2, sink_rows=True),
    "all moved": ShiftedGroups(group=4, shifted_heads=1),
    "none moved": ShiftedGroups(group=4, shifted_heads=0.0),
    "quarter of heads": ShiftedGroups(group=3, shifted_heads=0.25),
    "one frame": ShiftedGroups(group=1),
}


def rows_of(text):
    return torch.tensor([[int(x) for x in row] for row in text.split()]).bool()


@pytest.mark.parametrize(
    ("group", "shifted", "picture"),
    [
        (4, False, "111100000 111100000 111100000 111100000 100011110 100011110 100011110 100011110 100000001"),
        (4, True, "110000000 110000000 101111000 101111000 101111000 101111000 100000111 100000111 100000111"),
        (3, False, "111000000 111000000 111000000 100111000 100111000 100111000 100000111 100000111 100000111"),
        (3, True, "100000000 111100000 111100000 111100000 100011100 100011100 100011100 100000011 100000011"),
    ],
)
def test_groups_are_those_of_the_definition(group, shifted, picture):
    assert torch.equal(visible_frames(9, group, shifted, True, False), rows_of(picture))


def test_pairs_of_nine_frames():
    counts = {}
    for group in (4, 3):
        for sink in (False, True):
            seen = torch.stack([visible_frames(9, group, shifted, sink, False) for shifted in (False, True)])
            counts[group, sink] = [*seen.sum((1, 2)).tolist(), int(seen.any(0).sum())]
    assert counts == {
        (4, False): [33, 29, 45], (4, True): [38, 36, 50],
        (3, False): [27, 23, 35], (3, True): [33, 31, 41],
    }  # fmt: skip


def test_groups_that_hold_the_clip_are_dense_when_in_place_and_cut_when_moved():
    assert visible_frames(9, 9, False, False, False).all()
    moved = visible_frames(9, 9, True, False, False)
    assert torch.equal(moved, torch.block_diag(torch.ones(4, 4), torch.ones(5, 5)).bool())
    assert visible_frames(9, 18, True, False, False).all() and not visible_frames(9, 17, True, False, False).all()
    assert visible_frames(1, 1, True, False, False).all()
    assert torch.equal(visible_frames(5, 1, True, False, False), torch.eye(5).bool())  # half of one frame is no shift


@pytest.mark.parametrize(
    ("frames", "group", "layers", "plain", "sink"),
    [
        (21, 6, 6, 0.265, 0.303), (41, 11, 7, 0.245, 0.265), (41, 21, 3, 0.441, 0.456), (61, 16, 7, 0.241, 0.254),
        (81, 21, 7, 0.239, 0.249), (81, 11, 14, 0.131, 0.142), (81, 6, 26, 0.073, 0.084),
    ],
)  # fmt: skip
def test_densities_and_layers_to_full_reach(frames, group, layers, plain, sink):
    layout = TokenLayout.of_grid(frames, 2, 2)
    for setting, right in (("none", plain), ("first_frame", sink)):
        method = ShiftedGroups(group=group, sink=setting)
        assert method.build_plan(layout).density.computed == pytest.approx(right, abs=6e-4)
        assert layers_to_reach(method.visible(layout)) == layers
    assert layers_to_reach(ShiftedGroups(group=group, sink_rows=True).visible(layout)) == 2
    assert ShiftedGroups().frames(layout) == -(-frames // 4)
    assert f"after {layers} layers" in ShiftedGroups(group=group).details(layout)


def test_groups_without_shift_never_connect():
    layout = TokenLayout.of_grid(8, 2, 2)
    assert "no number of layers" in ShiftedGroups(group=4, shifted_heads=0, sink="none").details(layout)
    assert ShiftedGroups().details(LAYOUTS["image"]) == "one frame: dense"


def test_nothing_wraps_unlike_the_rolled_form():
    """LongLoRA's eager form rolls by half a group: its last group joins the ends, ours has two short ones."""
    q, k, v = (x.double() for x in tokens(TokenLayout.of_grid(8, 1, 1), heads=1))
    rolled = [x.roll(-2, 1).unflatten(1, (2, 4)).transpose(2, 3) for x in (q, k, v)]
    out = torch.nn.functional.scaled_dot_product_attention(*rolled).transpose(2, 3).flatten(1, 2).roll(2, 1)
    wrapped = torch.zeros(8, 8, dtype=torch.bool)
    for members in ([2, 3, 4, 5], [6, 7, 0, 1]):
        wrapped[torch.tensor(members)[:, None], torch.tensor(members)] = True
    torch.testing.assert_close(out, attention_over(q, k, v, wrapped), atol=1e-14, rtol=0)
    assert torch.equal(visible_frames(8, 4, True, False, False) & ~wrapped, torch.zeros(8, 8, dtype=torch.bool))
    assert not visible_frames(8, 4, True, False, False)[0, 7] and wrapped[0, 7]


def test_group_and_sink_merge_to_one_softmax():
    layout = TokenLayout.of_grid(9, 1, 1)
    q, k, v = (x.double() for x in tokens(layout, heads=1, batch=1))
    method = ShiftedGroups(group=4, shifted_heads=0)
    whole = method.masks(layout)[0]
    group = visible_frames(9, 4, False, False, False)
    parts = []
    for mask in (group[4:], (whole & ~group)[4:]):
        scores = (q[0, 4:, 0] @ k[0, :, 0].T * 8**-0.5).masked_fill(~mask, -torch.inf)
        parts.append(((scores.softmax(-1) @ v[0, :, 0])[None, :, None], scores.logsumexp(-1)[None, None]))
    out, _ = merge(parts)
    torch.testing.assert_close(out, attention_over(q, k, v, whole)[:, 4:], atol=1e-14, rtol=0)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
@pytest.mark.parametrize("name", LAYOUTS)
def test_equals_masked_attention_by_kind_of_heads(method, name):
    layout, heads = LAYOUTS[name], 4
    inputs = [x.requires_grad_() for x in tokens(layout, heads=heads, key_heads=2)]
    site, cache = Site.of_layout(layout, heads=heads), PatchCache()
    site = site if len(layout.segments) == 1 else Site.of_layout(layout, role="joint", heads=heads)
    out = method.attend(*inputs, site, cache)
    moved = {0.0: 0, 0.25: 1, 0.5: 2, 1: 4}[method.shifted_heads]
    mask = method.masks(layout)[[0] * (heads - moved) + [1] * moved]
    right = attention_over(*inputs, mask[None])
    torch.testing.assert_close(out.double(), right, atol=3e-6, rtol=1e-5)
    weight = torch.sin(torch.arange(out.numel())).view(out.shape)
    pairs = zip(*(torch.autograd.grad((x * weight).sum(), inputs) for x in (out, right)), strict=True)
    assert all(torch.allclose(one, other, atol=2e-5, rtol=1e-4) for one, other in pairs)
    density = method.density(site, cache)
    assert density.computed == pytest.approx(mask.double().mean().item(), abs=1e-12)
    assert density.dense == bool(mask.all()) and density.executed >= density.computed - 1e-12
    assert torch.equal(method.mask(layout), mask.any(0))
    share = method.shares(layout, torch.arange(0, layout.length, 3), heads)
    torch.testing.assert_close(share, mask[:, ::3].double().mean(0))


def test_masks_of_tokens_are_those_of_frames_and_text_is_dense():
    layout = LAYOUTS["extra"]
    masks = ShiftedGroups(group=3).masks(layout)
    frame = torch.arange(70) // 10
    assert torch.equal(masks[:, 4:74, 4:74], ShiftedGroups(group=3).visible(layout)[:, frame][:, :, frame])
    outside = [*range(4), *range(74, 83)]
    assert masks[:, outside].all() and masks[:, :, outside].all()


def test_hidden_text_keys_are_hidden_exactly():
    layout, method = LAYOUTS["text last"], ShiftedGroups(group=2)
    q, k, v = tokens(layout)
    visible = torch.ones(2, layout.length, dtype=torch.bool)
    visible[0, -2:] = False
    out = method.attend(q, k, v, Site.of_layout(layout, heads=2, key_mask=visible), PatchCache())
    mask = method.masks(layout)[None] & visible[:, None, None, :]
    torch.testing.assert_close(out.double(), attention_over(q, k, v, mask), atol=3e-6, rtol=1e-5)


def test_layers_of_other_head_counts_have_their_own_plans():
    layout, method, cache = LAYOUTS["video"], ShiftedGroups(group=4), PatchCache()
    for heads, moved in ((2, 1), (3, 2), (5, 3)):
        inputs = tokens(layout, heads=heads)
        out = method.attend(*inputs, Site.of_layout(layout, heads=heads), cache)
        mask = method.masks(layout)[[0] * (heads - moved) + [1] * moved]
        torch.testing.assert_close(out.double(), attention_over(*inputs, mask[None]), atol=3e-6, rtol=1e-5)
    assert [ShiftedGroups(shifted_heads=share).moved(2) for share in (0.01, 0.99, 0, 1)] == [1, 1, 0, 2]


def test_layers_of_one_head_are_refused_unless_it_is_of_one_kind():
    site = Site.of_layout(LAYOUTS["video"], heads=1)
    assert "this layer has one" in ShiftedGroups().why_not(site)
    assert ShiftedGroups(shifted_heads=1).why_not(site) is None
    assert ShiftedGroups().why_not(Site.of_layout(LAYOUTS["image"], heads=1)) is None


def test_blocks_hold_runs_of_frames_with_little_padding():
    seen = torch.stack([visible_frames(9, 4, shifted, True, False) for shifted in (False, True)])
    assert runs(seen) == [(0, 1), (1, 2), (2, 4), (4, 6), (6, 8), (8, 9)]
    wan = ShiftedGroups(group=21).build_plan(TokenLayout.of_grid(41, 30, 52))
    assert wan.plan.block_q == 128 and wan.density.executed / wan.density.computed < 1.1
    toy = ShiftedGroups(group=7).build_plan(TokenLayout.of_grid(25, 6, 6))
    assert toy.density.executed / toy.density.computed < 1.3


def test_pictures_show_the_share_of_heads():
    view = view_of(ShiftedGroups(group=4), LAYOUTS["video"])
    row = view.rows(torch.tensor([12 * 5]))[0].view(9, 12)[:, 0]
    assert row.tolist() == [1.0, 0, 0.5, 0.5, 1, 1, 0.5, 0.5, 0]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"group": 0}, "group"), ({"group": "half"}, "group"), ({"shifted_heads": 1.5}, "0 to 1"),
        ({"shifted_heads": True}, "0 to 1"), ({"sink": "last_frame"}, "first_frame, none"),
        ({"sink_rows": 1}, "sink_rows"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused_with_words(settings, words):
    with pytest.raises(UsageError, match=words):
        ShiftedGroups(**settings)
