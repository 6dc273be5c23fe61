"""Seconds per training step of a LoRA on toy-video: genkit's loop, dense and through sparse attention, against a plain
loop of Diffusers and peft, measured turn by turn in one run.

All have the same batch, precision, adapter, optimizer and cached latents. The plain loop is what the scripts of
Diffusers do on one device: draw, noise, forward, loss, backward, clip, step. genkit's is all of ``train_lora``: samples
read from the cache on disk, averages, log.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.environment import RESULTS, environment, machine_line, report, table
from genkit.media.files import write_media
from genkit.reading import whole
from genkit.training.lora.run import Run
from genkit.training.lora.settings import LoraSettings

MODEL = "toy-video"
PLAIN = "diffusers + peft"
DENSE = "genkit"
#: Sparse methods with settings that suit seven latent frames of 16 x 16 tokens.
SPARSE: dict[str, dict[str, Any]] = {
    "radial": {"block_size": "64", "decay_factor": "0.1", "thin_below": "128", "near": "decay", "sink": "false"},
    "neighborhood": {"size": "7x8x8", "stride": "1x4x4"},
    "mixture_of_block": {"temporal": "1", "spatial": "4,4", "box": "1,8,8"},
}
RANK, RATE = 16, 1e-4
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``python -m benchmarks lora_speed``."""
    parser.add_argument("--size", action="append", help="frames x height x width (repeatable; default 25x128x128 and "
                        "25x256x256)")  # fmt: skip
    parser.add_argument("--method", choices=SPARSE, action="append", help="sparse method (repeatable; default: all)")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6, help="steps a turn and variant")
    parser.add_argument("--turns", type=int, default=5, help="how often every variant is measured")
    parser.add_argument("--threads", type=whole(1), default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: seconds of this process, for a machine "
                        "that has other work too; with one thread")  # fmt: skip
    parser.add_argument("--output", type=Path, default=RESULTS)


@dataclass
class Variant:
    """One way to train.

    Args:
        name: shown.
        steps: runs so many steps and gives the seconds of each.
        seconds: what was measured.
    """

    name: str
    steps: Callable[[int], list[float]]
    seconds: list[float] = field(default_factory=list)


def run(options: argparse.Namespace) -> int:
    """Measure, print and write the report."""
    torch.set_num_threads(options.threads)
    facts = {**environment(), "load average": os.getloadavg()}
    rows = []
    for size in options.size or ("25x128x128", "25x256x256"):
        rows += measure(*map(int, size.split("x")), options)
    text = "\n\n".join(
        [
            "# Speed of LoRA training on the CPU",
            f"{machine_line(facts)} Load average {facts['load average'][0]:.0f}. "
            f"{MODEL}, rank {RANK} on all attention projections, AdamW, float32, batch "
            f"{options.batch}, latents and text cached. Median of {options.turns} turns of {options.steps} steps each, "
            f"every variant once a turn; {options.clock} clock. Relative: to the plain loop at the same size.",
            table(rows),
        ]
    )
    report("lora_speed", {"environment": facts, "rows": rows}, text + "\n", options.output)
    return 0


def measure(frames: int, height: int, width: int, options: argparse.Namespace) -> list[dict[str, object]]:
    """Rows of one size."""
    clock = CLOCKS[options.clock]
    tokens = ((frames - 1) // 4 + 1) * (height // 16) * (width // 16)
    with tempfile.TemporaryDirectory() as folder:
        write_clips(Path(folder) / "data", frames, height, width)

        def settings(name: str, **more: Any) -> LoraSettings:
            given = {
                "model": MODEL, "data": f"{folder}/data", "output": f"{folder}/{name}", "cache_dir": f"{folder}/cache",
                "resolution": f"{height}x{width}", "num_frames": frames, "rank": RANK, "learning_rate": RATE,
                "train_batch_size": options.batch, "max_train_steps": 10**9, "caption_dropout": 0.0,
                "checkpointing_steps": 10**8, **more,
            }  # fmt: skip
            return LoraSettings.from_mappings(("the benchmark", given))

        variants = [Variant(DENSE, ours(settings("dense"), clock))]
        for name in (options.method or SPARSE) if tokens >= 1500 else ():
            told = settings(name, attention=name, attention_args=SPARSE[name])
            variants.append(Variant(f"genkit, {name}", ours(told, clock)))
        variants.insert(0, Variant(PLAIN, plain(settings("plain"), clock)))
        for variant in variants:
            variant.steps(1)  # first calls are slower
        for _ in range(options.turns):
            for variant in variants:
                gc.collect()
                variant.seconds += variant.steps(options.steps)
    base, least = statistics.median(variants[0].seconds), min(variants[0].seconds)
    return [
        {
            "size": f"{frames}x{height}x{width}",
            "tokens": tokens,
            "loop": variant.name,
            "s / step": f"{statistics.median(variant.seconds):.3f}",
            "fastest": f"{min(variant.seconds):.3f}",
            "relative": f"{statistics.median(variant.seconds) / base:.3f}",
            "of the fastest": f"{min(variant.seconds) / least:.3f}",
        }
        for variant in variants
    ]


def write_clips(folder: Path, frames: int, height: int, width: int) -> None:
    """Four captioned clips."""
    rng = np.random.default_rng(0)
    for index in range(4):
        clip = np.repeat(rng.integers(0, 255, (1, 1, 1, 3), np.uint8), frames, 0).repeat(height, 1).repeat(width, 2)
        folder.mkdir(parents=True, exist_ok=True)
        write_media(folder / f"{index}.mp4", clip, 8)
        (folder / f"{index}.txt").write_text(f"a red circle moves right, take {index}")


def ours(settings: LoraSettings, clock: Callable[[], float] = time.perf_counter) -> Callable[[int], list[float]]:
    """Steps of genkit's loop, told apart by the moments at which a loss is asked for."""
    run = Run.open(settings)
    loss, inner = run.loss(), run.loss
    state: dict[str, Any] = {}

    def timed(wrapped: Any, number: int, progress: float) -> Any:
        state["moments"].append(clock())
        if len(state["moments"]) > state["count"]:
            raise _Enough
        return loss(wrapped, number, progress)

    def steps(count: int) -> list[float]:
        state.update(moments=[], count=count)
        run.loss = lambda: timed
        try:
            run.go()
        except _Enough:
            pass
        finally:
            run.loss = inner
        return list(np.diff(state["moments"]))

    return steps


class _Enough(Exception):
    """Ends a run of the loop."""


def plain(settings: LoraSettings, clock: Callable[[], float]) -> Callable[[int], list[float]]:
    """Steps of a loop as Diffusers' scripts write it, with everything of the samples in memory."""
    from peft import LoraConfig

    run = Run.open(settings)  # for pipeline and latents alone
    pipeline, transformer = run.pipeline, run.adapter.model
    batches = [run.samples.batch(number) for number in range(run.samples.per_epoch)]
    run.adapter.remove()
    transformer.requires_grad_(False)
    transformer.add_adapter(
        LoraConfig(
            r=RANK,
            lora_alpha=RANK,
            init_lora_weights="gaussian",
            target_modules=r"blocks\.\d+\.attn[12]\.(?:to_[qkv]|to_out\.0)",
        )  # fmt: skip
    )
    parameters = [value for value in transformer.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE)
    shift = float(pipeline.scheduler.config.flow_shift)

    def forever() -> Iterator[Any]:
        while True:
            yield from batches

    source = forever()

    def steps(count: int) -> list[float]:
        found = []
        for _ in range(count):
            began = clock()
            batch = next(source)
            latents = batch.latents["video"]
            noise = torch.randn_like(latents)
            level = torch.sigmoid(torch.randn(len(latents)))
            level = shift * level / (1 + (shift - 1) * level)
            share = level.view(-1, 1, 1, 1, 1)
            answer = transformer(
                hidden_states=(1 - share) * latents + share * noise,
                timestep=1000 * level,
                encoder_hidden_states=batch.text["states"],
                return_dict=False,
            )[0]
            loss = ((answer.float() - (noise - latents).float()) ** 2).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            loss.detach().item()
            found.append(clock() - began)
        return found

    return steps
