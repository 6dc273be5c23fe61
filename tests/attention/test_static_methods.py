"""What every method with a static mask must do: equal masked attention, train, compile, hide keys, refuse."""

from __future__ import annotations

import pytest
import torch
from attention_helpers import Layer, attention_over, tokens

from genkit.attention.cache import PatchCache
from genkit.attention.neighborhood import Neighborhood
from genkit.attention.radial import Radial
from genkit.attention.site import Site
from genkit.attention.static import masked_plan
from genkit.errors import UnsupportedError, UsageError
from genkit.layout import Segment, TokenLayout

METHODS = {
    "box": Neighborhood(),
    "small": Neighborhood(size=3),
    "strided": Neighborhood(size=(3, 4), stride=(1, 2)),
    "dilated": Neighborhood(size=3, dilation=(1, 2, 2)),
    "causal": Neighborhood(size=("all", 3, 3), causal=(True, False, False)),
    "disc": Neighborhood(shape="disc", radius=2.5),
    "clipped": Neighborhood(size=5, border="clip"),
    "radial": Radial(block_size=8, near="decay", sink=False, decay_factor=0.1),
    "radial sink": Radial(block_size=16),
    "radial any": Radial(block_size=8, cover="any", near="half"),
}
LAYOUTS = {
    "video": TokenLayout.of_grid(4, 6, 7),
    "text last": TokenLayout.of_grid(3, 8, 8, text=5),
    "text first": TokenLayout.of_grid(5, 6, 8, text=7, text_first=True),
    "extra": TokenLayout((3, 6, 7), (Segment("text", 4), Segment("grid", 126), Segment("reference", 9))),
    "image": TokenLayout.of_grid(1, 9, 11),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())


def site_of(layout, **more):
    role = "joint" if len(layout.segments) > 1 else "self"
    return Site.of_layout(layout, role=role, heads=2, **more)


@every_method
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_equals_masked_attention(method, layout):
    q, k, v = tokens(layout)
    out = method.attend(q, k, v, site_of(layout), PatchCache())
    assert out.shape == q.shape and out.dtype == q.dtype
    torch.testing.assert_close(out.double(), attention_over(q, k, v, method.mask(layout)), atol=3e-6, rtol=1e-5)


@every_method
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_mask_rows_and_densities_agree_with_the_mask(method, layout):
    mask = method.mask(layout)
    rows = torch.randperm(layout.length, generator=torch.Generator().manual_seed(1))[:17]
    assert torch.equal(method.mask_rows(layout, rows), mask[rows])
    density = method.density(site_of(layout), PatchCache())
    assert density.computed == pytest.approx(mask.double().mean().item(), abs=1e-12)
    assert density.executed >= density.computed - 1e-12
    assert density.dense == bool(mask.all())


@every_method
def test_other_tokens_see_and_are_seen_by_everything(method):
    layout = LAYOUTS["extra"]
    mask = method.mask(layout)
    start, stop = layout.grid_span
    outside = [i for i in range(layout.length) if not start <= i < stop]
    assert mask[outside].all() and mask[:, outside].all()


@every_method
@pytest.mark.parametrize("name", ["text last", "text first"])
def test_hidden_text_keys_are_hidden_exactly(method, name):
    layout = LAYOUTS[name]
    q, k, v = tokens(layout)
    visible = torch.ones(2, layout.length, dtype=torch.bool)
    start, stop = layout.text_span
    visible[0, stop - 2 : stop] = False
    visible[1, start:stop] = False
    cache = PatchCache()
    out = method.attend(q, k, v, site_of(layout, key_mask=visible), cache)
    mask = method.mask(layout) & visible[:, None, None, :]
    torch.testing.assert_close(out.double(), attention_over(q, k, v, mask), atol=3e-6, rtol=1e-5)
    k2, v2 = k.clone(), v.clone()
    k2[~visible], v2[~visible] = 1e3, -1e3
    again = method.attend(q, k2, v2, site_of(layout, key_mask=visible), cache)
    assert torch.equal(out, again)


def test_plans_of_key_masks_are_kept_by_content():
    layout, method, cache = LAYOUTS["text last"], METHODS["small"], PatchCache()
    visible = torch.ones(1, layout.length, dtype=torch.bool)
    visible[0, -2:] = False
    first = masked_plan(method, layout, visible, cache)
    assert masked_plan(method, layout, visible.clone(), cache) is first
    visible[0, -3] = False
    assert masked_plan(method, layout, visible, cache) is not first


@every_method
def test_gradients_equal_those_of_masked_attention(method):
    layout = LAYOUTS["text last"]
    found, expected = [], []
    weight = torch.randn(2, layout.length, 2, 8, generator=torch.Generator().manual_seed(5))
    for target, run in (
        (found, lambda q, k, v: method.attend(q, k, v, site_of(layout), PatchCache())),
        (expected, lambda q, k, v: attention_over(q, k, v, method.mask(layout)).float()),
    ):
        inputs = [x.requires_grad_() for x in tokens(layout)]
        target += torch.autograd.grad((run(*inputs) * weight).sum(), inputs)
    for grad, right in zip(found, expected, strict=True):
        torch.testing.assert_close(grad, right, atol=2e-5, rtol=1e-4)


def test_gradients_of_a_strided_window_are_finite_differences():
    layout = TokenLayout.of_grid(1, 6, 7)
    method = Neighborhood(size=(3, 4), stride=(1, 2))
    inputs = [x.double().requires_grad_() for x in tokens(layout, heads=1, width=2, batch=1)]
    cache = PatchCache("reference")
    assert torch.autograd.gradcheck(lambda *x: method.attend(*x, site_of(layout), cache), inputs, nondet_tol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["box", "radial"])
def test_low_precision_errs_no_more_than_low_precision_attention(name, dtype):
    layout, method = LAYOUTS["text first"], METHODS[name]
    q, k, v = tokens(layout, dtype=dtype)
    right = attention_over(q, k, v, method.mask(layout))
    out = method.attend(q, k, v, site_of(layout), PatchCache())
    assert out.dtype == dtype
    eager = [x.transpose(1, 2) for x in (q, k, v)]
    scores = (eager[0] @ eager[1].transpose(-1, -2) * 8**-0.5).masked_fill(~method.mask(layout), float("-inf"))
    low = (scores.softmax(-1) @ eager[2]).transpose(1, 2)
    assert (out.double() - right).abs().max() <= 2 * (low.double() - right).abs().max()


@pytest.mark.parametrize("name", ["box", "radial"])
def test_grouped_queries_and_the_models_scale(name):
    layout, method = LAYOUTS["video"], METHODS[name]
    q, k, v = tokens(layout, heads=4, key_heads=2)
    out = method.attend(q, k, v, site_of(layout, scale=0.7), PatchCache())
    torch.testing.assert_close(out.double(), attention_over(q, k, v, method.mask(layout), 0.7), atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["box", "radial"])
def test_gradient_checkpointing_gives_the_same_gradients(name):
    layer = Layer(METHODS[name], LAYOUTS["video"])
    x = torch.randn(2, layer.layout.length, 2, 8)
    plain = torch.autograd.grad(layer(x).square().sum(), layer.parameters())
    kept = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
    again = torch.autograd.grad(kept.square().sum(), layer.parameters())
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


@every_method
def test_refusals_name_the_reason(method):
    text = TokenLayout.sequence(12)
    video = LAYOUTS["video"]
    cross = Site("block.attn2", 0, 1, "cross", 2, video, text)
    assert "cross attention" in method.why_not(cross)
    audio = Site("block.audio", 0, 1, "self", 2, text, text)
    assert "needs a token grid" in method.why_not(audio)
    q, k, v = tokens(video)
    with pytest.raises(UnsupportedError, match="block.attn2"):
        method.attend(q, k, v, cross, PatchCache())
    with pytest.raises(UsageError, match="do not fit the layout"):
        method.attend(q[:, 1:], k[:, 1:], v[:, 1:], site_of(video), PatchCache())


def test_plans_are_built_once_per_layout_and_method():
    cache, layout = PatchCache(), LAYOUTS["video"]
    q, k, v = tokens(layout)
    METHODS["box"].attend(q, k, v, site_of(layout), cache)
    size = len(cache)
    METHODS["box"].attend(q, k, v, site_of(layout), cache)
    Neighborhood().attend(q, k, v, site_of(layout), cache)
    assert len(cache) == size
    Neighborhood(size=2).attend(q, k, v, site_of(layout), cache)
    assert len(cache) == size + 1


def test_a_window_that_hides_nothing_is_dense_attention():
    layout = LAYOUTS["text last"]
    method = Neighborhood(size="all")
    q, k, v = tokens(layout, heads=4, key_heads=2)
    visible = torch.ones(2, layout.length, dtype=torch.bool)
    visible[1, -1] = False
    out = method.attend(q, k, v, site_of(layout, key_mask=visible), PatchCache())
    torch.testing.assert_close(out.double(), attention_over(q, k, v, visible[:, None, None, :]), atol=3e-6, rtol=1e-5)
    density = method.density(site_of(layout), PatchCache())
    assert density.dense and density.computed == density.executed == 1.0
