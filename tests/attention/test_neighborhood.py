"""Neighborhood: published densities, settings per axis, discs, merging with text, refusals."""

from __future__ import annotations

import pytest
import torch
from attention_helpers import tokens

from genkit.attention.cache import PatchCache
from genkit.attention.neighborhood import Neighborhood
from genkit.attention.site import Site
from genkit.errors import UsageError
from genkit.kernels import merge
from genkit.layout import TokenLayout


def numbers(method, grid):
    return [(w.size, w.stride, w.dilation) for w in method.on(grid).windows]


def test_a_small_fraction_of_an_axis_is_one_token():
    assert numbers(Neighborhood(size=(0.01, 0.26)), (3, 10, 10)) == [(3, 1, 1), (1, 1, 1), (3, 1, 1)]


def test_settings_hold_for_all_axes_or_per_axis():
    grid = (6, 10, 12)
    assert numbers(Neighborhood(size=5), grid) == [(5, 1, 1)] * 3
    assert numbers(Neighborhood(size=(5, 7), stride=(2, 3)), grid) == [(6, 1, 1), (5, 2, 1), (7, 3, 1)]
    assert numbers(Neighborhood(size=("all", 0.5, 3), dilation=(1, 2, 4)), grid) == [(6, 1, 1), (5, 1, 2), (3, 1, 4)]
    assert numbers(Neighborhood(), grid) == [(6, 1, 1), (5, 1, 1), (6, 1, 1)]
    assert numbers(Neighborhood(size=9, stride=8), grid) == [(6, 6, 1), (9, 8, 1), (9, 8, 1)]


def test_the_authors_settings_have_the_published_densities():
    flux = Neighborhood(size=(80, 80))
    assert flux.on((1, 256, 256)).pairs(TokenLayout.of_grid(1, 256, 256)) / 65536**2 == 0.09765625
    hunyuan = Neighborhood(size=(18, 24, 24), stride=(16, 8, 8))
    assert hunyuan.on((30, 48, 80)).pairs(TokenLayout.of_grid(30, 48, 80)) / 115200**2 == pytest.approx(0.09)


@pytest.mark.parametrize(
    ("base", "h", "w", "expected"),
    [
        ((480, 832), 1088, 1920, 0.20135),
        ((720, 1280), 1088, 1920, 0.44669),
        ((480, 832), 1440, 2560, 0.11410),
        ((720, 1280), 1440, 2560, 0.25312),
        ((720, 1280), 2176, 3840, 0.11167),
    ],
)
def test_densities_of_freeswim(base, h, w, expected):
    reach = [size // 16 // 2 for size in base]
    method = Neighborhood(size=tuple(2 * d + 1 for d in reach))
    layout = TokenLayout.of_grid(21, h // 16, w // 16)
    assert method.on(layout.grid).pairs(layout) / layout.length**2 == pytest.approx(expected, abs=6e-6)


def test_freeswims_windows_on_a_small_grid_have_its_row_sums():
    mask = Neighborhood(size=(3, 5)).mask(TokenLayout.of_grid(1, 6, 8))
    assert int(mask.sum()) == 720 and set(mask.sum(1).tolist()) == {15}
    assert mask[0].nonzero().flatten().tolist() == [*range(5), *range(8, 13), *range(16, 21)]
    assert mask[47].nonzero().flatten().tolist() == [*range(27, 32), *range(35, 40), *range(43, 48)]


@pytest.mark.parametrize(
    ("length", "settings", "means"),
    [
        (8, {"size": 3}, [1, 1, 2, 3, 4, 5, 6, 6]),
        (8, {"size": 4, "stride": 2}, [1.5, 1.5, 2.5, 2.5, 4.5, 4.5, 5.5, 5.5]),
        (11, {"size": 3, "dilation": 3}, [3, 4, 5, 3, 4, 5, 6, 7, 5, 6, 7]),
        (8, {"size": 4, "stride": 2, "causal": True}, [0, 0.5, 1, 1.5, 3, 3.5, 5, 5.5]),
    ],
)
def test_uniform_attention_averages_the_window_through_the_method(length, settings, means):
    """Queries and keys of zeros, values that are the token's number: the mean place of every window."""
    layout = TokenLayout.of_grid(1, 1, length)
    plain = {"size": "all", "stride": 1, "dilation": 1, "causal": False}
    method = Neighborhood(**{name: (plain[name], plain[name], value) for name, value in settings.items()})
    q = torch.zeros(1, length, 1, 4, dtype=torch.float64)
    v = torch.arange(length, dtype=torch.float64)[None, :, None, None].expand_as(q).contiguous()
    out = method.attend(q, q, v, Site.of_layout(layout), PatchCache("reference"))
    assert out[0, :, 0, 0].tolist() == pytest.approx(means, abs=1e-12)


def test_window_and_text_merge_into_the_joint_softmax():
    """Window over the grid and all text keys, run apart and merged by their log-sum-exps."""
    layout = TokenLayout.of_grid(1, 5, 6, text=4)
    method = Neighborhood(size=(3, 4), stride=(1, 2))
    q, k, v = tokens(layout)
    mask = method.mask(layout)
    parts = []
    for keys in (slice(0, 30), slice(30, 34)):
        scores = torch.einsum("bnhd,bmhd->bhnm", q[:, :30], k[:, keys]) * 8**-0.5
        scores = scores.masked_fill(~mask[:30, keys], -torch.inf)
        lse = scores.logsumexp(-1)
        parts.append((torch.einsum("bhnm,bmhd->bnhd", (scores - lse[..., None]).exp(), v[:, keys]), lse))
    together, _ = merge(parts)
    whole = method.attend(q, k, v, Site.of_layout(layout, heads=2), PatchCache())
    torch.testing.assert_close(together, whole[:, :30], atol=2e-6, rtol=1e-5)


def test_numbers_tuned_for_another_grid_are_rescaled():
    tuned = Neighborhood(size=("all", 12, 24), stride=(1, 4, 8), base_size=(-1, 44, 80))
    assert numbers(tuned, (24, 30, 52)) == [(24, 1, 1), (8, 3, 1), (16, 5, 1)]
    assert numbers(tuned, (24, 44, 80)) == [(24, 1, 1), (12, 4, 1), (24, 8, 1)]


def test_three_dimensions_are_the_product_of_the_axes():
    layout = TokenLayout.of_grid(3, 4, 5)
    whole = Neighborhood(size=(2, 3, 3)).mask(layout)
    parts = [Neighborhood(size=size).mask(layout) for size in ((2, "all", "all"), ("all", 3, "all"), ("all", "all", 3))]
    assert torch.equal(whole, parts[0] & parts[1] & parts[2])
    assert set(whole.sum(1).tolist()) == {18}


def test_a_disc_is_strict_and_flat_in_time():
    layout = TokenLayout.of_grid(2, 9, 9)
    mask = Neighborhood(shape="disc", radius=2).mask(layout)
    centre = 4 * 9 + 4
    seen = mask[centre].reshape(2, 9, 9)
    assert torch.equal(seen[0], seen[1])
    near = [(int(y) - 4, int(x) - 4) for y, x in seen[0].nonzero()]
    assert sorted(near) == sorted((y, x) for y in (-1, 0, 1) for x in (-1, 0, 1))
    ball = Neighborhood(shape="disc", radius=1.5, size=(3, 3, 3)).mask(TokenLayout.of_grid(3, 3, 3))
    assert int(ball[13].sum()) == 19


def test_time_can_be_causal_alone():
    layout = TokenLayout.of_grid(4, 3, 3)
    mask = Neighborhood(size="all", causal=(True, False, False)).mask(layout).reshape(4, 9, 4, 9)
    assert all(bool(mask[i, :, j].all()) == (j <= i) == bool(mask[i, :, j].any()) for i in range(4) for j in range(4))


def test_a_stride_can_make_every_visited_tile_full():
    method, cache = Neighborhood(size=("all", 8, 8), stride=4), PatchCache()
    layout = TokenLayout.of_grid(7, 16, 16)
    density = method.density(Site.of_layout(layout), cache)
    assert density.computed == density.executed == 0.25
    assert method.on(layout.grid).tiles().full
    assert "none of them partial" in method.details(layout)


@pytest.mark.parametrize("grid", [(7, 16, 16), (13, 16, 16), (7, 32, 32)])
def test_tiles_beat_row_major_blocks(grid):
    layout = TokenLayout.of_grid(*grid)
    chosen = Neighborhood().density(Site.of_layout(layout), PatchCache()).executed
    rows = Neighborhood(tile=(1, 256 // grid[2], grid[2])).density(Site.of_layout(layout), PatchCache()).executed
    assert chosen < 0.45 < rows


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"size": 0}, "size"),
        ({"size": 1.5}, "fraction"),
        ({"size": True}, "size"),
        ({"size": "half"}, "'all'"),
        ({"size": (3, 3, 3, 3)}, "three"),
        ({"size": 3, "stride": 4}, "1 to 3"),
        ({"stride": 0}, "stride"),
        ({"dilation": 2.0}, "dilation"),
        ({"causal": 1}, "causal"),
        ({"border": "wrap"}, "shift, clip"),
        ({"shape": "cube"}, "box, disc"),
        ({"radius": 3.0}, "shape='disc'"),
        ({"shape": "disc"}, "radius"),
        ({"shape": "disc", "radius": 3.0, "stride": 2}, "stride of a disc"),
        ({"shape": "disc", "radius": 3.0, "size": "all"}, "not 'all'"),
        ({"base_size": (0, 4, 4)}, "base_size"),
        ({"base_size": (4, 4)}, "base_size"),
        ({"tile": (4, 4, 0)}, "tile"),
    ],
)
def test_wrong_settings_are_refused_with_words(settings, words):
    with pytest.raises(UsageError, match=words):
        Neighborhood(**settings)


def test_a_dilation_that_does_not_fit_is_a_reason():
    method = Neighborhood(size=(5, 5), dilation=(3, 1))
    assert method.why_not(Site.of_layout(TokenLayout.of_grid(2, 15, 15))) is None
    reason = method.why_not(Site.of_layout(TokenLayout.of_grid(2, 14, 15)))
    assert "height" in reason and "1 to 2" in reason and "base_size" in reason
