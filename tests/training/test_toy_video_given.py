"""First frames, last frames and beginnings that toy-video is given in training."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from genkit.errors import UsageError
from genkit.training.data.world.clips import ClipSize, LatentPool
from genkit.training.toys.video.given import SHARES, draw_kind, given_gains, with_given
from genkit.training.toys.video.model import STAGES, ToyVideo, diffusion_loss
from genkit.training.toys.video.vae import build_video_vae

SIZE = ClipSize(9, 64, 64)


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    made = build_video_vae().eval()
    channels = made.config.z_dim
    made.register_to_config(latents_mean=[0.0] * channels, latents_std=[1.0] * channels)
    return made


@pytest.fixture(scope="module")
def model(vae):
    torch.manual_seed(0)
    made = ToyVideo(vae.config.z_dim)
    torch.nn.init.normal_(made.transformer.proj_out.weight, std=0.02)
    return made


@pytest.fixture
def latents():
    return torch.randn(2, 4, 3, 8, 8), torch.randn(2, 4, 3, 8, 8), torch.tensor([0.3, 0.9]), torch.randn(2, 4, 1, 8, 8)


@pytest.mark.parametrize(("kind", "levels", "free"), [
    ("first", [0, 1, 1], [False, True, True]),
    ("last", [1, 1, 1, 0], [True, True, True]),
    ("both", [0, 1, 1, 0], [False, True, True]),
    ("start", [0, 0, 1], [False, False, True]),
])  # fmt: skip
def test_what_is_given_is_clean_and_told_so_and_the_rest_is_as_it_was(latents, kind, levels, free):
    clean, noisy, sigma, last = latents
    given = with_given(kind, clean, noisy, sigma, last, begun=2)
    whole_clean, whole_noisy = torch.cat([clean, last], 2), torch.cat([noisy, last], 2)
    for frame, level in enumerate(levels):
        wanted = (whole_noisy if level else whole_clean)[:, :, frame]
        assert torch.equal(given.latents[:, :, frame], wanted)
        assert torch.equal(given.levels[:, frame], level * sigma)
    assert given.latents.shape[2] == given.levels.shape[1] == len(levels) and given.free.tolist() == free


def test_nothing_left_to_make_unknown_kinds_and_missing_pictures_are_refused(latents):
    clean, noisy, sigma, last = latents
    for kind, options in (("start", {"begun": 3}), ("middle", {}), ("last", {"last": None})):
        with pytest.raises(UsageError):
            with_given(kind, clean, noisy, sigma, **{"last": last, **options})


def test_kinds_are_drawn_in_their_shares_and_pictures_have_nothing_given():
    rng = np.random.default_rng(0)
    drawn = [draw_kind(5, rng) for _ in range(20_000)]
    for kind, share in SHARES.items():
        assert abs(drawn.count(kind) / len(drawn) - share) < 0.01
    assert {draw_kind(1, rng) for _ in range(100)} == {None}


def test_one_level_for_all_frames_is_the_same_as_one_for_each(model):
    noisy, sigma = torch.randn(2, model.transformer.config.in_channels, 3, 8, 8), torch.tensor([0.3, 0.9])
    ids, mask = torch.tensor([[3, 4, 0], [5, 0, 0]]), torch.tensor([[1, 1, 0], [1, 0, 0]])
    with torch.no_grad():
        one = model(noisy, sigma, ids, mask, 64)
        each = model(noisy, sigma[:, None].expand(-1, 3), ids, mask, 64)
    torch.testing.assert_close(one, each, rtol=1e-4, atol=1e-5)


def test_the_loss_of_a_batch_with_given_frames_is_of_the_others_alone_and_reaches_every_weight(vae, model, monkeypatch):
    pool = LatentPool(vae, np.random.default_rng(0), ends=True)
    monkeypatch.setattr("genkit.training.toys.video.model.draw_size", lambda stages, progress, rng: SIZE)
    for kind in (None, *SHARES):
        monkeypatch.setattr("genkit.training.toys.video.model.draw_kind", lambda frames, rng, kind=kind: kind)
        model.zero_grad()
        loss, figures = diffusion_loss(pool, model, 0, tokens=200, stages=STAGES)(model, 3, 0.5)
        loss.backward()
        assert ("velocity" in figures) == (kind is None) and np.isfinite(loss.item())
        assert all(parameter.grad is not None for parameter in model.transformer.parameters())


def test_gains_are_told_for_every_kind_and_a_model_that_says_nothing_has_none(vae, model):
    pool = LatentPool(vae, np.random.default_rng(0), ends=True)
    gains = given_gains(model, pool, SIZE, count=2)
    assert set(gains) == {*SHARES, *(f"{kind} error" for kind in SHARES)}
    deaf = ToyVideo(vae.config.z_dim)
    assert all(value == 0 for value in given_gains(deaf, pool, SIZE, count=2).values())
