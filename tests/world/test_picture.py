"""Still pictures: scenes that have room, captions that name them, and the judge against truth and corruption."""

from __future__ import annotations

import numpy as np
import pytest

from genkit import world
from genkit.errors import UsageError
from genkit.world.picture_render import PITCH, ink_of
from genkit.world.picture_scene import RELATIONS, TEXTURES
from genkit.world.vocabulary import BACKGROUNDS, COLOURS, HELD_OUT_PAIRS


def pictures(count: int, size: int, seed: int = 0, split: str = "any", **options):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        picture, placement = world.draw_picture(rng, size, size, split, **options)
        yield picture, placement, world.render_picture(picture, placement, size, size)


def one(texture: str = "plain", size: str = "medium", **more):
    picture = world.Picture((world.PictureActor("red", "square", size, texture=texture),), "gray", **more)
    spot = np.array([48.0], dtype=np.float32)
    return picture, world.render_picture(picture, world.Placement(spot, spot, spot * 0 + 18), 96, 96)


@pytest.mark.parametrize(("size", "count"), [(64, 40), (96, 50), (128, 90)])
def test_ground_truth_is_read_right(size, count):
    results = [
        world.score_picture(picture, world.judge_picture(image)) for picture, _, image in pictures(count, size, 3)
    ]
    assert np.mean([value for result in results for value in result.values()]) >= 0.99
    assert {len(result) for result in results} == {7, 8}


@pytest.mark.parametrize("split", ["train", "held_out_tuple", "held_out_pair"])
def test_splits_are_what_they_say(split):
    for picture, _, _ in pictures(12, 128, 1, split):
        assert world.picture_split(picture) == split
        held = any((actor.colour, actor.shape) in HELD_OUT_PAIRS for actor in picture.actors)
        assert held == (split == "held_out_pair")


def test_a_relation_and_its_opposite_share_a_split():
    for picture, _, _ in pictures(40, 128, 5, actors=2):
        for first, relation, second in picture.relations:
            turned = {"left": "right", "right": "left", "above": "below", "below": "above"}[relation]
            other = world.Picture(picture.actors, picture.background, ((second, turned, first),))
            assert world.picture_split(other) == world.picture_split(picture)


def test_objects_stay_inside_and_relations_hold():
    seen = set()
    for picture, placement, _ in pictures(60, 128, 2):
        assert placement.x.min() > 10 and placement.x.max() < 118
        for first, relation, second in picture.relations:
            seen.add(relation)
            step = np.array(RELATIONS[relation])
            way = np.array([placement.x[first] - placement.x[second], placement.y[first] - placement.y[second]])
            assert way @ step > 20
    assert seen == set(RELATIONS)


def test_captions_use_known_words_and_name_everything_that_is_canonical():
    known, rng = set(world.picture_words()), np.random.default_rng(0)
    for picture, _, _ in pictures(60, 128, 4):
        canonical = world.picture_caption(picture)
        assert picture.background in canonical
        for actor in picture.actors:
            assert actor.colour in canonical and (actor.texture == "plain" or actor.texture in canonical)
        for text in (canonical, world.picture_caption(picture, rng)):
            words = text.replace(",", "").split()
            assert set(words) <= known and len(words) <= 48


def test_the_issue_prompt_is_a_caption_of_this_world():
    actors = (
        world.PictureActor("blue", "square", texture="striped"),
        world.PictureActor("red", "circle", "small"),
    )
    picture = world.Picture(actors, "white", ((0, "left", 1),))
    rng = np.random.default_rng(0)
    found = {world.picture_caption(picture, rng) for _ in range(900)}
    assert "a striped blue square left of a small red circle" in found
    assert world.picture_split(picture) in ("train", "held_out_tuple")


@pytest.mark.parametrize("texture", TEXTURES)
@pytest.mark.parametrize("background", BACKGROUNDS)
def test_every_texture_is_read_on_every_background(texture, background):
    colours = [name for name in COLOURS if name != background]
    spot = np.array([40.0], dtype=np.float32)
    for colour in colours:
        picture = world.Picture((world.PictureActor(colour, "circle", "medium", texture=texture),), background)
        image = world.render_picture(picture, world.Placement(spot, spot + 1.3, spot * 0 + 17.5), 96, 96)
        assert world.score_picture(picture, world.judge_picture(image))["all"], (colour, background)


def test_wrong_answers_are_not_accepted():
    picture, image = one("striped")
    verdict = world.judge_picture(image)
    for change in ({"texture": "dotted"}, {"size": "big"}, {"shape": "circle"}, {"colour": "pink"}):
        facts = {"colour": "red", "shape": "square", "size": "medium", "texture": "striped"} | change
        asked = world.Picture((world.PictureActor(**facts),), "gray")
        result = world.score_picture(asked, verdict)
        assert not result[next(iter(change))] and not result["all"]
    elsewhere = world.Picture(picture.actors, "gray", cell=("left", "top"))
    assert not world.score_picture(elsewhere, verdict)["place"]
    assert world.score_picture(picture, verdict)["all"]


def test_corrupted_pictures_are_unclear_rather_than_guessed():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)
    assert world.judge_picture(noise).background == "unclear"
    _, image = one("dotted")
    blurred = image.astype(np.float32)
    for _ in range(24):
        blurred = (blurred + sum(np.roll(blurred, step, axis) for axis in (0, 1) for step in (1, -1))) / 5
    seen = world.judge_picture(blurred.astype(np.uint8)).actors[0]
    assert seen.texture != "dotted" and "unclear" in (seen.texture, seen.colour, seen.shape)
    melted = image.copy()
    melted[30:66, 48:66] = 0.5 * melted[30:66, 48:66] + 0.5 * np.array([45, 85, 225])
    assert "unclear" in (world.judge_picture(melted).actors[0].colour, world.judge_picture(melted).actors[0].texture)


def test_a_cut_object_and_a_second_one_are_counted():
    picture, image = one()
    assert len(world.judge_picture(image).actors) == 1
    cut = image.copy()
    cut[:, 45:51] = image[0, 0]
    assert len(world.judge_picture(cut).actors) == 2
    assert not world.score_picture(picture, world.judge_picture(cut))["count"]


def test_mild_noise_does_not_change_the_reading():
    rng = np.random.default_rng(1)
    right = []
    for picture, _, image in pictures(25, 128, 8):
        noisy = np.clip(image + rng.normal(0, 5, image.shape), 0, 255).astype(np.uint8)
        right.append(world.score_picture(picture, world.judge_picture(noisy))["all"])
    assert np.mean(right) >= 0.95


def test_relations_between_are_unclear():
    part = world.judge_picture(one()[1]).actors[0]
    shifted = type(part)(**{**part.__dict__, "x": part.x + 30, "y": part.y + 28})
    assert world.seen_relation(part, shifted) == "unclear"
    assert world.seen_relation(part, type(part)(**{**part.__dict__, "x": part.x + 30})) == "left"


def test_ink_contrasts_with_every_colour_it_meets():
    for background in BACKGROUNDS:
        for name, colour in {**COLOURS, background: BACKGROUNDS[background]}.items():
            assert np.linalg.norm(ink_of(background) - np.array(colour)) > 80, (background, name)
    assert PITCH == 8


def test_impossible_pictures_are_refused():
    actor = world.PictureActor("red", "square")
    with pytest.raises(UsageError, match="texture"):
        world.PictureActor("red", "square", texture="woolly")
    with pytest.raises(UsageError, match="differ in colour"):
        world.Picture((actor, actor), "gray")
    with pytest.raises(UsageError, match="one to three"):
        world.Picture((), "gray")
    with pytest.raises(UsageError, match="relation"):
        world.Picture((actor,), "gray", ((0, "behind", 0),))
    with pytest.raises(UsageError, match="1 to 1 actors"):
        world.draw_picture(np.random.default_rng(0), 64, 64, actors=2)
    with pytest.raises(UsageError, match="uint8"):
        world.judge_picture(np.zeros((8, 8, 3)))
