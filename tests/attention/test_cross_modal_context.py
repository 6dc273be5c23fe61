"""Cross-modal context attention on plain tensors: context tokens, routes, gradients."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from cross_modal_helpers import WIDE, audio_layout, draw, installed, ltx, site, uniform, video_layout, visible

from genkit.attention.cache import PatchCache
from genkit.attention.cross_modal_context import CrossModalContext, context_part
from genkit.attention.cross_modal_context.route import (
    ContextRoute,
)
from genkit.attention.site import Site
from genkit.attention.weights import PatchWeights
from genkit.errors import UsageError
from genkit.layout import Segment, TokenLayout


def test_merging_partner_and_context_is_one_softmax_over_both():
    """The merge against one softmax over [partner, context], computed frame by frame from gathered keys."""
    video, audio = uniform(5, 40, 2, 3)
    where = site("audio_to_video", video, audio)
    for method in (CrossModalContext(tokens=3), CrossModalContext(tokens=3, partition="index")):
        cache, _, _ = installed(method, where)
        own = PatchWeights.of(cache).at(method.name, "x")
        with torch.no_grad():
            own.values.copy_(draw(3, 2, 4, seed=5))
            own.beta.copy_(torch.tensor([-1.0, 0.5]))
        q, k, v = draw(2, 30, 2, 4), draw(2, 40, 2, 4, seed=1), draw(2, 40, 2, 4, seed=2)
        out = method.attend(q, k, v, where, cache)
        for frame, (low, high) in enumerate([(0, 16), (0, 24), (8, 32), (16, 40), (24, 40)]):
            rows = slice(frame * 6, frame * 6 + 6)
            keys = torch.cat([k[:, low:high], own.keys.expand(2, -1, -1, -1)], 1)
            values = torch.cat([v[:, low:high], own.values.expand(2, -1, -1, -1)], 1)
            logits = torch.einsum("bqhd,bkhd->bhqk", q[:, rows], keys) / 2
            logits[..., high - low :] += own.beta[:, None, None]
            expected = torch.einsum("bhqk,bkhd->bqhd", logits.softmax(-1), values)
            torch.testing.assert_close(out[:, rows], expected, atol=1e-13, rtol=1e-12)


def test_partner_route_and_full_window_are_plain_attention():
    video, audio = ltx(5, 34, height=2, width=2)
    for role in ("audio_to_video", "video_to_audio"):
        where = site(role, video, audio)
        q, k, v = (draw(1, n, 2, 4, seed=seed) for seed, n in enumerate((where.layout.length, *[
            where.key_layout.length] * 2)))  # fmt: skip
        plain = torch.einsum("bqhd,bkhd->bhqk", q, k) / 2
        plain = torch.einsum("bhqk,bkhd->bqhd", plain.softmax(-1), v)
        wide = CrossModalContext(window=11, frames=11)
        torch.testing.assert_close(wide.attend(q, k, v, where, PatchCache()), plain, atol=1e-13, rtol=1e-12)
        masked = CrossModalContext(tokens=4, partition="none")
        cache, _, _ = installed(masked, where)
        assert not torch.allclose(masked.attend(q, k, v, where, cache), plain, atol=1e-6)
        route = ContextRoute.of(cache)
        route.set("partner")
        route.freeze(False, {})
        torch.testing.assert_close(masked.attend(q, k, v, where, cache), plain, atol=1e-13, rtol=1e-12)


def test_whole_layers_see_everything_and_later_ones_their_windows():
    video, audio = ltx(5, 34, height=2, width=2)
    for role in ("audio_to_video", "video_to_audio"):
        where = site(role, video, audio)
        q, k, v = (
            draw(1, n, 2, 4, seed=seed)
            for seed, n in enumerate((where.layout.length, where.key_layout.length, where.key_layout.length))
        )
        method, cache = CrossModalContext(whole_layers=2), PatchCache()
        out = {}
        for layer in range(4):
            here = dataclasses.replace(where, layer=layer, layers=4)
            out[layer] = method.attend(q, k, v, here, cache)
            assert method.density(here, cache).dense == (layer < 2)
        torch.testing.assert_close(
            out[0], CrossModalContext(partition="none").attend(q, k, v, where, PatchCache()), atol=1e-13, rtol=1e-12
        )
        assert torch.equal(out[1], out[0]) and torch.equal(out[2], out[3])
        assert torch.equal(out[2], CrossModalContext().attend(q, k, v, where, PatchCache()))
        assert not torch.allclose(out[2], out[1], atol=1e-3)
    assert "from layer 2 on" in method.details(video) and "from layer" not in CrossModalContext().details(video)


def test_blocks_on_cpus_are_small_where_the_sound_is():
    """A clip of toy-av: 7 frames of 8x8, 78 sound tokens. Blocks of 64 sound tokens would be nearly all of them."""
    spans = [(0, 0.125)] + [(0.5 * i - 0.375, 0.5 * i + 0.125) for i in range(1, 7)]
    sound = [(0, 0.01)] + [(0.04 * j - 0.03, 0.04 * j + 0.01) for j in range(1, 78)]
    video, audio = video_layout(spans, 8, 8), audio_layout(sound)
    for role in ("audio_to_video", "video_to_audio"):
        density = CrossModalContext(frames=3).density(site(role, video, audio), PatchCache())
        assert 0.39 < density.computed < 0.42 and density.computed < density.executed < 0.8


def test_the_share_of_one_context_token_follows_its_logit_bias():
    q, key = torch.ones(1, 1, 1, 1, **WIDE), torch.zeros(1, 1, 1, **WIDE)
    partner = torch.tensor([1.0, 0.0], **WIDE).logsumexp(0)
    for beta, mass in ((-5.0, 0.0018), (0.0, 0.2119), (2.0, 0.6653)):
        _, lse = context_part(q, key, key, torch.tensor([beta], **WIDE), None)
        # exact: 0.001810, 0.211942, 0.665241; the card rounds the last one up
        assert torch.sigmoid(lse - partner).item() == pytest.approx(mass, abs=1e-4)


def test_soft_form_adds_the_squared_distance():
    video, audio = ltx(4, 12)
    where, method = site("audio_to_video", video, audio), CrossModalContext(partition="soft", sigma=0.2)
    q, k, v = draw(1, 4, 2, 4), draw(1, 12, 2, 4, seed=1), draw(1, 12, 2, 4, seed=2)
    apart = torch.tensor(video.times, **WIDE)[:, None] - torch.tensor(audio.times, **WIDE)
    logits = torch.einsum("bqhd,bkhd->bhqk", q, k) / 2 - apart**2 / (2 * 0.2**2)
    expected = torch.einsum("bhqk,bkhd->bqhd", logits.softmax(-1), v)
    torch.testing.assert_close(method.attend(q, k, v, where, PatchCache()), expected, atol=1e-5, rtol=1e-5)


def gradcheck_problem():
    """5 queries, 7 keys, some hidden by the window, 3 context tokens, 2 heads of 4."""
    video = video_layout([(i / 5, (i + 1) / 5) for i in range(5)])
    audio = audio_layout([(j / 7, (j + 1) / 7) for j in range(7)])
    where, method = site("audio_to_video", video, audio), CrossModalContext(tokens=3, window=1.0)
    cache, _, _ = installed(method, where)
    own = PatchWeights.of(cache).at(method.name, "x")
    assert not visible(method.rule(where.role, video, audio)).all()

    def run(q, k, v, keys, values, beta):
        return torch.func.functional_call(
            _Run(method, where, cache, own), {"own.keys": keys, "own.values": values, "own.beta": beta}, (q, k, v)
        )

    shapes = [(1, 5, 2, 4), (1, 7, 2, 4), (1, 7, 2, 4), (3, 2, 4), (3, 2, 4), (2,)]
    return run, [draw(*shape, seed=seed).requires_grad_() for seed, shape in enumerate(shapes)]


class _Run(torch.nn.Module):
    def __init__(self, method, where, cache, own):
        super().__init__()
        self.method, self.where, self.cache, self.own = method, where, cache, own

    def forward(self, q, k, v):
        return self.method.attend(q, k, v, self.where, self.cache)


def test_gradients_of_partner_and_context_are_finite_differences():
    run, inputs = gradcheck_problem()
    assert torch.autograd.gradcheck(run, inputs)


def test_permuting_context_tokens_changes_nothing_but_the_order_of_their_gradients():
    run, inputs = gradcheck_problem()
    order = [2, 0, 1]
    swapped = [x.detach().clone()[order if index in (3, 4) else slice(None)] for index, x in enumerate(inputs)]
    swapped = [x.requires_grad_() for x in swapped]
    first, second = run(*inputs), run(*swapped)
    torch.testing.assert_close(first, second, atol=1e-15, rtol=1e-14)
    first.square().sum().backward()
    second.square().sum().backward()
    for index in (3, 4):
        torch.testing.assert_close(inputs[index].grad[order], swapped[index].grad, atol=1e-14, rtol=1e-13)


def test_context_tokens_in_the_source_space():
    video, audio = ltx(3, 10)
    where, method = site("audio_to_video", video, audio), CrossModalContext(tokens=2, space="source", beta=0.0)
    cache, module, _ = installed(method, where)
    own = PatchWeights.of(cache).at(method.name, "x")
    assert {name: tuple(p.shape) for name, p in own.named_parameters()} == {"tokens": (2, 6), "beta": (2,)}
    q = draw(1, 3, 2, 4)
    keys, values = own.pairs(q)
    assert torch.equal(values.flatten(1), module.to_v(own.tokens))
    assert torch.equal(keys.flatten(1), module.norm_k(module.to_k(own.tokens)))
    out = method.attend(q, draw(1, 10, 2, 4, seed=1), draw(1, 10, 2, 4, seed=2), where, cache)
    out.sum().backward()
    assert own.tokens.grad.any() and own.beta.grad.any()


def test_context_tokens_in_the_source_space_keep_their_values_under_quantised_projections():
    """Quantised layers store whole numbers; tokens in that kind would be nothing but zeros."""

    class Quantised(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = [inner]
            self.weight = torch.nn.Parameter(torch.zeros(3, dtype=torch.uint8), requires_grad=False)
            self.in_features, self.out_features = inner.in_features, inner.out_features

        def forward(self, x):
            return self.inner[0](x)

    video, audio = ltx(3, 10)
    where, method = site("audio_to_video", video, audio), CrossModalContext(tokens=2, space="source", beta=0.0)
    cache, module, _ = installed(method, where)
    own = PatchWeights.of(cache).at(method.name, "x").double()
    right = own.pairs(draw(1, 3, 2, 4))
    module.to_k, module.to_v = Quantised(module.to_k), Quantised(module.to_v)
    for found, expected in zip(own.pairs(draw(1, 3, 2, 4)), right, strict=True):
        assert torch.equal(found, expected) and found.any()


def test_density_and_size():
    video, audio = ltx()
    a2v, v2a = (site(role, video, audio) for role in ("audio_to_video", "video_to_audio"))
    cache = PatchCache()
    assert round(CrossModalContext().density(a2v, cache).computed, 5) == 0.18998
    assert CrossModalContext().density(v2a, cache).computed == pytest.approx(1 / 16)
    assert CrossModalContext(partition="none").density(a2v, cache).dense
    method = CrossModalContext(tokens=8)
    installed_cache, _, _ = installed(method, site("audio_to_video", video, audio, heads=4))
    assert PatchWeights.of(installed_cache).count() == 2 * 8 * 8 + 4  # m * 2 * (h d) + h


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"partition": "space"}, "soft"),
        ({"frames": 2}, "odd"),
        ({"window": 0.5}, "window"),
        ({"tokens": -1}, "tokens"),
        ({"sigma": 0.0}, "sigma"),
        ({"weights": "x.safetensors"}, "tokens"),
        ({"space": "rows"}, "source"),
    ],
)
def test_wrong_settings_are_refused_with_words(settings, words):
    with pytest.raises(UsageError, match=words):
        CrossModalContext(**settings)


def test_what_it_does_not_fit():
    video, audio = ltx(3, 10)
    plain = TokenLayout.of_grid(3, 1, 1)
    method = CrossModalContext()
    assert "this layer is self" in method.why_not(Site.of_layout(plain))
    assert "time of every token" in method.why_not(site("audio_to_video", plain, audio))
    instants = TokenLayout((3, 1, 1), (Segment("grid", 3),), times=(0.0, 0.1, 0.2))
    assert "start and end" in method.why_not(site("audio_to_video", instants, audio))
    assert CrossModalContext(partition="index").why_not(site("audio_to_video", plain, audio)) is None
    longer = video_layout([(0, 1), (1, 2)], extra=[(0, 1)])
    assert "appended" in CrossModalContext(partition="index").why_not(site("audio_to_video", longer, audio))
    assert "grid" in method.why_not(Site("x", 0, 1, "audio_to_video", 2, audio, audio))
    where, cache = site("audio_to_video", video, audio), PatchCache()
    ContextRoute.of(cache).set("t2v")
    ContextRoute.of(cache).freeze(False, {})
    q, k = draw(1, 3, 2, 4), draw(1, 10, 2, 4)
    with pytest.raises(UsageError, match="tokens=8"):
        method.attend(q, k, k, where, cache)
    with pytest.raises(UsageError, match="task"):
        ContextRoute.of(cache).set("t2x")
    with pytest.raises(UsageError, match="2 tasks"):
        route = ContextRoute()
        route.set(["t2v", "t2a"])
        route.freeze(False, {})
        route.rows(3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_stays_close(dtype):
    """Weights are float32, tokens are not: same result within the rounding of the inputs."""
    video, audio = ltx(4, 16)
    where, method = site("audio_to_video", video, audio), CrossModalContext(tokens=3, beta=0.0)
    cache, _, _ = installed(method, where)
    own = PatchWeights.of(cache).at(method.name, "x")
    with torch.no_grad():
        own.values.copy_(draw(3, 2, 4, seed=5))
    own.float()
    q, k, v = (draw(2, n, 2, 4, seed=n).to(dtype) for n in (4, 16, 16))
    out = method.attend(q, k, v, where, cache)
    expected = method.attend(q.float(), k.float(), v.float(), where, cache)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), expected, atol=2e-2, rtol=2e-2)
