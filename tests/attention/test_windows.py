"""The per-axis window tables: numbers worked out by hand and published, and identities between kinds of windows."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genkit.attention.windows import AxisWindow, axis_table, rescaled
from genkit.errors import UsageError


def spans(length, size, **more):
    """Half-open windows of every query of an undilated axis, as text like ``0-3``."""
    table = axis_table(AxisWindow(length, size, **more))
    return [f"{low}-{high}" for low, high in zip(table.start, table.end, strict=True)]


@pytest.mark.parametrize(
    ("length", "size", "stride", "expected"),
    [
        (8, 3, 1, "0-3,0-3,1-4,2-5,3-6,4-7,5-8,5-8"),
        (8, 4, 1, "0-4,0-4,0-4,1-5,2-6,3-7,4-8,4-8"),
        (8, 4, 2, "0-4,0-4,1-5,1-5,3-7,3-7,4-8,4-8"),
        (9, 4, 4, "0-4,0-4,0-4,0-4,4-8,4-8,4-8,4-8,5-9"),
    ],
)
def test_windows_shift_inward_at_the_borders(length, size, stride, expected):
    assert ",".join(spans(length, size, stride=stride)) == expected


@pytest.mark.parametrize(
    ("size", "stride", "expected"),
    [(3, 1, "0-1,0-2,0-3,1-4,2-5,3-6,4-7,5-8"), (4, 2, "0-1,0-2,0-3,0-4,2-5,2-6,4-7,4-8")],
)
def test_causal_windows_end_at_the_query(size, stride, expected):
    assert ",".join(spans(8, size, stride=stride, causal=True)) == expected


def test_causal_stride_gives_early_queries_of_a_group_fewer_keys():
    table = axis_table(AxisWindow(20, 5, stride=3, causal=True))
    keys = [end - start for start, end in zip(table.start, table.end, strict=True)]
    assert keys == [1, 2, 3, 3, 4, 5, 3, 4, 5, 3, 4, 5, 3, 4, 5, 3, 4, 5, 4, 5]


def test_dilated_windows_stay_in_their_group():
    table = axis_table(AxisWindow(11, 3, dilation=3))
    expected = [(0, 3, 6), (1, 4, 7), (2, 5, 8)] * 2 + [(3, 6, 9), (4, 7, 10), (2, 5, 8), (3, 6, 9), (4, 7, 10)]
    assert [tuple(table.keys(x)) for x in range(11)] == expected


@pytest.mark.parametrize(
    ("window", "means"),
    [
        (AxisWindow(8, 3), [1, 1, 2, 3, 4, 5, 6, 6]),
        (AxisWindow(8, 4, stride=2), [1.5, 1.5, 2.5, 2.5, 4.5, 4.5, 5.5, 5.5]),
        (AxisWindow(11, 3, dilation=3), [3, 4, 5, 3, 4, 5, 6, 7, 5, 6, 7]),
        (AxisWindow(8, 4, stride=2, causal=True), [0, 0.5, 1, 1.5, 3, 3.5, 5, 5.5]),
    ],
)
def test_uniform_attention_averages_the_window(window, means):
    table = axis_table(window)
    found = [sum(table.keys(x)) / len(table.keys(x)) for x in range(window.length)]
    assert found == means


def test_queries_that_share_a_window_start_where_the_authors_settings_say():
    time = axis_table(AxisWindow(30, 18, stride=16))
    assert set(zip(time.start[:16], time.end[:16], strict=True)) == {(0, 18)}
    assert set(zip(time.start[16:], time.end[16:], strict=True)) == {(12, 30)}
    assert list(axis_table(AxisWindow(80, 24, stride=8)).start[::8]) == [0, 0, 8, 16, 24, 32, 40, 48, 56, 56]
    flux = list(axis_table(AxisWindow(256, 80, stride=16)).start[::16])
    assert flux == [0, 0, 0, *range(16, 161, 16), 176, 176, 176]


def test_inward_windows_of_freeswim_are_odd_neighborhoods():
    for length in range(1, 25):
        for reach in range(13):
            size = min(2 * reach + 1, length)
            table = axis_table(AxisWindow(length, size))
            for y in range(length):
                below, above = max(0, reach - y), max(0, reach + y - (length - 1))
                visible = [k for k in range(length) if y - reach - above <= k <= y + reach + below]
                assert table.keys(y) == visible


def test_stride_as_long_as_the_window_is_blocked_attention():
    for size in (2, 3, 4, 6):
        table = axis_table(AxisWindow(24, size, stride=size))
        assert list(table.start) == [x // size * size for x in range(24)]
    tail = axis_table(AxisWindow(10, 4, stride=4))
    assert tail.keys(8) == tail.keys(9) == [6, 7, 8, 9]


def test_odd_sliding_tiles_are_strided_windows():
    for tile, count in ((2, 3), (4, 3), (3, 5)):
        length = tile * 7
        table = axis_table(AxisWindow(length, tile * count, stride=tile))
        for x in range(length):
            first = min(max(x // tile - count // 2, 0), 7 - count)
            assert table.keys(x) == list(range(first * tile, (first + count) * tile))


def test_clipped_windows_are_cut_at_the_borders():
    assert spans(6, 3, border="clip") == ["0-2", "0-3", "1-4", "2-5", "3-6", "4-6"]
    wide = axis_table(AxisWindow(4, 9, border="clip"))
    assert wide.whole and wide.window.size > wide.window.length


def test_whole_axis_is_dense():
    assert axis_table(AxisWindow(7, 7)).whole
    assert not axis_table(AxisWindow(7, 7, causal=True)).whole
    assert not axis_table(AxisWindow(7, 6)).whole


windows = st.integers(2, 29).flatmap(
    lambda length: st.integers(1, length).flatmap(
        lambda size: st.builds(
            AxisWindow,
            st.just(length),
            st.just(size),
            st.integers(1, size),
            st.integers(1, max(1, length // size)),
            st.booleans(),
        )
    )
)


@settings(max_examples=150, deadline=None)
@given(windows)
def test_every_window_holds_its_query_and_every_key_is_seen_in_one_run(window):
    table = axis_table(window)
    seen = [set() for _ in range(window.length)]
    for query in range(window.length):
        keys = table.keys(query)
        assert query in keys
        assert all(key % window.dilation == query % window.dilation for key in keys)
        if not window.causal:
            assert len(keys) == window.size
        for key in keys:
            seen[key].add(table.slot[query])
    for queries in seen:
        assert queries and len(queries) == max(queries) - min(queries) + 1


def test_impossible_windows_are_refused():
    wrong = ({"size": 9}, {"size": 0}, {"size": 3, "stride": 4}, {"size": 3, "dilation": 3}, {"size": 3, "dilation": 0})
    for bad in wrong:
        with pytest.raises(UsageError):
            AxisWindow(8, **bad)
    with pytest.raises(UsageError, match="shift, clip"):
        AxisWindow(8, 3, border="wrap")


def test_numbers_are_rescaled_as_cosmos_does():
    assert rescaled(12, 4, 1, 30, 44) == (8, 3, 1)
    assert rescaled(24, 8, 1, 52, 80) == (16, 5, 1)
    assert rescaled(4, 1, 11, 44, 44) == (4, 1, 11)
    assert rescaled(4, 1, 11, 11, 44) == (2, 1, 3)


def test_only_windows_that_shift_must_fit_the_axis():
    with pytest.raises(UsageError, match="1 to 4, the length of the axis"):
        AxisWindow(4, 5)
    assert AxisWindow(4, 5, border="clip").size == 5
