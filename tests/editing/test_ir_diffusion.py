"""IR-Diffusion on tiny models of the real classes: subjects follow their portraits, scenes their rehearsal."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import genkit
from genkit.control import Control, Mix, Rows, Tokens
from genkit.editing.ir_diffusion import IRDiffusionPipeline
from genkit.editing.ir_diffusion.cast import keyword_of
from genkit.errors import UnsupportedError, UsageError

USUAL = {"height": 16, "width": 16, "num_inference_steps": 2, "guidance_scale": 3.0}
TWO, SCENE = ["a cat", "a dog"], "a cat and a dog"


@pytest.fixture(scope="module")
def tiny(tiny_sd):
    return IRDiffusionPipeline.from_pipe(genkit.load(tiny_sd))


def _make(pipe, subjects, scenes, **more):
    return pipe(subjects, scenes, generator=torch.Generator().manual_seed(0), **{**USUAL, **more})


def test_one_picture_a_scene_and_the_portraits_are_those_of_a_run_without_control(tiny):
    boxes = {(None, 0): (0, 0, 0.5, 1), (None, 1): (0.5, 0, 1, 1)}
    made = _make(tiny, TWO, [SCENE, "a dog and a cat"], boxes=boxes)
    assert made.frames.shape == (2, 16, 16, 3) and made.portraits.shape == (2, 16, 16, 3)
    plain = _make(tiny, TWO, [SCENE, "a dog and a cat"], boxes=boxes, isolation=False, reposition=False, text_share=0.0)
    assert np.array_equal(plain.frames, plain.rehearsal) and np.array_equal(made.rehearsal, plain.rehearsal)
    assert np.array_equal(made.portraits, plain.portraits) and not np.array_equal(made.frames, plain.frames)


@pytest.mark.parametrize("part", ["isolation", "reposition", "text_share"])
def test_every_part_changes_a_scene_alone(tiny, part):
    off = {"isolation": False, "reposition": False, "text_share": 0.0}
    boxes = {(None, 0): (0, 0, 0.5, 1), (None, 1): (0.5, 0, 1, 1)}
    made = _make(tiny, TWO, [SCENE], boxes=boxes, **{**off, part: 0.9 if part == "text_share" else True})
    assert not np.array_equal(made.frames, made.rehearsal)


def test_the_rehearsal_tells_disjoint_masks(tiny):
    made = _make(tiny, TWO, [SCENE])
    first, second = made.masks[0, 0], made.masks[0, 1]
    assert first.any() and not (first & second).any() and made.masks[None, 0].any() and first.shape == (8, 8)


def test_the_same_seed_gives_the_same_pictures_and_boxes_count_from_the_scene(tiny):
    boxes = {(None, 0): (0, 0, 1, 0.5), (0, 0): (0, 0.5, 1, 1)}
    one, other = (_make(tiny, ["a cat"], ["a cat in a wood"], boxes=boxes, eta=0.5) for _ in range(2))
    assert np.array_equal(one.frames, other.frames)
    assert one.masks[0, 0][4:].all() and not one.masks[0, 0][:4].any()


@pytest.mark.parametrize(("scale", "boxed"), [(1.0, True), (3.0, False)])
def test_joint_attention_keeps_subjects_apart_too(tiny_flux, scale, boxed):
    flux = IRDiffusionPipeline.from_pipe(genkit.load(tiny_flux))
    boxes = {(None, 0): (0, 0, 0.5, 1), (None, 1): (0.5, 0, 1, 1)} if boxed else {}
    made = _make(
        flux,
        ["a circle", "a square"],
        ["a circle and a square"],
        boxes=boxes,
        height=32,
        width=32,
        guidance_scale=scale,
    )
    assert made.frames.shape == (1, 32, 32, 3) and not np.array_equal(made.frames, made.rehearsal)


def test_subjects_come_where_the_rehearsal_has_them_before_anything_acts_and_boxes_act_at_once(tiny):
    """Controlled from the first step on, subjects of a scene were drawn beside their masks."""
    clean = []
    told = dict(num_inference_steps=3, progress=lambda done, total, latents: clean.append(latents.clone()))
    made = _make(tiny, TWO, [SCENE], **told)
    rehearsal, run = clean[:3], clean[3:]
    assert torch.equal(rehearsal[0], run[0]) and not torch.equal(rehearsal[2], run[2])
    again = _make(tiny, TWO, [SCENE], start=1.0, masks=made.masks)
    assert np.array_equal(again.frames, _make(tiny, TWO, [SCENE]).rehearsal)
    for more in ({"boxes": {(None, 0): (0, 0, 0.5, 1)}}, {"start": 0.0}):
        clean.clear()
        _make(tiny, TWO, [SCENE], **told, **more)
        assert not torch.equal(clean[0], clean[3])
    single = _make(tiny, TWO, [SCENE], num_inference_steps=1)
    assert not np.array_equal(single.frames, single.rehearsal)


def test_scenes_may_leave_a_subject_out_and_that_is_told(tiny):
    made = _make(tiny, TWO, ["a cat in a wood"])
    assert any("does not name 'dog'" in line for line in made.told)


def test_what_cannot_be_made_is_refused_before_anything_runs(tiny):
    for subjects, scenes, more, said in (
        ([], ["a cat"], {}, "subjects"),
        (["a cat"], [], {}, "scenes"),
        ("a cat", ["a cat"], {}, "subjects"),
        (["a cat"], ["a dog in a wood"], {}, "does not name 'cat'"),
        (["a cat"], ["a cat"], {"keywords": ["tiger"]}, "does not name 'tiger'"),
        (["a cat"], ["a cat"], {"keywords": ["cat", "dog"]}, "2 keywords for 1"),
        (["a cat"], ["a cat"], {"boxes": {(None, 0): (0.5, 0, 0.2, 1)}}, "left < right"),
        (["a cat"], ["a cat"], {"boxes": {(None, 1): (0, 0, 1, 1)}}, "subject of a box"),
        (["a cat"], ["a cat"], {"boxes": {(1, 0): (0, 0, 1, 1)}}, "scene of a box"),
        (["a cat"], ["a cat"], {"dropout": 1.5}, "dropout"),
        (["a cat"], ["a cat"], {"text_share": -1.0}, "text_share"),
        (["a cat"], ["a cat"], {"start": 2.0}, "start"),
    ):
        with pytest.raises(UsageError, match=said):
            _make(tiny, subjects, scenes, **more)


def test_videos_are_refused(tiny_wan):
    with pytest.raises(UnsupportedError, match="makes videos"):
        IRDiffusionPipeline.from_pipe(genkit.load(tiny_wan))


def test_keywords_are_descriptions_without_an_article():
    assert [keyword_of(text) for text in ("a red  circle", "The Cat", "apple")] == ["red circle", "Cat", "apple"]


def test_a_mix_reads_another_prompt_inside_its_region_only(tiny):
    unet, texts = tiny.pipe.unet, tiny.model.texts(["a cat", "a dog"])
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).expand(2, -1, -1, -1)
    rows, seen = Rows.of("cat", "dog", guided=False), {}
    layer = next(m for n, m in unet.named_modules() if n.endswith("attn2"))

    def answer(share, queries=None):
        hook = layer.register_forward_hook(lambda module, args, out: seen.update(out=out))
        with Control(unet, [Mix(of="dog", into="cat", share=share, queries=queries)]) as control, torch.no_grad():
            control.begin(step=0, steps=1, rows=rows)
            tiny.model.predict(latents, 0.5, texts)
        hook.remove()
        return seen["out"]

    half = torch.zeros(8, 8)
    half[:, :4] = 1
    none, whole, part = answer(0.0), answer(1.0), answer(1.0, Tokens(half))
    inside = half.flatten().bool()
    torch.testing.assert_close(whole[0], whole[1])  # the same latents, and the other's text alone
    torch.testing.assert_close(part[0, inside], whole[0, inside])
    torch.testing.assert_close(part[0, ~inside], none[0, ~inside])
    torch.testing.assert_close(answer(0.5)[0], (none[0] + whole[0]) / 2)


def test_masks_of_an_earlier_run_take_the_place_of_the_rehearsal(tiny):
    def call(**more):
        return tiny(
            ["a red circle"], ["a red circle on blue"], height=16, width=16, num_inference_steps=2,
            generator=torch.Generator().manual_seed(0), **more,
        )  # fmt: skip

    steps = []
    first = call()
    again = call(masks=first.masks, progress=lambda done, total, latents: steps.append((done, total)))
    assert np.array_equal(first.frames, again.frames) and again.rehearsal is None and steps == [(1, 2), (2, 2)]
    for masks, words in (
        ({}, "no mask of the portrait 'a red circle'"),
        ({**first.masks, (1, 0): first.masks[0, 0]}, r"place of a mask: got \(1, 0\)"),
        ({**first.masks, (0, 0): first.masks[0, 0][1:]}, "size of a mask"),
    ):
        with pytest.raises(UsageError, match=words):
            call(masks=masks)
