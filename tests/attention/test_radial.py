"""Radial as a method: blocks per layout, text, tails, densities on small grids, its authors' schedule."""

from __future__ import annotations

import pytest
import torch

from genkit.attention.cache import PatchCache
from genkit.attention.radial import Radial
from genkit.attention.site import Site
from genkit.errors import UsageError
from genkit.layout import TokenLayout


def test_block_size_follows_the_frame():
    sizes = {(48, 80): 128, (45, 80): 128, (30, 52): 128, (32, 32): 128, (32, 16): 64, (16, 16): 32, (8, 8): 16}
    for (h, w), block in sizes.items():
        assert Radial().block(TokenLayout.of_grid(9, h, w)) == block
    assert Radial(block_size=64).block(TokenLayout.of_grid(9, 48, 80)) == 64
    assert Radial(block_size=64).bands(TokenLayout.of_grid(9, 48, 80)).thin_below == 128
    assert Radial(block_size=32).bands(TokenLayout.of_grid(9, 16, 16)).thin_below == 32


def test_published_density_through_the_plan():
    layout = TokenLayout.of_grid(18, 48, 80)
    density = Radial(block_size=128).density(Site.of_layout(layout), PatchCache())
    assert density.computed == density.executed == pytest.approx(0.2871, abs=5e-5)


@pytest.mark.parametrize(
    ("grid", "method", "most"),
    [
        ((7, 16, 16), Radial(block_size=16, near="decay", sink=False, decay_factor=0.1), 0.30),
        ((7, 16, 16), Radial(near="decay", sink=False), 0.45),
        ((13, 16, 16), Radial(near="decay", sink=False, thin_below=128), 0.31),
        ((13, 16, 16), Radial(block_size=16), 0.42),
        ((7, 32, 32), Radial(block_size=32, near="decay", sink=False, decay_factor=0.1), 0.26),
    ],
)
def test_small_grids_reach_low_densities(grid, method, most):
    layout = TokenLayout.of_grid(*grid)
    density = method.density(Site.of_layout(layout), PatchCache())
    assert density.computed <= density.executed + 1e-12 <= most


def test_one_or_two_frames_are_dense():
    for frames in (1, 2):
        layout = TokenLayout.of_grid(frames, 13, 20)
        for rows in ("frame", "block"):
            density = Radial(rows=rows).density(Site.of_layout(layout), PatchCache())
            assert density.dense and density.computed == 1.0


def test_ragged_tails_keep_their_tokens():
    layout = TokenLayout.of_grid(5, 7, 9, text=6)
    method = Radial(block_size=16, near="decay", sink=False)
    mask = method.mask(layout)
    assert mask.diagonal().all()
    published = Radial(block_size=128, rows="block")
    long = TokenLayout.of_grid(41, 45, 80)
    assert "rows='frame'" in published.why_not(Site.of_layout(long))
    assert Radial().why_not(Site.of_layout(long)) is None


def test_published_rows_serve_the_sizes_that_the_published_code_serves():
    method = Radial(block_size=16, rows="published")
    assert method.why_not(Site.of_layout(TokenLayout.of_grid(12, 4, 11))) is None
    assert "multiple of its block: got 539 tokens in blocks of 16" in method.why_not(
        Site.of_layout(TokenLayout.of_grid(7, 7, 11))
    )
    assert "without any key" in method.why_not(Site.of_layout(TokenLayout.of_grid(16, 2, 2)))
    layout = TokenLayout.of_grid(12, 4, 11)
    assert method.mask(layout).float().mean() < Radial(block_size=16, rows="block").mask(layout).float().mean()


def test_the_sink_is_the_first_frame_as_keys_only():
    layout = TokenLayout.of_grid(8, 16, 16)
    with_sink, without = Radial(block_size=32).mask(layout), Radial(block_size=32, sink=False).mask(layout)
    assert with_sink[:, :256].all() and not without[:, :256].all()
    assert torch.equal(with_sink[:, 256:], without[:, 256:])


def test_the_authors_schedule():
    assert Radial().recommended(50, 40) == {"steps": "12:", "layers": "1:"}
    assert Radial().recommended(4, 30) == {"steps": "1:", "layers": "1:"}
    assert Radial().recommended(1, 1) == {"steps": "0:", "layers": "0:"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"block_size": 4}, "block_size"),
        ({"block_size": "big"}, "block_size"),
        ({"decay_factor": -1.0}, "decay_factor"),
        ({"decay_factor": float("nan")}, "decay_factor"),
        ({"near": "far"}, "full, half, decay"),
        ({"rows": "column"}, "frame, block, published"),
        ({"cover": "all"}, "most, any"),
        ({"sink": 1}, "sink"),
        ({"thin_below": 0}, "thin_below"),
    ],
)
def test_wrong_settings_are_refused_with_words(settings, words):
    with pytest.raises(UsageError, match=words):
        Radial(**settings)


def test_the_smallest_and_largest_blocks():
    for name, low in (("block_size", 8), ("thin_below", 1)):
        for value in (low, 4096):
            assert getattr(Radial(**{name: value}), name) == value
        for value in (low - 1, 4097):
            with pytest.raises(UsageError, match=name):
                Radial(**{name: value})
