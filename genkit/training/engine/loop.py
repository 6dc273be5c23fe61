"""The one training loop: budget, learning-rate schedule, accumulation, averaged weights, logs, and checkpoints that
survive a kill.

A task gives the loop its modules and a function from a number to a loss; the loop does everything else. It runs on a
CPU, one GPU or several through :mod:`accelerate` (DDP, or FSDP2 by the user's accelerate configuration). A module that
the caller has sharded with ``torch.distributed.fsdp.fully_shard`` is trained as it is, also on CPUs.
"""

from __future__ import annotations

import json
import math
import os
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from genkit.errors import ArtifactError, UsageError, explain
from genkit.training.engine.checkpoint import atomic_save, capture, load_checkpoint, restore
from genkit.training.engine.ema import EMA, trainable
from genkit.training.engine.memory import checkpoint_gradients
from genkit.training.engine.random_state import random_state, set_random_state, undisturbed

#: Called with (module, number of the micro-batch, share of the curriculum done); returns loss and figures for the log.
LossAt = Callable[[nn.Module, int, float], tuple[torch.Tensor, dict[str, float]]]

SCHEDULES = ("cosine", "linear", "constant")
PRECISIONS = ("no", "bf16", "fp16")


@dataclass(frozen=True)
class LoopConfig:
    """How long and how fast to train.

    Args:
        folder: where checkpoint, log and validation samples go.
        lr: peak learning rate; a parameter group with a ``factor`` has that multiple of it.
        seconds: budget of training time (summed over resumed runs); the schedule follows it.
        steps: budget of optimizer steps instead of seconds; exactly one of the two is given.
        warmup: steps of linear warm-up.
        lr_scheduler: how the rate falls after the warm-up: ``cosine``, ``linear`` or ``constant``.
        final: learning rate at the end as a share of the peak.
        decay_from: share of the budget after which the decay begins.
        max_grad_norm: largest norm of all gradients together; longer ones are shortened to it.
        ema_decay: largest decay of the averaged weights.
        gradient_accumulation_steps: micro-batches per optimizer step; their mean gradient is that of one batch as large
            as all of them, at the memory of one.
        mixed_precision: ``bf16`` or ``fp16`` (with loss scaling) for the forward pass; None is what the launcher's
            accelerate configuration says, without one float32.
        gradient_checkpointing: compute the blocks' activations again in the backward pass: about a third slower, the
            memory of one block instead of all.
        checkpoint_seconds: pause between checkpoints.
        checkpoint_steps: steps between checkpoints besides; 0 for none.
        validation_seconds: pause between calls of the task's ``validate``; 0 for never.
        begin: where between 0 and 1 the task's curriculum begins, for a run that goes on from another; the learning
            rate follows the budget alone.
    """

    folder: Path
    lr: float
    seconds: float | None = None
    steps: int | None = None
    warmup: int = 30
    lr_scheduler: str = "cosine"
    final: float = 0.03
    decay_from: float = 0.0
    max_grad_norm: float = 1.0
    ema_decay: float = 0.998
    gradient_accumulation_steps: int = 1
    mixed_precision: str | None = None
    gradient_checkpointing: bool = False
    checkpoint_seconds: float = 120.0
    checkpoint_steps: int = 0
    validation_seconds: float = 0.0
    begin: float = 0.0

    def __post_init__(self):
        if (self.seconds is None) == (self.steps is None):
            raise UsageError("training needs a budget: give either seconds or steps")
        budget = self.seconds if self.seconds is not None else self.steps
        if not (budget > 0 and self.lr > 0 and math.isfinite(self.lr)):
            raise UsageError(f"budget and learning rate must be positive, got {budget} and {self.lr}")
        if not 0 <= self.begin < 1:
            raise UsageError(explain("begin", self.begin, "a share of the curriculum from 0 to below 1"))
        if self.lr_scheduler not in SCHEDULES:
            raise UsageError(explain("lr_scheduler", self.lr_scheduler, SCHEDULES))
        if self.mixed_precision not in (None, *PRECISIONS):
            raise UsageError(explain("mixed_precision", self.mixed_precision, PRECISIONS))
        if self.gradient_accumulation_steps < 1:
            given = self.gradient_accumulation_steps
            raise UsageError(explain("gradient_accumulation_steps", given, "a whole number from 1 on"))
        if not self.max_grad_norm > 0:
            raise UsageError(explain("max_grad_norm", self.max_grad_norm, "a number above 0"))
        if not 0 <= self.ema_decay < 1:
            raise UsageError(explain("ema_decay", self.ema_decay, "a number from 0 to below 1"))


def process_rank() -> int:
    """Index of this process among those of a distributed run; 0 in a plain one. For seeds of data and noise."""
    return int(os.environ.get("RANK", "0"))


def wait_for_all() -> None:
    """Wait until every process of a distributed run is here; nothing in a plain one."""
    from accelerate import PartialState

    # Without being told, accelerate takes several CPU processes for as many separate runs.
    PartialState(cpu=not torch.accelerator.is_available()).wait_for_everyone()


def rate_at(config: LoopConfig, step: int, progress: float) -> float:
    """Learning rate at a step, given the share of the budget that is used up."""
    warm = min(1.0, (step + 1) / max(config.warmup, 1))
    share = min(max((progress - config.decay_from) / (1 - config.decay_from), 0.0), 1.0)
    left = {"cosine": 0.5 * (1 + math.cos(math.pi * share)), "linear": 1 - share, "constant": 1.0}
    return config.lr * warm * (config.final + (1 - config.final) * left[config.lr_scheduler])


def train(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_at: LossAt,
    config: LoopConfig,
    validate: Callable[[nn.Module, int], None] | None = None,
    title: str = "training",
) -> EMA:
    """Train a module until the budget is used up, resuming from ``folder/checkpoint.pt`` when there is one.

    A run with a budget of steps whose ``loss_at`` draws nothing but from its number, or from torch's, NumPy's and
    Python's global generators, ends with the same bits however often it is stopped and resumed on the same machine.

    Args:
        module: everything that is trained, as one module; frozen parameters may be in it.
        optimizer: over the module's trainable parameters; its ``lr`` is set by the loop.
        loss_at: called with (module, number, share of the curriculum done); returns the loss of a micro-batch, a mean
            over its samples, and figures for the log. The number counts micro-batches: it is the step as long as
            nothing is accumulated.
        config: budget, rates and paces.
        validate: called with the module holding averaged weights, and the step, every ``validation_seconds``; what it
            draws at random does not change the training.
        title: shown in the progress line.

    Returns:
        The averaged weights.

    Raises:
        ArtifactError: the loss is no number, or the checkpoint is of another model.
        UsageError: a launcher's configuration that checkpoints cannot be written under.
    """
    run = _Run(module, optimizer, loss_at, config, validate, title)
    try:
        run.go()
    finally:
        run.close()
    return run.ema


class _Run:
    """One call of :func:`train`: its state, and what is done at every step."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_at: LossAt,
        config: LoopConfig,
        validate: Callable[[nn.Module, int], None] | None,
        title: str,
    ):
        self.module, self.loss_at, self.config, self.validate = module, loss_at, config, validate
        self.accelerator = _accelerator(config.mixed_precision)
        module.to(self.accelerator.device)
        if config.gradient_checkpointing:
            checkpoint_gradients(module)
        self.path = Path(config.folder) / "checkpoint.pt"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.step, self.used, self.earlier = 0, 0.0, 0.0
        state = load_checkpoint(self.path) if self.path.exists() else None
        if state is not None:
            # Before the processes meet, so that a wrong file is told by every one of them and none waits.
            restore(state, self.path, module, None, None)
        self.wrapped, self.optimizer = self._prepare(optimizer)
        self.ema = EMA(module, config.ema_decay)
        if state is not None:
            restore(state, self.path, module, self.optimizer, self.ema)
            self.step, self.used, self.earlier = state["step"], state["seconds"], state["earlier_seconds"]
            self._restore_random(state["random"])
        self.smooth: dict[str, float] = {}
        self.last_save = self.last_validation = self.used
        self.bar = self._bar(title)

    def _prepare(self, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        if _is_sharded(self.module) and not self.accelerator.is_fsdp2:
            return self.module, self.accelerator.prepare_optimizer(optimizer)
        return self.accelerator.prepare(self.module, optimizer)

    def _restore_random(self, states: list[dict[str, Any]]) -> None:
        rank = self.accelerator.process_index
        if states and len(states) != self.accelerator.num_processes:
            warnings.warn(
                f"{self.path} was written by {len(states)} process(es), this run has "
                f"{self.accelerator.num_processes}: it goes on, but not with the random numbers of an unbroken run",
                stacklevel=2,
            )
        if rank < len(states):
            set_random_state(states[rank])

    def _bar(self, title: str):
        from tqdm import tqdm

        return tqdm(
            total=1.0,
            initial=min(self.progress, 1.0),
            desc=title,
            disable=not self.accelerator.is_main_process,
            bar_format="{desc} {percentage:3.0f}% {elapsed}<{remaining} {postfix}",
            mininterval=5.0,
        )

    @property
    def progress(self) -> float:
        """Share of the budget used up."""
        config = self.config
        return self.used / config.seconds if config.seconds is not None else self.step / config.steps

    def go(self) -> None:
        """Step after step until the budget is used up."""
        while self.progress < 1.0:
            started = time.perf_counter()
            rate = rate_at(self.config, self.step, self.progress)
            for group in self.optimizer.param_groups:
                group["lr"] = rate * group.get("factor", 1.0)
            figures = self.optimizer_step()
            self.step += 1
            self.used = self.agree(self.used + time.perf_counter() - started)
            self.log(rate, figures)
            self.pauses()
        self.save()

    def optimizer_step(self) -> dict[str, float]:
        """Gradients of all micro-batches, then one update of weights and averages; figures for the log."""
        count = self.config.gradient_accumulation_steps
        progress = self.config.begin + (1 - self.config.begin) * self.progress
        sums: dict[str, float] = {}
        for part in range(count):
            with self.exchange(part == count - 1):
                loss, figures = self.loss_at(self.wrapped, count * self.step + part, progress)
                if not torch.isfinite(loss):
                    raise ArtifactError(
                        f"the loss became {loss.item()} at step {self.step}: lower the learning rate; the last good "
                        f"state is {self.path}"
                    )
                self.accelerator.backward(loss / count if count > 1 else loss)
            for name, value in {"loss": loss.item(), **figures}.items():
                sums[name] = sums.get(name, 0.0) + value / count
        norm = self.accelerator.clip_grad_norm_(trainable(self.module).values(), self.config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if not self.accelerator.optimizer_step_was_skipped:
            self.ema.update(self.module)
        return {"norm": float(norm), **sums}

    def exchange(self, wanted: bool) -> AbstractContextManager:
        """Whether the processes exchange gradients in a backward pass: once per step, with the last micro-batch."""
        if _is_sharded(self.module):
            self.module.set_requires_gradient_sync(wanted)
            return nullcontext()
        return nullcontext() if wanted else self.accelerator.no_sync(self.wrapped)

    def agree(self, seconds: float) -> float:
        """The first process's clock for all: they must see the same share of the budget, or they would stop apart."""
        if self.accelerator.num_processes == 1:
            return seconds
        from accelerate.utils import broadcast

        return float(broadcast(torch.tensor(seconds, dtype=torch.float64, device=self.accelerator.device)))

    def log(self, rate: float, figures: dict[str, float]) -> None:
        """Smoothed figures every 20 steps, to the file and to the progress line."""
        for name, value in figures.items():
            self.smooth[name] = value if name not in self.smooth else 0.97 * self.smooth[name] + 0.03 * value
        if self.step % 20 or not self.accelerator.is_main_process:
            return
        told = {name: round(value, 5) for name, value in self.smooth.items()}
        row = {"step": self.step, "seconds": round(self.used, 1), "lr": rate, **told}
        with open(self.path.with_name("log.jsonl"), "a") as file:
            file.write(json.dumps(row) + "\n")
        shown = " ".join(f"{name} {value:.4f}" for name, value in self.smooth.items())
        self.bar.set_postfix_str(f"step {self.step} {shown}", refresh=False)
        self.bar.n = min(self.progress, 1.0)
        self.bar.refresh()

    def pauses(self) -> None:
        """Checkpoint and validation when their time has come."""
        config = self.config
        due = config.checkpoint_steps and self.step % config.checkpoint_steps == 0
        if due or self.used - self.last_save >= config.checkpoint_seconds:
            self.save()
            self.last_save = self.used
        wanted = self.validate is not None and config.validation_seconds
        if wanted and self.used - self.last_validation >= config.validation_seconds:
            self.last_validation = self.used
            self.look()

    def look(self) -> None:
        """Call ``validate`` with averaged weights, in evaluation mode, the random generators kept as they are."""
        if not self.accelerator.is_main_process and not _is_sharded(self.module):
            self.accelerator.wait_for_everyone()
            return
        modes = {part: part.training for part in self.module.modules()}
        self.module.eval()
        with self.ema.applied(self.module), torch.no_grad(), undisturbed():
            self.validate(self.module, self.step)
        for part, mode in modes.items():
            part.training = mode
        self.accelerator.wait_for_everyone()

    def save(self) -> None:
        """Write the checkpoint; every process takes part, the first one writes, all wait until it is there."""
        from accelerate.utils import gather_object

        state = {
            **capture(self.module, self.optimizer, self.ema),
            "step": self.step,
            "seconds": self.used,
            "earlier_seconds": self.earlier,
            "random": gather_object([random_state()]),
        }
        if self.accelerator.is_main_process:
            atomic_save(state, self.path)
        # Whoever reads it next, in any process, finds it.
        self.accelerator.wait_for_everyone()

    def close(self) -> None:
        """Take down the progress line and what mixed precision put around the module's forward pass."""
        self.bar.close()
        self.accelerator.unwrap_model(self.wrapped, keep_fp32_wrapper=False)


def _is_sharded(module: nn.Module) -> bool:
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule)


def _accelerator(mixed_precision: str | None):
    """An accelerator for one run; a stage before this one in the same process may have had another precision."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, DistributedType
    from accelerate.utils import GradientAccumulationPlugin

    on_cpu = not torch.accelerator.is_available()
    wanted = mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if wanted == "fp16" and on_cpu:
        raise UsageError("mixed_precision: got fp16, which needs a GPU; allowed on this machine: no, bf16")
    if AcceleratorState._shared_state.get("_mixed_precision") not in (None, wanted):
        AcceleratorState._reset_state()
    accelerator = Accelerator(
        cpu=on_cpu,
        mixed_precision=mixed_precision,
        # The loop accumulates by itself: without this, a launcher's setting would divide the loss a second time.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
    )
    kind = accelerator.distributed_type
    if kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM) or (
        kind == DistributedType.FSDP and not accelerator.is_fsdp2
    ):
        raise UsageError(
            f"the launcher's accelerate configuration asks for {kind.value}, whose flattened or partitioned weights "
            "no checkpoint could be written of; allowed: plain multi-process training, FSDP with fsdp_version: 2"
        )
    return accelerator
