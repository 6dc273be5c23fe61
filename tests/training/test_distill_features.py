"""Sparse students (CLEAR): which layers are compared, the loss part by part, samples of the model itself, the file."""

from __future__ import annotations

import pytest
import tiny
import torch
from tiny_flux import build_tiny_flux

import genkit
from genkit.errors import UnsupportedError, UsageError
from genkit.lora.facts import read_facts
from genkit.lora.files import NAMED
from genkit.models.check import check_safetensors
from genkit.pipelines.resolve import resolve
from genkit.pipelines.session import Session
from genkit.pipelines.settings import GenerateSettings
from genkit.training.distill.outputs import Outputs, watched_layers
from genkit.training.distill.plan import Plan
from genkit.training.distill.run import Run, distill
from genkit.training.distill.settings import DistillSettings
from genkit.training.engine.memory import checkpoint_gradients
from genkit.training.lora.files import ATTENTION

PROMPT = "a red circle"


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    return build_tiny_flux(tmp_path_factory.mktemp("flux"))


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text(f"{PROMPT}\na blue square\n")
    return path


def settings(model, prompts, output, **more):
    given = {
        "kind": "features", "model": str(model), "prompts": str(prompts), "output": str(output), "height": 32,
        "width": 32, "steps": 2, "guidance_scale": 1.0, "num_samples": 3, "attention": "clear",
        "attention_args": {"radius": 1.5}, "feature_every": 1, "rank": 2, "learning_rate": 0.01, "max_train_steps": 4,
        "checkpointing_steps": 2, "train_batch_size": 2, "seed": 3, "max_sequence_length": 16, **more,
    }  # fmt: skip
    return DistillSettings.from_mappings(("the test", given))


def opened(*args, **more):
    return Run.open(Plan.of(settings(*args, **more)), print)


def test_layers_of_flux_are_the_published_ten():
    from accelerate import init_empty_weights
    from diffusers import FluxTransformer2DModel

    with init_empty_weights():
        model = FluxTransformer2DModel(guidance_embeds=True)
    expected = tuple(f"single_transformer_blocks.{index}.attn" for index in range(1, 38, 4))
    assert len(expected) == 10 and watched_layers(model, 4) == expected


def test_layers_that_none_has_are_refused(flux, prompts, tmp_path):
    assert watched_layers(genkit.load(flux).transformer, 1) == ("single_transformer_blocks.0.attn",)
    with pytest.raises(UsageError, match="--feature-every 4"):
        Plan.of(settings(flux, prompts, tmp_path, feature_every=4))
    Plan.of(settings(flux, prompts, tmp_path, feature_every=4, feature_weight=0.0))


def test_outputs_are_what_the_projection_behind_reads():
    case = tiny.build("wan")
    path = watched_layers(case.model, 1)[0]
    module, seen = case.model.get_submodule(path), []
    hook = module.to_out[0].register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    outputs = Outputs(case.model, [path])
    with outputs.kept() as found:
        case.run()
    case.run()
    hook.remove()
    outputs.remove()
    assert len(found) == 1 and torch.equal(found[0], seen[0][0])
    assert torch.equal(module.to_out[0](found[0]), seen[0][1])


def test_a_method_that_hides_nothing_has_nothing_to_learn(flux, prompts, tmp_path):
    run = opened(flux, prompts, tmp_path, attention_args={"radius": 99})
    loss, figures = run.task(0)
    assert figures["loss answer"] < 1e-9 and figures["loss attention"] < 1e-9
    assert figures["loss model"] > 1e-3 and float(loss.detach()) == pytest.approx(figures["loss model"], rel=1e-5)
    run.handle.remove()


def test_the_loss_is_the_published_sum_and_its_teacher_dense(flux, prompts, tmp_path):
    """Answers and outputs of a model loaded by stock Diffusers, on what the task drew."""
    run = opened(flux, prompts, tmp_path, train_batch_size=1, caption_dropout=0.0)
    loss, figures = run.task(5)
    task = run.task
    generator = task._generator(10, 5, 0)
    prompt, tensors = task.samples.drawn(generator)
    level = task._levels.draw(1, generator)
    noise = task._noise(11, 5, 0)
    clean = tensors["image"][None]
    noisy = (1 - level) * clean + level * noise
    other = genkit.load(flux).transformer
    path = "single_transformer_blocks.0.attn"
    asked = (noisy, level, task._texts([prompt]), 1.0, {k: v[None] for k, v in tensors.items() if k != "image"})
    answers, attention = [], []
    for method in (None, genkit.Clear(radius=1.5)):
        kept = []
        hook = other.get_submodule(path).register_forward_hook(lambda _, args, out, kept=kept: kept.append(out))
        handle = None if method is None else genkit.patch(other, method)
        with torch.no_grad():
            answers.append(task._answer(other, *asked))
        attention.append(kept[0])
        hook.remove()
        if handle is not None:
            handle.remove()
    dense, sparse = answers
    parts = {
        "loss model": (sparse - (noise - clean)).square().mean(),
        "loss answer": (sparse - dense).square().mean(),
        "loss attention": (attention[0] - attention[1]).square().mean(),
    }
    for name, value in parts.items():
        assert figures[name] == pytest.approx(float(value), rel=1e-4), name
    wanted = parts["loss model"] + 0.5 * parts["loss answer"] + 0.5 * parts["loss attention"]
    assert float(loss.detach()) == pytest.approx(float(wanted), rel=1e-4)
    run.handle.remove()


def test_checkpointed_gradients_are_the_same(flux, prompts, tmp_path):
    found = []
    for on in (False, True):
        run = opened(flux, prompts, tmp_path, attention_args={"radius": 1.5, "down": 2}, train_attention_weights=True)
        if on:
            checkpoint_gradients(run.task)
            run.task.network.train()
        for number in range(2):
            loss, _ = run.task(number)
            loss.backward()
        grads = {name: value.grad for name, value in run.task.named_parameters() if value.requires_grad}
        assert any("spatial_weight" in name for name in grads)
        found.append(grads)
        run.handle.remove()
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, atol=1e-6, rtol=1e-4)


def test_training_brings_sparse_answers_to_the_dense_ones(flux, prompts, tmp_path):
    # A model of random weights fits no data: its own loss would outweigh the teacher's.
    run = opened(flux, prompts, tmp_path, rank=8, answer_weight=1e4)
    optimizer = torch.optim.Adam([value for value in run.task.parameters() if value.requires_grad], lr=3e-3)

    def mean():
        with torch.no_grad():
            return sum(run.task(number)[1]["loss answer"] for number in range(100, 108)) / 8

    before = mean()
    for number in range(40):
        loss, _ = run.task(number)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert mean() < 0.7 * before
    run.handle.remove()


def test_a_run_that_was_stopped_makes_no_sample_twice_and_ends_the_same(flux, prompts, tmp_path):
    from safetensors.torch import load_file

    once = distill(settings(flux, prompts, tmp_path / "once"))
    samples = sorted((tmp_path / "once" / "cache").glob("*/*.safetensors"))
    assert len(samples) == 3
    twice = tmp_path / "twice"
    distill(settings(flux, prompts, twice, max_train_steps=2))
    (twice / NAMED).unlink()
    times = {path: path.stat().st_mtime_ns for path in (twice / "cache").glob("*/*.safetensors")}
    distill(settings(flux, prompts, twice, resume_from_checkpoint="latest"))
    assert {path: path.stat().st_mtime_ns for path in (twice / "cache").glob("*/*.safetensors")} == times
    one, other = load_file(once), load_file(twice / NAMED)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(UsageError, match="num_samples"):
        (twice / NAMED).unlink()
        distill(settings(flux, prompts, twice, num_samples=4, resume_from_checkpoint="latest"))


def test_the_file_is_used_by_generate_and_by_stock_diffusers(flux, prompts, tmp_path):
    from diffusers import FluxPipeline

    args = {"radius": 1.5, "down": 2}
    output = tmp_path / "clear"
    distill(settings(flux, prompts, output, attention_args=args, train_attention_weights=True))
    assert (output / ATTENTION).is_file()
    facts = read_facts(check_safetensors(output / NAMED)["__metadata__"], "the file")
    assert facts.made_by == "distill" and facts.sampling is None
    assert (facts.attention, facts.attention_weights) == ("clear", ATTENTION)
    given = {
        "model": str(flux), "prompt": PROMPT, "height": 32, "width": 32, "seed": 0, "steps": 2, "guidance_scale": 1.0,
        "lora": str(output), "attention": "auto", "max_sequence_length": 16,
    }  # fmt: skip
    made = Session(resolve(GenerateSettings.from_mappings(("the test", given)))).run()
    stock = FluxPipeline.from_pretrained(str(flux), torch_dtype=torch.float32)
    stock.set_progress_bar_config(disable=True)
    stock.load_lora_weights(str(output))
    with genkit.patch(stock, genkit.Clear(**args, weights=str(output / ATTENTION))) as patch:
        wanted = stock(
            PROMPT, height=32, width=32, num_inference_steps=2, guidance_scale=1.0, max_sequence_length=16,
            output_type="np", generator=torch.Generator().manual_seed(0),
        ).images[0]  # fmt: skip
        assert patch.report().ran
    assert abs(made.frames[0].astype(float) / 255 - wanted).max() < 0.01


def test_the_estimate_counts_the_teacher(tiny_wan, prompts, tmp_path):
    more = {"num_frames": 5, "attention": "neighborhood", "attention_args": {"size": "1x1x1"}}
    student = Plan.of(settings(tiny_wan, prompts, tmp_path, **more)).estimate().memory
    plain = {"kind": "steps", "attention": None, "attention_args": {}, "num_samples": 200, "feature_every": 4}
    alone = Plan.of(settings(tiny_wan, prompts, tmp_path, **{**more, **plain})).estimate().memory
    assert student.weights == 2 * alone.weights and student.encoders_stay
    assert student.training >= student.weights + student.encoders + student.adapter + student.activations


def test_a_model_whose_grid_is_in_its_positions_is_estimated_too(flux, prompts, tmp_path):
    found = Plan.of(settings(flux, prompts, tmp_path, height=64, width=64, attention_args={"radius": 2})).estimate()
    densities = [density for density in found.densities.values() if density is not None]
    assert densities and all(0 < density.computed < 1 for density in densities)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"attention": None, "attention_args": {}}, "--attention METHOD"),
        ({"attention": "none", "attention_args": {}}, "--attention METHOD"),
        ({"attention": "sliding_window", "attention_args": {}}, "cannot be trained through"),
        ({"own_path": 0.2}, "belongs to steps"),
        ({"renoise": 0.2}, "belongs to tdm"),
        ({"num_samples": 0}, "num.samples"),
        ({"feature_every": 0}, "feature.every"),
        ({"answer_weight": -1.0}, "answer.weight"),
        ({"kind": "dmd"}, "steps, features, tdm|kind"),
        ({"train_attention_weights": True}, "no weights of its own"),
    ],
)
def test_bad_settings_are_refused_with_what_is_allowed(flux, prompts, tmp_path, change, said):
    with pytest.raises((UsageError, UnsupportedError), match=said):
        Plan.of(settings(flux, prompts, tmp_path / "clear", **change))
    assert not (tmp_path / "clear").exists() or not list((tmp_path / "clear").iterdir())
