"""Runs on a real WanPipeline: filled-in settings, seeds, prompts, patches, LoRA, and every refusal before and after
loading."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from genkit.errors import ArtifactError, UnsupportedError, UsageError
from genkit.lora.files import parse_lora
from genkit.lora.load import apply_loras
from genkit.pipelines import kinds, outputs
from genkit.pipelines.jobs import expand
from genkit.pipelines.load import load, resolve_device, resolve_dtype
from genkit.pipelines.prompts import read_prompt_file, read_prompts
from genkit.pipelines.recipes import recipe
from genkit.pipelines.record import Record, differences
from genkit.pipelines.resolve import resolve
from genkit.pipelines.session import Session, run
from genkit.pipelines.settings import GenerateSettings

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def session(tiny_wan):
    made = Session(resolve(GenerateSettings(prompt="a red circle", model=str(tiny_wan), seed=1)))
    made.load()
    return made


def ask(tiny_wan, **changes):
    return GenerateSettings(**{"prompt": "a red circle", "model": str(tiny_wan), "seed": 1, **changes})


def changed(session, **changes):
    """A session of another request that uses the same loaded model."""
    request = resolve(session.request.settings.replace(**changes))
    return Session(request, pipeline=session.pipeline, made=session.made)


def test_load_returns_the_stock_pipeline(tiny_wan):
    from diffusers import WanPipeline

    pipe = load(str(tiny_wan))
    assert type(pipe) is WanPipeline
    assert pipe.transformer.dtype == pipe.vae.dtype == torch.float32
    assert load(tiny_wan, dtype="bf16").vae.dtype == torch.bfloat16


def test_open_values_come_from_the_sidecar(session):
    filled = session.request.settings
    assert (filled.height, filled.width, filled.num_frames, filled.steps, filled.fps) == (32, 48, 5, 2, "8")
    assert (filled.device, filled.dtype) == ("cpu", "float32")


def test_open_values_come_from_the_pipeline_without_a_sidecar(tiny_wan, tmp_path):
    copy = shutil.copytree(tiny_wan, tmp_path / "m")
    (copy / "genkit.json").unlink()
    filled = resolve(ask(copy)).settings
    assert (filled.height, filled.width, filled.num_frames, filled.fps) == (480, 832, 81, "16")


def test_a_run_equals_the_pipeline_called_by_hand(session):
    steps = []
    result = session.run(progress=lambda phase, done, total: steps.append((phase, done, total)))
    by_hand = session.pipeline(
        prompt="a red circle", height=32, width=48, num_frames=5, num_inference_steps=2, guidance_scale=2.0,
        max_sequence_length=16, generator=torch.Generator().manual_seed(1), output_type="np",
    ).frames[0]  # fmt: skip
    assert result.frames.shape == (5, 32, 48, 3) and result.frames.dtype == np.uint8
    assert np.array_equal(result.frames, np.rint(by_hand * 255).astype(np.uint8))
    assert result.frames.std() > 0
    assert steps == [("step", 1, 2), ("step", 2, 2), ("decode", 0, 1)]


def test_runs_repeat_and_seeds_differ(session, tiny_wan):
    first, again = session.run().frames, session.run().frames
    other = session.run(session.request.settings.replace(seed=2)).frames
    fresh = run(ask(tiny_wan)).frames
    assert np.array_equal(first, again) and np.array_equal(first, fresh)
    assert not np.array_equal(first, other)


def test_a_run_leaves_the_global_random_state_alone(session):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    session.run()
    assert torch.equal(torch.get_rng_state(), state)


def test_an_empty_prompt_runs(session):
    result = session.run(session.request.settings.replace(prompt=""))
    assert result.frames.shape == (5, 32, 48, 3)


def test_a_seed_is_drawn_and_told(tiny_wan):
    seeds = {resolve(ask(tiny_wan, seed=None)).settings.seed for _ in range(3)}
    assert len(seeds) == 3


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"prompt": None}, "no prompt"),
        ({"height": 33}, r"--height: got 33, allowed: multiples of 16; try 32 or 48"),
        ({"width": 5}, r"--width: got 5, .* try 16"),
        ({"num_frames": 6}, r"--num-frames: got 6, allowed: 1 plus a multiple of 4; try 5 or 9"),
        ({"num_frames": 21}, "goes up to 17"),
        ({"attention": "radiall"}, "did you mean 'radial'"),
        ({"attention": "radial", "attention_args": {"blok": "3"}}, "block_size"),
        ({"attention": "radial", "attention_args": {"block_size": "x"}}, "block_size"),
        ({"attention": "radial", "schedule": "stepz=1:"}, "--schedule"),
        ({"attention": "radial", "schedule": "steps=a:"}, "steps"),
        ({"attention": "radial", "schedule": "steps=3:"}, "there are 2 steps"),
        ({"attention": "radial", "schedule": "steps=:-3"}, "there are 2 steps"),
        ({"recipe": "nothing"}, "recipe"),
        ({"output": "clip.avi"}, "allowed"),
        ({"output": "clip.png"}, "one image"),
        ({"device": "gpu"}, "device"),
    ],
)
def test_wrong_usage_is_told_before_loading(tiny_wan, changes, text):
    with pytest.raises(UsageError, match=text):
        resolve(ask(tiny_wan, **changes))


def test_unsupported_requests_are_told_before_loading(tiny_wan):
    for changes, text in (
        ({"dtype": "fp16"}, "float16 needs a GPU"),
        ({"offload": "model"}, "until a GPU needs them"),
        ({"device": "mps"}, "not available"),
    ):
        with pytest.raises(UnsupportedError, match=text):
            resolve(ask(tiny_wan, **changes))


def test_broken_models_are_told_before_loading(tiny_wan, tmp_path):
    copy = shutil.copytree(tiny_wan, tmp_path / "m")
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps({**index, "_class_name": "NoSuchPipeline"}))
    with pytest.raises(UnsupportedError, match="NoSuchPipeline"):
        resolve(ask(copy))
    (copy / WEIGHTS).write_bytes((copy / WEIGHTS).read_bytes()[:-10])
    with pytest.raises(ArtifactError, match="truncated"):
        resolve(ask(copy))
    with pytest.raises(ArtifactError, match="truncated"):
        load(copy)


def test_weights_of_another_model_are_told_when_loading(tiny_wan, tmp_path):
    copy = shutil.copytree(tiny_wan, tmp_path / "m")
    shutil.copy(copy / "vae/diffusion_pytorch_model.safetensors", copy / WEIGHTS)
    with pytest.raises(ArtifactError, match="transformer holds the weights of another model"):
        load(copy)
    other = shutil.copytree(tiny_wan, tmp_path / "other")
    config = json.loads((other / "transformer/config.json").read_text())
    (other / "transformer/config.json").write_text(json.dumps({**config, "num_attention_heads": 3}))
    with pytest.raises(ArtifactError, match="they do not belong together"):
        load(other)


def test_nan_frames_are_refused(tiny_wan, tmp_path):
    from safetensors.torch import load_file, save_file

    copy = shutil.copytree(tiny_wan, tmp_path / "m")
    weights = load_file(copy / WEIGHTS)
    weights["proj_out.weight"].fill_(float("nan"))
    save_file(weights, copy / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match=r"NaN or infinite pixels \(100%\)"):
        run(ask(copy))


def test_long_prompts_are_refused_or_cut_with_a_warning(session):
    words = "red circle " * 5000
    long = session.request.settings.replace(prompt=words)
    with pytest.raises(UsageError, match="10001 tokens, the model reads 16"):
        session.run(long)
    parts = session.pipeline.components
    cut = read_prompts(parts, long.replace(truncate_prompt=True))
    prompt, told = cut.prompt, cut.told
    assert prompt == " ".join(["red circle"] * 7 + ["red"])
    assert len(session.pipeline.tokenizer(prompt)["input_ids"]) == 16
    assert len(told) == 1 and "the end was dropped" in told[0]
    assert read_prompts(parts, long.replace(truncate_prompt=True), most=5).prompt == "red circle red circle"


def test_unknown_words_are_told(session):
    settings = session.request.settings.replace(prompt="a red Elephant moves, zebra", negative_prompt="red")
    read = read_prompts(session.pipeline.components, settings)
    assert (read.prompt, read.negative) == (settings.prompt, "red")
    assert read.told == ("the model does not know these words of the prompt: Elephant, zebra",)


def test_a_long_negative_prompt_is_told_as_such(session):
    with pytest.raises(UsageError, match="negative prompt has"):
        session.run(session.request.settings.replace(negative_prompt="red " * 40))


def test_a_patched_run_reports_and_leaves_the_model_as_it_was(session):
    dense = session.run().frames
    result = changed(
        session, attention="neighborhood", attention_args={"size": "1x1x1"}, schedule="steps=1:,layers=1"
    ).run()
    assert not np.array_equal(result.frames, dense)
    assert result.report["ran"] == 2  # one layer, one step, two branches
    assert result.report["density"]["computed"] == pytest.approx(1 / 12)
    assert result.record["settings"]["schedule"] == "steps=1:,layers=1"
    json.dumps(result.report)
    assert np.array_equal(session.run().frames, dense)


def test_the_recommended_schedule_is_spelled_out_in_the_settings(session):
    asked = session.request.settings.replace(attention="radial", schedule="recommended")
    result = changed(session, attention="radial", schedule="recommended").run()
    assert result.settings.schedule == result.record["settings"]["schedule"] == "steps=1:,layers=1:"
    assert result.report["ran"] == 2
    with pytest.raises(UsageError, match="goes with --attention"):
        resolve(asked.replace(attention=None, recipe="r.yaml"))


def test_a_full_window_equals_the_dense_run(session):
    dense = session.run().frames.astype(int)
    full = changed(session, attention="neighborhood", attention_args={"size": "all"})
    assert np.abs(full.run().frames - dense).max() <= 1


def test_layers_that_do_not_exist_are_told(session):
    with pytest.raises(UsageError, match="there are 2 layers"):
        changed(session, attention="radial", schedule="layers=7:")


def test_a_session_serves_one_request(session):
    with pytest.raises(UsageError, match="--attention differs from what this session was made for"):
        session.run(session.request.settings.replace(attention="radial"))


def test_recipes_carry_methods_schedules_and_models(tiny_wan, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(
        "description: test\nmodels: [Wan*]\nparts:\n  - attention: neighborhood\n"
        "    attention_args: {size: [1, 1, 1]}\n    schedule: {steps: '1:'}\n    roles: self\n"
        "measured: {machine: none}\n"
    )
    assert recipe(path).measured == {"machine": "none"}
    result = run(ask(tiny_wan, recipe=str(path)))
    assert result.report["ran"] == 4
    path.write_text(path.read_text().replace("'1:'", "'5:'"))
    with pytest.raises(UsageError, match="there are 2 steps"):
        resolve(ask(tiny_wan, recipe=str(path)))
    for old, new, text in (
        ("Wan*", "Flux*", "model"), ("neighborhood", "nope", "attention method"), ("size:", "sise:", "size"),
        ("roles", "rolls", "roles"), ("steps:", "stepz:", "steps"),
    ):  # fmt: skip
        broken = tmp_path / "broken.yaml"
        broken.write_text(path.read_text().replace("'5:'", "'1:'").replace(old, new))
        with pytest.raises(UsageError, match=text):
            resolve(ask(tiny_wan, recipe=str(broken)))
    with pytest.raises(ArtifactError, match="does not exist"):
        recipe(tmp_path / "none.yaml")


@pytest.fixture(scope="module")
def lora(tiny_wan, tmp_path_factory):
    from peft import LoraConfig, get_peft_model_state_dict

    pipe = load(tiny_wan)
    torch.manual_seed(0)
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    folder = tmp_path_factory.mktemp("lora")
    pipe.save_lora_weights(folder, transformer_lora_layers=get_peft_model_state_dict(pipe.transformer))
    return folder


def test_lora_changes_the_picture_by_its_strength(session, tiny_wan, lora):
    dense = session.run().frames.astype(int)
    whole = run(ask(tiny_wan, lora=(str(lora),))).frames
    half = run(ask(tiny_wan, lora=(str(lora / "pytorch_lora_weights.safetensors") + "@0.5",))).frames
    off = run(ask(tiny_wan, lora=(f"{lora}@0",))).frames
    stored = resolve(ask(tiny_wan, lora=(f"{lora}@0.5",))).settings.lora
    assert stored == (f"{lora}/pytorch_lora_weights.safetensors@0.5",)
    change = [np.abs(frames - dense).mean() for frames in (whole, half, off)]
    assert change[0] > change[1] > change[2] == 0


def test_lora_files_that_do_not_fit_are_told(tiny_wan, lora, tmp_path):
    with pytest.raises(ArtifactError, match="does not exist"):
        resolve(ask(tiny_wan, lora=(str(tmp_path / "none.safetensors"),)))
    with pytest.raises(UsageError, match="strength"):
        parse_lora(f"{lora}@strong")
    with pytest.raises(ArtifactError, match="no .safetensors"):
        parse_lora(str(tmp_path))
    with pytest.raises(ArtifactError, match="holds no LoRA weights"):
        parse_lora(str(tiny_wan / WEIGHTS))
    (tmp_path / "cut.safetensors").write_bytes((lora / "pytorch_lora_weights.safetensors").read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="truncated"):
        parse_lora(str(tmp_path / "cut.safetensors"))
    from safetensors.torch import load_file, save_file

    weights = load_file(lora / "pytorch_lora_weights.safetensors")
    save_file({key: value.repeat(2, 2) for key, value in weights.items()}, tmp_path / "big.safetensors")
    with pytest.raises(ArtifactError, match="does not fit"):
        apply_loras(load(tiny_wan), [parse_lora(str(tmp_path / "big.safetensors"))])
    renamed = {key.replace("blocks.", "other."): value for key, value in weights.items()}
    save_file(renamed, tmp_path / "other.safetensors")
    with pytest.raises(ArtifactError):
        apply_loras(load(tiny_wan), [parse_lora(str(tmp_path / "other.safetensors"))])


def test_vae_tiling_and_slicing_reach_the_vae(tiny_wan):
    pipe = load(tiny_wan, vae_tiling=True, vae_slicing=True)
    assert pipe.vae.use_tiling and pipe.vae.use_slicing


def test_batches_are_numbered_and_seeded(tiny_wan):
    made = resolve(ask(tiny_wan, output="out.mp4", num_videos=2))
    jobs = expand(made, ["a", "b"])
    assert [str(path) for _, path in jobs] == [f"out-000{index}.mp4" for index in range(4)]
    assert [(job.prompt, job.seed, job.num_videos) for job, _ in jobs] == [
        ("a", 1, 1),
        ("a", 2, 1),
        ("b", 1, 1),
        ("b", 2, 1),
    ]
    named = expand(resolve(ask(tiny_wan)), ["A red circle"])
    assert str(named[0][1]) == "a-red-circle-1.mp4"
    with pytest.raises(UsageError, match="two prompts"):
        expand(resolve(ask(tiny_wan)), ["same", "same"])


def test_prompt_files(tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("one\n\n  two \n", encoding="utf-8")
    assert read_prompt_file(path) == ["one", "two"]
    path.write_text("\n")
    with pytest.raises(UsageError, match="no prompt"):
        read_prompt_file(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ArtifactError, match="cannot read"):
        read_prompt_file(path)


def test_changed_circumstances_are_listed(session):
    assert differences(Record({}, dict(session.made)), session.made) == []
    before = {**session.made, "torch": "1.0"}
    assert differences(Record({}, before), session.made) == [f"torch was 1.0, is {torch.__version__}"]


def test_device_and_dtype_choices():
    assert resolve_dtype(None, torch.device("cpu")) == torch.float32
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(UsageError):
        resolve_dtype("float64", torch.device("cpu"))


@pytest.mark.parametrize("device", ["meta", "xpu", "hpu", "fpga", "vulkan:1"])
def test_a_device_that_is_not_here_is_told_before_weights_are_read(device):
    with pytest.raises(UnsupportedError, match="not available here"):
        resolve_device(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU that is not there")
def test_a_missing_gpu_is_told():
    with pytest.raises(UnsupportedError, match="not available here"):
        resolve_device("cuda")


def test_kinds_sizes_and_grids_are_read_from_classes_and_configs():
    import diffusers

    assert kinds.kind_of(diffusers.WanPipeline) is kinds.VIDEO
    assert kinds.kind_of(diffusers.StableDiffusionPipeline) is kinds.IMAGE
    assert kinds.kind_of(diffusers.LTX2Pipeline) is kinds.AUDIO_VIDEO
    configs = {
        "vae": {"scale_factor_spatial": 16, "scale_factor_temporal": 4},
        "transformer": {"patch_size": [1, 2, 2]},
    }
    rule = kinds.size_rule("WanPipeline", lambda part: configs[part])
    assert (rule.multiple, rule.frames_multiple) == (32, 4)
    assert kinds.token_grid("WanPipeline", lambda part: configs[part], 25, 128, 192) == (7, 4, 6)
    assert kinds.size_rule("UnknownPipeline", lambda part: {}) is None
    assert kinds.token_grid("UnknownPipeline", lambda part: {}, 1, 64, 64) is None


def test_outputs_of_other_forms_become_frames_and_sound():
    from PIL import Image

    images = SimpleNamespace(images=[Image.new("RGB", (8, 4), (10, 20, 30))])
    assert outputs.to_frames(images, kinds.IMAGE).tolist()[0][0][0] == [10, 20, 30]
    tensor = SimpleNamespace(frames=np.zeros((1, 3, 4, 8, 3)), audio=torch.ones(1, 2, 100))
    assert outputs.to_frames(tensor, kinds.AUDIO_VIDEO).shape == (3, 4, 8, 3)
    pipe = SimpleNamespace(vocoder=SimpleNamespace(config=SimpleNamespace(output_sampling_rate=16000)))
    sound, rate = outputs.to_sound(tensor, pipe, kinds.AUDIO_VIDEO)
    assert (sound.shape, rate) == ((100, 2), 16000)
    with pytest.raises(ArtifactError, match="sound"):
        outputs.to_sound(SimpleNamespace(audio=torch.full((1, 1, 9), float("nan"))), pipe, kinds.AUDIO_VIDEO)
    with pytest.raises(UnsupportedError, match="no frames"):
        outputs.to_frames(SimpleNamespace(), kinds.VIDEO)


def test_words_that_a_lora_says_it_was_trained_on_are_no_slips(tiny_wan, tmp_path):
    from genkit.lora.facts import Facts
    from genkit.lora.save import save_lora

    rows, columns = load(tiny_wan).transformer.blocks[0].attn1.to_q.weight.shape
    weights = {"blocks.0.attn1.to_q": (torch.zeros(1, columns), torch.zeros(rows, 1), 1.0)}
    facts = Facts(family="Wan", new_words=["zorb"], trigger_word="sks Blick")
    path = save_lora(tmp_path / "zorb.safetensors", {"transformer": weights}, facts)
    words = "a red Zorb sks blick zebra"
    for loras, unknown in (((str(path),), "zebra"), ((), "Zorb, blick, sks, zebra")):
        made = resolve(ask(tiny_wan, prompt=words, lora=loras))
        assert made.prompts.told == (f"the model does not know these words of the prompt: {unknown}",)


def test_loading_draws_no_bars_of_other_libraries_and_leaves_them_as_they_were(tiny_wan, capfd):
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    before = [library.is_progress_bar_enabled() for library in (of_diffusers, of_transformers)]
    of_diffusers.enable_progress_bar()
    try:
        load(tiny_wan)
        assert of_diffusers.is_progress_bar_enabled()
        assert "%|" not in "".join(capfd.readouterr())
    finally:
        if not before[0]:
            of_diffusers.disable_progress_bar()
    assert [library.is_progress_bar_enabled() for library in (of_diffusers, of_transformers)] == before
