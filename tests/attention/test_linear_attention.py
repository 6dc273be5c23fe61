"""Linear attention's forms against their weights written out pair by pair, worked numbers, limits and refusals."""

from __future__ import annotations

import math

import pytest
import torch
from attention_helpers import tokens
from torch.nn import functional as F

import genkit
from genkit.attention.cache import PatchCache
from genkit.attention.linear_attention import LinearAttention
from genkit.attention.linear_forms import FORMS, LinearWeights, slopes
from genkit.attention.site import Place, Site
from genkit.attention.weights import PatchWeights
from genkit.errors import ArtifactError, UnsupportedError, UsageError
from genkit.layout import Segment, TokenLayout

VIDEO = TokenLayout.of_grid(4, 3, 5)
JOINT = TokenLayout((3, 2, 4), (Segment("text", 5), Segment("grid", 24), Segment("reference", 3)))
WEIGHTED = ("lightnet", "lightning", "rala")
NAMES = [name for name in FORMS if name != "state"]
CAUSAL = [name for name in NAMES if FORMS[name].causal]


class Module(torch.nn.Module):
    def __init__(self, width, dtype=torch.float64):
        super().__init__()
        self.to_q = torch.nn.Linear(width, width, dtype=dtype)


def installed(method, heads=2, width=8, scale=0.0):
    """A cache with the weights of one site, moved by noise."""
    cache = PatchCache()
    method.install(Place("site", "self", 0, 1, heads, Module(heads * width)), cache)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in PatchWeights.of(cache).parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return cache


def run(method, inputs, layout, cache=None, **more):
    cache = installed(method, inputs[0].shape[2], inputs[0].shape[3]) if cache is None else cache
    return method.attend(*inputs, Site.of_layout(layout, heads=inputs[0].shape[2], **more), cache)


def pair_weights(form, q, k, layout, causal, visible, own):
    """(B, H, N, N): how much of every value a query takes, straight from the formulas. q, k (B, N, H, D)."""
    n, start, stop = layout.length, *layout.grid_span
    frame = torch.full((n,), -1)
    frame[start:stop] = torch.arange(stop - start) // layout.frame_tokens
    seen = (frame[None] <= frame[:, None]) | (frame[:, None] < 0) if causal else torch.ones(n, n, dtype=torch.bool)
    seen = seen[None] & (torch.ones(len(q), 1, n, dtype=torch.bool) if visible is None else visible[:, None])
    seen = seen[:, None].double()
    q, k = (x.transpose(1, 2) for x in (q, k))
    if form == "lightnet":
        logits = k[:, :, None].masked_fill(seen[..., None] == 0, -torch.inf)
        return torch.einsum("bhid,bhijd->bhij", F.silu(q), logits.softmax(3))
    if form == "lightning":
        apart = (frame[None] - frame[:, None]).abs().double()
        apart[(frame < 0)[:, None] | (frame < 0)[None]] = 0
        rate = -own.rate.exp() if own is not None else slopes(q.shape[1]).double()
        return torch.einsum("bhid,bhjd->bhij", F.silu(q), F.silu(k)) * seen * (apart * rate[:, None, None]).exp()
    if form == "flow":
        e, q = 1e-6, q.sigmoid()
        k = k.sigmoid() * seen[:, :, :1].transpose(2, 3)
        m = seen[:, :, 0].sum(-1)[:, :, None]
        here = seen[:, :, 0].bool()
        incoming = 1 / ((q + e) * (k.sum(2, keepdim=True) + e)).sum(-1)
        outgoing = torch.where(here, 1 / ((k + e) * (q.sum(2, keepdim=True) + e)).sum(-1), 0)
        kept_in = ((q + e) * ((k * outgoing[..., None]).sum(2, keepdim=True) + e)).sum(-1)
        kept_out = ((k + e) * ((q * incoming[..., None]).sum(2, keepdim=True) + e)).sum(-1).clamp(-1, 1)
        compete = m * kept_out.masked_fill(~here, -torch.inf).softmax(-1)
        allocate = (kept_in * q.shape[2] / m).sigmoid()
        return (allocate * incoming)[..., None] * torch.einsum("bhid,bhjd->bhij", q, k) * compete[:, :, None]
    phi = {"softmax": lambda x: x.softmax(-1), "relu": torch.relu}.get(form, lambda x: F.elu(x) + 1)
    q, k = phi(q), phi(k)
    weights = torch.einsum("bhid,bhjd->bhij", q, k) * seen
    if form == "rala":
        score = torch.einsum("bhd,bhjd->bhj", q.mean(2), k) * q.shape[-1] ** -0.5
        here = seen[:, :, 0].bool()
        alpha = seen[:, :, 0].sum(-1, keepdim=True) * score.masked_fill(~here, -torch.inf).softmax(-1)
        weights = weights * alpha[:, :, None]
    return weights / (weights.sum(-1, keepdim=True) + FORMS[form].eps)


def by_hand(form, q, k, v, layout, causal=False, visible=None, own=None):
    repeat = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(repeat, 2) for x in (k, v))
    out = torch.einsum("bhij,bjhe->bihe", pair_weights(form, q, k, layout, causal, visible, own), v)
    if own is not None and hasattr(own, "norm"):
        out = F.rms_norm(out, out.shape[-1:], eps=1e-6) * own.norm
    if own is not None and hasattr(own, "taps"):
        start, stop = layout.grid_span
        t, h, w = layout.grid
        for frame in range(t):
            span = slice(start + frame * h * w, start + (frame + 1) * h * w)
            picture = v[:, span].flatten(2).transpose(1, 2).unflatten(2, (h, w))
            local = F.conv2d(picture, own.taps[:, None], padding=2, groups=picture.shape[1])
            local = local.flatten(2).transpose(1, 2).unflatten(2, v.shape[2:])
            out = torch.cat([out[:, : span.start], out[:, span] + local, out[:, span.stop :]], 1)
    return out


@pytest.mark.parametrize("layout", [VIDEO, JOINT], ids=["video", "joint"])
@pytest.mark.parametrize(("form", "causal"), [(f, False) for f in NAMES] + [(f, True) for f in CAUSAL])
def test_value_and_gradients_equal_the_weights_of_all_pairs(form, causal, layout):
    method = LinearAttention(form=form, causal=causal)
    cache = installed(method, 4, scale=0.3)
    own = PatchWeights.of(cache).at("linear_attention", "site") if form in WEIGHTED else None
    inputs = [x.requires_grad_() for x in tokens(layout, heads=4, key_heads=2, dtype=torch.float64)]
    visible = None
    if layout is JOINT:
        visible = torch.ones(2, layout.length, dtype=torch.bool)
        visible[1, 3:5] = False
    out = run(method, inputs, layout, cache, key_mask=visible)
    right = by_hand(form, *inputs, layout, causal, visible, own)
    torch.testing.assert_close(out, right, rtol=1e-7, atol=1e-9)
    wanted = [*inputs, *(() if own is None else own.parameters())]
    slope = torch.sin(torch.arange(out.numel()).double()).view(out.shape)
    found = (torch.autograd.grad((x * slope).sum(), wanted) for x in (out, right))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-7, atol=1e-8)


def wave(offset):
    return torch.sin(0.1 * torch.arange(32, dtype=torch.float64) + offset).reshape(1, 8, 1, 4)


@pytest.mark.parametrize(
    ("form", "causal", "total", "first"),
    [
        ("elu", False, -0.150577276193, (0.104726, 0.033577, -0.037908, -0.109014)),
        ("relu", False, 8.794746267883, (0.435530, 0.357165, 0.275232, 0.190549)),
        ("softmax", False, -7.940912850540, (-0.157101, -0.217014, -0.274758, -0.329757)),
        ("rala", False, 12.538248678306, (0.512311, 0.435401, 0.354141, 0.269342)),
        ("flow", False, -1.113295443267, (0.043340, -0.007401, -0.058068, -0.108154)),
        ("elu", True, 5.655689916636, (0.482259, 0.403281, 0.320274, 0.234067)),
    ],
)
def test_worked_numbers(form, causal, total, first):
    method = LinearAttention(form=form, causal=causal)
    out = run(method, [wave(x) for x in range(3)], TokenLayout.of_grid(2, 2, 2), installed(method, 1, 4))
    assert out.sum().item() == pytest.approx(total, abs=2e-5)
    torch.testing.assert_close(out[0, 0, 0], torch.tensor(first).double(), rtol=0, atol=3e-6)


def test_lightnet_before_its_norm_is_the_worked_number():
    from genkit.attention.linear_forms import Inputs, over_all

    site = Site.of_layout(TokenLayout.of_grid(2, 2, 2))
    out = over_all(Inputs("lightnet", *(wave(x) for x in range(3)), None), site, None)
    assert out.sum().item() == pytest.approx(3.380862380923, abs=1e-9)


def test_one_frame_is_no_different_when_causal():
    layout = TokenLayout.of_grid(1, 6, 5)
    inputs = tokens(layout, dtype=torch.float64)
    for form in CAUSAL:
        one, two = (run(LinearAttention(form=form, causal=causal), inputs, layout) for causal in (False, True))
        torch.testing.assert_close(one, two)


def test_rows_of_a_batch_do_not_touch_each_other():
    inputs = tokens(VIDEO, dtype=torch.float64)
    for form in NAMES:
        whole = run(LinearAttention(form=form), inputs, VIDEO)
        torch.testing.assert_close(run(LinearAttention(form=form), [x[1:] for x in inputs], VIDEO), whole[1:])


def test_low_precision_keeps_its_dtype_and_does_not_overflow():
    q, k, v = (x.half() for x in tokens(VIDEO))
    for form in NAMES:
        method = LinearAttention(form=form)
        out = run(method, [40 * q, 40 * k, v], VIDEO)
        assert out.dtype == torch.float16 and out.isfinite().all()


def test_weights_are_found_saved_and_loaded(tmp_path):
    method = LinearAttention(form="rala")
    cache = installed(method, scale=0.5)
    file = PatchWeights.of(cache).save(tmp_path / "w.safetensors")
    again = LinearAttention(form="rala", weights=str(file))
    other = installed(again)
    again.ready(other)
    inputs = tokens(VIDEO, dtype=torch.float64)
    assert torch.equal(run(again, inputs, VIDEO, other), run(method, inputs, VIDEO, cache))
    wrong = LinearAttention(form="lightnet", weights=str(file))
    with pytest.raises(ArtifactError, match="linear_attention.form was rala, here it is lightnet"):
        wrong.ready(installed(wrong))


def test_refusals_say_what_is_allowed():
    with pytest.raises(UsageError, match="allowed: .*softmax.*flow"):
        LinearAttention(form="state")
    with pytest.raises(UsageError, match="causal=true: got 'flow'.*lightning"):
        LinearAttention(form="flow", causal=True)
    with pytest.raises(UsageError, match="form=elu has no weights of its own.*rala"):
        LinearAttention(weights="x.safetensors")
    with pytest.raises(UsageError, match="causal"):
        LinearAttention(causal=1)
    bare = Place("site", "self", 0, 1, 2, torch.nn.Identity())
    with pytest.raises(UnsupportedError, match="to_q.*Identity lacks"):
        LinearAttention(form="rala").install(bare, PatchCache())


def test_its_cost_and_its_warning():
    method = LinearAttention()
    cache = PatchCache()
    site = Site.of_layout(VIDEO, heads=2)
    assert method.density(site, cache) is None
    method.attend(*tokens(VIDEO), site, cache)
    assert method.density(site, cache).executed == pytest.approx(8 / VIDEO.length)
    assert "not trained through it" in method.remarks(cache)[0] and "sparse_linear" in method.remarks(cache)[0]


def test_starting_decays_go_from_a_tenth_per_frame_to_nearly_none():
    own = LinearWeights(Place("site", "self", 0, 1, 4, Module(16)), "lightning")
    assert own.fading()[0].item() == pytest.approx(-0.1) and -0.002 < own.fading()[-1] < 0
    torch.testing.assert_close(own.fading().detach(), slopes(4).double(), rtol=1e-6, atol=1e-9)


def test_the_picture_shows_weights_of_each_form():
    layout = TokenLayout.of_grid(3, 4, 4)
    q, k = (torch.randn(1, 48, 2, 16, generator=torch.Generator().manual_seed(i)) for i in range(2))
    for form in NAMES:
        seen = LinearAttention(form=form).seen(q, k, Site.of_layout(layout, heads=2), PatchCache())
        assert seen.shape == (48, 48) and seen.min() >= 0 and seen.max() == 1
    causal = LinearAttention(causal=True).seen(q, k, Site.of_layout(layout, heads=2), PatchCache())
    assert not causal[:16, 16:].any() and causal[16:32, :32].all()


def test_it_is_public():
    assert genkit.LinearAttention is LinearAttention
    assert math.isclose(FORMS["softmax"].eps, 1e-5)
