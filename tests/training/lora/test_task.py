"""The loss of a LoRA: what is drawn follows from numbers, parts count as told, joint batches equal their parts."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from memory import MemorySamples, load, task_of

from genkit.errors import UsageError
from genkit.training.engine.loop import LoopConfig, train
from genkit.training.engine.memory import checkpoint_gradients
from genkit.training.lora.adapter import AdapterConfig
from genkit.training.lora.levels import Levels


@pytest.fixture
def pipeline(tiny_wan):
    return load(tiny_wan)


def gradients(task, *calls):
    task.zero_grad()
    loss = sum(weight * task(*call)[0] for weight, call in calls)
    loss.backward()
    return loss.detach(), {name: value.grad.clone() for name, value in task.adapter.parameters.items()}


def close(one, other, **tolerance):
    return all(torch.allclose(one[name], value, **tolerance) for name, value in other.items())


def test_draws_follow_from_seed_number_and_place_alone(pipeline):
    task, samples = task_of(pipeline, seed=5), MemorySamples()
    first = task(samples.batch(0), 3)[0]
    torch.randn(7)
    assert torch.equal(task(samples.batch(0), 3)[0], first)
    assert not torch.equal(task(samples.batch(0), 4)[0], first)
    assert not torch.equal(task(samples.batch(0), 3, 1)[0], first)
    assert not torch.equal(task_of(load_again(pipeline), seed=6)(samples.batch(0), 3)[0], first)


def load_again(pipeline):
    pipeline.transformer.unload_lora()
    return pipeline


def test_dropout_follows_from_the_number_too_and_moves_no_global_generator(pipeline):
    task = task_of(pipeline, AdapterConfig(rank=2, dropout=0.5))
    with torch.no_grad():
        for value in task.adapter.parameters.values():
            value.add_(0.1)
    batch = MemorySamples().batch(0)
    before = torch.get_rng_state()
    first = task(batch, 0)[0]
    assert torch.equal(torch.get_rng_state(), before)
    torch.randn(3)
    assert torch.equal(task(batch, 0)[0], first)
    for module in task.network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.eval()
    assert not torch.equal(task(batch, 0)[0], first)


def test_figures_tell_the_loss_of_every_range_of_levels(pipeline):
    task = task_of(pipeline, levels=Levels("uniform"))
    batch = MemorySamples((40,)).batch(0)
    loss, figures = task(batch, 0)
    assert figures.keys() == {"loss 0-0.25", "loss 0.25-0.5", "loss 0.5-0.75", "loss 0.75-1"}
    assert min(figures.values()) < loss.item() < max(figures.values())
    low = task_of(load_again(pipeline), levels=Levels("uniform", low=0.8))
    assert low(batch, 0)[1].keys() == {"loss 0.75-1"}


def test_masked_parts_count_nothing_and_do_not_scale_the_loss(pipeline):
    task, batch = task_of(pipeline), MemorySamples().batch(0)
    level, draws = torch.tensor([0.5, 0.7]), lambda: [torch.Generator().manual_seed(number) for number in (1, 2)]
    mask = torch.zeros(2, 1, 2, 4, 4)
    mask[0, :, 1] = 1
    masked = dataclasses.replace(batch, masks={"video": mask})
    half = task.errors(masked, level, draws())["video"]
    assert half[1].item() == 0.0  # counts nowhere
    task.training_record = dataclasses.replace(
        task.training_record, weights=lambda call: {"video": mask + 0 * call.level[0]}
    )
    assert torch.equal(task.errors(batch, level, draws())["video"], half)
    task.training_record = dataclasses.replace(task.training_record, weights=None)
    captured = {}
    answers = task.training_record.answers
    task.training_record = dataclasses.replace(
        task.training_record, answers=lambda out, call: captured.setdefault("all", answers(out, call))
    )
    task.errors(batch, level, draws())
    noise = torch.stack([torch.randn(4, 2, 4, 4, generator=each) for each in draws()])
    wrong = (captured["all"]["video"] - (noise - batch.latents["video"])).square()
    assert float(half[0]) == pytest.approx(float(wrong[0, :, 1].mean()), rel=1e-5)


def test_huber_is_the_square_below_delta_and_linear_above(pipeline):
    task = task_of(pipeline, kind="huber", delta=0.5)
    answer, target = torch.tensor([[0.3, 2.0]]), torch.zeros(1, 2)
    assert float(task._error(answer, target)) == pytest.approx((0.09 + 0.5 * (4 - 0.5)) / 2)


def test_several_micro_batches_of_different_sizes_are_one_batch(tiny_wan, tmp_path):
    from genkit.training.lora.run import Run
    from genkit.training.lora.settings import LoraSettings

    given = {"model": "x", "data": "y", "output": "z", "max_train_steps": 1, "gradient_accumulation_steps": 2}
    task, samples = task_of(load(tiny_wan)), MemorySamples((3, 1))
    run = Run(LoraSettings(**given), None, None, task.pipeline, None, "transformer", task.adapter, samples, task)
    with torch.no_grad():
        for value in task.adapter.parameters.values():
            value.add_(0.02)
    start = {name: value.detach().clone() for name, value in task.adapter.parameters.items()}
    config = LoopConfig(tmp_path / "a", lr=1.0, steps=1, warmup=1, gradient_accumulation_steps=2, max_grad_norm=1e9)
    train(task, torch.optim.SGD(task.adapter.parameters.values(), 1.0), run.loss(), config)
    parts = {name: start[name] - value for name, value in task.adapter.parameters.items()}
    with torch.no_grad():
        for name, value in task.adapter.parameters.items():
            value.copy_(start[name])
    _, whole = gradients(task, (3 / 4, (samples.batch(0), 0)), (1 / 4, (samples.batch(1), 1)))
    assert close(parts, whole, atol=1e-6)


def test_recomputed_activations_give_the_same_loss_and_gradients(pipeline):
    task, batch = task_of(pipeline), MemorySamples().batch(0)
    with torch.no_grad():
        for value in task.adapter.parameters.values():
            value.add_(0.02)
    plain, wanted = gradients(task, (1, (batch, 0)))
    assert checkpoint_gradients(task) == ["WanTransformer3DModel"]
    again, found = gradients(task, (1, (batch, 0)))
    task.offload = True
    offloaded, there = gradients(task, (1, (batch, 0)))
    assert torch.equal(plain, offloaded) and all(torch.equal(there[name], value) for name, value in wanted.items())
    assert torch.equal(plain, again) and all(torch.equal(found[name], value) for name, value in wanted.items())


def test_every_lower_half_starts_without_gradient_and_every_upper_half_with_one(pipeline):
    _, found = gradients(task_of(pipeline), (1, (MemorySamples().batch(0), 0)))
    for name, value in found.items():
        assert bool(value.any()) == ("lora_B" in name), name


def test_held_out_samples_are_measured_with_the_same_noise(pipeline):
    task, samples = task_of(pipeline), MemorySamples()
    first = task.held_out(samples.held_out())
    task(samples.batch(0), 9)
    assert task.held_out(samples.held_out()) == first and task.held_out({}) == {}
    halves = {"a": dataclasses.replace(samples.batch(0)), "b": samples.batch(0)}
    assert set(task.held_out(halves)) == {"held-out loss"}


def test_options_of_the_other_kind_of_objective_are_refused(pipeline):
    for options, match in (({"noise_offset": 0.1}, "noise_offset"), ({"snr_gamma": 5.0}, "snr_gamma")):
        with pytest.raises(UsageError, match=match):
            task_of(load_again(pipeline), **options)


CHILD = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[3:]
import torch
torch.set_num_threads(1)
from memory import MemorySamples, load, task_of
from genkit.training.engine.loop import LoopConfig, process_count, process_rank, train
task = task_of(load(sys.argv[1]))
samples = MemorySamples((2 // process_count(),), processes=process_count())
def loss_at(wrapped, number, progress):
    return wrapped(samples.batch(number, process_rank()), number, process_rank())
config = LoopConfig(Path(sys.argv[2]), lr=0.5, steps=3, warmup=1, lr_scheduler="constant", max_grad_norm=1e9)
train(task, torch.optim.SGD(task.adapter.parameters.values(), 0.5), loss_at, config)
torch.save(dict(task.adapter.parameters), Path(sys.argv[2]) / f"weights-{process_rank()}.pt")
"""


@pytest.mark.slow
def test_two_processes_are_one_with_the_joint_batch(tiny_wan, tmp_path):
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    found = {}
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for name, start in (("two", launch), ("one", [])):
        (tmp_path / name).mkdir()
        rest = [str(script), str(tiny_wan), str(tmp_path / name), str(Path(__file__).parent)]
        done = subprocess.run([sys.executable, *start, *rest], capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-3000:]
        found[name] = torch.load(tmp_path / name / "weights-0.pt")
    other = torch.load(tmp_path / "two" / "weights-1.pt")
    assert all(torch.equal(value, other[name]) for name, value in found["two"].items())
    assert close(found["two"], found["one"], atol=1e-6)
    assert max(float(value.abs().max()) for name, value in found["one"].items() if "lora_B" in name) > 1e-3
