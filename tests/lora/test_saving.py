"""Files of save_lora change stock pipelines as their numbers say, for every kind of reader, byte for byte the same."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from genkit.errors import GenkitError
from genkit.lora.facts import Facts, read_facts
from genkit.lora.lokr import pair_of_lokr
from genkit.lora.pair import Pair
from genkit.lora.save import save_lora
from genkit.pipelines.load import load


def layers(model, names):
    return {
        name: module for name, module in model.named_modules() if name.endswith(names) and hasattr(module, "weight")
    }


def made(modules, seed=0, alpha=(None, 1.0, 6.0), ranks=(2, 2, 3)):
    """Random halves for layers, of several ranks and alphas: module -> (A, B, alpha)."""
    random = torch.Generator().manual_seed(seed)
    found = {}
    for number, (name, module) in enumerate(modules.items()):
        rank, shape = ranks[number % len(ranks)], module.weight.shape
        up = (shape[0], rank) + (1,) * (len(shape) - 2)
        a = torch.randn((rank, *shape[1:]), generator=random)
        found[name] = (a, torch.randn(up, generator=random), alpha[number % len(alpha)])
    return found


def delta(a, b, alpha):
    scale = 1 if alpha is None else alpha / a.shape[0]
    return scale * torch.einsum("or,r...->o...", b.flatten(1).double(), a.double())


def check(model, wanted):
    """What the only adapter of a model adds to every weight."""
    found = {name: module for name, module in model.named_modules() if getattr(module, "lora_A", None)}
    assert set(found) == set(wanted)
    for name, module in found.items():
        (adapter,) = module.lora_A
        torch.testing.assert_close(
            module.get_delta_weight(adapter).double(), delta(*wanted[name]), atol=1e-5, rtol=1e-6
        )


PARTS = {
    "wan": {"transformer": ("to_q", "to_out.0", "net.2")},
    "flux": {"transformer": ("to_q", "add_k_proj", "proj_mlp", "proj_out"), "text_encoder": ("q_proj",)},
    "sd": {"unet": ("to_q", "to_out.0", "conv1"), "text_encoder": ("q_proj", "fc1")},
}


@pytest.mark.parametrize("model", PARTS)
@pytest.mark.parametrize("reader", ["metadata", "names alone"])
def test_stock_diffusers_loads_the_change_that_was_saved(request, tmp_path, model, reader):
    pipeline = load(request.getfixturevalue(f"tiny_{model}"))
    weights = {part: made(layers(getattr(pipeline, part), names)) for part, names in PARTS[model].items()}
    path = save_lora(tmp_path, weights, Facts())
    assert path == tmp_path / "pytorch_lora_weights.safetensors"
    if reader == "names alone":
        save_file(load_file(path), path)
    pipeline.load_lora_weights(tmp_path)
    for part, wanted in weights.items():
        check(getattr(pipeline, part), wanted)


def test_the_loaded_model_answers_as_the_trained_one_bit_for_bit(tiny_wan, tmp_path):
    """Scales that are powers of two are multiplied in without rounding."""
    from peft import LoraConfig

    trained, fresh = load(tiny_wan), load(tiny_wan)
    trained.transformer.add_adapter(
        LoraConfig(r=4, lora_alpha=2, target_modules=["to_q", "to_k"], init_lora_weights=False)
    )
    found = {name: module for name, module in trained.transformer.named_modules() if hasattr(module, "lora_A")}
    weights = {
        name: (module.lora_A["default"].weight, module.lora_B["default"].weight, 2) for name, module in found.items()
    }
    save_lora(tmp_path, {"transformer": weights}, Facts())
    fresh.load_lora_weights(tmp_path)
    call = {
        "hidden_states": torch.randn(1, fresh.transformer.config.in_channels, 2, 8, 8),
        "encoder_hidden_states": torch.randn(1, 5, fresh.transformer.config.text_dim),
        "timestep": torch.tensor([500]),
        "return_dict": False,
    }
    one, two = trained.transformer(**call)[0], fresh.transformer(**call)[0]
    assert torch.equal(one, two) and not torch.equal(one, load(tiny_wan).transformer(**call)[0])


def test_dora_is_read_by_the_stock_loader_as_it_was_trained(tiny_wan, tmp_path):
    from peft import LoraConfig

    trained, fresh = load(tiny_wan), load(tiny_wan)
    trained.transformer.add_adapter(
        LoraConfig(r=4, lora_alpha=6, use_dora=True, target_modules=["to_q"], init_lora_weights=False)
    )
    found = {name: module for name, module in trained.transformer.named_modules() if hasattr(module, "lora_A")}
    weights = {}
    for name, module in found.items():
        magnitude = module.lora_magnitude_vector["default"].weight
        torch.nn.init.uniform_(magnitude, 0.5, 2)
        weights[name] = Pair(module.lora_A["default"].weight, module.lora_B["default"].weight, None, 6, magnitude)
    path = save_lora(tmp_path, {"transformer": weights}, Facts())
    fresh.load_lora_weights(tmp_path)
    for name, module in found.items():
        inputs = torch.randn(3, module.in_features)
        torch.testing.assert_close(fresh.transformer.get_submodule(name)(inputs), module(inputs), atol=1e-6, rtol=1e-5)
    with safe_open(path, "pt") as stream:
        assert read_facts(stream.metadata(), "x").adapter == "dora"


@pytest.mark.parametrize("first", [(3, 4), (4, 3), "halves"])
def test_lokr_becomes_the_lora_that_is_equal_to_it(first):
    random = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=random, dtype=torch.float64)  # noqa: E731
    one = (draw(3, 2), draw(2, 4)) if first == "halves" else draw(*first)
    two = (draw(6, 2), draw(2, 5))
    pair = pair_of_lokr(one, two, 0.5)
    whole = torch.kron(one[0] @ one[1] if first == "halves" else one, two[0] @ two[1]) * 0.5
    torch.testing.assert_close(pair.up @ pair.down, whole)
    assert pair.rank == (4 if first == "halves" else 6)
    with pytest.raises(GenkitError, match="full rank"):
        pair_of_lokr(one, draw(6, 5))


def test_equal_arguments_give_equal_bytes_in_every_process(tmp_path):
    code = (
        "import sys, torch\nfrom genkit.lora.facts import Facts\nfrom genkit.lora.save import save_lora\n"
        "one, two = torch.ones(2, 4), torch.ones(3, 2)\n"
        "save_lora(sys.argv[1], {'unet': {'b.q': (one, two, 1), 'a.q': (one, two, 2)}}, "
        "Facts(steps=3, settings={'seed': 1, 'resolution': ['512', '480x832']}, trigger_word='zzz'))\n"
    )
    found = set()
    for number in range(3):
        path = tmp_path / f"{number}.safetensors"
        subprocess.run([sys.executable, "-c", code, str(path)], check=True)
        found.add(path.read_bytes())
    assert len(found) == 1


def test_facts_come_back_and_other_programs_see_theirs(tmp_path):
    facts = Facts(
        family="Flux", rank=4, alpha=8.0, base_model="x/y", attention="radial", attention_args={"decay": "2"}, steps=7,
        schedule="steps=1:", trigger_word="zzz", settings={"learning_rate": 1e-4, "resolution": ["480x832"]},
    )  # fmt: skip
    path = save_lora(tmp_path / "l.safetensors", {"transformer": {"a": (torch.ones(1, 2), torch.ones(2, 1), 1)}}, facts)
    with safe_open(path, "pt") as stream:
        texts = stream.metadata()
    assert read_facts(texts, "x") == facts
    assert texts["ss_network_dim"] == "4" and texts["ss_network_alpha"] == "8" and texts["ss_steps"] == "7"
    assert texts["modelspec.architecture"] == "flux-1-dev/lora" and texts["modelspec.trigger_phrase"] == "zzz"
    assert texts["modelspec.resolution"] == "832x480" and texts["ss_learning_rate"] == "0.0001"
    assert json.loads(texts["lora_adapter_metadata"])["transformer.r"] == 1


def test_the_second_expert_is_written_as_diffusers_loads_it(tiny_wan, tmp_path):
    from diffusers import WanPipeline, WanTransformer3DModel

    one = load(tiny_wan)
    second = WanTransformer3DModel.from_config(one.transformer.config)
    both = WanPipeline(**{**one.components, "transformer_2": second}, boundary_ratio=0.9)
    weights = made(layers(second, ("to_q",)))
    path = save_lora(tmp_path, {"transformer_2": weights}, Facts())
    both.load_lora_weights(tmp_path, load_into_transformer_2=True)
    check(both.transformer_2, weights)
    with safe_open(path, "pt") as stream:
        assert read_facts(stream.metadata(), "x").component == "transformer_2"


def broken():
    one, two = torch.ones(2, 4), torch.ones(3, 2)
    yield {}, "nothing to save"
    yield {"transformer": {}}, "nothing to save"
    yield {"vae": {"a": (one, two, 1)}}, "component of a LoRA.*'vae'"
    yield {"unet": {"a b": (one, two, 1)}}, "module of a LoRA"
    yield {"unet": {"a": (one, two)}}, "allowed: .A, B, alpha. or a Pair"
    yield {"unet": {"a": (one, two.T, 1)}}, "the halves have shapes"
    yield {"unet": {"a": (one[0], two, 1)}}, "two axes"
    yield {"unet": {"a": (one, two, float("inf"))}}, "alpha is inf"
    yield {"unet": {"a": (one / 0, two, 1)}}, "unet.a holds NaN or infinite"
    yield {"unet": {"a": (one, two * torch.nan, 1)}}, "unet.a holds NaN or infinite"
    yield {"unet": {"a": {"lokr_w1": one}}}, "LoKr, which stock Diffusers loads for"
    yield {"transformer": {"a": (one, two, 1)}, "transformer_2": {"a": (one, two, 1)}}, "a file for each"


@pytest.mark.parametrize("case", range(12))
def test_what_cannot_be_saved_is_refused_and_nothing_is_left(tmp_path, case):
    weights, told = list(broken())[case]
    with pytest.raises(GenkitError, match=told):
        save_lora(tmp_path / "out", weights, Facts())
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_earlier_file(tmp_path, monkeypatch):
    weights = {"unet": {"a": (torch.ones(1, 2), torch.ones(2, 1), 1)}}
    path = save_lora(tmp_path, weights, Facts())
    before = path.read_bytes()

    def full(tensors, target, metadata):
        target.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(GenkitError, match="No space left.*no partial file"):
        save_lora(tmp_path, weights, Facts(steps=1))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
