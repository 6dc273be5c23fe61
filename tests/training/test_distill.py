"""Few-step students: the steps' algebra, what is taught, the file, and what generate makes of it."""

from __future__ import annotations

import math

import diffusers
import pytest
import torch
from diffusers import WanPipeline

from genkit.errors import ArtifactError, UnsupportedError, UsageError
from genkit.families.training.objectives import Flow, Table
from genkit.lora.facts import Sampling, read_facts
from genkit.lora.files import NAMED
from genkit.models.check import check_safetensors
from genkit.pipelines.resolve import resolve
from genkit.pipelines.session import Session
from genkit.pipelines.settings import GenerateSettings
from genkit.training.distill.grid import Stride, grid_of, sampler_of
from genkit.training.distill.plan import Plan
from genkit.training.distill.prompts import prompts_of
from genkit.training.distill.run import Run, distill
from genkit.training.distill.settings import DistillSettings

PROMPT = "a red circle moves right"


def settings(model, prompts, output, **more):
    given = {
        "model": str(model), "prompts": str(prompts), "output": str(output), "height": 32, "width": 32,
        "num_frames": 5, "steps": 2, "substeps": 2, "guidance_scale": 3.0, "rank": 2, "learning_rate": 0.01,
        "max_train_steps": 4, "checkpointing_steps": 2, "train_batch_size": 2, "seed": 3, **more,
    }  # fmt: skip
    return DistillSettings.from_mappings(("the test", given))


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text(f"# two of them\n{PROMPT}\n\na blue square spins\n{PROMPT}\n")
    return path


@pytest.fixture(scope="module")
def trained(tiny_wan, prompts, tmp_path_factory):
    output = tmp_path_factory.mktemp("trained") / "fast"
    assert distill(settings(tiny_wan, prompts, output)) == output / NAMED
    return output


def table(prediction):
    return diffusers.DDIMScheduler(
        num_train_timesteps=1000, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012,
        prediction_type=prediction, rescale_betas_zero_snr=prediction == "v_prediction", clip_sample=False,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["flow", "epsilon", "v_prediction"])
def test_a_stride_is_the_stock_samplers_step(kind):
    base = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0) if kind == "flow" else table(kind)
    objective = Flow() if kind == "flow" else Table(base.alphas_cumprod, kind)
    sampler = sampler_of(base, objective, 3.0)
    grid = grid_of(sampler, objective, 5, 2)
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(2, 3, 4, generator=generator)
    for step, time in enumerate(sampler.timesteps):
        answer = torch.randn(2, 3, 4, generator=generator)
        reached = sampler.step(answer, time, noisy, return_dict=False)[0]
        stride = Stride.of(objective, grid.levels[step], grid.levels[step + 1])
        assert torch.allclose(stride.go(noisy, answer), reached, atol=2e-5, rtol=1e-4)
        assert torch.allclose(stride.answer(noisy, reached), answer, atol=1e-3, rtol=1e-3)
        noisy = reached


@pytest.mark.parametrize("kind", ["flow", "v_prediction"])
def test_a_model_with_straight_paths_is_taught_nothing(kind):
    """Of the exact answer for one clean sample, all strides together arrive where one does."""
    base = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0) if kind == "flow" else table(kind)
    objective = Flow() if kind == "flow" else Table(base.alphas_cumprod, kind)
    grid = grid_of(sampler_of(base, objective, 3.0), objective, 3, 4)
    clean, noise = (torch.randn(1, 8, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    for step in range(grid.steps):
        levels = grid.between(step)
        noisy, answer = objective.noised(clean, noise, torch.tensor(levels[:1]))
        walked = noisy
        for high, low in zip(levels, levels[1:], strict=False):
            _, exact = objective.noised(clean, noise, torch.tensor([high]))
            walked = Stride.of(objective, high, low).go(walked, exact)
        assert torch.allclose(Stride.of(objective, levels[0], levels[-1]).answer(noisy, walked), answer, atol=1e-3)


def test_levels_are_those_the_sampler_calls_at():
    objective, base = Flow(), diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)
    sampler = sampler_of(base, objective, 3.0)
    grid = grid_of(sampler, objective, 4, 3)
    assert grid.levels[0] == 1 and grid.levels[-1] == 0 and grid.steps == 4
    assert torch.allclose(objective.timesteps(torch.tensor(grid.levels[:-1])), sampler.timesteps.float(), atol=1e-3)
    between = grid.between(1)
    assert between[0] == grid.levels[1] and between[-1] == grid.levels[2] and len(between) == 4
    assert torch.allclose(torch.tensor(between).diff(), torch.tensor(between).diff()[0])
    v = Table(table("v_prediction").alphas_cumprod, "v_prediction")
    sampler = sampler_of(table("v_prediction"), v, 1.0)
    levels = grid_of(sampler, v, 7, 1).levels
    assert v.timesteps(torch.tensor(levels[:-1])).tolist() == sampler.timesteps.tolist()


def test_without_guidance_and_substeps_the_student_is_the_teacher(tiny_wan, prompts, tmp_path):
    run = Run.open(Plan.of(settings(tiny_wan, prompts, tmp_path, guidance_scale=1.0, substeps=1)), print)
    losses = [float(run.task(number)[0].detach()) for number in range(4)]
    assert max(losses) < 1e-9
    run = Run.open(Plan.of(settings(tiny_wan, prompts, tmp_path)), print)
    assert min(float(run.task(number)[0].detach()) for number in range(4)) > 1e-7


def test_the_teacher_walks_as_the_stock_pipeline_does(tiny_wan, prompts, tmp_path):
    """All steps of the teacher from one noise are a run of the stock pipeline by the same sampler."""
    run = Run.open(Plan.of(settings(tiny_wan, prompts, tmp_path, steps=3, substeps=1, own_path=0.0)), print)
    task, teaching = run.task, run.task.teaching
    text, noisy = task._begin(0, 0, 0)
    asked = [teaching.prompts.at(teaching.seed, 0, place) for place in range(2)]
    stock = WanPipeline.from_pretrained(str(tiny_wan), torch_dtype=torch.float32)
    stock.set_progress_bar_config(disable=True)
    stock.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=run.sampling.flow_shift)
    wanted = stock(
        asked, negative_prompt=["", ""], height=32, width=32, num_frames=5, num_inference_steps=3, guidance_scale=3.0,
        max_sequence_length=task.teaching.texts._slots, output_type="latent", latents=noisy.clone(),
    ).frames  # fmt: skip
    for step in range(3):
        noisy = task._teach(noisy, text, step)
    assert torch.allclose(noisy, wanted, atol=1e-4)


def test_the_teacher_with_a_lora_is_the_stock_pipeline_with_it(tiny_wan, prompts, trained, tmp_path):
    """The sparse student's teacher is the few-step model as it is sampled: without guidance, by the file's own word."""
    plan = Plan.of(settings(tiny_wan, prompts, tmp_path, guidance_scale=None, substeps=1, teacher_lora=str(trained)))
    assert plan.guidance == 1 and plan.copies == 1
    run = Run.open(plan, print)
    task, teaching = run.task, run.task.teaching
    text, noisy = task._begin(0, 0, 0)
    asked = [teaching.prompts.at(teaching.seed, 0, place) for place in range(2)]
    stock = WanPipeline.from_pretrained(str(tiny_wan), torch_dtype=torch.float32)
    stock.set_progress_bar_config(disable=True)
    stock.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=run.sampling.flow_shift)
    call = {
        "height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 2, "guidance_scale": 1.0,
        "max_sequence_length": teaching.texts._slots, "output_type": "latent",
    }  # fmt: skip
    plain = stock(asked, latents=noisy.clone(), **call).frames
    stock.load_lora_weights(str(trained))
    wanted = stock(asked, latents=noisy.clone(), **call).frames
    own = task.network
    for step in range(2):
        noisy = task._teach(noisy, text, step)
    assert torch.allclose(noisy, wanted, atol=1e-4)
    assert not torch.allclose(wanted, plain, atol=1e-3), "the LoRA changes something"
    assert task.network is own and all("lora" not in name for name, _ in task._teacher[0].named_parameters())


def test_the_teachers_lora_is_looked_at_before_anything_is_loaded(tiny_wan, prompts, trained, tmp_path):
    for more, said in (
        ({"teacher_lora": "nowhere.safetensors"}, "nowhere"),
        ({"teacher_lora": f"{trained}@0.5"}, "--teacher-lora .*without strength"),
        ({"teacher_lora": str(trained), "kind": "tdm", "substeps": 3}, "--teacher-lora has no effect with --kind tdm"),
    ):
        with pytest.raises((UsageError, ArtifactError), match=said):
            Plan.of(settings(tiny_wan, prompts, tmp_path, **more))
    asked = settings(tiny_wan, prompts, tmp_path, teacher_lora=str(trained), guidance_scale=2.0)
    assert Plan.of(asked).guidance == 2, "what is said wins over the file"


def test_training_brings_the_students_steps_to_the_teachers(tiny_wan, prompts, tmp_path):
    run = Run.open(Plan.of(settings(tiny_wan, prompts, tmp_path, rank=8, target_modules="all-linear")), print)
    optimizer = torch.optim.Adam([value for value in run.task.parameters() if value.requires_grad], lr=0.01)

    def mean():
        with torch.no_grad():
            return sum(float(run.task(number)[0]) for number in range(100, 108)) / 8

    before = mean()
    for number in range(40):
        loss, _ = run.task(number)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert mean() < 0.7 * before


def test_a_run_that_was_stopped_ends_as_an_unbroken_one(trained, tiny_wan, prompts, tmp_path):
    distill(settings(tiny_wan, prompts, tmp_path / "fast", max_train_steps=2, lr_scheduler="constant"))
    (tmp_path / "fast" / NAMED).unlink()
    distill(settings(tiny_wan, prompts, tmp_path / "fast", lr_scheduler="constant", resume_from_checkpoint="latest"))
    from safetensors.torch import load_file

    once, twice = load_file(trained / NAMED), load_file(tmp_path / "fast" / NAMED)
    assert once.keys() == twice.keys()
    assert all(torch.equal(once[name], twice[name]) for name in once)


def test_going_on_with_other_settings_is_refused(trained, tiny_wan, prompts):
    (trained / NAMED).rename(trained / "kept")
    try:
        with pytest.raises(UsageError, match="substeps"):
            distill(settings(tiny_wan, prompts, trained, substeps=3, resume_from_checkpoint="latest"))
    finally:
        (trained / "kept").rename(trained / NAMED)


def test_the_file_tells_how_it_is_sampled(trained):
    facts = read_facts(check_safetensors(trained / NAMED)["__metadata__"], "the file")
    assert facts.made_by == "distill" and facts.steps == 4
    assert facts.sampling == Sampling(2, 1.0, "FlowMatchEulerDiscreteScheduler", facts.sampling.flow_shift)


def generate(model, **more):
    given = {
        "model": str(model), "prompt": PROMPT, "height": 32, "width": 32, "num_frames": 5, "seed": 0,
        "max_sequence_length": 16, **more,
    }  # fmt: skip
    return resolve(GenerateSettings.from_mappings(("the test", given)))


def test_generate_takes_steps_guidance_and_sampler_from_the_file(trained, tiny_wan):
    request = generate(tiny_wan, lora=str(trained))
    assert (request.settings.steps, request.settings.guidance_scale) == (2, 1.0)
    assert any("2 steps without guidance" in note for note in request.notes)
    made = Session(request).run()
    stock = WanPipeline.from_pretrained(str(tiny_wan), torch_dtype=torch.float32)
    stock.set_progress_bar_config(disable=True)
    shift = stock.scheduler.config.flow_shift
    stock.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    stock.load_lora_weights(str(trained))
    wanted = stock(
        PROMPT, height=32, width=32, num_frames=5, num_inference_steps=2, guidance_scale=1.0, max_sequence_length=16,
        output_type="np", generator=torch.Generator().manual_seed(0),
    ).frames[0]  # fmt: skip
    assert abs(made.frames.astype(float) / 255 - wanted).max() < 0.01


def test_other_steps_than_it_was_made_for_are_told(trained, tiny_wan):
    request = generate(tiny_wan, lora=str(trained), steps=4)
    assert request.settings.steps == 4
    assert any("--steps 4 is not what" in note for note in request.notes)


def test_fast_is_the_lora_beside_the_model(trained, tiny_wan, tmp_path):
    import shutil

    with pytest.raises(UnsupportedError, match="--fast: .* has no few-step LoRA"):
        generate(tiny_wan, fast=True)
    model = tmp_path / "model"
    shutil.copytree(tiny_wan, model)
    (model / "fast").mkdir()
    shutil.copy(trained / NAMED, model / "fast" / NAMED)
    request = generate(model, fast=True)
    assert request.settings.steps == 2 and request.settings.lora == ()
    by_hand = generate(model, lora=str(trained))
    assert (Session(request).run().frames == Session(by_hand).run().frames).all()
    again = GenerateSettings.from_mappings(("stored", {**request.settings.to_dict(), "output": None}))
    assert resolve(again).settings.steps == 2


def test_a_method_in_the_student_leaves_the_teacher_dense(tiny_wan, prompts, tmp_path):
    given = {"attention": "neighborhood", "attention_args": {"size": "1x1x1"}}
    plain = Run.open(Plan.of(settings(tiny_wan, prompts, tmp_path)), print)
    sparse = Run.open(Plan.of(settings(tiny_wan, prompts, tmp_path, **given)), print)
    text, noisy = plain.task._begin(0, 0, 0)
    assert torch.equal(plain.task._teach(noisy, text, 0), sparse.task._teach(noisy, text, 0))
    assert plain.task(0)[0].item() != sparse.task(0)[0].item()
    sparse.handle.remove()


@pytest.mark.parametrize(
    "change, said",
    [
        ({"prompts": "nowhere.txt"}, "nowhere.txt"),
        ({"max_train_steps": None}, "budget"),
        ({"minutes": 1.0}, "budget"),
        ({"num_train_epochs": 2}, "num-train-epochs"),
        ({"use_dora": True}, "plain LoRA"),
        ({"attention": "auto"}, "--attention auto"),
        ({"compile": True}, "--compile"),
        ({"height": 33}, "33"),
        ({"num_frames": 6}, "6"),
        ({"steps": 0}, "steps"),
        ({"own_path": 1.5}, "own-path|own_path"),
        ({"model": "no-such-model"}, "no-such-model"),
        ({"optimizer": "nothing"}, "nothing"),
        ({"target_modules": "nothing_here"}, "nothing_here"),
    ],
)
def test_bad_settings_are_refused_with_what_is_allowed(tiny_wan, prompts, tmp_path, change, said):
    given = {"model": tiny_wan, "prompts": prompts, **change}
    with pytest.raises((UsageError, UnsupportedError, ArtifactError), match=said):
        Run.open(Plan.of(settings(output=tmp_path / "fast", **given)), print)


def test_prompts_come_from_a_file_or_the_world(prompts, tmp_path):
    from genkit.pipelines.kinds import AUDIO_VIDEO, IMAGE, VIDEO

    found = prompts_of(str(prompts), VIDEO)
    assert found.count == 2
    drawn = {found.at(0, number, 0) for number in range(40)}
    assert drawn == {PROMPT, "a blue square spins"}
    for kind in (IMAGE, VIDEO):
        world = prompts_of("world", kind)
        assert world.at(1, 2, 3) == world.at(1, 2, 3) != world.at(1, 2, 4)
    empty = tmp_path / "empty.txt"
    empty.write_text("\n# nothing\n")
    with pytest.raises(UsageError, match="no line"):
        prompts_of(str(empty), VIDEO)
    with pytest.raises(UsageError, match="folder|text file"):
        prompts_of(str(tmp_path), VIDEO)
    with pytest.raises(UsageError, match="pictures and clips"):
        prompts_of("world", AUDIO_VIDEO)


def test_loss_is_a_number(tiny_wan, prompts, tmp_path):
    run = Run.open(Plan.of(settings(tiny_wan, prompts, tmp_path)), print)
    loss, figures = run.task(1)
    assert math.isfinite(loss.item()) and set(figures) == {"loss step 2"}
