"""The training loop: budget, averages, checkpoints that survive a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from genkit.errors import ArtifactError, UsageError
from genkit.training.engine.checkpoint import atomic_save, load_checkpoint
from genkit.training.engine.loop import LoopConfig, rate_at, train

CHILD = """
import sys, time
from pathlib import Path
import torch
from torch import nn
from genkit.training.engine.loop import LoopConfig, train
torch.manual_seed(0)
model = nn.Linear(4, 1)
def loss_at(module, step, progress):
    time.sleep(0.01)
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
    return (module(x) - x.sum(1, keepdim=True)).square().mean(), {}
train(model, torch.optim.SGD(model.parameters(), 0.05),
      loss_at, LoopConfig(Path(sys.argv[1]), lr=0.05, steps=int(sys.argv[2]), checkpoint_seconds=0.05))
"""


def quadratic(module: nn.Module, step: int, progress: float):
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
    return (module(x) - x.sum(1, keepdim=True)).square().mean(), {"progress": progress}


def run(folder, steps, **options):
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    config = LoopConfig(folder, lr=0.05, steps=steps, **options)
    ema = train(model, torch.optim.SGD(model.parameters(), 0.05), quadratic, config)
    return model, ema


def test_it_learns_and_logs(tmp_path):
    model, ema = run(tmp_path, 200, ema_decay=0.9)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < 0.2 * rows[0]["loss"]
    assert torch.allclose(model.weight, torch.ones(1, 4), atol=0.1)
    before = model.weight.clone()
    with ema.applied(model):
        assert not torch.equal(model.weight, before)
        assert torch.allclose(model.weight, torch.ones(1, 4), atol=0.2)
    assert torch.equal(model.weight, before)


def test_a_finished_run_does_nothing_more(tmp_path):
    first, _ = run(tmp_path, 30)
    stamp = load_checkpoint(tmp_path / "checkpoint.pt")["step"]
    second, _ = run(tmp_path, 30)
    assert stamp == 30 and torch.equal(first.weight, second.weight)


def test_a_killed_run_goes_on(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path), "100000"], stderr=subprocess.DEVNULL)
    path = tmp_path / "checkpoint.pt"
    deadline = time.time() + 60
    while not path.exists() and time.time() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    step = load_checkpoint(path)["step"]
    assert step > 0
    subprocess.run([sys.executable, "-c", CHILD, str(tmp_path), str(step + 25)], check=True, stderr=subprocess.DEVNULL)
    assert load_checkpoint(path)["step"] == step + 25


def test_rates_warm_up_and_decay(tmp_path):
    config = LoopConfig(tmp_path, lr=1.0, steps=100, warmup=10, final=0.1, decay_from=0.5)
    assert rate_at(config, 0, 0.0) == pytest.approx(0.1)
    assert rate_at(config, 40, 0.4) == 1.0
    assert rate_at(config, 100, 1.0) == pytest.approx(0.1)


def test_a_run_may_begin_later_in_the_curriculum(tmp_path):
    seen = []
    model = torch.nn.Linear(1, 1)

    def loss_at(module, step, progress):
        seen.append(progress)
        return module(torch.ones(1, 1)).square().mean(), {}

    config = LoopConfig(tmp_path, lr=0.1, steps=4, begin=0.6)
    train(model, torch.optim.SGD(model.parameters(), 0.1), loss_at, config)
    assert seen == pytest.approx([0.6, 0.7, 0.8, 0.9])
    assert rate_at(config, 3, 0.75) < rate_at(config, 3, 0.0)
    with pytest.raises(UsageError, match="begin"):
        LoopConfig(tmp_path, lr=0.1, steps=4, begin=1.0)


def test_a_half_written_file_never_replaces_a_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    atomic_save({"step": 1}, path)

    def full_disk(value, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", full_disk)
        with pytest.raises(ArtifactError, match="No space"):
            atomic_save({"step": 2}, path)
    assert torch.load(path) == {"step": 1} and list(tmp_path.iterdir()) == [path]


def test_bad_input_is_told(tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(ArtifactError, match="delete it to start afresh"):
        run(tmp_path, 10)
    with pytest.raises(UsageError, match="either seconds or steps"):
        LoopConfig(tmp_path, lr=0.1)
    with pytest.raises(UsageError, match="must be positive"):
        LoopConfig(tmp_path, lr=0.1, steps=0)


def test_a_nan_loss_stops_the_run(tmp_path):
    model = nn.Linear(4, 1)
    config = LoopConfig(tmp_path, lr=0.1, steps=5)
    with pytest.raises(ArtifactError, match="became nan"):
        train(
            model, torch.optim.SGD(model.parameters(), 0.1), lambda m, s, p: (m.weight.sum() * float("nan"), {}), config
        )


DISTRIBUTED = """
import sys
from pathlib import Path
import torch
from torch import nn
from genkit.training.engine.loop import LoopConfig, process_rank, train
torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Linear(4, 1)
def loss_at(module, step, progress):
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1000 * process_rank() + step))
    return (module(x) - x.sum(1, keepdim=True)).square().mean(), {}
folder = Path(sys.argv[1])
train(model, torch.optim.SGD(model.parameters(), 0.05), loss_at, LoopConfig(folder, lr=0.05, seconds=1.0))
torch.save(model.weight.detach(), folder / f"weight-{process_rank()}.pt")
"""


@pytest.mark.slow
def test_two_processes_train_one_model_and_stop_together(tmp_path):
    script = tmp_path / "child.py"
    script.write_text(DISTRIBUTED)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [sys.executable, *launch, str(script), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr[-2000:]
    first, second = (torch.load(tmp_path / f"weight-{rank}.pt") for rank in range(2))
    assert torch.equal(first, second)
    assert load_checkpoint(tmp_path / "checkpoint.pt")["step"] > 10
