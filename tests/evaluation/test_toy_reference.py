"""Following a reference, as measured: truth is right, other clips are right by chance, the benchmark runs."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest
import torch

import genkit
from benchmarks import toy_reference
from genkit.attention.registry import trained
from genkit.errors import ArtifactError
from genkit.evaluation.toy import ClipRequest
from genkit.evaluation.toy_reference import boxes_of, draw_cases, generate_cases, judge_cases
from genkit.world.render import render_clip

REQUEST = ClipRequest(9, 128, 128, steps=1, batch=2, max_sequence_length=16)


def test_true_clips_are_right_and_others_by_chance():
    cases = draw_cases("train", 24, REQUEST, seed=5)
    clips = np.stack([render_clip(case.scene, case.tracks, 128, 128) for case in cases])
    truth = judge_cases(cases, clips).right
    assert truth["reference"] == truth["colour"] == truth["nearest shape"] == truth["background"] == 1
    others = judge_cases(cases, np.roll(clips, 7, axis=0)).right
    assert others["colour"] < 0.4 and others["nearest shape"] < 0.6 and others["reference"] < 0.25
    again = draw_cases("train", 24, REQUEST, seed=5)
    assert [case.prompt for case in again] == [case.prompt for case in cases]
    assert all(np.array_equal(a.picture, b.picture) for a, b in zip(again, cases, strict=True))
    assert boxes_of(cases[:3], REQUEST).shape == (3, 9, 16, 16)


def _weights(tiny_wan, path):
    """Trained-looking weights of a tiny model."""
    pipeline = genkit.load(str(tiny_wan))
    draw = torch.Generator().manual_seed(0)
    with genkit.patch(pipeline, genkit.Reference(form="residual", rank=2)) as patch, torch.no_grad():
        for parameter in patch.weights.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
        return patch.weights.save(path)


def test_every_clip_follows_its_own_picture(tiny_wan, tmp_path):
    pipeline = genkit.load(str(tiny_wan))
    pipeline.set_progress_bar_config(disable=True)
    request = ClipRequest(5, 64, 64, steps=1, batch=2, max_sequence_length=16)
    cases = draw_cases("train", 3, request, seed=1)
    method = trained("reference", _weights(tiny_wan, tmp_path / "reference.safetensors"))
    with genkit.patch(pipeline, method) as patch:
        clips, _ = generate_cases(pipeline, cases, request, 7, patch)
        single, _ = generate_cases(pipeline, cases[1:2], request, 8, patch)
        boxed, _ = generate_cases(pipeline, cases[1:2], request, 8, patch, boxes=True)
    plain, _ = generate_cases(pipeline, cases, request, 7)
    assert clips.shape == (3, 5, 64, 64, 3)
    assert np.abs(clips[1].astype(int) - single[0]).max() <= 2  # the same in a batch of two and alone
    assert not np.array_equal(clips, plain) and not np.array_equal(boxed, single)


def test_the_benchmark_has_a_row_per_way_and_split(tiny_wan, tmp_path):
    weights = _weights(tiny_wan, tmp_path / "reference.safetensors")
    parser = argparse.ArgumentParser()
    toy_reference.add_arguments(parser)
    given = ["--model", str(tiny_wan), "--prompts", "4", "--size", "5x64x64", "--steps", "1", "--output", str(tmp_path)]
    assert toy_reference.run(parser.parse_args([*given, "--weights", str(weights)])) == 0
    rows = json.loads((tmp_path / "toy_reference.json").read_text())["rows"]
    assert len(rows) == 12 and {row["clips"] for row in rows} == {3, 1}
    assert "| trained, boxes told | seen |" in (tmp_path / "toy_reference.md").read_text()
    assert toy_reference.run(parser.parse_args(given)) == 0
    text = (tmp_path / "toy_reference.md").read_text()
    assert "No trained weights were given" in text and "| trained |" not in text


def test_weights_of_another_method_are_refused(tmp_path):
    import tiny

    case = tiny.build("wan")
    method = genkit.Agent(form="trained", lattice=(1, 2, 2), lines=(1, 2, 2))
    with genkit.patch(case.model, method) as patch:
        path = patch.weights.save(tmp_path / "agent.safetensors")
    with pytest.raises(ArtifactError, match="weights of agent, not of reference"):
        trained("reference", path)
