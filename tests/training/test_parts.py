"""Optimizer, padding trick, alignment features and text side of the training of shipped models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from genkit.training.data.world.features import FEATURES, scene_features
from genkit.training.engine.optim import muon_adamw, orthogonalise
from genkit.training.toys.shared.padding import PaddedCrossAttention, padding_bias
from genkit.training.toys.shared.text import build_text_encoder, build_word_tokenizer
from genkit.world import Actor, Scene, caption, draw_scene, lay_out
from genkit.world.vocabulary import SHAPES


@pytest.mark.parametrize("shape", [(16, 64), (64, 16), (32, 32)])
def test_orthogonalise_evens_out_singular_values(shape):
    torch.manual_seed(0)
    small = min(shape)
    left, right = (torch.linalg.qr(torch.randn(side, small))[0] for side in shape)
    values = torch.logspace(0, 1.3, small)
    result = orthogonalise(left @ torch.diag(values) @ right.T)
    spread = torch.linalg.svdvals(result)
    assert values.max() / values.min() > 15
    assert spread.max() < 1.3 and spread.min() > 0.5
    assert (
        torch.linalg.matrix_norm(left.T @ result @ right - torch.diag(torch.diagonal(left.T @ result @ right))) < 0.05
    )


def test_muon_takes_matrices_and_adam_the_rest():
    model = nn.Sequential(nn.Conv3d(2, 4, 3), nn.LayerNorm(4), nn.Linear(4, 4))
    optimizer = muon_adamw(model.named_parameters(), lr=0.01, adam_names=("2.weight",))
    muon, adam = optimizer.param_groups
    assert [tuple(p.shape) for p in muon["params"]] == [(4, 2, 3, 3, 3)]
    assert len(adam["params"]) == 5


def test_muon_adamw_learns_and_resumes_exactly():
    def steps(count, state=None):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
        optimizer = muon_adamw(model.named_parameters(), lr=0.02)
        if state:
            model.load_state_dict(state[0])
            optimizer.load_state_dict(state[1])
        x = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
        y = x[:, :1] * x[:, 1:2]
        for _ in range(count):
            loss = (model(x) - y).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return model, optimizer, loss.item()

    first = steps(1)[2]
    model, optimizer, _ = steps(20)
    resumed = steps(20, (model.state_dict(), optimizer.state_dict()))
    through = steps(40)
    assert through[2] < 0.7 * first
    assert all(torch.equal(a, b) for a, b in zip(resumed[0].parameters(), through[0].parameters(), strict=True))


@pytest.mark.parametrize("full", [8, 64, 512])
def test_few_padded_slots_stand_exactly_for_many(full):
    from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor

    torch.manual_seed(0)
    attention = WanAttention(32, heads=2, dim_head=16, cross_attention_dim_head=16, processor=WanAttnProcessor())
    hidden, lengths = torch.randn(2, 10, 32), torch.tensor([3, 7])
    text = torch.randn(2, 8, 32)
    padded = torch.randn(32)
    slots = torch.arange(8)[None, :, None] < lengths[:, None, None]
    short = torch.where(slots, text, padded)
    long = torch.cat([short, padded.expand(2, full - 8, 32)], 1)
    expected = attention(hidden, long)
    processor = PaddedCrossAttention()
    attention.set_processor(processor)
    processor.bias = padding_bias(lengths, 8, full)
    assert torch.allclose(attention(hidden, short), expected, atol=2e-5)
    if full > 8:
        processor.bias = torch.zeros_like(processor.bias)
        assert not torch.allclose(attention(hidden, short), expected, atol=1e-4)


def test_alignment_features_follow_the_object():
    scene = Scene((Actor("red", "square", "medium", "right"),), "blue")
    tracks = lay_out(scene, 17, 96, 128, np.random.default_rng(0))
    features = scene_features(scene, tracks, 96, 128)
    assert features.shape == (5, 6, 8, FEATURES)
    column = [int(features[t, :, :, 0].max(0).argmax()) for t in range(5)]
    assert column == sorted(column) and column[-1] > column[0]
    assert abs(column[0] - tracks.x[0, 0] / 16) <= 1
    shape = features[0, 0, 0, 10 : 10 + len(SHAPES)]
    assert SHAPES[int(shape.argmax())] == "square"


def test_tokenizer_survives_saving_and_strange_text(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = build_word_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("", "A RED Circle, moves right!", "größer 東京 \n circle", "red-circle"):
        assert again(text).input_ids == tokenizer(text).input_ids
        assert again(text).input_ids[-1] == tokenizer.eos_token_id
    assert tokenizer("").input_ids == [1]
    assert tokenizer.unk_token_id in tokenizer("a crimson circle").input_ids


def test_every_caption_word_is_known_and_distinct_for_the_encoder():
    tokenizer = build_word_tokenizer()
    rng = np.random.default_rng(0)
    for _ in range(100):
        ids = tokenizer(caption(draw_scene(rng, "any"), rng)).input_ids
        assert tokenizer.unk_token_id not in ids
    encoder = build_text_encoder(len(tokenizer))
    red, blue = (
        encoder(**tokenizer(text, return_tensors="pt")).last_hidden_state for text in ("a red circle", "a blue circle")
    )
    assert (red - blue).abs().max() > 0.1


def test_bfloat16_evens_out_singular_values_well_enough():
    torch.manual_seed(0)
    result = orthogonalise(torch.randn(40, 90).bfloat16())
    values = torch.linalg.svdvals(result.float())
    assert result.dtype == torch.bfloat16 and 0.5 < values.min() and values.max() < 1.35
