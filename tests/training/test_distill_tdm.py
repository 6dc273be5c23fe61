"""Trajectory distribution matching: noise put on again, the student's gradient, whose turn it is, the rollout."""

from __future__ import annotations

import json
import math

import diffusers
import pytest
import torch
from diffusers import WanPipeline
from distill_helpers import same_weights, tiny_settings

from genkit.errors import UnsupportedError, UsageError
from genkit.families.training.objectives import Flow, Table
from genkit.lora.facts import read_facts
from genkit.lora.files import NAMED
from genkit.models.check import check_safetensors
from genkit.training.distill.plan import Plan
from genkit.training.distill.run import Run, distill
from genkit.training.distill.tdm import noised_again, student_loss


def settings(model, prompts, output, **more):
    given = {"kind": "tdm", "num_frames": 5, "steps": 3, "max_train_steps": 4, **more}
    return tiny_settings(model, prompts, output, **given)


def opened(*args, **more):
    return Run.open(Plan.of(settings(*args, **more)), print)


def grads(task):
    found = {"fake": [], "student": []}
    for name, value in task.named_parameters():
        if value.requires_grad:
            found["fake" if name.startswith("scores.") else "student"].append(value.grad)
    return found


@pytest.mark.parametrize("kind", ["flow", "v_prediction"])
def test_noise_put_on_again_has_the_levels_mean_and_variance(kind):
    objective = Flow()
    if kind != "flow":
        table = diffusers.DDIMScheduler(beta_schedule="scaled_linear", prediction_type=kind).alphas_cumprod
        objective = Table(table, kind)
    draw = torch.Generator().manual_seed(0)
    clean = torch.full((1, 200_000), 1.5)
    for low, high in ((0.0, 0.4), (0.5, 0.9), (0.3, 0.3)):
        low, high = torch.tensor([low]), torch.tensor([high])
        signal, spread = objective.parts(low, clean)
        middle = signal * clean + spread * torch.randn(clean.shape, generator=draw)
        again = noised_again(middle, torch.randn(clean.shape, generator=draw), objective, low, high)
        signal, spread = (float(part) for part in objective.parts(high, clean))
        assert float(again.mean()) == pytest.approx(1.5 * signal, abs=0.01)
        assert float(again.var()) == pytest.approx(spread**2, rel=0.02, abs=1e-4)


def test_the_students_gradient_is_the_published_one():
    draw = torch.Generator().manual_seed(1)
    clean, real, fake = (torch.randn(2, 3, 4, generator=draw, dtype=torch.float64) for _ in range(3))
    clean.requires_grad_()
    student_loss(clean, real, fake).backward()
    error, smooth = fake - real, 1e-3 / 128 * math.sqrt(12)
    torch.testing.assert_close(clean.grad, error / (error.square() + smooth**2).sqrt() / 24, atol=1e-12, rtol=1e-9)


def test_a_student_that_makes_what_the_teacher_makes_is_left_alone(tiny_wan, prompts, tmp_path):
    run = opened(tiny_wan, prompts, tmp_path, guidance_scale=1.0)
    loss, figures = run.task(1)
    loss.backward()
    assert figures["distance"] < 1e-6 and float(loss.detach()) < 1e-6
    run = opened(tiny_wan, prompts, tmp_path)
    assert run.task(1)[1]["distance"] > 1e-4


def test_updates_take_turns_and_touch_their_own_weights(tiny_wan, prompts, tmp_path):
    run = opened(tiny_wan, prompts, tmp_path, fake_updates=2, gradient_accumulation_steps=2)
    for number in range(12):
        loss, figures = run.task(number)
        turn = number // 2 % 3
        assert ("loss student" in figures) == (turn == 2) and ("loss fake" in figures) == (turn < 2)
        run.task.zero_grad(set_to_none=True)
        loss.backward()
        found = grads(run.task)
        mine, other = ("student", "fake") if turn == 2 else ("fake", "student")
        assert all(value is None for value in found[other])
        assert any(value is not None and value.abs().sum() > 0 for value in found[mine])


def test_without_fresh_noise_the_rollout_is_the_stock_samplers_run(tiny_wan, prompts, tmp_path):
    run = opened(tiny_wan, prompts, tmp_path, renoise=1.0)
    task, teaching = run.task, run.task.teaching
    text = task._asked(0, 0)
    rolled = task._roll(0, 0, 0, text)
    last = task._both(rolled[-1], task._levels([2, 2], rolled[-1]), text)[0]
    asked = [teaching.prompts.at(teaching.seed, 0, place) for place in range(2)]
    stock = WanPipeline.from_pretrained(str(tiny_wan), torch_dtype=torch.float32)
    stock.set_progress_bar_config(disable=True)
    stock.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=run.sampling.flow_shift)
    wanted = stock(
        asked, height=32, width=32, num_frames=5, num_inference_steps=3, guidance_scale=1.0,
        max_sequence_length=teaching.texts._slots, output_type="latent", latents=rolled[0].clone(),
    ).frames  # fmt: skip
    assert len(rolled) == 3 and torch.allclose(last, wanted, atol=1e-4)


def test_fresh_noise_keeps_the_share_that_is_asked_for(tiny_wan, prompts, tmp_path):
    run = opened(tiny_wan, prompts, tmp_path)
    clean, noise = torch.zeros(1, 50_000), torch.ones(1, 50_000)
    fresh = torch.randn(1, 50_000, generator=torch.Generator().manual_seed(0))
    put = run.task._put(clean, noise, fresh, torch.tensor([0.5]))
    assert float(put.mean()) == pytest.approx(0.5 * 0.9, abs=0.01)
    assert float(put.var()) == pytest.approx(0.25 * (1 - 0.81), rel=0.03)


def test_the_student_is_sparse_and_the_teacher_dense(tiny_wan, prompts, tmp_path):
    given = {"attention": "neighborhood", "attention_args": {"size": "1x1x1"}}
    plain, sparse = opened(tiny_wan, prompts, tmp_path), opened(tiny_wan, prompts, tmp_path, **given)
    both = opened(tiny_wan, prompts, tmp_path, fake_attention=True, **given)
    noisy = plain.task._noise(20, 0, 0)
    level = torch.full((2,), 0.7)
    text = plain.task._asked(0, 0)
    answers = {}
    for name, run in (("plain", plain), ("sparse", sparse), ("both", both)):
        with torch.no_grad(), run.task._off() as teacher:
            answers[name] = run.task._answer(teacher, noisy, level, text, 1.0)
    assert torch.equal(answers["plain"], answers["sparse"]) and torch.equal(answers["plain"], answers["both"])
    with torch.no_grad():
        dense = plain.task._answer(plain.task.scores, noisy, level, text, 1.0)
        assert torch.equal(sparse.task._answer(sparse.task.scores, noisy, level, text, 1.0), dense)
        hidden = both.task._answer(both.task.scores, noisy, level, text, 1.0)
        assert not torch.allclose(hidden, dense, atol=1e-5)
        assert torch.equal(sparse.task._answer(sparse.task.network, noisy, level, text, 1.0), hidden)
    estimates = [run.plan.estimate().memory for run in (plain, sparse, both)]
    assert estimates[0].weights == estimates[1].weights == pytest.approx(estimates[2].weights * 2 / 3)


def test_a_run_that_was_stopped_in_a_round_ends_as_an_unbroken_one(tiny_wan, prompts, tmp_path):
    once = distill(settings(tiny_wan, prompts, tmp_path / "once"))
    twice = tmp_path / "twice"
    distill(settings(tiny_wan, prompts, twice, max_train_steps=3))
    (twice / NAMED).unlink()
    distill(settings(tiny_wan, prompts, twice, resume_from_checkpoint="latest"))
    one = same_weights(once, twice / NAMED)
    assert not any("scores" in name for name in one)
    facts = read_facts(check_safetensors(once)["__metadata__"], "the file")
    assert facts.made_by == "distill" and facts.sampling.steps == 3 and facts.sampling.guidance_scale == 1.0


def test_the_fake_scores_have_a_rate_of_their_own(tiny_wan, prompts, tmp_path):
    from genkit.training.distill.plan import optimizer_for_student

    for given, wanted in (({}, 5.0), ({"fake_learning_rate": 0.02}, 2.0)):
        run = opened(tiny_wan, prompts, tmp_path, **given)
        named = [(name, value) for name, value in run.task.named_parameters() if value.requires_grad]
        groups = optimizer_for_student(run.plan.settings, named).param_groups
        factors = sorted(group.get("factor", 1.0) for group in groups)
        assert factors == [1.0, pytest.approx(wanted)] and all(group["params"] for group in groups)


def test_the_command_tells_memory_and_writes_the_file(tiny_wan, prompts, tmp_path, capsys):
    from genkit.cli.main import main

    flags = [
        "train", "distill", "--kind", "tdm", "--model", str(tiny_wan), "--prompts", str(prompts), "--height", "32",
        "--width", "32", "--num-frames", "5", "--steps", "2", "--rank", "2", "--max-train-steps", "2", "--attention",
        "neighborhood", "--attention-args", "size=1x1x1", "--optimizer-args", "betas=(0.0,0.95)", "--json",
    ]  # fmt: skip
    assert main([*flags, "--output", str(tmp_path / "dry"), "--dry-run"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (
        found["kind"] == "tdm"
        and found["memory"]["peak"] > 0
        and found["attention"] == ["neighborhood(size=(1, 1, 1))"]
    )
    assert not (tmp_path / "dry").exists() or not list((tmp_path / "dry").iterdir())
    assert main([*flags, "--output", str(tmp_path / "run")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["file"] == str(tmp_path / "run" / NAMED) and found["memory"]["estimated"] > 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert "loss fake" in lines[0] and "loss student" in lines[1]


def test_several_processes_are_refused(tiny_wan, prompts, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UnsupportedError, match="one process"):
        Plan.of(settings(tiny_wan, prompts, tmp_path))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"substeps": 2}, "belongs to steps"),
        ({"num_samples": 7}, "belongs to features"),
        ({"fake_updates": 0}, "fake.updates"),
        ({"renoise": 1.1}, "renoise"),
        ({"fake_attention": True}, "--fake-attention needs"),
        ({"train_attention_weights": True}, "--train-attention-weights needs"),
        ({"init_lora": "nowhere.safetensors"}, "nowhere"),
    ],
)
def test_bad_settings_are_refused_with_what_is_allowed(tiny_wan, prompts, tmp_path, change, said):
    from genkit.errors import ArtifactError

    with pytest.raises((UsageError, UnsupportedError, ArtifactError), match=said):
        Plan.of(settings(tiny_wan, prompts, tmp_path, **change))
