"""IR-Diffusion's parts without a model: who sees whom, which reference token comes where, masks of subjects."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as functional

from genkit.editing.ir_diffusion.isolation import isolated
from genkit.editing.ir_diffusion.masks import bounds, box_mask, disjoint, largest_part, on_grid, otsu
from genkit.editing.ir_diffusion.reposition import dropped, reposition
from genkit.errors import UsageError


def _columns(*wanted, size=(2, 4)):
    mask = torch.zeros(size, dtype=torch.bool)
    mask[:, list(wanted)] = True
    return mask


def test_isolation_blocks_the_pairs_of_two_subjects_only():
    visible = isolated([_columns(0).flatten(), _columns(3).flatten()])
    assert float(visible.float().mean()) == 0.875
    assert not visible[0, 3] and not visible[3, 4] and visible[0, 4] and visible[0, 1] and visible[1].all()


def test_one_subject_or_none_in_the_scene_is_dense_attention():
    assert isolated([_columns(0, 1).flatten()]).all()
    assert isolated([torch.zeros(8, dtype=torch.bool)] * 2).all()


def test_one_subject_has_no_influence_on_another_in_a_layer():
    torch.manual_seed(0)
    first, second = _columns(0).flatten(), _columns(3).flatten()
    q, k, v = torch.randn(3, 1, 1, 8, 4, dtype=torch.float64)
    v.requires_grad_()
    out = functional.scaled_dot_product_attention(q, k, v, isolated([first, second]))
    (gradient,) = torch.autograd.grad(out[:, :, first].sum(), v)
    assert torch.equal(gradient[:, :, second], torch.zeros_like(gradient[:, :, second]))
    assert (gradient[:, :, ~second] != 0).all()


def test_the_same_box_leaves_every_token_where_it_is():
    mask = box_mask((0.25, 0.0, 0.75, 1.0), (4, 4))
    picked, places = reposition(mask, mask)
    assert torch.equal(picked, places) and torch.equal(places, mask.flatten().nonzero().flatten())


def test_tokens_are_picked_as_nearest_resizing_does():
    features = torch.arange(1.0, 9.0).view(4, 2)
    whole = torch.ones(4, 2, dtype=torch.bool)
    picked, _ = reposition(whole, torch.ones(2, 2, dtype=torch.bool))
    assert features.flatten()[picked].tolist() == [1, 2, 5, 6]
    for size in ((3, 5), (7, 2), (4, 2), (1, 1)):
        picked, places = reposition(whole, torch.ones(size, dtype=torch.bool))
        right = functional.interpolate(features[None, None], size, mode="nearest")
        assert torch.equal(features.flatten()[picked], right.flatten())
        assert places.tolist() == list(range(size[0] * size[1]))


def test_picking_keys_is_projecting_pasted_hidden_states():
    torch.manual_seed(0)
    reference = torch.zeros(6, 6, dtype=torch.bool)
    reference[1:4, 2:5] = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 1, 1]], dtype=torch.bool)
    scene = box_mask((0.0, 0.5, 0.5, 1.0), (6, 8))
    hidden, weight = torch.randn(6, 6, 5), torch.randn(5, 3)
    inside = functional.interpolate(
        (hidden * reference[..., None])[1:4, 2:5].permute(2, 0, 1)[None], (3, 4), mode="nearest"
    )[0].permute(1, 2, 0)
    pasted = torch.zeros(6, 8, 5)
    pasted[3:6, 0:4] = inside
    picked, places = reposition(reference, scene)
    torch.testing.assert_close((hidden.view(36, 5) @ weight)[picked], (pasted.view(48, 5) @ weight)[places])
    shown = torch.zeros(48, dtype=torch.bool)
    shown[places] = True
    assert torch.equal(shown.view(6, 8), pasted.abs().sum(-1) > 0)


def test_a_subject_missing_in_either_picture_brings_no_tokens():
    nothing, something = torch.zeros(3, 3, dtype=torch.bool), torch.ones(3, 3, dtype=torch.bool)
    assert not len(reposition(nothing, something)[0]) and not len(reposition(something, nothing)[0])


def test_dropout_keeps_a_share_and_never_nothing():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.arange(4000) % 2 == 0
    kept = dropped(tokens, 0.5, generator)
    assert not (kept & ~tokens).any() and 900 < int(kept.sum()) < 1100
    assert torch.equal(dropped(tokens, 0.0, generator), tokens)
    one = torch.zeros(9, dtype=torch.bool)
    one[4] = True
    assert all(torch.equal(dropped(one, 1.0, generator), one) for _ in range(3))
    assert not dropped(torch.zeros(9, dtype=torch.bool), 0.5, generator).any()


def test_overlaps_go_to_the_larger_mask():
    large, small = _columns(0, 1, 2), _columns(2, 3)
    assert torch.equal(disjoint([small, large])[0], _columns(3)) and torch.equal(disjoint([small, large])[1], large)
    first, second = disjoint([large, large])
    assert not (first & second).any() and torch.equal(first | second, large)


def test_boxes_are_shares_of_the_canvas():
    assert torch.equal(box_mask((0.25, 0, 0.5, 1), (2, 4)), _columns(1))
    with pytest.raises(UsageError, match="hold a pixel"):
        box_mask((0.5, 0.5, 0.5, 0.9), (64, 64))


def test_masks_keep_their_place_on_a_grid_and_small_ones_stay():
    mask = box_mask((0.0, 0.0, 0.5, 1.0), (64, 64))
    assert torch.equal(on_grid(mask, (4, 4)).view(4, 4), _columns(0, 1, size=(4, 4)))
    dot = torch.zeros(64, 64, dtype=torch.bool)
    dot[40, 8] = True
    assert on_grid(dot, (4, 4)).sum() >= 1 and on_grid(dot, (4, 4))[8]
    assert on_grid(torch.ones(64, 64, dtype=torch.bool), (4, 4)).all()
    assert not on_grid(torch.zeros(64, 64, dtype=torch.bool), (4, 4)).any()


def test_otsu_parts_two_hills():
    values = torch.cat([torch.linspace(0.1, 0.2, 50), torch.linspace(0.7, 0.9, 30)])
    assert 0.2 < otsu(values) < 0.7


def test_the_largest_connected_part_is_kept():
    mask = torch.zeros(5, 6, dtype=torch.bool)
    mask[0, :2] = mask[2:4, 3:6] = mask[4, 5] = True
    kept = largest_part(mask)
    assert int(kept.sum()) == 7 and not kept[0].any()
    assert bounds(kept) == (2, 3, 5, 6) and bounds(torch.zeros(2, 2, dtype=torch.bool)) is None
