"""The numbers of a comparison against independent computation: scikit-image, the formula, or the answer by hand."""

from __future__ import annotations

import importlib.util
import math

import numpy as np
import pytest
import torch

from genkit.errors import UnsupportedError, UsageError
from genkit.evaluation import metrics
from genkit.evaluation.comparison import bands, intervals, judged, perceptual, sound, vmaf
from genkit.evaluation.comparison.numbers import METRICS, Output, compare_outputs
from genkit.evaluation.comparison.results import Comparison, Found, Row
from genkit.evaluation.toy import draw_prompts

has_weights = pytest.mark.skipif(
    perceptual.why_not() is not None, reason="stlpips-pytorch is not installed (pip install 'genkit[metrics]')"
)


def waves() -> tuple[np.ndarray, np.ndarray]:
    """Three smooth frames, and the same with more and more noise."""
    rng = np.random.default_rng(5)
    y, x = np.mgrid[:40, :52]
    base = np.stack(
        [
            np.stack([127 + 100 * np.sin((x + 4 * t) / 7 + c) * np.cos(y / (5 + c)) for c in range(3)], -1)
            for t in range(3)
        ]
    )
    noise = rng.normal(0, 12, base.shape) * np.array([0.3, 1, 2.5])[:, None, None, None]
    return tuple(np.clip(each, 0, 255).astype(np.uint8) for each in (base, base + noise))


def test_psnr_and_ssim_are_those_of_scikit_image():
    """By version 0.26.0: peak_signal_noise_ratio, and structural_similarity with gaussian_weights, sigma 1.5 and
    use_sample_covariance=False."""
    one, other = waves()
    np.testing.assert_allclose(metrics.psnr_frames(one, other), [36.91779418, 26.45982767, 18.67201638], atol=1e-4)
    np.testing.assert_allclose(metrics.ssim_frames(one, other), [0.97251700, 0.77670876, 0.38462795], atol=1e-4)
    assert metrics.psnr(one, other) == pytest.approx(np.mean([36.91779418, 26.45982767, 18.67201638]), abs=1e-4)
    found = compare_outputs(Output(one), Output(other), False)
    assert found.values["ssim"] == pytest.approx(np.mean(found.frames["ssim"]))
    assert found.values["ssim_worst"] == pytest.approx(0.38462795, abs=1e-4)


@pytest.mark.skipif(importlib.util.find_spec("skimage") is None, reason="scikit-image is not installed")
def test_psnr_and_ssim_are_those_of_the_scikit_image_at_hand():
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    rng = np.random.default_rng(1)
    one = rng.integers(0, 256, (2, 33, 47, 3), dtype=np.uint8)
    other = np.clip(one + rng.normal(0, 20, one.shape), 0, 255).astype(np.uint8)
    options = {"data_range": 255, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    for mine, x, y in zip(metrics.ssim_frames(one, other), one, other, strict=True):
        assert mine == pytest.approx(structural_similarity(x, y, channel_axis=-1, **options), abs=1e-4)
    for mine, x, y in zip(metrics.psnr_frames(one, other), one, other, strict=True):
        assert mine == pytest.approx(peak_signal_noise_ratio(x, y, data_range=255), abs=1e-4)


def test_drift_flicker_and_latent_error_by_hand():
    black = np.zeros((3, 16, 16, 3), np.uint8)
    tinted = black + np.array([3, 4, 0], np.uint8)
    assert metrics.colour_drift(tinted, black) == pytest.approx([5, 5, 5])
    blinking = black.copy()
    blinking[1] = 30
    latents = [np.full((1, 2, 2), 2.0, np.float32)] * 2
    moved = [latents[0] + 0.5, latents[1] - 1]
    found = compare_outputs(Output(blinking, latents=moved), Output(black, latents=latents), False)
    assert found.frames["flicker"] == pytest.approx([30, 30]) and found.values["flicker"] == pytest.approx(30)
    assert found.steps["latent_error"] == pytest.approx([0.25, 0.5])
    assert found.values["latent_error"] == pytest.approx(0.5)


def test_what_cannot_be_compared_is_named_and_not_made_up():
    small, other = np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, 9, 8, 3), np.uint8)
    found = compare_outputs(Output(small), Output(small), True)
    assert {"ssim", "st_lpips", "latent_error"} <= set(found.missing) and "ssim" not in found.values
    assert "flicker" not in found.values  # a picture does not flicker
    found = compare_outputs(Output(small), Output(other), False)
    assert not found.values and "differ in size" in found.missing["frames"]
    latents = [np.zeros((1, 2), np.float32)]
    found = compare_outputs(Output(small, latents=latents), Output(small, latents=latents * 2), False)
    assert "1 and 2 steps" in found.missing["latent_error"]


def test_intervals_are_those_of_students_t():
    found = intervals.interval([1.0, 2.0, 3.0, 6.0])
    spread = math.sqrt(sum((x - 3) ** 2 for x in (1, 2, 3, 6)) / 3)
    assert found.mean == 3 and found.high - 3 == pytest.approx(3.182 * spread / 2)
    assert intervals.interval([]) is None and intervals.interval([4.0]).low is None
    assert intervals.interval([4.0, 5.0]).low is None, "two values have no interval that says anything"
    # Tables of Student's t: 40, 60, 120 degrees of freedom.
    for freedom, right in ((40, 2.021), (60, 2.000), (120, 1.980)):
        assert intervals.student_t(freedom) == pytest.approx(right, abs=6e-4)
    paired = intervals.ratio([2.0, 8.0, 4.0], [1.0, 2.0, 2.0])
    assert paired.mean == pytest.approx(16 ** (1 / 3)) and paired.low < paired.mean < paired.high
    assert intervals.ratio([0.0], [1.0]) is None


def test_an_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        found = intervals.interval(rng.normal(3, 2, 5).tolist())
        hits += found.low <= 3 <= found.high
    assert 0.935 <= hits / 2000 <= 0.965


def tone(times, rate=16000, seconds=1.0, pitch=440.0) -> np.ndarray:
    clock = np.arange(int(rate * seconds)) / rate
    wave = sum(
        np.where(clock >= t, np.exp(-30 * (clock - t)) * np.sin(2 * np.pi * pitch * (clock - t)), 0) for t in times
    )
    return np.stack([wave, wave], 1).astype(np.float32) * 0.5


def test_sounds_are_apart_by_level_and_time():
    one = tone([0.2, 0.6])
    assert sound.mel_distance(one, one, 16000) == 0
    half = sound.mel_distance(0.5 * one, one, 16000)
    assert 0 < half < 6.03, "half the amplitude is 6 dB where anything is heard, nothing where all is silence"
    loud = np.random.default_rng(0).normal(0, 0.1, (16000, 1))
    assert sound.mel_distance(0.5 * loud, loud, 16000) == pytest.approx(20 * math.log10(2), abs=1e-6)
    later = sound.onset_numbers(tone([0.23, 0.63]), one, 16000)
    assert later["onset_f1"] == 1 and later["onset_offset"] == pytest.approx(30, abs=11)
    fewer = sound.onset_numbers(tone([0.2]), one, 16000)
    assert fewer["onset_f1"] == pytest.approx(2 / 3)
    silence = np.zeros_like(one)
    assert sound.onset_numbers(silence, silence, 16000) == {"onset_f1": 1.0}
    with pytest.raises(UsageError, match="differ in shape"):
        sound.mel_distance(one[:-1], one, 16000)
    filters = sound.mel_filters(16000, 512)
    assert filters.shape == (64, 257) and (filters.sum(1) > 0).all()


def test_captions_of_the_world_are_read_back_and_nothing_else():
    for split in ("train", "held_out_pair"):
        for scene, caption in draw_prompts(split, 60, seed=3, actors=None):
            read = judged.scene_of(caption)
            assert [(a.colour, a.shape, a.motion) for a in read.actors] == [
                (a.colour, a.shape, a.motion) for a in scene.actors
            ] and read.background == scene.background
    for text in ("", "a lighthouse", "a red circle moves right", "a red circle moves right on a red background"):
        assert judged.scene_of(text) is None
    assert judged.accuracy("a lighthouse", np.zeros((4, 32, 32, 3), np.uint8)) is None
    picture = judged.picture_of("a dotted pink square on a black background")
    assert picture.actors[0].texture == "dotted" and judged.picture_of("a red circle left of a cat") is None


def test_the_judge_gives_full_marks_to_the_world_itself():
    from genkit.world.render import render_clip
    from genkit.world.scene import lay_out

    rng = np.random.default_rng(2)
    scene, caption = draw_prompts("train", 1, seed=5)[0]
    clip = render_clip(scene, lay_out(scene, 25, 128, 128, rng), 128, 128)
    assert judged.accuracy(caption, clip) == 1
    assert judged.accuracy(caption, np.full_like(clip, 20)) < 0.7


def test_bands_follow_likeness():
    assert bands.band({}) is None
    assert bands.band({"psnr": 27.0, "ssim_worst": 0.5}) == bands.DIVERGED, "a clip that breaks down for a moment"
    order = [bands.band({"psnr": 50 * value, "ssim_worst": value}) for value in (1.0, 0.0)]
    assert order == [bands.SAME, bands.DIVERGED]
    names = [bands.band({"psnr": 50 * value, "ssim_worst": value}) for value in np.linspace(1, 0, 101)]
    assert [names.index(name) for name in bands.BANDS] == sorted(names.index(name) for name in bands.BANDS)


@has_weights
@pytest.mark.parametrize(
    ("net", "right"),
    [
        ("alex", [0.009243289940059185, 0.008972740732133389, 0.008962123654782772]),
        ("vgg", [0.01919398084282875, 0.018337629735469818, 0.018226610496640205]),
    ],
)
def test_st_lpips_is_that_of_the_package_itself(net, right):
    """The right numbers are those that the package's own code gives for these arrays."""
    rng = np.random.default_rng(0)
    one = rng.random((3, 70, 64, 3))
    other = np.clip(one + 0.2 * rng.standard_normal(one.shape), 0, 1)
    np.testing.assert_allclose(perceptual.st_lpips_frames(one, other, net), right, rtol=1e-4)
    assert perceptual.st_lpips_frames(one, one, net).max() == 0


@has_weights
def test_st_lpips_refuses_what_it_cannot_compare():
    clip = np.zeros((1, 40, 40, 3), np.uint8)
    with pytest.raises(UsageError, match="alex, vgg"):
        perceptual.st_lpips_frames(clip, clip, "squeeze")
    with pytest.raises(UsageError, match="equal shape"):
        perceptual.st_lpips_frames(clip, clip[:, :39])
    with pytest.raises(UsageError, match="32x32"):
        perceptual.st_lpips_frames(clip[:, :20], clip[:, :20])


def test_without_the_package_st_lpips_says_what_to_install(monkeypatch):
    monkeypatch.setattr(perceptual.importlib.util, "find_spec", lambda name: None)
    perceptual.weights.cache_clear()
    assert "genkit[metrics]" in perceptual.why_not()
    with pytest.raises(UnsupportedError, match=r"genkit\[metrics\]"):
        perceptual.st_lpips_frames(np.zeros((1, 40, 40, 3), np.uint8), np.zeros((1, 40, 40, 3), np.uint8))


@pytest.mark.skipif(vmaf.why_not() is not None, reason="vmaf-torch is not installed (pip install 'genkit[metrics]')")
def test_vmaf_is_that_of_the_package_and_falls_with_noise():
    """The right numbers are those that the package gives for the luma of these clips."""
    rng = np.random.default_rng(0)
    clip = np.repeat(np.repeat(rng.random((4, 8, 8, 3)), 8, 1), 8, 2)
    noisy = [np.clip(clip + level * rng.standard_normal(clip.shape), 0, 1) for level in (0.05, 0.3)]
    same, little, much = (vmaf.vmaf_frames(each, clip) for each in (clip, *noisy))
    assert same.shape == (4,) and same.min() > 97 and same.mean() >= little.mean() > much.mean() + 5
    from vmaf_torch import VMAF

    told = [torch.from_numpy(vmaf.luma(each)).float()[:, None] for each in (clip, noisy[1])]
    np.testing.assert_allclose(much, VMAF(clip_score=True)(*told)[:, 0].numpy(), rtol=1e-5)
    for wrong in (clip[:1], clip[:, :20], clip[:, :, :63]):
        with pytest.raises(UsageError, match="two frames or more of 32x32"):
            vmaf.vmaf_frames(wrong, clip[:1] if len(wrong) == 1 else clip)


def test_luma_is_that_of_rec_709():
    colours = np.array([[[[0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0]]]], float)
    np.testing.assert_allclose(vmaf.luma(colours)[0, 0], [16, 235, 62.5594, 172.6288])


def test_what_packages_measure_is_left_out_with_its_reason(monkeypatch):
    clip = np.zeros((2, 40, 40, 3), np.uint8)
    monkeypatch.setattr(vmaf, "why_not", lambda: "it is not installed")
    monkeypatch.setattr(perceptual, "why_not", lambda: None)
    monkeypatch.setattr(perceptual, "st_lpips_frames", lambda a, b: np.full(len(a), 0.5))
    found = compare_outputs(Output(clip), Output(clip), True)
    assert found.missing["vmaf"] == "it is not installed" and found.values["st_lpips"] == 0.5
    still = compare_outputs(Output(clip[:1]), Output(clip[:1]), True)
    assert "vmaf" not in still.missing and "vmaf" not in still.values  # of a picture nobody expects it
    small = compare_outputs(Output(clip[:, :20]), Output(clip[:, :20]), True)
    assert small.missing["st_lpips"] == "frames are smaller than 32x32"
    assert not {"st_lpips", "vmaf"} & set(compare_outputs(Output(clip), Output(clip), False).missing)


def test_every_metric_says_what_it_is():
    assert all(metric.title and metric.help for metric in METRICS.values())


def test_a_baseline_that_shows_nothing_is_told():
    """Likeness to an empty picture is no quality."""
    rows = [Row("dense", "", True), Row("half", "")]
    comparison = Comparison(rows, ["a", "b", "c"], [0], told=["time is not told"])
    for prompt, share in zip("abc", (0.2, 1.0, None), strict=True):
        rows[0].runs.append(Found(prompt, 0, 1.0, judged=share))
        rows[1].runs.append(Found(prompt, 0, 1.0, judged=0.1))
    first, second = comparison.remarks()
    assert first == "time is not told" and "dense: in 1 of 2 outputs" in second and "take a size" in second
    assert comparison.to_dict()["told"] == [first, second] and comparison.told == [first]
    rows[0].runs[0].judged = 0.5
    assert comparison.remarks() == [first]
