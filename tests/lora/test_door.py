"""LoRA in pipelines whose class has no loader (Motif-Video): through the denoiser, by the same functions."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from diffusers import MotifVideoPipeline, WanPipeline
from safetensors.torch import load_file, save_file

from genkit.errors import ArtifactError, UnsupportedError
from genkit.families.lookup import facts_of
from genkit.lora.door import loadable
from genkit.lora.facts import Facts
from genkit.lora.load import apply_loras, check_lora, load_lora
from genkit.lora.save import save_lora
from genkit.training.lora.adapter import Adapter, AdapterConfig

sys.path.append(str(Path(__file__).parents[1] / "families"))


@pytest.fixture
def case():
    import zoo

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return zoo.builders()["motif_video"][1]()


@pytest.fixture
def pipe(case):
    return MotifVideoPipeline(
        scheduler=None, vae=None, text_encoder=None, tokenizer=None, transformer=case.model, guider=None
    )


@pytest.fixture
def trained(case, tmp_path):
    """A LoRA file of the family's own layers, and what the model with it answers."""
    adapter = Adapter(case.model, AdapterConfig(rank=2), facts_of("MotifVideoPipeline").lora_targets, 0)
    with torch.no_grad():
        for value in adapter.parameters.values():
            value.copy_(torch.randn(value.shape, generator=torch.Generator().manual_seed(value.numel())) * 0.3)
    file = save_lora(
        tmp_path, {"transformer": {path: pair.folded() for path, pair in adapter.pairs().items()}}, Facts()
    )
    out = case.run()
    adapter.remove()
    return file, out


def test_loaded_weighed_and_taken_out(case, pipe, trained):
    file, expected = trained
    plain = case.run()
    assert loadable(MotifVideoPipeline) == loadable(pipe) == ("transformer",) and not torch.allclose(plain, expected)
    found = load_lora(pipe, file)
    assert found.name == "lora0" and found.modules == len(load_file(file)) // 2
    torch.testing.assert_close(case.run(), expected)
    second = load_lora(pipe, file, 0.5)
    assert second.name == "lora1" and pipe.transformer.active_adapters() == ["lora0", "lora1"]
    assert not torch.allclose(case.run(), expected, atol=1e-5)
    pipe.transformer.unload_lora()
    assert torch.equal(case.run(), plain)
    assert apply_loras(pipe, [f"{file}@1.0"]) == []
    torch.testing.assert_close(case.run(), expected)
    pipe.transformer.unload_lora()


def test_layers_have_their_own_strength(case, pipe, trained):
    file, expected = trained
    load_lora(pipe, file, layers={"single_transformer_blocks": 0})
    assert not torch.allclose(case.run(), expected, atol=1e-5)
    pipe.transformer.unload_lora()


def test_files_that_do_not_fit_and_classes_that_take_none(pipe, trained, tmp_path):
    file, _ = trained
    tensors = load_file(file)
    tensors["transformer.blocks.0.x.lora_A.weight"] = torch.zeros(2, 24)
    tensors["transformer.blocks.0.x.lora_B.weight"] = torch.zeros(24, 2)
    save_file(tensors, tmp_path / "more.safetensors")
    with pytest.raises(ArtifactError, match="blocks.0.x"):
        load_lora(pipe, tmp_path / "more.safetensors")
    with pytest.raises(UnsupportedError, match="int takes no LoRA"):
        check_lora(int)
    check_lora(WanPipeline)
