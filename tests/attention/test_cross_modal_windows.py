"""Which sounds a frame sees and which frames a sound: windows by time and by index, on the clocks of real models."""

from __future__ import annotations

import itertools

import pytest
import torch
from cross_modal_helpers import audio_layout, ltx, ranges, uniform, video_layout, visible

from genkit.attention.cross_modal_context import windows
from genkit.errors import UsageError
from genkit.layout import Segment, TokenLayout


def test_windows_by_index_of_five_frames_and_forty_sounds():
    video, audio = uniform(5, 40)
    rule = windows.audio_of_frames_by_index(video, audio, 3)
    assert ranges(rule) == [(0, 16), (0, 24), (8, 32), (16, 40), (24, 40)]


@pytest.mark.parametrize(("c", "w"), itertools.product((5, 7, 8), (1, 3, 5)))
def test_time_and_index_form_agree_on_uniform_clocks(c, w):
    """All nine cases of the card, where every window edge touches an interval's edge."""
    video, audio = uniform(16, 16 * c)
    by_time = visible(windows.audio_of_frames(video, audio, w))
    assert torch.equal(by_time, visible(windows.audio_of_frames_by_index(video, audio, w)))
    back = visible(windows.frames_of_audio(audio, video, 1))
    assert torch.equal(back, visible(windows.frames_of_audio_by_index(audio, video, 1)))


def test_windows_and_densities_of_ltx2s_clocks():
    video, audio = ltx()
    found = ranges(windows.audio_of_frames(video, audio, 3))
    assert [found[frame] for frame in (0, 1, 2, 15)] == [(0, 11), (0, 19), (1, 27), (110, 126)]
    table = visible(windows.audio_of_frames(video, audio, 3))
    assert table.any(0).all() and round(table.float().mean().item(), 5) == 0.18998
    narrow = ranges(windows.audio_of_frames(video, audio, 1))
    assert narrow[:3] == [(0, 2), (1, 11), (10, 19)] and narrow[-1] == (118, 126)
    assert round(visible(windows.audio_of_frames(video, audio, 1)).float().mean().item(), 5) == 0.06994
    index = visible(windows.audio_of_frames_by_index(video, audio, 3))
    assert not index[:, -7:].any() and round(index.float().mean().item(), 3) == 0.163
    assert not visible(windows.audio_of_frames_by_index(video, audio, 1))[:, -14:].any()


def test_every_audio_token_sees_the_frame_it_falls_in():
    video, audio = ltx(height=2, width=3)
    table = visible(windows.frames_of_audio(audio, video, 1))
    assert (table.sum(1) == 6).all()
    for token, (start, end) in enumerate(audio.intervals):
        seen = {video.intervals[i] for i in table[token].nonzero().flatten().tolist()}
        ((begin, stop),) = seen
        middle = (start + end) / 2
        assert begin <= middle < stop or (begin, stop) == video.intervals[-1]
    wrong = visible(windows.frames_of_audio_by_index(audio, video, 1)) != table
    assert int(wrong.any(1).sum()) == 52  # what counting gets wrong here
    wide = visible(windows.frames_of_audio(audio, video, 3)).sum(1)
    assert wide.max() == 18 and wide.min() >= 12


def on_borders(frames):
    """As many audio tokens as frames, whose middles are where frames begin."""
    video, _ = uniform(frames, frames)
    return video, audio_layout([((i - 0.5) / frames, (i + 0.5) / frames) for i in range(frames)])


@pytest.mark.parametrize("frames", [1, 3, 5])
@pytest.mark.parametrize("clocks", [on_borders(27), on_borders(10), uniform(9, 27), ltx(9, 27, 25), ltx(9, 40, 12.5)])
def test_an_audio_token_sees_its_own_frame_and_as_many_neighbours_as_asked(clocks, frames):
    """Also where its middle lies on the border of two frames, and at both ends of the clip."""
    video, audio = clocks
    table = visible(windows.frames_of_audio(audio, video, frames))
    starts = [start for start, _ in video.intervals]
    reach = (frames - 1) // 2
    for token, (start, end) in enumerate(audio.intervals):
        own = max(frame for frame, begin in enumerate(starts) if begin <= (start + end) / 2)
        wanted = range(max(own - reach, 0), min(own + reach, len(starts) - 1) + 1)
        assert table[token].nonzero().flatten().tolist() == list(wanted)


def test_windows_are_never_empty_and_appended_tokens_go_by_time():
    spans = [(0.0, 0.1), (0.1, 0.2), (0.2, 0.3)]
    video = video_layout(spans, 1, 2, extra=[(0.12, 0.13), (9.0, 9.1)])
    audio = audio_layout([(0.0, 0.1), (0.1, 0.2), (0.2, 0.3), (0.3, 0.4), (0.4, 0.5)])
    heard = visible(windows.audio_of_frames(video, audio, 1))
    assert heard[6].tolist() == heard[2].tolist() == [False, True, False, False, False]
    assert heard[7].tolist() == [False, False, False, False, True]  # far behind the end: the nearest
    seen = visible(windows.frames_of_audio(audio, video, 1))
    assert seen[1].nonzero().flatten().tolist() == [2, 3]
    assert seen[4].nonzero().flatten().tolist() == [4, 5]
    middle = audio_layout([(0.12, 0.13)])
    assert visible(windows.frames_of_audio(middle, video, 1))[0].nonzero().flatten().tolist() == [2, 3, 6]


def test_layouts_with_intervals_know_their_times():
    layout = audio_layout([(0.0, 0.5), (0.5, 1.5)])
    assert layout.times == (0.25, 1.0) and layout == audio_layout([(0.0, 0.5), (0.5, 1.5)])
    assert hash(layout) == hash(audio_layout([(0.0, 0.5), (0.5, 1.5)])) and "_hash" not in layout.__getstate__()
    with pytest.raises(UsageError, match="intervals"):
        TokenLayout((0, 0, 0), (Segment("audio", 3),), intervals=((0.0, 1.0),))
