"""The block mask of radial attention (arXiv 2506.19852), built by counting, never from token pairs.

For every pair of frames the method wants a band ``|k - l| <= w`` of positions inside the frame, narrower the farther
apart the frames are, and no band at all for some far pairs. The band is then shrunk to whole blocks: a block stays when
most of the columns it touches are well filled. How many rows of a row block see a column is a closed formula, so a mask
of 128 frames with 3600 tokens each takes a fraction of a second.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class BandRule:
    """Which band of positions a pair of frames keeps.

    Args:
        frame_tokens: s, tokens of one frame.
        block: B, tokens of a block; no band is narrower than one block.
        decay: scales the band width of frames at distance two and more.
        thin_below: bands shorter than this many tokens are thinned by frame instead of narrowed further.
        sink: every query sees all of frame 0.
        near: neighbouring frames (distance 1) keep everything (``"full"``), a half width of ``s // 2`` (``"half"``), or
            what the rule of the farther frames gives (``"decay"``).
    """

    frame_tokens: int
    block: int
    decay: float
    thin_below: int
    sink: bool
    near: str

    def width(self, i: int, j: int) -> int | None:
        """Half width w of the band between query frame ``i`` and key frame ``j``; None when the pair is dropped."""
        s, distance = self.frame_tokens, abs(i - j)
        if (self.sink and j == 0) or distance == 0:
            return s
        if distance == 1 and self.near != "decay":
            return s // 2 if self.near == "half" else s
        octave = distance.bit_length()
        power = 1 << s.bit_length()
        length = power / (1 << octave)
        if length < self.thin_below and distance % int(self.thin_below / length):
            return None
        return int(max(self.block, self.decay * length))

    def wanted(self, i: int, j: int) -> int:
        """Number of token pairs inside the band of a pair of frames."""
        width, s = self.width(i, j), self.frame_tokens
        if width is None:
            return 0
        w = min(width, s - 1)
        return s + w * (2 * s - w - 1)


def _pattern(s: int, block: int, width: int, row_shift: int, column_shift: int, rows: str, cover: str) -> np.ndarray:
    """Kept blocks of one pair of frames whose first row and column sit ``*_shift`` tokens inside their blocks."""
    if rows == "published":
        row_blocks = column_blocks = -(-s // block)  # what reaches beyond is cut off
    else:
        row_blocks = -(-(row_shift + s) // block)
        column_blocks = -(-(column_shift + s) // block)
    edges = np.arange(row_blocks + 1) * block - row_shift
    low = np.maximum(edges[:-1], 0)[:, None]
    high = np.minimum(edges[1:], s)[:, None]
    column = np.arange(min(s, column_blocks * block - column_shift))[None, :]
    count = np.maximum(0, np.minimum(high - 1, column + width) - np.maximum(low, column - width) + 1)
    touched = count > 0
    height = (high - low) if rows == "frame" else block
    filled = 3 * count > height
    starts = np.maximum(np.arange(column_blocks) * block - column_shift, 0)
    touched_columns = np.add.reduceat(touched, starts, axis=1, dtype=np.int64)
    if cover == "any":
        return touched_columns > 0
    filled_columns = np.add.reduceat(filled, starts, axis=1, dtype=np.int64)
    return (touched_columns > 0) & (5 * filled_columns > 3 * touched_columns)


def block_mask(frames: int, rule: BandRule, rows: str = "frame", cover: str = "most") -> np.ndarray:
    """Kept blocks of the whole grid in raster order.

    Args:
        frames: f, number of frames.
        rule: the bands.
        rows: what a column's filling is measured against: ``"frame"`` the rows of the query frame inside the block,
            ``"block"`` all rows of the block, as the published code does; ``"published"`` is that code to the letter:
            every pair of frames is cut to ``ceil(s / B)`` blocks a side, which loses the last rows and columns of
            frames that do not begin at a block. It needs ``frames * s`` to be a multiple of B.
        cover: ``"most"`` keeps well filled blocks; ``"any"`` keeps every block with a wanted pair (denser, loses none).

    Returns:
        bool (M, M) with ``M = ceil(frames * s / B)``. With ``rows="frame"`` the diagonal is always kept.
    """
    s, block = rule.frame_tokens, rule.block
    blocks = -(-frames * s // block)
    mask = np.zeros((blocks, blocks), dtype=bool)
    patterns: dict[tuple[int, int, int], np.ndarray] = {}
    for i in range(frames):
        row, row_shift = divmod(i * s, block)
        for j in range(frames):
            width = rule.width(i, j)
            if width is None:
                continue
            column, column_shift = divmod(j * s, block)
            key = (width, row_shift, column_shift)
            if key not in patterns:
                patterns[key] = _pattern(s, block, width, row_shift, column_shift, rows, cover)
            found = patterns[key]
            mask[row : row + found.shape[0], column : column + found.shape[1]] |= found
    if rows == "frame":
        np.fill_diagonal(mask, True)
    return mask


def wanted_mask(frames: int, rule: BandRule) -> np.ndarray:
    """The bands before shrinking, as a bool (n, n) array of token pairs. O(n^2) memory: for tests and pictures."""
    s = rule.frame_tokens
    offset = np.abs(np.arange(s)[:, None] - np.arange(s)[None, :])
    mask = np.zeros((frames, s, frames, s), dtype=bool)
    for i in range(frames):
        for j in range(frames):
            width = rule.width(i, j)
            if width is not None:
                mask[i, :, j, :] = offset <= width
    return mask.reshape(frames * s, frames * s)


def paper_mask(frames: int, frame_tokens: int, sink: bool) -> np.ndarray:
    """Eq. 4 of the paper at token level, which its code replaces by the bands above. O(n^2) memory: for comparison."""
    s = frame_tokens
    position = np.arange(s)
    gap = np.abs(position[:, None] - position[None, :])
    mask = np.zeros((frames, s, frames, s), dtype=bool)
    for i in range(frames):
        for j in range(frames):
            distance = abs(i - j)
            power = 1 << (max(distance, 1).bit_length() - 1)
            if power <= s:
                mask[i, :, j, :] = gap + 1 <= s / power
            if distance % -(-power // s) == 0:
                mask[i, :, j, :] |= gap == 0
            if sink and j == 0:
                mask[i, :, j, :] = True
    return mask.reshape(frames * s, frames * s)
