"""Shards: the card's densities and unions, balanced boxes, masked softmax by head, layers that take turns."""

from __future__ import annotations

import pytest
import torch
from attention_helpers import attention_over, tokens

from genkit.attention.cache import PatchCache
from genkit.attention.shards import Shards
from genkit.attention.site import Site
from genkit.attention.views import view_of
from genkit.errors import UsageError
from genkit.layout import Segment, TokenLayout

LAYOUTS = {
    "video": TokenLayout.of_grid(5, 6, 4),
    "ragged": TokenLayout.of_grid(3, 5, 7),
    "text last": TokenLayout.of_grid(4, 4, 6, text=5),
    "extra": TokenLayout((3, 6, 5), (Segment("text", 4), Segment("grid", 90), Segment("reference", 9))),
    "image": TokenLayout.of_grid(1, 8, 9),
}
METHODS = {
    "boxes": Shards(block=8, stride=3),
    "own block": Shards(block=8, stride=4, local=0),
    "sequence": Shards(block=8, stride=3, across=(1, 1)),
    "offset": Shards(block=16, stride=2, offset=1, across=(2, 2)),
    "dense": Shards(block=8, stride=1),
}


@pytest.mark.parametrize(
    ("blocks", "heads", "stride", "local", "densities", "union"),
    [
        (16, 4, 4, 2, (0.387, 0.387, 0.383, 0.383), 1.0), (16, 3, 4, 2, (0.387, 0.387, 0.383), 0.797),
        (32, 12, 8, 2, (0.205,), 1.0), (256, 12, 16, 4, (), 0.757), (16, 4, 8, 2, (), None),
    ],
)  # fmt: skip
def test_densities_and_unions_of_the_published_form(blocks, heads, stride, local, densities, union):
    """``local`` of the code counts the own block, and blocks are runs of the sequence."""
    method = Shards(stride=stride, local=local - 1, block=8, across=(1, 1))
    layout = TokenLayout.of_grid(1, 1, blocks * 8)
    seen = method.blocks(layout)[method.kinds(heads)]
    found = seen.double().mean((1, 2)) if len(densities) > 1 else seen.double().mean()[None]
    if densities:
        assert found.tolist() == pytest.approx(densities, abs=6e-4)
    if union is None:  # fewer heads than shards never see all; layers in turn do
        assert not seen.any(0).all()
        turns = [method.at_layer(layer) for layer in range(stride)]
        assert torch.stack([each.blocks(layout)[each.kinds(heads)].any(0) for each in turns]).any(0).all()
    else:
        assert float(seen.any(0).double().mean()) == pytest.approx(union, abs=6e-4)


def test_every_shard_of_boxes_has_as_many_blocks():
    seen = Shards(stride=4, block=64, across=(4, 4), local=0).blocks(TokenLayout.of_grid(16, 16, 16))
    assert [int((one.double().mean(0) == 1).sum()) for one in seen] == [16, 16, 16, 16]
    assert torch.equal(seen.any(0), torch.ones(64, 64, dtype=torch.bool))


def test_two_heads_see_everything_in_as_many_layers_as_it_takes():
    layout = TokenLayout.of_grid(4, 8, 8)
    for turn, complete in ((True, True), (False, False)):
        method = Shards(stride=4, block=16, turn=turn)
        layers = [method.at_layer(layer) for layer in range(4)]
        union = torch.stack([each.blocks(layout)[each.kinds(2)].any(0) for each in layers]).any(0)
        assert bool(union.all()) == complete


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
@pytest.mark.parametrize("name", LAYOUTS)
def test_equals_masked_attention_by_head(method, name):
    layout, heads, layer = LAYOUTS[name], 4, 2
    inputs = [x.requires_grad_() for x in tokens(layout, heads=heads, key_heads=2)]
    role = "self" if len(layout.segments) == 1 else "joint"
    site, cache = Site.of_layout(layout, role=role, heads=heads, layer=layer, layers=5), PatchCache()
    out = method.attend(*inputs, site, cache)
    mask = method.masks(layout)[[(head + method.offset + layer) % method.stride for head in range(heads)]]
    right = attention_over(*inputs, mask[None])
    torch.testing.assert_close(out.double(), right, atol=3e-6, rtol=1e-5)
    weight = torch.sin(torch.arange(out.numel())).view(out.shape)
    pairs = zip(*(torch.autograd.grad((x * weight).sum(), inputs) for x in (out, right)), strict=True)
    assert all(torch.allclose(one, other, atol=2e-5, rtol=1e-4) for one, other in pairs)
    density = method.density(site, cache)
    assert density.computed == pytest.approx(mask.double().mean().item(), abs=1e-12)
    assert density.dense == bool(mask.all()) and density.executed >= density.computed - 1e-12
    assert torch.equal(method.mask(layout), method.masks(layout).any(0))
    own = method.at_layer(layer)
    share = own.shares(layout, torch.arange(0, layout.length, 3), heads)
    torch.testing.assert_close(share, mask[:, ::3].double().mean(0))


def test_gradients_in_float64():
    layout = TokenLayout.of_grid(2, 3, 4)
    method, site = Shards(block=8, stride=2, local=0), Site.of_layout(layout, heads=2)
    inputs = [x.double().requires_grad_() for x in tokens(layout, width=3, batch=1)]
    assert torch.autograd.gradcheck(lambda *x: method.attend(*x, site, PatchCache()), inputs)


def test_hidden_text_keys_are_hidden_exactly():
    layout, method = LAYOUTS["text last"], Shards(block=8, stride=2)
    q, k, v = tokens(layout)
    visible = torch.ones(2, layout.length, dtype=torch.bool)
    visible[0, -2:] = False
    out = method.attend(q, k, v, Site.of_layout(layout, heads=2, key_mask=visible), PatchCache())
    mask = method.masks(layout)[None] & visible[:, None, None, :]
    torch.testing.assert_close(out.double(), attention_over(q, k, v, mask), atol=3e-6, rtol=1e-5)


def test_a_part_of_the_heads_is_that_part_of_all():
    layout, method, cache = LAYOUTS["video"], Shards(block=8, stride=3), PatchCache()
    inputs = tokens(layout, heads=4)
    whole = method.attend(*inputs, Site.of_layout(layout, heads=4, layer=1), cache)
    part = Site.of_layout(layout, heads=2, layer=1, all_heads=4, first_head=2)
    torch.testing.assert_close(method.attend(*(x[:, :, 2:] for x in inputs), part, cache), whole[:, :, 2:])


def test_pictures_show_the_share_of_heads():
    layout = TokenLayout.of_grid(1, 1, 64)
    method = Shards(block=8, stride=4, local=0, across=(1, 1))
    row = view_of(method, layout).rows(torch.tensor([0]))[0].view(8, 8)[:, 0]
    assert row.tolist() == [1.0, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25]
    assert "4 heads, or fewer over 4 layers, see all" in method.details(layout)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"stride": 0}, "stride"), ({"stride": 2.0}, "stride"), ({"local": -1}, "local"), ({"block": 4}, "block"),
        ({"across": (2,)}, "two numbers"), ({"across": (0, 1)}, "across"), ({"turn": 1}, "true or false"),
        ({"offset": True}, "offset"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused_with_words(settings, words):
    with pytest.raises(UsageError, match=words):
        Shards(**settings)
