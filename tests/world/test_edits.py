"""Edits with a known right answer: the truth is judged right, the source wrong, and what should stay is the same."""

from dataclasses import replace

import numpy as np
import pytest

from genkit.errors import UsageError
from genkit.world import edits
from genkit.world.edits.regions import covers
from genkit.world.picture_scene import picture_split

PICTURES, CLIPS = 10, 2


def _draw(kind, count=PICTURES, seed=3, **more):
    rng = np.random.default_rng(seed)
    return [edits.draw_picture_edit(kind, rng, **more) for _ in range(count)]


@pytest.fixture(scope="module")
def pictures():
    return {kind: _draw(kind) for kind in edits.PICTURE_KINDS}


@pytest.fixture(scope="module")
def clips():
    rng = np.random.default_rng(3)
    return {kind: [edits.draw_clip_edit(kind, rng, frames=13) for _ in range(CLIPS)] for kind in edits.CLIP_KINDS}


def test_the_truth_is_right_and_the_source_is_wrong_in_99_of_100_cases(pictures):
    told = [edits.judge_edit(case, case.target)["right"] for cases in pictures.values() for case in cases]
    assert np.mean(told) >= 0.99
    for cases in pictures.values():
        assert not any(edits.judge_edit(case, case.source)["reached"] for case in cases)


def test_the_truth_of_clips_is_right_and_their_source_is_wrong(clips):
    for cases in clips.values():
        assert all(edits.judge_edit(case, case.target)["right"] for case in cases)
        assert not any(edits.judge_edit(case, case.source)["reached"] for case in cases)


def test_pixels_that_should_stay_are_those_of_the_source_in_the_truth(pictures, clips):
    for kind, cases in (*pictures.items(), *clips.items()):
        for case in cases:
            assert case.stay.shape == case.source.shape[:-1] and case.stay.dtype == bool
            assert edits.psnr_of_stay(case, case.target) == 100.0
            assert case.stay.any() and not case.stay.all(), kind
            assert (case.source != case.target)[~case.stay].any()


@pytest.mark.parametrize("kind", edits.PICTURE_KINDS)
def test_prompts_differ_in_what_is_edited_and_the_phrase_names_it(pictures, kind):
    for case in pictures[kind]:
        before, after = case.source_prompt.split(), case.target_prompt.split()
        assert before != after
        named = case.source_prompt if kind == "remove" else case.target_prompt
        assert case.phrase in named
        if kind in ("colour", "shape", "background"):
            assert len(before) == len(after)
            assert sum(one != other for one, other in zip(before, after, strict=True)) <= 2  # a and an


@pytest.mark.parametrize("kind", edits.PICTURE_KINDS)
def test_the_same_seed_gives_the_same_cases(kind, pictures):
    again = _draw(kind, 2)
    for one, other in zip(again, pictures[kind][:2], strict=True):
        assert one.target_prompt == other.target_prompt
        assert np.array_equal(one.source, other.source) and np.array_equal(one.target, other.target)


@pytest.mark.parametrize("split", ["train", "held_out_pair"])
def test_the_target_is_of_the_split_that_was_asked_for(split):
    assert {picture_split(case.after) for case in _draw("colour", 3, split=split)} == {split}


def test_an_object_elsewhere_is_not_kept(pictures):
    case = next(case for case in pictures["colour"] if len(case.after.actors) == 1)
    far = 12 if case.placement.x[0] < 64 else -12
    moved = np.roll(case.target, far, axis=1)
    told = edits.judge_edit(case, moved)
    assert told["reached"] and not told["kept"] and not told["right"] and not told["place"]


def test_a_second_change_is_not_kept(pictures):
    case = next(case for case in pictures["colour"] if case.before.background == "black")
    other = case.target.copy()
    other[(case.target == case.target[0, 0]).all(-1)] = (240, 240, 240)
    told = edits.judge_edit(case, other)
    assert not told["kept"] and not told["background"]


def test_an_addition_on_the_wrong_side_is_not_reached(pictures):
    case = next(case for case in pictures["add"] if case.after.relations[0][1] in ("left", "right"))
    told = edits.judge_edit(case, np.ascontiguousarray(case.target[:, ::-1]))
    assert not told["reached"]


def test_an_addition_counts_wherever_it_is_on_its_side(pictures):
    case = next(case for case in pictures["add"] if case.after.relations[0][1] in ("left", "right"))
    alpha = covers(case.after, case.placement.tracks, 1, 128, 128)[0] > 0
    rows = np.flatnonzero(alpha.any(1))
    down = 6 if 128 - rows[-1] > 8 else -6
    other = case.source.copy()
    shifted = np.roll(alpha, down, axis=0)
    other[shifted] = np.roll(case.target, down, axis=0)[shifted]
    assert edits.judge_edit(case, other)["reached"]


def test_noise_and_a_blank_are_judged_wrong(pictures):
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    for cases in pictures.values():
        for wrong in (noise, np.full_like(noise, 128)):
            assert not edits.judge_edit(cases[0], wrong)["right"]


def test_psnr_is_of_the_pixels_that_should_stay_alone(pictures):
    case = pictures["colour"][0]
    inside = case.source.copy()
    inside[~case.stay] = 0
    assert edits.psnr_of_stay(case, inside) == 100.0
    shifted = replace(case, source=np.full_like(case.source, 100))
    assert edits.psnr_of_stay(shifted, np.full_like(case.source, 110)) == pytest.approx(20 * np.log10(25.5))


@pytest.mark.parametrize("kind", edits.FILL_KINDS)
def test_fills_the_truth_is_right_the_source_is_wrong_and_one_pixel_outside_tells(kind):
    rng = np.random.default_rng(5)
    for case in [edits.draw_fill(kind, rng) for _ in range(PICTURES)]:
        assert edits.judge_fill(case, case.target)["right"]
        told = edits.judge_fill(case, case.source)
        assert told["outside"] and not told["appears"]
        assert np.array_equal(case.source[~case.mask], case.target[~case.mask])
        assert case.phrase in case.prompt and case.phrase in case.whole_prompt
        off = case.target.copy()
        row, column = np.argwhere(~case.mask)[0]
        off[row, column, 0] ^= 1
        assert not edits.judge_fill(case, off)["outside"] and not edits.judge_fill(case, off)["right"]


def test_styles_the_truth_is_right_the_content_is_wrong_and_the_style_itself_has_no_distance():
    rng = np.random.default_rng(5)
    pairs = [edits.draw_style_pair(rng) for _ in range(PICTURES // 2)]
    told = [edits.judge_style(pair, pair.target) for pair in pairs]
    assert all(each["right"] for each in told)
    assert min(each["moved"] for each in told) > 0.7
    for pair in pairs:
        assert edits.judge_style(pair, pair.content)["moved"] == 0.0
        assert edits.style_distance(pair.style, pair.style) == 0.0
        assert not edits.judge_style(pair, pair.style)["right"] or pair.after.actors[0].shape in pair.style_prompt


def test_style_distance_knows_texture_from_colour():
    rng = np.random.default_rng(0)
    case = next(
        case
        for case in (edits.draw_picture_edit("texture", rng) for _ in range(40))
        if {case.before.actors[case.actor].texture, case.after.actors[case.actor].texture} == {"striped", "dotted"}
    )
    assert edits.style_distance(case.source, case.target) > 0.5


def test_subjects_agree_with_themselves_and_not_with_others():
    rng = np.random.default_rng(2)
    case = edits.draw_subject_set(rng)
    look = case.asked[0]
    assert case.looks[0] in case.said[0] and case.subjects[0] in case.prompts[0]
    assert look["texture"] in case.looks[0] and look["texture"] not in case.prompts[0]
    drawn = replace(edits.draw_picture_edit("colour", np.random.default_rng(9), actors=1).after, background="white")
    sets = {"described": [], "plain": [], "others": []}
    for number, ground in enumerate(case.backgrounds):
        other = next(name for name in ["red", "yellow", "orange", "pink"][number:] if name != look["colour"])
        for name, changes in (("described", {}), ("plain", {"texture": "plain"}), ("others", {"colour": other})):
            actor = replace(drawn.actors[0], **{**look, "size": "medium", **changes})
            sets[name].append(_render(replace(drawn, actors=(actor,), background=ground, cell=None)))
    described, plain, others = (edits.judge_subjects(case, outputs) for outputs in sets.values())
    assert described["look"] == described["same"] == described["asked"] == 1.0
    assert plain["look"] == 0.0 and plain["same"] == 1.0 and plain["asked"] == 1.0
    assert others["look"] == 0.0 and others["shape"] == 1.0 and others["asked"] == 0.0 and others["same"] < 1.0


def _render(scene):
    from genkit.world.picture_render import render_picture
    from genkit.world.picture_scene import place

    return render_picture(scene, place(scene, 128, 128, np.random.default_rng(1)), 128, 128)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda rng: edits.draw_picture_edit("mood", rng), "colour, shape, texture"),
        (lambda rng: edits.draw_picture_edit("add", rng, actors=2), "'add'"),
        (lambda rng: edits.draw_clip_edit("texture", rng), "colour, shape, background"),
        (lambda rng: edits.draw_fill("paint", rng), "fill, swap"),
        (lambda rng: edits.draw_subject_set(rng, 3), "1, 2"),
    ],
)
def test_wrong_kinds_are_refused_with_the_right_ones(call, words):
    with pytest.raises(UsageError, match=words):
        call(np.random.default_rng(0))
