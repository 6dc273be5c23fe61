"""The judge of given frames: what is kept is kept, what moves on goes on, and what does not is told."""

import numpy as np
import pytest

from genkit.evaluation.given_frames import draw_begun, judge_continued, judge_kept
from genkit.world.judge import judge_clip, score


def test_clips_are_the_same_for_a_seed_and_go_on_behind_their_beginning():
    clips = draw_begun(5, 3, 41, 21)
    assert all(np.array_equal(a.clip, b.clip) for a, b in zip(clips, draw_begun(5, 3, 41, 21), strict=True))
    for begun in clips:
        assert begun.clip.shape == (41, 128, 128, 3) and len(begun.source) == 21
        assert begun.scene.actors[0].motion != "still"
        assert score(begun.scene, judge_clip(begun.clip[21:]))["motion"]
        found = judge_continued(begun, begun.clip)
        assert found["goes on"] == found["motion"] == found["look"] == 1 and found.get("smooth", 1) == 1


def test_a_clip_that_stops_or_changes_does_not_go_on():
    (begun,) = draw_begun(1, 4, 41, 21)
    stopped = np.concatenate([begun.source, np.repeat(begun.source[-1:], 20, 0)])
    assert judge_continued(begun, stopped)["motion"] == 0
    turned = np.concatenate([begun.source, begun.source[::-1][1:21]])
    assert judge_continued(begun, turned)["goes on"] == 0 or begun.scene.actors[0].motion in ("bounce", "spin")
    cut = np.concatenate([begun.source, 255 - begun.clip[21:]])
    found = judge_continued(begun, cut)
    assert found["look"] == found["smooth"] == 0 and found["jump"] > 5


@pytest.mark.parametrize("shift, kept", [(0, 1), (2, 1), (4, 0)])
def test_a_frame_is_kept_where_the_object_stays_in_its_place(shift, kept):
    for begun in draw_begun(3, 5, 25, 25):
        frame = begun.clip[0]
        moved = np.roll(frame, shift, axis=1)
        found = judge_kept(frame, moved)
        assert found["place"] == found["kept"] == kept and found["object"] == found["colour"] == 1
        assert (found["psnr"] >= 100) == (shift == 0)
        assert judge_kept(frame, np.full_like(frame, 128))["kept"] == 0
        assert judge_kept(frame, 255 - frame)["colour"] == 0
