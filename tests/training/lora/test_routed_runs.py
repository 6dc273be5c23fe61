"""Runs with token routing: ratio 0 is the plain run bit for bit, seeds repeat, samples and held-out losses see all."""

from __future__ import annotations

import numpy as np
import pytest
import test_lora_run
import torch
from safetensors.torch import load_file

from genkit.errors import UnsupportedError, UsageError
from genkit.lora.contents import read_lora
from genkit.media.files import write_media
from genkit.training.lora.plan import LoraPlan
from genkit.training.lora.run import Run
from genkit.training.lora.settings import LoraSettings

data, cache = test_lora_run.data, test_lora_run.cache


def settings(tiny_wan, data, cache, output, **more):
    given = {
        "model": str(tiny_wan), "data": str(data), "output": str(output), "cache_dir": str(cache), "seed": 3,
        "resolution": "32x32", "num_frames": 5, "max_train_steps": 3, "rank": 2, "learning_rate": 0.01,
        "checkpointing_steps": 3, "train_batch_size": 2, "held_out": 1, **more,
    }  # fmt: skip
    return LoraSettings.from_mappings(("the test", given))


def made(*given, **more):
    run = Run.open(settings(*given, **more))
    run.go()
    return load_file(given[3] / "pytorch_lora_weights.safetensors"), run


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_ratio_0_is_the_plain_run_and_a_seed_repeats(tiny_wan, data, cache, tmp_path):
    plain, run = made(tiny_wan, data, cache, tmp_path / "plain")
    none, _ = made(tiny_wan, data, cache, tmp_path / "none", route="0:2:0")
    half, routed = made(tiny_wan, data, cache, tmp_path / "half", route="::0.5")
    again, _ = made(tiny_wan, data, cache, tmp_path / "again", route="::0.5", gradient_checkpointing=True)
    assert same(plain, none) and not same(plain, half)
    assert all(torch.allclose(value, again[name], atol=1e-5, rtol=1e-3) for name, value in half.items())
    facts = read_lora(tmp_path / "half").facts
    assert facts.settings["route"] == "0::0.5"  # its normal form
    # Held-out losses and samples see all tokens: without the route the same weights give the same.
    held = routed.task.held_out(routed.samples.held_out())
    routed.task.route.remove()
    assert held == routed.task.held_out(routed.samples.held_out()) != run.task.held_out(run.samples.held_out())


def test_a_stopped_run_goes_on_with_the_same_draws(tiny_wan, data, cache, tmp_path):
    whole, _ = made(tiny_wan, data, cache, tmp_path / "whole", route="1::0.5", max_train_steps=4, checkpointing_steps=2)
    made(tiny_wan, data, cache, tmp_path / "parts", route="1::0.5", max_train_steps=2, checkpointing_steps=2)
    more = {"max_train_steps": 4, "checkpointing_steps": 2, "resume_from_checkpoint": "latest"}
    parts, _ = made(tiny_wan, data, cache, tmp_path / "parts", route="1::0.5", **more)
    assert same(whole, parts)
    with pytest.raises(UsageError, match="route"):
        LoraPlan.of(settings(tiny_wan, data, cache, tmp_path / "parts", route="1::0.4", **more))


@pytest.mark.parametrize(
    ("more", "error", "words"),
    [
        ({"route": "0:9:0.5"}, UsageError, "blocks 0:9 of a model with"),
        ({"route": "half"}, UsageError, "route.*START:END:RATIO"),
        ({"route": 0.5}, UsageError, "route.*START:END:RATIO"),
        ({"route": "::0.5", "compile": True}, UsageError, "--route does not go with --compile"),
        ({"route": "::0.5", "mix": ["a.safetensors", "b.safetensors"]}, UsageError, "--route does not go with --mix"),
        ({"route": "::0.5", "learn_words": {"<a>": "circle"}}, UsageError, "--route does not go with --learn-words"),
        (
            {"route": "::0.5", "attention": "neighborhood", "attention_args": {"size": "3"}},
            UnsupportedError, "attention neighborhood of layer .* needs the whole grid",
        ),
    ],
)  # fmt: skip
def test_what_is_refused_before_weights_are_read(tiny_wan, data, cache, tmp_path, no_weights, more, error, words):
    with pytest.raises(error, match=words):
        LoraPlan.of(settings(tiny_wan, data, cache, tmp_path / "run", **more))
    assert not (tmp_path / "run").exists()


def test_a_model_that_cannot_be_routed(tiny_sd, data, cache, tmp_path):
    frame = np.full((1, 64, 64, 3), 40, np.uint8)
    (tmp_path / "data").mkdir()
    write_media(tmp_path / "data" / "0.png", frame, 1)
    (tmp_path / "data" / "0.txt").write_text("a red circle")
    more = {"route": "::0.5", "num_frames": (), "resolution": "64x64", "held_out": 0}
    with pytest.raises(UnsupportedError, match="UNet2DConditionModel .* does not tell how tokens go"):
        LoraPlan.of(settings(tiny_sd, tmp_path / "data", cache, tmp_path / "run", **more))
