"""Files with weights of methods: what does not belong in one is refused when it is read, and nothing is changed."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import genkit
from genkit.attention.weights import PatchWeights
from genkit.errors import ArtifactError

SCA = genkit.SharedCrossAttention


@pytest.fixture
def written(tiny_model, tmp_path):
    """A model, and a file with weights for it."""
    case = tiny_model("hunyuan_video")
    with genkit.patch(case.model, SCA()) as patch:
        return case, patch.weights.save(tmp_path / "own.safetensors")


def changed(file, tensors, **methods):
    """The file with other tensors in it; ``methods``: more of them that it names."""
    with safe_open(file, "pt") as opened:
        facts = opened.metadata()
    facts["methods"] = json.dumps(json.loads(facts["methods"]) | methods)
    save_file({**load_file(file), **tensors}, file, metadata=facts)


def refused(case, file, *words):
    """Reading the settings, or only when the patch is made; the patch is refused either way."""
    before = {name: value.clone() for name, value in case.model.state_dict().items()}
    with pytest.raises(ArtifactError) as caught:
        genkit.patch(case.model, SCA(weights=str(file)))
    assert all(word in str(caught.value) for word in ("own.safetensors", "allowed: ", *words)), caught.value
    after = case.model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize(
    "name", ["foreign.weight", "agent/blocks/0.taps", "shared_cross_attention", "x/y", "/a", "\x1b"]
)
def test_a_tensor_of_no_method_that_the_file_names(written, name):
    case, file = written
    changed(file, {name: torch.zeros(2)})
    refused(case, file, repr(name), "names that begin with shared_cross_attention/")
    with pytest.raises(ArtifactError, match="is of no method"):
        PatchWeights.settings_of(file)


@pytest.mark.parametrize("kind", [torch.int32, torch.int64, torch.uint8, torch.bool, torch.complex64])
def test_numbers_that_would_be_cut_off(written, kind):
    case, file = written
    name, value = next(iter(load_file(file).items()))
    changed(file, {name: torch.ones_like(value).to(kind)})
    refused(case, file, repr(name), "F32, F16, BF16")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
def test_numbers_that_are_not_finite(written, value, kind):
    case, file = written
    name, tensor = list(load_file(file).items())[-1]
    tensor = tensor.to(kind)
    tensor.view(-1)[-1] = value
    changed(file, {name: tensor})
    refused(case, file, repr(name), "NaN or infinite", "finite numbers")


def test_weights_of_several_methods_and_of_every_kind_of_number(written):
    case, file = written
    changed(file, {"agent/blocks/0.taps": torch.zeros(2)}, agent={})
    own = load_file(file)
    for kind in (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2):
        changed(file, {name: value.to(kind) for name, value in own.items()}, agent={})
        with genkit.patch(case.model, SCA(weights=str(file))) as patch:
            for name, value in patch.weights.named_weights().items():
                assert torch.equal(value, own[name].to(kind).to(value.dtype))
