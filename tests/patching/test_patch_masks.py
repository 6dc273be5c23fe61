"""What the gate makes of attention masks, against the softmax they stand for."""

from __future__ import annotations

import pytest
import torch

from genkit.patching.masks import view_mask

B, H, Q, K = 2, 3, 4, 5


def _keys() -> torch.Tensor:
    keys = torch.ones(B, K, dtype=torch.bool)
    keys[1, 3:] = False
    return keys


@pytest.mark.parametrize(
    "shape",
    [
        lambda keys: keys,
        lambda keys: keys[:, None, None],
        lambda keys: keys[:, None],
        lambda keys: keys[:, None, None].expand(B, H, Q, K),
        lambda keys: (~keys).float()[:, None, None] * -10000.0,
        lambda keys: ((~keys).to(torch.bfloat16) * -10000.0)[:, None, None].repeat(1, H, 1, 1),
        lambda keys: torch.zeros(B, 1, 1, K).masked_fill(~keys[:, None, None], float("-inf")),
        lambda keys: torch.zeros(B, 1, 1, K).masked_fill(~keys[:, None, None], torch.finfo(torch.float32).min),
    ],
)
def test_key_masks(shape):
    view = view_mask(shape(_keys()), B, Q, K)
    assert view.obstacle is None and torch.equal(view.keys, _keys())


@pytest.mark.parametrize(
    "mask",
    [
        None,
        torch.ones(B, 1, 1, K, dtype=torch.bool),
        torch.zeros(B, H, Q, K),
        torch.zeros(B, 1, K),
        torch.ones(1, 1, 1, 1, dtype=torch.bool),
        torch.full((B, 1, 1, K), -10000.0),  # all hidden by a finite bias: the softmax sees all
    ],
)
def test_masks_that_hide_nothing(mask):
    view = view_mask(mask, B, Q, K)
    assert view.keys is None and view.obstacle is None


def test_a_row_hidden_by_a_finite_bias_sees_everything():
    bias = torch.zeros(B, 1, 1, K)
    bias[0] = -10000.0
    bias[1, ..., 3:] = -10000.0
    view = view_mask(bias, B, Q, K)
    assert view.keys[0].all() and torch.equal(view.keys[1], _keys()[1])
    logits = torch.randn(B, H, Q, K)
    by_bias = (logits + bias).softmax(-1)
    by_keys = logits.masked_fill(~view.keys[:, None, None], float("-inf")).softmax(-1)
    torch.testing.assert_close(by_bias, by_keys, atol=2e-3, rtol=0)  # -10000 costs float32 digits


@pytest.mark.parametrize(
    ("mask", "word"),
    [
        (torch.ones(Q, K, dtype=torch.bool).tril()[None, None], "between queries"),
        (torch.randn(B, 1, 1, K), "soft bias"),
        (torch.ones(B, 1, 1, K + 1, dtype=torch.bool), "shape"),
        (torch.zeros(B, 1, 1, K, dtype=torch.bool), "every key"),
        (_keys()[:, None, None].repeat(1, H, 1, 1) & (torch.arange(H) > 0)[None, :, None, None], "heads"),
    ],
)
def test_what_cannot_be_told(mask, word):
    view = view_mask(mask, B, Q, K)
    assert view.keys is None and word in view.obstacle
