"""genkit lora: sums are exact, approximations say their error, folded models compute what adapters do."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from genkit.cli.main import main
from genkit.lora.contents import read_lora
from genkit.lora.facts import Facts
from genkit.lora.lowrank import cut, decompose, norm
from genkit.lora.pair import Pair
from genkit.lora.save import save_lora
from genkit.models.check import check_folder
from genkit.models.registry import verify_checksums, write_checksums
from genkit.pipelines.load import load

LAYERS = ("blocks.0.attn1.to_q", "blocks.0.ffn.net.0.proj", "blocks.1.attn2.to_out.0")


@pytest.fixture(scope="module")
def shapes(tiny_wan):
    model = load(tiny_wan).transformer
    return {name: tuple(model.get_submodule(name).weight.shape) for name in LAYERS}


@pytest.fixture
def write(tmp_path, shapes):
    """A maker of LoRA files for the tiny model: (name, seed, facts) -> path."""

    def write(name, seed=0, rank=2, alpha=1.0, **facts):
        random = torch.Generator().manual_seed(seed)
        weights = {
            module: (torch.randn(rank, columns, generator=random), torch.randn(rows, rank, generator=random), alpha)
            for module, (rows, columns) in shapes.items()
        }
        return save_lora(tmp_path / f"{name}.safetensors", {"transformer": weights}, Facts(family="Wan", **facts))

    return write


def changes(path):
    """Module -> change, read without genkit."""
    tensors = load_file(path)
    names = [key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")]
    return {
        name: tensors[f"{name}.lora_B.weight"].double() @ tensors[f"{name}.lora_A.weight"].double() for name in names
    }


def run(*words):
    return main(["lora", *map(str, words)])


def told(capsys):
    return json.loads(capsys.readouterr().out)


def test_info_tells_ranks_alphas_and_norms(write, capsys):
    path = write("a", rank=3, trigger_word="zorb", settings={"seed": 4})
    assert run("info", path, "--json") == 0
    found = told(capsys)
    assert found["format"] == "Diffusers" and found["families"] == ["Wan"] and found["parts"] == {"transformer": 3}
    assert found["ranks"] == {"3": 3} and found["facts"]["trigger_word"] == "zorb"
    wanted = changes(path)
    for each in found["modules"]:
        assert each["norm"] == pytest.approx(float(wanted[f"transformer.{each['module']}"].norm()))
    assert run("info", path) == 0 and "zorb" in capsys.readouterr().out


def test_info_lists_settings_that_differ_from_the_defaults_and_all_when_asked(write, capsys):
    from genkit.training.lora.settings import LoraSettings

    stored = {**LoraSettings.defaults(), "model": "toy-video", "rank": 3, "learning_rate": 3e-3, "of_later": 1}
    path = write("a", settings=stored)
    assert run("info", path) == 0
    out = capsys.readouterr().out
    named = {line.split()[1] for line in out.splitlines() if line.strip().startswith("setting ")}
    assert named == {"model", "rank", "learning_rate", "of_later"}
    left = int(re.search(r"(\d+) more settings are as training has them by default; --all", out)[1])
    assert run("info", path, "--all") == 0
    more = capsys.readouterr().out
    assert more.count("setting ") == len(named) + left > 40 and "setting caption_dropout" in more
    assert run("info", path, "--json") == 0
    assert told(capsys)["facts"]["settings"] == stored


@pytest.mark.parametrize("form", ["comfyui", "kohya", "diffsynth"])
def test_a_file_comes_back_from_another_form_byte_for_byte(write, tmp_path, form):
    path = write("a")
    assert run("convert", path, "--to", form, "-o", tmp_path / "b.safetensors") == 0
    assert run("convert", tmp_path / "b.safetensors", "--to", "diffusers", "-o", tmp_path / "c.safetensors") == 0
    assert (tmp_path / "c.safetensors").read_bytes() == path.read_bytes()
    assert (tmp_path / "b.safetensors").read_bytes() != path.read_bytes()


def test_texts_of_other_trainers_survive(write, tmp_path):
    from safetensors import safe_open

    tensors = {key.replace("transformer.", "diffusion_model."): value for key, value in load_file(write("a")).items()}
    save_file(tensors, tmp_path / "t.safetensors", metadata={"ss_network_dim": "64", "ss_tag_frequency": "{}"})
    assert run("convert", tmp_path / "t.safetensors", "--to", "kohya", "-o", tmp_path / "u.safetensors") == 0
    with safe_open(tmp_path / "u.safetensors", "pt") as stream:
        assert stream.metadata()["ss_network_dim"] == "64"
    assert read_lora(tmp_path / "u.safetensors").facts.attention_known is False


def test_merged_files_add_up_exactly(write, tmp_path, capsys):
    one, two, three = write("a"), write("b", 1, rank=3), write("c", 2)
    out = tmp_path / "m.safetensors"
    assert run("merge", f"{one}@0.5", f"{two}@-2", three, "-o", out, "--json") == 0
    assert told(capsys)["ranks"] == [7]
    parts = [changes(path) for path in (one, two, three)]
    for name, value in changes(out).items():
        torch.testing.assert_close(
            value, 0.5 * parts[0][name] - 2 * parts[1][name] + parts[2][name], atol=1e-5, rtol=1e-5
        )


def test_a_sum_of_smaller_rank_is_the_best_there_is_and_says_its_error(write, tmp_path, capsys):
    one, two, whole, out = write("a"), write("b", 1), tmp_path / "m.safetensors", tmp_path / "s.safetensors"
    assert run("merge", one, two, "-o", whole) == 0 and capsys.readouterr()
    assert run("merge", one, two, "-o", out, "--rank", "3", "--json") == 0
    found = told(capsys)
    sums, kept = changes(whole), changes(out)
    lost = sum(float((sums[name] - kept[name]).square().sum()) for name in sums)
    assert found["error"] == pytest.approx(
        (lost / sum(float(each.square().sum()) for each in sums.values())) ** 0.5, rel=1e-4
    )
    for name, value in sums.items():
        tail = torch.linalg.svdvals(value)[3:]
        assert float((value - kept[name]).norm()) == pytest.approx(float(tail.norm()), rel=1e-3)


def test_an_error_chooses_the_smallest_rank(write, tmp_path, capsys):
    path, out = write("a", rank=6), tmp_path / "r.safetensors"
    assert run("resize", path, "-o", out, "--error", "0.5", "--json") == 0
    assert 0 < told(capsys)["error"] <= 0.5
    for name, value in changes(path).items():
        values = torch.linalg.svdvals(value)
        rank = load_file(out)[f"{name}.lora_A.weight"].shape[0]
        assert float(values[rank:].norm() / values.norm()) <= 0.5 < float(values[rank - 1 :].norm() / values.norm())
    assert read_lora(out).facts.made_by == "resize"


def test_resizing_to_a_rank_that_is_there_changes_nothing(write, tmp_path, capsys):
    path = write("a")
    assert run("resize", path, "-o", tmp_path / "r.safetensors", "--rank", "8", "--json") == 0
    assert told(capsys)["error"] == 0
    before, after = load_file(path), load_file(tmp_path / "r.safetensors")
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_convolutions_are_cut_like_matrices():
    random = torch.Generator().manual_seed(0)
    pair = Pair(torch.randn(5, 3, 3, 3, generator=random), torch.randn(7, 5, 1, 1, generator=random))
    found = cut(pair, rank=2)
    assert found.pair.down.shape == (2, 3, 3, 3) and found.pair.up.shape == (7, 2, 1, 1)
    whole = torch.einsum("or,r...->o...", pair.up.flatten(1), pair.down)
    kept = torch.einsum("or,r...->o...", found.pair.up.flatten(1), found.pair.down)
    assert float((whole - kept).norm() ** 2) == pytest.approx(found.lost, rel=1e-3)
    assert norm(pair) == pytest.approx(float(whole.norm()), rel=1e-5)
    torch.testing.assert_close(decompose(whole, rank=5).pair.up.shape, pair.up.shape)


def test_a_large_difference_is_decomposed_alike_by_projection():
    random = torch.Generator().manual_seed(0)
    whole = torch.randn(1100, 4, generator=random) @ torch.randn(4, 1024, generator=random)
    whole += 1e-3 * torch.randn(whole.shape, generator=random)
    found = decompose(whole, rank=4)
    kept = found.pair.up.double() @ found.pair.down.double()
    assert float((whole - kept).norm()) == pytest.approx(found.lost**0.5, rel=1e-3)
    assert found.error < 1.01 * float(torch.linalg.svdvals(whole)[4:].norm() / whole.norm())
    assert torch.equal(found.pair.up, decompose(whole, rank=4).pair.up)


def test_a_folded_model_computes_what_the_adapters_do(tiny_wan, write, tmp_path):
    import shutil

    from genkit.lora.load import apply_loras

    base = shutil.copytree(tiny_wan, tmp_path / "base")
    write_checksums(base)
    one, two, out = write("a"), write("b", 1), tmp_path / "folded"
    assert run("merge", f"{one}@0.5", f"{two}@-0.25", "--into", base, "-o", out) == 0
    check_folder(out)
    assert verify_checksums(out) == ("ok", [])
    folded, adapted = load(out).transformer, load(base)
    apply_loras(adapted, [f"{one}@0.5", f"{two}@-0.25"])
    call = {
        "hidden_states": torch.randn(1, folded.config.in_channels, 2, 8, 8),
        "encoder_hidden_states": torch.randn(1, 5, folded.config.text_dim),
        "timestep": torch.tensor([500]),
        "return_dict": False,
    }
    with torch.no_grad():
        found, wanted = folded(**call)[0], adapted.transformer(**call)[0]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    weights = "transformer/diffusion_pytorch_model.safetensors"
    same = {path.relative_to(base) for path in base.rglob("*") if path.is_file()} - {base / weights}
    for name in (str(each) for each in same if each.name not in ("SHA256SUMS", "diffusion_pytorch_model.safetensors")):
        assert (base / name).read_bytes() == (out / name).read_bytes()
    before, after = load_file(base / weights), load_file(out / weights)
    assert sum(not torch.equal(before[key], after[key]) for key in before) == 3


def test_the_difference_of_two_models_is_the_lora_that_made_it(tiny_wan, write, tmp_path, capsys):
    path, out, found = write("a"), tmp_path / "folded", tmp_path / "e.safetensors"
    assert run("merge", path, "--into", tiny_wan, "-o", out) == 0 and capsys.readouterr()
    assert run("extract", tiny_wan, out, "-o", found, "--rank", "2", "--json") == 0
    assert told(capsys)["error"] < 1e-4
    wanted = changes(path)
    for name, value in changes(found).items():
        torch.testing.assert_close(value, wanted[name], atol=1e-4, rtol=1e-4)
    assert set(changes(found)) == set(wanted)
    facts = read_lora(found).facts
    assert facts.family == "Wan" and facts.base_fingerprint and not facts.attention_known


def test_what_a_lora_cannot_hold_is_told(tiny_wan, tmp_path, capsys):
    import shutil

    other = shutil.copytree(tiny_wan, tmp_path / "other")
    file = other / "transformer/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["blocks.0.attn1.to_q.weight"] += 1
    tensors["blocks.0.attn1.to_q.bias"] += 1
    save_file(tensors, file)
    assert run("extract", tiny_wan, other, "-o", tmp_path / "e.safetensors", "--error", "0.01") == 0
    out, err = capsys.readouterr()
    assert "1 biases, norms and tables differ too" in err and "rank 1" in out
    assert run("extract", tiny_wan, other, "-o", tmp_path / "f.safetensors", "--rank", "1", "--targets", "x") == 1
    assert "do not differ in any layer" in capsys.readouterr().err


def damaged(write, tmp_path, tiny_wan):
    """Name -> (words after genkit lora, exit code, what is told)."""
    good, out = write("good"), tmp_path / "out.safetensors"
    cut_off = tmp_path / "cut.safetensors"
    cut_off.write_bytes(good.read_bytes()[:-9])
    text = tmp_path / "text.safetensors"
    text.write_text("no weights")
    tensors = load_file(good)
    made = {}
    for name, values in {
        "empty": {"x": torch.ones(2)},
        "lokr": {"transformer.a.lokr_w1": torch.ones(2, 2)},
        "nan": tensors | {next(iter(tensors)): next(iter(tensors.values())) * torch.nan},
        "half": {key: value for key, value in tensors.items() if "lora_A" in key},
        "unknown": {f"diffusion_model.x.{half}.weight": torch.ones(2, 2) for half in ("lora_A", "lora_B")},
        "flux": {
            f"transformer.single_transformer_blocks.0.proj_mlp.{half}.weight": torch.ones(2, 2)
            for half in ("lora_A", "lora_B")
        },
        "wide": {f"transformer.{LAYERS[0]}.{half}.weight": torch.ones(2, 2) for half in ("lora_A", "lora_B")},
        "deep": {f"transformer.blocks.77.attn1.to_q.{half}.weight": torch.ones(2, 2) for half in ("lora_A", "lora_B")},
        "large": {f"transformer.{LAYERS[0]}.{half}.weight": torch.full((2, 2), 1e30) for half in ("lora_A", "lora_B")},
        "text": {
            f"text_encoder.text_model.encoder.layers.0.mlp.fc1.{half}.weight": torch.ones(2, 2)
            for half in ("lora_A", "lora_B")
        },
        "unsure": {
            f"transformer.transformer_blocks.0.attn.to_q.{half}.weight": torch.ones(3, 3)
            for half in ("lora_A", "lora_B")
        },
    }.items():
        made[name] = tmp_path / f"{name}-made.safetensors"
        save_file(values, made[name])
    dora = tmp_path / "dora.safetensors"
    save_file(tensors | {f"transformer.{LAYERS[0]}.lora_magnitude_vector": torch.ones(32)}, dora)
    bases = [write(f"base{number}", base_fingerprint=str(number), base_model=f"m{number}") for number in range(2)]
    to = ["--to", "kohya", "-o", out]
    yield ["info", tmp_path / "none.safetensors"], 1, "does not exist"
    yield ["info", tmp_path], 1, "name one of them"
    yield ["info", cut_off], 1, "truncated"
    yield ["info", text], 1, "no readable safetensors"
    yield ["info", made["empty"]], 1, "no LoRA weights"
    yield ["info", made["lokr"]], 1, "holds LoKr"
    yield ["info", made["nan"]], 1, "NaN or infinite"
    yield ["info", made["half"]], 1, "no lora_B"
    yield ["info", made["unknown"]], 1, "x is none of Flux"
    yield ["info", f"{good}@0.5"], 2, "no meaning here"
    yield ["info", good, "--family", "wam"], 2, "--family"
    yield ["convert", good, "--to", "webui", "-o", out], 2, "allowed: diffusers, comfyui"
    yield ["convert", good, "--to", "kohya", "-o", good], 2, "one of the files that are read"
    yield ["convert", good, "--to", "kohya", "-o", bases[0]], 2, "exists; add --force"
    yield ["convert", good, "--to", "kohya", "-o", tmp_path / "out.bin"], 2, "ends in .safetensors"
    yield ["convert", good, "--to", "kohya", "-o", tmp_path / "good.safetensors" / "x.safetensors"], 1, "cannot write"
    yield ["convert", made["unsure"], *to], 2, "whose names differ; say which with --family"
    yield ["convert", dora, *to], 1, "is DoRA"
    yield ["convert", made["text"], "--to", "diffsynth", "-o", out, "--family", "flux"], 1, "no names for text encoders"
    yield (
        ["convert", made["large"], "--to", "diffusers", "-o", out, "--dtype", "float16"],
        1,
        "in float16 holds NaN or inf",
    )
    yield ["convert", good, *to, "--dtype", "int8"], 2, "--dtype"
    yield ["merge", good, "-o", out], 2, "at least two"
    yield ["merge", f"{good}@1e30", good, "-o", out], 2, "a number from -100 to 100"
    yield ["merge", f"{good}:transformer", good, "-o", out], 2, "with --into only"
    yield ["merge", good, made["flux"], "-o", out], 1, "for different models: Wan and Flux"
    yield ["merge", good, made["wide"], "-o", out], 1, "other models"
    yield ["merge", *bases, "-o", out], 1, "trained on different models: m0 .0. and m1"
    yield ["merge", good, dora, "-o", out], 1, "is DoRA"
    yield ["merge", good, good, "-o", out, "--rank", "2", "--error", "0.1"], 2, "exclude each other"
    yield ["resize", good, "-o", out], 2, "needs --rank 8, or --error"
    yield ["resize", good, "-o", out, "--rank", "0"], 2, "--rank"
    yield ["resize", good, "-o", out, "--rank", "two"], 2, "--rank"
    yield ["resize", good, "-o", out, "--error", "1.5"], 2, "--error"
    yield ["resize", dora, "-o", out, "--rank", "1"], 1, "is DoRA"
    folder = tmp_path / "model"
    yield ["merge", good, "--into", tiny_wan, "-o", tmp_path], 2, "around it|exists"
    yield ["merge", good, "--into", tiny_wan, "-o", tiny_wan / "new"], 2, "in it or around it"
    yield ["merge", good, "--into", tiny_wan, "-o", folder, "--rank", "2"], 2, "have no meaning"
    yield ["merge", made["deep"], "--into", tiny_wan, "-o", folder], 1, "made for another model"
    yield ["merge", made["wide"], "--into", tiny_wan, "-o", folder], 1, "of another model"
    yield ["merge", made["text"], "--into", tiny_wan, "-o", folder], 1, "has no weight in|does not have"
    yield ["merge", f"{good}:transformer_2", "--into", tiny_wan, "-o", folder], 1, "transformer_2, which the model"
    yield ["merge", good, "--into", "no-such-model", "-o", folder], 2, "no-such-model"
    yield ["extract", tiny_wan, tiny_wan, "-o", out, "--rank", "2"], 1, "do not differ"
    yield ["extract", tiny_wan, tiny_wan, "-o", out], 2, "extracting needs --rank 8"
    yield ["extract", tiny_wan, tiny_wan, "-o", out, "--rank", "2", "--targets", "("], 2, "a regular expression"
    yield ["extract", tiny_wan, tiny_wan, "-o", out, "--rank", "2", "--part", "vae"], 2, "--part"


def test_bad_input_is_one_line_with_its_exit_code(write, tmp_path, tiny_wan, capsys):
    import re

    cases = list(damaged(write, tmp_path, tiny_wan))
    before = sorted(tmp_path.iterdir())
    assert len(cases) > 40
    for words, code, wanted in cases:
        assert run(*words) == code, words
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert re.search(wanted, error), (words, error)
        assert "unexpected" not in error and len(error) < 700, error
        assert sorted(tmp_path.iterdir()) == before, words


def test_a_full_disk_leaves_nothing_of_a_file_or_folder(write, tiny_wan, tmp_path, monkeypatch, capsys):
    path = write("a")
    before = sorted(tmp_path.iterdir())

    def full(tensors, target, metadata):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    assert run("convert", path, "--to", "kohya", "-o", tmp_path / "b.safetensors") == 1
    assert "No space left" in capsys.readouterr().err
    assert run("merge", path, "--into", tiny_wan, "-o", tmp_path / "model") == 1
    assert "No space left" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_experts_get_the_files_that_name_them(tiny_wan, write, tmp_path, capsys):
    import shutil

    base = shutil.copytree(tiny_wan, tmp_path / "base")
    shutil.copytree(base / "transformer", base / "transformer_2")
    index = json.loads((base / "model_index.json").read_text())
    (base / "model_index.json").write_text(json.dumps(index | {"transformer_2": index["transformer"]}))
    path = write("a")
    assert run("merge", path, "--into", base, "-o", tmp_path / "new") == 2
    assert "two experts" in capsys.readouterr().err
    assert run("merge", f"{path}:transformer_2", "--into", base, "-o", tmp_path / "new") == 0
    name = "diffusion_pytorch_model.safetensors"
    one, two = (load_file(tmp_path / "new" / part / name) for part in ("transformer", "transformer_2"))
    assert sum(not torch.equal(one[key], two[key]) for key in one) == 3
