"""The one training loop: budget, learning-rate schedule, averaged weights, logs, and checkpoints that survive a kill.

A task gives the loop its modules and a function from a step number to a loss; the loop does everything else. It runs
on a CPU, one GPU or several through :mod:`accelerate`.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from genkit.errors import ArtifactError, UsageError, explain


@dataclass(frozen=True)
class LoopConfig:
    """How long and how fast to train.

    Args:
        folder: where checkpoint, log and samples go.
        lr: peak learning rate.
        seconds: budget of training time (summed over resumed runs); the schedule follows it.
        steps: budget of steps instead of seconds; exactly one of the two is given.
        warmup: steps of linear warm-up.
        final: learning rate at the end as a share of the peak, reached by a cosine.
        decay_from: share of the budget after which the decay begins.
        clip: largest gradient norm.
        average: largest decay of the averaged (EMA) weights.
        checkpoint_seconds: pause between checkpoints.
        sample_seconds: pause between calls of the task's ``sample``; 0 for never.
        begin: where between 0 and 1 the task's curriculum begins, for a run that goes on from another; the learning
            rate follows the budget alone.
    """

    folder: Path
    lr: float
    seconds: float | None = None
    steps: int | None = None
    warmup: int = 30
    final: float = 0.03
    decay_from: float = 0.0
    clip: float = 1.0
    average: float = 0.998
    checkpoint_seconds: float = 120.0
    sample_seconds: float = 0.0
    begin: float = 0.0

    def __post_init__(self):
        if (self.seconds is None) == (self.steps is None):
            raise UsageError("training needs a budget: give either seconds or steps")
        budget = self.seconds if self.seconds is not None else self.steps
        if budget <= 0 or self.lr <= 0:
            raise UsageError(f"budget and learning rate must be positive, got {budget} and {self.lr}")
        if not 0 <= self.begin < 1:
            raise UsageError(explain("begin", self.begin, "a share of the curriculum from 0 to below 1"))


class Average:
    """Exponential moving average of the parameters of a module, warmed up so that early steps do not linger."""

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.count = 0
        self.shadow = {name: value.detach().clone().float() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take the module's present weights into the average."""
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                self.shadow[name].lerp_(value.float(), 1 - decay)
            else:
                self.shadow[name].copy_(value)

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """Put the averaged weights into the module for the duration of a ``with`` block."""
        kept = {name: value.detach().clone() for name, value in module.state_dict().items()}
        module.load_state_dict({name: value.to(kept[name].dtype) for name, value in self.shadow.items()})
        try:
            yield
        finally:
            module.load_state_dict(kept)


def atomic_save(value: object, path: Path) -> None:
    """``torch.save`` to a temporary name in the same folder, then rename: a kill leaves the old file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    with open(temporary, "wb") as file:
        torch.save(value, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load_checkpoint(path: Path) -> dict:
    """Read a checkpoint of :func:`train`, tensors and plain values only."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ArtifactError(f"{path} is not a readable checkpoint ({error}); delete it to start afresh") from error


def process_rank() -> int:
    """Index of this process among those of a distributed run; 0 in a plain one. For seeds of data and noise."""
    return int(os.environ.get("RANK", "0"))


def wait_for_all() -> None:
    """Wait until every process of a distributed run is here; nothing in a plain one."""
    from accelerate import PartialState

    # Without being told, accelerate takes several CPU processes for as many separate runs.
    PartialState(cpu=not torch.accelerator.is_available()).wait_for_everyone()


def _agree(accelerator, seconds: float) -> float:
    """The first process's clock for all: they must see the same share of the budget, or they would stop apart."""
    if accelerator.num_processes == 1:
        return seconds
    from accelerate.utils import broadcast

    return float(broadcast(torch.tensor(seconds, dtype=torch.float64, device=accelerator.device)))


def rate_at(config: LoopConfig, step: int, progress: float) -> float:
    """Learning rate at a step, given the share of the budget that is used up."""
    warm = min(1.0, (step + 1) / max(config.warmup, 1))
    share = min(max((progress - config.decay_from) / (1 - config.decay_from), 0.0), 1.0)
    cosine = config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * share))
    return config.lr * warm * cosine


def train(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_at: Callable[[nn.Module, int, float], tuple[torch.Tensor, dict[str, float]]],
    config: LoopConfig,
    sample: Callable[[nn.Module, int], None] | None = None,
    title: str = "training",
) -> Average:
    """Train a module until the budget is used up, resuming from ``folder/checkpoint.pt`` when there is one.

    Args:
        module: everything that is trained, as one module.
        optimizer: over the module's parameters; its ``lr`` is set by the loop.
        loss_at: called with (module, step, share of the curriculum done); returns the loss and figures for the log.
        config: budget, rates and paces.
        sample: called with the module holding averaged weights, and the step, every ``sample_seconds``.
        title: shown in the progress line.

    Returns:
        The averaged weights.
    """
    from accelerate import Accelerator
    from tqdm import tqdm

    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    average = Average(module, config.average)
    module.to(accelerator.device)
    path = Path(config.folder) / "checkpoint.pt"
    step, used, earlier = 0, 0.0, 0.0
    if path.exists():
        state = load_checkpoint(path)
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        average.shadow, average.count = state["average"], state["count"]
        step, used, earlier = state["step"], state["seconds"], state.get("earlier_seconds", 0.0)
    wrapped, optimizer = accelerator.prepare(module, optimizer)
    average.shadow = {name: value.to(accelerator.device) for name, value in average.shadow.items()}

    def save() -> None:
        if accelerator.is_main_process:
            atomic_save(
                {
                    "module": module.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "average": average.shadow,
                    "count": average.count,
                    "step": step,
                    "seconds": used,
                    "earlier_seconds": earlier,
                },
                path,
            )

    def progress() -> float:
        return used / config.seconds if config.seconds is not None else step / config.steps

    log_path = Path(config.folder) / "log.jsonl"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    smooth: dict[str, float] = {}
    last_save = last_sample = used
    bar = tqdm(
        total=1.0,
        initial=min(progress(), 1.0),
        desc=title,
        disable=not accelerator.is_main_process,
        bar_format="{desc} {percentage:3.0f}% {elapsed}<{remaining} {postfix}",
        mininterval=5.0,
    )
    while progress() < 1.0:
        started = time.perf_counter()
        rate = rate_at(config, step, progress())
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss, figures = loss_at(wrapped, step, config.begin + (1 - config.begin) * progress())
        if not torch.isfinite(loss):
            raise ArtifactError(
                f"the loss became {loss.item()} at step {step}: lower the learning rate; the last good state is {path}"
            )
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(module.parameters(), config.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(module)
        step += 1
        used = _agree(accelerator, used + time.perf_counter() - started)
        for name, value in {"loss": loss.item(), "norm": float(norm), **figures}.items():
            smooth[name] = value if name not in smooth else 0.97 * smooth[name] + 0.03 * value
        if step % 20 == 0 and accelerator.is_main_process:
            with open(log_path, "a") as file:
                row = {
                    "step": step,
                    "seconds": round(used, 1),
                    "lr": rate,
                    **{k: round(v, 5) for k, v in smooth.items()},
                }
                file.write(json.dumps(row) + "\n")
            bar.set_postfix_str(f"step {step} " + " ".join(f"{k} {v:.4f}" for k, v in smooth.items()), refresh=False)
            bar.n = min(progress(), 1.0)
            bar.refresh()
        if used - last_save >= config.checkpoint_seconds:
            save()
            last_save = used
        if sample is not None and config.sample_seconds and used - last_sample >= config.sample_seconds:
            last_sample = used
            if accelerator.is_main_process:
                with average.applied(module), torch.no_grad():
                    sample(module, step)
            accelerator.wait_for_everyone()
    save()
    bar.close()
    return average
