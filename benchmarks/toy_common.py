"""What the benchmarks of the toy models share: splits, shares with their error, trained weights, progress."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

SPLITS = (
    ("train", "seen"),
    ("held_out_tuple", "held out: new combination of known pairs"),
    ("held_out_pair", "held out: new colour-shape pair"),
)


def split_counts(prompts: int) -> dict[str, int]:
    """Prompts per split: half of them seen, the rest shared by the held-out ones."""
    return {
        "train": prompts // 2,
        "held_out_tuple": prompts // 4,
        "held_out_pair": prompts - prompts // 2 - prompts // 4,
    }


def share(result, name: str) -> str:
    """Percentage and standard error of one attribute."""
    return f"{100 * result.right[name]:.1f} ± {100 * result.error(name):.1f}"


def shares(result, names) -> dict[str, str]:
    """Table cells of the attributes, empty for those that no prompt asked for."""
    return {name: share(result, name) if name in result.right else "" for name in names}


def tell(title: str, done: int, total: int) -> None:
    """Progress on stderr."""
    print(f"\r{title}: {done}/{total} ", end="\n" if done == total else "", file=sys.stderr, flush=True)


def parse_size(text: str) -> tuple[int, int, int]:
    """``FxHxW`` as three numbers."""
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise SystemExit(f"size: got {text!r}, allowed: FRAMESxHEIGHTxWIDTH such as 25x128x128")
    return tuple(int(part) for part in parts)


def trained_facts(weights: Path | None) -> dict | None:
    """What the run that made the weights tells beside them; in a model's folder lies the model's own report instead."""
    if weights is None:
        return None
    beside = weights.with_name("training.json")
    told = json.loads(beside.read_text()) if beside.exists() else {}
    return {"file": weights.name} | (told if told.get("method") == weights.stem else {})


def trained_text(trained: dict | None) -> str:
    """Which weights were measured, in words."""
    told = "No trained weights were given." if trained is None else f"Weights: {trained['file']}."
    if trained and "steps" in trained:
        told += f" {trained['steps']} steps in {trained['seconds'] / 60:.0f} minutes."
    return told


def told_options(options: argparse.Namespace) -> dict[str, str]:
    """Options as a result file tells them, without places of the machine and what only the command uses."""
    return {name: str(value) for name, value in vars(options).items() if name not in ("output", "run")}
