"""Radial's block mask: counts, bands, densities, coverage, the published code block for block."""

from __future__ import annotations

import numpy as np
import pytest

from genkit.attention.radial.mask import BandRule, block_mask, paper_mask, wanted_mask


def rule(s, block=128, decay=0.2, thin=128, sink=True, near="full"):
    return BandRule(s, block, decay, thin, sink, near)


@pytest.mark.parametrize("rows", ["frame", "block"])
@pytest.mark.parametrize(
    ("frames", "bands", "kept", "blocks"),
    [
        (8, rule(256), 232, 256),
        (18, rule(640), 4443, 8100),
        (33, rule(256, decay=0.5), 1996, 4356),
        (12, rule(384, decay=1.0, sink=False), 824, 1296),
    ],
)
def test_aligned_frames_keep_exactly_the_published_number_of_blocks(frames, bands, kept, blocks, rows):
    mask = block_mask(frames, bands, rows)
    assert mask.size == blocks
    assert int(mask.sum()) == kept


@pytest.mark.parametrize(
    ("frames", "bands", "density", "row_range"),
    [
        (18, rule(3840), 0.2871, (92, 162)),
        (18, rule(3840, near="half"), 0.2634, None),
        (18, rule(3840, decay=1.0), 0.4309, (126, 270)),
        (21, rule(1560), 0.3452, (60, 112)),
        (20, rule(3840, block=64, decay=0.8), 0.3491, (214, 472)),
        (30, rule(3840, decay=0.95, sink=False), 0.2746, (144, 281)),
        (30, rule(3840, decay=0.95), 0.3008, None),
        (64, rule(3840, decay=1.0, sink=False), 0.1841, None),
        (64, rule(3840, decay=1.0), 0.1976, None),
        (128, rule(3840, decay=1.0, sink=False), 0.1150, None),
        (128, rule(3840, decay=1.0), 0.1222, None),
    ],
)
def test_densities_of_real_models(frames, bands, density, row_range):
    mask = block_mask(frames, bands)
    assert mask.mean() == pytest.approx(density, abs=5.1e-5)
    if row_range:
        assert (mask.sum(1).min(), mask.sum(1).max()) == row_range


def test_published_row_rule_at_an_unaligned_size():
    mask = block_mask(21, rule(1560), "block")
    assert mask.shape == (256, 256)
    assert mask.mean() == pytest.approx(0.3388, abs=5e-5)
    assert mask[:255, :255].mean() == pytest.approx(0.3395, abs=5e-5)
    assert (mask.sum(1).min(), mask.sum(1).max()) == (60, 99)


@pytest.mark.parametrize(
    ("frames", "with_sink", "without", "frame_rows"),
    [(64, 0.1917, 0.1776, 0.1933), (128, 0.1163, 0.1088, 0.1174), (41, 0.2599, None, 0.2617)],
)
def test_the_papers_sparsities_to_the_printed_digit(frames, with_sink, without, frame_rows):
    floor = frames * 3600 // 128
    published = block_mask(frames, rule(3600, decay=1.0), "block")[:floor, :floor]
    assert published.mean() == pytest.approx(with_sink, abs=5e-5)
    assert block_mask(frames, rule(3600, decay=1.0)).mean() == pytest.approx(frame_rows, abs=5e-5)
    if without:
        open_start = block_mask(frames, rule(3600, decay=1.0, sink=False), "block")
        assert open_start[:floor, :floor].mean() == pytest.approx(without, abs=5e-5)


def test_half_of_the_neighbouring_frames_gives_the_earlier_codes_density():
    floor = 41 * 3600 // 128
    mask = block_mask(41, rule(3600, decay=1.0, near="half"), "block")[:floor, :floor]
    assert mask.mean() == pytest.approx(0.2495, abs=5e-5)


def test_widths_and_patterns_with_blocks_of_four():
    bands = rule(16, block=4, decay=1.0, thin=4, sink=False)
    widths = [bands.width(0, distance) for distance in range(12)]
    assert widths == [16, 16, 8, 8, 4, 4, 4, 4, 4, None, 4, None]
    narrow = block_mask(12, bands)[0:4, 16:20]
    wide = block_mask(12, bands)[0:4, 8:12]
    offset = np.abs(np.subtract.outer(np.arange(4), np.arange(4)))
    assert (narrow == (offset <= 1)).all() and narrow.sum() == 10
    assert (wide == (offset <= 2)).all() and wide.sum() == 14


def test_far_frames_are_thinned_by_power_of_two():
    long = rule(3840, sink=False)
    assert all(long.width(0, d) is not None for d in range(32))
    assert [d for d in range(32, 64) if long.width(0, d) is not None] == list(range(32, 64, 2))
    assert [d for d in range(64, 128) if long.width(0, d) is not None] == list(range(64, 128, 4))
    short = rule(1560, sink=False)
    assert [d for d in range(2, 32) if short.width(0, d) is not None] == [*range(2, 16), *range(16, 32, 2)]


def test_blocks_of_wan_at_768_by_1280():
    mask = block_mask(18, rule(3840, sink=False))
    frames = mask.reshape(18, 30, 18, 30).sum((1, 3))
    assert frames[0, 0] == frames[0, 1] == 900
    assert set(frames[0, 2:]) == {88}
    wide = block_mask(18, rule(3840, decay=1.0, sink=False)).reshape(18, 30, 18, 30).sum((1, 3))
    assert [int(wide[0, d]) for d in (2, 3, 4, 7, 8, 15, 16)] == [438, 438, 250, 250, 144, 144, 88]


def test_equation_four_keeps_the_computed_number_of_pairs():
    assert [int(paper_mask(12, 16, sink).sum()) for sink in (False, True)] == [21816, 23424]
    assert [int(paper_mask(8, 4, sink).sum()) for sink in (False, True)] == [652, 712]


@pytest.mark.parametrize(
    ("s", "published", "by_frame", "any_pair"),
    [
        (900, (0.657, 98.8, 0), (0.684, 99.5, 94), (0.755, 100.0, 100)),
    ],
)
def test_coverage_of_the_wanted_bands(s, published, by_frame, any_pair):
    bands = rule(s)
    wanted = wanted_mask(8, bands)
    assert int(wanted.sum()) == sum(bands.wanted(i, j) for i in range(8) for j in range(8))
    for (rows, cover), (density, mean, worst) in zip(
        (("block", "most"), ("frame", "most"), ("frame", "any")), (published, by_frame, any_pair), strict=True
    ):
        mask = block_mask(8, bands, rows, cover)
        kept = np.repeat(np.repeat(mask, 128, 0), 128, 1)[: 8 * s, : 8 * s] & wanted
        assert mask.mean() == pytest.approx(density, abs=6e-4)
        assert 100 * kept.sum() / wanted.sum() == pytest.approx(mean, abs=0.051)
        assert 100 * (kept.sum(1) / wanted.sum(1)).min() == pytest.approx(worst, abs=0.51)


def shrunk_slowly(frames, bands, rows):
    """The shrinking rule on real token pairs: place every band, cut into blocks, measure columns."""
    s, block = bands.frame_tokens, bands.block
    blocks = -(-frames * s // block)
    kept = np.zeros((blocks, blocks), dtype=bool)
    offset = np.abs(np.subtract.outer(np.arange(s), np.arange(s)))
    for i in range(frames):
        for j in range(frames):
            width = bands.width(i, j)
            if width is None:
                continue
            canvas = np.zeros((blocks * block, blocks * block), dtype=bool)
            canvas[i * s : (i + 1) * s, j * s : (j + 1) * s] = offset <= width
            own = np.zeros(blocks * block, dtype=bool)
            own[i * s : (i + 1) * s] = True
            filled = canvas.reshape(blocks, block, blocks, block).sum(1)
            height = own.reshape(blocks, block).sum(1)[:, None, None] if rows == "frame" else block
            dense, touched = (3 * filled > height).sum(2), (filled > 0).sum(2)
            kept |= (touched > 0) & (dense > 0.6 * touched)
    if rows == "frame":
        kept |= np.eye(blocks, dtype=bool)
    return kept


@pytest.mark.parametrize("rows", ["frame", "block"])
@pytest.mark.parametrize(("frames", "s", "block"), [(5, 48, 16), (6, 50, 16), (7, 37, 8), (4, 9, 16), (9, 64, 8)])
def test_counting_equals_shrinking_token_pairs(frames, s, block, rows):
    for sink in (True, False):
        bands = rule(s, block=block, decay=0.6, thin=block, sink=sink)
        assert (block_mask(frames, bands, rows) == shrunk_slowly(frames, bands, rows)).all()


def test_short_videos_and_huge_windows_are_dense():
    for frames in (1, 2):
        assert block_mask(frames, rule(260)).all()
    assert not block_mask(1, rule(260), "block").all()
    assert block_mask(4, rule(256, decay=1000.0)).all()
    assert block_mask(33, rule(256, decay=1000.0)).mean() == pytest.approx(0.458, abs=5e-4)


def test_masks_of_aligned_frames_are_symmetric_and_keep_own_blocks():
    aligned = block_mask(9, rule(256, decay=0.5, sink=False))
    assert (aligned == aligned.T).all()
    unaligned = block_mask(9, rule(1296, sink=False))
    for mask in (unaligned, block_mask(5, rule(1560, sink=False)), block_mask(5, rule(3600, sink=False))):
        assert not (mask == mask.T).all()
    for mask in (aligned, unaligned, block_mask(41, rule(3600))):
        assert mask.diagonal().all()


def test_an_almost_empty_tail_block_keeps_a_row():
    published = block_mask(41, rule(3600), "block")
    assert published.shape == (1154, 1154) and not published[-1].any()
    assert block_mask(41, rule(3600))[-1].any()


def test_near_decay_thins_the_neighbouring_frames_too():
    bands = rule(256, block=16, sink=False, near="decay")
    assert [bands.width(0, d) for d in range(5)] == [256, 51, 25, 25, 16]
    assert block_mask(7, bands).mean() < 0.35 < block_mask(7, rule(256, block=16, sink=False)).mean()


def published(frames, bands):
    """The rule of the published code in its own steps: token masks of pairs, padded, cut, shrunk, put in place."""
    s, size = bands.frame_tokens, bands.block
    whole = np.zeros((frames * s // size,) * 2, dtype=bool)
    position = np.arange(s)
    for i in range(frames):
        for j in range(frames):
            width = bands.width(i, j)
            if width is None:
                continue
            row, column = i * s % size, j * s % size
            blocks = (s - 1) // size + 1
            padded = np.zeros((row + blocks * size, column + blocks * size), dtype=bool)
            padded[row : row + s, column : column + s] = np.abs(position[:, None] - position) <= width
            cut = padded[: blocks * size, : blocks * size].reshape(blocks, size, blocks, size)
            share = cut.mean(1)
            kept = (share > 1 / 3).sum(-1) / ((share > 0).sum(-1) + 1e-9) > 0.6
            place = np.ix_(i * s // size + np.arange(blocks), j * s // size + np.arange(blocks))
            whole[place] |= kept
    return whole


@pytest.mark.parametrize(
    ("frames", "bands"),
    [
        (8, rule(256)),  # whole blocks in a frame
        (8, rule(1296)),  # frames begin inside blocks
        (8, rule(96, block=64, thin=64)),
        (16, rule(40, block=64, thin=64, decay=1.0)),  # frames smaller than a block
        (12, rule(44, block=16, thin=16, decay=1.0, sink=False)),
        (8, rule(30, block=16, thin=16, near="half")),
        (16, rule(9, block=16, thin=16, near="decay")),
    ],
)
def test_published_rows_are_the_published_code_block_for_block(frames, bands):
    assert frames * bands.frame_tokens % bands.block == 0
    assert np.array_equal(block_mask(frames, bands, "published"), published(frames, bands))


def test_what_the_published_code_cuts_off():
    """Frames of 1,560 tokens, 16 of them: 48 of 38,025 blocks; none when frames begin at blocks."""
    kept, cut = block_mask(16, rule(1560), "block"), block_mask(16, rule(1560), "published")
    assert kept.size == 38025 and int((kept & ~cut).sum()) == 48 and not (cut & ~kept).any()
    assert np.array_equal(block_mask(8, rule(256), "published"), block_mask(8, rule(256), "block"))
    small = rule(40, block=64, thin=64, decay=1.0)
    assert int((block_mask(16, small, "block") & ~block_mask(16, small, "published")).sum()) == 4
