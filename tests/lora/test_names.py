"""Names of other programs say the same change: there and back exactly, and as Diffusers' own converters read them."""

from __future__ import annotations

import pytest
import tiny
import torch
from diffusers.loaders import lora_conversion_utils as converters
from diffusers.loaders import single_file_utils as checkpoints

from genkit.errors import GenkitError
from genkit.families.lookup import family_of
from genkit.families.originals.lookup import originals, originals_named
from genkit.lora.names import COMFYUI, DIFFSYNTH, KOHYA, find, flat_names, from_diffusers, to_diffusers
from genkit.lora.pair import Pair

MODELS = ("flux", "wan", "wan_i2v", "wan_vace", "sd3", "sd35", "qwen_image", "hunyuan_video", "ltx", "ltx2", "unet")
#: Rows whose order depends on the depth, so that no file of other programs has them.
UNNAMED = "norm1_context.linear"


def shapes(model):
    kinds = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.Conv3d)
    return {name: module.weight.shape for name, module in model.named_modules() if isinstance(module, kinds)}


def made(layers, part, seed=0):
    """Random pairs with ranks 1, 2, 3 for layers: (part, module) -> Pair."""
    random = torch.Generator().manual_seed(seed)
    found = {}
    for number, (name, shape) in enumerate(layers.items()):
        rank = 1 + number % 3
        down = torch.randn((rank, *shape[1:]), generator=random)
        up = torch.randn((shape[0], rank) + (1,) * (len(shape) - 2), generator=random)
        found[part, name] = Pair(down, up)
    return found


def change(down, up, alpha=None):
    scale = 1 if alpha is None else float(alpha) / down.shape[0]
    return scale * torch.einsum("or,r...->o...", up.flatten(1).double(), down.double())


def changes(tensors, prefix=""):
    """Diffusers' names -> change, from tensors lora_A, lora_B and alpha."""
    found = {}
    for key, down in tensors.items():
        if key.endswith(".lora_A.weight"):
            module = key.removesuffix(".lora_A.weight")
            alpha = tensors.get(f"{module}.alpha")
            found[module.removeprefix(prefix)] = change(down, tensors[f"{module}.lora_B.weight"], alpha)
    return found


def record(model):
    return originals()[family_of(model).name]


def of(name):
    model = tiny.build(name).model
    own = record(model)
    layers = {name: shape for name, shape in shapes(model).items() if own.family != "SD3" or UNNAMED not in name}
    if own.family == "UNet2DCondition":
        layers = {name: shape for name, shape in layers.items() if "upsamplers" not in name}
    return own, made(layers, own.part)


@pytest.mark.parametrize("form", [COMFYUI, KOHYA, DIFFSYNTH])
@pytest.mark.parametrize("name", MODELS)
def test_every_layer_comes_back_from_every_form_as_it_was(name, form):
    own, pairs = of(name)
    there = from_diffusers(pairs, form, own)
    back = to_diffusers(there, own)
    assert back.unknown == []
    for (part, module), pair in pairs.items():
        assert torch.equal(back.tensors[f"{part}.{module}.lora_A.weight"], pair.down), module
        assert torch.equal(back.tensors[f"{part}.{module}.lora_B.weight"], pair.up), module
    assert len(changes(back.tensors)) == len(pairs)


def expected(pairs):
    return {module: change(pair.down, pair.up) for (_, module), pair in pairs.items()}


def check(found, wanted):
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-6)


CONVERTERS = {
    ("wan", COMFYUI): converters._convert_non_diffusers_wan_lora_to_diffusers,
    ("wan_i2v", COMFYUI): converters._convert_non_diffusers_wan_lora_to_diffusers,
    ("wan", KOHYA): converters._convert_musubi_wan_lora_to_diffusers,
    ("ltx", COMFYUI): converters._convert_non_diffusers_ltxv_lora_to_diffusers,
    ("ltx2", COMFYUI): converters._convert_non_diffusers_ltx2_lora_to_diffusers,
    ("qwen_image", COMFYUI): converters._convert_non_diffusers_qwen_lora_to_diffusers,
    ("qwen_image", KOHYA): converters._convert_non_diffusers_qwen_lora_to_diffusers,
    ("flux", KOHYA): converters._convert_kohya_flux_lora_to_diffusers,
}  # fmt: skip
#: Layers that a converter does not take.
LEFT_OUT = {
    ("wan", COMFYUI): ("patch_embedding",),
    ("wan_i2v", COMFYUI): ("patch_embedding",),
    ("wan", KOHYA): ("patch_embedding", "condition_embedder", "proj_out"),
    ("ltx", COMFYUI): ("proj_in", "time_embed"),
    ("flux", KOHYA): (
        "single_transformer_blocks",
        "norm_out",
        "x_embedder",
        "context_embedder",
        "time_text",
        "proj_out",
    ),
}


@pytest.mark.parametrize(("name", "form"), CONVERTERS)
def test_converters_of_diffusers_read_what_we_write(name, form):
    own, pairs = of(name)
    left_out = LEFT_OUT.get((name, form), ())
    pairs = {key: pair for key, pair in pairs.items() if not key[1].startswith(left_out)}
    found = CONVERTERS[name, form](dict(from_diffusers(pairs, form, own)))
    check(changes(found, "transformer."), expected(pairs))


@pytest.mark.parametrize("family", ["Flux", "HunyuanVideo"])
def test_single_blocks_are_read_by_diffusers_at_their_real_width(family):
    """Its converters know one width only."""
    layers = {
        **{f"single_transformer_blocks.0.attn.to_{name}": (3072, 5) for name in "qv"},
        "single_transformer_blocks.0.proj_mlp": (12288, 5),
        "single_transformer_blocks.0.proj_out": (3072, 7),
    }
    pairs, form = made(layers, "transformer"), KOHYA if family == "Flux" else COMFYUI
    there = from_diffusers(pairs, form, originals()[family])
    convert = converters._convert_kohya_flux_lora_to_diffusers
    if family == "HunyuanVideo":
        convert = converters._convert_hunyuan_video_lora_to_diffusers
    found = changes(convert(dict(there)), "transformer.")
    assert not found.pop("single_transformer_blocks.0.attn.to_k").any()  # has no LoRA: zeros between the others
    check(found, expected(pairs))


def test_double_blocks_of_hunyuan_video_are_read_by_diffusers():
    own, pairs = of("hunyuan_video")
    pairs = {key: pair for key, pair in pairs.items() if key[1].startswith("transformer_blocks")}
    found = converters._convert_hunyuan_video_lora_to_diffusers(dict(from_diffusers(pairs, COMFYUI, own)))
    check(changes(found, "transformer."), expected(pairs))


class Lenient(dict):
    """A checkpoint of which only what is there is looked at."""

    def pop(self, key, default=None):
        return super().pop(key, torch.zeros(3 * 3072 + 12288 if "linear1" in key else 6, 1))


CHECKPOINTS = {
    "flux": checkpoints.convert_flux_transformer_checkpoint_to_diffusers,
    "wan": checkpoints.convert_wan_transformer_to_diffusers,
    "hunyuan_video": checkpoints.convert_hunyuan_video_transformer_to_diffusers,
    "ltx": checkpoints.convert_ltx_transformer_checkpoint_to_diffusers,
    "ltx2": checkpoints.convert_ltx2_transformer_to_diffusers,
    "sd3": checkpoints.convert_sd3_transformer_checkpoint_to_diffusers,
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_names_are_those_of_the_authors_checkpoints(name):
    """The change as a whole checkpoint of the authors, read by Diffusers' converter for checkpoints."""
    own, pairs = of(name)
    joint = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")  # at the real width only, see above
    pairs = {key: pair for key, pair in pairs.items() if not (key[1].startswith("single") and key[1].endswith(joint))}
    there = from_diffusers(pairs, COMFYUI, own)
    weights = {f"{key.removeprefix('diffusion_model.')}.weight": value for key, value in changes(there).items()}
    found = CHECKPOINTS[name](Lenient(weights))
    wanted = expected(pairs)
    assert set(wanted) <= {key.removesuffix(".weight") for key in found}
    for module, value in wanted.items():
        torch.testing.assert_close(found[f"{module}.weight"], value, atol=1e-5, rtol=1e-6)


def test_unet_names_of_both_kinds_reach_the_same_layers():
    """Kohya's files for Stable Diffusion XL have the authors' names; Diffusers maps them to its own."""
    from types import SimpleNamespace

    own, pairs = of("unet")
    theirs = from_diffusers(pairs, COMFYUI, own)
    kept = {key: value for key, value in theirs.items() if "embed" not in key and "emb" not in key}
    flat = {}
    for key, value in kept.items():
        module, half = key.removeprefix("diffusion_model.").split(".lora_")
        ending = "lora_down.weight" if half.startswith("A") else "lora_up.weight"
        flat[f"lora_unet_{module.replace('.', '_')}.{ending}"] = value
    attention = {key: value for key, value in flat.items() if "attn" in key or "ff_net" in key}
    config = SimpleNamespace(layers_per_block=2)
    mapped = converters._maybe_map_sgm_blocks_to_diffusers(dict(attention), config)
    found, _ = converters._convert_non_diffusers_lora_to_diffusers(mapped)
    from genkit.lora.keys import KEY, peft_name

    modules = {KEY.fullmatch(peft_name("unet", key.removeprefix("unet.")))["module"] for key in found}
    ours = {key[1] for key in pairs if "attn" in key[1] or ".ff." in key[1]}
    assert modules == ours
    back = to_diffusers(flat, own)
    assert back.unknown == []
    for module in ours:
        assert torch.equal(back.tensors[f"unet.{module}.lora_A.weight"], pairs["unet", module].down)


def test_a_joint_matrix_trained_as_one_is_cut_without_changing_what_it_adds():
    """A of Kohya's Flux files is shared by queries, keys and values."""
    down, up, alpha = torch.randn(4, 6), torch.randn(9, 4), torch.tensor(2.0)
    name = "lora_unet_double_blocks_7_img_attn_qkv"
    plain = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": alpha}
    found = changes(to_diffusers(plain, originals()["Flux"]).tensors, "transformer.transformer_blocks.7.attn.")
    whole = change(down, up, alpha)
    check(found, {"to_q": whole[:3], "to_k": whole[3:6], "to_v": whole[6:]})


def test_biases_of_other_programs_are_not_scaled_by_alpha():
    name, bias = "diffusion_model.blocks.0.self_attn.q", torch.randn(3)
    plain = {
        f"{name}.lora_down.weight": torch.randn(2, 5),
        f"{name}.lora_up.weight": torch.randn(3, 2),
        f"{name}.alpha": torch.tensor(4.0),
        f"{name}.diff_b": bias,
    }
    found = to_diffusers(plain, originals()["Wan"]).tensors
    module = "transformer.blocks.0.attn1.to_q"
    torch.testing.assert_close(found[f"{module}.lora_B.bias"] * float(found[f"{module}.alpha"]) / 2, bias)


NAMES = {
    "diffusion_model.blocks.3.cross_attn.k_img": ("Wan", "transformer", "blocks.3.attn2.add_k_proj"),
    "diffusion_model.blocks.3.attn1.to_q": ("Wan", "transformer", "blocks.3.attn1.to_q"),
    "blocks.3.ffn.0": ("Wan", "transformer", "blocks.3.ffn.net.0.proj"),
    "lora_unet_blocks_3_ffn_0": ("Wan", "transformer", "blocks.3.ffn.net.0.proj"),
    "lora_transformer_transformer_blocks_0_attn_to_q": ("Flux", "transformer", "transformer_blocks.0.attn.to_q"),
    "lora_te_text_model_encoder_layers_1_mlp_fc1": ("Flux", "text_encoder", "text_model.encoder.layers.1.mlp.fc1"),
    "lora_te2_text_model_encoder_layers_1_self_attn_out_proj": (
        "UNet2DCondition", "text_encoder_2", "text_model.encoder.layers.1.self_attn.out_proj",
    ),
    "lora_unet_input_blocks_4_1_transformer_blocks_1_attn2_to_k": (
        "UNet2DCondition", "unet", "down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k",
    ),
    "lora_unet_down_blocks_1_attentions_0_proj_in": ("UNet2DCondition", "unet", "down_blocks.1.attentions.0.proj_in"),
    "text_encoders.clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj": (
        "SD3", "text_encoder", "text_model.encoder.layers.0.self_attn.q_proj",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_lead_to_their_layers(name):
    family, part, module = NAMES[name]
    place = find(name, originals()[family])
    assert place.part == part and module in place.modules
    assert find(f"{name}x", originals()[family]) is None


def test_layers_of_a_model_at_hand_are_found_without_a_record():
    model = tiny.build("kandinsky5").model

    class Pipeline:
        transformer = model

    name = next(name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear))
    place = find(f"lora_unet_{name.replace('.', '_')}", None, flat_names(Pipeline, ["transformer"]))
    assert place.modules == (name,)


def refused():
    one, two = torch.ones(2, 6), torch.ones(6, 2)
    wan, flux = originals()["Wan"], originals()["Flux"]
    yield wan, {("transformer", "blocks.0.attn1.other"): Pair(one, two)}, "has no name in"
    yield wan, {("unet", "blocks.0.attn1.to_q"): Pair(one, two)}, "has no name in"
    yield wan, {("transformer", "blocks.0.attn1.to_q"): Pair(one, two, magnitude=two[:, 0])}, "DoRA"
    name = "transformer_blocks.0.attn.to_"
    odd = {("transformer", f"{name}q"): Pair(one, two), ("transformer", f"{name}k"): Pair(one, two[:5])}
    yield flux, odd, "do not fit together"
    yield originals()["UNet2DCondition"], {("unet", "up_blocks.0.upsamplers.0.conv"): Pair(one, two)}, "several names"


@pytest.mark.parametrize("case", range(5))
def test_what_has_no_name_there_is_refused(case):
    own, pairs, told = list(refused())[case]
    with pytest.raises(GenkitError, match=told):
        from_diffusers(pairs, COMFYUI, own)


def test_rows_that_do_not_divide_are_refused():
    name = "diffusion_model.double_blocks.0.img_attn.qkv"
    plain = {f"{name}.lora_A.weight": torch.ones(1, 4), f"{name}.lora_B.weight": torch.ones(7, 1)}
    with pytest.raises(GenkitError, match="7 rows do not divide into 3"):
        to_diffusers(plain, originals()["Flux"])


def test_families_are_named_in_any_writing():
    assert originals_named("ltx2") is originals_named("LTX-2") is originals()["LTX-2"]
    with pytest.raises(GenkitError, match="--family.*'wam'.*Wan"):
        originals_named("wam")
