"""The tile simulator: published bounds, hand-checked numbers, and counting tile by tile."""

from __future__ import annotations

import itertools

import pytest

from genkit.attention.tiles import AxisVisits, axis_visits, flop_bound, fully_sparse, speed_bound, visited_tiles
from genkit.attention.windows import AxisWindow, axis_table

ONE = (1, 1)


def tables(*axes):
    return tuple(axis_table(AxisWindow(*axis)) for axis in axes)


def flux(*stride):
    return tables(ONE, (256, 80, stride[0]), (256, 80, stride[1]))


def hunyuan(*stride):
    return tables((30, 18, stride[0]), (48, 24, stride[1]), (80, 24, stride[2]))


@pytest.mark.parametrize(
    ("windows", "query", "key", "bound", "full"),
    [
        (flux(1, 1), (1, 16, 8), (1, 16, 8), 7.51, False),
        (flux(16, 8), (1, 16, 8), (1, 16, 8), 9.58, False),
        (flux(16, 16), (1, 16, 8), (1, 16, 8), 10.24, True),
        (flux(1, 1), (1, 16, 16), (1, 16, 8), 7.06, False),
        (flux(16, 16), (1, 16, 16), (1, 16, 8), 10.24, True),
        (flux(1, 1), (1, 1, 128), (1, 1, 128), 3.20, False),
        (flux(16, 16), (1, 1, 128), (1, 1, 128), 3.20, False),
        (hunyuan(1, 1, 1), (2, 8, 8), (2, 8, 8), 5.44, False),
        (hunyuan(16, 8, 8), (2, 8, 8), (2, 8, 8), 11.11, True),
        (hunyuan(1, 1, 1), (4, 8, 8), (2, 8, 8), 4.92, False),
        (hunyuan(16, 8, 8), (4, 8, 8), (2, 8, 8), 10.42, True),
    ],
)
def test_the_authors_settings_have_the_published_speed_bounds(windows, query, key, bound, full):
    assert speed_bound(windows, query, key) == pytest.approx(bound, abs=0.006)
    assert fully_sparse(windows, query, key) is full


def test_the_smallest_stride_without_partial_tiles_of_a_long_sequence():
    for stride, bound, full in ((1, 15.11, False), (128, 15.11, False), (256, 16.0, True)):
        windows = tables(ONE, ONE, (32768, 2048, stride))
        assert speed_bound(windows, (1, 1, 128), (1, 1, 128)) == pytest.approx(bound, abs=0.005)
        for rows in (128, 256):
            assert fully_sparse(windows, (1, 1, rows), (1, 1, 128)) is full


@pytest.mark.parametrize(
    ("height", "width", "bound"),
    [
        ((4, 1, 11), (16, 1, 5), 55.0),
        ((12, 4, 1), (16, 1, 5), 18.33),
        ((12, 4, 1), (24, 8, 1), 12.22),
        ((20, 4, 1), (40, 8, 1), 4.40),
        ((28, 4, 1), (56, 8, 1), 2.245),
    ],
)
def test_cosmos_windows_are_fully_sparse(height, width, bound):
    windows = tables((24, 24), (44, *height), (80, *width))
    for query in ((4, 4, 8), (8, 4, 4)):
        assert speed_bound(windows, query, (4, 4, 8)) == pytest.approx(bound, rel=5e-4)
        assert fully_sparse(windows, query, (4, 4, 8))


def test_bounds_of_freeswim_windows():
    inward = tables((21, 21), (68, 31), (120, 53))
    bounds = {(1, 8, 16): 2.63, (2, 8, 8): 2.85, (3, 4, 8): 3.71, (7, 4, 4): 4.11, (21, 2, 2): 4.57}
    for tile, bound in bounds.items():
        assert speed_bound(inward, tile, tile) == pytest.approx(bound, abs=0.005)
    for height, bound in ((36, 4.05), (28, 5.20)):
        strided = tables((21, 21), (68, height, 4), (120, 56, 8))
        assert speed_bound(strided, (7, 4, 4), (7, 4, 4)) == pytest.approx(bound, abs=0.005)
        assert fully_sparse(strided, (7, 4, 4), (7, 4, 4))


def test_the_authors_settings_have_the_published_flop_bounds():
    assert flop_bound(flux(1, 1)) == pytest.approx(10.24)
    assert flop_bound(hunyuan(1, 1, 1)) == pytest.approx(11.11, abs=0.005)
    assert flop_bound(tables(ONE, ONE, (32768, 2048))) == pytest.approx(16.0)


@pytest.mark.parametrize("window", [(12, 5), (12, 5, 2), (13, 4, 1, 3), (12, 5, 1, 1, True), (11, 4, 3, 2, True)])
def test_visits_equal_counting_tile_by_tile(window):
    table = axis_table(AxisWindow(*window))
    length = table.window.length
    keys = [set(table.slot[k] for k in table.keys(table.slot.index(slot))) for slot in range(length)]
    for tile_q, tile_k in itertools.product((1, 2, 3, 4), repeat=2):
        cuts = [(first, first + size) for first, size in zip(table.offsets, table.groups, strict=True)]
        visited, full = 0, True
        for low, high in cuts:
            for start in range(low, high, tile_q):
                queries = range(start, min(start + tile_q, high))
                for key_start in range(low, high, tile_k):
                    tile = range(key_start, min(key_start + tile_k, high))
                    pairs = [slot in keys[query] for query in queries for slot in tile]
                    visited += any(pairs)
                    full &= all(pairs) or not any(pairs)
        one = (axis_table(AxisWindow(1, 1)),)
        assert visited_tiles((*one * 2, table), (1, 1, tile_q), (1, 1, tile_k)) == visited
        assert fully_sparse((*one * 2, table), (1, 1, tile_q), (1, 1, tile_k)) == full


@pytest.mark.parametrize(
    ("window", "visited", "full"),
    [
        ((8, 8), (2, 2), (True, True)),
        ((8, 4, 4), (1, 1), (True, True)),
        ((8, 8, 1, 1, True), (1, 2), (False, False)),  # starts are whole, ends are not
        ((7, 7), (2, 2), (True, True)),  # the last tile is short
    ],
)
def test_visits_of_every_query_tile_and_whether_they_are_full(window, visited, full):
    assert axis_visits(axis_table(AxisWindow(*window)), 4, 4) == AxisVisits(visited, full)
