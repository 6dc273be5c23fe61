"""The one training loop: budget, learning-rate schedule, accumulation, averaged weights, logs, and checkpoints that
survive a kill.

A task gives the loop its modules and a function from a number to a loss; the loop does everything else. It runs on a
CPU, one GPU or several through :mod:`accelerate` (DDP, or FSDP2 by the user's accelerate configuration). A module that
the caller has sharded with ``torch.distributed.fsdp.fully_shard`` is trained as it is, also on CPUs.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from genkit.errors import ArtifactError, UsageError, explain
from genkit.reading.files import place
from genkit.training.engine.checkpoint import capture, restore
from genkit.training.engine.ema import EMA, trainable
from genkit.training.engine.interrupt import Interrupt, Stopped
from genkit.training.engine.journal import Journal
from genkit.training.engine.keep import Keep, OneFile
from genkit.training.engine.memory import checkpoint_gradients
from genkit.training.engine.random_state import random_state, set_random_state, undisturbed

#: Called with (module, number of the micro-batch, share of the curriculum done); returns loss and figures for the log.
LossAt = Callable[[nn.Module, int, float], tuple[torch.Tensor, dict[str, float]]]
#: Called with (module, step); returns numbers and pictures for the tracker, or None.
Validate = Callable[[nn.Module, int], dict[str, Any] | None]

SCHEDULES = ("cosine", "linear", "constant", "constant_with_warmup", "cosine_with_restarts", "polynomial")
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
        lr_scheduler: how the rate falls after the warm-up, one of :data:`SCHEDULES`; ``constant_with_warmup`` is the
            same as ``constant``.
        cycles: of ``cosine_with_restarts``.
        power: of ``polynomial``.
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
        validation_steps: steps between such calls besides; 0 for none.
        validation_ends: call ``validate`` before the first step and after the last besides.
        log_steps: steps between lines of ``log.jsonl``.
        tracker: where figures go besides, see :data:`genkit.training.engine.journal.TRACKERS`.
        explosion: a loss of more than this multiple of the mean so far (of 1 where that is less) ends the run; None for
            any finite loss is good.
        begin: where between 0 and 1 the task's curriculum begins, for a run that goes on from another; the learning
            rate follows the budget alone.
    """

    folder: Path
    lr: float
    seconds: float | None = None
    steps: int | None = None
    warmup: int = 30
    lr_scheduler: str = "cosine"
    cycles: int = 1
    power: float = 1.0
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
    validation_steps: int = 0
    validation_ends: bool = False
    log_steps: int = 20
    tracker: str | None = None
    explosion: float | None = None
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


def process_count() -> int:
    """Processes of a distributed run; 1 in a plain one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def wait_for_all() -> None:
    """Wait until every process of a distributed run is here; nothing in a plain one."""
    from accelerate import PartialState

    # Without being told, accelerate takes several CPU processes for as many separate runs.
    PartialState(cpu=not torch.accelerator.is_available()).wait_for_everyone()


def rate_at(config: LoopConfig, step: int, progress: float) -> float:
    """Learning rate at a step, given the share of the budget that is used up."""
    warm = min(1.0, (step + 1) / max(config.warmup, 1))
    share = min(max((progress - config.decay_from) / (1 - config.decay_from), 0.0), 1.0)
    turn = (config.cycles * share + 1e-9) % 1.0 if share < 1 else 1.0
    left = {
        "cosine": 0.5 * (1 + math.cos(math.pi * share)),
        "linear": 1 - share,
        "constant": 1.0,
        "constant_with_warmup": 1.0,
        "cosine_with_restarts": 0.5 * (1 + math.cos(math.pi * turn)),
        "polynomial": (1 - share) ** config.power,
    }
    return config.lr * warm * (config.final + (1 - config.final) * left[config.lr_scheduler])


def train(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_at: LossAt,
    config: LoopConfig,
    validate: Validate | None = None,
    title: str = "training",
    keep: Keep | None = None,
) -> EMA:
    """Train a module until the budget is used up, going on from a checkpoint when there is one.

    A run with a budget of steps whose ``loss_at`` draws nothing but from its number, or from torch's, NumPy's and
    Python's global generators, ends with the same bits however often it is stopped and resumed on the same machine.
    The first Ctrl-C finishes the step and saves, the second stops at once.

    Args:
        module: everything that is trained, as one module; frozen parameters may be in it.
        optimizer: over the module's trainable parameters; its ``lr`` is set by the loop.
        loss_at: called with (module, number, share of the curriculum done); returns the loss of a micro-batch, a mean
            over its samples, and figures for the log, which are averaged over the micro-batches that have them. The
            number counts micro-batches: it is the step as long as nothing is accumulated.
        config: budget, rates and paces.
        validate: called with the module holding averaged weights, and the step; what it draws at random does not
            change the training, and what it returns goes to the tracker. Ctrl-C leaves it at once.
        title: shown in the progress line.
        keep: where checkpoints are kept; None is ``folder/checkpoint.pt``.

    Returns:
        The averaged weights.

    Raises:
        ArtifactError: the loss is no number or has exploded, a checkpoint is of another model or cannot be written.
        UsageError: a launcher's configuration that checkpoints cannot be written under.
        Stopped: Ctrl-C; the state was saved.
    """
    run = _Run(module, optimizer, loss_at, config, validate, title, keep or OneFile(config.folder))
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
        validate: Validate | None,
        title: str,
        keep: Keep,
    ):
        self.module, self.loss_at, self.config, self.validate, self.keep = module, loss_at, config, validate, keep
        self.accelerator = _accelerator(config.mixed_precision)
        module.to(self.accelerator.device)
        if config.gradient_checkpointing:
            checkpoint_gradients(module)
        Path(config.folder).mkdir(parents=True, exist_ok=True)
        self.journal = Journal(
            Path(config.folder), self.accelerator.is_main_process, config.log_steps, config.tracker, title
        )
        self.step, self.used, self.earlier = 0, 0.0, 0.0
        self.usual = Mean()
        state, path = keep.find() or (None, None)
        if state is not None:
            # Before the processes meet, so that a wrong file is told by every one of them and none waits.
            restore(state, path, module, None, None)
        self.wrapped, self.optimizer = self._prepare(optimizer)
        self.ema = EMA(module, config.ema_decay)
        if state is not None:
            restore(state, path, module, self.optimizer, self.ema)
            self.step, self.used, self.earlier = state["step"], state["seconds"], state["earlier_seconds"]
            self.usual = Mean(*state["usual"])
            self._restore_random(state["random"], path)
        self.journal.begin(self.step, self.progress, {} if state is None else state["smooth"])
        self.last_save = self.last_validation = self.used
        self.looked = -1

    def _prepare(self, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        if _is_sharded(self.module) and not self.accelerator.is_fsdp2:
            return self.module, self.accelerator.prepare_optimizer(optimizer)
        return self.accelerator.prepare(self.module, optimizer)

    def _restore_random(self, states: list[dict[str, Any]], path: Path) -> None:
        rank = self.accelerator.process_index
        if states and len(states) != self.accelerator.num_processes:
            warnings.warn(
                f"{path} was written by {len(states)} process(es), this run has "
                f"{self.accelerator.num_processes}: it goes on, but not with the random numbers of an unbroken run",
                stacklevel=2,
            )
        if rank < len(states):
            try:
                set_random_state(states[rank])
            except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
                raise ArtifactError(f"{path}: what it holds are no states of random generators") from error

    @property
    def progress(self) -> float:
        """Share of the budget used up."""
        config = self.config
        return self.used / config.seconds if config.seconds is not None else self.step / config.steps

    def go(self) -> None:
        """Step after step until the budget is used up."""
        ends = self.config.validation_ends and self.validate is not None
        with Interrupt() as interrupt:
            if ends and self.step == 0:
                self.look(interrupt)
            while self.progress < 1.0:
                started = time.perf_counter()
                rate = rate_at(self.config, self.step, self.progress)
                for group in self.optimizer.param_groups:
                    group["lr"] = rate * group.get("factor", 1.0)
                figures = self.optimizer_step()
                self.step += 1
                self.used, asked = self.agree(self.used + time.perf_counter() - started, interrupt.asked)
                self.journal.step(self.step, self.used, rate, self.progress, figures)
                if not asked:
                    self.pauses(interrupt)
                    _, asked = self.agree(self.used, interrupt.asked)
                if asked and self.progress < 1.0:
                    self.save()
                    raise Stopped(f"stopped after step {self.step}, {self.told_last()}; {self.keep.how_to_go_on()}")
            self.save()
            if ends and self.looked != self.step:
                self.look(interrupt)

    def told_last(self) -> str:
        """Where the last good state is, for messages."""
        return "no state was saved yet" if self.keep.last is None else f"the last good state is {place(self.keep.last)}"

    def optimizer_step(self) -> dict[str, float]:
        """Gradients of all micro-batches, then one update of weights and averages; figures for the log."""
        count = self.config.gradient_accumulation_steps
        progress = self.config.begin + (1 - self.config.begin) * self.progress
        sums: dict[str, float] = {}
        seen: dict[str, int] = {}
        for part in range(count):
            with self.exchange(part == count - 1):
                loss, figures = self.loss_at(self.wrapped, count * self.step + part, progress)
                found = loss.item()
                if not math.isfinite(found):
                    self.fail(f"the loss became {found}")
                self.accelerator.backward(loss / count if count > 1 else loss)
            for name, value in {"loss": found, **figures}.items():
                sums[name] = sums.get(name, 0.0) + value / count
                seen[name] = seen.get(name, 0) + 1
        for name, times in seen.items():
            if times < count:
                sums[name] *= count / times
        sums["loss"] = self.joint(sums["loss"])
        limit = self.config.explosion
        if limit is not None and sums["loss"] > limit * max(self.usual.value, 1.0):
            self.fail(f"the loss rose to {sums['loss']:.4g}")
        self.usual.add(sums["loss"])
        norm = self.accelerator.clip_grad_norm_(trainable(self.module).values(), self.config.max_grad_norm)
        if limit is not None and not math.isfinite(norm) and self.accelerator.scaler is None:
            self.fail(f"the gradients' norm became {float(norm)}")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if not self.accelerator.optimizer_step_was_skipped:
            self.ema.update(self.module)
        return {"norm": float(norm), **sums}

    def fail(self, what: str) -> NoReturn:
        """End the run because training went wrong."""
        raise ArtifactError(f"{what} at step {self.step}: lower the learning rate; {self.told_last()}")

    def exchange(self, wanted: bool) -> AbstractContextManager:
        """Whether the processes exchange gradients in a backward pass: once per step, with the last micro-batch."""
        if _is_sharded(self.module):
            self.module.set_requires_gradient_sync(wanted)
            return nullcontext()
        return nullcontext() if wanted else self.accelerator.no_sync(self.wrapped)

    def joint(self, loss: float) -> float:
        """The mean loss of all processes: what is told and judged is of the joint batch."""
        if self.accelerator.num_processes == 1:
            return loss
        told = torch.tensor(loss, dtype=torch.float32, device=self.accelerator.device)
        return float(self.accelerator.reduce(told, "mean"))

    def agree(self, seconds: float, asked: bool) -> tuple[float, bool]:
        """The first process's clock and Ctrl-C for all: they must see the same, or they would stop apart."""
        if self.accelerator.num_processes == 1:
            return seconds, asked
        from accelerate.utils import broadcast

        told = torch.tensor([seconds, asked], dtype=torch.float64, device=self.accelerator.device)
        seconds, asked = broadcast(told).tolist()
        return seconds, bool(asked)

    def pauses(self, interrupt: Interrupt) -> None:
        """Checkpoint and validation when their time has come."""
        config = self.config
        due = config.checkpoint_steps and self.step % config.checkpoint_steps == 0
        if due or self.used - self.last_save >= config.checkpoint_seconds:
            self.save()
            self.last_save = self.used
        if self.validate is None:
            return
        due = config.validation_steps and self.step % config.validation_steps == 0
        if due or (config.validation_seconds and self.used - self.last_validation >= config.validation_seconds):
            self.last_validation = self.used
            self.look(interrupt)

    def look(self, interrupt: Interrupt) -> None:
        """Call ``validate`` with averaged weights, in evaluation mode, the random generators kept as they are."""
        if not self.accelerator.is_main_process and not _is_sharded(self.module):
            self.accelerator.wait_for_everyone()
            return
        modes = {part: part.training for part in self.module.modules()}
        self.module.eval()
        try:
            with interrupt.breakable(), self.ema.applied(self.module), torch.no_grad(), undisturbed():
                self.journal.show(self.step, self.validate(self.module, self.step) or {})
                self.looked = self.step
        finally:
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
            "smooth": self.journal.smooth,
            "usual": [self.usual.count, self.usual.value],
            "random": gather_object([random_state()]),
        }
        with self.ema.applied(self.module):
            export = self.keep.exporter(self.step)
            if self.accelerator.is_main_process:
                self.keep.write(state, export)
        # Whoever reads it next, in any process, finds it.
        self.accelerator.wait_for_everyone()

    def close(self) -> None:
        """Take down the progress line and what mixed precision put around the module's forward pass."""
        self.journal.close()
        self.accelerator.unwrap_model(self.wrapped, keep_fp32_wrapper=False)


@dataclass
class Mean:
    """The mean of numbers that come one by one."""

    count: int = 0
    value: float = 0.0

    def add(self, number: float) -> None:
        """Take one more."""
        self.count += 1
        self.value += (number - self.value) / self.count


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
