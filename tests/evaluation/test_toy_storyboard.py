"""Storyboards that are drawn, and how their clips are judged: rendered scenes are right, a cut is a cut."""

import numpy as np
import pytest

from genkit.errors import UsageError
from genkit.evaluation.storyboard import border_jumps, draw_storyboards, judge_shots
from genkit.world.render import render_clip
from genkit.world.scene import lay_out
from genkit.world.vocabulary import DIRECTIONS


def rendered(scene, seed):
    rng = np.random.default_rng(seed)
    return render_clip(scene, lay_out(scene, 25, 128, 128, rng), 128, 128)


def test_storyboards_are_the_same_for_a_seed_and_leave_room_to_move():
    boards = draw_storyboards(20, seed=3)
    assert boards == draw_storyboards(20, seed=3) and boards != draw_storyboards(20, seed=4)
    for board in boards:
        actors = [scene.actors[0] for scene in board.scenes]
        assert len({(a.colour, a.shape, a.size) for a in actors}) == 1 and len(set(board.prompts)) == 3
        ways = [np.array(DIRECTIONS[actor.motion]) for actor in actors]
        assert all(int(a @ b) <= 0 for n, a in enumerate(ways) for b in ways[n + 1 :])


def test_rendered_shots_are_right_and_their_borders_are_cuts():
    (board,) = draw_storyboards(1, seed=5)
    clip = np.concatenate([rendered(scene, 0) for scene in board.scenes])
    found = judge_shots(board.scenes, clip, [(0, 25), (25, 50), (50, 75)])
    assert found["all"] == found["motion"] == found["kept"] == 1 and found["smooth"] == 0 and found["jump"] > 1.5
    other = judge_shots(board.scenes[::-1], clip, [(0, 25), (25, 50), (50, 75)])
    assert other["motion"] < 1 and other["colour"] == 1


def test_an_object_that_changes_is_not_kept():
    one, two = draw_storyboards(2, seed=6)
    clip = np.concatenate([rendered(one.scenes[0], 0), rendered(two.scenes[0], 0)])
    assert judge_shots((one.scenes[0], two.scenes[0]), clip, [(0, 25), (25, 50)])["kept"] == 0


def test_jumps_are_in_medians_of_the_other_differences():
    steady = np.zeros((20, 4, 4, 3), np.uint8) + np.arange(20, dtype=np.uint8)[:, None, None, None]
    assert border_jumps(steady, [10]) == [1.0]
    cut = steady.copy()
    cut[10:] += 6
    assert border_jumps(cut, [10]) == [7.0] and border_jumps(cut, [3]) == [1.0]


def test_spans_are_as_many_as_scenes():
    (board,) = draw_storyboards(1)
    with pytest.raises(UsageError, match="one for each of 3 scenes"):
        judge_shots(board.scenes, np.zeros((9, 64, 64, 3), np.uint8), [(0, 9)])
