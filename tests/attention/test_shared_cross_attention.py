"""Shared cross-attention is the formula of its source: values, gradients, text alone, padding, positions."""

from __future__ import annotations

import math

import pytest
import torch
from attention_helpers import attention_over, tokens
from torch import nn

from genkit.attention.cache import PatchCache
from genkit.attention.shared_cross_attention import SharedCrossAttention
from genkit.attention.shared_cross_attention.positions import turned
from genkit.attention.site import HALVES, NEIGHBOURS, Place, Rotary, Site
from genkit.attention.weights import PatchWeights
from genkit.errors import UnsupportedError, UsageError
from genkit.layout import Segment, TokenLayout

HEADS, WIDTH = 2, 8
PLAIN = TokenLayout.of_grid(2, 3, 2, text=5)
FIRST = TokenLayout.of_grid(2, 3, 2, text=5, text_first=True)
#: As Motif-Video has it: video, tokens of the first frame, text.
IMAGE = TokenLayout((2, 3, 2), (Segment("grid", 12), Segment("image", 4), Segment("text", 5)))
SCA = SharedCrossAttention()


class Module(nn.Module):
    """What the method reads of an attention module."""

    def __init__(self, normed=True, heads=HEADS):
        super().__init__()
        self.to_q = nn.Linear(heads * WIDTH, heads * WIDTH).double()
        if normed:
            self.norm_q = nn.RMSNorm(WIDTH, eps=1e-6).double()
            nn.init.uniform_(self.norm_q.weight, 0.5, 1.5)


def installed(module, method=SCA, heads=HEADS):
    """A cache with the trained-looking weights of one layer."""
    cache = PatchCache()
    list(method.install(Place("layer", "joint", 0, 1, heads, module, rotary=Rotary("turns")), cache))
    layer = PatchWeights.of(cache).at("shared_cross_attention", "layer")
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.5)
    return cache, layer


def angles(count, draw=7):
    """Cosines and sines (count, WIDTH) of pairs of neighbours."""
    turn = torch.rand(count, WIDTH // 2, generator=torch.Generator().manual_seed(draw)).double() * 6
    return turn.cos().repeat_interleave(2, -1), turn.sin().repeat_interleave(2, -1)


def formula(layer, norm, output, k, v, layout, key_mask, table):
    """W_o Attention(R norm(LN(W_q a)), K_text, V_text) of the grid's rows, zero elsewhere; the card's section 2.3."""
    start, stop = layout.grid_span
    a, b = layout.text_span
    x = output[:, start:stop].flatten(2) @ layer.query.T
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    q = (x * layer.norm + layer.shift).unflatten(-1, output.shape[2:])
    if norm is not None:
        q = q / (q.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight
    if table is not None:
        cos, sin = (each[None, :, None, 0::2] for each in table)
        even, odd = q[..., 0::2], q[..., 1::2]
        q = torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)
    group = q.shape[2] // k.shape[2]
    keys, values = (each[:, a:b].repeat_interleave(group, 2) for each in (k, v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, keys) / math.sqrt(q.shape[-1])
    if key_mask is not None:
        scores = scores.masked_fill(~key_mask[:, None, None, a:b], float("-inf"))
    found = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), values)
    term = torch.zeros_like(output)
    term[:, start:stop] = (found.flatten(2) @ layer.out.T).unflatten(-1, output.shape[2:])
    return term


@pytest.mark.parametrize("layout", [PLAIN, FIRST, IMAGE], ids=["last", "first", "image"])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("turning", [False, True], ids=["still", "turned"])
@pytest.mark.parametrize("key_heads", [2, 1])
def test_values_and_gradients_of_the_formula(layout, masked, turning, key_heads):
    module = Module()
    cache, layer = installed(module)
    q, k, v = (x.requires_grad_() for x in tokens(layout, HEADS, key_heads, WIDTH, dtype=torch.float64))
    output = tokens(layout, HEADS, seed=2, dtype=torch.float64)[0].requires_grad_()
    mask = None
    if masked:
        mask = torch.ones(2, layout.length, dtype=torch.bool)
        mask[1, layout.text_span[1] - 2 : layout.text_span[1]] = False
    table = angles(12) if turning else None
    cache.hold(("shared_cross_attention", "layer"), table)
    site = Site.of_layout(layout, "joint", HEADS, name="layer", key_mask=mask, output=output)
    out = SCA.attend(q, k, v, site, cache)
    right = formula(layer, module.norm_q, output, k, v, layout, mask, table)
    torch.testing.assert_close(out, right, atol=1e-12, rtol=1e-10)
    weight = torch.sin(torch.arange(out.numel(), dtype=torch.float64)).view(out.shape)
    inputs = [output, k, v, *layer.parameters(), module.norm_q.weight]
    for one, other in zip(*(torch.autograd.grad((x * weight).sum(), inputs) for x in (out, right)), strict=True):
        torch.testing.assert_close(one, other, atol=1e-11, rtol=1e-9)


def test_a_module_without_norm_and_one_that_norms_all_heads_at_once():
    for module, norm in ((Module(False), None), (Module(False), nn.RMSNorm(HEADS * WIDTH, eps=1e-6).double())):
        if norm is not None:
            module.norm_q = norm
        cache, layer = installed(module)
        output = tokens(PLAIN, seed=2, dtype=torch.float64)[0]
        found = layer.queries(output)
        x = torch.nn.functional.layer_norm(output.flatten(2) @ layer.query.T, (16,), layer.norm, layer.shift, 1e-6)
        torch.testing.assert_close(found.flatten(2), x if norm is None else norm(x))


def test_own_queries_give_joint_attention_restricted_to_the_text():
    """With LN off and the block's own queries, what is read is the joint attention with all but the text hidden."""
    q, k, v = tokens(IMAGE, dtype=torch.float64)
    site = Site.of_layout(IMAGE, "joint", HEADS)
    words = slice(*IMAGE.text_span)
    found = SCA._read(q[:, :12], k[:, words], v[:, words], site, words)
    only = torch.zeros(IMAGE.length, IMAGE.length, dtype=torch.bool)
    only[:, words] = True
    torch.testing.assert_close(found, attention_over(q, k, v, only)[:, :12])


def test_padding_is_not_read_and_a_text_of_padding_alone_gives_nothing():
    cache, _ = installed(Module())
    q, k, v = tokens(PLAIN, dtype=torch.float64)
    output = tokens(PLAIN, seed=2, dtype=torch.float64)[0]
    mask = torch.ones(2, PLAIN.length, dtype=torch.bool)
    mask[0, 14:], mask[1, 12:] = False, False
    site = Site.of_layout(PLAIN, "joint", HEADS, name="layer", key_mask=mask, output=output)
    out = SCA.attend(q, k, v, site, cache)
    k[0, 14:], v[1, 12:] = 9.0, 9.0
    assert torch.equal(SCA.attend(q, k, v, site, cache), out)
    assert not out[1].any() and out[0, :12].any() and not out[:, 12:].any()


def test_other_tokens_than_text_do_not_matter():
    cache, _ = installed(Module())
    q, k, v = tokens(IMAGE, dtype=torch.float64)
    output = tokens(IMAGE, seed=2, dtype=torch.float64)[0]
    site = Site.of_layout(IMAGE, "joint", HEADS, name="layer", output=output)
    out = SCA.attend(q, k, v, site, cache)
    k[:, :16], v[:, :16] = 3.0, 3.0
    assert torch.equal(SCA.attend(torch.zeros_like(q), k, v, site, cache), out)


def test_zero_before_training_and_off_with_strength_0():
    cache, layer = installed(Module())
    with torch.no_grad():
        layer.out.zero_()
    q, k, v = tokens(PLAIN, dtype=torch.float64)
    site = Site.of_layout(PLAIN, "joint", HEADS, name="layer", output=q)
    assert not SCA.attend(q, k, v, site, cache).any()
    assert SharedCrossAttention(strength=0.0).attend(q, k, v, site, cache) is None


@pytest.mark.parametrize("layout", [PLAIN, FIRST, IMAGE], ids=["last", "first", "image"])
def test_tables_of_the_grid_of_all_but_text_and_of_all_tokens(layout):
    """A table tells its tokens by its length; complex factors, halves of width and several tables are the same."""
    x = tokens(layout, dtype=torch.float64)[0][:, slice(*layout.grid_span)]
    cos, sin = angles(layout.length)
    a, b = layout.text_span
    start, stop = layout.grid_span
    cut = [torch.cat([each[:a], each[b:]]) for each in (cos, sin)]
    want = turned(x, (cos[start:stop], sin[start:stop]), NEIGHBOURS, layout, "layer")
    factors = torch.complex(cos, sin)[:, 0::2]
    forms = [
        (cos, sin), (cos[None], sin[None]), factors, factors[None], [factors[start:stop], factors[a:b]][:1],
        (cos[:, 0::2], sin[:, 0::2]), tuple(cut),
    ]  # fmt: skip
    for told in forms:
        torch.testing.assert_close(turned(x, told, NEIGHBOURS, layout, "layer"), want)
    swap = torch.cat([torch.arange(0, WIDTH, 2), torch.arange(1, WIDTH, 2)])
    halves = turned(x[..., swap], (cos[:, swap], sin[:, swap]), HALVES, layout, "layer")
    torch.testing.assert_close(halves, want[..., swap])
    assert turned(x, None, NEIGHBOURS, layout, "layer") is x


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (angles(7), "rotary tables of 7 tokens"),
        ((angles(12)[0], angles(11)[0]), "not cosines and sines"),
        ((torch.ones(12, 6), torch.ones(12, 6)), "width 6, queries of width 8"),
        ("x", "no tensors"),
        ((torch.ones(12), torch.ones(12)), "not cosines and sines"),
    ],
)
def test_tables_that_are_none(told, words):
    with pytest.raises(UnsupportedError, match=f"layer layer: .*{words}"):
        turned(torch.ones(1, 12, 2, 8), told, NEIGHBOURS, PLAIN, "layer")


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"strength": -1}, "strength"), ({"strength": math.nan}, "strength"), ({"strength": True}, "strength"),
     ({"seed": -1}, "seed"), ({"seed": 0.5}, "seed")],
)  # fmt: skip
def test_settings_that_are_none(settings, words):
    with pytest.raises(UsageError, match=f"shared_cross_attention.{words}"):
        SharedCrossAttention(**settings)


def test_sites_that_it_does_not_serve():
    assert "has none" in SCA.why_not(Site.of_layout(TokenLayout.of_grid(2, 3, 2), "joint"))
    twice = TokenLayout((2, 3, 2), (Segment("grid", 12), Segment("encoded", 12)))
    assert "asks the text" in SCA.why_not(Site.of_layout(twice, "joint"))
    assert "self attention" in SCA.why_not(Site.of_layout(PLAIN, "self"))
    q, k, v = tokens(PLAIN)
    with pytest.raises(UsageError, match="needs what the attention gave"):
        SCA.attend(q, k, v, Site.of_layout(PLAIN, "joint", HEADS), PatchCache())
    with pytest.raises(UnsupportedError, match="takes its size from the projection to_q"):
        list(SCA.install(Place("layer", "joint", 0, 1, 2, nn.Identity()), PatchCache()))
    with pytest.raises(UnsupportedError, match="genkit generate"):
        SCA.mask(PLAIN)
