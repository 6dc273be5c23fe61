"""Killing a LoRA run with SIGKILL at random moments, also while a checkpoint is written, and going on from the newest
checkpoint each time: losses and final files must be those of an unbroken run, bit for bit.

Half of the moments are drawn in time, half among the calls that write, rename and remove files. A child process is
forked for every start, so the packages are imported once; that needs one thread and a system with fork.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genkit.media.files import write_media
from genkit.training.lora.run import train_lora
from genkit.training.lora.settings import LoraSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``python -m benchmarks lora_kills``."""
    parser.add_argument("--model", default="toy-video")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)


def run(options: argparse.Namespace) -> int:
    """Kill, go on, compare; exit code 1 where anything differs."""
    torch.set_num_threads(1)
    told = kill_and_compare(options.model, options.kills, options.steps, options.seed)
    print(json.dumps(told, indent=2))
    return 0 if told["same"] else 1


def kill_and_compare(model: str, kills: int, steps: int, seed: int) -> dict[str, Any]:
    """An unbroken run, then one that is killed at ``kills`` moments; what was found."""
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_clips(folder / "data")

        def start(output: str, watch: Callable[[], None] | None = None) -> int:
            given = {
                "model": model, "data": str(folder / "data"), "output": str(folder / output), "num_frames": 5,
                "resolution": "64x64", "cache_dir": str(folder / "cache"), "rank": 2, "max_train_steps": steps,
                "checkpointing_steps": 1, "checkpoints_total_limit": 2, "use_ema": True, "lora_dropout": 0.1,
                "lr_scheduler": "cosine", "resume_from_checkpoint": "latest",
            }  # fmt: skip
            return child(lambda: train_lora(LoraSettings.from_mappings(("here", given))), watch)

        began = time.monotonic()
        finished(start("whole"))
        seconds = time.monotonic() - began
        moments = []
        for number in range(kills):
            if number % 2:
                calls = draw.randint(1, 60)
                process = start("broken", lambda calls=calls: die_at_call(calls))
                moments.append(f"call {calls}")
            else:
                delay = draw.uniform(0.2, 0.7) * seconds
                process = start("broken")
                time.sleep(delay)
                moments.append(f"{delay:.2f} s")
                with_kill(process)
            os.waitpid(process, 0)
            newest = max((step_of(path) for path in (folder / "broken").glob("checkpoint-*")), default=0)
            moments[-1] += f", step {newest}"
            if newest >= steps:
                # Kills beyond the end begin a new run.
                differ = compare(folder)
                if differ:
                    return {"same": False, "differ": differ, "moments": moments}
                shutil.rmtree(folder / "broken")
        finished(start("broken"))
        differ = compare(folder)
        return {"same": not differ, "differ": differ, "moments": moments, "seconds unbroken": round(seconds, 2)}


def compare(folder: Path) -> list[str]:
    """Names of what differs between the two runs; an unfinished one has no file yet."""
    wanted, found = folder / "whole", folder / "broken"
    name = "pytorch_lora_weights.safetensors"
    if not (found / name).exists():
        return []
    differ = [] if (wanted / name).read_bytes() == (found / name).read_bytes() else [name]
    logs = [[json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()] for path in (wanted, found)]
    rows = [[{key: value for key, value in row.items() if key != "seconds"} for row in log] for log in logs]
    return differ if rows[0] == rows[1] else [*differ, "log.jsonl"]


def child(work: Callable[[], object], watch: Callable[[], None] | None) -> int:
    """Do something in a forked process; its number."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 2)
        warnings.simplefilter("ignore")
        if watch is not None:
            watch()
        work()
        code = 0
    finally:
        os._exit(code)


def finished(process: int) -> None:
    """Wait for a process that must end well."""
    _, status = os.waitpid(process, 0)
    if status:
        raise SystemExit(f"a run that nobody killed ended with status {status}")


def with_kill(process: int) -> None:
    """SIGKILL, unless it has ended already."""
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        pass


def die_at_call(calls: int) -> None:
    """Kill this process in the n-th of the calls that write, flush, rename and remove, before or half through."""
    left = calls

    def deadly(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def called(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                if name == "save":
                    Path(args[1]).write_bytes(b"PK half a file")
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        setattr(owner, name, called)

    for owner, name in ((torch, "save"), (os, "fsync"), (os, "replace"), (Path, "rename"), (shutil, "rmtree")):
        deadly(owner, name)


def step_of(path: Path) -> int:
    """The number of a checkpoint."""
    return int(path.name.partition("-")[2])


def write_clips(folder: Path) -> None:
    """Three captioned clips."""
    folder.mkdir(parents=True)
    for index, level in enumerate((40, 120, 220)):
        frames = np.full((5, 64, 64, 3), level, np.uint8)
        frames[:, 16:48, 8 * index : 8 * index + 24] = 255 - level
        write_media(folder / f"{index}.mp4", frames, 8)
        (folder / f"{index}.txt").write_text("a red circle moves right")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    sys.exit(run(parser.parse_args()))
