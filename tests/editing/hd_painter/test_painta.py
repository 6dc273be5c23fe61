"""Mathematics of PAIntA and RASG against the numbers worked out by hand and against plain attention."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from genkit.editing.hd_painter.painta import key_factors, prompt_attention, scale_of_keys, smoothed
from genkit.editing.hd_painter.rasg import as_noise, attention_score


def rescaled(scores, scale, unknown):
    """The definition: a factor on the scores (N, N) of unknown queries."""
    return torch.where(unknown[:, None], scores * scale, scores).softmax(-1)


def test_the_worked_case_of_four_tokens():
    unknown = torch.tensor([True, True, False, False])
    raw = torch.tensor([[0.5, 0.4, 0.1, 0.3]], dtype=torch.float64)
    assert torch.allclose(key_factors(raw), torch.tensor([[0.4, 0.2, 0, 0]], dtype=torch.float64))
    scale = scale_of_keys(raw, unknown)
    assert scale.tolist() == [[1, 1, 0, 0]]
    scores = torch.tensor([[2.0, 1, 3, -1], [0, 1, 2, 3], [1, 0, 2, 1], [3, 1, 0, 0]], dtype=torch.float64)
    weights = rescaled(scores, scale[0], unknown)
    wanted = torch.tensor([0.610296, 0.224515, 0.082595, 0.082595], dtype=torch.float64)
    assert torch.allclose(weights[0], wanted, atol=1e-6)
    assert torch.equal(weights[2:], scores[2:].softmax(-1))


def test_smoothing_has_the_published_weights():
    dot = torch.zeros(1, 25, dtype=torch.float64)
    dot[0, 12] = 1
    found = smoothed(dot, (5, 5)).view(5, 5)
    assert found[2, 2] == pytest.approx(0.331912, abs=2e-6) and found[2, 1] == pytest.approx(0.122103, abs=2e-6)
    assert found[1, 1] == pytest.approx(0.044919, abs=2e-6) and float(found.sum()) == pytest.approx(1, abs=1e-5)


def test_factors_of_equal_scores_are_zero_and_finite():
    assert torch.equal(key_factors(torch.zeros(1, 6)), torch.zeros(1, 6))
    assert torch.equal(key_factors(torch.full((1, 6), 0.3)), torch.zeros(1, 6))


def test_scaling_keys_equals_scaling_scores():
    generator = torch.Generator().manual_seed(1)
    q, k, v = torch.randn(3, 2, 4, 30, 8, generator=generator, dtype=torch.float64)
    unknown = torch.rand(30, generator=generator) < 0.4
    scale = scale_of_keys(torch.rand(2, 30, generator=generator, dtype=torch.float64), unknown)
    scores = q @ k.mT * 8**-0.5
    wanted = torch.where(unknown[:, None], scores * scale[:, None, None], scores).softmax(-1) @ v
    split = torch.where(
        unknown[:, None],
        scaled_dot_product_attention(q, k * scale[:, None, :, None], v),
        scaled_dot_product_attention(q, k, v),
    )
    torch.testing.assert_close(split, wanted)


def test_prompt_attention_is_the_mean_share_of_the_prompts_tokens():
    q, k = torch.zeros(1, 5, 2, 4), torch.zeros(1, 10, 2, 4)
    assert torch.allclose(prompt_attention(q, k, (1, 2, 9), 1.0), torch.full((1, 5), 0.3))


def test_the_score_of_attention_has_the_published_value_and_gradient():
    logits = torch.tensor([[1.0, 3], [-1, 0.5]]).flatten()[None, :, None].requires_grad_(True)
    score = attention_score(logits, torch.tensor([1.0, 1, 0, 0]))
    (gradient,) = torch.autograd.grad(score, logits)
    assert float(score.detach()) == pytest.approx(-0.355270, abs=1e-6)
    wanted = torch.tensor([0.125, 0.029801, -0.029801, -0.094385])
    assert torch.allclose(gradient.flatten(), wanted, atol=1e-6)
    scaled = torch.tensor([1.340772, 0.319648, -0.319648, -1.012392])
    assert torch.allclose(as_noise(gradient).flatten(), scaled, atol=1e-5)


def test_gradients_become_noise_row_by_row_and_vanishing_ones_zero():
    gradient = (
        torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(0))
        * torch.tensor([1e-6, 1.0, 0.0])[:, None, None, None]
    )
    found = as_noise(gradient)
    assert torch.allclose(found[:2].flatten(1).std(-1), torch.ones(2)) and not found[2].any()
