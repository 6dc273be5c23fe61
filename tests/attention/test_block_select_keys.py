"""score=keys: the card's numbers, output and gradients against masked attention with the bias, weights, refusals."""

from __future__ import annotations

import math
import random

import pytest
import torch
from layouts import LAYOUTS, layout_of

import genkit
from genkit.attention.block_select import BlockSelect
from genkit.attention.block_select.keys import KeyWeights, choose, key_bias
from genkit.attention.cache import PatchCache
from genkit.attention.registry import trained
from genkit.attention.site import Place, Site
from genkit.attention.weights import PatchWeights
from genkit.errors import ArtifactError, UnsupportedError, UsageError

WIDTH = 8


class Module(torch.nn.Module):
    def __init__(self, heads, key_heads):
        super().__init__()
        self.to_q, self.to_v = (torch.nn.Linear(3, count * WIDTH).double() for count in (heads, key_heads))


def patched(method, layout, heads=4, key_heads=4, random=True):
    """A site, and a cache with the weights of its layer."""
    role = "joint" if layout.text_span else "self"
    site, cache = Site.of_layout(layout, heads=heads, role=role), PatchCache()
    assert method.needs_heads
    method.install(Place("site", role, 0, 1, heads, Module(heads, key_heads)), cache)
    own = PatchWeights.of(cache).at(method.name, "site")
    if random:
        generator = torch.Generator().manual_seed(5)
        for parameter in own.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return site, cache, own


def drawn(layout, heads=4, key_heads=4, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, layout.length, count, WIDTH) for count in (heads, key_heads, key_heads)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


def written_out(method, q, k, v, site, own):
    """The definition, pair by pair: the keys with the largest bias, the own block, the bias added; and the pairs."""
    start, stop = site.layout.grid_span
    blocks = method.blocks_on(site.layout.grid)
    order = blocks.permutation.order.tolist()
    block_of = {token: place // method.block for place, token in enumerate(order)}
    wanted = method.keep if isinstance(method.keep, int) else math.ceil(method.keep * blocks.count - 1e-9)
    most = len(order) if wanted >= blocks.count else (wanted - 1) * method.block
    values = v[:, start:stop].flatten(2)
    bias = own.amplitude * (torch.nn.functional.softplus(values @ own.map.T) - math.log(2))  # (B, n, Hk)
    group = q.shape[2] // k.shape[2]
    seen = torch.ones(len(q), q.shape[2], q.shape[1], k.shape[1], dtype=torch.bool)
    added = torch.zeros(len(q), q.shape[2], k.shape[1], dtype=torch.float64)
    for row in range(len(q)):
        for head in range(q.shape[2]):
            here = bias[row, :, head // group].detach()
            listed = sorted(range(len(order)), key=lambda key, here=here: (-float(here[order[key]]), key))[:most]
            chosen = {order[place] for place in listed}
            for query in range(len(order)):
                for key in range(len(order)):
                    hidden = key not in chosen and block_of[key] != block_of[query]
                    seen[row, head, start + query, start + key] = not hidden
        added = added.clone()
        added[row, :, start:stop] = bias[row].T.repeat_interleave(group, 0)
    k, v = (x.repeat_interleave(group, 2) for x in (k, v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * WIDTH**-0.5
    inside = torch.zeros(q.shape[1], 1, dtype=torch.bool)
    inside[start:stop] = True  # queries outside the grid are those of dense attention
    scores = scores + added[:, :, None] * inside
    return torch.einsum("bhqk,bkhd->bqhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v), seen


def test_the_numbers_of_the_card():
    """Eight values of two heads, A = -1/2, w = 1/10: bias of two keys, the six best, and those of whole blocks."""
    v = torch.stack(
        [torch.sin(0.1 * torch.arange(64, dtype=torch.float64) + offset).view(16, 4) for offset in (2, 3)], 1
    )
    amplitude, weight = torch.full((2,), -0.5, dtype=torch.float64), torch.full((2, 8), 0.1, dtype=torch.float64)
    bias = key_bias(amplitude, weight, v[None])
    assert bias.shape == (1, 2, 16) and torch.equal(bias[0, 0], bias[0, 1])
    assert float(bias[0, 0, 0]) == pytest.approx(-0.435654, abs=6e-7)
    assert float(bias[0, 0, 5]) == pytest.approx(-0.202203, abs=6e-7)
    assert choose(bias, 6)[0, 0].tolist() == [3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("keep", [1, 2, 0.5, 1.0])
def test_output_and_gradients_are_those_of_the_definition(layout, key_heads, keep):
    method = BlockSelect(score="keys", block=16, keep=keep, untrained=True)
    site, cache, own = patched(method, layout, key_heads=key_heads)
    inputs = drawn(layout, key_heads=key_heads)
    out, (right, seen) = method.attend(*inputs, site, cache), written_out(method, *inputs, site, own)
    torch.testing.assert_close(out, right)
    wanted = [*inputs, *own.parameters()]
    weight = torch.sin(torch.arange(out.numel(), dtype=torch.float64)).view(out.shape)
    for one, other in zip(*(torch.autograd.grad((x * weight).sum(), wanted) for x in (out, right)), strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-7)
    every = torch.arange(layout.length)
    density = method.density(site, cache)
    assert torch.equal(method.read_rows(*(x.detach() for x in inputs), site, cache, every), seen)
    assert density.computed == pytest.approx(seen.double().mean().item())
    assert density.computed <= density.executed + 1e-9
    assert torch.equal(out, method.attend(*inputs, site, cache))


@pytest.mark.parametrize("seed", range(8))
def test_random_shapes_with_text_on_either_side_are_the_definition(seed):
    """Grids that no block divides, text before or behind, heads that share keys, any number of blocks kept."""
    draw = random.Random(seed)
    before, after = (draw.randint(1, 6), 0) if seed % 2 else (0, draw.randint(1, 6))
    layout = layout_of((draw.randint(1, 4), draw.randint(3, 6), draw.randint(3, 7)), before=before, after=after)
    key_heads, block = draw.choice([1, 2, 4]), draw.choice([8, 16])
    blocks = -(-layout.grid_length // block)
    keep = draw.choice([1, draw.randint(1, blocks), round(draw.uniform(0.05, 1), 3)])
    assert layout.grid_length % block  # the last block is not full
    method = BlockSelect(score="keys", block=block, keep=keep, untrained=True)
    site, cache, own = patched(method, layout, key_heads=key_heads)
    inputs = drawn(layout, key_heads=key_heads, seed=seed)
    out, (right, seen) = method.attend(*inputs, site, cache), written_out(method, *inputs, site, own)
    torch.testing.assert_close(out, right)
    every = torch.arange(layout.length)
    assert torch.equal(method.read_rows(*(x.detach() for x in inputs), site, cache, every), seen)
    wanted = [*inputs, *own.parameters()]
    push = torch.sin(torch.arange(out.numel(), dtype=torch.float64)).view(out.shape)
    for one, other in zip(*(torch.autograd.grad((x * push).sum(), wanted) for x in (out, right)), strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-7)
    # the same bits again, and a row alone as beside another
    again = method.attend(*inputs, site, cache)
    alone = method.attend(*(x[1:] for x in inputs), site, cache)
    assert torch.equal(out, again)
    torch.testing.assert_close(alone, out[1:])


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_low_precision_hides_what_the_list_holds(backend):
    """A key of the own block that is in the list counts once, in float32 and bfloat16."""
    layout = LAYOUTS["video"]
    method = BlockSelect(score="keys", block=16, keep=0.5, untrained=True)
    site, cache, own = patched(method, layout)
    cache.backend = backend
    inputs = [x.detach() for x in drawn(layout)]
    right, _ = written_out(method, *inputs, site, own)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 3e-2)):
        out = method.attend(*(x.to(dtype) for x in inputs), site, cache)
        assert float((out.double() - right).detach().norm() / right.detach().norm()) < tolerance


def test_untrained_weights_change_nothing_but_what_is_read():
    layout = LAYOUTS["ragged, text first"]
    method = BlockSelect(score="keys", block=16, keep=1.0, untrained=True)
    site, cache, _ = patched(method, layout, random=False)
    q, k, v = drawn(layout)
    dense = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    torch.testing.assert_close(method.attend(q, k, v, site, cache), dense)
    assert method.density(site, cache).computed == 1


def test_a_model_trains_them_saves_them_and_takes_them_again(tmp_path):
    pipe = genkit.load("toy-video")
    call = {"height": 64, "width": 64, "num_frames": 9, "num_inference_steps": 1, "output_type": "np"}
    settings = {"score": "keys", "block": 8, "keep": 0.3}
    with pytest.raises(UsageError, match=r"must be trained.*weights=FILE.*untrained=true"):
        genkit.patch(pipe, BlockSelect(**settings))
    with genkit.patch(pipe, BlockSelect(**settings, untrained=True)) as patch:
        plain = pipe("a red circle", generator=torch.Generator().manual_seed(2), **call).frames
        for parameter in patch.weights.parameters():
            parameter.data.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
        first = pipe("a red circle", generator=torch.Generator().manual_seed(2), **call).frames
        file = patch.weights.save(tmp_path / "keys.safetensors")
    with genkit.patch(pipe, BlockSelect(**settings, weights=str(file))):
        again = pipe("a red circle", generator=torch.Generator().manual_seed(2), **call).frames
    assert (first == again).all() and not (first == plain).all()
    told = trained("block_select", file)  # as commands read a file: its settings, and that it is trained
    assert (told.score, told.keep, told.block, told.untrained, told.weights) == ("keys", 0.3, 8, False, str(file))
    with genkit.patch(pipe, BlockSelect(score="keys", keep=0.5, weights=str(file))):
        pass  # other densities and blocks take the same weights
    with pytest.raises(ArtifactError, match="does not fit"):
        genkit.patch(pipe, BlockSelect(bias="table:t=2", weights=str(file)))
    with pytest.raises(ArtifactError, match="does not exist"):
        genkit.patch(pipe, BlockSelect(**settings, weights=str(tmp_path / "absent.safetensors")))


def test_weights_need_the_projection_of_values():
    with pytest.raises(UnsupportedError, match="to_v"):
        KeyWeights(Place("site", "self", 0, 1, 4, torch.nn.Linear(2, 2)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"untrained": True}, "no effect with score=pooled"), ({"weights": "x.safetensors"}, "score=keys, or a bias"),
        ({"score": "keys", "untrained": 1}, "true or false"), ({"score": "keys", "tail": 16}, "single keys"),
        ({"score": "keys", "untrained": True, "weights": "x.safetensors"}, "exclude"),
        ({"score": "keys", "top_p": 0.9}, "masses"), ({"score": "keys", "scope": "head"}, "single keys"),
        ({"score": "keys", "bias": "alibi:t=1"}, "a bias of its own"), ({"score": "keys", "refresh": 2}, "single keys"),
        ({"score": "keys", "guard": 0.1}, "single keys"), ({"score": "keys", "sink": "first_frame"}, "single keys"),
        ({"score": "keys", "keep": 0}, "a whole number >= 1"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused_with_words(settings, words):
    with pytest.raises(UsageError, match=words):
        BlockSelect(**settings)
