"""Layer router: the card's numbers, full at the start, the straight-through gradient, one branch per sample."""

from __future__ import annotations

import math

import pytest
import torch
from attention_helpers import attention_over, tokens

import genkit
from genkit.attention.cache import PatchCache
from genkit.attention.layer_router import LayerRouter
from genkit.attention.layer_router.method import _level
from genkit.attention.layer_router.router import FULL, SPARSE, Router, waves
from genkit.attention.site import Place, Site
from genkit.attention.sparse_part import parse
from genkit.attention.static import dense_attention
from genkit.attention.straight_through import Draws
from genkit.attention.weights import PatchWeights
from genkit.errors import UnsupportedError, UsageError
from genkit.layout import TokenLayout

LAYOUTS = {
    "video": TokenLayout.of_grid(3, 4, 4), "ragged": TokenLayout.of_grid(1, 5, 7),
    "text first": TokenLayout.of_grid(2, 4, 4, text=5, text_first=True),
    "text last": TokenLayout.of_grid(2, 4, 4, text=5),
}  # fmt: skip
PARTS = ["neighborhood size=3", "block_select block=8 keep=2", "shards block=8 stride=3 local=0"]
HEADS, WIDTH = 3, 8


class Module(torch.nn.Module):
    """An attention module whose projection to queries has given means."""

    def __init__(self):
        super().__init__()
        self.to_q = torch.nn.Linear(5, HEADS * WIDTH).double()

    def forward(self, x):
        return self.to_q(x)


class Case:
    """A method at a site, with its router, as a patch would have them."""

    def __init__(self, method, layout, random=True, batch=2):
        self.method, self.cache, self.module = method, PatchCache(), Module()
        self.site = Site.of_layout(layout, heads=HEADS)
        place = Place("site", self.site.role, 4, 9, HEADS, self.module, timestep="timestep")
        self.hooks = method.install(place, self.cache)
        self.router = PatchWeights.of(self.cache).at(method.name, "site")
        draw = torch.Generator().manual_seed(7)
        if random:
            for parameter in self.router.parameters():
                parameter.data = 0.6 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
        self.hidden = torch.randn(batch, layout.length, 5, generator=draw, dtype=torch.float64)
        self.calls = []

    def call(self, inputs, site=None, level=None):
        """A call of the denoiser as far as this layer sees it."""
        self.method.observe({"timestep": level}, self.cache)
        self.module(self.hidden)
        return self.method.attend(*inputs, site or self.site, self.cache)

    def logits(self, level=None):
        """The network written out: means over tokens and heads, brought to one size, and five layers."""
        x = self.module.to_q(self.hidden).unflatten(-1, (HEADS, WIDTH)).mean((1, 2)).detach()
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        if level is not None:
            x = x + waves(level) @ self.router.noise.T
        for number in range(5):
            x = x @ self.router.weights[number].T + self.router.biases[number]
            x = x * x.sigmoid() if number < 4 else x
        return x

    def spy(self, monkeypatch):
        """Rows of every call of the sparse part."""
        part = self.method.part
        inner = type(part).attend

        def attend(own, q, *rest):
            self.calls.append(len(q))
            return inner(own, q, *rest)

        monkeypatch.setattr(type(part), "attend", attend)


def method_of(part=PARTS[0], **more):
    return LayerRouter(sparse=part, untrained=True, **more)


def shift(case, wanted):
    """Move the last bias so that rows with the largest logits are full, as many as wanted."""
    logits = case.logits().detach()
    level = (logits[:, FULL] - logits[:, SPARSE]).sort(descending=True).values
    middle = (level[wanted - 1] + level[wanted]) / 2 if 0 < wanted < len(level) else level[0] + 1
    case.router.biases[-1].data[FULL] -= middle if wanted < len(level) else level[-1] - 1
    assert case.logits().argmax(-1).sum() == wanted


def test_the_network_of_the_card():
    """d -> 8d -> 2d -> 4d -> d -> 2 with a last bias of 4.5 for full attention; everything is full at first."""
    case = Case(method_of(), LAYOUTS["video"], random=False)
    sizes = [tuple(each.shape) for each in case.router.weights]
    assert sizes == [(64, 8), (16, 64), (32, 16), (8, 32), (2, 8)]
    assert sum(each.numel() for each in case.router.weights) == 36 * WIDTH**2 + 2 * WIDTH
    assert case.router.biases[-1].tolist() == [0, 4.5] and (FULL, SPARSE) == (1, 0)
    assert not case.router.weights[-1].any() and all(each.any() for each in list(case.router.weights)[:-1])
    assert torch.equal(case.logits(), torch.tensor([[0, 4.5]] * 2, dtype=torch.float64))
    again = Case(method_of(), LAYOUTS["video"], random=False)
    assert all(torch.equal(*pair) for pair in zip(case.router.parameters(), again.router.parameters(), strict=True))
    assert 1 / (1 + math.exp(-4.5)) == pytest.approx(0.989, abs=5e-4)  # drawn as full, at a temperature of 1


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_it_starts_dense_bit_for_bit(layout, part):
    """At inference the call is the model's own; in training the mix is full attention exactly."""
    case = Case(method_of(part), layout, random=False)
    inputs = tokens(layout, heads=HEADS, width=WIDTH, dtype=torch.float64)
    with torch.no_grad():
        assert case.call(inputs) is None and case.method.leaves(case.site, case.cache)
    out = case.call(inputs)
    assert out.requires_grad and torch.equal(out, dense_attention(*inputs, None, None))


@pytest.mark.parametrize("level", [None, torch.tensor([900.0, 20.0]), torch.tensor([0.9])])
def test_logits_are_those_of_the_definition(level):
    case = Case(method_of(), LAYOUTS["text last"])
    inputs = tokens(LAYOUTS["text last"], heads=HEADS, width=WIDTH, dtype=torch.float64)
    case.call(inputs, level=level)
    found = case.router(case.cache.held(("layer_router", "site")), _level(level, inputs[0]))
    torch.testing.assert_close(found, case.logits(None if level is None else level.double().expand(2)))
    loss = found.square().sum()
    grads = torch.autograd.grad(loss, list(case.router.parameters()), allow_unused=level is None)
    right = torch.autograd.grad(
        case.logits(None if level is None else level.double().expand(2)).square().sum(),
        list(case.router.parameters()), allow_unused=level is None,
    )  # fmt: skip
    for one, other in zip(grads, right, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("temperature", [1.0, 1.5])
@pytest.mark.parametrize("part", PARTS)
def test_the_gradient_is_that_of_the_straight_through_gumbel_softmax(part, temperature):
    """z = hard(s) + s - stop(s) with s = softmax((logits + g) / t) of two Gumbel draws: value and every gradient."""
    layout = LAYOUTS["text last"]
    case = Case(method_of(part), layout)
    inputs = [x.requires_grad_() for x in tokens(layout, heads=HEADS, width=WIDTH, dtype=torch.float64)]
    shift(case, 1)
    gumbel = -(-torch.rand(2, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64).log()).log()
    draws = LayerRouter.draws(case.cache)
    draws.temperature, draws.noise = temperature, {"site": gumbel[:, FULL] - gumbel[:, SPARSE]}
    out = case.call(inputs)
    soft = ((case.logits() + gumbel) / temperature).softmax(-1)
    hard = torch.nn.functional.one_hot(soft.argmax(-1), 2).double()
    z = (hard + soft - soft.detach())[:, FULL]
    torch.testing.assert_close(draws.decided["site"], z)
    full = dense_attention(*inputs, None, None)
    sparse = case.method.part.attend(*inputs, case.site, PatchCache())
    right = z[:, None, None, None] * full + (1 - z)[:, None, None, None] * sparse
    torch.testing.assert_close(out, right)
    wanted = [*inputs, *case.router.weights, *case.router.biases]
    push = torch.sin(torch.arange(out.numel(), dtype=torch.float64)).view(out.shape)
    found = torch.autograd.grad((out * push).sum(), wanted)
    for one, other in zip(found, torch.autograd.grad((right * push).sum(), wanted), strict=True):
        torch.testing.assert_close(one, other, atol=1e-11, rtol=1e-8)
    assert all(each.any() for each in found)


def test_draws_are_full_as_often_as_the_softmax_says():
    draws, logit = Draws(), torch.full((4000,), 0.7)
    draws.draw(["site"], 4000, torch.Generator().manual_seed(0))
    assert float(draws.decide(logit, "site").mean()) == pytest.approx(1 / (1 + math.exp(-0.7)), abs=0.03)
    assert float(draws.decide(torch.zeros(1), "other")) == 0  # equal logits: argmax takes the first, sparse


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("wanted", [0, 1, 2, 3])
def test_each_sample_runs_its_own_branch_alone(part, wanted, monkeypatch):
    """The decision is the argmax; rows may differ; the sparse part sees the sparse rows and no others."""
    layout = LAYOUTS["text last"]
    case = Case(method_of(part), layout, batch=3)
    inputs = tokens(layout, heads=HEADS, width=WIDTH, batch=3, dtype=torch.float64)
    shift(case, wanted)
    full = case.logits().argmax(-1) == FULL
    dense = dense_attention(*inputs, None, None)
    sparse = case.method.part.attend(*inputs, case.site, PatchCache())
    case.spy(monkeypatch)
    with torch.no_grad():
        out = case.call(inputs)
    assert case.calls == [3 - wanted] * (wanted < 3)
    assert case.method.leaves(case.site, case.cache) == (wanted == 3)
    if wanted == 3:
        assert out is None
        return
    torch.testing.assert_close(out, torch.where(full[:, None, None, None], dense, sparse))
    read = case.method.pair_rows(*inputs[:2], case.site, case.cache, torch.arange(layout.length)).expand(3, -1, -1, -1)
    assert [bool(row.all()) for row in read] == full.tolist()
    part_density = case.method.part.density(case.site, case.cache)
    share = wanted / 3
    assert case.method.density(case.site, case.cache).computed == pytest.approx(
        share + (1 - share) * part_density.computed
    )
    (told,) = [line for line in case.method.remarks(case.cache) if line.startswith("layer_router: full")]
    assert f"{wanted} of 3 decisions, by layer 0: {share:.0%}" in told


def test_hidden_keys_stay_hidden_in_both_branches():
    layout = LAYOUTS["text last"]
    case = Case(method_of("block_select block=8 keep=2"), layout, batch=3)
    inputs = tokens(layout, heads=HEADS, width=WIDTH, batch=3, dtype=torch.float64)
    mask = torch.ones(3, layout.length, dtype=torch.bool)
    mask[0, -2:], mask[2, -4:] = False, False
    site = case.site.at(None, None, None, mask)
    shift(case, 1)
    full = case.logits().argmax(-1) == FULL
    with torch.no_grad():
        out = case.call(inputs, site)
    every = torch.ones(layout.length, layout.length, dtype=torch.bool)
    dense = attention_over(*inputs, every & mask[:, None, None])
    sparse = case.method.part.attend(*inputs, site, PatchCache())
    torch.testing.assert_close(out, torch.where(full[:, None, None, None], dense, sparse))


def test_both_halves_of_guidance_follow_the_conditional_one():
    layout = LAYOUTS["video"]
    case = Case(method_of(), layout, batch=4)
    inputs = tokens(layout, heads=HEADS, width=WIDTH, batch=4, dtype=torch.float64)
    level = (case.logits()[:, FULL] - case.logits()[:, SPARSE]).detach()
    order = level.argsort()  # unconditional rows: the two extremes; conditional ones: between them
    case.hidden = case.hidden[order[[0, 3, 2, 1]]]
    case.router.biases[-1].data[FULL] -= level[order[1:3]].mean()
    plain = case.logits().argmax(-1) == FULL
    assert plain.tolist() == [False, True, True, False]
    half = [True, False]  # of the conditional rows
    dense, sparse = dense_attention(*inputs, None, None), case.method.part.attend(*inputs, case.site, PatchCache())
    right = torch.where(torch.tensor(half * 2)[:, None, None, None], dense, sparse)
    site = case.site.at(3, 9, "cond_uncond", both=True)
    with torch.no_grad():
        torch.testing.assert_close(case.call(inputs, site), right)
    torch.testing.assert_close(case.call(inputs, site), right)  # in training too
    # in calls of their own: the first of a step decides for the second, whose own queries say otherwise
    hidden = case.hidden
    with torch.no_grad():
        for step, names in ((4, ("cond", "uncond")), (5, (None, None))):
            for name, part in zip(names, (slice(2, 4), slice(0, 2)), strict=True):
                case.hidden = hidden[part]
                out = case.call([x[part] for x in inputs], case.site.at(step, 9, name))
                torch.testing.assert_close(out, right[part])
        case.hidden = hidden[0:2]
        out = case.call([x[0:2] for x in inputs], case.site.at(6, 9, "cond"))  # a new step decides anew
        torch.testing.assert_close(out, torch.stack([sparse[0], dense[1]]))


@pytest.mark.parametrize(
    ("given", "right"),
    [
        (None, None), (5, [5.0, 5.0]), (0.25, [0.25, 0.25]), (torch.tensor(7), [7.0, 7.0]),
        (torch.tensor([3.0]), [3.0, 3.0]), (torch.tensor([1, 2]), [1.0, 2.0]),
        (torch.tensor([[1.0, 4.0], [9.0, 2.0]]), [4.0, 9.0]), (torch.tensor([1.0, 2.0, 3.0]), None), ([1, 2], None),
    ],
)  # fmt: skip
def test_noise_levels_of_any_form(given, right):
    found = _level(given, torch.zeros(2, 1))
    assert found is None if right is None else found.tolist() == right


def test_the_noise_level_moves_decisions_and_can_be_left_out():
    """At either unit of timesteps two levels have different waves; without one the network sees none."""
    for one, other in ((0.1, 0.9), (100.0, 900.0)):
        assert float((waves(torch.tensor([one])) - waves(torch.tensor([other]))).norm()) > 1
    case = Case(method_of(), LAYOUTS["video"])
    means = torch.randn(2, HEADS * WIDTH, dtype=torch.float64)
    low, high = (case.router(means, torch.full((2,), level).double()) for level in (20.0, 900.0))
    assert not torch.allclose(low, high)
    case.router.noise.data.zero_()
    assert torch.equal(case.router(means, torch.full((2,), 900.0).double()), case.router(means, None))


def test_queries_that_did_not_come_decline_the_call():
    layout = LAYOUTS["video"]
    case = Case(method_of(), layout)
    inputs = tokens(layout, heads=HEADS, width=WIDTH, dtype=torch.float64)
    case.module.forward = lambda x: x  # as with fused projections
    with torch.no_grad():
        assert case.call(inputs) is None
    assert not case.method.leaves(case.site, case.cache) and "fused" in LayerRouter.declines
    assert case.call(inputs) is None
    for hook in case.hooks:
        hook.remove()
    assert not case.module._forward_pre_hooks and not case.module.to_q._forward_hooks


def test_it_needs_the_projection_of_queries_and_samples_in_the_batch():
    with pytest.raises(UnsupportedError, match="to_q"):
        Router(Place("site", "self", 0, 1, HEADS, torch.nn.Linear(2, 2)))
    site = Site.of_layout(LAYOUTS["video"], role="temporal", heads=HEADS)
    assert "temporal attention holds parts of them" in method_of().why_not(site)
    narrow = method_of("neighborhood size=3").why_not(Site.of_layout(LAYOUTS["video"], role="cross"))
    assert "works on self, joint attention" in narrow


def test_what_it_says_of_itself():
    method = LayerRouter(sparse=genkit.Radial(block_size=64), untrained=True)
    assert method.sparse == "radial block_size=64" and method.part == genkit.Radial(block_size=64)
    steps = genkit.Radial().recommended(50, 40)
    assert "layers" in steps and method.recommended(50, 40) == {"steps": steps["steps"]}
    assert method.details(LAYOUTS["video"]).startswith("full attention, or radial")
    assert method.every_grid == method.part.every_grid and method.hides_grid == method.part.hides_grid
    assert LayerRouter.trainable and not method.heads_apart
    with pytest.raises(UsageError, match="two branches"):
        parse("layer_router", "x")
    with pytest.raises(UsageError, match=r"weights=FILE.*untrained=true"):
        LayerRouter().check_weights()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sparse": ""}, "a method with its settings"), ({"sparse": "nope"}, "layer_router.sparse: got 'nope'"),
        ({"sparse": "radial nope=1"}, "nope"), ({"sparse": "agent"}, "agent"), ({"sparse": "broadcast"}, "broadcast"),
        ({"sparse": "block_select score=keys untrained=true"}, "weights of its own"),
        ({"sparse": "mixture_of_heads untrained=true"}, "weights of its own"),
        ({"sparse": "block_select keep=0.2 refresh=2"}, "left out between its steps"),
        ({"sparse": "sparse_linear"}, "two branches"), ({"sparse": 3}, "a method with its settings"),
        ({"untrained": 1}, "true or false"), ({"untrained": True, "weights": "x.safetensors"}, "exclude"),
        ({"weights": ""}, "safetensors"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused_with_words(settings, words):
    with pytest.raises(UsageError, match=words) as refused:
        LayerRouter(**settings)
    assert "\n" not in str(refused.value)
