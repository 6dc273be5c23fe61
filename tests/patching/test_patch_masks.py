"""What the gate makes of attention masks, against the softmax they stand for."""

from __future__ import annotations

import pytest
import tiny
import torch
from gate_methods import Full

import genkit
from genkit.patching import interception
from genkit.patching.masks import view_mask, with_bias

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
        (torch.randn(B, 1, Q, K), "soft bias"),
        (torch.ones(B, 1, 1, K + 1, dtype=torch.bool), "shape"),
        (torch.zeros(B, 1, 1, K, dtype=torch.bool), "every key"),
        (_keys()[:, None, None].repeat(1, H, 1, 1) & (torch.arange(H) > 0)[None, :, None, None], "heads"),
    ],
)
def test_what_cannot_be_told(mask, word):
    view = view_mask(mask, B, Q, K)
    assert view.keys is None and word in view.obstacle


def _hidden_by(mask):
    """The pairs (B|1, Q, K) that a mask shows."""
    mask = mask.view(-1, Q, K)
    return mask if mask.dtype == torch.bool else mask > -9000


def test_queries_that_see_different_keys():
    mask = torch.ones(Q, K, dtype=torch.bool).tril()[None, None]
    for given in (mask, torch.where(mask, 0.0, -1e4), mask.expand(B, H, Q, K)):
        view = view_mask(given, B, Q, K)
        assert view.keys is None and view.obstacle is None
        assert torch.equal(view.pairs.expand(B, Q, K), mask[0].expand(B, Q, K))


GRID_ROWS = (2, Q)


@pytest.mark.parametrize(
    "mask",
    [
        torch.cat([torch.ones(2, K).tril(), torch.tensor([[1, 0, 1, 1, 1]]).expand(Q - 2, K)]).bool()[None, None],
        (torch.tensor([0, 1, 1, 1.0])[:, None] * torch.tensor([1, 0, 1, 1, 1.0])).bool().expand(B, 1, Q, K),
        torch.where(torch.cat([torch.eye(2, K), torch.tensor([[1, 0, 1, 1, 1.0]]).expand(2, K)]) > 0, 0.0, -1e4)[None],
    ],
    ids=["causal text", "valid times valid", "additive"],
)
def test_the_grid_sees_one_set_of_keys_and_the_rest_has_its_own(mask):
    view = view_mask(mask, B, Q, K, GRID_ROWS)
    assert view.rest and view.obstacle is None and view.keys.tolist() == [[True, False, True, True, True]] * B
    for span in (None, (0, 3)):
        assert torch.equal(view_mask(mask, B, Q, K, span).pairs, _hidden_by(mask))


def test_numbers_added_to_the_keys():
    """Float 0/1 masks hide nothing: they are added to the scores. The same number for all keys changes nothing."""
    bias = torch.tensor([[0.0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])[:, None, None]
    view = view_mask(bias.expand(B, 1, Q, K), B, Q, K)
    assert view.keys is None and view.obstacle is None and torch.equal(view.bias, bias[:, 0, 0])
    assert view_mask(torch.full((B, 1, 1, K), 3.0), B, Q, K).bias is None
    hidden = torch.tensor([[0.5, -1e4, 0, 0, 0]]).expand(B, K)
    view = view_mask(hidden, B, Q, K)
    assert view.keys[0].tolist() == [True, False, True, True, True] and view.bias[0].tolist() == [0.5, 0, 0, 0, 0]
    outer = torch.tensor([0, 1, 1, 1.0])[:, None] * torch.tensor([0, 1, 1, 1, 1.0])
    view = view_mask(outer.expand(B, 1, Q, K), B, Q, K, GRID_ROWS)
    assert view.rest and view.bias[0].tolist() == [0, 1, 1, 1, 1]


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_a_bias_inside_the_products(dtype, error):
    torch.manual_seed(0)
    q, k, v = (torch.randn(B, n, H, 20).to(dtype) for n in (Q, K, K))
    bias = torch.tensor([0.0, 1, -2.7, 0.3, 7]).expand(B, K)
    scale = 20**-0.5
    wide = with_bias(q, k, v, bias, scale)
    out = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in wide), scale=scale)
    inputs = (x.double().transpose(1, 2) for x in (q, k, v))
    right = torch.nn.functional.scaled_dot_product_attention(*inputs, attn_mask=bias[:, None, None].double())
    assert (out[..., :20].double() - right).abs().max() < error and not out[..., 20:].any()


def _state(name="wan"):
    from genkit.families.lookup import family_of
    from genkit.patching.call_state import CallState

    return CallState(family_of(tiny.build(name).model))


def test_masks_of_one_shape_are_told_apart_by_rule_and_by_content():
    """Two refiners of one role and size with masks of different contents must not see each other's."""
    state = _state()
    q = torch.zeros(1, 4, 2, 8)
    text, image = torch.tensor([[True, True, True, False]]), torch.tensor([[True, False, False, False]])
    assert state.mask(("text", "a", "a"), text, q, q).keys.tolist() == text.tolist()
    assert state.mask(("siglip", "b", "b"), image, q, q).keys.tolist() == image.tolist()
    assert state.mask(("text", "a", "a"), image, q, q).keys.tolist() == image.tolist(), "even under one rule"
    assert state.mask(("text", "a", "a"), image.clone(), q, q).keys.tolist() == image.tolist()


@pytest.mark.parametrize("name", tiny.names())
def test_a_model_gives_all_layers_of_a_rule_one_mask(tiny_model, name, monkeypatch):
    """What lets a mask be read once per call on a device where looking at it means waiting."""
    from genkit.patching.call_state import CallState

    seen, read = {}, CallState.mask

    def watching(self, rule, mask, q, k, *spans):
        if mask is not None:
            key = (rule, tuple(mask.shape))
            assert torch.equal(seen.setdefault(key, mask), mask), rule
        return read(self, rule, mask, q, k, *spans)

    monkeypatch.setattr(CallState, "mask", watching)
    case = tiny_model(name)
    with genkit.patch(case.model, Full()):
        case.run()


def test_windows_that_the_backend_is_asked_for_stay_with_the_model():
    """ACE-Step hands its windows to flash backends by a keyword instead of a mask; no method would keep them."""
    running, calls = [], []

    class Layer:
        def attend(self, running, q, k, v, call):
            calls.append(call)
            return call.own(q, k, v)

    def backend(query, key, value, **rest):
        running.append(rest)
        return query

    passed = interception._pass_through_backend("flash", backend)
    q = torch.zeros(1, 4, 2, 8)
    for windows, served in (((128, 128), False), ((-1, -1), True), (None, True)):
        interception.push(interception.RunningModule(Layer(), None))
        try:
            interception.INTERCEPTION.hold()
            passed(q, q, q, window_size=windows)
        finally:
            interception.INTERCEPTION.release()
            interception.LOCAL.modules.clear()
        assert (calls[-1].obstacle is None) == served
        assert running[-1]["window_size"] == windows
    assert "windows of (128, 128)" in calls[0].obstacle


def test_a_mask_that_comes_again_makes_no_new_plan(monkeypatch):
    """The model makes its block-causal mask anew in every call; what is the same is told by its content."""
    import zoo

    from genkit.kernels.plan.block_plan import BlockPlan

    case, made, build = zoo.build("skyreels_causal"), [], BlockPlan.from_mask_mod
    monkeypatch.setattr(BlockPlan, "from_mask_mod", lambda *given, **more: made.append(1) or build(*given, **more))
    with genkit.patch(case.model, genkit.Neighborhood(size=3), backend="reference") as handle:
        first, again = case.run(), case.run()
        assert torch.equal(first, again) and handle.report().ran == 4
    assert len(made) == 1
