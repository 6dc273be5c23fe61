"""What a record says of its pipelines: sizes, frames per second, latents, text, training; and that only it says so."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch

from genkit.errors import ArtifactError, UsageError
from genkit.families.codec import scaled, standardised
from genkit.families.facts import EPSILON, FLOW, VELOCITY, Objective
from genkit.families.lookup import _all, able, can, facts_of, family_of, records
from genkit.pipelines.kinds import size_rule, token_grid

PACKAGE = Path(__file__).parents[2] / "genkit"


def _pipeline_classes() -> list[str]:
    import diffusers

    return [name for name in dir(diffusers) if name.endswith("Pipeline")]


def test_records_load_without_heavy_libraries():
    code = (
        "import sys; from genkit.families import lookup; lookup._all(); lookup.facts_of('WanPipeline');"
        "print([name for name in ('torch', 'diffusers', 'transformers', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_pipeline_class_belongs_to_two_records():
    for name in _pipeline_classes():
        assert sum(family.facts.covers(name) for family in _all()) <= 1, name


def test_every_record_covers_its_own_pipelines():
    for family in _all():
        assert family.pipelines or family.classes, family.name
        assert all(family.facts.covers(name) for name in family.pipelines), family.name
        for task, pattern in family.facts.tasks.items():
            assert any(re.fullmatch(pattern, name) for name in family.pipelines), (family.name, task)


@pytest.mark.parametrize(
    ("name", "fps"),
    [
        ("WanImageToVideoPipeline", "16"), ("CogVideoXPipeline", "8"), ("HunyuanVideoPipeline", "24"),
        ("LTXConditionPipeline", "24"), ("LTX2Pipeline", "24"), ("MochiPipeline", "30"), ("AllegroPipeline", "15"),
        ("AnimateDiffSDXLPipeline", "8"), ("LattePipeline", "8"), ("SkyReelsV2DiffusionForcingPipeline", "24"),
    ],
)  # fmt: skip
def test_frames_per_second(name, fps):
    assert facts_of(name).fps == fps


PARTS = {
    "vae": {"block_out_channels": [1, 2, 3, 4], "scale_factor_spatial": 16},
    "transformer": {"patch_size": 2, "patch_size_t": 2},
}


@pytest.mark.parametrize(
    ("name", "parts", "multiple", "frames", "token"),
    [
        ("WanPipeline", {}, 16, 4, (4, 16, 16)),
        ("WanPipeline", {"vae": PARTS["vae"]}, 32, 4, (4, 32, 32)),
        ("CogVideoXPipeline", PARTS, 16, 4, (8, 16, 16)),
        ("HunyuanVideoPipeline", {}, 16, 4, (4, 16, 16)),
        ("LTXPipeline", {}, 32, 8, (8, 32, 32)),
        ("LTX2Pipeline", {"vae": {"temporal_compression_ratio": None}}, 32, 8, (8, 32, 32)),
        ("MochiPipeline", {}, 16, 6, (6, 16, 16)),
        ("FluxPipeline", PARTS, 16, 1, (1, 16, 16)),
        ("QwenImagePipeline", {}, 16, 1, (1, 16, 16)),
        ("StableDiffusion3Pipeline", {}, 16, 1, (1, 16, 16)),
        ("StableDiffusionXLPipeline", {}, 8, 1, None),
    ],
)
def test_sizes(name, parts, multiple, frames, token):
    facts = facts_of(name)
    read = lambda part: parts.get(part, {})  # noqa: E731
    rule = facts.sizes(read)
    assert (rule.multiple, rule.frames_multiple) == (multiple, frames)
    assert (facts.token and facts.token(read)) == token


@pytest.mark.parametrize("variant", tiny.FAMILIES)
def test_default_lora_targets_are_projections_inside_attention(variant):
    model = tiny.build(variant).model
    family = family_of(model)
    sites = {site.path for site in family.find_sites(model)}
    chosen = {path: module for path, module in model.named_modules() if re.fullmatch(family.facts.lora_targets, path)}
    assert chosen and all(isinstance(module, torch.nn.Linear) for module in chosen.values())
    owners = {max((site for site in sites if path.startswith(site + ".")), key=len, default=None) for path in chosen}
    assert owners == sites, "every attention layer that can be patched, and no other"
    for site in sites:
        for name in family.projection_names:
            assert f"{site}.{name}" in chosen


@pytest.mark.parametrize("variant", tiny.FAMILIES)
def test_arguments_exist(variant):
    model = tiny.build(variant).model
    family = family_of(model)
    known = inspect.signature(type(model).forward).parameters
    assert set(family.facts.text.arguments) <= set(known) and family.facts.text.slots > 0
    assert family.sample in known and set(family.reads) <= set(known)


def test_heads_and_projections():
    family = next(family for family in records() if family.name == "Wan")
    module = SimpleNamespace(heads=3, to_q="q", to_k="k")
    assert family.heads(module) == 3 and family.heads(SimpleNamespace()) is None
    found = family.projections(module)
    assert (found.q, found.k, found.v) == ("q", "k", None)


def test_objective_is_read_from_the_scheduler_where_it_tells():
    from diffusers import DDIMScheduler, UniPCMultistepScheduler

    told = Objective(None, "index")
    assert told.of(DDIMScheduler()) == EPSILON
    assert told.of(DDIMScheduler(prediction_type="v_prediction")) == VELOCITY
    assert told.of(UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)) == FLOW
    assert facts_of("WanPipeline").objective.of(DDIMScheduler()) == FLOW
    with pytest.raises(UsageError, match="prediction_type of the scheduler"):
        told.of(SimpleNamespace(config=SimpleNamespace(prediction_type="x0?")))


def _vae(**values):
    return SimpleNamespace(config=SimpleNamespace(**values))


def test_codecs_go_both_ways_as_pipelines_do():
    from diffusers import LTX2Pipeline, LTXPipeline

    z = torch.randn(2, 3, 2, 4, 5)
    mean, std = torch.tensor([0.1, -0.2, 0.3]), torch.tensor([0.5, 2.0, 3.0])
    buffers = SimpleNamespace(config=SimpleNamespace(scaling_factor=0.7), latents_mean=mean, latents_std=std)
    codec = standardised("packed")
    for pipeline in (LTXPipeline, LTX2Pipeline):
        expected = pipeline._normalize_latents(z, mean, std, 0.7)
        torch.testing.assert_close(codec.normalise(buffers, z), expected)
        torch.testing.assert_close(codec.denormalise(buffers, expected), z)
    listed = _vae(latents_mean=mean.tolist(), latents_std=std.tolist())
    torch.testing.assert_close(codec.normalise(listed, z), (z - mean.view(1, 3, 1, 1, 1)) / std.view(1, 3, 1, 1, 1))
    torch.testing.assert_close(codec.normalise(_vae(scaling_factor=0.5), z), z * 0.5)
    image = torch.randn(2, 4, 6, 6)
    for vae in (_vae(scaling_factor=0.18215), _vae(scaling_factor=1.5, shift_factor=0.06, latents_mean=None)):
        latents = scaled("BCHW").normalise(vae, image)
        shift = getattr(vae.config, "shift_factor", None) or 0
        torch.testing.assert_close(latents, (image - shift) * vae.config.scaling_factor)
        torch.testing.assert_close(scaled("BCHW").denormalise(vae, latents), image)


def test_tasks_are_known_by_class():
    assert can("second_pass", "WanPipeline") and not can("second_pass", "WanVACEPipeline")
    assert not can("second_pass", "NobodyKnowsPipeline") and not can("nothing", "WanPipeline")
    assert able("given_half") == ("LTX2Pipeline",)


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        # From text alone, though the call takes pictures too.
        ("WanPipeline", []), ("WanVACEPipeline", []), ("FluxPipeline", []), ("Flux2Pipeline", []),
        ("LTXConditionPipeline", []), ("QwenImagePipeline", []), ("StableDiffusionXLPipeline", []),
        # Seen by the call: no default, a strength of the change, something to follow.
        ("WanImageToVideoPipeline", ["image"]), ("WanVideoToVideoPipeline", ["video"]),
        ("WanAnimatePipeline", ["image", "pose_video", "face_video"]), ("KolorsImg2ImgPipeline", ["image"]),
        ("ZImageControlNetInpaintPipeline", ["image", "mask_image", "control_image"]),
        ("CogVideoXFunControlPipeline", ["control_video"]), ("DiTPipeline", ["class_labels"]),
        # Said by the record.
        ("LTXImageToVideoPipeline", ["image"]), ("LTX2ImageToVideoPipeline", ["image"]),
        ("FluxKontextPipeline", ["image"]), ("FluxControlPipeline", ["control_image"]),
        ("FluxFillPipeline", ["image", "mask_image"]), ("QwenImageEditPlusPipeline", ["image"]),
        ("StableDiffusionInpaintPipeline", ["image", "mask_image"]), ("StableDiffusionXLAdapterPipeline", ["image"]),
        ("StableDiffusionDepth2ImgPipeline", ["image"]), ("StableDiffusionXLControlNetPipeline", ["image"]),
        ("I2VGenXLPipeline", ["image"]), ("CosmosVideoToWorldPipeline", ["image", "video"]),
    ],
)  # fmt: skip
def test_what_a_pipeline_works_on(name, inputs):
    import diffusers

    from genkit.pipelines.kinds import demanded

    assert demanded(getattr(diffusers, name)) == inputs


# --- only the records know class names ---------------------------------------------------------------------------


def _known_words() -> set[str]:
    """Class names and beginnings of class names that the records know, and every Diffusers pipeline and denoiser."""
    import diffusers

    beginnings = {re.match(r"\w+", family.facts.pattern)[0] for family in _all()}
    ends = ("Pipeline", "Transformer2DModel", "Transformer3DModel", "ConditionModel")
    return beginnings | {name for name in dir(diffusers) if name.endswith(ends)}


def _class_names(source: str, words: set[str]) -> list[str]:
    """Strings in code, docstrings and texts aside, that are a class name, its beginning, a test for a beginning, or a
    regular expression with several pieces of class names."""
    tree = ast.parse(source)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in words:
            found.append(f"{node.lineno}: {node.value!r}")
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("startswith", "removeprefix"):
            for part in ast.walk(ast.Tuple(node.args)):
                if isinstance(part, ast.Constant) and isinstance(part.value, str) and part.value[:1].isupper():
                    if any(word.startswith(part.value) for word in words):
                        found.append(f"{part.lineno}: startswith({part.value!r})")
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("re.") and node.args:
            for part in ast.walk(node.args[0]):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    pieces = set(re.findall(r"(?<!\\)\b[A-Z][A-Za-z0-9]{3,}", part.value))
                    if sum(any(piece in word for word in words) for piece in pieces) > 1:
                        found.append(f"{part.lineno}: {part.value!r}")
    return found


def test_no_table_by_class_name_outside_the_records():
    words = _known_words()
    for path in sorted(PACKAGE.rglob("*.py")):
        if (PACKAGE / "families") not in path.parents:
            assert not _class_names(path.read_text(), words), path.relative_to(PACKAGE)


@pytest.mark.parametrize(
    "source",
    [
        "TABLE = {'Wan': 16}", "if name.startswith(('Stable', 'x')): pass", "ok = name in ('FluxPipeline',)",
        "KIND = {'WanTransformer3DModel': 1}", "if name != 'UNet2DConditionModel': pass",
        "CHANGES = re.compile('Img2Img|ImageToVideo|Inpaint')", "re.search(r'(Kontext|Control)\\w*', name)",
    ],
)  # fmt: skip
def test_tables_by_class_name_are_found(source):
    assert len(_class_names(source, _known_words())) == 1


SIZE_KEYS = (
    "patch_size", "patch_size_t", "scale_factor_spatial", "scale_factor_temporal", "spatial_compression_ratio",
    "temporal_compression_ratio", "block_out_channels",
)  # fmt: skip


@pytest.mark.parametrize("family", [family.name for family in _all() if family.pipelines])
def test_sizes_of_configurations_that_hold_anything_are_numbers_or_refused(family):
    (pipeline, *_) = next(each.pipelines for each in _all() if each.name == family)
    refused = 0
    for key in SIZE_KEYS:
        for value in ("many", -2, 1.5, {}, {"a": 1}, [], [None], [[1]], [2, "x", 2], [-2, 2, 2], 10**30, 1e308):
            for ask in (size_rule, lambda *told: token_grid(*told, 5, 64, 64)):
                try:
                    ask(pipeline, lambda part, key=key, value=value: {key: value})
                except ArtifactError as error:
                    assert pipeline in str(error) and key in str(error)
                    refused += 1
    if family in ("Wan", "HunyuanVideo", "CogVideoX", "LTX", "LTX-2", "Mochi", "Kandinsky 5", "Flux"):
        assert refused > 10


def test_moments_draw_what_the_posterior_draws():
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4, shift_factor=0.3)
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    mode, deviation = scaled("BCHW").moments(vae, pixels)
    drawn = vae.encode(pixels).latent_dist.sample(torch.Generator().manual_seed(0))
    noise = torch.randn(mode.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(mode + deviation * noise, (drawn - 0.3) * vae.config.scaling_factor)


WAN_SMALL = {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960}


@pytest.mark.parametrize(
    ("pipeline", "model", "config", "blocks", "millions"),
    [
        ("FluxPipeline", "FluxTransformer2DModel", {"num_single_layers": 2}, 19, 18.678),
        ("QwenImagePipeline", "QwenImageTransformer2DModel", {}, 60, 47.186),
        ("WanPipeline", "WanTransformer3DModel", WAN_SMALL, 30, 11.796),
        ("WanPipeline", "WanTransformer3DModel", {}, 40, 52.429),
        ("HunyuanVideoPipeline", "HunyuanVideoTransformer3DModel", {"num_single_layers": 2}, 20, 19.661),
        ("CogVideoXPipeline", "CogVideoXTransformer3DModel", {}, 30, 7.373),
        ("LTXPipeline", "LTXVideoTransformer3DModel", {}, 28, 14.680),
        ("LTX2Pipeline", "LTX2VideoTransformer3DModel", {}, 48, 106.955),
    ],
)
def test_default_lora_of_rank_16_has_as_many_numbers_as_published_sizes_give(
    pipeline, model, config, blocks, millions
):  # fmt: skip
    import diffusers

    with torch.device("meta"):
        network = getattr(diffusers, model)(**{"num_layers": 1, **config})
    chosen = (part for path, part in network.named_modules() if re.fullmatch(facts_of(pipeline).lora_targets, path))
    count = sum(16 * (part.in_features + part.out_features) for part in chosen)
    assert blocks * count / 1e6 == pytest.approx(millions, abs=0.001)


def test_layers_between_video_and_sound_can_be_chosen_or_left_out():
    names = [path for path, _ in tiny.build("ltx2").model.named_modules()]
    chosen = [path for path in names if re.fullmatch(facts_of("LTX2Pipeline").lora_targets, path)]
    parts = {path.split(".")[2] for path in chosen}
    assert {"attn1", "attn2", "audio_attn1", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn"} == parts
    between = [path for path in names if re.fullmatch(r".*\.(audio_to_video|video_to_audio)_attn\.to_[qkv]", path)]
    assert len(between) == 2 * 2 * 3 and set(between) < set(chosen)


def test_later_models_of_a_name_are_not_read_like_the_first():
    from genkit.families.prompts import readings_of

    assert readings_of("FluxKontextPipeline") == readings_of("FluxPipeline") is not None
    assert readings_of("Flux2KleinPipeline") is None
