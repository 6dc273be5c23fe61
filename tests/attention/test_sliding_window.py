"""Sliding window: windows, densities, constants, the dual path on a tiny Wan."""

from __future__ import annotations

import pytest
import torch
from attention_helpers import attention_over, tokens

import genkit
from genkit.attention.cache import PatchCache
from genkit.attention.site import Site
from genkit.attention.sliding_window import BOTH, OFF, REUSE, DualPath, SlidingWindow
from genkit.errors import GenkitError, UsageError
from genkit.layout import TokenLayout

GRID = TokenLayout.of_grid(3, 6, 8)


def test_windows_of_a_small_grid_shift_inward():
    mask = SlidingWindow(base=(2, 4)).mask(TokenLayout.of_grid(1, 6, 8))
    assert int(mask.sum()) == 720
    assert mask[0].nonzero().flatten().tolist() == [*range(5), *range(8, 13), *range(16, 21)]
    assert mask[47].nonzero().flatten().tolist() == [*range(27, 32), *range(35, 40), *range(43, 48)]
    line = SlidingWindow(base=(1, 4)).mask(TokenLayout.of_grid(1, 1, 8))
    starts = [row.nonzero().flatten().tolist()[0] for row in line]
    assert starts == [0, 0, 0, 1, 2, 3, 3, 3] and set(line.sum(1).tolist()) == {5}


def test_published_training_sizes_give_odd_windows():
    assert [w.size for w in SlidingWindow().on((21, 68, 120)).windows] == [21, 31, 53]
    assert [w.size for w in SlidingWindow(base=(45, 80)).on((21, 68, 120)).windows] == [21, 45, 81]
    layout = TokenLayout.of_grid(1, 68, 120)
    rows = torch.tensor([0, 119, 68 * 120 - 1, 34 * 120 + 60])
    assert SlidingWindow().mask_rows(layout, rows).sum(1).tolist() == [1643] * 4
    clipped = SlidingWindow(inward=False)
    assert clipped.mask_rows(layout, rows).sum(1).tolist() == [432, 432, 432, 1643]
    assert clipped.on(layout.grid).pairs(layout) / layout.length**2 == pytest.approx(0.15873, abs=5e-6)


@pytest.mark.parametrize(
    ("base", "h", "w", "density"),
    [
        ((30, 52), 68, 120, 0.20135),
        ((45, 80), 68, 120, 0.44669),
        ((30, 52), 90, 160, 0.11410),
        ((45, 80), 90, 160, 0.25312),
        ((45, 80), 136, 240, 0.11167),
    ],
)
def test_published_sizes_have_the_published_densities(base, h, w, density):
    layout = TokenLayout.of_grid(21, h, w)
    wanted = SlidingWindow(base=base).on(layout.grid).pairs(layout)
    assert wanted / layout.length**2 == pytest.approx(density, abs=6e-6)


def test_the_scale_factor_is_the_published_one():
    assert SlidingWindow().score_factor(GRID) ** 2 == pytest.approx(1.0942744, abs=1e-7)
    assert SlidingWindow().score_factor(GRID) == pytest.approx(1.0460758, abs=1e-7)
    assert SlidingWindow().score_factor(GRID) * 128**-0.5 == pytest.approx(0.0924609, abs=1e-7)
    assert SlidingWindow(scale_factor=1.0).score_factor(GRID) == 1.0
    assert SlidingWindow(base=(1, 2)).score_factor(GRID) ** 2 == pytest.approx(2)  # log 4 / log 2


@pytest.mark.parametrize("layout", [GRID, TokenLayout.of_grid(2, 5, 6, text=4)], ids=["self", "joint"])
def test_attention_uses_the_windows_and_the_scale(layout):
    q, k, v = tokens(layout)
    method = SlidingWindow(base=(2, 4))
    out = method.attend(q, k, v, Site.of_layout(layout, heads=2, scale=0.3), PatchCache())
    right = attention_over(q, k, v, method.mask(layout), 0.3 * method.score_factor(GRID))
    torch.testing.assert_close(out.double(), right, atol=3e-6, rtol=1e-5)


def test_the_steps_of_the_two_paths():
    path = DualPath()
    method = SlidingWindow(dual=True, cache_steps=3)
    modes = []
    for step in range(7):
        modes.append(path.plan_step(method, step, "cond"))
        path.stored["layer"] = torch.zeros(1)
        assert path.plan_step(method, step, "uncond") == OFF
    assert modes == [BOTH, REUSE, REUSE, BOTH, REUSE, REUSE, BOTH]
    assert [path.plan_step(SlidingWindow(dual=True, cache_steps=1), step, None) for step in range(3)] == [BOTH] * 3
    assert path.plan_step(SlidingWindow(dual=True, override="both"), 1, "uncond") == BOTH
    assert path.plan_step(SlidingWindow(), 0, "cond") == OFF
    path.clear()
    assert path.plan_step(method, 1, "cond") == BOTH


def test_cross_attention_is_refused_or_lent():
    text = TokenLayout.sequence(7)
    site = Site("b.attn2", 0, 1, "cross", 2, GRID, text)
    assert "dual=true" in SlidingWindow().why_not(site)
    dual = SlidingWindow(dual=True)
    assert dual.why_not(site) is None
    assert "not text" in dual.why_not(Site("b.attn2", 0, 1, "cross", 2, GRID, TokenLayout.sequence(7, "image")))
    joint = TokenLayout.of_grid(2, 4, 4, text=3)
    assert "dual=false" in dual.why_not(Site.of_layout(joint))
    q, _, _ = tokens(GRID, batch=4)
    k, v, _ = tokens(text, batch=4, seed=2)
    cache = PatchCache()
    assert dual.attend(q, k, v, site, cache) is None
    path = DualPath.of(cache)
    path.mode = REUSE
    with pytest.raises(GenkitError, match="first step"):
        dual.attend(q[:2], k[:2], v[:2], site, cache)
    path.mode = BOTH
    out = dual.attend(q, k, v, site, cache)
    right = attention_over(q, k, v, torch.ones(GRID.length, 7, dtype=torch.bool)).float()
    torch.testing.assert_close(out[0::2], right[1::2], atol=1e-6, rtol=1e-5)
    assert torch.equal(out[0::2], out[1::2])
    with pytest.raises(UsageError, match="pairs"):
        dual.attend(q[:3], k[:3], v[:3], site, cache)
    path.mode = REUSE
    assert torch.equal(dual.attend(q[:2], k[:2], v[:2], site, cache), out[0::2])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"base": (30,)}, "height, width"),
        ({"base": (0, 4)}, "base"),
        ({"inward": 1}, "inward"),
        ({"scale_factor": 0.0}, "scale_factor"),
        ({"cache_steps": 0}, "cache_steps"),
        ({"override": "uncond"}, "cond, both"),
    ],
)
def test_wrong_settings_are_refused_with_words(settings, words):
    with pytest.raises(UsageError, match=words):
        SlidingWindow(**settings)


# ---- the dual path on a tiny Wan ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wan():
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16,
        freq_dim=16, ffn_dim=32, num_layers=2,
    ).eval()  # fmt: skip
    inputs = {
        "hidden_states": torch.randn(1, 4, 3, 12, 16),
        "encoder_hidden_states": torch.randn(1, 7, 16),
        "timestep": torch.tensor([500]),
    }
    return model, inputs


def run(wan, method, step=0, branch=None, path_check=None, path=None):
    """The window path's prediction under a patch; a given ``path`` carries stored cross-attention over."""
    import genkit

    model, inputs = wan
    with torch.no_grad(), genkit.patch(model, method) as handle:
        state = DualPath.of(handle.cache)
        if path is not None:
            state.stored.update(path.stored)
        out = state.run(model, method, step, branch, **inputs)
        if path_check is not None:
            path_check(state)
        return out


def test_a_full_window_at_the_models_scale_is_the_model(wan):
    model, inputs = wan
    with torch.no_grad():
        plain = model(**inputs, return_dict=False)[0]
    for settings in ({}, {"dual": True}, {"dual": True, "cache_steps": 1}):
        out = run(wan, SlidingWindow(base=(6, 8), scale_factor=1.0, **settings))
        torch.testing.assert_close(out, plain, atol=6e-6, rtol=1e-5)


def both_rows(wan, method):
    """What the model gives for the window row and the full row of one doubled call."""
    rows = []
    watch = wan[0].register_forward_hook(lambda module, args, output: rows.append(output[0]))
    try:
        run(wan, method)
    finally:
        watch.remove()
    assert len(rows) == 1 and rows[0].shape[0] == 2
    return rows[0]


def test_both_rows_of_a_full_window_are_the_model(wan):
    model, inputs = wan
    with torch.no_grad():
        plain = model(**inputs, return_dict=False)[0]
    rows = both_rows(wan, SlidingWindow(base=(6, 8), scale_factor=1.0, dual=True))
    torch.testing.assert_close(rows, plain.expand_as(rows), atol=6e-6, rtol=1e-5)


def test_two_paths_that_nothing_runs_are_told_in_the_report(wan):
    """An ordinary call equals dual=false, and the report says so; a call through the path has no remark."""
    model, inputs = wan
    outs = []
    for dual in (False, True):
        method = SlidingWindow(base=(2, 4), dual=dual)
        with genkit.patch(model, method) as patch, torch.no_grad():
            assert patch.report().remarks == ()
            outs.append(model(**inputs, return_dict=False)[0])
            remarks = patch.report().remarks
            assert len(remarks) == dual and all("dual=true ran windows alone" in remark for remark in remarks)
            assert ("remark: " in str(patch.report())) == dual
            if dual:
                DualPath.of(patch.cache).run(model, method, 0, "cond", **inputs)
                assert patch.report().remarks == ()
    assert torch.equal(*outs)


@pytest.mark.parametrize("scale", ["auto", 1.0])
def test_a_full_window_with_another_scale_is_not_called_dense(wan, scale):
    """All pairs with the published scale are not dense attention, and the report says what differs."""
    model, inputs = wan
    with torch.no_grad():
        plain = model(**inputs, return_dict=False)[0]
        with genkit.patch(model, SlidingWindow(base=(6, 8), scale_factor=scale)) as patch:
            assert "runs dense" not in str(patch.report()) or scale == 1
            out = model(**inputs, return_dict=False)[0]
            report = patch.report()
    same = torch.allclose(out, plain, atol=6e-6, rtol=1e-5)
    assert same == (scale == 1) == report.sites[0].density.dense
    assert report.sites[0].density.computed == 1
    assert any("scale_factor=1" in remark for remark in report.remarks) == (not same)


def test_the_full_row_does_not_depend_on_the_window(wan):
    first, second = (both_rows(wan, SlidingWindow(base=base, dual=True)) for base in ((2, 4), (4, 2)))
    assert torch.equal(first[1], second[1]) and not torch.equal(first[0], second[0])


def test_nor_does_the_lent_cross_attention(wan):
    stored = []
    outs = [
        run(wan, SlidingWindow(base=base, dual=True), path_check=lambda state: stored.append(dict(state.stored)))
        for base in ((2, 4), (4, 2))
    ]
    assert not torch.equal(*outs)
    assert len(stored[0]) == 2
    assert all(torch.equal(stored[0][name], stored[1][name]) for name in stored[0])


def test_refresh_equals_the_uncached_call_and_reuse_returns_the_same(wan):
    kept = []
    cached = run(wan, SlidingWindow(base=(2, 4), dual=True), path_check=lambda state: kept.append(state))
    every = run(wan, SlidingWindow(base=(2, 4), dual=True, cache_steps=1))
    assert torch.equal(cached, every)
    again = run(wan, SlidingWindow(base=(2, 4), dual=True), step=1, path=kept[0])
    torch.testing.assert_close(again, cached, atol=2e-6, rtol=1e-5)
    moved = run(wan, SlidingWindow(base=(2, 4), dual=True, offload=True), step=1, path=kept[0])
    assert torch.equal(moved, again)


def test_the_unconditional_call_runs_windows_alone(wan):
    alone = run(wan, SlidingWindow(base=(2, 4)))
    uncond = run(wan, SlidingWindow(base=(2, 4), dual=True), branch="uncond")
    assert torch.equal(alone, uncond)
    both = run(wan, SlidingWindow(base=(2, 4), dual=True, override="both"), branch="uncond")
    assert not torch.equal(both, uncond)


@pytest.mark.parametrize(
    ("branch", "override", "ran"), [("uncond", "cond", 2), ("cond", "cond", 4), ("uncond", "both", 4)]
)
def test_text_that_the_settings_leave_to_the_model_is_not_told_as_declined(wan, branch, override, ran):
    model, inputs = wan
    method = SlidingWindow(base=(2, 4), dual=True, override=override)
    with torch.no_grad(), genkit.patch(model, method) as handle:
        DualPath.of(handle.cache).run(model, method, 0, branch, **inputs)
        report = handle.report()
    assert (report.ran, report.outside, report.declined) == (ran, 4 - ran, {})
