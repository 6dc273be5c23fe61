"""A run of one or several stages by one command: options, budgets, and going on where a stopped run was."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from genkit.errors import GenkitError, UsageError
from genkit.media.atomic import check_writable
from genkit.reading import number, parse_json, read_text, whole
from genkit.reading.files import MIB, place
from genkit.training.engine.checkpoint import load_checkpoint
from genkit.training.engine.loop import LoopConfig, wait_for_all

Options = argparse.Namespace
#: Bytes of a log; a run of a week writes a few MiB.
MOST_LOG = 256 * MIB


@dataclass(frozen=True)
class Making:
    """The plan of a run.

    Args:
        name: of what is made, also of the run's default folder.
        minutes: default training time in all.
        tokens: default latent tokens per step.
        main: the stage that ``--start-from`` goes on from.
        shares: stages that train, with their parts of the whole budget, in order.
        work: what every stage does, in order; called with the options.
        more: adds further options to the parser.
        from_files: whether ``--start-from`` takes a file of finished weights, too.
    """

    name: str
    minutes: float
    tokens: int
    main: str
    shares: dict[str, float]
    work: dict[str, Callable[[Options], None]]
    more: Callable[[argparse.ArgumentParser], None] | None = None
    from_files: bool = False

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Options of the command."""
        add = parser.add_argument
        add("--folder", type=Path, default=Path("runs") / self.name, help="checkpoints, logs and sheets")
        add("--output", type=Path, help="where the finished model goes (default: FOLDER/model)")
        add(
            "--minutes",
            type=number(0, above=True),
            default=self.minutes,
            help=f"training time in all (default {self.minutes:.0f})",
        )
        add("--stage", choices=("all", *self.work), default="all")
        add("--tokens", type=whole(100), default=self.tokens, help="latent tokens per step and process; more on a GPU")
        add(
            "--start-from",
            type=Path,
            help=f"checkpoint.pt of an earlier {self.main} run to go on from, with a new budget"
            + (", or a .safetensors file that one wrote" if self.from_files else ""),
        )
        add(
            "--begin",
            type=number(0, 1),
            default=0.0,
            help="with --start-from: share of the curriculum to skip, such as 0.7 for large canvases alone (default 0)",
        )
        add("--lr", type=number(0, above=True), help="peak learning rate of the main stage (default: the plan's)")
        add(
            "--mixed-precision",
            choices=("no", "bf16", "fp16"),
            help="type of the forward pass's products (default: the launcher's, without one float32); bf16 is quicker "
            "on processors with AMX and on GPUs",
        )
        add(
            "--gradient-accumulation-steps",
            type=whole(1),
            default=1,
            help="micro-batches of --tokens per step (default 1)",
        )
        add("--seed", type=whole(0, 2**63 - 1), default=0, help="of everything drawn (default 0)")
        add("--threads", type=whole(1), help="processor threads (default: what torch chooses)")
        add("--sample-minutes", type=number(0), default=13.0, help="pause between sample sheets; 0 for none")
        if self.more:
            self.more(parser)

    def run(self, options: Options) -> None:
        """Run the stages that are asked for and not finished yet.

        Raises:
            ArtifactError: a folder cannot be written, told before the time is spent.
        """
        check_writable(options.folder, "--folder")
        if options.output:
            check_writable(options.output)
        if options.threads:
            torch.set_num_threads(options.threads)
        torch.manual_seed(options.seed)
        own = options.folder / self.main / "checkpoint.pt"
        if options.start_from and options.start_from.resolve() == own.resolve():
            raise UsageError("--start-from names this run's own checkpoint, which it goes on from anyway: leave it out")
        for name in self.work if options.stage == "all" else (options.stage,):
            self.work[name](options)
            wait_for_all()

    def main_function(self, description: str) -> int:
        """The body of a training script: parse the command line, run, and turn errors into exit codes."""
        parser = OneLineParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        self.add_arguments(parser)
        return exit_code(lambda: self.run(parser.parse_args()))

    def budget(self, options: Options, stage: str) -> float:
        """Seconds of training that a stage has."""
        return 60 * options.minutes * self.shares[stage]

    def loop(self, options: Options, stage: str, **more: Any) -> LoopConfig:
        """The loop's configuration for a stage."""
        given = {
            "folder": options.folder / stage,
            "seconds": self.budget(options, stage),
            "validation_seconds": 60 * options.sample_minutes,
            "begin": options.begin if stage == self.main else 0.0,
            "mixed_precision": options.mixed_precision,
            "gradient_accumulation_steps": options.gradient_accumulation_steps,
        }
        return LoopConfig(**{**given, **more})

    def finished(self, options: Options, stage: str) -> bool:
        """Whether a stage has used up its budget and written its result."""
        folder = options.folder / stage
        if not (folder / "final").exists() or not (folder / "checkpoint.pt").exists():
            return False
        return load_checkpoint(folder / "checkpoint.pt")["seconds"] >= self.budget(options, stage)

    def facts(self, options: Options) -> dict:
        """What ``training.json`` tells about a run."""
        state = load_checkpoint(options.folder / self.main / "checkpoint.pt")
        found = {
            "steps": state["step"],
            "seconds": round(state["earlier_seconds"] + state["seconds"]),
            "seed": options.seed,
            "tokens": options.tokens,
        }
        log = options.folder / self.main / "log.jsonl"
        return found | self.stage_facts(options) | {"last_log": _last_line(log) if log.exists() else None}

    def stage_facts(self, options: Options) -> dict:
        """Steps and seconds of the stages beside the main one."""
        found = {}
        for name in self.shares:
            path = options.folder / name / "checkpoint.pt"
            if name != self.main and path.exists():
                part = load_checkpoint(path)
                found[name] = {"steps": part["step"], "seconds": round(part["seconds"])}
        return found


def _last_line(log: Path) -> Any:
    """The last entry of a log of JSON lines; None while it has none."""
    lines = read_text(log, MOST_LOG, "training log").splitlines()
    return parse_json(lines[-1], f"the last line of {place(log)}") if lines else None


class OneLineParser(argparse.ArgumentParser):
    """Tells a wrong argument as every other error is told."""

    def error(self, message: str) -> NoReturn:
        """See :meth:`argparse.ArgumentParser.error`."""
        raise UsageError(f"{self.prog}: {message}; --help lists what it takes")


def exit_code(work: Callable[[], None]) -> int:
    """Run a script's work; errors become one line and an exit code."""
    try:
        work()
    except GenkitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def newest(folder: Path, *stages: str) -> Path:
    """The folder of the first finished stage among the given ones.

    Raises:
        UsageError: none is finished.
    """
    for stage in stages:
        if (folder / stage / "final").exists():
            return folder / stage / "final"
    raise UsageError(f"no finished autoencoder in {folder}: run --stage vae first")
