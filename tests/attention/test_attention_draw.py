"""The picture of a mask: the map agrees with the mask, the file is written, wrong layouts are refused."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from genkit.attention.draw import QUERY, draw, pair_map
from genkit.attention.neighborhood import Neighborhood
from genkit.attention.radial import Radial
from genkit.errors import UsageError
from genkit.layout import TokenLayout


def test_the_map_is_the_mean_of_the_mask():
    layout = TokenLayout.of_grid(3, 8, 8, text=8)
    for method in (Neighborhood(size=3), Radial(block_size=8, near="decay", sink=False)):
        mask = method.mask(layout).double().numpy()
        assert np.array_equal(pair_map(method, layout, layout.length), mask)
        coarse = mask.reshape(20, 10, 20, 10).mean((1, 3))
        assert np.allclose(pair_map(method, layout, 20), coarse)


@pytest.mark.parametrize("layout", [TokenLayout.of_grid(5, 8, 8, text=6), TokenLayout.of_grid(1, 12, 16)])
def test_the_picture_is_written_and_shows_the_queries(tmp_path, layout):
    path = tmp_path / "mask.png"
    picture, density = draw(Neighborhood(size=3), layout, path)
    saved = Image.open(path)
    assert saved.size == picture.size and saved.format == "PNG"
    assert (np.asarray(saved.convert("RGB")) == QUERY).all(-1).sum() > 200
    assert 0 < density.computed <= density.executed


def test_long_videos_are_drawn_from_samples():
    picture, density = draw(Radial(), TokenLayout.of_grid(11, 24, 32, text=100, text_first=True))
    assert picture.width > 1000 and density.executed < 0.6


def test_a_sequence_without_a_grid_is_refused():
    with pytest.raises(UsageError, match="needs a token grid"):
        draw(Radial(), TokenLayout.sequence(7))
