"""The distance of sets of outputs: against a double loop, its bias and interval, and its way into the report."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import genkit
from genkit.evaluation.comparison import perceptual, sets
from genkit.evaluation.comparison.api import compare
from genkit.evaluation.comparison.sets import kernel_distance, look_of

PROMPTS = [f"a red circle moves right, number {number}" for number in range(8)]


def test_the_distance_is_that_of_a_double_loop():
    rng = np.random.default_rng(0)
    mine, its = rng.random((20, 6)), rng.random((20, 6)) + 0.2
    prompts = [f"prompt {number // 2}" for number in range(20)]

    def kernel(a, b):
        return (float(a @ b) / 6 + 1) ** 3

    terms = [
        kernel(mine[i], mine[j]) + kernel(its[i], its[j]) - kernel(mine[i], its[j]) - kernel(mine[j], its[i])
        for i, j in itertools.permutations(range(20), 2)
        if prompts[i] != prompts[j]
    ]
    found = kernel_distance(mine, its, prompts)
    assert found.mean == pytest.approx(1000 * np.mean(terms)) and found.count == 10
    assert kernel_distance(mine[:14], its[:14], prompts[:14]) is None  # seven prompts


def test_two_draws_of_one_model_have_no_distance():
    """No bias at few outputs, also where the rows of both sets are alike, and the interval holds 0 as often as told."""
    rng = np.random.default_rng(1)
    prompts = [str(number // 2) for number in range(24)]
    for alike in (0.0, 1.0):
        found = []
        for _ in range(300):
            base = alike * rng.random((24, 32))
            pair = [base + (1 - 0.8 * alike) * rng.random((24, 32)) for _ in range(2)]
            found.append(kernel_distance(*pair, prompts))
        means = np.array([each.mean for each in found])
        assert abs(means.mean()) < 4 * means.std() / np.sqrt(300)
        assert np.mean([each.low <= 0 <= each.high for each in found]) > 0.92


def test_another_model_is_told_from_the_noise():
    rng = np.random.default_rng(2)
    found = kernel_distance(rng.random((24, 64)), rng.random((24, 64)) + 0.3, [str(n) for n in range(24)])
    assert found.low > 0


@pytest.mark.skipif(perceptual.why_not() is not None, reason="stlpips-pytorch is not installed (genkit[metrics])")
def test_features_are_those_of_the_last_stage():
    import torch

    frames = np.random.default_rng(3).integers(0, 256, (20, 48, 40, 3), dtype=np.uint8)
    looked = frames[np.linspace(0, 19, 8).round().astype(int)]
    maps = perceptual.features("alex", torch.from_numpy(looked / 127.5 - 1).float().permute(0, 3, 1, 2))[-1]
    np.testing.assert_allclose(look_of(frames), maps.double().mean((0, 2, 3)).numpy(), rtol=1e-4, atol=1e-6)
    assert look_of(frames[:1]).shape == (256,)


def test_a_comparison_of_eight_prompts_tells_it(tiny_wan, monkeypatch):
    pipe = genkit.load(tiny_wan)
    pipe.set_progress_bar_config(disable=True)
    monkeypatch.setattr(perceptual, "why_not", lambda: None)
    monkeypatch.setattr(perceptual, "st_lpips_frames", lambda a, b: np.zeros(len(a)))
    monkeypatch.setattr(sets, "look_of", lambda frames: frames.mean((0, 1)).ravel() / 255.0)
    call = {"num_inference_steps": 1, "height": 64, "width": 64, "num_frames": 5}
    found = compare(pipe, PROMPTS, {"near": genkit.Neighborhood(size=(1, 1, 1))}, seeds=[1, 2], perceptual=True, **call)
    told = found.summary("near")["kernel_distance"]
    assert told.count == 8 and np.isfinite(told.mean)
    assert found.another_seed()["kernel_distance"].count == 8
    assert any("kernel distance" in cell for cell in found.lines()[0])
    fewer = compare(pipe, PROMPTS[:2], {"near": None}, seeds=[1], perceptual=True, **call)
    assert "kernel_distance" not in fewer.summary("near") and fewer.rows[0].runs[0].look is None
