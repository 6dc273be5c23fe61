"""The gap in loss when two objects' words are exchanged: nothing for a deaf model, much for one that knows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from genkit import world
from genkit.training.data.pool import Pool, Sample
from genkit.training.data.world.clips import ClipSize, LatentPool, draw_apart
from genkit.training.data.world.pictures import PictureSize
from genkit.training.toys.image.model import ToyImage
from genkit.training.toys.shared.swap_gaps import (
    CLIP_KINDS,
    PICTURE_KINDS,
    captions_of,
    picture_errors,
    swap_gaps,
    swapped_pictures,
    swapped_scenes,
)
from genkit.training.toys.video.vae import build_video_vae


class Pairs(Pool):
    """Pictures of two objects, with random latents."""

    def encode(self, size, count):
        pictures = [world.draw_picture(self.rng, 128, 128, actors=2)[0] for _ in range(count)]
        return [Sample(torch.randn(4, 16, 16), picture, torch.zeros(1)) for picture in pictures]


def test_an_exchange_keeps_the_words_and_changes_who_is_what():
    pair = (world.PictureActor("red", "circle", texture="striped"), world.PictureActor("blue", "square"))
    found = swapped_pictures(world.Picture(pair, "white", ((0, "left", 1),)))
    assert set(found) == set(PICTURE_KINDS)
    assert [actor.shape for actor in found["shape"].actors] == ["square", "circle"]
    assert [actor.texture for actor in found["texture"].actors] == ["plain", "striped"]
    assert found["relation"].relations == ((0, "right", 1),)
    scene = world.Scene(
        (world.Actor("red", "circle", motion="left"), world.Actor("blue", "square", motion="up")), "white"
    )
    exchanged = swapped_scenes(scene)
    assert [actor.motion for actor in exchanged["motion"].actors] == ["up", "left"]
    for kind in ("shape", "motion"):
        assert sorted(world.caption(exchanged[kind]).split()) == sorted(world.caption(scene).split())


def test_an_exchange_that_changes_nothing_or_cannot_be_is_left_out():
    alike = (world.Actor("red", "square", motion="up"), world.Actor("blue", "square", motion="up"))
    assert swapped_scenes(world.Scene(alike, "white")) == {}
    spinning = (world.Actor("red", "circle", motion="up"), world.Actor("blue", "square", motion="spin"))
    assert swapped_scenes(world.Scene(spinning, "white")) == {}


def test_who_hears_word_order_has_a_gap_and_who_does_not_has_none():
    def knows(samples, texts, level, seed):
        return torch.tensor(
            [float(text != captions_of(sample)[0]) for sample, text in zip(samples, texts, strict=True)]
        )

    def deaf(samples, texts, level, seed):
        words = [sum(map(len, text.split())) for text in texts]
        return torch.randn(len(texts), generator=torch.Generator().manual_seed(seed)) + 0.0 * torch.tensor(words)

    size = PictureSize(128, 128)
    for error_of, gap in ((knows, 1.0), (deaf, 0.0)):
        found = swap_gaps(Pairs(nn.Identity(), np.random.default_rng(0)), size, error_of, PICTURE_KINDS, count=12)
        assert [found[kind] for kind in PICTURE_KINDS] == [gap] * 3 and found["shape error"] == 0.0


def test_a_new_model_has_no_gap_for_its_last_layer_is_zero():
    torch.manual_seed(0)
    model = ToyImage()
    found = swap_gaps(
        Pairs(nn.Identity(), np.random.default_rng(0)),
        PictureSize(64, 64),
        picture_errors(model),
        PICTURE_KINDS,
        count=4,
    )
    assert found["relation"] == 0.0
    with torch.no_grad():
        model.unet.conv_out.weight.normal_()
    found = swap_gaps(
        Pairs(nn.Identity(), np.random.default_rng(0)),
        PictureSize(64, 64),
        picture_errors(model),
        PICTURE_KINDS,
        count=4,
    )
    assert found["relation"] != 0.0


def test_clips_of_two_objects_come_from_96_pixels_on_and_never_touch():
    rng = np.random.default_rng(0)
    for size, most in ((ClipSize(9, 64, 64), 1), (ClipSize(9, 96, 96), 2)):
        drawn = [draw_apart(rng, size, 1.0) for _ in range(12)]
        assert {len(scene.actors) for scene, _ in drawn} == {most}
        assert all(world.actor_gap(tracks) > 0 for _, tracks in drawn)


def test_shares_of_a_pool_are_kept():
    vae = build_video_vae().eval().requires_grad_(False)
    vae.register_to_config(latents_mean=[0.0] * vae.config.z_dim, latents_std=[1.0] * vae.config.z_dim)
    pool = LatentPool(vae, np.random.default_rng(0), two_share=1.0, backgrounds=("yellow",))
    drawn = pool.draw(ClipSize(1, 96, 96), 6)
    assert [len(sample.scene.actors) for sample in drawn] == [2] * 6
    assert {sample.scene.background for sample in drawn} == {"yellow"}
    assert set(captions_of(drawn[0])[1]) <= set(CLIP_KINDS)
    assert replace(pool, two_share=0.0).afresh(3).two_share == 0.0
