"""The metrics against values known by hand and against definitions written out window by window."""

from __future__ import annotations

import numpy as np
import pytest

from genkit.errors import UsageError
from genkit.evaluation import metrics


def noise(shape, seed=0):
    return np.random.default_rng(seed).random(shape)


def test_psnr_of_a_constant_offset_is_20_db():
    clip = np.zeros((3, 12, 12, 3))
    assert metrics.psnr(clip, clip + 0.1) == pytest.approx(20.0, abs=1e-9)


def test_psnr_is_the_mean_over_frames_not_of_errors():
    a, b = np.zeros((2, 12, 12, 3)), np.zeros((2, 12, 12, 3))
    b[0] += 0.1
    b[1] += 0.01
    assert metrics.psnr(a, b) == pytest.approx((20 + 40) / 2)


def test_psnr_of_equal_clips_is_the_cap():
    assert metrics.psnr(np.zeros((1, 12, 12, 3)), np.zeros((1, 12, 12, 3))) == 100.0


def test_psnr_of_small_gaussian_noise():
    grey = np.full((4, 64, 64, 3), 0.5)
    noisy = grey + np.random.default_rng(1).normal(0, 0.02, grey.shape)
    assert metrics.psnr(grey, noisy) == pytest.approx(-20 * np.log10(0.02), abs=0.05)


def test_uint8_and_float_agree():
    clip = np.random.default_rng(2).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    other = np.random.default_rng(3).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    assert metrics.psnr(clip, other) == metrics.psnr(clip / 255.0, other / 255.0)


def window_by_window(x, y):
    """SSIM of one channel straight from its definition."""
    r = np.arange(11) - 5
    w = np.exp(-(r[:, None] ** 2 + r[None, :] ** 2) / (2 * 1.5**2))
    w /= w.sum()
    values = []
    for i in range(x.shape[0] - 10):
        for j in range(x.shape[1] - 10):
            p, q = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            mp, mq = (w * p).sum(), (w * q).sum()
            vp, vq, c = (w * (p - mp) ** 2).sum(), (w * (q - mq) ** 2).sum(), (w * (p - mp) * (q - mq)).sum()
            values.append((2 * mp * mq + 1e-4) * (2 * c + 9e-4) / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))
    return np.mean(values)


def test_ssim_equals_its_definition_on_an_odd_size():
    a, b = noise((2, 15, 13, 3), 4), noise((2, 15, 13, 3), 5)
    expected = np.mean([window_by_window(a[t, ..., c], b[t, ..., c]) for t in range(2) for c in range(3)])
    assert metrics.ssim(a, b) == pytest.approx(expected, abs=1e-10)


def test_ssim_is_one_for_equal_symmetric_and_falls_with_noise():
    a = noise((1, 24, 24, 3), 6) * 0.5
    near, far = a + 0.02 * noise(a.shape, 7), a + 0.3 * noise(a.shape, 7)
    assert metrics.ssim(a, a) == pytest.approx(1.0)
    assert metrics.ssim(a, far) == pytest.approx(metrics.ssim(far, a))
    assert 1 > metrics.ssim(a, near) > metrics.ssim(a, far)


def test_ssim_refuses_frames_smaller_than_its_window():
    with pytest.raises(UsageError, match="at least 11x11"):
        metrics.ssim(np.zeros((1, 10, 20, 3)), np.zeros((1, 10, 20, 3)))


def test_flicker_of_frozen_and_of_alternating_frames():
    frozen = np.repeat(noise((1, 8, 8, 3)), 5, axis=0)
    alternating = np.zeros((6, 8, 8, 3))
    alternating[1::2] = 1.0
    assert metrics.flicker(frozen) == 1.0
    assert metrics.flicker(alternating) == 0.0


def test_flicker_equals_the_8_bit_formula():
    clip = np.random.default_rng(8).integers(0, 256, (7, 9, 11, 3), dtype=np.uint8)
    steps = [np.abs(a.astype(float) - b.astype(float)).mean() for a, b in zip(clip[:-1], clip[1:], strict=True)]
    assert metrics.flicker(clip) == pytest.approx((255 - np.mean(steps)) / 255, abs=1e-6)


@pytest.mark.parametrize("frames", [3, 4, 5, 6])
def test_interp_smoothness_of_linear_motion_is_one_and_of_a_flash_is_not(frames):
    ramp = np.linspace(0, 1, frames)[:, None, None, None] * np.ones((1, 4, 4, 3))
    flash = np.zeros((frames, 4, 4, 3))
    flash[1] = 1.0
    count = (frames - 1) // 2
    assert metrics.interp_smoothness(ramp) == pytest.approx(1.0)
    assert metrics.interp_smoothness(flash) == pytest.approx(1 - 1 / count)


def test_rel_l1_is_relative_to_the_second_array():
    assert metrics.rel_l1(np.array([1.0, 3.0]), np.array([-2.0, 2.0])) == pytest.approx((3 + 1) / 4)
    with pytest.raises(UsageError, match="zero everywhere"):
        metrics.rel_l1(np.ones(3), np.zeros(3))


@pytest.mark.parametrize(
    "clip",
    [np.zeros((4, 4, 3)), np.zeros((0, 4, 4, 3)), np.full((1, 4, 4, 3), 255.0), np.full((1, 4, 4, 3), np.nan),
     np.zeros((1, 4, 4, 3), dtype=np.int64)],
    ids=["no time axis", "empty", "0..255 floats", "nan", "int64"],
)  # fmt: skip
def test_clips_that_are_no_clips_are_refused(clip):
    with pytest.raises(UsageError):
        metrics.psnr(clip, clip)


def test_different_shapes_and_single_frames_are_refused():
    with pytest.raises(UsageError, match="differ in shape"):
        metrics.psnr(np.zeros((1, 4, 4, 3)), np.zeros((2, 4, 4, 3)))
    with pytest.raises(UsageError, match="at least 2 frames"):
        metrics.flicker(np.zeros((1, 4, 4, 3)))
