"""BroadWay: the closed form is the Fourier form in output and gradients; known numbers; the guide is resized right."""

from __future__ import annotations

import pytest
import torch

import genkit
from genkit.attention.broadway import maps
from genkit.attention.cache import PatchCache
from genkit.attention.site import Place, Site
from genkit.errors import UnsupportedError, UsageError
from genkit.layout import TokenLayout

SMALL, LARGE = (2, 3), (4, 5)


def call(frames, places, heads=2, width=8, seed=0, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(places, frames, heads, width, generator=draw, dtype=dtype) for _ in range(3)]


def drawn(shape, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return (1.5 * torch.randn(shape, generator=draw, dtype=torch.float64)).softmax(-1)


def energy(a):
    return (a**2).sum(-1).mean()


@pytest.mark.parametrize("frames", range(8, 33))
@pytest.mark.parametrize("width", [1, 3, 7, 40])
def test_the_projection_is_real_symmetric_and_leaves_the_constant(frames, width):
    high = maps.high_pass(frames, min(width, maps.widest(frames)))
    torch.testing.assert_close(high, high.T)
    torch.testing.assert_close(high @ high, high, atol=1e-12, rtol=0)
    assert high.sum(0).abs().max() < 1e-12
    a = drawn((3, frames))
    low = a - a @ high
    torch.testing.assert_close((a**2).sum(-1), ((a @ high) ** 2).sum(-1) + (low**2).sum(-1))  # Parseval


def test_full_at_16_frames_is_the_published_7_and_has_the_closed_form():
    assert maps.widest(16) == 7
    torch.testing.assert_close(maps.high_pass(16, 7), torch.eye(16).double() - 1 / 16, atol=1e-14, rtol=0)
    a = drawn((5, 16, 16))
    spectrum = torch.fft.fft(a, dim=-1)
    spectrum[..., 1:] *= 1.5
    found = torch.fft.ifft(spectrum, dim=-1)
    assert found.imag.abs().max() < 1e-15
    torch.testing.assert_close(found.real, 1.5 * a - 0.5 / 16, atol=1e-15, rtol=0)


def test_a_row_by_hand():
    row = torch.tensor([0.7, 0.2, 0.1, 0.0], dtype=torch.float64)
    new = row + row @ maps.high_pass(4, 1)
    torch.testing.assert_close(new, torch.tensor([1.15, 0.15, -0.05, -0.25], dtype=torch.float64))


@pytest.mark.parametrize("alpha", [0.6, 0.1])
def test_with_the_gain_beta_c_guidance_takes_no_energy_away(alpha):
    a, guide = drawn((5, 1, 16, 16), 1), drawn((5, 1, 16, 16), 2)
    m = a + alpha * (guide - a)
    high = maps.high_pass(16, 7)
    rapid = m @ high
    gain = maps._gain(torch.stack([(x**2).sum() for x in (a, rapid, m - rapid)]), 1.0)
    torch.testing.assert_close(energy(m + (gain - 1) * rapid), energy(a), atol=1e-14, rtol=0)
    assert energy(m) < energy(a) and gain > 1
    mixed = (1 - alpha) ** 2 * energy(a) + 2 * alpha * (1 - alpha) * (a * guide).sum(-1).mean()
    mixed = mixed + alpha**2 * energy(guide)
    torch.testing.assert_close(gain, ((energy(a) - 1 / 16) / (mixed - 1 / 16)).sqrt())


def test_energies_of_identity_and_uniform():
    assert energy(torch.eye(16)) == 1 and energy(torch.full((16, 16), 1 / 16)) == 0.0625
    same, value = torch.zeros(3, 16, 2, 8).double(), torch.randn(3, 16, 2, 8).double()
    found = maps.attend(same, same, value, 1.0, maps.high_pass(16, 7), 0.0, 1.5)
    torch.testing.assert_close(found.out, value.mean(1, keepdim=True).expand_as(value))  # nothing to amplify


@pytest.mark.parametrize("frames", [2, 5, 8, 15, 16])
@pytest.mark.parametrize("width", [1, 99])
@pytest.mark.parametrize("alpha,beta", [(0.6, 1.5), (0.1, 10.0), (0.9, 1.0)])
@pytest.mark.parametrize("guided", [True, False])
def test_the_fast_form_is_the_papers_in_output_and_every_gradient(frames, width, alpha, beta, guided, monkeypatch):
    monkeypatch.setattr(maps, "_ENTRIES", 7 * 2 * frames * frames)  # runs of 7 places, which no row ends at
    rows, heads = 2, 2
    inputs = [x.requires_grad_() for x in call(frames, rows * 20)]
    logits = drawn((rows * 6, heads, frames, frames), 5).requires_grad_()
    guide = (9 * logits).softmax(-1) if guided else None  # rows sum to 1 whatever changes
    width = min(width, maps.widest(frames))
    fast = maps.Guide(guide, maps.Finer.of(SMALL, LARGE)) if guided else None
    found = maps.attend(*inputs, 0.3, maps.high_pass(frames, width), alpha, beta, fast, energies_from=20, keep=True)
    right = maps.reference(*inputs, 0.3, width, alpha, beta, guide, (SMALL, LARGE), energies_from=20)
    torch.testing.assert_close(found.out, right.out, atol=1e-12, rtol=0)
    torch.testing.assert_close(found.gain, right.gain, atol=1e-12, rtol=0)
    weight = torch.sin(torch.arange(found.out.numel())).view(found.out.shape)
    wanted = (*inputs, logits) if guided else inputs
    pairs = [torch.autograd.grad((x.out * weight).sum(), wanted, retain_graph=True) for x in (found, right)]
    for one, other in zip(*pairs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-8)


def test_a_smaller_picture_is_resized_as_interpolate_does():
    for small, large in [((1, 1), (2, 2)), ((2, 3), (4, 6)), ((3, 4), (5, 8)), ((5, 5), (3, 2))]:
        finer, x = maps.Finer.of(small, large), torch.randn(1, 1, *small, dtype=torch.float64)
        right = torch.nn.functional.interpolate(x, size=large, mode="bilinear", align_corners=False)
        found = (x.flatten()[finer.index] * finer.weight).sum(-1)
        torch.testing.assert_close(found, right.flatten(), atol=1e-12, rtol=0)


def site(name, guide, places, frames=8, **more):
    layout = TokenLayout.of_grid(frames, 1, 1)
    return Site(name, 0, 1, "temporal", 2, layout, layout, places=places, guide=guide, **more)


def placed(cache, method, *pairs):
    for name, guide in pairs:
        method.install(Place(name, "temporal", 0, 1, 2, None, guide=guide), cache)
    method.ready(cache)


def test_a_layer_follows_the_map_of_its_guide_in_the_same_call_only():
    method, cache = genkit.Broadway(), PatchCache()
    placed(cache, method, ("up.1", "up.1"), ("up.2", "up.1"), ("down.0", ""))
    coarse, fine = call(8, 12, dtype=torch.float32), call(8, 40, seed=1, dtype=torch.float32)
    method.attend(*coarse, site("up.1", "up.1", SMALL), cache)
    out = method.attend(*fine, site("up.2", "up.1", LARGE, both=True), cache)
    guide = torch.einsum("pqhd,pkhd->phqk", coarse[0].double() * 8**-0.5, coarse[1].double()).softmax(-1)
    inputs = [x.double() for x in fine]
    right = maps.reference(*inputs, 8**-0.5, 9, 0.6, 1.5, guide, (SMALL, LARGE), energies_from=20)
    torch.testing.assert_close(out.double(), right.out, atol=2e-6, rtol=0)
    assert not method.remarks(cache) and method.attend(*fine, site("down.0", "", LARGE), cache) is None
    method.observe({}, cache)  # the next call: the guide has not run
    out = method.attend(*fine, site("up.2", "up.1", LARGE), cache)
    right = maps.reference(*inputs, 8**-0.5, 9, 0.6, 1.5)
    torch.testing.assert_close(out.double(), right.out, atol=2e-6, rtol=0)
    assert "got no map" in method.remarks(cache)[0]


def test_alpha_0_and_beta_1_is_plain_attention():
    method, cache = genkit.Broadway(alpha=0, beta=1), PatchCache()
    q, k, v = call(8, 6, dtype=torch.float32)
    out = method.attend(q, k, v, site("x", "", SMALL), cache)
    plain = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    torch.testing.assert_close(out, plain, atol=1e-6, rtol=0)


def test_what_is_refused():
    with pytest.raises(UsageError, match="up.1.*leaves out"):
        placed(PatchCache(), genkit.Broadway(), ("up.2", "up.1"))
    placed(PatchCache(), genkit.Broadway(alpha=0), ("up.2", "up.1"))
    with pytest.raises(UnsupportedError, match="blocks=all"):
        placed(PatchCache(), genkit.Broadway(blocks="decoder"), ("x", ""))
    for bad in ({"alpha": 1.5}, {"alpha": True}, {"beta": 0.5}, {"beta": float("nan")}, {"tau": -1}, {"blocks": "up"}):
        with pytest.raises(UsageError, match=next(iter(bad))):
            genkit.Broadway(**bad)
    method = genkit.Broadway()
    masked = site("x", "", SMALL, key_mask=torch.ones(6, 8, dtype=torch.bool))
    assert "hides some" in method.why_not(masked)
    assert method.recommended(50, 10) == {"steps": ":10"} and method.recommended(3, 10) == {"steps": ":1"}
