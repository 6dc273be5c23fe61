"""A LoRA teaches a shipped model something it does not know: judged before and after, beside everything else.

Every row writes captioned files with ``scripts/write_concept.py``, trains from that folder with ``genkit train lora
--config examples/lora/...`` and samples the same prompts from the same noise with and without the LoRA, through the
attention it was trained with.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.environment import RESULTS, environment, machine_line, table, write_results
from benchmarks.toy_common import tell
from genkit.pipelines.processor import processor_flags
from genkit.reading import whole

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "examples" / "lora"
NAME = "lora_concept"


@dataclass(frozen=True)
class Row:
    """One LoRA.

    Args:
        model: shipped name.
        concept: of :data:`genkit.world.concepts.CONCEPTS`.
        kind: clip, sound or picture.
        config: file in ``examples/lora``.
        write: further arguments of ``scripts/write_concept.py``.
        beside: those for the files of known things alone.
        attention: name of the method in the loop; None for the model's own.
        arguments: of the method, as on the command line.
        schedule: of the method, as on the command line.
    """

    model: str
    concept: str
    kind: str
    config: str
    write: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    attention: str | None = None
    arguments: dict[str, str] = field(default_factory=dict)
    schedule: dict[str, str] = field(default_factory=dict)

    @property
    def method(self) -> str:
        """The attention in words."""
        if self.attention is None:
            return "dense"
        told = ", ".join(f"{key}={value}" for key, value in {**self.arguments, **self.schedule}.items())
        return f"{self.attention}({told})"

    @property
    def flags(self) -> list[str]:
        """The attention as options of a command."""
        if self.attention is None:
            return []
        flags = ["--attention", self.attention]
        for name, values in (("--attention-args", self.arguments), ("--schedule", self.schedule)):
            if values:
                flags += [name, ",".join(f"{key}={value}" for key, value in values.items())]
        return flags


_SIZES = ("--sizes", "small,medium,big")
_FEW = ("--count", "30", *_SIZES)
VIDEO = ("toy-video", "zigzag", "clip", "toy-video-zigzag.yaml", _SIZES, _FEW)
# As after training in the methods' papers, the first layers stay dense.
_LATER = {"layers": "2:"}
#: Name -> row. Density on toy-video's 7 x 8 x 8 tokens: 0.68 radial, 0.29 mixture_of_block, 0.39 neighborhood.
ROWS: dict[str, Row] = {
    "video": Row(*VIDEO),
    "video-radial": Row(*VIDEO, "radial", {"near": "decay", "sink": "false"}, _LATER),
    "video-mixture_of_block": Row(*VIDEO, "mixture_of_block", {}, _LATER),
    "video-neighborhood": Row(*VIDEO, "neighborhood", {"size": "7x5x5"}, _LATER),
    "image": Row("toy-image", "heart", "picture", "toy-image-heart.yaml"),
    "image-style": Row("toy-image", "silhouette", "picture", "toy-image-silhouette.yaml"),
    "dit": Row("toy-dit", "heart", "picture", "toy-dit-heart.yaml"),
    "av": Row("toy-av", "zigzag", "sound", "toy-av-zigzag.yaml", _SIZES, _FEW),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``python -m benchmarks lora_concept``."""
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--prompts", type=int, default=24, help="with the concept (default 24)")
    parser.add_argument("--known", type=int, default=24, help="without it (default 24)")
    parser.add_argument("--steps", type=int, default=20, help="of sampling")
    parser.add_argument("--precision", choices=("bf16", "no"), default=_quickest(), help="bf16 where it is quick")
    parser.add_argument("--threads", type=whole(1))
    parser.add_argument("--work", type=Path, default=Path("runs/lora-concept"), help="folder of data and LoRAs")
    parser.add_argument("--output", type=Path, default=RESULTS)


def _quickest() -> str:
    """bf16 on processors with units for it, else float32: without them bf16 is the slower one."""
    return "bf16" if "amx_bf16" in processor_flags() else "no"


def run(options: argparse.Namespace) -> int:
    """Train and judge row by row; the report is whole after every row, and rows of earlier calls stay in it."""
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    for name in options.rows:
        found = measure(ROWS[name], options.work / name, options)
        path, facts = options.output / f"{NAME}.json", environment()
        done = json.loads(path.read_text())["rows"] if path.exists() else {}
        ordered = {row: ({**done, name: found})[row] for row in ROWS if row in done or row == name}
        text = _text(facts, ordered)
        write_results(NAME, {"environment": facts, "rows": ordered}, text, options.output)
        print(text)
    return 0


def measure(row: Row, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Everything that is known of one row, as plain values."""
    begun = time.perf_counter()
    files = write_files(row, folder / "data")
    trained = train(row, files, folder / "lora", options)
    from genkit.evaluation import concepts

    before = _judged(row, None, options)
    after = _judged(row, folder / "lora" / "pytorch_lora_weights.safetensors", options, folder)
    kept = concepts.change(before["known"], after["known"], row.kind)
    bare = None if row.attention is None else _known_without(row, before["known"], options)
    return {
        "model": row.model, "concept": row.concept, "attention": row.method, "prompts": options.prompts,
        "known": options.known, "sampling_steps": options.steps, "precision": options.precision, **trained,
        "before": _shares(before), "after": _shares(after), "change": kept, "change_without": bare,
        "minutes": (time.perf_counter() - begun) / 60,
    }  # fmt: skip


def write_files(row: Row, folder: Path) -> Path:
    """The folder that is trained on: the concept in one folder, known things in another."""
    if not folder.exists():
        base = [sys.executable, "scripts/write_concept.py", row.concept]
        kind = ["--kind", row.kind, *row.write]
        subprocess.run([*base, str(folder.resolve() / "concept"), *kind], check=True, cwd=ROOT)
        known = [str(folder.resolve() / "known"), *kind, "--known", "--seed", "5", *row.beside]
        subprocess.run([*base, *known], check=True, cwd=ROOT)
    return folder


def train(row: Row, files: Path, output: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Train by the command, unless it was done; returns steps, minutes and seconds of the processor."""
    facts = output / "concept.json"
    if not facts.exists():
        command = [
            sys.executable, "-m", "genkit", "train", "lora", "--config", str(CONFIGS / row.config),
            "--data", str(files / "concept"), "--data", str(files / "known"), "--output", str(output),
            "--mixed-precision", options.precision, *row.flags,
        ]  # fmt: skip
        if options.threads:
            command += ["--threads", str(options.threads)]
        print(" ".join(["genkit", *command[3:]]), flush=True)
        wall, cpu = time.perf_counter(), _children()
        subprocess.run(command, check=True)
        spent = {"train_minutes": (time.perf_counter() - wall) / 60, "train_cpu_seconds": _children() - cpu}
        losses = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
        facts.write_text(json.dumps(spent | {"train_steps": max(each["step"] for each in losses)}))
    return json.loads(facts.read_text())


def _children() -> float:
    import resource

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _judged(row: Row, lora: Path | None, options: argparse.Namespace, folder: Path | None = None) -> dict[str, list]:
    """Judged samples with the concept and without it; those of the model alone are kept for other rows."""
    from genkit.evaluation import concepts

    kept = options.work / f"before-{row.model}-{row.concept}-{options.prompts}-{options.known}-{options.steps}.json"
    if lora is None and kept.exists():
        return json.loads(kept.read_text())
    pipeline = _pipeline(row, lora, _dtype(options), attention=lora is not None)
    found = {}
    for name, shown, count, seed in (("new", True, options.prompts, 1000), ("known", False, options.known, 2000)):
        prompts = concepts.concept_prompts(row.concept, row.kind, count, shown)
        title = f"{row.model} {'before' if lora is None else 'after'}, {name}"
        samples = concepts.sample(
            pipeline, row.model, row.kind, prompts.texts, options.steps, seed, lambda d, t, x=title: tell(x, d, t)
        )
        found[name] = concepts.judge(row.concept, row.kind, prompts, samples, shown)
        _sheet(samples, prompts.texts, (folder or options.work) / f"{row.model}-{title.split()[1][:-1]}-{name}.png")
    if lora is None:
        kept.write_text(json.dumps(found))
    return found


def _known_without(row: Row, before: list, options: argparse.Namespace) -> tuple[float, float]:
    """What the attention alone changes of prompts without the concept: what the LoRA has to make good."""
    from genkit.evaluation import concepts

    pipeline = _pipeline(row, None, _dtype(options), attention=True)
    prompts = concepts.concept_prompts(row.concept, row.kind, options.known, False)
    samples = concepts.sample(pipeline, row.model, row.kind, prompts.texts, options.steps, 2000)
    _sheet(samples, prompts.texts, options.work / f"{row.model}-{row.attention}-without.png")
    return concepts.change(before, concepts.judge(row.concept, row.kind, prompts, samples, False), row.kind)


def _dtype(options: argparse.Namespace) -> str:
    return "bfloat16" if options.precision == "bf16" else "float32"


def _pipeline(row: Row, lora: Path | None, dtype: str, attention: bool) -> Any:
    """The model, with a LoRA and with the attention that it was trained with."""
    import genkit
    from genkit.lora.load import apply_loras
    from genkit.training.lora.settings import LoraSettings

    pipeline = genkit.load(row.model, dtype=dtype, device="cpu")
    pipeline.set_progress_bar_config(disable=True)
    if lora is not None:
        apply_loras(pipeline, [str(lora)])
    if attention and row.attention is not None:
        from genkit.models import locate
        from genkit.pipelines.attention import Attention
        from genkit.pipelines.model import Model
        from genkit.training.lora.attention import put_in

        given = {
            "model": row.model, "data": ".", "output": ".", "max_train_steps": 1,
            "attention": row.attention, "attention_args": row.arguments, "schedule": row.schedule,
        }  # fmt: skip
        settings = LoraSettings.from_mappings((row.config, given))
        model = Model.of(locate(row.model).path, row.model)
        chosen = Attention.of(settings, model.folder).settled(model, None)
        put_in(getattr(pipeline, "unet", None) or pipeline.transformer, chosen, False)
    return pipeline


def _sheet(samples: Any, texts: Sequence[str], path: Path) -> None:
    from genkit.evaluation.sheet import contact_sheet, save_sheet

    frames = 1 if samples.shape[1] == 1 else 5
    path.parent.mkdir(parents=True, exist_ok=True)
    save_sheet(contact_sheet(list(samples[:24]), list(texts[:24]), 8 if frames == 1 else 2, frames), path)


def _shares(judged: dict[str, list]) -> dict[str, dict[str, tuple[float, float]]]:
    """Percentages and standard errors by attribute, with the concept and without."""
    from genkit.evaluation.concepts import share

    return {
        part: {name: share(rows, name) for name in dict.fromkeys(name for row in rows for name in row)}
        for part, rows in judged.items()
    }


def _text(facts: dict, rows: dict[str, dict]) -> str:
    lines = [_line(row) for row in rows.values()]
    return "\n".join(
        [
            "# LoRAs of a concept",
            "",
            machine_line(facts),
            "30 files of a concept that the model does not know and some of known things, `genkit train lora`, "
            "then the same prompts from the same noise before, and after through the attention that was trained "
            "with. Shares in percent with their standard error. Known: share of prompts without the concept that "
            "show it all the same, and the mean change of their attributes in points, prompt by prompt, against "
            "the model before; then what the attention alone changes, without the LoRA. Minutes: with a processor "
            "that other work shared. CPU: seconds of all cores in training.",
            "",
            table(lines),
            "",
            "## Attributes of prompts without the concept, before and after",
            "",
            table([line for row in rows.values() for line in _attributes(row)]),
            "",
        ]
    )


def _line(row: dict) -> dict[str, str]:
    beside = {name: value for name, value in row["after"]["new"].items() if name != "concept"}
    return {
        "model": row["model"], "concept": row["concept"], "attention": row["attention"],
        "prompts": str(row["prompts"]), "before": _cell(row["before"]["new"]["concept"]),
        "after": _cell(row["after"]["new"]["concept"]),
        "beside it": ", ".join(f"{name} {value[0]:.0f}" for name, value in beside.items()),
        "known: concept": _cell(row["after"]["known"]["concept"]),
        "known: change": _points(row["change"]), "the same without the LoRA": _points(row.get("change_without")),
        "steps": str(row["train_steps"]),
        "train min": f"{row['train_minutes']:.1f}", "CPU s": f"{row['train_cpu_seconds']:.0f}",
        "minutes": f"{row['minutes']:.1f}",
    }  # fmt: skip


def _attributes(row: dict) -> list[dict[str, str]]:
    head = {"model": row["model"], "concept": row["concept"], "attention": row["attention"]}
    return [
        head | {"": when} | {name: _cell(value) for name, value in row[when]["known"].items() if name != "concept"}
        for when in ("before", "after")
    ]


def _points(value: Sequence[float] | None) -> str:
    return "" if value is None else f"{value[0]:+.1f} ± {value[1]:.1f}"


def _cell(value: Sequence[float]) -> str:
    return f"{value[0]:.1f} ± {value[1]:.1f}"
