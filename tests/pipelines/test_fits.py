"""A configuration that differs from its weights is told before anything is generated."""

from __future__ import annotations

import json
import shutil

import pytest
from tiny_flux import build_tiny_flux

from genkit.errors import ArtifactError
from genkit.models import shipped
from genkit.pipelines.fits import check_fits
from genkit.pipelines.load import load


def change(folder, part, **values):
    path = folder / part / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    "part, values, told",
    [
        ("transformer", {"num_layers": 1}, "tensors that it has no place for, the first is blocks.1"),
        ("transformer", {"num_layers": 3}, "nothing for .* tensors of it, the first is blocks.2"),
        ("transformer", {"ffn_dim": 128}, r"ffn.* is \[64"),
        ("transformer", {"cross_attn_norm": False}, "norm2"),
        ("vae", {"num_res_blocks": 2}, "AutoencoderKLWan"),
        ("text_encoder", {"num_layers": 2}, "layer 1.layer.0.SelfAttention"),
        ("transformer", {"num_layers": "x"}, "config.json makes no WanTransformer3DModel"),
        ("transformer", {"num_layers": None}, "config.json makes no WanTransformer3DModel"),
        ("transformer", {"patch_size": 5}, "config.json makes no WanTransformer3DModel"),
        ("transformer", {"num_layers": 10**9}, "num_layers is 1000000000"),
        ("transformer", {"num_attention_heads": -3}, "num_attention_heads"),
        ("text_encoder", {"d_model": []}, "config.json makes no UMT5EncoderModel"),
    ],
)
def test_a_configuration_that_differs_from_the_weights_is_refused(tiny_wan, tmp_path, part, values, told):
    copy = shutil.copytree(tiny_wan, tmp_path / "model")
    change(copy, part, **values)
    with pytest.raises(ArtifactError, match=told) as caught:
        load(copy)
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 700


def test_models_that_are_whole_pass(tiny_wan, tiny_sd, tmp_path):
    folders = [tiny_wan, tiny_sd, build_tiny_flux(tmp_path / "flux")]
    for folder in (*folders, *shipped().values()):
        check_fits(folder)
