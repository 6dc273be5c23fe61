"""Masks of a model that differ between queries, joined with a method's own choice: softmax over the pairs of both."""

from __future__ import annotations

import pytest
import torch
from attention_helpers import attention_over, tokens

import genkit
from genkit.attention.cache import PatchCache
from genkit.attention.site import Site
from genkit.errors import UnsupportedError
from genkit.layout import TokenLayout

LAYOUT = TokenLayout.of_grid(4, 6, 5)
WITH_TEXT = TokenLayout.of_grid(3, 6, 7, text=9)
METHODS = {
    "neighborhood": genkit.Neighborhood(size=3),
    "all": genkit.Neighborhood(size="all"),
    "dilated": genkit.Neighborhood(size=(3, 3, 3), dilation=(1, 2, 1)),
    "radial": genkit.Radial(block_size=16, near="decay", sink=False, decay_factor=0.01, thin_below=128),
    "shifted_groups": genkit.ShiftedGroups(group=2),
    "shards": genkit.Shards(block=8, stride=3, local=1),
    "biased": genkit.Biased(bias="distance:t=0.5:h=0.5:w=0.5", block=8),
}


def _frames(layout: TokenLayout, size: int) -> torch.Tensor:
    """Blocks of ``size`` frames see themselves and earlier ones; other tokens see and are seen by everything."""
    start, stop = layout.grid_span
    block = torch.arange(stop - start) // (layout.grid[1] * layout.grid[2] * size)
    pairs = torch.ones(layout.length, layout.length, dtype=torch.bool)
    pairs[start:stop, start:stop] = block[:, None] >= block
    return pairs[None]


def _band(layout: TokenLayout, reach: int) -> torch.Tensor:
    place = torch.arange(layout.length)
    return ((place[:, None] - place).abs() <= reach)[None]


def _any(layout: TokenLayout) -> torch.Tensor:
    """Other pairs for each of two rows; every token sees itself."""
    draw = torch.Generator().manual_seed(5)
    pairs = torch.rand(2, layout.length, layout.length, generator=draw) < 0.6
    return pairs | torch.eye(layout.length, dtype=torch.bool)


MASKS = {"frames": lambda layout: _frames(layout, 2), "band": lambda layout: _band(layout, 20), "any": _any}


@pytest.mark.parametrize("layout", [LAYOUT, WITH_TEXT], ids=["grid", "text"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("shifted_groups", "shards", "biased")])
def test_softmax_over_the_pairs_of_both(name, mask, layout):
    method, pairs = METHODS[name], MASKS[mask](layout)
    inputs = [x.requires_grad_() for x in tokens(layout)]
    site, cache = Site.of_layout(layout, heads=2), PatchCache()
    out = method.attend_pairs(*inputs, site, cache, pairs)
    both = method.mask(layout) & pairs
    right = attention_over(*inputs, both[:, None])
    torch.testing.assert_close(out.double(), right, atol=3e-6, rtol=1e-5)
    weight = torch.sin(torch.arange(out.numel())).view(out.shape)
    grads = zip(*(torch.autograd.grad((x * weight).sum(), inputs) for x in (out, right)), strict=True)
    assert all(torch.allclose(one, other, atol=2e-5, rtol=1e-4) for one, other in grads)
    density = method.density(site, cache)
    assert density.dense if name == "all" else density.computed == pytest.approx(both.float().mean().item(), abs=1e-6)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", ["shifted_groups", "shards"])
def test_heads_that_see_different_pairs(name, mask):
    method, pairs = METHODS[name], MASKS[mask](LAYOUT)
    q, k, v = tokens(LAYOUT, heads=4)
    site, cache = Site.of_layout(LAYOUT, heads=4), PatchCache()
    eye = torch.eye(LAYOUT.length).expand(2, 4, -1, -1).transpose(1, 2).contiguous()  # values that tell the weights
    own = torch.cat([method.attend(q, k, part, site, cache) for part in eye.split(8, -1)], -1) > 0
    seen = own & pairs[:, :, None]
    scores = torch.einsum("bqhd,bkhd->bqhk", q.double(), k.double()) * q.shape[-1] ** -0.5
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    out = method.attend_pairs(q, k, v, site, cache, pairs)
    torch.testing.assert_close(out.double(), torch.einsum("bqhk,bkhd->bqhd", weights, v.double()), atol=3e-6, rtol=1e-5)


def test_a_bias_stays():
    method, pairs = METHODS["biased"], _frames(LAYOUT, 2)
    inputs = tokens(LAYOUT)
    site = Site.of_layout(LAYOUT, heads=2)
    out = method.attend_pairs(*inputs, site, PatchCache(), pairs)
    whole = torch.ones_like(pairs)
    assert torch.equal(
        method.attend_pairs(*inputs, site, PatchCache(), whole)[:, 60:], out[:, 60:]
    )  # the last frames see all
    assert not torch.allclose(method.attend_pairs(*inputs, site, PatchCache(), whole)[:, :60], out[:, :60], atol=1e-4)


def test_the_plan_is_made_once_per_mask():
    method, inputs, cache = METHODS["neighborhood"], tokens(LAYOUT), PatchCache()
    site, pairs = Site.of_layout(LAYOUT, heads=2), _frames(LAYOUT, 2)
    method.attend_pairs(*inputs, site, cache, pairs)
    made = cache.held(("paired", method, LAYOUT))
    method.attend_pairs(*inputs, site, cache, pairs)
    assert cache.held(("paired", method, LAYOUT)) is made
    method.attend_pairs(*inputs, site, cache, pairs.clone())
    assert cache.held(("paired", method, LAYOUT)) is not made


def test_what_cannot_be_joined():
    inputs, site = tokens(LAYOUT), Site.of_layout(LAYOUT, heads=2)
    nothing = _frames(LAYOUT, 2).clone()
    nothing[:, 3] = False
    assert METHODS["neighborhood"].attend_pairs(*inputs, site, PatchCache(), nothing) is None
    method = genkit.MixtureOfBlock(temporal=1, spatial=(2, 2), box=(1, 2, 2))
    assert not method.takes_pairs
    with pytest.raises(UnsupportedError, match="differs between queries"):
        method.attend_pairs(*inputs, site, PatchCache(), _frames(LAYOUT, 2))
