"""Captions without the object, pictures of it, and its boxes."""

from __future__ import annotations

import numpy as np
import pytest

from genkit.world.caption import words
from genkit.world.judge import judge_clip
from genkit.world.picture_caption import picture_words
from genkit.world.picture_judge import judge_picture
from genkit.world.picture_scene import Picture, PictureActor, draw_picture
from genkit.world.picture_subject import draw_picture_subject, picture_subject_caption
from genkit.world.render import render_clip
from genkit.world.scene import Actor, Scene, draw_scene, lay_out
from genkit.world.subject import actor_boxes, draw_subject_picture, subject_caption
from genkit.world.vocabulary import BACKGROUNDS, COLOURS, SHAPE_WORDS


def test_captions_say_everything_but_the_object():
    rng = np.random.default_rng(0)
    known = set(words())
    scene = Scene((Actor("red", "cross", "big", "up_left"),), "gray")
    assert subject_caption(scene) == "moves up and left on a gray background"
    assert subject_caption(scene, picture=True) == "on a gray background"
    told = {word for options in SHAPE_WORDS.values() for word in options} | (set(COLOURS) - set(BACKGROUNDS))
    seen = set()
    for _ in range(60):
        text = subject_caption(scene, rng)
        found = set(text.split())
        assert found <= known and not found & told and "gray" in found and "up" in " ".join(found)
        seen.add(text)
    assert len(seen) > 6


@pytest.mark.parametrize("seed", range(6))
def test_the_picture_shows_the_object_on_another_background(seed):
    rng = np.random.default_rng(seed)
    scene = draw_scene(rng, actors=1)
    picture = draw_subject_picture(scene, rng)
    assert picture.shape == (96, 96, 3) and picture.dtype == np.uint8
    verdict = judge_clip(picture[None])
    assert verdict.background not in (scene.background, "unclear") and len(verdict.actors) == 1
    assert (verdict.actors[0].colour, verdict.actors[0].shape) == (scene.actors[0].colour, scene.actors[0].shape)


@pytest.mark.parametrize("shape", ["circle", "square", "triangle", "cross"])
@pytest.mark.parametrize("motion", ["right", "grow", "spin"])
def test_boxes_hold_the_object_and_little_more(shape, motion):
    if (shape, motion) == ("circle", "spin"):
        shape = "square"
    scene = Scene((Actor("red", shape, "medium", motion),), "black")
    tracks = lay_out(scene, 9, 128, 128, np.random.default_rng(3))
    clip = render_clip(scene, tracks, 128, 128)
    boxes = actor_boxes(scene, tracks, 128, 128)
    assert len(boxes) == 9
    for frame, (left, top, right, bottom) in zip(clip, boxes, strict=True):
        rows, columns = np.nonzero(frame[..., 0] > 120)
        assert left * 128 - 1 <= columns.min() and columns.max() <= right * 128
        assert top * 128 - 1 <= rows.min() and rows.max() <= bottom * 128
        slack = 3 if motion != "spin" else 40
        assert columns.min() - left * 128 < slack and bottom * 128 - rows.max() < slack


def test_captions_of_pictures_say_background_and_place():
    actor = PictureActor("red", "cross", "big", texture="dotted")
    assert picture_subject_caption(Picture((actor,), "gray")) == "on a gray background"
    placed = Picture((actor,), "gray", cell=("left", "top"))
    assert picture_subject_caption(placed) == "at the top left on a gray background"
    rng, known = np.random.default_rng(0), set(picture_words())
    texts = {picture_subject_caption(placed, rng) for _ in range(40)}
    assert len(texts) > 1 and all(set(text.split()) <= known and "left" in text for text in texts)


@pytest.mark.parametrize("seed", range(12))
def test_the_reference_of_a_picture_shows_the_same_object(seed):
    rng = np.random.default_rng(seed)
    picture, _ = draw_picture(rng, 64, 64, actors=1)
    verdict = judge_picture(draw_picture_subject(picture, rng, 64, 64))
    seen, actor = verdict.actors[0], picture.actors[0]
    assert (seen.colour, seen.shape, seen.size, seen.texture) == (actor.colour, actor.shape, actor.size, actor.texture)
    if actor.texture == "plain":
        assert verdict.background != picture.background
    else:  # black ink on white only
        assert (verdict.background == "white") == (picture.background == "white")
