"""Numbered checkpoints: whole or not there, the newest whole one taken, other runs refused; Ctrl-C; broken losses."""

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
from genkit.training.engine.checkpoint import load_checkpoint
from genkit.training.engine.interrupt import Interrupt, Stopped
from genkit.training.engine.keep import STATE, Numbered, differences
from genkit.training.engine.loop import LoopConfig, rate_at, train


@pytest.fixture(autouse=True)
def heeded():
    """Ctrl-C as a terminal has it: started in the background, a process ignores it from the start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def loss_at(module: nn.Module, number: int, progress: float):
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(number))
    return (module(x) - x.sum(1, keepdim=True)).square().mean(), {}


def run(folder, steps, loss=loss_at, validate=None, lr=0.05, keep=None, **options):
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    paces = {"warmup": 0, "checkpoint_seconds": 1e9, "log_steps": 1, "lr_scheduler": "constant"}
    config = LoopConfig(folder, lr=lr, steps=steps, **paces, **options)
    keep = keep or Numbered(folder, "latest")
    train(model, torch.optim.AdamW(model.parameters(), lr), loss, config, validate, keep=keep)
    return model.weight.detach(), keep


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("checkpoint"))


def test_checkpoints_come_every_so_many_steps_and_the_oldest_go(tmp_path):
    _, keep = run(tmp_path, 7, checkpoint_steps=2, keep=Numbered(tmp_path, limit=2))
    assert names(tmp_path) == ["checkpoint-6", "checkpoint-7"] and keep.last == tmp_path / "checkpoint-7"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    written = (tmp_path / "checkpoint-7" / STATE).stat().st_mtime_ns
    run(tmp_path, 7)  # finished: nothing is written again
    assert (tmp_path / "checkpoint-7" / STATE).stat().st_mtime_ns == written


def test_a_used_folder_is_not_begun_afresh(tmp_path):
    run(tmp_path, 2)
    with pytest.raises(UsageError, match="holds checkpoint-2 of an earlier run; --resume-from-checkpoint latest"):
        run(tmp_path, 4, keep=Numbered(tmp_path))
    run(tmp_path, 4)
    with pytest.raises(UsageError, match="checkpoint-4 is newer than checkpoint-2"):
        run(tmp_path, 6, keep=Numbered(tmp_path, "checkpoint-2"))
    with pytest.raises(ArtifactError, match=r"holds no trainer.pt; checkpoints in .*: checkpoint-2, checkpoint-4"):
        run(tmp_path, 6, keep=Numbered(tmp_path, "checkpoint-3"))


def test_a_checkpoint_elsewhere_may_be_gone_on_from(tmp_path):
    run(tmp_path / "a", 2)
    there, keep = run(tmp_path / "b", 4, keep=Numbered(tmp_path / "b", str(tmp_path / "a" / "checkpoint-2")))
    whole, _ = run(tmp_path / "c", 4)
    assert torch.equal(there, whole) and keep.last == tmp_path / "b" / "checkpoint-4"


def test_what_differs_is_told(tmp_path):
    told = {"base": {"model": "a"}, "settings": {"rank": 2, "targets": ("x", "y")}}
    run(tmp_path, 2, keep=Numbered(tmp_path, fingerprint=told))
    run(tmp_path, 2, keep=Numbered(tmp_path, "latest", fingerprint=told))
    other = {"base": {"model": "b"}, "settings": {"rank": 4, "targets": ("x", "y"), "alpha": 1}}
    with pytest.raises(UsageError, match="model was 'a' and is 'b'; rank was 2 and is 4; alpha was None and is 1"):
        run(tmp_path, 2, keep=Numbered(tmp_path, "latest", fingerprint=other))
    assert differences({}, {}) == []


def test_broken_checkpoints_are_told_and_the_one_before_is_taken(tmp_path):
    whole, _ = run(tmp_path / "a", 6, checkpoint_steps=2)
    run(tmp_path / "b", 4, checkpoint_steps=2)
    (tmp_path / "b" / "checkpoint-4" / STATE).write_bytes(b"half")
    (tmp_path / "b" / "checkpoint-5").mkdir()
    with pytest.warns(UserWarning, match="checkpoint-5 is broken") as told:
        again, _ = run(tmp_path / "b", 6, checkpoint_steps=2)
    assert any("checkpoint-4 is broken" in str(each.message) for each in told) and torch.equal(again, whole)
    rows = [json.loads(line) for line in (tmp_path / "b" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    for name in ("checkpoint-2", "checkpoint-4", "checkpoint-6"):
        (tmp_path / "a" / name / STATE).write_bytes(b"half")
    with pytest.raises(ArtifactError, match="none of the 3 checkpoints"), pytest.warns(UserWarning):
        run(tmp_path / "a", 8)


FOREIGN = {
    "module": {"weight": "text"},
    "ema": [torch.zeros(1)],
    "count": 1.5,
    "optimizer": {"state": {7: {}}, "param_groups": [{"params": [0, 1]}]},
    "step": "2",
    "seconds": float("nan"),
    "random": [{"python": 0}],
    "smooth": {"loss": "low"},
    "usual": 3,
    "fingerprint": {"settings": None},
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_readable_checkpoint_with_foreign_values_is_told_by_their_name(tmp_path, name):
    run(tmp_path, 4, checkpoint_steps=2)
    path = tmp_path / "checkpoint-4" / STATE
    torch.save({**load_checkpoint(path), name: FOREIGN[name]}, path)
    with pytest.raises(ArtifactError, match=f"no checkpoint of a training run: its {name} is .*, allowed: "):
        run(tmp_path, 6, keep=Numbered(tmp_path, "checkpoint-4"))
    with pytest.warns(UserWarning, match="checkpoint-4 is broken"):
        run(tmp_path, 6)


def test_values_of_the_right_kind_that_no_run_wrote_are_told(tmp_path):
    run(tmp_path, 2, keep=Numbered(tmp_path, fingerprint={"settings": {"rank": 2}}))
    path = tmp_path / "checkpoint-2" / STATE
    state = load_checkpoint(path)
    moments = {0: {"step": 1, "exp_avg": torch.zeros(2, 9), "exp_avg_sq": torch.zeros(1, 4)}}
    broken = {
        "is of a run with other settings": {"optimizer": {**state["optimizer"], "state": moments}},
        "no states of random generators": {"random": [{**state["random"][0], "python": (1, (2,), None)}]},
    }
    for words, values in broken.items():
        torch.save({**state, **values}, path)
        with pytest.raises(ArtifactError, match=words):
            run(tmp_path, 4, keep=Numbered(tmp_path, "latest", fingerprint={"settings": {"rank": 2}}))
    torch.save({name: value for name, value in state.items() if name != "fingerprint"}, path)
    with pytest.raises(ArtifactError, match="does not tell of which run it is"):
        run(tmp_path, 4, keep=Numbered(tmp_path, "checkpoint-2", fingerprint={"settings": {"rank": 2}}))


def test_ctrl_c_finishes_the_step_and_saves_and_the_run_goes_on(tmp_path, capsys):
    def stopping(module, number, progress):
        if number == 3:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
        return loss_at(module, number, progress)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(
        Stopped, match="stopped after step 4, .*checkpoint-4; .*--resume-from-checkpoint latest"
    ) as told:
        run(tmp_path / "a", 8, loss=stopping)
    assert told.value.exit_code == 130 and signal.getsignal(signal.SIGINT) == before
    assert "Ctrl-C again stops at once" in capsys.readouterr().err
    assert torch.equal(run(tmp_path / "a", 8)[0], run(tmp_path / "b", 8)[0])


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    def twice(module, number, progress):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
        raise AssertionError("the second one was not heeded")

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, 8, loss=twice)
    assert names(tmp_path) == []


def test_ctrl_c_leaves_a_validation_and_its_weights_are_the_trained_ones(tmp_path):
    def slow(module, step):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        raise AssertionError("not left")

    with pytest.raises(Stopped, match="after step 3"):
        run(tmp_path / "a", 8, validate=slow, validation_steps=3, ema_decay=0.5)
    again, _ = run(tmp_path / "a", 8, ema_decay=0.5)
    assert torch.equal(again, run(tmp_path / "b", 8, ema_decay=0.5)[0])


def test_validation_comes_first_last_and_every_so_many_steps(tmp_path):
    seen = []
    run(tmp_path, 6, validate=lambda module, step: seen.append(step) or {"held-out loss": 0.5},
        validation_steps=3, validation_ends=True)  # fmt: skip
    assert seen == [0, 3, 6]
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "held-out loss" in row] == [0, 3, 6]


def test_a_signal_in_another_thread_or_a_deaf_process_changes_nothing():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupt():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e7])
def test_a_broken_loss_names_the_last_good_checkpoint(tmp_path, value):
    def breaking(module, number, progress):
        loss, figures = loss_at(module, number, progress)
        return loss * value if number == 5 else loss, figures

    with pytest.raises(ArtifactError, match=r"at step 5: lower the learning rate; .*checkpoint-4"):
        run(tmp_path, 8, loss=breaking, checkpoint_steps=2, explosion=1000.0)
    assert torch.isfinite(load_checkpoint(tmp_path / "checkpoint-4" / STATE)["module"]["weight"]).all()


def test_a_learning_rate_of_a_billion_is_noticed(tmp_path):
    with pytest.raises(
        ArtifactError, match="the loss rose to .* at step 1: lower the learning rate; no state was saved"
    ):
        run(tmp_path, 8, lr=1e9, explosion=1000.0)


def test_gradients_that_are_none_change_no_weight(tmp_path):
    class Bad(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * float("nan")

    def breaking(module, number, progress):
        loss, figures = loss_at(module, number, progress)
        return Bad.apply(loss) if number == 2 else loss, figures

    with pytest.raises(ArtifactError, match="the gradients' norm became nan at step 2"):
        run(tmp_path, 8, loss=breaking, explosion=1000.0)


FULL = """
import resource, signal, sys, torch
from pathlib import Path
from torch import nn
from genkit.training.engine.keep import Numbered
from genkit.training.engine.loop import LoopConfig, train
from genkit.errors import GenkitError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
model = nn.Linear(100, 100)
folder = Path(sys.argv[1])
def loss_at(module, number, progress):
    if number == 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
    return module(torch.ones(1, 100)).square().mean(), {}
def export(step):
    return lambda folder: (folder / "more").write_bytes(b"x" * 1000)
keep = Numbered(folder, export=export)
config = LoopConfig(folder, lr=0.01, steps=4, checkpoint_steps=2, checkpoint_seconds=1e9)
try:
    train(model, torch.optim.AdamW(model.parameters()), loss_at, config, keep=keep)
except GenkitError as error:
    print(type(error).__name__, error)
"""


def test_no_space_left_is_told_and_the_checkpoint_before_stays_whole(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith("ArtifactError could not write") and "checkpoint-4" in done.stdout, done.stderr
    assert "File too large" in done.stdout  # the system's own reason, as "No space left on device" is
    assert names(tmp_path) == ["checkpoint-2"] and load_checkpoint(tmp_path / "checkpoint-2" / STATE)["step"] == 2
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    with pytest.raises(ArtifactError, match="has room for .* MB, a checkpoint needs"):
        Numbered(tmp_path).check_space(10**18)


def test_rates_under_the_names_of_diffusers(tmp_path):
    def rates(**options):
        config = LoopConfig(tmp_path, lr=1.0, steps=10, warmup=2, decay_from=0.2, final=0.0, **options)
        return [rate_at(config, step, step / 10) for step in range(11)]

    linear = rates(lr_scheduler="linear")
    assert linear[:3] == [0.5, 1.0, 1.0] and linear[6] == pytest.approx(0.5) and linear[10] == 0
    assert rates(lr_scheduler="constant_with_warmup") == [0.5] + [1.0] * 10
    restarts = rates(lr_scheduler="cosine_with_restarts", cycles=2)
    assert restarts[6] == pytest.approx(1) and restarts[4] == pytest.approx(0.5) and restarts[10] == 0
    power = rates(lr_scheduler="polynomial", power=2.0)
    assert power[6] == pytest.approx(0.25)
    with pytest.raises(UsageError, match="did you mean 'cosine'"):
        rates(lr_scheduler="cosin")


def test_tensorboard_gets_figures_and_pictures(tmp_path):
    import numpy as np
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def look(module, step):
        return {"held-out loss": 0.5, "a red circle": np.zeros((2, 8, 8, 3), np.uint8)}

    run(tmp_path, 4, tracker="tensorboard", validate=look, validation_steps=2)
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    tags = found.Tags()
    assert {"loss", "norm", "lr", "held-out loss"} <= set(tags["scalars"]) and len(found.Scalars("loss")) == 4
    assert any("a red circle" in tag for tag in tags["images"])
