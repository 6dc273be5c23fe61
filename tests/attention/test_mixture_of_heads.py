"""Mixture of heads: the card's numbers, all heads with equal gates are attention, blocks that skip heads, gradients."""

from __future__ import annotations

import pytest
import torch
from attention_helpers import attention_over, tokens

import genkit
from genkit.attention.add_loss import AddLoss
from genkit.attention.cache import PatchCache
from genkit.attention.mixture_of_heads import MixtureOfHeads
from genkit.attention.mixture_of_heads.router import Routers, route
from genkit.attention.registry import trained
from genkit.attention.site import Place, Site
from genkit.attention.weights import PatchWeights
from genkit.errors import ArtifactError, UnsupportedError, UsageError
from genkit.layout import TokenLayout

LAYOUTS = {
    "video": TokenLayout.of_grid(3, 4, 4), "ragged": TokenLayout.of_grid(1, 5, 7),
    "text first": TokenLayout.of_grid(2, 4, 4, text=5),
}  # fmt: skip
HEADS, WIDTH = 4, 6


def f(rows, columns, offset):
    return torch.sin(0.1 * torch.arange(rows * columns, dtype=torch.float64) + offset).view(rows, columns)


class Module(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.to_v = torch.nn.Linear(3, HEADS * WIDTH).double()


def patched(method, layout, random=True):
    """A site, and a cache with the routers of its layer."""
    site, cache = Site.of_layout(layout, heads=HEADS), PatchCache()
    method.install(Place("site", site.role, 0, 1, HEADS, Module()), cache)
    routers = PatchWeights.of(cache).at(method.name, "site")
    if random:
        generator = torch.Generator().manual_seed(5)
        for parameter in routers.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return site, cache, routers


def test_the_numbers_of_the_card():
    found = route((f(5, 6, 0.3) @ f(6, 4, 0.7))[None], 2)
    torch.testing.assert_close(
        found.weights[0, 0], torch.tensor([1.046921, 0.953079, 0, 0], dtype=torch.float64), atol=6e-7, rtol=0
    )
    torch.testing.assert_close(found.weights.sum(-1), torch.full((1, 5), 2.0, dtype=torch.float64))
    assert float(found.balance()) == pytest.approx(2.091867, abs=6e-7)


def test_balance_is_least_and_equal_to_what_is_kept_when_heads_are_used_alike():
    even = route(20 * torch.eye(4, dtype=torch.float64)[None], 1)
    assert float(even.balance()) == pytest.approx(1, abs=1e-6)
    one = route(20 * torch.eye(4, dtype=torch.float64)[[0, 0, 0, 0]][None], 1)
    assert float(one.balance()) > 3.9


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("block", [1, 8])
def test_all_heads_and_equal_gates_are_attention(layout, block):
    method = MixtureOfHeads(shared=1, keep=1.0, block=block, untrained=True)
    site, cache, _ = patched(method, layout, random=False)
    q, k, v = tokens(layout, heads=HEADS, width=WIDTH, dtype=torch.float64)
    everything = torch.ones(layout.length, layout.length, dtype=torch.bool)
    torch.testing.assert_close(method.attend(q, k, v, site, cache), attention_over(q, k, v, everything))
    assert method.density(site, cache).computed == 1


def written_out(method, q, k, v, site, routers):
    """The definition: softmax of every head over everything, times its weight; blocks choose by their mean gate."""
    start, stop = site.layout.grid_span
    shared, keep = method.split(HEADS)
    x = v[:, start:stop].flatten(2)
    gates = (x @ routers.routed.T).softmax(-1)
    rank = gates.detach().clone()
    if method.block > 1:
        from genkit.attention.mixture_of_heads.method import _block_of

        number = _block_of(site.layout.grid, method.block).numbers
        for block in number.unique():
            rank[:, number == block] = rank[:, number == block].mean(1, keepdim=True)
    kept = torch.zeros_like(gates).scatter(-1, rank.topk(keep, -1).indices, 1.0)
    weight = keep * gates * kept / (gates * kept).sum(-1, keepdim=True)
    if shared:
        both = 2 * (x @ routers.both.T).softmax(-1)
        alone = shared * (x @ routers.shared.T).softmax(-1)
        weight = torch.cat([both[..., :1] * alone, both[..., 1:] * weight], -1)
    every = torch.ones(site.layout.length, site.layout.length, dtype=torch.bool)
    out = attention_over(q, k, v, every)
    factor = torch.ones(out.shape[:3], dtype=out.dtype)
    factor[:, start:stop] = weight
    return out * factor[..., None]


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("settings", [{"shared": 0, "keep": 2}, {"shared": 1, "keep": 2}, {"shared": 2, "keep": 1}])
@pytest.mark.parametrize("block", [1, 8])
def test_output_and_gradients_are_those_of_the_definition(layout, settings, block):
    method = MixtureOfHeads(**settings, block=block, untrained=True, balance=0.0)
    site, cache, routers = patched(method, layout)
    inputs = [x.requires_grad_() for x in tokens(layout, heads=HEADS, width=WIDTH, dtype=torch.float64)]
    out, right = method.attend(*inputs, site, cache), written_out(method, *inputs, site, routers)
    torch.testing.assert_close(out, right)
    wanted = [*inputs, *routers.parameters()]
    weight = torch.sin(torch.arange(out.numel(), dtype=torch.float64)).view(out.shape)
    for one, other in zip(*(torch.autograd.grad((x * weight).sum(), wanted) for x in (out, right)), strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-7)
    share = 1 - layout.grid_length / layout.length * (1 - (settings["shared"] + settings["keep"]) / HEADS)
    assert method.density(site, cache).computed == pytest.approx(share)
    assert method.density(site, cache).executed == pytest.approx(1.0 if block == 1 else share)
    assert float(method.pairs(*inputs[:2], site, cache).double().mean()) == pytest.approx(share)


def test_the_loss_of_balance_reaches_the_routers_alone_and_leaves_the_output():
    layout = LAYOUTS["video"]
    plain = MixtureOfHeads(shared=0, keep=2, block=1, untrained=True, balance=0.0)
    method = MixtureOfHeads(shared=0, keep=2, block=1, untrained=True, balance=0.5)
    q, k, v = tokens(layout, heads=HEADS, width=WIDTH, dtype=torch.float64)
    found = []
    for each in (plain, method):
        site, cache, routers = patched(each, layout)
        out = each.attend(q, k, v, site, cache)
        found.append((out, torch.autograd.grad(out.square().sum(), routers.routed)[0]))
    assert torch.equal(found[0][0], found[1][0])
    decision = route(v.flatten(2) @ routers.routed.T, 2)
    own = torch.autograd.grad(decision.balance(), routers.routed)[0]
    torch.testing.assert_close(found[1][1] - found[0][1], 0.5 * own)
    x, loss = (torch.ones(2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda x: AddLoss.apply(x, loss.sum() * 0), [x])


def test_a_model_trains_its_routers_saves_them_and_takes_them_again(tmp_path):
    pipe = genkit.load("toy-video")
    call = {"height": 64, "width": 64, "num_frames": 5, "num_inference_steps": 1, "output_type": "np"}
    with pytest.raises(UsageError, match=r"weights=FILE.*untrained=true"):
        genkit.patch(pipe, MixtureOfHeads())
    with genkit.patch(pipe, MixtureOfHeads(shared=1, keep=2, untrained=True)) as patch:
        assert patch.weights.count() > 0
        for parameter in patch.weights.parameters():
            parameter.data.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
        first = pipe("a red circle", generator=torch.Generator().manual_seed(2), **call).frames
        file = patch.weights.save(tmp_path / "routers.safetensors")
    with genkit.patch(pipe, MixtureOfHeads(shared=1, keep=2, weights=str(file))):
        again = pipe("a red circle", generator=torch.Generator().manual_seed(2), **call).frames
    assert (first == again).all()
    assert trained("mixture_of_heads", file) == MixtureOfHeads(shared=1, keep=2, weights=str(file))
    with pytest.raises(ArtifactError, match="does not fit"):
        genkit.patch(pipe, MixtureOfHeads(shared=2, keep=2, weights=str(file)))
    with pytest.raises(UsageError, match="5"):
        genkit.patch(pipe, MixtureOfHeads(shared=5, untrained=True))


def test_routers_need_the_projection_of_values():
    place = Place("site", "self", 0, 1, HEADS, torch.nn.Linear(2, 2))
    with pytest.raises(UnsupportedError, match="to_v"):
        Routers(place, 1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"shared": -1}, "shared"), ({"shared": 1.5}, "share from 0 to 1"), ({"keep": 0}, "keep"),
        ({"keep": 0.0}, "above 0"), ({"keep": True}, "keep"), ({"block": 4}, "8 to 4096"), ({"balance": -1}, "balance"),
        ({"untrained": 1}, "true or false"), ({"untrained": True, "weights": "x.safetensors"}, "exclude"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused_with_words(settings, words):
    with pytest.raises(UsageError, match=words):
        MixtureOfHeads(**settings)
