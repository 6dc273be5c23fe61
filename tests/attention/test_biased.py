"""Every method that takes a bias: softmax of its pairs with the bias added, exact gradients, text exempt, refusals."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from attention_helpers import tokens

import genkit
from genkit.attention import registry
from genkit.attention.bias_terms import TokenPlaces
from genkit.attention.cache import PatchCache
from genkit.attention.scored import WithScale, bias_rows
from genkit.attention.site import Place, Projections, Site
from genkit.attention.weights import PatchWeights
from genkit.errors import ArtifactError, UnsupportedError, UsageError
from genkit.layout import Segment, TokenLayout

LAYOUT = TokenLayout((3, 4, 5), (Segment("text", 3), Segment("grid", 60), Segment("reference", 2)))
HEADS = 4
METHODS = {
    "biased": genkit.Biased(cutoff=2.0, block=8),
    "radial": genkit.Radial(block_size=8, near="decay", sink=False, decay_factor=0.1),
    "neighborhood": genkit.Neighborhood(size=3),
    "shards": genkit.Shards(block=8, stride=3, local=0),
    "shifted_groups": genkit.ShiftedGroups(group=1),
    "sliding_window": genkit.SlidingWindow(base=(3, 3), scale_factor=1.0),
    "block_select": genkit.BlockSelect(block=8, keep=3),
    "dense": genkit.Neighborhood(size="all"),
}
BIASES = ["alibi:t=1:h=0.5", "distance:t=1:w=2:free_w=1+frames:slope=0.3", "distance:t=1:h=2"]
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())


class _Module(torch.nn.Module):
    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.to_q = torch.nn.Linear(4, 4).to(dtype)


def site_of(layout=LAYOUT, **more):
    return Site.of_layout(layout, role="joint", heads=HEADS, **more)


def seen(method, q, k, site, cache):
    """(B|1, H, N, N) bool: the pairs that a method reads."""
    if method.by_data:
        return method.pairs(q, k, site, cache)
    every = torch.arange(site.layout.length)
    if method.name == "shifted_groups":
        return method.masks(site.layout)[method._kinds(HEADS)][None]
    if method.name == "shards":
        return method.masks(site.layout)[method.kinds(HEADS)][None]
    if method.name == "biased":
        return method._rows(site.layout, every, HEADS)[None]
    return method.mask(site.layout)[None, None]


def softmax_over(q, k, v, visible, bias, scale):
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * scale + bias
    return torch.einsum("bhij,bjhd->bihd", scores.masked_fill(~visible, -torch.inf).softmax(-1), v)


@every_method
@pytest.mark.parametrize("bias", BIASES)
def test_output_and_gradients_are_those_of_the_definition(method, bias):
    method = dataclasses.replace(method, bias=bias)
    inputs = [x.requires_grad_() for x in tokens(LAYOUT, heads=HEADS, dtype=torch.float64)]
    site, cache = site_of(), PatchCache()
    out = method.attend(*inputs, site, cache)
    visible = seen(method, *inputs[:2], site, cache)
    added = bias_rows(method.bias_spec, LAYOUT, torch.arange(LAYOUT.length), HEADS)
    right = softmax_over(*inputs, visible, added, 8**-0.5)
    torch.testing.assert_close(out, right, atol=1e-10, rtol=0)
    weight = torch.sin(torch.arange(out.numel())).view(out.shape)
    for one, two in zip(*(torch.autograd.grad((x * weight).sum(), inputs) for x in (out, right)), strict=True):
        torch.testing.assert_close(one, two, atol=1e-10, rtol=0)
    if method.name != "biased":
        plain = dataclasses.replace(method, bias=None)
        assert not torch.allclose(plain.attend(*inputs, site, PatchCache()), out, atol=1e-3)


@every_method
def test_hidden_keys_stay_hidden(method):
    method = dataclasses.replace(method, bias=BIASES[0])
    q, k, v = tokens(LAYOUT, heads=HEADS, dtype=torch.float64)
    mask = torch.ones(2, LAYOUT.length, dtype=torch.bool)
    mask[1, :2] = False
    site, cache = site_of(key_mask=mask), PatchCache()
    visible = seen(method, q, k, site, cache) & mask[:, None, None]
    added = bias_rows(method.bias_spec, LAYOUT, torch.arange(LAYOUT.length), HEADS)
    out = method.attend(q, k, v, site, cache)
    torch.testing.assert_close(out, softmax_over(q, k, v, visible, added, 8**-0.5), atol=1e-10, rtol=0)


@every_method
def test_weights_of_a_bias_learn(method, tmp_path):
    settings = {"cutoff": "auto"} if method.name == "biased" else {}
    method = dataclasses.replace(method, bias="table:t=2:h=2:w=2+alibi:t=1:learned=true", **settings)
    q, k, v = tokens(LAYOUT, heads=HEADS, dtype=torch.float64)
    site, cache, module = site_of(), PatchCache(), _Module()
    place = Place(site.name, "joint", 0, 1, HEADS, module, True, Projections(module))
    assert method.needs_heads and not list(method.install(place, cache))
    weights = PatchWeights.of(cache)
    assert weights.count() == HEADS * (3 * 5 + 1) and all(p.dtype == torch.float64 for p in weights.parameters())
    fixed = dataclasses.replace(method, bias="alibi:t=1", **({"cutoff": None} if method.name == "biased" else {}))
    first = method.attend(q, k, v, site, cache)
    torch.testing.assert_close(first, fixed.attend(q, k, v, site, PatchCache()), atol=1e-12, rtol=0)
    with torch.no_grad():
        for number, parameter in enumerate(weights.parameters()):
            parameter += 0.1 * torch.sin(torch.arange(parameter.numel()) + number).view(parameter.shape)
    if method.by_data:  # what is kept does not move under the small steps below
        assert torch.equal(seen(method, q, k, site, cache), seen(method, q, k, site, cache))
    push = torch.cos(torch.arange(v.numel()).double()).view(v.shape)
    loss = (method.attend(q, k, v, site, cache) * push).sum()
    names = dict(weights.named_weights())
    found = dict(zip(names, torch.autograd.grad(loss, list(names.values())), strict=True))
    for name, parameter in names.items():
        for at in ((0, 1), (HEADS - 1, 2)) if parameter.dim() == 2 else ((0,), (HEADS - 1,)):
            values = []
            for step in (1e-5, -1e-5):
                with torch.no_grad():
                    parameter[at] += step
                    values.append((method.attend(q, k, v, site, cache) * push).sum().item())
                    parameter[at] -= step
            assert found[name][at].item() == pytest.approx((values[0] - values[1]) / 2e-5, abs=1e-7)
    path = weights.save(tmp_path / "bias.safetensors")
    again = registry.trained(method.name, path)
    assert again == dataclasses.replace(method, weights=str(path))
    other = PatchCache()
    again.install(place, other)
    again.ready(other)
    with torch.no_grad():
        assert torch.equal(again.attend(q, k, v, site, other), method.attend(q, k, v, site, cache))
    wrong = dataclasses.replace(again, bias="table:t=3")
    cache = PatchCache()
    wrong.install(place, cache)
    with pytest.raises(ArtifactError, match="bias"):
        wrong.ready(cache)


@pytest.mark.parametrize(
    "method", [genkit.Pyramid(block=8, thresholds=(0.3, 0.6, 0.8, 0.95)), genkit.BlockSelect(block=8, keep=2, tail=4)]
)
def test_means_of_keys_get_the_mean_of_their_biases(method):
    """Equal keys: a mean stands exactly for its keys' scores, so only the bias within a mean is averaged."""
    method = dataclasses.replace(method, bias="distance:t=1:h=2:w=2", **({} if method.name == "pyramid" else {}))
    layout = TokenLayout.of_grid(2, 4, 8)
    q, k, v = tokens(layout, heads=HEADS, dtype=torch.float64)
    site, cache = Site.of_layout(layout, heads=HEADS), PatchCache()
    out = method.attend(q, k, v, site, cache)
    blocks = method.blocks_on(layout.grid)
    order = blocks.permutation.order
    places = TokenPlaces.of_order(layout.grid, order)
    added = bias_rows(method.bias_spec, layout, torch.arange(64), HEADS).expand(HEADS, -1, -1)[:, order][:, :, order]
    bias = method.block_bias(q, site, cache, order, 8)
    means = added.unflatten(2, (8, 8)).unflatten(1, (8, 8)).mean((2, 4))
    torch.testing.assert_close(bias[0].double().expand(HEADS, -1, -1), means, atol=1e-6, rtol=0)
    moved = [x[:, order] for x in (q, k, v)]
    if method.name == "pyramid":
        levels = method.levels(*moved[:2], None, bias)
    else:
        levels = torch.where(method.select_blocks(*moved[:2], blocks, None, bias), 1, 4)
    assert (levels != 1).any() and len(places.at) == 64
    right = torch.zeros_like(moved[0])
    for b in range(2):
        for h in range(HEADS):
            for row in range(8):
                mine = slice(8 * row, 8 * row + 8)
                scores, values = [], []
                for column in range(8):
                    p = int(levels[b, h, row, column])
                    if not p:
                        continue
                    at = slice(8 * column, 8 * column + 8)
                    keys, rest = (x[b, at, h].unflatten(0, (-1, p)).mean(1) for x in moved[1:])
                    score = moved[0][b, mine, h] @ keys.T * 8**-0.5 + added[h, mine, at].unflatten(1, (-1, p)).mean(2)
                    scores.append(score + torch.tensor(float(p)).log())
                    values.append(rest)
                right[b, mine, h] = torch.cat(scores, 1).softmax(-1) @ torch.cat(values)
    torch.testing.assert_close(out[:, order], right, atol=2e-8, rtol=0)  # float32 logarithms


def test_what_is_skipped_weighs_less_than_the_cutoff():
    layout = TokenLayout.of_grid(6, 8, 8, text=3)
    q, k, v = tokens(layout, heads=HEADS, dtype=torch.float64)
    site = Site.of_layout(layout, role="joint", heads=HEADS)
    for bias in ("distance:t=1:h=2:w=2", "alibi:slope=8", "frames:slope=3"):
        whole = genkit.Biased(bias=bias, cutoff=None).attend(q, k, v, site, PatchCache())
        densities = []
        for cutoff in (4.0, 8.0, 12.0):
            method = genkit.Biased(bias=bias, cutoff=cutoff)
            densities.append(method.density(site, PatchCache()).computed)
            difference = (method.attend(q, k, v, site, PatchCache()) - whole).abs().max().item()
            spread = torch.einsum("bihd,bjhd->bhij", q, k).mul(8**-0.5)
            bound = layout.length * torch.tensor(-cutoff).exp() * (spread.amax() - spread.amin()).exp() * v.abs().max()
            assert difference <= 2 * bound
            every = torch.arange(layout.length)
            rows = method._rows(layout, every, HEADS)
            assert (bias_rows(method.bias_spec, layout, every, HEADS).expand_as(rows)[~rows] < -cutoff).all()
        assert densities == sorted(densities) and densities[0] < 1
    assert genkit.Biased(bias="distance:t=1").density(site, PatchCache()).computed < 1
    whole = genkit.Biased(bias="frames:slope=1e-3").density(site, PatchCache())
    assert whole.computed == 1 and not whole.dense  # all pairs with a bias are not dense attention


def test_an_svd_is_told_with_rank_and_error():
    method = genkit.Neighborhood(size=3, bias="alibi+distance:t=2+svd:error=0.2")
    exact = genkit.Neighborhood(size=3, bias="alibi+distance:t=2")
    q, k, v = tokens(LAYOUT, heads=HEADS, dtype=torch.float64)
    cache = PatchCache()
    difference = (method.attend(q, k, v, site_of(), cache) - exact.attend(q, k, v, site_of(), PatchCache())).abs().max()
    assert 1e-4 < difference < 0.4 and "of 12, off by at most 0.1" in method.remarks(cache)[0]
    assert exact.remarks(PatchCache()) == []


def test_heads_of_other_processes_keep_their_slopes():
    q, k, v = tokens(LAYOUT, heads=HEADS)
    for method in (genkit.Biased(bias="alibi:slope=8"), genkit.BlockSelect(block=8, keep=3, bias="alibi:slope=8")):
        whole = method.attend(q, k, v, site_of(), PatchCache())
        for first in (0, 2):
            part = slice(first, first + 2)
            site = dataclasses.replace(site_of(), heads=2, first_head=first, all_heads=HEADS)
            out = method.attend(*(x[:, :, part] for x in (q, k, v)), site, PatchCache())
            torch.testing.assert_close(out, whole[:, :, part])


@pytest.mark.parametrize("name", registry.names())
def test_the_scale_by_length_is_one_setting_of_every_method_that_takes_it(name):
    cls = registry.method_class(name)
    if not issubclass(cls, WithScale):
        assert name in (
            "broadcast", "broadway", "cross_modal_context", "layer_router", "linear_attention", "motion_boxes",
            "reference", "shared_cross_attention", "sparse_linear",
        )  # fmt: skip
        return
    settings = {"block_select": {"block": 8}, "pyramid": {"block": 8}, "agent": {"cell": (1, 2, 2)}}.get(name, {})
    layout = TokenLayout.of_grid(3, 4, 6)
    site = Site.of_layout(layout, heads=HEADS)
    q, k, v = tokens(layout, heads=HEADS, dtype=torch.float64)
    plain = cls(**settings, **({"scale_factor": 1.0} if name == "sliding_window" else {}))
    scaled = cls(**settings, length_scale="log:2x2")
    factor = scaled.score_factor(layout)
    assert factor == pytest.approx((torch.tensor(24.0).log() / torch.tensor(4.0).log()).sqrt().item())
    out = scaled.attend(q, k, v, site, PatchCache())
    right = plain.attend(q, k, v, dataclasses.replace(site, scale=8**-0.5 * factor), PatchCache())
    assert torch.equal(out, right)
    assert not torch.allclose(out, plain.attend(q, k, v, site, PatchCache()), atol=1e-3)
    with pytest.raises(UsageError, match="length_scale"):
        cls(**settings, length_scale="log")


def test_refusals():
    for make, words in (
        (lambda: genkit.Radial(bias="gauss"), "allowed: distance"),
        (lambda: registry.build("radial", {"bias": "alibi:t=x"}), "bias alibi, t"),
        (lambda: genkit.Radial(weights="a.safetensors"), "learned terms"),
        (lambda: genkit.Biased(bias=None), "needs a bias"),
        (lambda: genkit.Biased(cutoff=0.0), "cutoff"),
        (lambda: genkit.Biased(bias="table:t=2", cutoff=8.0), "learned"),
        (lambda: genkit.BlockSelect(score="kmeans", bias="alibi"), "kmeans"),
        (lambda: genkit.SlidingWindow(dual=True, bias="alibi"), "second path"),
        (lambda: genkit.SlidingWindow(scale_factor=1.1, length_scale=1.2), "give one of them"),
        (lambda: registry.build("mixture_of_block", {"bias": "alibi"}), "bias"),
        (lambda: genkit.Clear(bias="alibi"), "takes none"),
        (lambda: genkit.Clear(proportional=True, length_scale=1.2), "give one of them"),
        (lambda: registry.build("agent", {"bias": "alibi"}), "bias"),
    ):
        with pytest.raises(UsageError, match=words):
            make()
    assert genkit.BlockSelect(bias="alibi").describe() == "block_select(bias=alibi)"
    takers = {name for name in registry.names() if getattr(registry.method_class(name), "takes_bias", False)}
    assert takers == {
        "anchor_window", "biased", "block_select", "neighborhood", "pyramid", "radial", "shards", "shifted_groups",
        "sliding_window",
    }  # fmt: skip


def test_a_backend_that_cannot_take_a_bias_says_so_by_name():
    q, k, v = tokens(LAYOUT, heads=HEADS)
    with pytest.raises(UnsupportedError, match="triton"):
        genkit.Biased(bias="alibi").attend(q, k, v, site_of(), PatchCache("triton"))
