"""LoRA files of every form change the model as their numbers say, or are refused in one line; nothing is dropped."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file as save_tensors

import genkit
from genkit.errors import ArtifactError, GenkitError, UsageError
from genkit.lora.contents import read_lora
from genkit.lora.files import parse_lora
from genkit.lora.load import apply_loras
from genkit.pipelines.load import load
from genkit.pipelines.resolve import resolve
from genkit.pipelines.settings import GenerateSettings

RANK = 2


@pytest.fixture(scope="module")
def experts(tiny_wan):
    """A maker of pipelines with two experts, as Wan 2.2 has them."""
    from diffusers import WanPipeline, WanTransformer3DModel

    def make():
        one = load(tiny_wan)
        second = WanTransformer3DModel.from_config(one.transformer.config)
        return WanPipeline(**{**one.components, "transformer_2": second}, boundary_ratio=0.9)

    return make


def save_file(tensors, path, metadata=None):
    save_tensors({name: value.clone() for name, value in tensors.items()}, path, metadata=metadata)


def attention_modules(model):
    names = ("to_q", "to_k", "to_v")
    return {name: module for name, module in model.named_modules() if name.split(".")[-1] in names}


def pairs(model, seed=0, modules=None):
    """Random halves for modules of a model: name -> (A, B)."""
    random = torch.Generator().manual_seed(seed)
    found = {}
    for name, module in (modules or attention_modules(model)).items():
        rows, columns = module.weight.shape
        a, b = torch.randn(RANK, columns, generator=random), torch.randn(rows, RANK, generator=random)
        found[name] = (a, b)
    return found


def change_of(pipeline, part, scale=1.0):
    """What the active adapters add to each module's weight."""
    found = {}
    for name, module in getattr(pipeline, part).named_modules():
        if hasattr(module, "lora_A") and len(module.lora_A):
            found[name] = sum(module.get_delta_weight(key) for key in module.active_adapters if key in module.lora_A)
    return found


def check_change(pipeline, part, wanted, scale=1.0):
    found = change_of(pipeline, part)
    assert set(found) == set(wanted)
    for name, (a, b) in wanted.items():
        assert torch.allclose(found[name], scale * (b @ a), atol=1e-5), name


def peft(halves, prefix="transformer.", alpha=None, names=("lora_A", "lora_B"), ending=".weight"):
    tensors = {}
    for name, (a, b) in halves.items():
        tensors[f"{prefix}{name}.{names[0]}{ending}"] = a
        tensors[f"{prefix}{name}.{names[1]}{ending}"] = b
        if alpha is not None:
            tensors[f"{prefix}{name}.alpha"] = torch.tensor(alpha)
    return tensors


FORMS = {
    "diffusers": {},
    "with alpha": {"alpha": 1.0},
    "saved by peft": {"prefix": "base_model.model."},
    "saved by peft with an adapter's name": {"prefix": "base_model.model.", "ending": ".default.weight"},
    "peft around a part": {"prefix": "base_model.model.transformer."},
    "without prefix": {"prefix": ""},
    "without prefix, with alpha": {"prefix": "", "alpha": 4.0},
    "down and up with alpha": {"names": ("lora_down", "lora_up"), "alpha": 1.0},
}


@pytest.mark.parametrize("model", ["wan", "flux"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_names_changes_the_same_modules(request, tmp_path, model, form):
    pipeline = load(request.getfixturevalue(f"tiny_{model}"))
    halves = pairs(pipeline.transformer)
    save_file(peft(halves, **FORMS[form]), tmp_path / "l.safetensors")
    assert apply_loras(pipeline, [f"{tmp_path / 'l.safetensors'}@0.5"]) == []
    check_change(pipeline, "transformer", halves, 0.5 * FORMS[form].get("alpha", RANK) / RANK)


def test_a_file_of_peft_takes_its_alpha_from_the_configuration_beside_it(tiny_wan, tmp_path):
    pipeline = load(tiny_wan)
    halves = pairs(pipeline.transformer)
    save_file(peft(halves, "base_model.model."), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": 8, "peft_type": "LORA"}))
    apply_loras(pipeline, [str(tmp_path)])
    check_change(pipeline, "transformer", halves, 8 / RANK)


def test_metadata_of_diffusers_keeps_its_scale_in_whole_and_in_part(tiny_wan, tmp_path):
    facts = {"transformer.r": RANK, "transformer.lora_alpha": 6, "transformer.target_modules": ["to_q", "to_k", "to_v"]}
    for partial in (False, True):
        pipeline = load(tiny_wan)
        halves = pairs(pipeline.transformer)
        tensors = peft(halves)
        if partial:
            tensors |= {f"transformer.blocks.91.attn1.to_q.lora_{h}.weight": torch.ones(RANK, RANK) for h in "AB"}
        metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(facts)}
        save_file(tensors, tmp_path / "l.safetensors", metadata=metadata)
        apply_loras(pipeline, [str(tmp_path / "l.safetensors")], partial)
        check_change(pipeline, "transformer", halves, 6 / RANK)


def test_kohya_names_reach_the_unet_and_the_text_encoder(tiny_sd, tmp_path):
    pipeline = load(tiny_sd)
    unet = {name: m for name, m in attention_modules(pipeline.unet).items() if "transformer_blocks" in name}
    text = {
        name: m for name, m in pipeline.text_encoder.named_modules() if name.endswith(("q_proj", "k_proj", "v_proj"))
    }
    tensors = {}
    for prefix, modules in (("lora_unet_", unet), ("lora_te_text_model_", text)):
        for name, (a, b) in pairs(None, modules=modules).items():
            key = prefix + name.replace(".", "_")
            tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"] = a, b
            tensors[f"{key}.alpha"] = torch.tensor(1.0)
    save_file(tensors, tmp_path / "k.safetensors")
    apply_loras(pipeline, [str(tmp_path / "k.safetensors")])
    check_change(pipeline, "unet", pairs(None, modules=unet), 1 / RANK)
    check_change(pipeline, "text_encoder", pairs(None, modules=text), 1 / RANK)


def unfit(halves):
    """Files that fit in part: (tensors, how many fit, of how many)."""
    many = peft(
        {
            f"blocks.{n}.{kind}": pair
            for n in range(40)
            for kind, pair in (("attn1.to_q", halves["blocks.0.attn1.to_q"]),)
        }
    )
    yield many, 2, 40
    half = {name.replace("blocks.1.", "blocks.91."): pair for name, pair in halves.items()}
    yield peft(half), len(halves) // 2, len(halves)
    wrong = {name: (a.repeat(1, 2), b) if "blocks.1.attn1.to_q" in name else (a, b) for name, (a, b) in halves.items()}
    yield peft(wrong), len(halves) - 1, len(halves)
    yield peft(halves) | peft({"text": halves["blocks.0.attn1.to_q"]}, "text_encoder."), len(halves), len(halves) + 1


@pytest.mark.parametrize("case", range(4))
def test_a_file_that_fits_in_part_is_refused_unless_asked_for(tiny_wan, tmp_path, case):
    pipeline = load(tiny_wan)
    tensors, used, count = list(unfit(pairs(pipeline.transformer)))[case]
    save_file(tensors, tmp_path / "l.safetensors")
    with pytest.raises(ArtifactError, match=f"used {used} of {count} modules.*first unused .*--lora-partial"):
        apply_loras(pipeline, [str(tmp_path / "l.safetensors")])
    (line,) = apply_loras(pipeline, [str(tmp_path / "l.safetensors")], partial=True)
    assert f"used {used} of {count} modules" in line
    assert len(change_of(pipeline, "transformer")) == used


def test_a_file_of_which_nothing_fits_is_refused_in_any_case(tiny_wan, tmp_path):
    pipeline = load(tiny_wan)
    halves = {f"other.{name}": pair for name, pair in pairs(pipeline.transformer).items()}
    save_file(peft(halves), tmp_path / "l.safetensors")
    for partial in (False, True):
        with pytest.raises(ArtifactError, match="used 0 of .*made for another model"):
            apply_loras(pipeline, [str(tmp_path / "l.safetensors")], partial)


@pytest.mark.parametrize("case", range(4))
def test_a_dry_run_tells_what_loading_tells(tiny_wan, tmp_path, monkeypatch, capsys, case):
    """Files that fit in part: the same line before weights are read and when the file is loaded."""
    from diffusers import DiffusionPipeline

    from genkit.cli.main import main

    path = tmp_path / "l.safetensors"
    pipeline = load(tiny_wan)
    tensors, used, count = list(unfit(pairs(pipeline.transformer)))[case]
    save_file(tensors, path)
    with pytest.raises(ArtifactError, match=f"used {used} of {count} modules") as caught:
        apply_loras(pipeline, [str(path)])
    (line,) = apply_loras(pipeline, [str(path)], partial=True)
    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", lambda *args, **more: pytest.fail("weights were read"))
    command = ["generate", "a red circle", "--dry-run", "--model", str(tiny_wan), "--lora", str(path)]
    assert main(command) == 1
    assert str(caught.value) in capsys.readouterr().err
    assert main([*command, "--lora-partial"]) == 0
    assert line in "".join(capsys.readouterr())


@pytest.mark.parametrize("case", range(4, 11))
def test_a_dry_run_tells_every_fault_of_a_file(tiny_wan, tmp_path, case):
    path = tmp_path / "l.safetensors"
    tensors, told = list(faults(pairs(load(tiny_wan).transformer)))[case]
    save_file(tensors, path)
    with pytest.raises(GenkitError, match=told):
        resolve(GenerateSettings(prompt="a red circle", model=str(tiny_wan), lora=(str(path),)))


def test_a_dry_run_refuses_a_file_of_another_model(tiny_wan, tiny_sd, tiny_flux, tmp_path):
    """Text encoders are matched too; what fits passes without a word."""
    path = tmp_path / "l.safetensors"
    tiny_models = {"wan": tiny_wan, "sd": tiny_sd, "flux": tiny_flux}
    made = {}
    for name, folder in tiny_models.items():
        pipeline = load(folder)
        part = "unet" if name == "sd" else "transformer"
        made[name] = peft(pairs(getattr(pipeline, part)), f"{part}.")
        if name == "sd":
            text = {
                module.removeprefix("text_model."): layer
                for module, layer in pipeline.text_encoder.named_modules()
                if module.endswith("q_proj")
            }
            prefix = "text_encoder.text_model." if hasattr(pipeline.text_encoder, "text_model") else "text_encoder."
            made[name] |= peft(pairs(None, modules=text), prefix)
    for name, folder in tiny_models.items():
        for other, tensors in made.items():
            save_file(tensors, path)
            settings = GenerateSettings(prompt="a red circle", model=str(folder), lora=(str(path),))
            if name == other:
                assert not [note for note in resolve(settings).notes if "modules" in note]
            else:
                with pytest.raises(ArtifactError, match=r"used \d+ of \d+ modules.*it does not fit"):
                    resolve(settings)


def test_both_experts_get_a_file_and_one_can_be_named(experts, tmp_path):
    path = tmp_path / "l.safetensors"
    pipeline = experts()
    halves = pairs(pipeline.transformer)
    save_file(peft(halves), path)
    (line,) = apply_loras(pipeline, [str(path)])
    assert "both experts" in line
    for part in ("transformer", "transformer_2"):
        check_change(pipeline, part, halves)
    for part, other in (("transformer", "transformer_2"), ("transformer_2", "transformer")):
        pipeline = experts()
        assert apply_loras(pipeline, [f"{path}@0.8:{part}"]) == []
        check_change(pipeline, part, halves, 0.8)
        assert change_of(pipeline, other) == {}
    two = pairs(pipeline.transformer, seed=1)
    pipeline = experts()
    save_file(peft(two), tmp_path / "m.safetensors")
    assert apply_loras(pipeline, [f"{path}@0.8:transformer", f"{tmp_path}/m.safetensors@0.5:transformer_2"]) == []
    check_change(pipeline, "transformer", halves, 0.8)
    check_change(pipeline, "transformer_2", two, 0.5)


def test_a_file_for_both_experts_gives_each_its_own(experts, tmp_path):
    pipeline = experts()
    one, two = pairs(pipeline.transformer), pairs(pipeline.transformer, seed=1)
    save_file(peft(one) | peft(two, "transformer_2."), tmp_path / "l.safetensors")
    assert apply_loras(pipeline, [str(tmp_path / "l.safetensors")]) == []
    check_change(pipeline, "transformer", one)
    check_change(pipeline, "transformer_2", two)


def test_a_part_that_is_not_there_is_named(tiny_wan, tmp_path):
    pipeline = load(tiny_wan)
    save_file(peft(pairs(pipeline.transformer)), tmp_path / "l.safetensors")
    with pytest.raises(UsageError, match="transformer_2.*allowed: transformer"):
        apply_loras(pipeline, [f"{tmp_path / 'l.safetensors'}:transformer_2"])
    lora = parse_lora(f"{tmp_path / 'l.safetensors'}@0.5:transformer")
    assert (lora.strength, lora.part) == (0.5, "transformer") and parse_lora(str(lora)) == lora


def test_biases_on_some_modules_are_no_hole_on_the_others(tiny_wan, tmp_path):
    pipeline = load(tiny_wan)
    halves = pairs(pipeline.transformer)
    first = next(iter(halves))
    tensors = peft(halves) | {f"transformer.{first}.lora_B.bias": torch.ones(halves[first][1].shape[0])}
    save_file(tensors, tmp_path / "l.safetensors")
    apply_loras(pipeline, [str(tmp_path / "l.safetensors")])
    check_change(pipeline, "transformer", halves)
    biases = {
        name: module.lora_B["lora0"].bias for name, module in pipeline.transformer.named_modules()
        if hasattr(module, "lora_B") and len(module.lora_B)
    }  # fmt: skip
    assert all((bias == (name == first)).all() for name, bias in biases.items()) and len(biases) == len(halves)


def faults(halves):
    whole = peft(halves)
    first = f"transformer.{next(iter(halves))}"
    yield {key: v for key, v in whole.items() if "lora_A" in key}, "has lora_A and no lora_B for 12 of 12 modules"
    yield {key: v for key, v in whole.items() if key != f"{first}.lora_B.weight"}, "no lora_B for 1 of 12"
    yield whole | {f"{first}.alpha": torch.tensor(1.0)}, "an alpha for 1 of 12 modules"
    yield {f"{first}.lokr_w1": torch.ones(2, 2), f"{first}.lokr_w2": torch.ones(2, 2)}, "full rank"
    yield {f"{first}.lokr_w1": torch.ones(2, 2), f"{first}.lokr_w2_a": torch.ones(2, 2)}, "factor missing"
    lokr = {f"{first}.lokr_{name}": torch.ones(2, 2) for name in ("w1", "w2_a", "w2_b")}
    yield lokr, "does not tell its alpha"
    yield lokr | {f"{first}.alpha": torch.tensor(2.0), f"{first}.lokr_w2_b": torch.ones(3, 2)}, "do not fit each other"
    yield lokr | {f"{first}.lokr_t2": torch.ones(2, 2, 1, 1)}, "in three factors"
    yield {"lora_unet_x.hada_w1_a": torch.ones(2, 2)}, "holds LoHa"
    yield whole | {f"{first}.dora_scale": torch.ones(2)}, "holds DoRA in Kohya's form"
    yield whole | {f"{first}.lora_A.weight": torch.ones(3, 32)}, "halves of"
    yield whole | {f"{first}.lora_A.weight": torch.ones(2)}, "halves of"
    yield whole | {f"{first}.strange": torch.ones(2)}, "no part of a LoRA"
    yield whole | {f"{first}.alpha": torch.ones(3)}, r"has shape \(3,\), allowed: one number"
    yield whole | {key.removeprefix("transformer."): value + 1 for key, value in whole.items()}, "twice, under two"
    yield whole | {f"base_model.model.{key}": value + 1 for key, value in whole.items()}, "twice, under two"
    yield (
        whole | {f"{first}.lora_A.weight": torch.ones(0, 32), f"{first}.lora_B.weight": torch.ones(32, 0)},
        "halves of",
    )
    yield whole | {f"{first}.lora_A.weight": torch.ones(2, 32).int()}, "is of type int32; allowed: floating point"
    yield whole | {f"{first}.lora_B.weight": torch.ones(32, 2) * 1j}, "is of type complex64"
    yield {"weight": torch.ones(2)}, "holds no LoRA weights"
    yield {"lora_unet_nothing_known.lora_down.weight": torch.ones(2, 2)}, "lora_A and no lora_B|cannot be translated"


@pytest.mark.parametrize("case", range(17))
def test_faults_of_files_are_one_line_each(tiny_wan, tmp_path, case):
    pipeline = load(tiny_wan)
    tensors, told = list(faults(pairs(pipeline.transformer)))[case]
    save_file(tensors, tmp_path / "l.safetensors")
    with pytest.raises(GenkitError, match=told) as caught:
        apply_loras(pipeline, [str(tmp_path / "l.safetensors")])
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "facts", ["[]", "{", "null", '{"transformer.r": "x"}', '{"transformer.alpha_pattern": 5}', "[" * 9999]
)
def test_metadata_of_the_wrong_type_is_one_line(tiny_wan, tmp_path, facts):
    pipeline = load(tiny_wan)
    save_file(peft(pairs(pipeline.transformer)), tmp_path / "l.safetensors", metadata={"lora_adapter_metadata": facts})
    with pytest.raises(ArtifactError, match="lora_adapter_metadata"):
        apply_loras(pipeline, [str(tmp_path / "l.safetensors")])


def with_names(pairs_of, form, family):
    from genkit.families.originals.lookup import originals
    from genkit.lora.names import from_diffusers
    from genkit.lora.pair import Pair

    found = {("transformer", name): Pair(a, b) for name, (a, b) in pairs_of.items()}
    return from_diffusers(found, form, originals()[family])


FOREIGN = {
    ("wan", "comfyui"): "Wan",
    ("wan", "kohya"): "Wan",
    ("wan", "diffsynth"): "Wan",
    ("flux", "comfyui"): "Flux",
    ("flux", "kohya"): "Flux",
}


@pytest.mark.parametrize(("model", "form"), FOREIGN)
def test_files_of_other_programs_are_loaded_where_diffusers_loads_none_or_raises(request, tmp_path, model, form):
    """Wan in Kohya's form without the hidden layers, Flux in ComfyUI's, a single block, names without a prefix."""
    pipeline = load(request.getfixturevalue(f"tiny_{model}"))
    halves = pairs(pipeline.transformer)
    tensors = with_names(halves, form, FOREIGN[model, form])
    alphas = {key: value / 4 for key, value in tensors.items() if key.endswith(".alpha")}
    save_file(tensors | alphas, tmp_path / "l.safetensors")
    assert apply_loras(pipeline, [f"{tmp_path / 'l.safetensors'}@0.5"]) == []
    check_change(pipeline, "transformer", halves, 0.125 if alphas else 0.5)


def test_alphas_of_comfyui_files_count(tiny_flux, tmp_path):
    pipeline = load(tiny_flux)
    halves = {name: pair for name, pair in pairs(pipeline.transformer).items() if "single" not in name}
    tensors = with_names(halves, "comfyui", "Flux")
    tensors |= {key.replace("lora_A.weight", "alpha"): torch.tensor(3.0) for key in tensors if "lora_A" in key}
    save_file(tensors, tmp_path / "l.safetensors")
    apply_loras(pipeline, [str(tmp_path / "l.safetensors")])
    check_change(pipeline, "transformer", halves, 3 / (3 * RANK))


def test_weights_of_eight_bits_are_read_exactly(tiny_wan, tmp_path):
    pipeline = load(tiny_wan)
    stored = {key: value.to(torch.float8_e4m3fn) for key, value in peft(pairs(pipeline.transformer)).items()}
    save_file(stored, tmp_path / "l.safetensors")
    found = read_lora(tmp_path / "l.safetensors").pairs
    apply_loras(pipeline, [str(tmp_path / "l.safetensors")])
    check_change(pipeline, "transformer", {name: (pair.down, pair.up) for (_, name), pair in found.items()})
    wanted = {key.partition(".")[2]: value.float() for key, value in stored.items()}
    assert all(torch.equal(found["transformer", key[:-14]].down, wanted[key]) for key in wanted if "lora_A" in key)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers_are_refused_before_the_model_is_read(tiny_wan, tmp_path, broken):
    halves = pairs(load(tiny_wan).transformer)
    name, (a, b) = next(iter(halves.items()))
    b[1, 0] = broken
    path = tmp_path / "l.safetensors"
    save_file(peft(halves), path)
    with pytest.raises(ArtifactError, match=rf"l.safetensors: transformer.{name} holds NaN or infinite"):
        resolve(GenerateSettings(prompt="a red circle", model=str(tiny_wan), lora=(str(path),)))


@pytest.mark.parametrize("strength", ["1e30", "-101", "nan", "inf", "100.5"])
def test_strengths_have_bounds(tiny_wan, tmp_path, strength):
    save_file(peft({"a": (torch.ones(1, 2), torch.ones(2, 1))}), tmp_path / "l.safetensors")
    with pytest.raises(UsageError, match=r"--lora strength.*a number from -100 to 100"):
        parse_lora(f"{tmp_path / 'l.safetensors'}@{strength}")


def test_a_strength_keeps_all_its_digits(tmp_path):
    save_file(peft({"a": (torch.ones(1, 2), torch.ones(2, 1))}), tmp_path / "l.safetensors")
    for text in ("0.1234567891", "0.5", "-2"):
        lora = parse_lora(f"{tmp_path / 'l.safetensors'}@{text}")
        assert parse_lora(str(lora)) == lora and str(lora).endswith(f"@{text}")


def test_a_request_matches_its_files_once(tiny_wan, tmp_path, monkeypatch):
    from genkit.pipelines.session import Session

    halves = pairs(load(tiny_wan).transformer)
    save_file(peft(halves), tmp_path / "l.safetensors")
    settings = GenerateSettings(prompt="a red circle", model=str(tiny_wan), lora=(str(tmp_path / "l.safetensors"),))
    session = Session(resolve(settings))
    monkeypatch.setattr("genkit.lora.load.match", lambda *given: pytest.fail("matched twice"))
    session.load()
    check_change(session.pipeline, "transformer", halves)
    assert session.request.matches == []


def test_a_file_for_the_second_expert_goes_there_by_itself(experts, tmp_path):
    from genkit.lora.facts import Facts
    from genkit.lora.save import save_lora

    pipeline = experts()
    halves = pairs(pipeline.transformer)
    weights = {"transformer_2": {name: (a, b, None) for name, (a, b) in halves.items()}}
    path = save_lora(tmp_path, weights, Facts())
    assert apply_loras(pipeline, [str(path)]) == []
    check_change(pipeline, "transformer_2", halves)
    assert change_of(pipeline, "transformer") == {}
    pipeline = experts()
    assert apply_loras(pipeline, [f"{path}:transformer"]) == []
    check_change(pipeline, "transformer", halves)


@pytest.mark.parametrize("both", [False, True])
def test_lokr_of_peft_loads_as_the_lora_that_is_equal_to_it(tiny_wan, tmp_path, both):
    """What peft's own LoKr answers, a stock pipeline answers with the file loaded by genkit."""
    import peft

    pipe, layers = load(tiny_wan), ["attn1.to_q", "ffn.net.2"]
    inputs = {name: torch.randn(2, layer.in_features) for name, layer in _layers(pipe, layers).items()}
    config = peft.LoKrConfig(
        r=2, alpha=3, alpha_pattern={"ffn.net.2": 5}, target_modules=layers, decompose_both=both, decompose_factor=4,
        init_weights=False,
    )  # fmt: skip
    made = peft.get_peft_model(pipe.transformer, config)
    wanted = {name: layer(inputs[name]) for name, layer in _layers(pipe, layers).items()}
    made.save_pretrained(tmp_path)
    fresh = load(tiny_wan)
    before = {name: layer(inputs[name]) for name, layer in _layers(fresh, layers).items()}
    loaded = genkit.load_lora(fresh, tmp_path)
    assert loaded.modules == len(wanted) == 4
    for name, layer in _layers(fresh, layers).items():
        torch.testing.assert_close(layer(inputs[name]), wanted[name], atol=1e-5, rtol=1e-4)
        assert not torch.allclose(before[name], wanted[name], atol=1e-3)


def _layers(pipe, ends):
    found = {name.replace("base_model.model.", ""): module for name, module in pipe.transformer.named_modules()}
    return {name: module for name, module in found.items() if name.endswith(tuple(ends))}
