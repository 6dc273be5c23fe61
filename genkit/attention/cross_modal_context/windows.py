"""Which tokens of the other modality a token may see: windows in time (or by index), as closed-form rules."""

from __future__ import annotations

from statistics import median

import torch

from genkit.errors import UnsupportedError
from genkit.kernels import WINDOW, Rule
from genkit.layout import TokenLayout

SLACK = 1e-4  # seconds; intervals that only touch do not overlap, and on uniform grids they touch at every edge


def frame_length(video: TokenLayout) -> float:
    """Median length in seconds of the frames of a video layout with intervals."""
    start, _ = video.grid_span
    spans = [video.intervals[start + frame * video.frame_tokens] for frame in range(video.grid[0])]
    return median(end - begin for begin, end in spans)


def audio_of_frames(video: TokenLayout, audio: TokenLayout, window: float) -> Rule:
    """Video tokens see the audio within their own frame's time and ``(window - 1) / 2`` frames to either side."""
    reach = (window - 1) / 2 * frame_length(video)
    spans = _times(video)
    return _overlap(spans[:, 0] - reach + SLACK, spans[:, 1] + reach - SLACK, spans, _times(audio), False)


def frames_of_audio(audio: TokenLayout, video: TokenLayout, frames: int) -> Rule:
    """Audio tokens see the frame that their middle lies in, and ``(frames - 1) / 2`` frames to either side.

    Neighbours are counted, not measured: a middle that lies on the border of two frames must not meet one more. Tokens
    appended to the video are seen by the time they take.
    """
    spans, keys = _times(audio), _times(video)
    middle = spans.mean(1)
    nearest = middle[:, None].expand(-1, 2)
    if frames == 1:
        return _overlap(middle, middle, nearest, keys, True)
    start, stop = video.grid_span
    starts, ends = keys[start : stop : video.frame_tokens].T.contiguous()
    own = (torch.searchsorted(starts, middle, right=True) - 1).clamp(min=0)
    first = (own - (frames - 1) // 2).clamp(min=0)
    last = (own + (frames - 1) // 2).clamp(max=len(starts) - 1)
    return _overlap(starts[first] + SLACK, ends[last] - SLACK, nearest, keys, False)


def audio_of_frames_by_index(video: TokenLayout, audio: TokenLayout, window: float) -> Rule:
    """As :func:`audio_of_frames` by counting tokens: the third-party form, which drifts on causal video codecs."""
    count, frames = audio.length, video.grid[0]
    each = max(1, count // frames)
    size = max(1, int(window * each))
    frame = torch.arange(video.length) // video.frame_tokens
    centre = each // 2 + each * frame
    low = (centre - size // 2).clamp(0, count - 1)
    high = torch.maximum((centre + size - size // 2).clamp(max=count), low + 1)
    return _rule(low[:, None], high[:, None], torch.arange(count)[:, None])


def frames_of_audio_by_index(audio: TokenLayout, video: TokenLayout, frames: int) -> Rule:
    """As :func:`frames_of_audio` by counting tokens."""
    count = video.grid[0]
    frame = (torch.arange(audio.length) * count // audio.length).clamp(max=count - 1)
    reach = (frames - 1) // 2
    places = torch.arange(video.length) // video.frame_tokens
    return _rule((frame - reach)[:, None], (frame + reach + 1)[:, None], places[:, None])


def _times(layout: TokenLayout) -> torch.Tensor:
    if layout.intervals is None:
        raise UnsupportedError("windows in time need the time of every token, which this layout lacks")
    return torch.tensor(layout.intervals, dtype=torch.float64)


def _overlap(low: torch.Tensor, high: torch.Tensor, spans: torch.Tensor, keys: torch.Tensor, instant: bool) -> Rule:
    """Queries see the keys [a, b) with ``b > low`` and ``a < high`` (``a <= high`` for an instant).

    Keys are placed by the rank of their start and by the rank of their end: two axes, on which any overlap is a box,
    also for appended tokens that lie inside another frame's time. A query that sees nothing gets the nearest keys.
    """
    starts, start_rank = keys[:, 0].unique(return_inverse=True)
    ends, end_rank = keys[:, 1].unique(return_inverse=True)
    places = torch.stack([start_rank, end_rank], 1)
    upper = torch.searchsorted(starts, high.contiguous(), right=instant)
    lower = torch.searchsorted(ends, low.contiguous(), right=True)
    q_lo = torch.stack([torch.zeros_like(lower), lower], 1)
    q_hi = torch.stack([upper, torch.full_like(upper, len(ends))], 1)
    distinct, which = places.unique(dim=0, return_inverse=True)
    times = torch.stack([starts[distinct[:, 0]], ends[distinct[:, 1]]], 1)
    boxes, box_of = torch.cat([q_lo, q_hi, spans.to(torch.float64)], 1).unique(dim=0, return_inverse=True)
    inside = (distinct[None] >= boxes[:, None, :2]) & (distinct[None] < boxes[:, None, 2:4])
    for row in (~inside.all(-1).any(-1)).nonzero().flatten().tolist():
        begin, end = boxes[row, 4], boxes[row, 5]
        apart = torch.maximum(times[:, 0] - end, begin - times[:, 1]).clamp(min=0)
        nearest = distinct[int(apart.argmin())]
        chosen = box_of == row
        q_lo[chosen], q_hi[chosen] = nearest, nearest + 1
    return _rule(q_lo, q_hi, places)


def _rule(low: torch.Tensor, high: torch.Tensor, places: torch.Tensor) -> Rule:
    kinds = torch.full((1, 1), WINDOW)
    return Rule(low, high, places, torch.zeros(len(low)), torch.zeros(len(places)), kinds)
